"""Which pixels count as static: those that hold still, and are seen, in every frame of a window."""

from __future__ import annotations

import numpy as np
import pytest

from videomamba_depth.evaluation.metrics.stability import static_variation
from videomamba_depth.flow.clip_motion import ClipMotion

FRAMES, SIDE = 10, 8


@pytest.mark.parametrize("frame", [1, 5, FRAMES - 1])
@pytest.mark.parametrize("what", ["it moves", "its flow is not trusted"])
def test_one_frame_is_enough_to_leave_a_pixel_out(frame: int, what: str) -> None:
    """A column that varies a lot is left out for one frame's sake: then nothing else varies."""
    flow, trusted = np.zeros((FRAMES, 2, SIDE, SIDE), np.float32), np.ones((FRAMES, SIDE, SIDE), bool)
    log_disparity = np.random.default_rng(0).uniform(0, 1, (SIDE, SIDE))[None].repeat(FRAMES, 0)
    log_disparity[:, :, 3] += 0.5 * (np.arange(FRAMES) % 2)[:, None]

    def variation() -> tuple[float, float]:
        total = static_variation(log_disparity, ClipMotion(flow, -flow, trusted, trusted))["total"]
        return total.value, total.coverage

    value, coverage = variation()
    assert value > 0.05
    assert coverage == 1.0
    if what == "it moves":
        flow[frame, 0, :, 3] = 0.6
    else:
        trusted[frame, :, 3] = False
    value, coverage = variation()
    assert value < 1e-6
    assert coverage == pytest.approx((SIDE - 1) / SIDE)
