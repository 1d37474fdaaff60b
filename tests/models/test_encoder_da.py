"""The teacher equals transformers' own forward, at any size, and refuses what is not one in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny_teacher, tiny_teacher
from transformers import DepthAnythingForDepthEstimation
from transformers.image_utils import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from transformers.image_utils import IMAGENET_DEFAULT_STD as IMAGENET_STD

from videomamba_depth.models.encoder_da import DepthAnythingEncoder, _use_current_names
from videomamba_depth.models.teacher_files import FORMER_NAMES, former_name
from videomamba_depth.utils.checkpoint import hash_tensors
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_equals_transformers(tmp_path: Path, kind: str) -> None:
    folder = save_tiny_teacher(tmp_path, kind)
    encoder = DepthAnythingEncoder.from_pretrained(folder)
    rgb = torch.rand(2, 3, 70, 98)
    with torch.no_grad():
        pixels = (rgb - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
        expected = DepthAnythingForDepthEstimation.from_pretrained(folder)(pixels)
    depth = encoder.predict_depth(rgb)
    assert depth.std() > 0.01
    torch.testing.assert_close(depth[:, 0], expected.predicted_depth, rtol=0, atol=1e-5)
    assert encoder.depth_kind == (DepthKind.METRIC if kind == "metric" else DepthKind.RELATIVE)
    assert encoder.max_depth_m == (10.0 if kind == "metric" else None)


def test_features_and_depth_come_from_one_pass(tiny_encoder: DepthAnythingEncoder) -> None:
    rgb = torch.rand(1, 3, 56, 84)
    features = tiny_encoder.encode_frame(rgb)
    assert {name: tuple(x.shape[1:]) for name, x in features.items()} == {
        "s0": (8, 16, 24),
        "s1": (12, 8, 12),
        "s2": (16, 4, 6),
        "s3": (16, 2, 3),
    }
    assert torch.equal(tiny_encoder.decode(features, (56, 84)), tiny_encoder.predict_depth(rgb))


@pytest.mark.parametrize(("height", "width"), [(75, 101), (14, 14), (97, 33), (56, 70)])
@pytest.mark.parametrize("short_side", [None, 42])
def test_any_size_and_predicted_feature_sizes(
    tiny_teacher_folder: str, height: int, width: int, short_side: int | None
) -> None:
    encoder = DepthAnythingEncoder.from_pretrained(tiny_teacher_folder, short_side=short_side)
    rgb = torch.rand(1, 3, height, width)
    features = encoder.encode_frame(rgb)
    assert encoder.feature_sizes(height, width) == {name: tuple(x.shape[-2:]) for name, x in features.items()}
    assert encoder.predict_depth(rgb).shape == (1, 1, height, width)


def test_input_resolution_keeps_aspect_in_multiples_of_the_patch() -> None:
    encoder = DepthAnythingEncoder(tiny_teacher(), "tiny", short_side=518)
    assert encoder.input_resolution(720, 1280) == (518, 924)  # 920.9 px rounds to 66 patches
    assert encoder.input_resolution(1280, 720) == (924, 518)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny_teacher_folder: str, tiny_encoder: DepthAnythingEncoder, dtype: torch.dtype) -> None:
    rgb = torch.rand(1, 3, 56, 56)
    half = DepthAnythingEncoder.from_pretrained(tiny_teacher_folder, dtype=dtype)
    assert half.encode_frame(rgb)["s0"].dtype == dtype
    full = tiny_encoder.predict_depth(rgb)
    assert (half.predict_depth(rgb).float() - full).abs().max() < 0.05 * (full.max() - full.min()) + 0.05


def test_frozen_and_in_eval_mode(tiny_encoder: DepthAnythingEncoder) -> None:
    tiny_encoder.train()
    assert not any(module.training for module in tiny_encoder.modules())
    assert not any(p.requires_grad for p in tiny_encoder.parameters())
    assert not tiny_encoder.predict_depth(torch.rand(1, 3, 28, 28)).requires_grad


def test_saved_copy_is_the_same_model(tmp_path: Path, tiny_encoder: DepthAnythingEncoder) -> None:
    tiny_encoder.save_pretrained(tmp_path)
    again = DepthAnythingEncoder.from_pretrained(str(tmp_path))
    assert again.weights_sha256() == tiny_encoder.weights_sha256()
    rgb = torch.rand(1, 3, 28, 42)
    assert torch.equal(again.predict_depth(rgb), tiny_encoder.predict_depth(rgb))


def test_hash_sees_one_changed_weight(tiny_teacher_folder: str, tiny_encoder: DepthAnythingEncoder) -> None:
    other = DepthAnythingEncoder.from_pretrained(tiny_teacher_folder)
    with torch.no_grad():
        other.head.head.conv3.bias.add_(1e-3)
    assert other.weights_sha256() != tiny_encoder.weights_sha256()


def _message(name: str) -> str:
    with pytest.raises(UserError) as caught:
        DepthAnythingEncoder.from_pretrained(name)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_folder() -> None:
    assert "does not exist" in _message("./no/such/folder")


def test_folder_without_a_model(tmp_path: Path) -> None:
    assert "config.json" in _message(str(tmp_path))


def test_another_kind_of_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "'bert' model, not Depth Anything" in _message(str(tmp_path))


def test_damaged_weights(tmp_path: Path) -> None:
    folder = Path(save_tiny_teacher(tmp_path))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot load" in _message(str(folder))


def test_weights_that_do_not_fit_the_config(tmp_path: Path) -> None:
    folder = Path(save_tiny_teacher(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    config["neck_hidden_sizes"][0] = 10
    (folder / "config.json").write_text(json.dumps(config))
    assert "cannot load" in _message(str(folder)) or "do not fit" in _message(str(folder))


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = _message("depth-anything/Depth-Anything-V2-Small-hf-of-no-cache")
    assert "no network" in message
    assert "teacher=embedded" in message


def test_wrong_shape_is_refused(tiny_encoder: DepthAnythingEncoder) -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        tiny_encoder.encode_frame(torch.rand(3, 28, 28))


@pytest.mark.parametrize("renamed", [FORMER_NAMES, {former: now for now, former in FORMER_NAMES.items()}])
def test_a_copy_is_the_same_under_the_names_of_any_transformers(
    renamed: dict[str, str], tiny_encoder: DepthAnythingEncoder, tmp_path: Path
) -> None:
    tiny_encoder.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for old, new in renamed.items():
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert DepthAnythingEncoder.from_pretrained(str(tmp_path)).weights_sha256() == tiny_encoder.weights_sha256()


def test_digests_and_files_have_the_current_names(tiny_encoder: DepthAnythingEncoder) -> None:
    current = set(tiny_encoder.state_dict())
    assert not any(former in name for former in FORMER_NAMES.values() for name in current)
    state = {f"encoder.{name}": None for name in current}
    for now, former in FORMER_NAMES.items():
        state = {name.replace(now, former): None for name in state}
    assert any("attention.attention.query" in name for name in state)
    _use_current_names(tiny_encoder, state, "encoder.", None)
    assert set(state) == {f"encoder.{name}" for name in current}


def test_a_digest_from_before_transformers_5_18_is_that_of_the_same_weights(tiny_encoder: DepthAnythingEncoder) -> None:
    weights = tiny_encoder.state_dict()
    renamed = {former_name(name): tensor for name, tensor in weights.items()}
    assert renamed.keys() != weights.keys()
    assert tiny_encoder.has_weights(hash_tensors(renamed.items()))
    assert tiny_encoder.has_weights(tiny_encoder.weights_sha256())
    name, changed = next(iter(renamed.items()))
    assert not tiny_encoder.has_weights(hash_tensors((renamed | {name: changed + 1}).items()))
