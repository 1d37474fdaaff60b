"""Scale and shift of a whole frame's depth that the frame before did not have: measured, and undone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ON = 0.8
"""Strength where none is named."""
SHARE = (0.3, 0.7)
"""Share of the innovation that one scale and shift explain: nothing undone below, all of `strength` above."""
SEEN = (0.1, 0.3)
"""Share of the frame that is seen in the frame before, likewise."""
OUTLIER = 1.5  # a pixel that far from the fit, in mean distances, counts a quarter in the second one
SIDE_PX = 112  # larger frames are looked at in every n-th row and column
FLAT = 1e-5  # variance, in squares of the mean depth, below which a frame is too flat for a scale
MIN_METRIC_DEPTH_M = 1e-3


def undo_global_change(depth: Tensor, before: Tensor, seen: Tensor, strength: float, metric: bool) -> Tensor:
    """Return a·x + b, the depth with as much of a change of its scale and shift undone as is global.

    On the pixels that are seen in both frames, x − p = u + v (m − mean m), m = (x + p) / 2, is fitted twice, the second
    time with Geman and McClure's weights. The mean m treats both frames alike: regressing one on the other would shrink
    the scale a little with every frame. What is undone of (u, v) is `strength` times a gate that opens with the share
    of Σ|x − p| that the fit explains: what only a part of the frame does, or each part in its way, is no jitter of the
    teacher. As strength is below 1, a lasting change passes with a time constant of 1 / (1 − strength) frames.

    Args:
        depth: x `[B, 1, H, W]` of this frame. No gradient passes through a and b.
        before: p, of the frame before, moved to the pixels of this one.
        seen: of the same shape, bool; where False, p is not read. Nowhere: x is returned as it is.
        strength: in [0, 1).
        metric: depth in m has no shift: the same is done with log x, with u alone.
    """
    with torch.no_grad():
        scale, shift = _fit(depth.detach(), before.detach(), seen, strength, metric)
    return depth * scale + shift


def remembering(strength: float, memory: float) -> float:
    """Return the strength whose odds are `memory` times those of `strength`."""
    odds = memory * strength / (1 - strength)
    return 1.0 if math.isinf(odds) else odds / (1 + odds)


def _fit(x: Tensor, p: Tensor, seen: Tensor, strength: float, metric: bool) -> tuple[Tensor, Tensor]:
    """Return a and b, `[B, 1, 1, 1]` each."""
    step = max(1, min(x.shape[-2:]) // SIDE_PX)
    x, p, seen = (t[..., ::step, ::step] for t in (x, p, seen))
    if metric:
        x, p = (t.clamp(min=MIN_METRIC_DEPTH_M).log() for t in (x, p))
    p = torch.where(seen, p, x)
    counted = seen.to(x.dtype)
    innovation, middle = x - p, (x + p) / 2
    unit = 1.0 if metric else _mean(middle.abs(), counted)
    weight = counted
    for again in (True, False):
        mean_x, mean_p = _mean(x, weight), _mean(p, weight)
        centered = middle - (mean_x + mean_p) / 2
        flat = FLAT * unit * unit
        slope = _mean(centered * (innovation - (mean_x - mean_p)), weight) / (
            _mean(centered * centered, weight) + flat + _TINY
        )
        if metric:
            slope = torch.zeros_like(slope)
        rest = innovation - (mean_x - mean_p) - slope * centered
        error = _mean(rest.abs(), counted)
        if again:
            weight = counted / (1 + (rest / (OUTLIER * error + 1e-6 * unit + _TINY)).square()).square()
    explained = 1 - error / (_mean(innovation.abs(), counted) + _TINY)
    part = strength * _rise(explained, *SHARE) * _rise(counted.mean((1, 2, 3), keepdim=True), *SEEN)
    slope = slope.clamp(-1, 1)  # a frame whose scale is a third of the last one's, or three times it, is another world
    gain = (1 - slope / 2) / (1 + slope / 2)
    if metric:
        return (part * (mean_p - mean_x)).exp(), torch.zeros_like(part)
    return 1 + part * (gain - 1), part * (mean_p - gain * mean_x)


_TINY = 1e-12


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum((1, 2, 3), keepdim=True) / (weight.sum((1, 2, 3), keepdim=True) + 1e-6)


def _rise(value: Tensor, low: float, high: float) -> Tensor:
    return ((value - low) / (high - low)).clamp(0, 1)
