"""Which pixels of a clip stand still."""

from __future__ import annotations

import torch
from torch import Tensor

from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.utils.flow_utils import trust_mask


def static_mask(clip: Tensor, flow: FlowEstimator, max_motion_px: float = 0.5, max_rgb_change: float = 0.06) -> Tensor:
    """Return which pixels of each frame neither moved, changed color nor were hidden since the frame before.

    Args:
        clip: [N,3,H,W] RGB in [0,1].
        flow: estimates both directions, for the forward-backward check.
        max_motion_px: upper bound on |flow|, px per frame. max_rgb_change: see `rgb_consistency_mask`.

    Returns:
        [N,1,H,W] bool; frame 0 is all False, since nothing came before.
    """
    if clip.ndim != 4 or clip.shape[1] != 3:
        raise ValueError(f"clip must have shape [N,3,H,W]; got {list(clip.shape)}")
    static = torch.zeros_like(clip[:, :1], dtype=torch.bool)
    if clip.shape[0] > 1:
        now, before = clip[1:], clip[:-1]
        back, forth = flow(now, before), flow(before, now)
        still = back.square().sum(dim=1, keepdim=True) < max_motion_px**2
        static[1:] = still & trust_mask(now, before, back, forth, max_rgb_change)
    return static
