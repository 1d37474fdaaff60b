"""A compiled frame is one graph, gives what an uncompiled one gives, and is never compiled again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.key_frames.key_frames import KeyFrames, KeyFrameSettings
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.errors import UserError

Build = Callable[..., DepthStream]


@pytest.fixture(scope="module")
def nothing_is_compiled_yet() -> None:
    torch.compiler.reset()


@pytest.fixture
def without_code_generation(monkeypatch: pytest.MonkeyPatch, nothing_is_compiled_yet: None) -> None:
    """Everything of `torch.compile` but the minute that C++ takes: the graph runs operator by operator."""
    real: Any = torch.compile

    def compile_quickly(function: Any, mode: str, **options: Any) -> Any:
        return real(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", compile_quickly)


@pytest.fixture(scope="module")
def build(tiny_encoder: DepthAnythingEncoder) -> Build:
    """Streams of one student with all that the default recipe has, and the affine."""
    spec = TemporalSpec(*(ScaleSpec(n, initial_gain=0.5, advect=n == 1) for n in (0, 1, 2, 1)))

    def make(flow: str = "dis", compiled: bool = False, **settings: Any) -> DepthStream:
        torch.manual_seed(0)
        motion = MotionSpec(flow, short_side=56)
        student = VideoMambaDepth(
            copy.deepcopy(tiny_encoder), tiny_encoder.head, spec, motion=motion, output=OutputSpec(affine=0.8)
        )
        settings.setdefault("resets", ResetPolicy(max_gap_s=1.0))
        return DepthStream(student, device="cpu", compile=compiled, **settings)

    return make


OF_TWO = {"batch_size": 2, "short_side": 42}  # frames are larger than the model sees them


@pytest.fixture(scope="module")
def compiled_once(build: Build) -> Callable[[str, str], DepthStream]:
    """A stream for several tests: its graph takes half a minute. Each test begins with a reset."""
    return cache(lambda flow, precision: build(flow, compiled=True, precision=precision, **OF_TWO))


def video(num_frames: int = 8, size: tuple[int, int] = (90, 120), batch: int = 2) -> np.ndarray:
    """Return uint8 frames [N, B, H, W, 3] with a cut of the second stream in the middle."""
    rng = np.random.default_rng(0)
    scenes = [rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8) // scale for scale in (8, 1)]
    stripes = (np.sin(np.arange(size[1]) / 5) > 0)[None, :, None].repeat(size[0], 0) * np.uint8(255)
    clip = np.stack([np.roll(scenes[0], i, axis=2) for i in range(num_frames)])
    clip[num_frames // 2 :, -1] = scenes[1][-1] // 4 + stripes // 4 * 3
    return clip


@pytest.mark.usefixtures("without_code_generation")
@pytest.mark.parametrize(
    ("flow", "precision"),
    [
        ("dis", "float32"),
        pytest.param("inverse_search", "float32", marks=pytest.mark.slow),
        pytest.param("dis", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_depth_state_and_reasons_are_those_of_a_plain_stream(
    build: Build, compiled_once: Callable[[str, str], DepthStream], flow: str, precision: str
) -> None:
    streams = [build(flow, precision=precision, **OF_TWO), compiled_once(flow, precision)]
    streams[1].reset()
    reasons, worst = [], 0.0
    for i, frame in enumerate(video()):
        plain, compiled = (stream.step(frame, i / 30 + 9 * (i == 6)) for stream in streams)
        worst = max(worst, np.abs(plain - compiled).max() / np.ptp(plain))
        assert streams[0].reset_reasons == streams[1].reset_reasons
        reasons.append(streams[1].reset_reasons)
    assert worst < (1e-5 if precision == "float32" else 2e-2)
    assert reasons[0] == ("start", "start")
    assert reasons[4] == ("", "cut")
    assert reasons[6] == ("gap", "gap")
    assert streams[0].states is not None
    assert streams[1].states is not None
    for (name, plain), compiled in zip(
        streams[0].states.tensors().items(), streams[1].states.tensors().values(), strict=True
    ):
        assert plain.dtype == compiled.dtype, name
        if precision == "float32":
            torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("without_code_generation")
def test_nothing_is_compiled_again(compiled_once: Callable[[str, str], DepthStream], tmp_path: Path) -> None:
    """Frames are larger than the model sees them; tensors of any memory layout."""
    stream, frames = compiled_once("dis", "float32"), video()
    stream.reset()
    for frame in frames[:2]:
        stream.step(frame)
    with torch.compiler.set_stance("fail_on_recompile"):
        for frame in frames[2:]:
            stream.step(frame)
        stream.save(tmp_path / "stream.safetensors")
        expected = stream.step(frames[0])
        stream.load(tmp_path / "stream.safetensors")
        assert np.array_equal(stream.step(frames[0]), expected)
        stream.reset([True, True])
        stream.step(frames[1])
        assert stream.reset_reasons == ("start", "start")
        rgb = torch.from_numpy(frames[2]).permute(0, 3, 1, 2).float() / 255
        for tensor in (rgb, rgb.contiguous(), rgb.contiguous().requires_grad_(), torch.cat([rgb, rgb], 3)[..., :120]):
            stream.step_tensor(tensor)
        with torch.inference_mode():
            stream.step_tensor(rgb.contiguous().clone())


@pytest.mark.slow
@pytest.mark.usefixtures("without_code_generation")
def test_frames_of_another_size_have_a_graph_of_their_own(build: Build) -> None:
    plain, compiled = build(resets=None), build(resets=None, compiled=True)
    for size in ((90, 120), (60, 90)):
        for frame in video(3, size, 1)[:, 0]:
            expected, depth = plain.step(frame), compiled.step(frame)
            assert np.abs(depth - expected).max() < 1e-5 * np.ptp(expected)
        plain.reset()
        compiled.reset()


def test_key_frames_are_refused(build: Build) -> None:
    with pytest.raises(UserError, match="key frames would cut"):
        build(compiled=True, hooks=[KeyFrames(KeyFrameSettings())])


@pytest.mark.slow
def test_generated_code_equals_eager(build: Build) -> None:
    plain, compiled = build(), build(compiled=True)
    for frame in video(batch=1)[:, 0]:
        expected, depth = plain.step(frame), compiled.step(frame)
        assert np.abs(depth - expected).max() < 1e-4 * np.ptp(expected)
