"""Depth's scale, held to that of a reference: a robust fit on pixels that show the same, and its smoothing."""

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


def follow_scale(
    scale: tuple[float, float],
    fitted: tuple[float, float],
    reference_mean: float,
    time_constant: float,
    max_scale: float,
) -> tuple[float, float]:
    """Return (a, b) of shown depth = a · depth + b, moved toward a fit: slowly, and never far.

    Args:
        reference_mean: mean of the depth that was fitted to.
        time_constant: of the exponential mean, in frames; 0 takes the fit over.
        max_scale: a stays within [1 / max_scale, max_scale], and |b| below (max_scale − 1) times the reference's mean:
            what errors of many alignments can add up to.
    """
    weight = 1 - math.exp(-1 / time_constant) if time_constant > 0 else 1.0
    largest_shift = (max_scale - 1) * abs(reference_mean)
    a = min(max(fitted[0], 1 / max_scale), max_scale)
    b = min(max(fitted[1], -largest_shift), largest_shift)
    return scale[0] + weight * (a - scale[0]), scale[1] + weight * (b - scale[1])
