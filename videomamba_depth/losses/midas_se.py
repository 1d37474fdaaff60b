"""The scale-and-shift-invariant loss of MiDaS, on clips, with closed-form alignment and masks throughout.

Ranftl et al., "Toward Robust Monocular Depth Estimation" (2020), sections 5 and equations 4–7 and 11.
Departures: the alignment is detached, residuals are in units of the *target's* spread (so that the loss does not
depend on the teacher's units), they are rounded off near 0, and every mean divides by the number of elements summed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from videomamba_depth.losses.masked import LossSums, as_loss, check_clip, huber, in_full_precision, keep, stack_sums
from videomamba_depth.utils.metrics import MIN_RELATIVE_STD, scale_and_shift

ScaleShift = tuple[Tensor, Tensor]

GRADIENT_STRIDES = (1, 2, 4, 8)  # px between neighbors in the gradient term (MiDaS, section 5)


@in_full_precision
@torch.no_grad()
def target_spread(target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean absolute deviation of the valid target from its mean, one number per clip: [B,1,1,1,1].

    The unit in which residuals are measured. Never below `MIN_RELATIVE_STD` of the target's mean magnitude, so a flat
    wall does not blow up the loss; 1 where nothing is valid. Source: MiDaS, equation 5, with the mean for the median
    (no sort) and one value per clip instead of per image, so that scale flicker stays visible.
    """
    dims = (1, 2, 3, 4)
    count = valid.sum(dim=dims, keepdim=True)  # [B,1,1,1,1], like every sum below
    safe_count = count.clamp(min=1)
    y = keep(target, valid)
    mean = y.sum(dim=dims, keepdim=True) / safe_count
    deviation = keep((y - mean).abs(), valid).sum(dim=dims, keepdim=True) / safe_count
    magnitude = y.abs().sum(dim=dims, keepdim=True) / safe_count
    spread = torch.maximum(deviation, MIN_RELATIVE_STD * magnitude)
    return torch.where(spread > 0, spread, torch.ones_like(spread))


@in_full_precision
def midas_se_sums(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    scale_shift: ScaleShift | None = None,
    gradient_weight: float = 0.5,
    spread: Tensor | None = None,
) -> LossSums:
    """Compare depth up to scale and shift: mean ρ(R) + w · Σ_k mean(ρ(∂x R_k) + ρ(∂y R_k)), R = (s·p + t − y)/spread.

    Args:
        prediction: [B,N,1,H,W] student's depth, any unit, any float dtype (computed in float32 or better).
        target: [B,N,1,H,W] teacher's depth, any unit.
        valid: [B,N,1,H,W] bool; other pixels may hold anything and receive gradient 0.
        scale_shift: (scale, shift) broadcastable to the clip; gradients do not pass it. Default: one pair per frame
            (blind to scale flicker). `(1, 0)` pins the student to the teacher's own units; solving leaves them free to
            drift.
        gradient_weight: w ≥ 0; 0 leaves the gradient term out.
        spread: [B,1,1,1,1] unit of the residual; default `target_spread` of what is passed.

    Returns:
        The sums of the data term and of one gradient term per stride k; `midas_se_loss` is their mean, a scalar
        without unit. ρ is `huber`.

    A scale that fits negative is left alone, as in MiDaS: start from the teacher, or pin (s, t), to rule it out.
    """
    check_clip("prediction", prediction)
    check_clip("target", target, like=prediction)
    check_clip("valid", valid, like=prediction, mask=True)
    scale, shift = scale_shift if scale_shift is not None else scale_and_shift(prediction, target, valid)
    unit = spread if spread is not None else target_spread(target, valid)
    # Masked before the arithmetic: a NaN that enters a product comes back through the product's gradient.
    p, y = keep(prediction, valid), keep(target, valid).detach()
    residual = keep((scale.detach() * p + shift.detach() - y) / unit.detach(), valid)  # [B,N,1,H,W], no unit
    numerators = [keep(huber(residual), valid).sum()]  # the data term; sums and counts part, see `LossSums`
    counts = [valid.sum().to(residual.dtype)]
    if gradient_weight > 0:
        for stride in GRADIENT_STRIDES:
            numerator, count = _spatial_gradient_sums(residual, valid, stride)
            numerators.append(gradient_weight * numerator)
            counts.append(count)
    return stack_sums(numerators, counts)


midas_se_loss = as_loss(midas_se_sums)


def _spatial_gradient_sums(residual: Tensor, valid: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Sum |∂x R| + |∂y R| over neighbors that are both valid, on every `stride`-th pixel.

    The count is half the number of pairs, about the number of pixels, as in MiDaS equation 11.
    """
    r, v = residual[..., ::stride, ::stride], valid[..., ::stride, ::stride]  # [B,N,1,⌈H/stride⌉,⌈W/stride⌉]
    # A difference across a hole would compare two surfaces: both ends must be valid.
    pairs_x, pairs_y = v[..., :, 1:] & v[..., :, :-1], v[..., 1:, :] & v[..., :-1, :]
    total = keep(huber(r[..., :, 1:] - r[..., :, :-1]), pairs_x).sum()
    total = total + keep(huber(r[..., 1:, :] - r[..., :-1, :]), pairs_y).sum()
    return total, 0.5 * (pairs_x.sum() + pairs_y.sum()).to(residual.dtype)
