"""Acceptance points of weights: names, shapes and counts of every family, strict loading, clear lists of problems."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_backbones import SIZE, clip, contract, image_model, masked_model, randomize_, video_model, vim_model

from videomamba_depth.utils.errors import UserError
from videomamba_depth.video_mamba import PretrainVideoMamba, build_videomamba
from videomamba_depth.video_mamba.backbone import MaskedVideoMamba, VideoMamba
from videomamba_depth.video_mamba.checkpoint_files import CheckpointError
from videomamba_depth.video_mamba.checkpoints import (
    inflate_image_weights,
    inflate_kernel,
    load_backbone,
    save_backbone,
)
from videomamba_depth.video_mamba.positions import resize_spatial_table
from videomamba_depth.video_mamba.variants import VARIANTS
from videomamba_depth.video_mamba.vim import Vim

COUNTS = {  # variant: (parameters, tensors) of image and Vim, of video with 8 frames, of the contract class
    "t": ((7_148_008, 415), (7_033_744, 416), (6_228_864, 248)),
    "s": ((25_796_584, 415), (25_568_656, 416), (23_516_928, 248)),
    "m": ((74_217_448, 551), (73_875_856, 552), (68_964_480, 328)),
    "b": ((97_598_440, 415), None, None),
}


def _count(model: torch.nn.Module) -> tuple[int, int]:
    return sum(p.numel() for p in model.parameters()), len(model.state_dict())


@pytest.mark.parametrize("variant", COUNTS)
def test_point_16_counts_equal_the_table(variant: str) -> None:
    image, video, causal = COUNTS[variant]
    size = VARIANTS[variant]._asdict()
    with torch.device("meta"):
        assert _count(VideoMamba(**size)) == image
        assert _count(Vim(**size)) == image
        if video:
            assert _count(VideoMamba(**size, num_frames=8, num_classes=400)) == video
            assert _count(PretrainVideoMamba(**size, num_frames=8)) == causal


def _layer_shapes(d: int, layer: int, bidirectional: bool) -> dict[str, tuple[int, ...]]:
    e, r, states, width = 2 * d, -(-d // 16), 16, 4
    shapes: dict[str, tuple[int, ...]] = {
        "in_proj.weight": (2 * e, d),
        "out_proj.weight": (d, e),
    }
    for b in ("", "_b") if bidirectional else ("",):
        shapes |= {
            f"A{b}_log": (e, states),
            f"D{b}": (e,),
            f"conv1d{b}.weight": (e, 1, width),
            f"conv1d{b}.bias": (e,),
            f"x_proj{b}.weight": (r + 2 * states, e),
            f"dt_proj{b}.weight": (e, r),
            f"dt_proj{b}.bias": (e,),
        }
    named = {f"layers.{layer}.mixer.{name}": shape for name, shape in shapes.items()}
    return {**named, f"layers.{layer}.norm.weight": (d,)}


def official_shapes(family: str, d: int = 24, depth: int = 2, teacher: int | None = None) -> dict[str, tuple]:
    """Names and shapes of an official file of 32x32 px with patches of 16 px (4 patches), 4 frames, 7 classes."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, d), "pos_embed": (1, 5, d), "patch_embed.proj.bias": (d,)}
    is_video = family in ("videomamba_video", "videomamba_masked", "contract")
    shapes["patch_embed.proj.weight"] = (d, 3, 1, 16, 16) if is_video else (d, 3, 16, 16)
    if is_video:
        shapes["temporal_pos_embedding"] = (1, 4, d)
    for layer in range(depth):
        shapes |= _layer_shapes(d, layer, family != "contract")
    if family == "contract":
        return shapes | {"norm.weight": (d,), "pool_norm.weight": (d,), "pool_norm.bias": (d,)}
    if family == "videomamba_masked":
        decoder = {"head.weight": (512, d), "head.bias": (512,), "norm.weight": (512,), "norm.bias": (512,)}
        return shapes | {"norm.weight": (d,)} | {f"clip_decoder.0.{name}": shape for name, shape in decoder.items()}
    shapes |= {"norm_f.weight": (d,), "head.weight": (7, d), "head.bias": (7,)}
    if teacher is not None:
        shapes |= {
            "distill_head.0.weight": (d,),
            "distill_head.1.weight": (teacher, d),
            "distill_head.1.bias": (teacher,),
        }
    return shapes


def empty_model(family: str, **options: Any) -> Any:
    size: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 2, **options}
    if family == "contract":
        return PretrainVideoMamba(**size, num_frames=4)
    if family == "vim":
        return Vim(**size, num_classes=7)
    if family == "videomamba_masked":
        return MaskedVideoMamba(**size, num_frames=4)
    return VideoMamba(**size, num_classes=7, num_frames=4 if family == "videomamba_video" else None)


def random_file(shapes: dict[str, tuple], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


FAMILIES = ["videomamba_image", "videomamba_video", "videomamba_masked", "vim", "contract"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wrap", ["plain", "model", "module", "state_dict", "distributed", "safetensors"])
def test_point_16_official_names_and_shapes_load_strictly(family: str, wrap: str, tmp_path: Path) -> None:
    tensors = random_file(official_shapes(family))
    path = tmp_path / ("file.safetensors" if wrap == "safetensors" else "file.pth")
    if wrap == "safetensors":
        save_file(tensors, path)
    elif wrap == "distributed":
        torch.save({"model": {f"module.{name}": t for name, t in tensors.items()}, "epoch": 3}, path)
    else:
        torch.save(tensors if wrap == "plain" else {wrap: tensors, "epoch": 3}, path)
    model = empty_model(family)
    load_backbone(model, path, family)
    loaded = model.state_dict()
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_point_16_distilled_students_load_with_their_head(tmp_path: Path) -> None:
    torch.save({"model": random_file(official_shapes("videomamba_image", teacher=10))}, tmp_path / "student.pth")
    model = empty_model("videomamba_image", teacher_dim=10)
    load_backbone(model, tmp_path / "student.pth", "videomamba_image")
    scores, features = model.forward_distill(torch.randn(2, 3, 32, 32))
    assert scores.shape == (2, 7)
    assert features.shape == (2, 5, 10)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2, 5))
    with pytest.raises(ValueError, match="teacher_dim"):
        empty_model("videomamba_image").forward_distill(torch.randn(2, 3, 32, 32))


def test_point_16_the_two_families_with_equal_names_are_told_apart(tmp_path: Path) -> None:
    image, vim = image_model(), vim_model(depth=3)
    assert {n: t.shape for n, t in image.state_dict().items()} == {n: t.shape for n, t in vim.state_dict().items()}
    torch.save(image.state_dict(), tmp_path / "image.pth")
    with pytest.raises(CheckpointError, match=r"family 'videomamba_image' cannot be loaded.*family 'vim'"):
        load_backbone(vim, tmp_path / "image.pth", "videomamba_image")
    save_backbone(image, tmp_path / "image.safetensors")
    with safe_open(tmp_path / "image.safetensors", "pt") as file:
        assert file.metadata()["family"] == "videomamba_image"
    with pytest.raises(CheckpointError, match="says that it is of family 'videomamba_image', not 'vim'"):
        load_backbone(vim, tmp_path / "image.safetensors", "vim")
    with pytest.raises(CheckpointError, match=r"family must be one of videomamba_image, .*, contract; got 'video'"):
        load_backbone(image, tmp_path / "image.pth", "video")  # type: ignore[arg-type]
    other = image_model(seed=5)
    load_backbone(other, tmp_path / "image.safetensors", "videomamba_image")
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(other(x), image(x))


@pytest.mark.parametrize("family", ["vim", "videomamba_image"])
def test_point_15_tables_of_another_resolution_are_resized_when_loaded(family: str, tmp_path: Path) -> None:
    small, big = empty_model(family, img_size=64), empty_model(family, img_size=(64, 96))
    randomize_(small)
    torch.save(small.state_dict(), tmp_path / "file.pth")
    load_backbone(big, tmp_path / "file.pth", family)
    row, new_row = (8, 12) if family == "vim" else (0, 0)
    table, new = small.pos_embed, big.pos_embed
    assert torch.equal(new[:, new_row], table[:, row])
    patches = torch.cat([table[:, :row], table[:, row + 1 :]], 1)
    resized = torch.cat([new[:, :new_row], new[:, new_row + 1 :]], 1)
    torch.testing.assert_close(resized, resize_spatial_table(patches, (4, 4), (4, 6)))
    x = torch.randn(1, 3, 64, 96)  # resizing at run time or when loading is the same
    torch.testing.assert_close(big(x), small(x), atol=1e-4, rtol=1e-4)


def test_point_15_the_grid_of_a_file_is_stated_and_not_guessed(tmp_path: Path) -> None:
    wide = empty_model("videomamba_image", img_size=(32, 128))  # 2x8, as many as 4x4
    randomize_(wide)
    save_backbone(wide, tmp_path / "own.safetensors")
    torch.save(wide.state_dict(), tmp_path / "foreign.pth")
    square = empty_model("videomamba_image", img_size=64)
    load_backbone(square, tmp_path / "own.safetensors", "videomamba_image")
    expected = resize_spatial_table(wide.pos_embed[:, 1:], (2, 8), (4, 4))
    torch.testing.assert_close(square.pos_embed[:, 1:], expected)
    load_backbone(square, tmp_path / "foreign.pth", "videomamba_image", source_grid=(2, 8))
    torch.testing.assert_close(square.pos_embed[:, 1:], expected)
    odd = empty_model("videomamba_image", img_size=(32, 48))  # 6 patches are no square
    torch.save(odd.state_dict(), tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"6 rows of patches.*pass source_grid"):
        load_backbone(square, tmp_path / "odd.pth", "videomamba_image")


def test_point_17_every_problem_is_listed(tmp_path: Path) -> None:
    for family in FAMILIES:
        tensors = random_file(official_shapes(family))
        tensors["layers.0.mixer.A_logs"] = tensors.pop("layers.0.mixer.A_log")
        del tensors["layers.1.mixer.D"]
        tensors["cls_token"] = torch.zeros(1, 1, 23)
        torch.save(tensors, tmp_path / "file.pth")
        model = empty_model(family)
        before = {name: t.clone() for name, t in model.state_dict().items()}
        with pytest.raises(CheckpointError) as error:
            load_backbone(model, tmp_path / "file.pth", family)
        text = str(error.value)
        assert "4 problems" in text
        for line in (
            "missing: layers.0.mixer.A_log (48, 16)",
            "unexpected: layers.0.mixer.A_logs (48, 16)",
            "missing: layers.1.mixer.D (48,)",
            "mis-shaped: cls_token is (1, 1, 23), the model has (1, 1, 24)",
        ):
            assert line in text
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
        assert isinstance(error.value, UserError)
        assert isinstance(error.value, ValueError)


def test_point_17_files_that_are_no_weights(tmp_path: Path) -> None:
    model = empty_model("vim")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "folder.pth").mkdir()
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save({"weights": SimpleNamespace(a=1)}, tmp_path / "object.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"a": torch.zeros(1), "lr": 0.1}, tmp_path / "mixed.pth")
    for name, message in (
        ("absent.pth", "does not exist"),
        ("folder.pth", "is a folder; give the path of"),
        ("text.pth", "no file of PyTorch"),
        ("half.pth", "damaged, incomplete or no file of PyTorch; download or save it again"),
        ("text.safetensors", "is no safetensors file"),
        ("object.pth", r"cannot be read as weights alone.*\(types.SimpleNamespace\), which could run code"),
        ("list.pth", "holds a list, not a state dict"),
        ("mixed.pth", "lr are no tensors"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_backbone(model, tmp_path / name, "vim")


def test_options_beside_the_weights_are_read_over(tmp_path: Path) -> None:
    model, other = image_model(), image_model(seed=2)
    options = argparse.Namespace(lr=1e-3, data_path="imagenet")
    content = {"model": model.state_dict(), "optimizer": {"state": {}}, "epoch": 3, "args": options}
    torch.save(content, tmp_path / "checkpoint.pth")  # as the released training scripts write them
    load_backbone(other, tmp_path / "checkpoint.pth", "videomamba_image")
    assert torch.equal(other.head.weight, model.head.weight)


def _complex(t: torch.Tensor) -> torch.Tensor:
    return torch.complex(t, t)


@pytest.mark.filterwarnings("ignore:.*(sparse|nested)")
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "layers.1.mixer.D",
            torch.Tensor.int,
            "D is torch.int32, the model has torch.float32",
        ),
        ("layers.1.mixer.D", torch.Tensor.bool, "of another kind: layers.1.mixer.D is torch.bool"),
        ("layers.1.mixer.D", _complex, "of another kind: layers.1.mixer.D is torch.complex64"),
        (
            "layers.1.mixer.D",
            lambda t: t.to(torch.float8_e5m2),
            "of another kind: layers.1.mixer.D is torch.float8",
        ),
        ("layers.1.mixer.D", lambda t: t / 0, "not finite: layers.1.mixer.D"),
        ("layers.1.mixer.D", lambda t: t.double() * 1e300, "not finite: layers.1.mixer.D"),  # it overflows
        ("layers.1.mixer.D", torch.Tensor.to_sparse, "layers.1.mixer.D hold no plain numbers"),
        ("layers.1.mixer.D", lambda t: t.to("meta"), "layers.1.mixer.D hold no plain numbers"),
        ("layers.1.mixer.D", lambda t: torch.nested.nested_tensor([t]), "layers.1.mixer.D hold no plain numbers"),
        ("pos_embed", lambda t: t.repeat(1, 4, 1).to_sparse(), "pos_embed hold no plain numbers"),
        ("pos_embed", lambda t: _complex(t.new_zeros(1, 17, 24)), "of another kind: pos_embed is torch.complex64"),
        ("pos_embed", lambda t: t[:, :1], r"mis-shaped: pos_embed is \(1, 1, 24\)"),
        ("pos_embed", lambda t: t[:, :0], r"mis-shaped: pos_embed is \(1, 0, 24\)"),
        ("pos_embed", lambda t: t.new_zeros(1, 17, 0), r"mis-shaped: pos_embed is \(1, 17, 0\)"),
        ("temporal_pos_embedding", lambda t: _complex(t[:, :3]), "of another kind: temporal_pos_embedding is torch.c"),
        (
            "temporal_pos_embedding",
            lambda t: t.new_zeros(1, 2, 0),
            r"temporal_pos_embedding is \(1, 2, 0\)",
        ),
    ],
)
def test_point_17_tensors_that_are_no_weights_are_refused_by_name(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str, tmp_path: Path
) -> None:
    tensors = random_file(official_shapes("videomamba_video"))
    torch.save({**tensors, name: change(tensors[name])}, tmp_path / "file.pth")
    model = empty_model("videomamba_video")
    before = {key: t.clone() for key, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_backbone(model, tmp_path / "file.pth", "videomamba_video")
    assert all(torch.equal(before[key], t) for key, t in model.state_dict().items())
    narrow = {key: t.bfloat16() for key, t in tensors.items()}
    torch.save(narrow, tmp_path / "file.pth")
    load_backbone(model, tmp_path / "file.pth", "videomamba_video")
    assert all(torch.equal(narrow[key].float(), t) for key, t in model.state_dict().items())


@pytest.mark.parametrize("grid", ["banana", "2x2x2", "-2x-2", "0x4", "", "1x9"])
def test_a_grid_in_the_metadata_that_is_none_is_refused(grid: str, tmp_path: Path) -> None:
    save_file(random_file(official_shapes("vim")), tmp_path / "file.safetensors", {"grid": grid})
    with pytest.raises(CheckpointError, match="pass source_grid"):
        load_backbone(empty_model("vim"), tmp_path / "file.safetensors", "vim")
    load_backbone(empty_model("vim"), tmp_path / "file.safetensors", "vim", source_grid=(2, 2))
    for wrong in ((2,), "2x2", (2.0, 2.0), (-2, -2)):
        with pytest.raises(ValueError, match="source_grid must be a positive integer, or two"):
            load_backbone(empty_model("vim"), tmp_path / "file.safetensors", "vim", source_grid=wrong)


def test_what_cannot_be_written_is_one_line_and_keeps_the_former_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^cannot write .*no/file.safetensors: .*$"):
        save_backbone(vim_model(), tmp_path / "no" / "file.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"^cannot write .*folder: .*$"):
        save_backbone(vim_model(), tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


@pytest.mark.parametrize("tubelet", [1, 2, 3])
def test_inflation_puts_the_image_kernel_in_the_middle_slice(tubelet: int, tmp_path: Path) -> None:
    image = image_model(num_classes=7)
    torch.save({"model": image.state_dict()}, tmp_path / "image.pth")
    video = video_model(seed=3, tubelet_size=tubelet, num_frames=4 * tubelet)
    head = video.head.weight.clone()
    inflate_image_weights(video, tmp_path / "image.pth")
    frames = torch.randn(2, 3, tubelet, 8, 8)
    frames_changed = frames.clone()
    for t in range(tubelet):
        if t != tubelet // 2:
            frames_changed[:, :, t] = 9
    expected = image.forward_features(frames[:, :, tubelet // 2])
    torch.testing.assert_close(video.forward_features(frames), expected)
    torch.testing.assert_close(video.forward_features(frames_changed), expected)
    assert torch.equal(video.head.weight, head)
    assert inflate_kernel(torch.ones(1, 3, 2, 2), 3)[0, 0, :, 0, 0].tolist() == [0, 1, 0]
    with pytest.raises(CheckpointError, match="inflation needs a VideoMamba built with num_frames"):
        inflate_image_weights(image, tmp_path / "image.pth")
    save_backbone(vim_model(depth=3), tmp_path / "vim.safetensors")
    with pytest.raises(CheckpointError, match="family vim; inflation needs videomamba_image"):
        inflate_image_weights(video, tmp_path / "vim.safetensors")
    torch.save(video_model(tubelet_size=tubelet, num_frames=4 * tubelet).state_dict(), tmp_path / "video.pth")
    with pytest.raises(CheckpointError, match=r"video.pth' is a file of clips; inflation needs videomamba_image"):
        inflate_image_weights(video, tmp_path / "video.pth")


def test_another_number_of_classes_keeps_the_models_own_head(tmp_path: Path) -> None:
    torch.save(image_model(num_classes=9).state_dict(), tmp_path / "file.pth")
    model = image_model(seed=2, num_classes=4)
    head = model.head.weight.clone()
    with pytest.raises(CheckpointError, match=r"mis-shaped: head.weight is \(9, 16\), the model has \(4, 16\)"):
        load_backbone(model, tmp_path / "file.pth", "videomamba_image")
    load_backbone(model, tmp_path / "file.pth", "videomamba_image", keep_head=False)
    assert torch.equal(model.head.weight, head)
    load_backbone(
        image_model(num_classes=0), tmp_path / "file.pth", "videomamba_image", keep_head=False
    )  # no head at all
    student = image_model(seed=3, num_classes=4, teacher_dim=8)
    load_backbone(student, tmp_path / "file.pth", "videomamba_image", keep_head=False)  # which has no distill_head
    assert torch.equal(student.cls_token, model.cls_token)
    torch.save(image_model(teacher_dim=24).state_dict(), tmp_path / "distilled.pth")
    load_backbone(student, tmp_path / "distilled.pth", "videomamba_image", keep_head=False)  # of another teacher


def config(**changes: Any) -> SimpleNamespace:
    fields = {
        **SIZE,
        "depth": 3,
        "channels": 3,
        "drop_path_rate": 0.0,
        "norm_epsilon": 1e-5,
        "fused_add_norm": True,
        "rms_norm": True,
        "residual_in_fp32": True,
        "bimamba": True,
        "pool_type": "avg",
        "kernel_size": 1,
        "num_frames": 8,
        "use_checkpoint": False,
        "checkpoint_num": 0,
        "pretrained": None,
        "ckpt_num_frame": 8,
    }
    fields.update(changes)
    return SimpleNamespace(vision_encoder=SimpleNamespace(**fields))


def test_build_reads_every_field_and_names_a_missing_one() -> None:
    model = build_videomamba(config(pool_type="cls", embed_dim=32), add_pool_norm=False, temporal_policy="clamp")
    assert (model.pool_type, model.embed_dim, model.add_pool_norm, str(model.temporal_policy)) == (
        "cls",
        32,
        False,
        "clamp",
    )
    for name in vars(config().vision_encoder):
        if name == "ckpt_num_frame":
            continue
        broken = config()
        delattr(broken.vision_encoder, name)
        broken.vision_encoder.in_chans = 3  # is no substitute for channels
        with pytest.raises(AttributeError, match=rf"vision_encoder\.{name} "):
            build_videomamba(broken)
    with pytest.raises(AttributeError, match=r"config.vision_encoder is required"):
        build_videomamba(SimpleNamespace())
    with pytest.raises(NotImplementedError, match="bimamba=True"):
        build_videomamba(config(bimamba=False))
    build_videomamba(config(ssm_cfg=None))


def test_build_loads_plain_state_dicts_only(tmp_path: Path) -> None:
    saved = contract(pool_type="avg")
    torch.save(saved.state_dict(), tmp_path / "plain.pth")
    save_file(saved.state_dict(), tmp_path / "plain.safetensors")
    save_backbone(saved, tmp_path / "own.safetensors")
    x = clip(3)
    for name in ("plain.pth", "plain.safetensors", "own.safetensors"):
        model = build_videomamba(config(pretrained=str(tmp_path / name))).eval()
        assert torch.equal(model(x)[0], saved(x)[0])
    for wrapper in ("model", "module"):
        torch.save({wrapper: saved.state_dict()}, tmp_path / "wrapped.pth")
        with pytest.raises(ValueError, match="plain state_dict checkpoint"):
            build_videomamba(config(pretrained=str(tmp_path / "wrapped.pth")))
    broken = config(pretrained=str(tmp_path / "plain.pth"))
    del broken.vision_encoder.ckpt_num_frame
    with pytest.raises(AttributeError, match="ckpt_num_frame"):
        build_videomamba(broken)
    for number in (0, True, 2.0, "8"):
        with pytest.raises(ValueError, match="ckpt_num_frame must be a positive integer"):
            build_videomamba(config(pretrained=str(tmp_path / "plain.pth"), ckpt_num_frame=number))


def test_build_resizes_the_temporal_table_from_its_stored_length(tmp_path: Path, caplog: Any) -> None:
    saved = contract(pool_type="avg", num_frames=4)
    torch.save(saved.state_dict(), tmp_path / "four.pth")
    tables = []
    for claimed in (4, 8):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model = build_videomamba(config(pretrained=str(tmp_path / "four.pth"), ckpt_num_frame=claimed))
        assert ("ckpt_num_frame=8 means 8 temporal rows, but the file holds 4" in caplog.text) == (claimed == 8)
        tables.append(model.temporal_pos_embedding)
    expected = torch.nn.functional.interpolate(saved.temporal_pos_embedding.transpose(1, 2), 8, mode="linear")
    for table in tables:
        torch.testing.assert_close(table, expected.transpose(1, 2))


def test_bidirectional_weights_do_not_pass_for_causal_ones(tmp_path: Path) -> None:
    torch.save(masked_model().state_dict(), tmp_path / "bidirectional.pth")
    with pytest.raises(ValueError, match=r"(?s)unexpected: layers.0.mixer.A_b_log.*must be fine-tuned"):
        build_videomamba(config(pretrained=str(tmp_path / "bidirectional.pth")))


HUB = ("README.md", "vim_t_midclstok_76p1acc.pth", "vim_t_midclstok_ft_78p3acc.pth")


def hub(monkeypatch: pytest.MonkeyPatch, folder: Path, files: tuple[str, ...]) -> None:
    """A hub whose repositories hold these files; what is downloaded lies in a folder."""

    def download(repository: str, file: str) -> str:
        if not (folder / file).exists():
            raise FileNotFoundError(f"404 {repository}/{file}\nlong")
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repository: list(files))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


def test_hub_ids_resolve_to_their_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub(monkeypatch, tmp_path, HUB)
    saved, fine_tuned = vim_model(seed=2), vim_model(seed=3)
    torch.save({"model": saved.state_dict()}, tmp_path / HUB[1])
    torch.save(fine_tuned.state_dict(), tmp_path / HUB[2])
    model = vim_model(seed=0)
    load_backbone(model, "hustvl/Vim-tiny-midclstok", family="vim")
    assert torch.equal(model.cls_token, saved.cls_token)
    load_backbone(model, f"hustvl/Vim-tiny-midclstok:{HUB[2]}", family="vim")
    assert torch.equal(model.cls_token, fine_tuned.cls_token)


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        (("a.pth", "b.pth"), "some/model", r"has no one file of weights \(a.pth, b.pth\); say which"),
        (("README.md",), "some/model", r"has no one file of weights \(none\)"),
        (("a.pth",), "some/model:c.pth", r"no file, and not to be had .*\(404 some/model/c.pth\)"),
    ],
)
def test_a_hub_id_that_does_not_resolve_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: tuple[str, ...], name: str, message: str
) -> None:
    hub(monkeypatch, tmp_path, files)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_backbone(vim_model(), name, family="vim")
    assert "\n" not in str(caught.value)


def test_masked_pretrained_files_start_a_classifier(tmp_path: Path) -> None:
    file = random_file(official_shapes("videomamba_masked"))
    torch.save({"model": file}, tmp_path / "masked.pth")
    model = empty_model("videomamba_video")
    own = {name: t.clone() for name, t in model.state_dict().items()}
    load_backbone(model, tmp_path / "masked.pth", "videomamba_masked")
    for name, tensor in model.state_dict().items():
        kept = name.startswith(("head.", "norm_f."))  # neither was trained
        assert torch.equal(tensor, own[name] if kept else file[name]), name
    with pytest.raises(CheckpointError, match="cannot be loaded into a model of family 'videomamba_image'"):
        load_backbone(empty_model("videomamba_image"), tmp_path / "masked.pth", "videomamba_masked")


@pytest.mark.parametrize("pool_norm", [True, False])
def test_retrieval_files_give_their_vision_encoder(tmp_path: Path, pool_norm: bool) -> None:
    encoder = random_file(official_shapes("videomamba_masked"))
    encoder |= {"pool_norm.weight": torch.randn(24), "pool_norm.bias": torch.randn(24)}
    others = {
        "text_encoder.a": torch.randn(2),
        "clip_teacher.b": torch.randn(2),
        "vision_proj.weight": torch.randn(3, 24),
    }
    file = {f"vision_encoder.{name}": t for name, t in encoder.items()} | others
    torch.save({"model": file}, tmp_path / "retrieval.pth")
    model = VideoMamba(img_size=32, embed_dim=24, depth=2, num_classes=0, num_frames=4, pool_norm=pool_norm)
    load_backbone(model, tmp_path / "retrieval.pth", "videomamba_retrieval")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, encoder[name.replace("norm_f.", "norm.")]), name
    x = torch.randn(1, 3, 4, 32, 32)
    if pool_norm:
        tokens = model.forward_features(x)
        torch.testing.assert_close(model.pooled_features(x), model.pool_norm(tokens[:, 0] + tokens[:, 1:].mean(1)))
    else:
        with pytest.raises(ValueError, match="built without pool_norm"):
            model.pooled_features(x)
    torch.save(encoder, tmp_path / "no_prefix.pth")
    with pytest.raises(CheckpointError, match=r"holds no vision_encoder\.\*"):
        load_backbone(model, tmp_path / "no_prefix.pth", "videomamba_retrieval")


@pytest.mark.parametrize("family", ["videomamba_image", "vim"])
def test_heads_that_the_model_was_built_without_are_left_out(family: str, tmp_path: Path, caplog) -> None:
    file = random_file(official_shapes(family, **({"teacher": 10} if family == "videomamba_image" else {})))
    torch.save(file, tmp_path / "file.pth")
    kind = Vim if family == "vim" else VideoMamba
    model = kind(img_size=32, patch_size=16, embed_dim=24, depth=2, num_classes=0)
    with caplog.at_level(logging.INFO):
        load_backbone(model, tmp_path / "file.pth", family)
    assert all(torch.equal(t, file[name]) for name, t in model.state_dict().items())
    assert "head.weight" in caplog.text
    classifier = empty_model(family)
    load_backbone(classifier, tmp_path / "file.pth", family)  # without teacher_dim
    assert torch.equal(classifier.head.weight, file["head.weight"])
