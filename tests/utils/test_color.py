"""The colour range is steady, follows slowly, and forgets at a cut."""

from __future__ import annotations

import numpy as np
import pytest

from videomamba_depth.utils.color import COLOR_MAPS, Colorizer, ColorRange, nearness
from videomamba_depth.utils.depth_kind import DepthKind


def ramp(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 1001, dtype=np.float32).reshape(7, 143)


def test_first_frame_sets_the_percentiles() -> None:
    assert ColorRange((10, 90)).update(ramp(0, 1), 0.0) == pytest.approx((0.1, 0.9), abs=1e-3)


def test_one_odd_frame_hardly_moves_the_range() -> None:
    colour_range = ColorRange(time_constant_s=2.0)
    for i in range(100):
        steady = colour_range.update(ramp(1, 2), i / 30)
    after = colour_range.update(ramp(1, 20), 100 / 30)
    # 1 − exp(−1/60) = 0.0165 of the jump of about 17.7
    assert after[1] - steady[1] == pytest.approx(0.0165 * 17.66, rel=0.05)


def test_follows_with_the_time_constant_at_any_frame_rate() -> None:
    ends = []
    for fps in (10, 60):
        colour_range = ColorRange((0, 100), time_constant_s=1.0)
        for i in range(20 * fps):
            colour_range.update(ramp(0, 1), i / fps)
        for i in range(fps):  # one second: 1 − 1/e of the way
            _, high = colour_range.update(ramp(0, 2), 20 + i / fps)
        ends.append(high)
    assert ends == pytest.approx([2 - np.exp(-1)] * 2, abs=0.01)


def test_reset_forgets() -> None:
    colour_range = ColorRange((0, 100))
    colour_range.update(ramp(0, 1), 0.0)
    colour_range.reset()
    assert colour_range.update(ramp(5, 9), 0.1) == (5, 9)


def test_fixed_range_stays() -> None:
    assert ColorRange(fixed=(1, 4)).update(ramp(0, 100), 0.0) == (1, 4)


def test_nearness() -> None:
    depth = np.array([[0.5, 2.0, np.nan, np.inf]], np.float32)
    assert nearness(depth, DepthKind.RELATIVE).tolist() == [[0.5, 2.0, 0.0, 0.0]]
    assert nearness(depth, DepthKind.METRIC).tolist() == [[2.0, 0.5, 0.0, 0.0]]


@pytest.mark.parametrize("name", COLOR_MAPS)
def test_colours_ascend_from_dark_to_bright(name: str) -> None:
    picture = Colorizer(name)(ramp(0, 1), (0.2, 0.8))
    assert picture.shape == (7, 143, 3)
    assert picture.dtype == np.uint8
    flat = picture.reshape(-1, 3).astype(int)
    assert (flat[:190] == flat[0]).all()  # below the range: one colour
    assert (flat[810:] == flat[-1]).all()
    if name != "turbo":
        luma = flat @ [0.299, 0.587, 0.114]
        assert luma[800] > luma[500] > luma[200]


def test_constant_depth_does_not_divide_by_zero() -> None:
    with np.errstate(all="raise"):
        assert Colorizer()(np.full((4, 4), 3.0, np.float32), (3.0, 3.0)).std((0, 1)).max() == 0
