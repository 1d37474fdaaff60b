"""Alignment of depth by scale and shift, and the plain errors of depth in meters.

Relative depth is defined up to an affine map, so it is fitted to a reference before it is compared with it. The one
closed form of that fit stands here in three forms: batched for tensors (`scale_and_shift`), frame by frame in float64
for clips that need not fit into memory (`clip_scale_and_shift`), and robust against outliers
(`robust_scale_and_shift`). All are centered: sums of raw squares lose the digits of depth that is far from zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A prediction whose spread is below this share of its own magnitude is flat: less than the rounding of the half
# precision that depth is cached in. A fit would then amplify noise: gradients of 5e5 were seen without this floor.
MIN_RELATIVE_STD = 1e-3
MIN_STD = 1e-4

CLIP_DIMS = (-4, -3, -2, -1)  # one pair for all frames of [B,N,1,H,W]

HUBER_K = 1.345  # in robust standard deviations: 95 % efficient on normal noise (Huber, 1981)
_MAD_TO_STD = 1.4826  # of normal noise
_NUM_UPDATES = 10  # of the robust weights


@torch.no_grad()
def scale_and_shift(
    pred: Tensor, target: Tensor, mask: Tensor | None = None, dims: tuple[int, ...] = (-2, -1)
) -> tuple[Tensor, Tensor]:
    """Solve (s, t) = argmin Σ_mask (s · pred + t − target)² in closed form, one pair per element of the batch.

    Args:
        pred: [...,H,W] any unit, any float dtype (computed in float32; float64 is kept).
        target: like pred, any unit.
        mask: like pred, bool; other pixels may hold anything, NaN included. None: every pixel counts.
        dims: axes that share a pair: by default each map has its own; `CLIP_DIMS` for one per clip.

    Returns:
        scale, shift: pred's shape with `dims` reduced to 1, without gradient, so that a student cannot lower its loss
        by moving the fit. A flat prediction (std below `MIN_RELATIVE_STD` of its root mean square or below `MIN_STD`)
        has its variance raised to that floor: the scale goes to 0 and the shift to the target's mean, instead of to
        infinity. No pixel in the mask: (1, 0).

    Source: MiDaS (Ranftl et al., 2020), equation 4, in centered form; the floor is an addition.
    """
    if mask is None:
        mask = torch.ones_like(pred, dtype=torch.bool)
    p, y = (torch.where(mask, x if x.dtype == torch.float64 else x.float(), 0.0) for x in (pred, target))
    count = mask.sum(dims, keepdim=True).to(p.dtype)
    safe_count = count.clamp(min=1)
    p_mean, y_mean = p.sum(dims, keepdim=True) / safe_count, y.sum(dims, keepdim=True) / safe_count
    p_centered, y_centered = torch.where(mask, p - p_mean, 0.0), torch.where(mask, y - y_mean, 0.0)
    variance = p_centered.square().sum(dims, keepdim=True) / safe_count
    covariance = (p_centered * y_centered).sum(dims, keepdim=True) / safe_count
    floor = (MIN_RELATIVE_STD**2 * (variance + p_mean.square())).clamp(min=MIN_STD**2)
    scale = covariance / torch.maximum(variance, floor)
    shift = y_mean - scale * p_mean
    return torch.where(count > 0, scale, 1.0), torch.where(count > 0, shift, 0.0)


def clip_scale_and_shift(pred: Any, target: Any, mask: Any) -> tuple[float, float]:
    """Solve the same (s, t) in float64 for everything passed, reading one frame at a time.

    Args:
        pred, target: of one shape, [F,H,W] or a single frame [H,W]: arrays, tensors or views that compute a frame when
            it is read. Read twice.
        mask: bool, like pred; only pixels where it holds count.

    Returns:
        (s, t); (0, mean of target) for a flat prediction; (NaN, NaN) without a valid pixel.
    """
    count, p_sum, y_sum = 0, 0.0, 0.0
    sources = [_one_by_one(values) for values in (pred, target, mask)]
    for p, y, m in zip(*sources, strict=True):
        count += int(m.sum())
        p_sum += float(p[m].sum(dtype=np.float64))
        y_sum += float(y[m].sum(dtype=np.float64))
    if count == 0:
        return math.nan, math.nan
    p_mean, y_mean = p_sum / count, y_sum / count
    variance, covariance = 0.0, 0.0
    for p, y, m in zip(*sources, strict=True):
        centered = p[m].astype(np.float64) - p_mean
        variance += float(centered @ centered)
        covariance += float(centered @ (y[m].astype(np.float64) - y_mean))
    # Below the rounding of float64 sums there is nothing to fit; a NaN falls through and stays NaN.
    flat = variance <= 1e-24 * count * (1.0 + p_mean**2)
    scale = 0.0 if flat else covariance / variance
    return scale, y_mean - scale * p_mean


def robust_scale_and_shift(
    pred: np.ndarray, target: np.ndarray, *, with_shift: bool = True, min_relative_std: float = 1e-6
) -> tuple[float, float]:
    """Solve (s, t) = argmin Σ huber(s · pred + t − target) by iteratively reweighted least squares in float64.

    Args:
        pred, target: [P] any unit.
        with_shift: False fixes t = 0 (metric depth has no free zero).
        min_relative_std: spread of pred, in units of its root mean square, up to which it is flat.

    Returns:
        (s, t); (NaN, NaN) where pred is flat, something is not finite, or P = 0.

    Source: Huber, "Robust Statistics" (1981); the width goes by the median of the residuals in every round.
    """
    x, y = pred.astype(np.float64), target.astype(np.float64)
    if not x.size or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan, math.nan
    min_variance = min_relative_std**2 * float(np.mean(x**2))
    weight = np.ones_like(x)
    scale = shift = 0.0
    for _ in range(_NUM_UPDATES):
        x_mean, y_mean = (float(np.average(v, weights=weight)) if with_shift else 0.0 for v in (x, y))
        centered = weight * (x - x_mean)
        variance = float(centered @ (x - x_mean))
        if variance <= min_variance * float(weight.sum()):
            return math.nan, math.nan
        scale = float(centered @ (y - y_mean)) / variance
        shift = y_mean - scale * x_mean
        residual = np.abs(y - scale * x - shift)
        limit = HUBER_K * _MAD_TO_STD * float(np.median(residual))
        if limit <= 1e-12 * np.abs(y).max():
            break
        weight = np.minimum(1.0, limit / np.maximum(residual, limit))
    return scale, shift


def abs_rel(depth_m: np.ndarray, true_m: np.ndarray) -> float:
    """Return mean |d − gt| / gt over arrays of one shape; gt > 0."""
    return float(np.mean(np.abs(depth_m - true_m) / true_m))


def delta1(depth_m: np.ndarray, true_m: np.ndarray) -> float:
    """Return the share of pixels with max(d/gt, gt/d) < 1.25; d, gt > 0."""
    return float(np.mean(np.maximum(depth_m / true_m, true_m / depth_m) < 1.25))


def rmse(depth_m: np.ndarray, true_m: np.ndarray) -> float:
    """Return the root mean square error, in meters."""
    return float(np.sqrt(np.mean((depth_m - true_m) ** 2)))


def rmse_log(depth_m: np.ndarray, true_m: np.ndarray) -> float:
    """Return the root mean square of log d − log gt; d, gt > 0."""
    return float(np.sqrt(np.mean((np.log(depth_m) - np.log(true_m)) ** 2)))


def _one_by_one(values: Any) -> Iterable[np.ndarray]:
    """Return frames to go over, without a copy; a single frame as a list of one."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return [array] if isinstance(array, np.ndarray) and array.ndim < 3 else array
