"""The cut that every clip is given: its end, turned upside down, then its beginning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from torch import Tensor

from videomamba_depth.evaluation.recurrence import settle_after_own_cut


@pytest.mark.parametrize(("num_frames", "count"), [(2, 2), (9, 3)])
def test_the_end_is_turned_and_the_beginning_follows(num_frames: int, count: int) -> None:
    """Frame t holds t + a ramp; half a clip at most is taken of each shot."""
    ramp = np.arange(4 * 5 * 3).reshape(4, 5, 3)
    frames = [(10 * t + ramp).astype(np.uint8) for t in range(6)]
    streams: list[list[np.ndarray]] = []

    def new_stream() -> Callable[[Tensor], Tensor]:
        seen: list[np.ndarray] = []
        streams.append(seen)

        def stream(frame: Tensor) -> Tensor:
            seen.append((frame[0].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8))
            return frame[:, :1]

        return stream

    settle_after_own_cut(new_stream, frames, num_frames)
    carried, new = sorted(streams, key=len, reverse=True)
    assert [np.array_equal(a, b[::-1, ::-1]) for a, b in zip(carried[:count], frames[6 - count :], strict=True)] == [
        True
    ] * count
    for seen in (carried[count:], new):
        assert [np.array_equal(a, b) for a, b in zip(seen, frames[:count], strict=True)] == [True] * count
