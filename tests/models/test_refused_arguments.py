"""What is no frame, no state or no whole model is refused in one line, and changes nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_student, tiny_teacher
from torch import Tensor

from videomamba_depth.models.checkpoint import bare_teacher
from videomamba_depth.models.depth_state import DepthState
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.utils.checkpoint import load_tensors, save_tensors
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.images import check_rgb

FRAME = torch.rand(1, 3, 42, 56, generator=torch.Generator().manual_seed(0))

NO_FRAMES: list[Any] = [
    None,
    "frame.png",
    FRAME.numpy(),
    FRAME.tolist(),
    FRAME[0],
    FRAME[0, :, 0],
    FRAME[None, None, None],
    FRAME[:0],
    FRAME[:, :, :0],
    FRAME[..., :0],
    FRAME[:, :1],
    FRAME.to_sparse(),
]


@pytest.fixture(scope="module")
def student(tiny_encoder: DepthAnythingEncoder) -> VideoMambaDepth:
    """A student that carries maps as well as layers."""
    scale = ScaleSpec(num_blocks=1, d_state=2, heads=2, backend="reference")
    spec = TemporalSpec(scale, scale, scale, scale)
    return VideoMambaDepth(tiny_encoder, tiny_encoder.head, spec, motion=MotionSpec(), output=OutputSpec()).eval()


@pytest.fixture(scope="module")
def states(student: VideoMambaDepth) -> DepthState:
    """After one frame."""
    with torch.no_grad():
        return student.step(FRAME)[1]


@pytest.mark.parametrize("given", NO_FRAMES, ids=range(len(NO_FRAMES)))
def test_what_is_no_frame(student: VideoMambaDepth, given: Any) -> None:
    clip = given[:, None] if isinstance(given, Tensor) and given.layout == torch.strided and given.ndim > 1 else given
    asked: list[tuple[str, Callable[[], Any]]] = [
        (r"frame must be a tensor \[B, 3, H, W\]", lambda: student.step(given)),
        (r"clip must be a tensor \[B, N, 3, H, W\]", lambda: student(clip)),
        (r"clip must be a tensor \[B, N, 3, H, W\]", lambda: student.encode(clip)),
        (r"clip must be a tensor \[B, N, 3, H, W\]", lambda: bare_teacher(student.encoder).encode(clip)),
        (r"rgb must be a tensor \[B, 3, H, W\]", lambda: student.encoder.encode_frame(given)),
    ]
    for message, ask in asked:
        with pytest.raises(ValueError, match=f"{message}, no axis of length 0; got ") as caught:
            ask()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


def test_pixels_that_are_no_numbers_are_counted() -> None:
    rgb = FRAME.clone()
    rgb[0, 1, 3:5] = float("nan")
    with pytest.raises(ValueError, match=f"rgb must be finite; got {2 * 56} values"):
        check_rgb(rgb)


def test_what_is_no_state(student: VideoMambaDepth, states: DepthState) -> None:
    for given in ({}, (FRAME, states), "states", states.tensors(), FRAME):
        for ask in (lambda: student.step(FRAME, given), lambda: student(FRAME[None], given)):  # noqa: B023
            with pytest.raises(ValueError, match=r"states must be a DepthState, the second of what .*; got ") as caught:
                ask()
            assert "\n" not in str(caught.value)


def _with(states: DepthState, name: str, number: float) -> DepthState:
    tensors = {key: tensor.clone() for key, tensor in states.tensors().items()}
    tensors[name].flatten()[-1] = number
    return DepthState.from_tensors(tensors, states.metadata())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_state_that_is_not_finite(student: VideoMambaDepth, states: DepthState, number: float) -> None:
    for name in states.tensors().keys() - {"frame_index"}:
        with pytest.raises(ValueError, match=f"state tensor {name} holds NaN or infinity; start again"):
            student.step(FRAME, _with(states, name, number))
    with pytest.raises(ValueError, match="NaN or infinity"):  # what cancels out, or is large, is told apart
        student.step(FRAME, _with(_with(states, "map.frame", number), "map.depth", -number))


def test_large_numbers_are_finite(student: VideoMambaDepth, states: DepthState) -> None:
    large = replace(states, maps={**states.maps, "depth": torch.full_like(states.maps["depth"], 3e38)})
    with torch.no_grad():
        student.step(FRAME, large)


def test_a_frame_before_the_first(student: VideoMambaDepth, states: DepthState) -> None:
    with pytest.raises(ValueError, match="frame_index must not be negative"):
        student.step(FRAME, _with(states, "frame_index", -1))


def test_a_part_that_was_converted_by_itself(student: VideoMambaDepth) -> None:
    for part in ("encoder", "encoder.backbone", "head", "temporal"):
        model = copy.deepcopy(student)
        model.get_submodule(part).half()
        with pytest.raises(ValueError, match="weights are float16 and float32: a part of it was converted") as caught:
            model.step(FRAME)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("memory", ["2", None, True, 10**400, float("nan"), float("inf"), 0, -1.0, [2.0]])
def test_what_is_no_memory(student: VideoMambaDepth, memory: Any) -> None:
    with pytest.raises(ValueError, match="memory must be a positive number; got "):
        student.init_states(1, (42, 56), memory=memory)
    if memory is not True:
        with pytest.raises(ValueError, match="memory must be a positive number; got "):
            bare_teacher(student.encoder).init_states(1, (42, 56), memory=memory)


def test_a_memory_of_numpy_is_carried_as_a_number(student: VideoMambaDepth) -> None:
    metadata = student.init_states(1, (42, 56), memory=np.float32(2)).metadata()  # type: ignore[arg-type]
    assert json.loads(metadata["memory"]) == 2.0


def test_another_short_side_is_named() -> None:
    small, large = (DepthAnythingEncoder(tiny_teacher(), "tiny", short_side=size) for size in (42, 70))
    with torch.no_grad():
        _, states = tiny_student(small).step(FRAME)
        with pytest.raises(ValueError, match=r"another short_side: .*s2 3x4, s3 2x2, here .*s2 5x7, s3 3x4;"):
            tiny_student(large).step(FRAME, states)


def _nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "changed",
    [
        {"image_size": "[0, 0]"},
        {"image_size": '["a", "b"]'},
        {"image_size": "[42.0, 56.0]"},
        {"image_size": "null"},
        {"image_size": "7"},
        {"feature_sizes": "[]"},
        {"feature_sizes": '{"s0": [1]}'},
        {"feature_sizes": _nested(100_000)},
        {"memory": '"2"'},
        {"memory": "true"},
        {"memory": None},
        {"signature": None},
    ],
)
def test_a_sealed_file_that_describes_no_state(states: DepthState, tmp_path: Path, changed: dict[str, Any]) -> None:
    about = {name: text for name, text in (states.metadata() | changed).items() if text is not None}
    save_tensors(tmp_path / "state", states.tensors(), about)
    with pytest.raises(UserError, match=r"the stream state .* is damaged .*; save it again") as caught:
        DepthState.load(tmp_path / "state")
    assert "\n" not in str(caught.value)


def test_a_sealed_file_with_other_tensors(states: DepthState, tmp_path: Path, student: VideoMambaDepth) -> None:
    path = tmp_path / "state"
    states.save(path)
    tensors, about = load_tensors(path)
    for name in ("s1.7.conv", "s9.0.ssm", "other"):
        save_tensors(path, {**tensors, name: torch.zeros(3)}, about)
        with pytest.raises(UserError, match=f"{name} is no tensor of a state"):
            DepthState.load(path)
    save_tensors(path, {**tensors, "frame_index": torch.tensor([-5])}, about)
    with pytest.raises(UserError, match="frame_index must not be negative"):
        DepthState.load(path)
    for name in tensors:
        save_tensors(path, {key: t for key, t in tensors.items() if key != name}, about)
        with pytest.raises((UserError, ValueError), match=r"is damaged|no tensor|another short_side"):
            student.step(FRAME, DepthState.load(path))
