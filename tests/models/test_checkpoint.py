"""A student survives its folder, and what is not one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_student

from videomamba_depth.models.checkpoint import (
    STUDENT_WEIGHTS,
    describe_encoder,
    load_student,
    read_weights,
    save_student,
)
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.utils.errors import UserError


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_encoder: DepthAnythingEncoder) -> Path:
    student = tiny_student(tiny_encoder)
    tiny_encoder.save_pretrained(tmp_path / "encoder")
    folder = tmp_path / "checkpoints" / "step_00000007"
    folder.mkdir(parents=True)
    spec = TemporalSpec(*(ScaleSpec(num_blocks=n, backend="reference") for n in (1, 1, 2, 2)))
    encoder = describe_encoder(tiny_encoder, "../../encoder")
    save_student(folder, student.student_state_dict(), spec, encoder, input_size=None, extra={"step": 7})
    return folder


def test_loaded_student_is_the_saved_one(checkpoint: Path, tiny_encoder: DepthAnythingEncoder) -> None:
    clip = torch.rand(1, 3, 3, 30, 44)
    with torch.no_grad():
        expected, _ = tiny_student(tiny_encoder)(clip)
        got, _ = load_student(checkpoint)(clip)
    assert torch.equal(got, expected)


def test_the_folder_can_be_reached_through_a_link(checkpoint: Path) -> None:
    link = checkpoint.parent.parent / "last"
    link.symlink_to("checkpoints/step_00000007")
    assert load_student(link).signature == load_student(checkpoint).signature


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a student checkpoint"):
        load_student(tmp_path)


def test_damaged_weights(checkpoint: Path) -> None:
    path = checkpoint / STUDENT_WEIGHTS
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot read"):
        load_student(checkpoint)


def test_weights_of_another_model_are_named(checkpoint: Path) -> None:
    weights = read_weights(checkpoint / STUDENT_WEIGHTS)
    name = "temporal.s0.pre_mix.bias"
    weights["stranger"] = weights.pop(name)
    save_file(weights, checkpoint / STUDENT_WEIGHTS)
    with pytest.raises(UserError, match=rf"missing {name}; unknown stranger"):
        load_student(checkpoint)


def test_an_encoder_with_other_weights_is_refused(checkpoint: Path, tiny_encoder: DepthAnythingEncoder) -> None:
    path = checkpoint.parent.parent / "encoder" / "model.safetensors"
    weights = read_weights(path)
    weights["head.conv3.bias"] += 1
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="other weights"):
        load_student(checkpoint)
