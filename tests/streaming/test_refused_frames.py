"""A stream is a transaction: what is refused, for whatever reason, leaves it as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.key_frames.key_frames import KeyFrames, KeyFrameSettings
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.errors import UserError

Refused = Callable[[DepthStream, np.ndarray, Tensor], Any]

REFUSED: dict[str, Refused] = {
    "no frame": lambda s, u, x: s.step(None),  # type: ignore[arg-type]
    "a list": lambda s, u, x: s.step(u.tolist()),
    "a tensor for an array": lambda s, u, x: s.step(torch.from_numpy(u)),  # type: ignore[arg-type]
    "floats": lambda s, u, x: s.step(u / 255),
    "gray": lambda s, u, x: s.step(u[..., 0]),
    "empty": lambda s, u, x: s.step(u[:0]),
    "three numbers": lambda s, u, x: s.step(u[0, 0]),
    "another size": lambda s, u, x: s.step(u[:40]),
    "too narrow": lambda s, u, x: s.step(np.zeros((4, 2000, 3), np.uint8)),
    "a word for a time": lambda s, u, x: s.step(u, "x"),  # type: ignore[arg-type]
    "two times for a frame": lambda s, u, x: s.step(u, [0.1, 0.2]),  # type: ignore[arg-type]
    "no tensor": lambda s, u, x: s.step_tensor(None),  # type: ignore[arg-type]
    "an array for a tensor": lambda s, u, x: s.step_tensor(x.numpy()),  # type: ignore[arg-type]
    "bytes": lambda s, u, x: s.step_tensor((x * 255).byte()),
    "0 to 255": lambda s, u, x: s.step_tensor(x * 255),
    "NaN": lambda s, u, x: s.step_tensor(x * float("nan")),
    "no batch": lambda s, u, x: s.step_tensor(x[0]),
    "a batch of 2": lambda s, u, x: s.step_tensor(x.repeat(2, 1, 1, 1)),
    "two times": lambda s, u, x: s.step_tensor(x, [0.1, 0.2]),
    "no times": lambda s, u, x: s.step_tensor(x, []),
    "a number for times": lambda s, u, x: s.step_tensor(x, 0.1),  # type: ignore[arg-type]
    "words": lambda s, u, x: s.step_tensor(x, ["a"]),  # type: ignore[list-item]
    "None for times": lambda s, u, x: s.step_tensor(x, [None]),  # type: ignore[list-item]
    "nested times": lambda s, u, x: s.step_tensor(x, [[0.1]]),  # type: ignore[list-item]
    "ragged times": lambda s, u, x: s.step_tensor(x, [[0.1], [0.2, 0.3]]),  # type: ignore[list-item]
    "truth for times": lambda s, u, x: s.step_tensor(x, [True]),
    "a huge time": lambda s, u, x: s.step_tensor(x, [10**400]),
    "numbers for booleans": lambda s, u, x: s.reset([2.5]),  # type: ignore[list-item]
    "ones for booleans": lambda s, u, x: s.reset([1]),  # type: ignore[list-item]
    "two booleans": lambda s, u, x: s.reset([True, False]),
    "one boolean": lambda s, u, x: s.reset(True),  # type: ignore[arg-type]
}


def opened(student: VideoMambaDepth, with_keys: bool) -> DepthStream:
    """A stream that is cut at some frames, and returns to earlier ones with key frames."""
    resets = ResetPolicy(histogram_change=0.01, feature_change=1e-6, feature_ratio=1.0, max_gap_s=0.5)
    keys = KeyFrames(KeyFrameSettings(every=1, duplicate=0.999, enter=0.99, leave=0.98, align=True))
    return DepthStream(student, device="cpu", resets=resets, hooks=[keys] if with_keys else [])


def carried(stream: DepthStream) -> dict[str, Any]:
    """Everything that a stream carries, as values that compare."""
    assert stream.states is not None
    found: dict[str, Any] = {"reasons": stream.reset_reasons, "state": stream.states.metadata()}
    tensors = stream.states.tensors()
    for hook in stream.hooks:
        tensors |= hook.tensors()
        found |= {hook.name: hook.metadata()}
    found["notes"] = stream.notes
    return found | {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("with_keys", [False, True])
def test_every_refusal_leaves_the_stream_as_it_was(
    student: VideoMambaDepth, frames: np.ndarray, with_keys: bool
) -> None:
    stream, untouched = opened(student, with_keys), opened(student, with_keys)
    clip = [frames[i] for i in (0, 0, 1, 0)]
    for t, frame in enumerate(clip):
        for refuse in REFUSED.values() if t == 2 else ():
            before = carried(stream)
            tensor = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
            with pytest.raises((ValueError, UserError)) as caught:
                refuse(stream, frame, tensor)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 250
            assert carried(stream) == before
        assert np.array_equal(stream.step(frame, 0.1 * t), untouched.step(frame, 0.1 * t))
        assert carried(stream) == carried(untouched)


@pytest.mark.parametrize("times", [[0.1, 0.2], [], ["a"], [None]])
def test_a_refusal_before_the_first_frame(student: VideoMambaDepth, frames: np.ndarray, times: Any) -> None:
    rgb = torch.from_numpy(frames[0]).permute(2, 0, 1)[None].float() / 255
    for resets in (None, ResetPolicy(max_gap_s=1.0)):
        stream = DepthStream(student, device="cpu", resets=resets)
        with pytest.raises(ValueError, match="timestamps must be one number of seconds per stream, 1 here; got "):
            stream.step_tensor(rgb, times)
        assert stream.states is None
        assert np.array_equal(stream.step(frames[0], 0.0), DepthStream(student, device="cpu").step(frames[0]))


def test_times_may_be_arrays_tensors_and_unknown(student: VideoMambaDepth, frames: np.ndarray) -> None:
    rgb = torch.from_numpy(frames[:2]).permute(0, 3, 1, 2).float() / 255
    stream = DepthStream(student, device="cpu", batch_size=2, resets=ResetPolicy(cuts=False, max_gap_s=0.5))
    reasons = []
    for times in (np.array([0, 0]), torch.tensor([0.1, 0.1]), [0.2, float("nan")], (np.float32(0.9), 9), None):
        stream.step_tensor(rgb, times)  # type: ignore[arg-type]
        reasons.append(stream.reset_reasons)
    assert reasons == [("start", "start"), ("", ""), ("", ""), ("gap", ""), ("", "")]


def test_depth_that_is_not_finite_leaves_no_trace(student: VideoMambaDepth, frames: np.ndarray) -> None:
    stream, untouched = opened(student, True), opened(student, True)
    for t in (0, 1):
        assert np.array_equal(stream.step(frames[t], 0.1 * t), untouched.step(frames[t], 0.1 * t))
    before, bias = carried(stream), student.head.head.conv3.bias
    good = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(float("nan"))
    for frame in (frames[0], frames[2]):  # one that is returned to, and a cut
        with pytest.raises(UserError, match="depth of frame 1 of the stream is not finite"):
            stream.step(frame, 0.2)
        assert carried(stream) == before
    with torch.no_grad():
        bias.copy_(good)
    for t in (2, 3):
        assert np.array_equal(stream.step(frames[t % 3], 0.1 * t), untouched.step(frames[t % 3], 0.1 * t))
    assert carried(stream) == carried(untouched)


def test_an_interruption_leaves_no_trace(
    student: VideoMambaDepth, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = opened(student, True)
    stream.step(frames[0], 0.0)
    before = carried(stream)

    def interrupted(*_: object) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KeyFrames, "after_frame", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.step(frames[1], 0.1)
    assert carried(stream) == before


def test_a_policy_that_is_given_too_many_times_is_as_before() -> None:
    policy, rgb = ResetPolicy(max_gap_s=1.0), torch.rand(1, 3, 16, 16)
    policy.update(rgb, rgb, [0.0])
    before = policy.tensors()
    with pytest.raises(ValueError, match="one per stream"):
        policy.update(rgb, rgb, [0.1, 0.2])
    assert policy.tensors().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.tensors().items())
    policy.reset(torch.tensor([True]))
    assert policy.tensors() == {}


def test_converted_weights_are_told_apart(student: VideoMambaDepth, frames: np.ndarray) -> None:
    stream = DepthStream(student, device="cpu")
    student.encoder.half()
    with pytest.raises(ValueError, match="a part of it was converted by itself"):
        stream.step(frames[0])
    assert stream.states is None
