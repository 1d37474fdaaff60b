"""Depth as colors, with a range that is smoothed over time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.settings import check_settings, choice, ranged

COLOR_MAPS = {
    "inferno": cv2.COLORMAP_INFERNO,
    "magma": cv2.COLORMAP_MAGMA,
    "turbo": cv2.COLORMAP_TURBO,
    "viridis": cv2.COLORMAP_VIRIDIS,
    "gray": None,
}
"""Names of the color maps; near is bright (turbo: red) in all of them."""

_MAX_SAMPLES = 40_000  # pixels that percentiles are taken over; more changes them by less than a color step
_MIN_DEPTH_M = 1e-3


def nearness(depth: np.ndarray, kind: DepthKind) -> np.ndarray:
    """Return what is colored, float32 `[h, w]`, larger is nearer: relative depth itself, 1/m of metric depth.

    Pixels that are not finite become 0, as far away.
    """
    if kind is DepthKind.METRIC:
        depth = 1.0 / np.maximum(depth, _MIN_DEPTH_M)
    if not np.isfinite(depth).all():
        depth = np.nan_to_num(depth, nan=0.0, posinf=0.0, neginf=0.0)
    return depth.astype(np.float32, copy=False)


@dataclass(frozen=True, kw_only=True)
class ColorSettings:
    """How depth is colored.

    Attributes:
        map: name of a color map.
        percentiles: lower and upper, of nearness, that are spread over the map.
        range: (low, high) of nearness to use always; for pictures that are to be compared with each other.
        time_constant_s: of the smoothing of the range over time; 0 follows every frame (flickers).
    """

    map: str = choice(*COLOR_MAPS, default="inferno")
    percentiles: tuple[float, float] = ranged(0, 100, (2.0, 98.0), length=2)
    range: tuple[float, float] | None = ranged(-1e9, 1e9, None, length=2)
    time_constant_s: float = ranged(0, 1e9, 2.0)

    def __post_init__(self) -> None:
        check_settings(self)
        for name, pair in (("percentiles", self.percentiles), ("range", self.range)):
            if pair is not None and pair[0] >= pair[1]:
                raise ValueError(f"color.{name} must ascend; got {list(pair)}")


class ColorRange:
    """The range of nearness that is spread over the color map: running percentiles, smoothed over time.

    Per frame, the percentiles of that frame move an exponential average whose weight is that of a plain mean at first
    and `1 − exp(−Δt/τ)` later. A single frame never sets the range, except the first of a shot.
    """

    def __init__(self, settings: ColorSettings) -> None:
        self.settings = settings
        self.reset()

    def reset(self) -> None:
        """Forget: the next frame sets the range, as after a scene cut."""
        self._bounds: np.ndarray | None = None
        self._num_frames = 0
        self._last_s = 0.0

    def update(self, near: np.ndarray, timestamp_s: float) -> tuple[float, float]:
        """Take in a frame's nearness `[h, w]`, shown at `timestamp_s`, and return (low, high) to color it with."""
        if self.settings.range is not None:
            return self.settings.range
        stride = max(1, math.isqrt(near.size // _MAX_SAMPLES))
        bounds = np.percentile(near[::stride, ::stride], self.settings.percentiles)
        if self._bounds is None:
            self._bounds = bounds
        else:
            elapsed_s = max(0.0, timestamp_s - self._last_s)
            time_constant_s = self.settings.time_constant_s
            decay = math.exp(-elapsed_s / time_constant_s) if time_constant_s > 0 else 0.0
            self._bounds += max(1 - decay, 1 / (self._num_frames + 1)) * (bounds - self._bounds)
        self._num_frames += 1
        self._last_s = timestamp_s
        return float(self._bounds[0]), float(self._bounds[1])


class Colorizer:
    """Turn numbers into uint8 RGB `[h, w, 3]` with a named color map."""

    def __init__(self, color_map: str = "inferno") -> None:
        if color_map not in COLOR_MAPS:
            raise ValueError(f"color map must be one of {', '.join(COLOR_MAPS)}; got '{color_map}'")
        ramp = np.arange(256, dtype=np.uint8)[:, None]
        code = COLOR_MAPS[color_map]
        table = np.repeat(ramp, 3, 1)[:, None] if code is None else cv2.applyColorMap(ramp, code)[..., ::-1]
        self._table = np.ascontiguousarray(table)  # [256, 1, 3] RGB

    def ramp(self, count: int) -> list[str]:
        """Return `count` colors from far to near, as "#rrggbb"."""
        return ["#" + bytes(self._table[round(i)][0]).hex() for i in np.linspace(0, 255, count)]

    def paint(self, levels: np.ndarray) -> np.ndarray:
        """Color uint8 levels `[h, w]`: uint8 RGB `[h, w, 3]`."""
        return cv2.applyColorMap(levels, self._table)

    def __call__(self, near: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
        """Color nearness `[h, w]`; values outside `bounds` take the colors at the ends."""
        low, high = bounds
        span = max(high - low, 1e-6 * max(abs(low), abs(high)), 1e-12)
        level = (near - low) * np.float32(255 / span)
        return self.paint(np.clip(level, 0, 255).astype(np.uint8))


INFERNO = Colorizer("inferno")


class DepthColors:
    """The colors of one stream's depth; follows its frames, and is not to be shared.

    Args:
        kind: what the depth means; metric depth is colored by its inverse, so that near is bright for both kinds.

    Attributes:
        bounds: (low, high) of nearness that the latest frame was colored with.
    """

    def __init__(self, kind: DepthKind, settings: ColorSettings) -> None:
        self._kind, self._range, self._colorizer = kind, ColorRange(settings), Colorizer(settings.map)
        self.bounds = (0.0, 0.0)

    def __call__(self, depth: np.ndarray, timestamp_s: float, *, reset: bool) -> np.ndarray:
        """Return the colors of a frame's depth `[h, w]`, uint8 RGB; `reset`: a new shot begins with it."""
        near = nearness(depth, self._kind)
        if reset:
            self._range.reset()
        self.bounds = self._range.update(near, timestamp_s)
        return self._colorizer(near, self.bounds)
