"""Losses of single pictures, for training a teacher: relative, scale-and-shift-invariant, gradient and edge terms.

Prediction p and target y are inverse depth [B,1,H,W], sides of at least 2 px, y ≥ 0 of any positive scale. Everything
is computed in the precision of its input; give float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

TARGET_MEAN = 3.0
"""Mean over a frame that targets are scaled to; predictions start there."""

_SPREAD_FLOOR = 0.15 * TARGET_MEAN  # a picture of one flat wall must not outweigh a batch
_RELATIVE_FLOOR = 0.1 * TARGET_MEAN
_LOG_FLOOR = 0.03 * TARGET_MEAN
_EDGE = 0.1  # a jump of log inverse depth between neighbors that counts as an edge
_EDGE_WEIGHT = 4.0


def still_depth_losses(prediction: Tensor, inv_depth: Tensor) -> dict[str, Tensor]:
    """Return the terms of the loss, scalars without unit.

    relative: mean |p − y| / (y + 0.1 ȳ) with y scaled to a mean of `TARGET_MEAN`: fixes scale and shift and weighs far
    surfaces as AbsRel does. affine: mean |r| for r = (p − mean p) / dev p − (y − mean y) / dev y, dev the mean absolute
    deviation; its gradient passes through the normalization. gradient: four scales of |∇r|. edge: |∇ log p − ∇ log y|
    at two scales, weighted by 5 where y has an edge.

    Sources: affine, MiDaS (Ranftl et al., 2020), equations 5–7, with means for medians; gradient, equation 11; the
    others are without a source.
    """
    y = inv_depth * (TARGET_MEAN / inv_depth.mean((1, 2, 3), keepdim=True))
    residual = _normalized(prediction) - _normalized(y)  # [B,1,H,W], no unit: blind to scale and shift
    scales = [k for k in (1, 2, 4, 8) if k < min(y.shape[-2:])]
    return {
        "relative": ((prediction - y).abs() / (y + _RELATIVE_FLOOR)).mean(),
        "affine": residual.abs().mean(),
        "gradient": torch.stack([_mean_step(residual[..., ::k, ::k]) for k in scales]).sum(),
        "edge": torch.stack([_edge_term(prediction[..., ::k, ::k], y[..., ::k, ::k]) for k in scales[:2]]).mean(),
    }


def _normalized(values: Tensor) -> Tensor:
    centered = values - values.mean((1, 2, 3), keepdim=True)
    return centered / centered.abs().mean((1, 2, 3), keepdim=True).clamp(min=_SPREAD_FLOOR)


def _mean_step(values: Tensor) -> Tensor:
    return values.diff(dim=-1).abs().mean() + values.diff(dim=-2).abs().mean()


def _edge_term(prediction: Tensor, y: Tensor) -> Tensor:
    # In the logarithm a step weighs by its ratio, near and far alike; the floor keeps the sky from dominating.
    log_p, log_y = (prediction + _LOG_FLOOR).log(), (y + _LOG_FLOOR).log()
    terms = []
    for dim in (-1, -2):
        step = log_y.diff(dim=dim)
        weight = 1 + _EDGE_WEIGHT * (step.abs() > _EDGE)
        terms.append((weight * (log_p.diff(dim=dim) - step).abs()).mean())
    return terms[0] + terms[1]
