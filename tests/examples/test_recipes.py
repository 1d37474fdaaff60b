"""The recipes of examples/recipes on tiny made-up data: the loss falls, and running again resumes."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from media import write_video
from PIL import Image
from processes import finish, start
from safetensors.torch import load_file, save_file

from videomamba_depth.utils.errors import UserError
from videomamba_depth.video_mamba.backbone import VideoMamba
from videomamba_depth.video_mamba.checkpoints import load_backbone, save_backbone

pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "recipes"
COMMON = ["--variant", "2,16", "--size", "32", "--workers", "0", "--cpu", "--batch", "4", "--layer-decay", "0.9"]


@pytest.fixture
def recipe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The recipe that a test names."""
    monkeypatch.syspath_prepend(str(RECIPES))
    torch.manual_seed(0)
    yield importlib.import_module(request.param)
    for name in [path.stem for path in RECIPES.glob("*.py")]:
        sys.modules.pop(name, None)


def losses(out: Path) -> list[float]:
    """Every loss that the last checkpoint's log holds."""
    last = max(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def picture(path: Path, color: tuple[int, int, int], seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-20, 20, (40, 40, 3))
    Image.fromarray(np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)).save(path)


def run_and_resume(recipe: ModuleType, arguments: list[str], out: Path, epochs: int, metric: str = "") -> list[float]:
    """Train, then go on for one more epoch and measure; returns the losses of both."""
    arguments = [*COMMON, "--out", str(out), *arguments]
    recipe.main([*arguments, "--epochs", str(epochs)])
    first = losses(out)
    measured = recipe.main([*arguments, "--epochs", str(epochs + 1)])
    assert not metric or 0 <= measured[f"eval_{metric}"] <= 100
    both = losses(out)
    assert both[: len(first)] == first, "it went on from the checkpoint"
    assert len(both) > len(first)
    return both


@pytest.mark.parametrize("recipe", ["image_classification"], indirect=True)
def test_image_classification(recipe: ModuleType, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for index in range(4):
            picture(tmp_path / "data" / split / "dark" / f"{index}.png", (30, 30, 30), index)
            picture(tmp_path / "data" / split / "light" / f"{index}.png", (220, 220, 220), index)
    options = ["--data", str(tmp_path / "data"), "--lr", "1e-2", "--smoothing", "0", "--no-mixup"]
    found = run_and_resume(recipe, options, tmp_path / "out", 12, "top1")
    assert np.mean(found[-6:]) < 0.9 * np.mean(found[:6])
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["id2label"] == {"0": "dark", "1": "light"}


@pytest.mark.parametrize("recipe", ["image_classification"], indirect=True)
def test_every_batch_is_mixed_in_training_and_none_in_evaluation(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, index in ((split, index) for split in ("train", "val") for index in range(4)):
        picture(tmp_path / "data" / split / "ab"[index % 2] / f"{index}.png", (30, 30, 30), index)
    seen: list[int] = []
    plain = recipe.F.cross_entropy
    monkeypatch.setattr(
        recipe.F, "cross_entropy", lambda x, y, **options: seen.append(y.ndim) or plain(x, y, **options)
    )
    options = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--batch", "2", "--epochs", "2"]
    recipe.main([*COMMON, *options])
    assert seen == [2, 2, 1, 1] * 2 + [1, 1], "two epochs of two batches, each evaluated, and the last evaluation"


@pytest.mark.parametrize("recipe", ["video_classification"], indirect=True)
@pytest.mark.parametrize("listed", [False, True])
def test_video_classification(recipe: ModuleType, listed: bool, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label, size in enumerate((32, 48)):
            for index in range(2):
                path = tmp_path / "data" / split / f"class{label}" / f"a clip {index}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_video(path, num_frames=5, width=size, height=48)
        if listed:
            lines = [f"{split}/class{label}/a clip {i}.mp4{' ,'[i]}{label}" for label in range(2) for i in range(2)]
            (tmp_path / "data" / f"{split}.csv").write_text("\n".join(lines))
    data = recipe.Clips(tmp_path / "data", "train", 4, 32, flip=False)
    assert not any(getattr(step, "p", 0) for step in data.transform.transforms)
    assert [label for _, label in data.items] == [0, 0, 1, 1]
    assert data[0]["pixel_values"].shape == (4, 3, 32, 32)
    if not listed:
        options = ["--data", str(tmp_path / "data"), "--frames", "4", "--lr", "5e-3"]
        assert np.isfinite(run_and_resume(recipe, options, tmp_path / "out", 2, "top1")).all()


@pytest.mark.parametrize("recipe", ["video_classification"], indirect=True)
def test_clips_start_from_a_file_for_images(recipe: ModuleType, tmp_path: Path) -> None:
    for split, label in itertools.product(("train", "val"), "ab"):
        (tmp_path / split / label).mkdir(parents=True)
        write_video(tmp_path / split / label / "clip.mp4", num_frames=2, width=32, height=32)
    image = VideoMamba(32, depth=2, embed_dim=16)
    torch.save({"model": image.state_dict()}, tmp_path / "image.pth")
    options = ["--pretrained", str(tmp_path / "image.pth"), "--family", "videomamba_image", "--epochs", "0"]
    recipe.main([*COMMON, *options, "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--frames", "2"])
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["backbone.layers.1.mixer.D_b"], image.layers[1].mixer.D_b)
    assert torch.equal(found["backbone.patch_embed.proj.weight"].squeeze(2), image.patch_embed.proj.weight)
    assert not found["backbone.temporal_pos_embedding"].any()


@pytest.mark.parametrize("recipe", ["semantic_segmentation"], indirect=True)
def test_semantic_segmentation(recipe: ModuleType, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for index in range(4):
            color = (30, 30, 30) if index % 2 else (220, 220, 220)
            picture(tmp_path / "data" / split / "images" / f"{index}.png", color, index)
            (tmp_path / "data" / split / "masks").mkdir(exist_ok=True)
            mask = Image.fromarray(np.full((40, 40), index % 2, np.uint8))
            mask.save(tmp_path / "data" / split / "masks" / f"{index}.png")
    options = ["--data", str(tmp_path / "data"), "--classes", "2", "--lr", "2e-3", "--variant", "4,16"]
    found = run_and_resume(recipe, options, tmp_path / "out", 4, "miou")
    others = [*COMMON, *options, "--out", str(tmp_path / "other"), "--epochs", "1"]
    recipe.main([*others, "--batch", "3"])  # and a picture alone
    with pytest.raises(UserError, match="--batch must be at least 2"):
        recipe.main([*others, "--batch", "1"])
    (tmp_path / "data" / "val" / "masks" / "2.png").rename(tmp_path / "data" / "val" / "masks" / "4.png")
    with pytest.raises(UserError, match="2 pictures or masks are without the other, first 2"):
        recipe.Pictures(tmp_path / "data" / "val", 32, False, 2)
    picture(tmp_path / "data" / "val" / "images" / "0.jpg", (30, 30, 30))
    with pytest.raises(UserError, match=r"0.png and another file have one name before the ending"):
        recipe.Pictures(tmp_path / "data" / "val", 32, False, 2)
    assert found[-1] < found[0]
    table = recipe.mean_iou(type("P", (), {"predictions": np.array([[0, 1, 1]]), "label_ids": np.array([[0, 1, 255]])}))
    assert table == {"miou": 100.0, "pixels": 100.0}
    nothing = type("P", (), {"predictions": np.array([[0, 1]]), "label_ids": np.array([[255, 255]])})
    assert all(np.isnan(value) for value in recipe.mean_iou(nothing).values())


@pytest.mark.parametrize("recipe", ["semantic_segmentation"], indirect=True)
def test_a_batch_without_any_class_is_no_loss(recipe: ModuleType, tmp_path: Path) -> None:
    for split, index in itertools.product(("train", "val"), range(2)):
        picture(tmp_path / split / "images" / f"{index}.png", (30, 30, 30), index)
        (tmp_path / split / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 40), 255, np.uint8)).save(tmp_path / split / "masks" / f"{index}.png")
    options = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--variant", "4,16", "--epochs", "1"]
    found = recipe.main([*COMMON, *options, "--classes", "2"])
    assert np.isnan(found["eval_miou"])
    assert losses(tmp_path / "out") == [0.0]
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())


@pytest.mark.parametrize("recipe", ["segmentation_data"], indirect=True)
def test_masks_hold_the_classes_that_are_told(recipe: ModuleType, tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png", (30, 30, 30))
    (tmp_path / "masks").mkdir()
    values = np.zeros((40, 40), np.uint8)
    values[:10], values[10:20], values[20:30] = 1, 150, 255
    Image.fromarray(values).save(tmp_path / "masks" / "a.png")
    item = recipe.Pictures(tmp_path, 40, False, 151)[0]
    assert (item["labels"].numpy() == values).all()
    item = recipe.Pictures(tmp_path, 40, False, 150, reduce_labels=True)[0]
    assert item["labels"][::10, 0].tolist() == [0, 149, 255, 255]
    with pytest.raises(UserError, match=r"a.png holds class 150; --classes 150 are 0 to 149"):
        recipe.Pictures(tmp_path, 40, False, 150)[0]
    for wrong in (values[:, :20], np.stack([values] * 3, 2)):
        Image.fromarray(wrong).save(tmp_path / "masks" / "a.png")
        with pytest.raises(UserError, match=r"a.png must be of one channel and of its picture's size"):
            recipe.Pictures(tmp_path, 40, False, 151)[0]


@pytest.mark.parametrize("recipe", ["video_classification"], indirect=True)
@pytest.mark.parametrize("kind", ["pictures", "clips", "lists"])
def test_the_training_data_number_the_classes(recipe: ModuleType, kind: str, tmp_path: Path) -> None:
    """A class that val lacks moves no other; one that only val has is refused by its name."""
    options = importlib.import_module("common").parser("", 1, 1, ["vim"])
    args = options.parse_args(["--data", str(tmp_path), "--out", "out"])
    for split, names in (("train", "abc"), ("val", "bc")):
        for name in names:
            picture(tmp_path / split / name / "clip" / "0.png", (30, 30, 30))
        if kind == "lists":
            (tmp_path / f"{split}.csv").write_text("".join(f"{split}/{n}/clip {'abc'.index(n)}\n" for n in names))

    def read() -> tuple[list[int], list[str]]:
        if kind == "pictures":
            val = importlib.import_module("image_classification").pictures(args)[1]
            return val.targets, val.classes
        val = recipe.Clips(tmp_path, "val", 2, 32, known=recipe.Clips(tmp_path, "train", 2, 32).classes)
        return [label for _, label in val.items], val.classes

    assert read() == ([1, 2], ["0", "1", "2"] if kind == "lists" else ["a", "b", "c"])
    picture(tmp_path / "val" / "d" / "0.png", (30, 30, 30))
    if kind == "lists":
        (tmp_path / "val.csv").write_text("val/b/clip 1\nval/d 3\n")
    with pytest.raises(UserError, match="line 2: class 3 is not" if kind == "lists" else "classes .* lacks: d"):
        read()


@pytest.mark.parametrize("recipe", ["folders"], indirect=True)
@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("\ufeffa clip.mp4 0\r\n\nb.mp4, 12\n", [("a clip.mp4", 0), ("b.mp4", 12)]),
        ("a.mp4 0\n\nb.mp4\n", "train.csv, line 3: expected a path and the number of its class, from 0; got 'b.mp4'"),
        ("a.mp4 0\nb.mp4 1000000000\n", "train.csv, line 2: class 1000000000 is no number of a class"),
        ("a.mp4 0\nb.mp4 -1\n", "train.csv, line 2: expected .* got 'b.mp4 -1'"),
        ("a.mp4 dog", "train.csv, line 1: expected .* got 'a.mp4 dog'"),
        ("7", "train.csv, line 1: expected"),
        ("\n", "train.csv names nothing"),
        (b"\xff\xfe\x00", "train.csv cannot be read: it is no UTF-8"),
        (None, "train.csv cannot be read: No such file"),
    ],
)
def test_lists_of_classes(recipe: ModuleType, content: str | bytes | None, found: list | str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "train.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    if isinstance(found, list):
        assert recipe.read_labels(tmp_path / "train.csv") == found
    else:
        with pytest.raises(UserError, match=found):
            recipe.read_labels(tmp_path / "train.csv")


@pytest.mark.parametrize("recipe", ["folders"], indirect=True)
def test_lists_of_descriptions(recipe: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("\ufeffa b.mp4\ta cat, 2 dogs\n", encoding="utf-8")
    assert recipe.read_pairs(path) == [("a b.mp4", "a cat, 2 dogs")]
    for line in ("b.mp4", "b.mp4\t ", "\ta description"):
        path.write_text(f"a.mp4\ta cat\n{line}\n")
        with pytest.raises(UserError, match=r"train.tsv, line 2: expected a path, a tab and a description; got"):
            recipe.read_pairs(path)


@pytest.mark.parametrize("recipe", ["folders"], indirect=True)
def test_folders_without_classes_or_pictures(recipe: ModuleType, tmp_path: Path) -> None:
    data = tmp_path / "train"
    with pytest.raises(UserError, match=r"there is no folder .*train"):
        recipe.Images(data, None)
    data.mkdir()
    with pytest.raises(UserError, match="train is empty"):
        recipe.Images(data, None)
    (data / "notes.txt").touch()
    with pytest.raises(UserError, match="train holds no folders of classes"):
        recipe.Images(data, None)
    for name in ("a", "b"):
        picture(data / name / "0.png", (30, 30, 30))
    (data / "b" / "0.png").unlink()
    with pytest.raises(UserError, match="train holds no pictures of b;"):
        recipe.Images(data, None)
    assert recipe.Images(data, None, ["a", "b", "c"]).targets == [0]


@pytest.mark.parametrize("recipe", ["common"], indirect=True)
def test_one_of_several_processes_writes_and_prints(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for is_main in (False, True):
        monkeypatch.setenv("RANK", "0" if is_main else "1")
        recipe.save(VideoMamba(32, depth=1, embed_dim=8), tmp_path / "model.safetensors")
        recipe.run(lambda: {"top1": 50.0})
        assert (tmp_path / "model.safetensors").exists() == is_main
        assert capsys.readouterr().out == ("{'top1': 50.0}\n" if is_main else "")


@pytest.mark.parametrize("recipe", ["common"], indirect=True)
def test_a_wrong_size_is_refused(recipe: ModuleType) -> None:
    assert recipe.size_of("4,96") == {"num_hidden_layers": 4, "hidden_size": 96}
    for variant in ("x", "4", "4,96,2", "0,96", "4, 96"):
        with pytest.raises(UserError, match="--variant must be t, s, m, b or"):
            recipe.size_of(variant)


@pytest.mark.parametrize("recipe", ["common"], indirect=True)
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--batch", "0"),
        ("--epochs", "-1"),
        ("--lr", "nan"),
        ("--lr", "inf"),
        ("--size", "8"),
        ("--workers", "-1"),
        ("--layer-decay", "1.5"),
        ("--weight-decay", "-1"),
        ("--family", "vin"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    recipe: ModuleType, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        recipe.parser(None, 1, 1.0, ["vim"]).parse_args(["--data", "x", "--out", "y", option, value])
    assert f"argument {option}: " in capsys.readouterr().err


def classification_run(folder: Path) -> list[str]:
    """The arguments of a run on four pictures, with data and --out in a folder."""
    data = folder / "data"
    for split, name, index in itertools.product(("train", "val"), ("dark", "light"), range(2)):
        picture(data / split / name / f"{index}.png", (30, 30, 30) if name == "dark" else (220, 220, 220), index)
    return [*COMMON, "--data", str(data), "--no-mixup", "--out", str(folder / "out")]


@pytest.mark.parametrize("recipe", ["image_classification"], indirect=True)
def test_a_run_goes_on_from_the_last_complete_checkpoint(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is killed leaves a folder that breaks off, and no trainer_state.json in it."""
    out, arguments = tmp_path / "out", classification_run(tmp_path)
    recipe.main([*arguments, "--epochs", "2"])
    (out / "checkpoint-2" / "trainer_state.json").unlink()
    recipe.main([*arguments, "--epochs", "3"])
    assert "checkpoint-2 is not complete and left out" in capsys.readouterr().out
    assert len(losses(out)) == 3
    weights = out / "checkpoint-3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    recipe.main([*arguments, "--epochs", "4"])
    assert "checkpoint-3 is not complete and left out" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"checkpoint-4 is of another model: .* or with another --out"):
        recipe.main([*arguments, "--variant", "3,16", "--epochs", "5"])


@pytest.mark.parametrize("recipe", ["image_classification"], indirect=True)
def test_a_run_goes_on_with_the_options_that_it_is_given(recipe: ModuleType, tmp_path: Path) -> None:
    """The learning rate and the weight decay of the command, and the optimizer's moments of the checkpoint."""
    out, arguments = tmp_path / "out", classification_run(tmp_path)
    recipe.main([*arguments, "--lr", "1e-3", "--epochs", "1"])
    recipe.main([*arguments, "--lr", "1e-5", "--weight-decay", "0", "--epochs", "2"])
    held = torch.load(out / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert max(group["initial_lr"] for group in held["param_groups"]) == 1e-5
    assert {group["weight_decay"] for group in held["param_groups"]} == {0}
    assert {float(moments["step"]) for moments in held["state"].values()} == {2}
    history = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    rates = [entry["learning_rate"] for entry in history if "loss" in entry]
    assert rates == pytest.approx([1e-3 * 0.9**3, 0.5 * 1e-5 * 0.9**3]), "those of the first group, on the half way"


@pytest.mark.parametrize("recipe", ["image_classification"], indirect=True)
def test_damaged_parts_of_a_checkpoint_leave_it_out(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, arguments = tmp_path / "out", classification_run(tmp_path)
    recipe.main([*arguments, "--epochs", "1"])
    last = out / "checkpoint-1"
    model = recipe.VimForImageClassification.from_pretrained(last)
    for name in ("rng_state.pth", "scheduler.pt", "optimizer.pt"):
        whole = (last / name).read_bytes()
        middle = len(whole) // 2  # 200 bytes: more than what fills the gaps between parts
        changed = bytes(255 - byte for byte in whole[middle : middle + 200])
        for content in (whole[:middle], whole[:middle] + changed + whole[middle + 200 :]):
            assert recipe.common.last_checkpoint(out, model) == str(last)
            (last / name).write_bytes(content)
            assert recipe.common.last_checkpoint(out, model) is None
            assert f"checkpoint-1 is not complete and left out: {name} is damaged" in capsys.readouterr().out
            (last / name).write_bytes(whole)
    (last / "optimizer.pt").unlink()
    assert recipe.common.last_checkpoint(out, model) is None
    assert "it has no optimizer.pt" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["common"], indirect=True)
def test_other_models_of_transformers_are_refused_in_one_line(recipe: ModuleType, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, CLIPTextModel

    text = Path(tiny_text_encoder(tmp_path / "text"))
    kinds = {"clip_text_model": CLIPTextModel}
    assert isinstance(recipe.published("--text", str(text), **kinds), CLIPTextModel)
    small = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    BertModel(BertConfig(**small)).save_pretrained(tmp_path / "bert")
    weights = load_file(text / "model.safetensors")
    whole = (text / "model.safetensors").read_bytes()

    def message(name: Path) -> str:
        with pytest.raises(UserError, match=f"--text {name}: ") as caught:
            recipe.published("--text", str(name), **kinds)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "it is a 'bert' model; give one of clip_text_model" in message(tmp_path / "bert")
    save_file(dict(list(weights.items())[1:]), text / "model.safetensors", {"format": "pt"})
    assert "it lacks 1 tensors, first " in message(text)
    (text / "model.safetensors").write_bytes(whole[:-9])
    message(text)
    (text / "config.json").write_text("{}")
    assert "model_type" in message(text)
    message(tmp_path / "no such folder")


def contrast(rank: int, folder: str) -> None:
    """Write the vectors of both processes and the gradient of a loss over them, as one of two."""
    sys.path.insert(0, str(RECIPES))
    import common

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    vectors = torch.arange(6.0).view(3, 2).add(10 * rank).requires_grad_()
    both = common.gathered(vectors)
    both.square().sum().backward()
    torch.save((both.detach(), vectors.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("recipe", ["common"], indirect=True)
def test_a_contrastive_loss_is_over_the_batch_of_all_processes(recipe: ModuleType, tmp_path: Path) -> None:
    processes = [start(contrast, rank, str(tmp_path)) for rank in range(2)]
    assert [finish(process) for process in processes] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = torch.cat([torch.arange(6.0).view(3, 2), torch.arange(6.0).view(3, 2) + 10])
    for rank, (both, gradient) in enumerate(found):
        assert torch.equal(both, whole)
        # Each process has the loss of all, and DDP takes the mean of the gradients: twice that of the loss, halved.
        assert torch.equal(gradient / 2, 2 * whole[3 * rank :][:3])
    assert recipe.gathered(whole) is whole


@pytest.mark.parametrize("recipe", ["image_classification"], indirect=True)
def test_several_processes_have_the_mean_loss_of_one(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer would multiply a loss that is a mean by their number."""
    trainers = []
    plain = recipe.common.MixingTrainer.train
    monkeypatch.setattr(
        recipe.common.MixingTrainer, "train", lambda self, **o: trainers.append(self) or plain(self, **o)
    )
    recipe.main([*classification_run(tmp_path), "--epochs", "1"])
    (trainer,) = trainers
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    (batch,) = [trainer._prepare_inputs(batch) for batch in trainer.get_eval_dataloader()]
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=4)
    torch.testing.assert_close(loss, trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=None))


@pytest.mark.parametrize("recipe", ["image_classification"], indirect=True)
def test_a_loss_that_is_not_finite_stops_a_run(recipe: ModuleType, tmp_path: Path) -> None:
    arguments = [*classification_run(tmp_path), "--epochs", "9"]
    with pytest.raises(UserError, match=r"the loss is nan after \d steps; lower --lr"):
        recipe.main([*arguments, "--lr", "1e30"])
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("recipe", "families"),
    [
        ("image_classification", "vim videomamba_image"),
        ("video_classification", "videomamba_video videomamba_masked videomamba_retrieval videomamba_image"),
        ("self_distillation", "videomamba_image"),
        ("masked_pretraining", "videomamba_masked"),
        ("video_text_retrieval", "videomamba_retrieval videomamba_video videomamba_masked"),
        ("semantic_segmentation", "vim"),
        ("detection", "vim"),
    ],
    indirect=["recipe"],
)
def test_a_recipe_takes_the_families_of_its_model_alone(
    recipe: ModuleType, families: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others are refused before anything is read."""
    with pytest.raises(SystemExit):
        recipe.main(["--family", "contract"])
    message = capsys.readouterr().err.partition("argument --family: invalid choice: 'contract'")[2]
    assert re.findall(r"vi\w+", message) == families.split()


@pytest.mark.parametrize("recipe", ["common"], indirect=True)
def test_a_file_is_of_the_first_family_by_default(recipe: ModuleType) -> None:
    options = recipe.parser(None, 1, 1.0, ["vim", "videomamba_image"])
    given = ["--data", "x", "--out", "y"]
    assert options.parse_args(given).family == "vim"
    assert options.parse_args([*given, "--family", "videomamba_image"]).family == "videomamba_image"


@pytest.mark.parametrize("recipe", ["semantic_segmentation"], indirect=True)
def test_segmentation_needs_a_layer_for_each_scale(recipe: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 4 layers"):
        recipe.main([*COMMON, "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--classes", "2"])


@pytest.mark.parametrize("recipe", ["folders"], indirect=True)
def test_damaged_pictures_are_refused_by_name(recipe: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture(path, (30, 30, 30))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"no picture", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"the picture .*a.png cannot be read"):
            recipe.read_picture(path)


def test_a_recipe_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    """From a process of its loader too."""
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "0.png").write_bytes(b"no picture")
    command = [sys.executable, str(RECIPES / "image_classification.py"), *COMMON, "--workers", "1"]
    done = subprocess.run(
        [*command, "--data", str(tmp_path), "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (message,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "cannot identify image file" in message
    assert "0.png" in message


@pytest.mark.parametrize("recipe", ["masked_pretraining"], indirect=True)
@pytest.mark.parametrize("frames", [1, 2])
def test_masked_pretraining(recipe: ModuleType, frames: int, tmp_path: Path, tiny_teacher_folder: str) -> None:
    (tmp_path / "data").mkdir()
    for index in range(4):
        write_video(tmp_path / "data" / f"{index}.mp4", num_frames=4, seed=index)
    options = [
        "--data",
        str(tmp_path / "data"),
        "--frames",
        str(frames),
        "--teacher",
        tiny_teacher_folder,
        "--lr",
        "5e-3",
    ]
    found = run_and_resume(recipe, [*options, "--lr", "5e-3"], tmp_path / "out", 5)
    assert found[-1] < found[0]
    if frames == 1:
        model = VideoMamba(32, 16, 2, 16, num_classes=0)
        load_backbone(model, tmp_path / "out" / "image.safetensors", "videomamba_image")
    else:
        model = VideoMamba(32, 16, 2, 16, num_classes=3, num_frames=2)
        masked = tmp_path / "out" / "masked.safetensors"
        load_backbone(model, masked, "videomamba_masked")
        others = [*COMMON, "--out", str(tmp_path / "other"), *options, "--epochs", "0", "--pretrained", str(masked)]
        recipe.main(others)  # no step: what comes out is what went in
        written = load_file(tmp_path / "other" / "masked.safetensors")
        assert all(torch.equal(tensor, written[name]) for name, tensor in load_file(masked).items())


@pytest.mark.parametrize("recipe", ["masked_pretraining"], indirect=True)
def test_the_model_for_images_reads_a_frame_as_the_masked_student(recipe: ModuleType) -> None:
    student = recipe.MaskedVideoMamba(8, 1, depth=3, embed_dim=16, img_size=32).eval()
    frame = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        student.temporal_pos_embedding.normal_()
    image = recipe.image_model(student, 2).eval()
    (stream,) = image._streams(frame, None, None, [2])
    torch.testing.assert_close(stream, student.forward_features(frame.unsqueeze(2)))


@pytest.mark.parametrize("recipe", ["self_distillation"], indirect=True)
def test_self_distillation(recipe: ModuleType, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for index in range(4):
            picture(tmp_path / "data" / split / "dark" / f"{index}.png", (30, 30, 30), index)
            picture(tmp_path / "data" / split / "light" / f"{index}.png", (220, 220, 220), index)
    teacher = VideoMamba(32, depth=1, embed_dim=8, num_classes=2)
    save_backbone(teacher, tmp_path / "teacher.safetensors")
    options = ["--data", str(tmp_path / "data"), "--teacher", str(tmp_path / "teacher.safetensors")]
    found = run_and_resume(recipe, [*options, "--teacher-variant", "1,8", "--lr", "1e-2"], tmp_path / "out", 8, "top1")
    assert np.mean(found[-4:]) < np.mean(found[:4])
    model = VideoMamba(32, depth=2, embed_dim=16, num_classes=2)
    load_backbone(model, tmp_path / "out" / "student.safetensors", "videomamba_image")
    save_backbone(model, tmp_path / "start.safetensors")
    options += ["--teacher-variant", "1,8", "--pretrained", str(tmp_path / "start.safetensors"), "--epochs", "0"]
    recipe.main([*COMMON, *options, "--out", str(tmp_path / "again")])
    again = load_file(tmp_path / "again" / "student.safetensors")
    assert torch.equal(again["layers.1.mixer.D_b"], model.layers[1].mixer.D_b), "files have no head for this teacher"


@pytest.mark.parametrize("recipe", ["detection"], indirect=True)
def test_detection(recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        images, annotations = [], []
        for index in range(4):
            picture(tmp_path / "data" / split / f"{index}.png", (120, 120, 120), index)
            images.append({"id": index, "file_name": f"{index}.png", "width": 40, "height": 40})
            corners = [8, 8, 28, 8, 28, 30, 8, 30]
            item = {
                "image_id": index,
                "category_id": 7,
                "bbox": [8, 8, 20, 22],
                "segmentation": [corners],
                "iscrowd": 0,
            }
            annotations.append({"id": index, **item})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "box"}]}
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(content))
    item = recipe.Coco(tmp_path / "data", "train")[0]
    assert item["targets"]["boxes"].tolist() == [[8, 8, 28, 30]]
    assert item["targets"]["labels"].tolist() == [1]
    assert item["targets"]["masks"][0, 10, 10] == 1 - item["targets"]["masks"][0, 2, 2] == 1
    options = ["--data", str(tmp_path / "data"), "--size", "64", "--lr", "1e-3", "--batch", "2"]
    found = run_and_resume(recipe, options, tmp_path / "out", 3)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)  # the metric would meet the others, and count all twice
    args = recipe.common.parser("", 1, 1.0, ["vim"]).parse_args([*COMMON, "--data", "", "--out", ""])
    recipe.evaluate(recipe.Detector(args, 2).eval(), recipe.Coco(tmp_path / "data", "val"))
    assert np.mean(found[-2:]) < np.mean(found[:2])
    (tmp_path / "data" / "val.json").write_text(json.dumps({**content, "annotations": []}))
    nothing = recipe.evaluate(recipe.Detector(args, 2).eval(), recipe.Coco(tmp_path / "data", "val"))
    assert all(np.isnan(value) for value in nothing.values()), "an average over no object"


@pytest.mark.parametrize("recipe", ["coco"], indirect=True)
def test_boxes_and_masks_of_coco(recipe: ModuleType, tmp_path: Path) -> None:
    """Polygons and run lengths, listed and packed; crowds and boxes without an area in the picture are left out."""
    picture(tmp_path / "train" / "0.png", (120, 120, 120))
    drawn = np.zeros((40, 40), np.uint8)
    drawn[5:25, 10:30] = drawn[30:35, :8] = 1
    edges = np.flatnonzero(np.diff(drawn.T.ravel(), prepend=0))
    lengths = np.diff(edges, prepend=0, append=drawn.size).tolist()
    packed = "n05S10000000000000g1?jM0000000000000000000000000000000000000[<"  # of pycocotools 2.0.11
    box = [10, 5, 20, 20]
    shapes = [
        (box, {"size": [40, 40], "counts": lengths}, 0),
        (box, {"size": [40, 40], "counts": packed}, 0),
        ([10, 5, 20, 0], [], 0),
        ([50, 5, 20, 20], [], 0),
        ([10, 5, 60, 20], [[10, 5, 50, 5, 50, 25]], 0),
        (box, {"size": [40, 40], "counts": lengths}, 1),
    ]
    keys = ("bbox", "segmentation", "iscrowd")
    annotations = [
        {"id": n, "image_id": 3, "category_id": 7, **dict(zip(keys, shape, strict=True))}
        for n, shape in enumerate(shapes)
    ]
    content = {
        "images": [{"id": 3, "file_name": "0.png"}],
        "categories": [{"id": 9, "name": "other"}, {"id": 7, "name": "box"}],
        "annotations": annotations,
    }

    def read(known: dict[int, str] | None = None, **changes: Any) -> Any:
        (tmp_path / "train.json").write_text(json.dumps({**content, **changes}), encoding="utf-8-sig")
        return recipe.Coco(tmp_path, "train", known)

    target = read()[0]["targets"]
    assert target["boxes"].tolist() == [[10, 5, 30, 25], [10, 5, 30, 25], [10, 5, 40, 25]]
    assert target["labels"].tolist() == [2, 2, 2]
    for mask in target["masks"][:2]:
        assert (mask.numpy() == drawn).all()
    assert target["masks"][2, 6, 30]
    other = [{"id": 7, "name": "box"}]
    assert read({9: "other", 7: "box"}, categories=other)[0]["targets"]["labels"].tolist() == [2, 2, 2]
    assert read(annotations=[])[0]["targets"]["masks"].shape == (0, 40, 40)
    for message, changes in {
        "has categories that the training data lack: other, box": {"known": {7: "circle"}},
        "lists no images": {"images": [], "annotations": []},
        "lists no categories": {"categories": [], "annotations": []},
        "has two categories of one id": {"categories": [*content["categories"], {"id": 7, "name": "bag"}]},
        "annotation 0: KeyError: 'segmentation'": {"annotations": [{"id": 0, "bbox": box, "category_id": 7}]},
        "annotation 0: KeyError: 8": {"annotations": [{**annotations[0], "category_id": 8}]},
        "annotation 0: ValueError: not enough": {"annotations": [{**annotations[0], "bbox": [1, 2, 3]}]},
        "not in COCO's format, its images or categories: KeyError": {"images": [{}]},
    }.items():
        with pytest.raises(UserError, match=message):
            read(**changes)
    for shape in ({"size": [40, 40], "counts": [1600, 7]}, {"size": [20, 80], "counts": [1600]}):
        wrong = read(annotations=[{**annotations[0], "segmentation": shape}])
        with pytest.raises(UserError, match=r"train.json, annotation 0: its segmentation is no mask of 40x40 px"):
            wrong[0]
    with pytest.raises(UserError, match=r"val.json cannot be read: No such file"):
        recipe.Coco(tmp_path, "val")


def tiny_text_encoder(folder: Path) -> str:
    """A CLIP text encoder with a vocabulary of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "a", "red", "green", "blue", "clip"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=8)
    fast.save_pretrained(folder)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, projection_dim=16, eos_token_id=6, bos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("recipe", ["video_text_retrieval"], indirect=True)
def test_video_text_retrieval(recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = recipe.transforms
    monkeypatch.setattr(recipe, "transforms", lambda size, is_train: plain(size, False))  # augmented colors say little
    colors = {"red": (240, 20, 20), "green": (20, 240, 20), "blue": (20, 20, 240)}
    for name, color in colors.items():
        for index in range(2):
            picture(tmp_path / "data" / name / f"{index}.png", color, index)
    lines = [f"{name}\ta {name} clip" for name in colors]
    for split in ("train", "val"):
        (tmp_path / "data" / f"{split}.tsv").write_text("\n".join(lines))
    options = ["--data", str(tmp_path / "data"), "--text", tiny_text_encoder(tmp_path / "text"), "--frames", "2"]
    found = run_and_resume(recipe, [*options, "--lr", "1e-2"], tmp_path / "out", 8, "recall_at_1")
    assert np.mean(found[-3:]) < 0.9 * np.mean(found[:3])
    vectors = np.eye(3)
    assert recipe.recall(type("P", (), {"predictions": (vectors, vectors)})) == dict.fromkeys(
        ("recall_at_1", "recall_at_5", "recall_at_10"), 100.0
    )
    assert recipe.recall(type("P", (), {"predictions": (vectors, vectors[[1, 2, 0]])}))["recall_at_1"] == 0
    same = np.ones((3, 3))
    assert recipe.recall(type("P", (), {"predictions": (same, same)}))["recall_at_1"] == 0, "nothing was told apart"
