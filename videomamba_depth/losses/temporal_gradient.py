"""Temporal gradient matching: depth changes over time as much as the target does, and in the same direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videomamba_depth.losses.masked import LossSums, as_loss, check_clip, huber, in_full_precision, keep, stack_sums
from videomamba_depth.losses.midas_se import ScaleShift, target_spread
from videomamba_depth.utils.metrics import CLIP_DIMS, scale_and_shift


@in_full_precision
def temporal_gradient_sums(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    strides: Sequence[int] = (1,),
    *,
    scale_shift: ScaleShift | None = None,
    static: Tensor | None = None,
    spread: Tensor | None = None,
) -> LossSums:
    """Compare changes over time: mean over strides k of mean ρ((p_{t+k} − p_t) − (y_{t+k} − y_t)), ρ = `huber`.

    Args:
        prediction: [B,N,1,H,W] student's depth. Across chunks, prepend the (detached) last frame of the chunk before.
        target: [B,N,1,H,W] what it should change like. A *raw* per-frame teacher pulls its flicker back in: pass a
            stabilized target, or exact depth.
        valid: [B,N,1,H,W] bool; a pair counts where both of its pixels are valid.
        strides: frame distances k ≥ 1; those not shorter than the clip contribute 0.
        scale_shift: alignment of the prediction, broadcastable to the clip; default one least-squares pair for all
            frames passed (a pair per frame would hide scale flicker). Gradients do not pass it.
        static: [B,N,1,H,W] bool, pixel neither moves nor changes with respect to the frame before; entry 0 is not
            read. Where given, only pixels that are static over the whole stride count, and the target's change there
            is taken as 0: a raw teacher can then be matched without its flicker.
        spread: [B,1,1,1,1] unit of depth; default `target_spread` of what is passed.

    Returns:
        One sum per stride; `temporal_gradient_loss` is their mean, a scalar without unit.

    Source: Chen et al., "Video Depth Anything" (2025), equation 4, which compares |Δp| with |Δy| and so accepts a
    change of the wrong sign; here the signed changes are compared.
    """
    check_clip("prediction", prediction)
    check_clip("target", target, like=prediction)
    check_clip("valid", valid, like=prediction, mask=True)
    if static is not None:
        check_clip("static", static, like=prediction, mask=True)
    if not strides or any(stride < 1 for stride in strides):
        raise ValueError(f"strides must be one or more frame distances ≥ 1; got {list(strides)}")
    pair = scale_shift if scale_shift is not None else scale_and_shift(prediction, target, valid, CLIP_DIMS)
    unit = (spread if spread is not None else target_spread(target, valid)).detach()
    # Both in spreads of the target: the loss has no unit.
    p = (pair[0].detach() * keep(prediction, valid) + pair[1].detach()) / unit  # [B,N,1,H,W]
    y = keep(target, valid).detach() / unit
    numerators, counts = [], []
    for stride in strides:
        # A clip shorter than the stride leaves empty slices: sum 0, count 0, still attached to the graph.
        num_pairs = max(p.shape[1] - stride, 0)
        change_p = p[:, stride:] - p[:, :num_pairs]  # [B,N−stride,1,H,W]: at one pixel, not along flow
        change_y = y[:, stride:] - y[:, :num_pairs]
        both = valid[:, stride:] & valid[:, :num_pairs]
        if static is not None:
            # A pixel is static over k frames when it is at each of them: entries t−k+1 … t.
            for offset in range(stride):
                both = both & static[:, stride - offset : stride - offset + num_pairs]
            change_y = torch.zeros_like(change_y)
        numerators.append(keep(huber(change_p - change_y), both).sum() / len(strides))
        counts.append(both.sum().to(p.dtype))
    return stack_sums(numerators, counts)


temporal_gradient_loss = as_loss(temporal_gradient_sums)
