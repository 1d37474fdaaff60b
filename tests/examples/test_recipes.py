"""The recipes of examples/recipes on tiny made-up data: the loss falls, and running again resumes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from media import write_video
from PIL import Image

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
    (tmp_path / "data" / "val" / "masks" / "2.png").rename(tmp_path / "data" / "val" / "masks" / "4.png")
    with pytest.raises(SystemExit, match="2 pictures or masks are without the other, first 2"):
        recipe.Pictures(tmp_path / "data" / "val", 32, False)
    assert found[-1] < found[0]
    table = recipe.mean_iou(type("P", (), {"predictions": np.array([[0, 1, 1]]), "label_ids": np.array([[0, 1, 255]])}))
    assert table == {"miou": 100.0, "pixels": 100.0}


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
        load_backbone(model, tmp_path / "out" / "masked.safetensors", "videomamba_masked")


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


@pytest.mark.parametrize("recipe", ["detection"], indirect=True)
def test_detection(recipe: ModuleType, tmp_path: Path) -> None:
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
    assert np.mean(found[-2:]) < np.mean(found[:2])


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
