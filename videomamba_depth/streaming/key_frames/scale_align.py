"""Depth's scale, held to that of a reference: a robust fit on pixels that show the same, and a follower of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_HUBER = 1.345  # in robust standard deviations: 95 % efficient on normal noise (Huber 1981)
_ROUNDS = 8
_MIN_PIXELS = 32


def fit_scale(
    depth: Tensor, reference: Tensor, usable: Tensor, *, with_shift: bool = True
) -> tuple[float, float] | None:
    """Return (a, b) that minimise Σ huber(a · depth + b − reference), by reweighted least squares in float64.

    Args:
        depth, reference: any equal shape, one unit.
        usable: bool, the same shape: pixels that show the same in both.
        with_shift: False fixes b = 0 (metric depth has no free zero).

    Returns:
        None where fewer than 32 pixels are usable, or they do not determine a positive scale.
    """
    usable = usable & depth.isfinite() & reference.isfinite()
    x, y = depth[usable].double(), reference[usable].double()
    if len(x) < _MIN_PIXELS:
        return None
    weight = torch.ones_like(x)
    fitted: tuple[float, float] | None = None
    for _ in range(_ROUNDS):
        fitted = _weighted_fit(x, y, weight, with_shift)
        if fitted is None:
            return None
        residual = (fitted[0] * x + fitted[1] - y).abs()
        spread = 1.4826 * float(residual.median())  # of normal noise, from the median
        bound = max(_HUBER * spread, 1e-9 * float(y.abs().mean()), torch.finfo(torch.float64).tiny)
        weight = bound / residual.clamp(min=bound)
    return fitted


def _weighted_fit(x: Tensor, y: Tensor, weight: Tensor, with_shift: bool) -> tuple[float, float] | None:
    total = weight.sum()
    mean_x = (weight * x).sum() / total if with_shift else x.new_zeros(())
    mean_y = (weight * y).sum() / total if with_shift else x.new_zeros(())
    variance = (weight * (x - mean_x).square()).sum()
    if float(variance / total) <= 1e-8 * float(x.square().mean()):  # as good as constant: any scale would fit
        return None
    a = float((weight * (x - mean_x) * (y - mean_y)).sum() / variance)
    return (a, float(mean_y) - a * float(mean_x)) if math.isfinite(a) and a > 0 else None


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
