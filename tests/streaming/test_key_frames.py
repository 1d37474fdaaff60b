"""Key frames: the ring, returning to a view, following its scale, and continuing to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from media import write_video

from videomamba_depth.commands.stream import main
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.hooks import NextFrame
from videomamba_depth.streaming.key_frames.key_frames import KeyFrames, KeyFrameSettings
from videomamba_depth.streaming.key_frames.scale_align import fit_scale, follow_scale
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.errors import UserError

# Frames drawn at random: nothing is alike, so that only a frame that comes again is a return.
EVERY_FRAME = KeyFrameSettings(every=1, duplicate=0.999, enter=0.99, leave=0.98, align=False)


def cutting() -> ResetPolicy:
    """Return a policy that takes every change of the tiny random features for a cut."""
    return ResetPolicy(histogram_change=0.001, feature_change=1e-6, feature_ratio=0.0, pattern_change=0.01)


def scenes(frames: np.ndarray) -> np.ndarray:
    """Return host, host, other, other, host: equal frames within a scene."""
    host, other = frames[0], frames[1]
    return np.stack([host, host, other, other, host])


def test_after_a_cut_equals_a_new_stream(student: VideoMambaDepth, frames: np.ndarray) -> None:
    clip = scenes(frames)
    stream = DepthStream(student, device="cpu", resets=cutting())
    depth, reasons = [], []
    for frame in clip:
        depth.append(stream.step(frame))
        reasons.append(stream.reset_reasons[0])
    assert reasons == ["start", "", "cut", "", "cut"]
    for start, stop in ((2, 4), (4, 5)):
        new = list(DepthStream(student, device="cpu")(clip[start:stop]))
        assert np.array_equal(np.stack(depth[start:stop]), np.stack(new))


def test_a_return_goes_on_where_the_view_was_left(student: VideoMambaDepth, frames: np.ndarray) -> None:
    clip = scenes(frames)
    stream = DepthStream(student, device="cpu", resets=cutting(), hooks=[KeyFrames(EVERY_FRAME)])
    depth = [stream.step(frame) for frame in clip]
    assert stream.notes["key"]["event"] == "returned"
    # the host's two frames are alike: its key frame is the first of them, and the return is as if the second followed
    uncut = list(DepthStream(student, device="cpu")(clip[:2]))
    assert np.array_equal(depth[4], uncut[1])
    new = DepthStream(student, device="cpu").step(clip[4])
    assert not np.array_equal(depth[4], new)


def test_away_within_a_shot_blends_linearly(student: VideoMambaDepth, frames: np.ndarray) -> None:
    keys = KeyFrames(replace(EVERY_FRAME, blend_frames=2))
    stream = DepthStream(student, device="cpu", hooks=[keys])
    for frame in (frames[0], frames[1]):
        stream.step(frame)
    own = stream.states
    assert own is not None
    kept = keys.kept.ring[0].state
    rgb = torch.from_numpy(frames[0]).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        features = stream.model.encode(rgb[:, None])["s3"][:, 0]
        seen = NextFrame(rgb, features, None, own, [""])
        for share in (0.5, 1.0):
            mixed = keys.before_frame(seen, own)
            expected = torch.lerp(own.layers["s3"][1][1], kept.layers["s3"][1][1], share)
            assert torch.equal(mixed.layers["s3"][1][1], expected)
            assert torch.equal(mixed.frame_index, own.frame_index)
        assert keys.before_frame(seen, own) is own


def test_the_ring_is_bounded_and_holds_no_duplicates(student: VideoMambaDepth, frames: np.ndarray) -> None:
    keys = KeyFrames(replace(EVERY_FRAME, capacity=3))
    stream = DepthStream(student, device="cpu", hooks=[keys])
    dropped = []
    for frame in np.concatenate([frames[:1], frames]):
        stream.step(frame)
        dropped += [stream.notes["key"]["dropped"]]
    assert [key.number for key in keys.kept.ring] == [6, 7, 8]
    assert dropped == [[], [], [], [], [0], [2], [3], [4], [5]]  # frame 1 was a duplicate of frame 0
    stream.reset()
    assert keys.kept.ring == ()


def test_saved_and_loaded_equals_never_stopped(tmp_path: Path, checkpoint: Path, frames: np.ndarray) -> None:
    clip = np.concatenate([scenes(frames), frames[1:3], frames[:3]])
    settings = replace(EVERY_FRAME, align=True, max_state_change=10.0)

    def new() -> DepthStream:
        return DepthStream(checkpoint, device="cpu", resets=cutting(), hooks=[KeyFrames(settings)])

    through, first, second = new(), new(), new()
    expected = [through.step(frame) for frame in clip]
    list(first(clip[:6]))
    first.save(tmp_path / "stream.safetensors")
    second.load(tmp_path / "stream.safetensors")
    for frame, depth in zip(clip[6:], expected[6:], strict=True):
        assert np.array_equal(second.step(frame), depth)
    assert second.notes == through.notes
    assert second.hooks[1].metadata() == through.hooks[1].metadata()
    with pytest.raises(UserError, match="with key_frames True; this stream has False"):
        DepthStream(checkpoint, device="cpu", resets=cutting()).load(tmp_path / "stream.safetensors")


def test_batches_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="batch_size 1"):
        DepthStream(checkpoint, device="cpu", batch_size=2, hooks=[KeyFrames(KeyFrameSettings())])


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="ascend"):
        KeyFrameSettings(enter=0.5, leave=0.6)
    named = ["checkpoint=x", "input=x", "output=x", "key_frames.enter=0.99"]
    with pytest.raises(UserError, match="ascend"):
        load_config("stream", StreamConfig, named)


def test_the_config_group_turns_them_on() -> None:
    named = ["checkpoint=x", "input=x", "output=x"]
    configs = [
        load_config("stream", StreamConfig, [*named, *more]).key_frames
        for more in ([], ["key_frames=on"], ["key_frames.enabled=true", "key_frames.every=3"])
    ]
    assert [(config.enabled, config.every) for config in configs] == [(False, 15), (True, 15), (True, 3)]
    assert configs[1] == KeyFrameSettings()  # the file's values are the defaults of the component


def test_every_decision_is_logged(tmp_path: Path, checkpoint: Path) -> None:
    source = write_video(tmp_path / "clip.mp4", 6)
    named = [f"checkpoint={checkpoint}", f"input={source}", f"output={tmp_path}/out", "video=none", "device=cpu"]
    main(load_config("stream", StreamConfig, [*named, "key_frames.enabled=true", "key_frames.every=2"]))
    lines = [json.loads(line) for line in (tmp_path / "out" / "clip.frames.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    for line in lines:
        assert {"event", "anchor", "scale", "shift", "change", "followed", "held"} <= set(line["key"])
    assert lines[1]["key"]["added"] == [1]
    assert lines[2]["key"]["nearest"] == 1


def test_fit_finds_the_scale_despite_outliers() -> None:
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(40, 50, generator=generator) * 5 + 1
    reference = 1.2 * depth - 0.3 + 0.01 * torch.randn(40, 50, generator=generator)
    reference[:8] += 3.0  # a fifth has moved
    usable = torch.ones(40, 50, dtype=torch.bool)
    fitted = fit_scale(depth, reference, usable)
    assert fitted is not None
    assert fitted == pytest.approx((1.2, -0.3), abs=0.02)  # measured 0.004
    usable[:8] = False
    reference[0] = torch.nan
    assert fit_scale(depth, reference, usable) == pytest.approx((1.2, -0.3), abs=0.003)  # measured 0.0008
    scale = fit_scale(depth, 0.8 * depth, usable, with_shift=False)
    assert scale == pytest.approx((0.8, 0.0), abs=1e-7)


def test_fit_says_when_it_cannot_know() -> None:
    depth = torch.rand(20, 20)
    few = torch.zeros(20, 20, dtype=torch.bool)
    few[0] = True
    assert fit_scale(depth, depth, few) is None
    everywhere = torch.ones_like(few)
    assert fit_scale(torch.full_like(depth, 2.0), depth, everywhere) is None
    assert fit_scale(depth, -depth, everywhere) is None


def test_the_scale_is_followed_slowly_and_never_far() -> None:
    scale = follow_scale((1.0, 0.0), (1.2, 0.1), 1.0, time_constant=16.0, max_scale=1.25)
    assert 1.0 < scale[0] < 1.02
    for _ in range(1000):
        scale = follow_scale(scale, (3.0, -9.0), 2.0, time_constant=16.0, max_scale=1.25)
    assert scale == pytest.approx((1.25, -0.5))
    assert follow_scale(scale, (1.1, 0.2), 2.0, time_constant=0.0, max_scale=1.25) == pytest.approx((1.1, 0.2))


@pytest.mark.parametrize(("largest", "moves"), [(0.0, False), (1e6, True)])
def test_scale_is_followed_only_while_the_state_rests(
    student: VideoMambaDepth, frames: np.ndarray, largest: float, moves: bool
) -> None:
    settings = replace(EVERY_FRAME, align=True, max_state_change=largest, blend_frames=1)
    keys = KeyFrames(settings)
    stream = DepthStream(student, device="cpu", hooks=[keys])
    for index in (0, 1, 0, 0):
        stream.step(frames[index])
    assert keys.kept.decision["anchor"] == 0
    assert keys.kept.decision["followed"] is moves
    assert (keys.kept.scale != (1.0, 0.0)) is moves


def test_a_stream_is_saved_right_after_a_key_frame(checkpoint: Path, frames: np.ndarray, tmp_path: Path) -> None:
    stream, other = (DepthStream(checkpoint, device="cpu", hooks=[KeyFrames(EVERY_FRAME)]) for _ in range(2))
    stream.step(frames[0])  # its state is the stream's and the key frame's
    stream.save(tmp_path / "stream.safetensors")
    other.load(tmp_path / "stream.safetensors")
    assert np.array_equal(other.step(frames[1]), stream.step(frames[1]))


def test_a_view_is_returned_to_above_one_similarity_and_left_below_another(
    student: VideoMambaDepth, frames: np.ndarray
) -> None:
    """Between the two nothing changes: what has been left is not returned to, what is shown is not left."""
    keys = KeyFrames(KeyFrameSettings(every=2, enter=0.8, leave=0.65, duplicate=0.99, grid=1, align=False))
    stream = DepthStream(student, device="cpu")
    depth = torch.from_numpy(stream.step(frames[0]))[None, None]
    states = stream.states
    assert states is not None
    rgb = torch.from_numpy(frames[0]).permute(2, 0, 1)[None].float() / 255

    def event(similarity: float, away: int = 1) -> str:
        """Show a frame whose features are so similar to those of the first one."""
        features = torch.zeros(1, 4, 2, 2)
        features[:, 0], features[:, away] = similarity, (1 - similarity**2) ** 0.5
        keys.before_frame(NextFrame(rgb, features, None, states, [""]), states)
        keys.after_frame(depth, states)
        return keys.notes()["key"]["event"]

    assert [event(1.0), event(1.0)] == ["", ""]  # the second becomes a key frame
    assert [event(0.0), event(0.0)] == ["", ""]  # so does the last; by then the first has been left
    assert event(0.7, away=2) == ""
    assert event(0.85, away=3) == "returned"
    assert event(0.7, away=2) == ""  # not left either
    assert event(0.6, away=2) == "left"
