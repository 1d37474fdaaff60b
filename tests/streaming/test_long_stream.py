"""Streams without an end: the frame counter at 10^7, and 10,000 frames with flat memory and a steady scale."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.key_frames.key_frames import KeyFrames, KeyFrameSettings
from videomamba_depth.streaming.stream import DepthStream

FAR = 10_000_000
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "long_stream.py"


def stream_from(student: VideoMambaDepth, frames: np.ndarray, index: int) -> tuple[np.ndarray, DepthStream]:
    """Stream four frames, then say that the next one is number `index`, and stream four more."""
    stream = DepthStream(student, device="cpu", hooks=[KeyFrames(KeyFrameSettings(every=2))])
    list(stream(frames[:4]))
    assert stream.states is not None
    stream._states = replace(stream.states, frame_index=torch.full_like(stream.states.frame_index, index))
    return np.stack(list(stream(frames[4:]))), stream


def test_frame_ten_million_is_like_any_late_frame(student: VideoMambaDepth, frames: np.ndarray) -> None:
    far, stream = stream_from(student, frames, FAR - 2)
    assert stream.states is not None
    assert stream.states.frame_index.tolist() == [FAR + 2]  # counted exactly
    assert np.isfinite(far).all()
    assert all(tensor.isfinite().all() for tensor in stream.states.tensors().values())
    late, _ = stream_from(student, frames, 10 * FAR)
    # the age t / (t + tau) differs by at most 8e-7 here
    assert np.abs(far - late).max() <= 1e-6 * np.ptp(late)


def test_counting_does_not_saturate(student: VideoMambaDepth, frames: np.ndarray) -> None:
    _, stream = stream_from(student, frames, 2**53 + 1)  # where float64 cannot count any more
    assert stream.states is not None
    assert stream.states.frame_index.tolist() == [2**53 + 5]


@pytest.mark.slow
@pytest.mark.parametrize("key_frames", [False, True])
def test_ten_thousand_frames(student: VideoMambaDepth, key_frames: bool) -> None:
    stream_long = runpy.run_path(str(SCRIPT))["stream_long"]
    found = stream_long(student, 10_000, 42, 56, clip_frames=24, key_frames=key_frames)
    assert found.invalid == 0
    assert found.growth_mb < 20
    assert found.drift < 0.01
