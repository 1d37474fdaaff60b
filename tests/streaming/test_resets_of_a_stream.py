"""What resets a stream: a gap makes it a new one, the others of its batch go on; one calm frame is no news."""

from __future__ import annotations

import numpy as np
import torch

from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream


def close(depth: torch.Tensor | np.ndarray, expected: torch.Tensor | np.ndarray) -> bool:
    """Equal but for convolutions, which round by batch size; measured 3e-6 of the range."""
    depth, expected = torch.as_tensor(depth), torch.as_tensor(expected)
    return float((depth - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())


def test_after_a_gap_the_stream_is_a_new_one(student: VideoMambaDepth, frames: np.ndarray) -> None:
    stream = DepthStream(student, device="cpu", resets=ResetPolicy(cuts=False, max_gap_s=0.5))
    times = [0.0, 0.1, 0.2, 5.0, 5.1]
    found, reasons = [], []
    for frame, time in zip(frames, times, strict=False):
        found.append(stream.step(frame, time))
        reasons.append(stream.reset_reasons[0])
    assert reasons == ["start", "", "", "gap", ""]
    new = list(DepthStream(student, device="cpu")(frames[3:5]))
    through = list(DepthStream(student, device="cpu")(frames[:5]))
    for depth, wanted, other in zip(found[3:], new, through[3:], strict=True):
        assert close(depth, wanted)
        assert not close(depth, other)
    assert stream.states is not None
    assert stream.states.frame_index.tolist() == [2]


def test_the_other_streams_of_the_batch_go_on(student: VideoMambaDepth, frames: np.ndarray) -> None:
    rgb = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    stream = DepthStream(student, device="cpu", batch_size=2, resets=ResetPolicy(cuts=False, max_gap_s=0.5))
    for t, times in enumerate([(0.0, 0.0), (0.1, 0.1), (9.0, 0.2)]):
        depth = stream.step_tensor(rgb[[t, t + 3]], times)
    assert stream.reset_reasons == ("gap", "")
    assert stream.states is not None
    assert stream.states.frame_index.tolist() == [1, 3]
    new, going_on = (list(DepthStream(student, device="cpu")(part)) for part in (frames[2:3], frames[3:6]))
    assert close(depth[0, 0], new[-1])
    assert close(depth[1, 0], going_on[-1])


def test_features_that_always_change_make_no_cut_after_one_calm_frame() -> None:
    """A jump is measured against the changes of the last 16 frames, not against the last one alone."""
    pattern, other = torch.eye(16)[:2] - torch.eye(16)[2:4]  # of a grid of 4×4, without a mean
    turns = torch.tensor([0.0, *[0.64] * 20, 0.0, 1.16]).cumsum(0)  # 1 − cosine: 0.2 each, then 0, then 0.6
    policy = ResetPolicy(histogram_change=-1.0, pattern_change=-1.0)
    found = []
    for turn in turns:
        features = (turn.cos() * pattern + turn.sin() * other).view(1, 1, 4, 4)
        found += policy.update(torch.rand(1, 3, 16, 16), features, None)
    assert set(found) == {""}
    features = -features
    assert policy.update(torch.rand(1, 3, 16, 16), features, None) == ["cut"]
