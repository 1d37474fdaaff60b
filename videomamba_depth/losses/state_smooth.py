"""State smoothness: the recurrent state changes little on static pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from videomamba_depth.losses.masked import LossSums, as_loss, check_clip, in_full_precision, keep, stack_sums

# Variance that counts as none, and the share of the mean square that is added to the variance (a map of one cell has
# no variance; this still gives it a unit).
MIN_VARIANCE = 1e-6
MEAN_SQUARE_SHARE = 1e-3


@in_full_precision
def state_smoothness_sums(summaries: Sequence[Tensor], static: Tensor) -> LossSums:
    """Compare states with those of the frame before: mean over scales of mean ((m_t − m_{t−1}) / σ)² over static cells.

    Args:
        summaries: per scale [B,N,K,h,w], a summary of the SSM state after each frame (finite everywhere). Across
            chunks, prepend the (detached) summary of the last frame before.
        static: [B,N,1,H,W] bool, pixel neither moves nor changes nor was hidden with respect to the frame before;
            frame 0 of what is passed has no frame before and is not read. A cell is static when all its pixels are.

    Returns:
        One sum per scale; `state_smoothness_loss` is their mean, a scalar without unit.

    σ is the spatial spread: σ_k² is the variance of channel k over the cells of a frame, averaged over the frames
    passed, per sample. It is *not* detached: the loss is then truly unchanged by m → a·m and m → m + b, so it cannot
    be won by shrinking the state (a detached σ leaves the value unchanged but its gradient shrinks the state without
    end). This is the objective of slow feature analysis (Wiskott and Sejnowski, 2002) under a static mask; the
    combination is new.
    """
    check_clip("static", static, mask=True)
    if not summaries:
        raise ValueError("summaries must hold one [B,N,K,h,w] tensor per scale; got none")
    numerators, counts = [], []
    for index, summary in enumerate(summaries):
        if summary.ndim != 5 or summary.shape[:2] != static.shape[:2]:
            raise ValueError(
                f"summaries[{index}] must be [B,N,K,h,w] with static's B, N = {list(static.shape[:2])}; "
                f"got {list(summary.shape)}"
            )
        cells = static_cells(static, summary.shape[-2], summary.shape[-1])[:, 1:].expand_as(summary[:, 1:])
        change = (summary[:, 1:] - summary[:, :-1]) / _spatial_std(summary)  # [B,N−1,K,h,w], no unit
        numerators.append(keep(change.square(), cells).sum() / len(summaries))
        counts.append(cells.sum().to(summary.dtype))
    return stack_sums(numerators, counts)


state_smoothness_loss = as_loss(state_smoothness_sums)


def static_cells(static: Tensor, height: int, width: int) -> Tensor:
    """Reduce a pixel mask [B,N,1,H,W] to cells [B,N,1,height,width], True where all pixels are."""
    moving = (~static).flatten(0, 1).float()  # [B·N,1,H,W]; a maximum above 0 is one pixel that moved
    return F.adaptive_max_pool2d(moving, (height, width)).view(*static.shape[:3], height, width) == 0


def _spatial_std(summary: Tensor) -> Tensor:
    """Return [B,1,K,1,1], the spread of each channel over space, averaged over frames."""
    mean = summary.mean(dim=(-2, -1), keepdim=True)
    # Over the frames too: one frame of a flat state must not get a unit near 0.
    variance = (summary - mean).square().mean(dim=(1, 3, 4), keepdim=True)
    mean_square = summary.square().mean(dim=(1, 3, 4), keepdim=True)
    return torch.sqrt(variance + MEAN_SQUARE_SHARE * mean_square + MIN_VARIANCE)
