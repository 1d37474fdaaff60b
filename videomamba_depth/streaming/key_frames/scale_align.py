"""Depth's scale, held to that of a reference: a robust fit on pixels that show the same, and a follower of it."""

from __future__ import annotations

import math

from torch import Tensor

from videomamba_depth.utils.metrics import robust_scale_and_shift

_MIN_PIXELS = 32
_MIN_RELATIVE_STD = 1e-4  # as good as constant: any scale would fit


def fit_scale(
    depth: Tensor, reference: Tensor, usable: Tensor, *, with_shift: bool = True
) -> tuple[float, float] | None:
    """Return (a, b) of `robust_scale_and_shift` on the usable pixels.

    Args:
        depth, reference: any equal shape, one unit.
        usable: bool, the same shape: pixels that show the same in both.
        with_shift: False fixes b = 0 (metric depth has no free zero).

    Returns:
        None where fewer than 32 pixels are usable, or they do not determine a positive scale.
    """
    usable = usable & depth.isfinite() & reference.isfinite()
    x, y = (values[usable].cpu().numpy() for values in (depth, reference))
    if len(x) < _MIN_PIXELS:
        return None
    scale, shift = robust_scale_and_shift(x, y, with_shift=with_shift, min_relative_std=_MIN_RELATIVE_STD)
    return (scale, shift) if scale > 0 else None


class ScaleFollower:
    """(a, b) of one stream, shown depth = a · depth + b: follows what is fitted, slowly and never far.

    Args:
        time_constant: of the exponential mean, in frames.
        max_scale: a stays within [1 / max_scale, max_scale], and |b| below (max_scale − 1) times the reference's mean:
            what errors of many alignments can add up to.
    """

    def __init__(self, time_constant: float, max_scale: float) -> None:
        self.weight, self.max_scale = 1 - math.exp(-1 / time_constant), max_scale
        self.a, self.b = 1.0, 0.0

    def reset(self) -> None:
        """Return to depth as it is."""
        self.a, self.b = 1.0, 0.0

    def follow(self, fitted: tuple[float, float], reference_mean: float, at_once: bool = False) -> None:
        """Move towards a fit, or take it over where there is nothing before it to be continuous with."""
        a = min(max(fitted[0], 1 / self.max_scale), self.max_scale)
        most = (self.max_scale - 1) * abs(reference_mean)
        b = min(max(fitted[1], -most), most)
        weight = 1.0 if at_once else self.weight
        self.a, self.b = self.a + weight * (a - self.a), self.b + weight * (b - self.b)

    def __call__(self, depth: Tensor) -> Tensor:
        """Return the depth that is shown."""
        return depth if (self.a, self.b) == (1.0, 0.0) else depth * self.a + self.b
