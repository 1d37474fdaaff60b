"""A stream on another device gives the depth of the CPU, and goes on where the other one was saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from devices import DEVICES
from media import numbered_frame
from tiny import tiny_student

from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.stream import DepthStream

pytestmark = pytest.mark.usefixtures("no_tf32")

OTHER_DEVICE = 1e-4  # of the depth's range; sums in another order measure 3e-6 between two splits on the CPU


@pytest.fixture
def moving_frames() -> np.ndarray:
    """uint8 [6, 70, 98, 3]: a picture that slides by 2 px per frame."""
    return np.stack([numbered_frame(number, 98, 70) for number in range(6)])


def build_student(teacher_folder: str, moving: bool) -> VideoMambaDepth:
    """Return a student whose temporal weights matter, with the backend that is automatic on its device."""
    encoder = DepthAnythingEncoder.from_pretrained(teacher_folder)
    student = tiny_student(encoder)
    spec = TemporalSpec(*(ScaleSpec(num_blocks=n) for n in (1, 1, 2, 2)))
    parts = {"motion": MotionSpec("inverse_search"), "output": OutputSpec()} if moving else {}
    automatic = VideoMambaDepth(encoder, encoder.head, spec, **parts)  # type: ignore[arg-type]
    automatic.temporal.load_state_dict(student.temporal.state_dict())
    return automatic.eval()


def difference(depth: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return |depth − expected| as a part of the expected depth's range."""
    return np.abs(depth - expected) / np.ptp(expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("moving", [False, True], ids=["plain", "flow and carried output"])
def test_a_stream_does_not_depend_on_its_device(
    tiny_teacher_folder: str, moving_frames: np.ndarray, device: str, moving: bool
) -> None:
    streams = [DepthStream(build_student(tiny_teacher_folder, moving), device=name) for name in ("cpu", device)]
    expected, depth = (np.stack(list(stream(moving_frames))) for stream in streams)
    alone = DepthStream(build_student(tiny_teacher_folder, moving), device=device).step(moving_frames[-1])
    assert difference(alone, expected[-1]).max() > 1e-2  # the past matters
    if moving:  # a pixel whose flow is trusted by a hair may fall to the other side
        assert np.quantile(difference(depth, expected), 0.99) < OTHER_DEVICE
    else:
        assert difference(depth, expected).max() < OTHER_DEVICE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("saved_on_cpu", [True, False], ids=["from the CPU", "to the CPU"])
def test_a_saved_stream_continues_on_another_device(
    tmp_path: Path,
    checkpoint: Path,
    frames: np.ndarray,
    device: str,
    saved_on_cpu: bool,
) -> None:
    first, second = ("cpu", device) if saved_on_cpu else (device, "cpu")
    expected = list(DepthStream(checkpoint, device="cpu")(frames))
    before = DepthStream(checkpoint, device=first)
    list(before(frames[:4]))
    before.save(tmp_path / "stream.safetensors")
    after = DepthStream(checkpoint, device=second)
    after.load(tmp_path / "stream.safetensors")
    assert after.states is not None
    assert after.states.frame_index.tolist() == [4]
    for depth, wanted in zip(after(frames[4:]), expected[4:], strict=True):
        assert difference(depth, wanted).max() < OTHER_DEVICE
