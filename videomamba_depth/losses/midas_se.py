"""The scale-and-shift-invariant loss of MiDaS, on clips, with closed-form alignment and masks throughout.

Ranftl et al., "Towards Robust Monocular Depth Estimation" (2020), sections 5 and equations 4–7 and 11.
Departures: the alignment is detached, residuals are in units of the *target's* spread (so that the loss does not
depend on the teacher's units), they are rounded off near 0, and every mean divides by the number of elements summed.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from videomamba_depth.losses.masked import LossSums, as_loss, check_clip, huber, in_full_precision, keep, stack_sums

Per = Literal["frame", "clip"]
ScaleShift = tuple[Tensor, Tensor]

# A prediction whose spread is below this share of its own magnitude is flat: less than the rounding of the half
# precision that depth is cached in. A fit would then amplify noise: gradients of 5e5 were seen without this floor.
MIN_RELATIVE_STD = 1e-3
MIN_STD = 1e-4

NUM_GRADIENT_SCALES = 4  # of the gradient term: every pixel, every 2nd, 4th and 8th (MiDaS, section 5)


@in_full_precision
@torch.no_grad()
def solve_scale_shift(prediction: Tensor, target: Tensor, valid: Tensor, per: Per = "frame") -> ScaleShift:
    """Solve (s, t) = argmin Σ_valid (s · prediction + t − target)² in closed form.

    Args:
        prediction: [B,N,1,H,W] any unit.
        target: [B,N,1,H,W] any unit.
        valid: [B,N,1,H,W] bool; other pixels may hold anything, NaN included.
        per: "frame" for one pair per frame, "clip" for one pair per clip.

    Returns:
        scale, shift: [B,N,1,1,1] or [B,1,1,1,1], float32 (float64 for float64 input), without gradient, so that a
        student cannot lower its loss by moving the fit. A flat prediction (std below `MIN_RELATIVE_STD` of its root
        mean square or below `MIN_STD`) has its variance raised to that floor: the scale goes to 0 and the shift to
        the target's mean, instead of to infinity. No valid pixel: (1, 0).

    Source: MiDaS, equation 4, in centred form; the floor is ours.
    """
    _check(prediction, target, valid)
    dims = _reduced_dims(per)
    count = valid.sum(dim=dims, keepdim=True).to(prediction.dtype)
    safe_count = count.clamp(min=1)
    p, y = keep(prediction, valid), keep(target, valid)
    p_mean = p.sum(dim=dims, keepdim=True) / safe_count
    y_mean = y.sum(dim=dims, keepdim=True) / safe_count
    p_centred, y_centred = keep(p - p_mean, valid), keep(y - y_mean, valid)
    variance = p_centred.square().sum(dim=dims, keepdim=True) / safe_count
    covariance = (p_centred * y_centred).sum(dim=dims, keepdim=True) / safe_count
    floor = (MIN_RELATIVE_STD**2 * (variance + p_mean.square())).clamp(min=MIN_STD**2)
    scale = covariance / torch.maximum(variance, floor)
    shift = y_mean - scale * p_mean
    seen = count > 0
    return torch.where(seen, scale, torch.ones_like(scale)), torch.where(seen, shift, torch.zeros_like(shift))


@in_full_precision
@torch.no_grad()
def target_spread(target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean absolute deviation of the valid target from its mean, one number per clip: [B,1,1,1,1].

    The unit in which residuals are measured. Never below `MIN_RELATIVE_STD` of the target's mean magnitude, so a flat
    wall does not blow up the loss; 1 where nothing is valid. Source: MiDaS, equation 5, with the mean for the median
    (no sort) and one value per clip instead of per image, so that scale flicker stays visible.
    """
    dims = (1, 2, 3, 4)
    count = valid.sum(dim=dims, keepdim=True)
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
    per: Per = "frame",
    gradient_weight: float = 0.5,
    spread: Tensor | None = None,
) -> LossSums:
    """Compare depth up to scale and shift: mean ρ(R) + w · Σ_k mean(ρ(∂x R_k) + ρ(∂y R_k)), R = (s·p + t − y)/spread.

    Args:
        prediction: [B,N,1,H,W] student's depth, any unit, any float dtype (computed in float32 or better).
        target: [B,N,1,H,W] teacher's depth, any unit.
        valid: [B,N,1,H,W] bool; other pixels may hold anything and receive gradient 0.
        scale_shift: (scale, shift) broadcastable to the clip, used instead of solving; gradients do not pass it.
            `(1, 0)` pins the student to the teacher's own units; solving leaves them free to drift.
        per: what one solved pair covers, "frame" (blind to scale flicker) or "clip".
        gradient_weight: w ≥ 0; 0 leaves the gradient term out.
        spread: [B,1,1,1,1] unit of the residual; default `target_spread` of what is passed.

    Returns:
        The sums of the data term and of one gradient term per scale k; `midas_se_loss` is their mean, a scalar
        without unit. ρ is `huber`.

    A scale that fits negative is left alone, as in MiDaS: start from the teacher, or pin (s, t), to rule it out.
    """
    _check(prediction, target, valid)
    residual = aligned_residual(prediction, target, valid, scale_shift=scale_shift, per=per, spread=spread)
    numerators = [keep(huber(residual), valid).sum()]
    counts = [valid.sum().to(residual.dtype)]
    if gradient_weight > 0:
        for scale in range(NUM_GRADIENT_SCALES):
            numerator, count = _spatial_gradient_sums(residual, valid, stride=2**scale)
            numerators.append(gradient_weight * numerator)
            counts.append(count)
    return stack_sums(numerators, counts)


midas_se_loss = as_loss(midas_se_sums)


def aligned_residual(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    scale_shift: ScaleShift | None = None,
    per: Per = "frame",
    spread: Tensor | None = None,
) -> Tensor:
    """Return (s·prediction + t − target)/spread [B,N,1,H,W], 0 where not valid; only the prediction learns."""
    scale, shift = scale_shift if scale_shift is not None else solve_scale_shift(prediction, target, valid, per)
    unit = spread if spread is not None else target_spread(target, valid)
    # Masked before the arithmetic: a NaN that enters a product comes back through the product's gradient.
    p, y = keep(prediction, valid), keep(target, valid).detach()
    return keep((scale.detach() * p + shift.detach() - y) / unit.detach(), valid)


def _check(prediction: Tensor, target: Tensor, valid: Tensor) -> None:
    check_clip("prediction", prediction)
    check_clip("target", target, like=prediction)
    check_clip("valid", valid, like=prediction, mask=True)


def _reduced_dims(per: Per) -> tuple[int, ...]:
    if per == "frame":
        return (2, 3, 4)
    if per == "clip":
        return (1, 2, 3, 4)
    raise ValueError(f"per must be 'frame' or 'clip'; got {per!r}")


def _spatial_gradient_sums(residual: Tensor, valid: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Sum |∂x R| + |∂y R| over neighbours that are both valid, on every `stride`-th pixel.

    The count is half the number of pairs, about the number of pixels, as in MiDaS equation 11.
    """
    r, v = residual[..., ::stride, ::stride], valid[..., ::stride, ::stride]
    pairs_x, pairs_y = v[..., :, 1:] & v[..., :, :-1], v[..., 1:, :] & v[..., :-1, :]
    total = keep(huber(r[..., :, 1:] - r[..., :, :-1]), pairs_x).sum()
    total = total + keep(huber(r[..., 1:, :] - r[..., :-1, :]), pairs_y).sum()
    return total, 0.5 * (pairs_x.sum() + pairs_y.sum()).to(residual.dtype)
