"""The color range is steady, follows slowly, and forgets at a cut."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from videomamba_depth.utils.color import COLOR_MAPS, Colorizer, ColorRange, ColorSettings, DepthColors, nearness
from videomamba_depth.utils.depth_kind import MODEL_KINDS, DepthKind


def ramp(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 1001, dtype=np.float32).reshape(7, 143)


def test_first_frame_sets_the_percentiles() -> None:
    assert ColorRange(ColorSettings(percentiles=(10, 90))).update(ramp(0, 1), 0.0) == pytest.approx(
        (0.1, 0.9), abs=1e-3
    )


def test_one_odd_frame_hardly_moves_the_range() -> None:
    color_range = ColorRange(ColorSettings(time_constant_s=2.0))
    for i in range(100):
        steady = color_range.update(ramp(1, 2), i / 30)
    after = color_range.update(ramp(1, 20), 100 / 30)
    # 1 − exp(−1/60) = 0.0165 of the jump of about 17.7
    assert after[1] - steady[1] == pytest.approx(0.0165 * 17.66, rel=0.05)


def test_follows_with_the_time_constant_at_any_frame_rate() -> None:
    ends = []
    for fps in (10, 60):
        color_range = ColorRange(ColorSettings(percentiles=(0, 100), time_constant_s=1.0))
        for i in range(20 * fps):
            color_range.update(ramp(0, 1), i / fps)
        for i in range(fps):  # one second: 1 − 1/e of the way
            _, high = color_range.update(ramp(0, 2), 20 + i / fps)
        ends.append(high)
    assert ends == pytest.approx([2 - np.exp(-1)] * 2, abs=0.01)


def test_reset_forgets() -> None:
    color_range = ColorRange(ColorSettings(percentiles=(0, 100)))
    color_range.update(ramp(0, 1), 0.0)
    color_range.reset()
    assert color_range.update(ramp(5, 9), 0.1) == (5, 9)


def test_fixed_range_stays() -> None:
    assert ColorRange(ColorSettings(range=(1, 4))).update(ramp(0, 100), 0.0) == (1, 4)


def test_nearness() -> None:
    depth = np.array([[0.5, 2.0, np.nan, np.inf]], np.float32)
    assert nearness(depth, DepthKind.RELATIVE).tolist() == [[0.5, 2.0, 0.0, 0.0]]
    assert nearness(depth, DepthKind.METRIC).tolist() == [[2.0, 0.5, 0.0, 0.0]]


@pytest.mark.parametrize("name", COLOR_MAPS)
def test_colors_ascend_from_dark_to_bright(name: str) -> None:
    picture = Colorizer(name)(ramp(0, 1), (0.2, 0.8))
    assert picture.shape == (7, 143, 3)
    assert picture.dtype == np.uint8
    flat = picture.reshape(-1, 3).astype(int)
    assert (flat[:190] == flat[0]).all()  # below the range: one color
    assert (flat[810:] == flat[-1]).all()
    if name != "turbo":
        luma = flat @ [0.299, 0.587, 0.114]
        assert luma[800] > luma[500] > luma[200]


def test_constant_depth_does_not_divide_by_zero() -> None:
    with np.errstate(all="raise"):
        assert Colorizer()(np.full((4, 4), 3.0, np.float32), (3.0, 3.0)).std((0, 1)).max() == 0


def test_levels_are_colored_as_opencv_does() -> None:
    levels = np.arange(256, dtype=np.uint8)[None]
    for name, code in COLOR_MAPS.items():
        expected = np.repeat(levels[..., None], 3, -1) if code is None else cv2.applyColorMap(levels, code)[..., ::-1]
        assert np.array_equal(Colorizer(name).paint(levels), expected)


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_a_new_shot_sets_the_range_and_the_next_frame_follows_it(kind: DepthKind) -> None:
    colors = DepthColors(kind, ColorSettings(percentiles=(0, 100)))
    colors(ramp(1, 2), 0.0, reset=True)
    first = colors.bounds
    colors(ramp(1, 4), 0.1, reset=False)
    assert colors.bounds != first
    picture = colors(ramp(2, 5), 0.2, reset=True)
    assert colors.bounds == pytest.approx((2, 5) if kind is DepthKind.RELATIVE else (1 / 5, 1 / 2))
    assert np.array_equal(picture, Colorizer()(nearness(ramp(2, 5), kind), colors.bounds))


@pytest.mark.parametrize("wrong", [{"percentiles": (9, 1)}, {"range": (1, 1)}, {"map": "red"}, {"time_constant_s": -1}])
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ColorSettings(**wrong)
