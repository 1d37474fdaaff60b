"""A student survives its folder, and what is not one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_student
from torch import Tensor

from videomamba_depth.models.checkpoint import (
    EMBEDDED_STUDENT,
    STUDENT_JSON,
    STUDENT_WEIGHTS,
    describe_encoder,
    load_student,
    read_weights,
    save_student,
    student_weights,
)
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.teacher_files import EMBEDDED_TEACHER
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.utils.checkpoint import MANIFEST, save_tensors, verify_files, write_manifest
from videomamba_depth.utils.errors import UserError


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_encoder: DepthAnythingEncoder) -> Path:
    student = tiny_student(tiny_encoder)
    tiny_encoder.save_pretrained(tmp_path / "encoder")
    folder = tmp_path / "checkpoints" / "step_00000007"
    folder.mkdir(parents=True)
    spec = TemporalSpec(*(ScaleSpec(num_blocks=n, backend="reference") for n in (1, 1, 2, 2)))
    encoder = describe_encoder(tiny_encoder, "../../encoder")
    save_student(folder, student_weights(student), spec, encoder, short_side=None, extra={"step": 7})
    return folder


def test_loaded_student_is_the_saved_one(checkpoint: Path, tiny_encoder: DepthAnythingEncoder) -> None:
    clip = torch.rand(1, 3, 3, 30, 44)
    with torch.no_grad():
        expected = tiny_student(tiny_encoder)(clip).depth
        got = load_student(checkpoint)(clip).depth
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
    with pytest.raises(UserError, match="damaged: it is not what was written"):
        load_student(checkpoint)
    (checkpoint / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"manifest\.json' is missing"):
        load_student(checkpoint)
    description = checkpoint / STUDENT_JSON
    description.write_text(description.read_text().replace('"manifest"', '"note"'))
    with pytest.raises(UserError, match="cannot read"):
        load_student(checkpoint)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cast(path: Path) -> None:
    save_file({name: t.half() for name, t in load_file(path).items()}, path)


def point(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (STUDENT_WEIGHTS, flip, "student.safetensors' is damaged"),
        (STUDENT_WEIGHTS, cast, "student.safetensors' is damaged"),
        (STUDENT_WEIGHTS, point, "git lfs pull"),
        (STUDENT_JSON, flip, "student.json' is damaged"),
        (MANIFEST, flip, "manifest.json' is damaged"),
    ],
)
def test_no_byte_of_a_checkpoint_changes_unnoticed(
    checkpoint: Path, file: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(checkpoint / file)
    with pytest.raises(UserError, match=message):
        load_student(checkpoint)


def test_a_checkpoint_of_0_1_0_has_no_digests_and_loads(checkpoint: Path) -> None:
    of_0_1_0(checkpoint, load_file(checkpoint / STUDENT_WEIGHTS))
    load_student(checkpoint)


def of_0_1_0(checkpoint: Path, weights: dict[str, Tensor]) -> None:
    """Turn a checkpoint into one of 0.1.0: weights without a digest, beside no manifest."""
    save_file(weights, checkpoint / STUDENT_WEIGHTS)
    (checkpoint / MANIFEST).unlink()
    description = json.loads((checkpoint / STUDENT_JSON).read_text())
    del description["manifest"]
    (checkpoint / STUDENT_JSON).write_text(json.dumps(description))


def test_a_digest_that_was_taken_off_is_missed(checkpoint: Path) -> None:
    cast(checkpoint / STUDENT_WEIGHTS)
    write_manifest(checkpoint)
    with pytest.raises(UserError, match=r"student\.safetensors' has no digest"):
        load_student(checkpoint)


def test_weights_of_another_step_are_refused(checkpoint: Path) -> None:
    save_tensors(checkpoint / STUDENT_WEIGHTS, load_file(checkpoint / STUDENT_WEIGHTS), {"step": "8"})
    write_manifest(checkpoint)
    with pytest.raises(UserError, match=r"student\.safetensors' is of step 8, not 7"):
        load_student(checkpoint)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(
    checkpoint: Path, number: float, tiny_encoder: DepthAnythingEncoder
) -> None:
    weights = student_weights(tiny_student(tiny_encoder))
    weights["temporal.s0.pre_mix.bias"] = weights["temporal.s0.pre_mix.bias"] * number
    with pytest.raises(UserError, match=r"temporal\.s0\.pre_mix\.bias holds numbers that are not finite"):
        save_student(checkpoint, weights, TemporalSpec(), {}, short_side=None)
    load_student(checkpoint)
    of_0_1_0(checkpoint, weights)
    with pytest.raises(UserError, match=r"temporal\.s0\.pre_mix\.bias holds numbers that are not finite"):
        load_student(checkpoint)


@pytest.mark.parametrize(
    "rest", ["[]", "{", "{FORMAT}", '{FORMAT, "encoder": 3}', '{FORMAT, "encoder": {"folder": "x"}}']
)
def test_a_description_that_makes_no_sense(checkpoint: Path, rest: str) -> None:
    (checkpoint / MANIFEST).unlink()
    (checkpoint / STUDENT_JSON).write_text(rest.replace("FORMAT", '"format": "videomamba-depth student 1"'))
    with pytest.raises(UserError, match=r"student\.json"):
        load_student(checkpoint)


@pytest.mark.parametrize("folder", [EMBEDDED_STUDENT, EMBEDDED_TEACHER])
def test_what_is_shipped_has_digests(folder: Path) -> None:
    """After a change that is meant: `write_manifest(folder)`."""
    assert (folder / MANIFEST).is_file()
    verify_files(folder)


def test_weights_of_another_model_are_named(checkpoint: Path) -> None:
    weights = read_weights(checkpoint / STUDENT_WEIGHTS)
    name = "temporal.s0.pre_mix.bias"
    weights["stranger"] = weights.pop(name)
    save_tensors(checkpoint / STUDENT_WEIGHTS, weights)
    write_manifest(checkpoint)
    with pytest.raises(UserError, match=rf"missing {name}; unknown stranger"):
        load_student(checkpoint)


def test_an_encoder_with_other_weights_is_refused(checkpoint: Path, tiny_encoder: DepthAnythingEncoder) -> None:
    path = checkpoint.parent.parent / "encoder" / "model.safetensors"
    weights = read_weights(path)
    weights["head.conv3.bias"] += 1
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="other weights"):
        load_student(checkpoint)
