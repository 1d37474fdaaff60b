"""The scale-and-shift-invariant loss of MiDaS, on clips, with closed-form alignment and masks throughout.

Ranftl et al., "Towards Robust Monocular Depth Estimation" (2020), sections 5 and equations 4–7 and 11.
Departures: the alignment is detached, residuals are in units of the *target's* spread (so that the loss does
not depend on the teacher's units), and every mean divides by the number of elements that were really summed.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .masked import LossSums, Penalty, check_clip, in_full_precision, keep, mean_of_sums, penalise, stack_sums

Per = Literal["frame", "clip"]
ScaleShift = tuple[Tensor, Tensor]

# A prediction whose spread is below this share of its own magnitude is flat: less than the rounding of the
# half precision that depth is cached in. A fit would then amplify noise: gradients of 5e5 were seen without
# this floor.
MIN_RELATIVE_STD = 1e-3
MIN_STD = 1e-4


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
        scale, shift: [B,N,1,1,1] or [B,1,1,1,1], float32 (float64 for float64 input), without gradient, so
            that a
        student cannot lower its loss by moving the fit. A flat prediction (std below `MIN_RELATIVE_STD` of
        its root mean square or below `MIN_STD`) has its variance raised to that floor: the scale goes to 0
        and the shift to the target's mean, instead of to infinity. No valid pixel: (1, 0).

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

    The unit in which residuals are measured. Never below `MIN_RELATIVE_STD` of the target's mean magnitude,
    so a flat wall does not blow up the loss; 1 where nothing is valid. Source: MiDaS, equation 5, with the
    mean for the median (no sort) and one value per clip instead of per image, so that scale flicker stays
    visible.
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
def scale_shift_invariant_sums(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    scale_shift: ScaleShift | None = None,
    per: Per = "frame",
    gradient_scales: int = 4,
    gradient_weight: float = 0.5,
    trim: float = 0.0,
    penalty: Penalty = "huber",
    spread: Tensor | None = None,
) -> LossSums:
    """Return the sums of `scale_shift_invariant_loss`: the data term, then one gradient term per scale
    ([1+K]).
    """
    _check(prediction, target, valid)
    if not 0.0 <= trim < 1.0:
        raise ValueError(f"trim must be in [0, 1): the share of largest residuals to drop; got {trim}")
    residual = aligned_residual(prediction, target, valid, scale_shift=scale_shift, per=per, spread=spread)
    kept = _without_largest(residual, valid, trim) if trim > 0 else valid
    numerators = [keep(penalise(residual, penalty), kept).sum()]
    counts = [kept.sum().to(residual.dtype)]
    if gradient_weight > 0:
        # Squared differences of the residual would spare the many small ones: this term is robust in any
        # case.
        edge_penalty: Penalty = "l1" if penalty == "l1" else "huber"
        for scale in range(gradient_scales):
            numerator, count = _spatial_gradient_sums(residual, valid, 2**scale, edge_penalty)
            numerators.append(gradient_weight * numerator)
            counts.append(count)
    return stack_sums(numerators, counts)


def scale_shift_invariant_loss(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    scale_shift: ScaleShift | None = None,
    per: Per = "frame",
    gradient_scales: int = 4,
    gradient_weight: float = 0.5,
    trim: float = 0.0,
    penalty: Penalty = "huber",
    spread: Tensor | None = None,
) -> Tensor:
    """Compare depth up to scale and shift: mean ρ(R) + w · Σ_k mean(ρ(∂x R_k) + ρ(∂y R_k)), R = (s·p + t −
    y)/spread.

    Args:
        prediction: [B,N,1,H,W] student's depth, any unit, any float dtype (computed in float32 or better).
        target: [B,N,1,H,W] teacher's depth, any unit.
        valid: [B,N,1,H,W] bool; other pixels may hold anything and receive gradient 0.
        scale_shift: (scale, shift) broadcastable to the clip, used instead of solving; gradients do not pass
            it. `(1, 0)` pins the student to the teacher's own units; solving leaves them free to drift.
        per: what one solved pair covers, "frame" (blind to scale flicker) or "clip".
        gradient_scales: K, number of dyadic scales of the gradient term (every 2^k-th pixel).
        gradient_weight: w ≥ 0; 0 leaves the gradient term out.
        trim: share in [0,1) of each frame's largest valid residuals that the data term leaves out.
        penalty: ρ, "huber" (|r| but smooth below 0.001), "l1" (MiDaS's choice with trimming) or "l2".
        spread: [B,1,1,1,1] unit of the residual; default `target_spread` of what is passed.

    Returns:
        Scalar, no unit; 0 with gradient 0 where nothing is valid.

    A scale that fits negative is left alone, as in MiDaS: start from the teacher, or pin (s, t), to rule it
    out.
    """
    return mean_of_sums(
        *scale_shift_invariant_sums(
            prediction,
            target,
            valid,
            scale_shift=scale_shift,
            per=per,
            gradient_scales=gradient_scales,
            gradient_weight=gradient_weight,
            trim=trim,
            penalty=penalty,
            spread=spread,
        )
    )


def aligned_residual(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    scale_shift: ScaleShift | None = None,
    per: Per = "frame",
    spread: Tensor | None = None,
) -> Tensor:
    """Return (s·prediction + t − target)/spread on valid pixels and 0 elsewhere, [B,N,1,H,W]; only
    prediction learns.
    """
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


@torch.no_grad()
def _without_largest(residual: Tensor, valid: Tensor, trim: float) -> Tensor:
    """Return `valid` without the `trim` share of each frame's largest |residual| ([B,N,1,H,W] bool)."""
    magnitude = residual.abs().masked_fill(~valid, float("inf")).flatten(2)
    ordered = magnitude.sort(dim=-1).values
    num_valid = valid.flatten(2).sum(dim=-1, keepdim=True)
    num_kept = ((1.0 - trim) * num_valid).ceil().long()
    limit = ordered.gather(-1, (num_kept - 1).clamp(min=0))
    return valid & (magnitude <= limit).view_as(valid)


def _spatial_gradient_sums(residual: Tensor, valid: Tensor, stride: int, penalty: Penalty) -> tuple[Tensor, Tensor]:
    """Sum |∂x R| + |∂y R| over neighbours that are both valid, on every `stride`-th pixel.

    The count is half the number of pairs, about the number of pixels, as in MiDaS equation 11.
    """
    r, v = residual[..., ::stride, ::stride], valid[..., ::stride, ::stride]
    pairs_x, pairs_y = v[..., :, 1:] & v[..., :, :-1], v[..., 1:, :] & v[..., :-1, :]
    total = keep(penalise(r[..., :, 1:] - r[..., :, :-1], penalty), pairs_x).sum()
    total = total + keep(penalise(r[..., 1:, :] - r[..., :-1, :], penalty), pairs_y).sum()
    return total, 0.5 * (pairs_x.sum() + pairs_y.sum()).to(residual.dtype)
