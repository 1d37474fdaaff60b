"""A stream whose encoder sees every k-th frame: saved in the middle, at cuts and gaps, and what it does not go with."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from videomamba_depth.models.checkpoint import bare_teacher
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.key_frames.key_frames import KeyFrames, KeyFrameSettings
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.errors import UserError

CUT = 6


@pytest.fixture(scope="module")
def model(tiny_encoder: DepthAnythingEncoder) -> VideoMambaDepth:
    torch.manual_seed(0)
    spec = TemporalSpec(*(ScaleSpec(n, backend="reference", initial_gain=0.5, advect=n == 1) for n in (0, 1, 2, 1)))
    motion = MotionSpec(short_side=56)
    encoder = copy.deepcopy(tiny_encoder)
    return VideoMambaDepth(encoder, tiny_encoder.head, spec, motion=motion, output=OutputSpec()).eval()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """uint8 [10, 56, 70, 3]: a picture that moves by 2 px per frame, and stripes from frame 6 on."""
    y, x = np.mgrid[:56, :100]
    waves = [np.sin(x / a + 3 * np.sin(y / b)) for a, b in ((5, 9), (7, 6), (9, 8))]
    picture = (40 + 30 * np.stack(waves, -1)).astype(np.uint8)
    stripes = np.where((x // 9 + y // 14) % 2, 240, 120)[..., None].repeat(3, -1).astype(np.uint8)
    return np.stack([(picture if t < CUT else stripes)[:, 2 * t : 2 * t + 70] for t in range(10)])


def opened(model: VideoMambaDepth, every: int, **options: object) -> DepthStream:
    options.setdefault("resets", ResetPolicy(max_gap_s=1.0))
    return DepthStream(model, device="cpu", encode_every=every, **options)  # type: ignore[arg-type]


def encoded(model: VideoMambaDepth, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of frames that the encoder sees, per call."""
    counts: list[int] = []
    real = model.encoder.encode_pixels
    monkeypatch.setattr(model.encoder, "encode_pixels", lambda x: counts.append(len(x)) or real(x))
    return counts


def test_every_frame_is_what_a_stream_does_by_itself(model: VideoMambaDepth, frames: np.ndarray) -> None:
    plain, stream = DepthStream(model, device="cpu"), opened(model, 1, resets=None)
    for frame in frames[:3]:
        assert np.array_equal(stream.step(frame), plain.step(frame))
    assert stream.states is not None
    assert set(stream.states.maps) == {"frame", "depth"}


def test_cuts_and_gaps_are_encoded_and_start_again(
    model: VideoMambaDepth, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, counts = opened(model, 4), encoded(model, monkeypatch)
    depth, seen = [], []
    for t, frame in enumerate(frames):
        before = len(counts)
        depth.append(stream.step(frame, t / 30 + 9 * (t >= 9)))
        seen.append(len(counts) - before)
        assert stream.reset_reasons == ({0: "start", CUT: "cut", 9: "gap"}.get(t, ""),)
    assert seen == [1, 0, 0, 0, 1, 0, 1, 0, 1, 1]
    for t in (CUT, 9):
        np.testing.assert_array_equal(depth[t], opened(model, 4).step(frames[t]))  # as a new stream


def test_a_stream_is_saved_between_two_encoded_frames(
    model: VideoMambaDepth, frames: np.ndarray, tmp_path: Path
) -> None:
    stream, other = opened(model, 3), opened(model, 3)
    for frame in frames[:5]:
        stream.step(frame, 0.0)
    stream.save(tmp_path / "stream")
    other.load(tmp_path / "stream")
    for frame in frames[5:]:
        assert np.array_equal(other.step(frame, 0.1), stream.step(frame, 0.1))
    with pytest.raises(UserError, match="it was saved with encode_every 3; this stream has 1"):
        opened(model, 1).load(tmp_path / "stream")
    plain = opened(model, 1)
    plain.step(frames[0])
    plain.save(tmp_path / "plain")
    with pytest.raises(UserError, match="it was saved with encode_every 1; this stream has 3"):
        other.load(tmp_path / "plain")


def test_a_batch_costs_the_same_at_every_frame_after_resets_too(
    model: VideoMambaDepth, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = np.stack([frames, frames, frames, frames], 1)[:CUT]
    stream, alone, counts = opened(model, 4, batch_size=4), opened(model, 4), encoded(model, monkeypatch)
    seen = []
    for t in range(CUT):
        if t == 2:
            stream.reset([False, True, False, False])
        counts.clear()
        depth = stream.step(batch[t])
        seen.append(sum(counts))
        expected = alone.step(frames[t])  # the first stream's turn comes as if it were alone
        np.testing.assert_allclose(depth[0], expected, rtol=0, atol=1e-4 * np.ptp(expected))
    assert seen == [4, 1, 2, 1, 1, 1]


def test_what_it_does_not_go_with(model: VideoMambaDepth, tiny_encoder: DepthAnythingEncoder) -> None:
    with pytest.raises(UserError, match="encode_every=2 decides about frame by frame: leave one of the two out"):
        opened(model, 2, compile=True)
    with pytest.raises(UserError, match="key frames need features that encode_every=2"):
        opened(model, 2, hooks=[KeyFrames(KeyFrameSettings())])
    with pytest.raises(UserError, match="a student without flow has none"):
        opened(bare_teacher(copy.deepcopy(tiny_encoder)), 2)
    with pytest.raises(UserError, match="encode_every must be a whole number from 1; got 0"):
        opened(model, 0)


def test_what_ends_early_leaves_the_stream_as_it_was(
    model: VideoMambaDepth, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, untouched = opened(model, 2), opened(model, 2)
    for own in (stream, untouched):
        own.step(frames[0])
    with monkeypatch.context() as patch:
        patch.setattr(model.head, "forward", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stream.step(frames[1])
    for frame in frames[1:4]:
        assert np.array_equal(stream.step(frame), untouched.step(frame))
