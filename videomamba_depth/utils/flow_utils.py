"""Optical flow: warping, and the masks that say where flow can be trusted.

A flow `a → b` is in pixels, channels (x right, y down), and lives on the pixels of a: pixel p of a is at p +
flow(p) in b. The estimators are in `flow/estimators.py`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def backward_warp(
    x: Tensor, flow: Tensor, mode: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
) -> tuple[Tensor, Tensor]:
    """Sample `x` at p + flow(p): bring the frame that the flow points to onto the pixels where it starts.

    Args:
        x: [K,C,H,W], any unit; float (computed in float32 or float64).
        flow: [K,2,H,W] px.
        mode: interpolation; "nearest" keeps invalid values from spreading.

    Returns:
        warped [K,C,H,W] in x's dtype (border values where the flow leaves the frame, 0 where the flow is not
        finite) and in_bounds [K,1,H,W] bool.
    """
    if x.ndim != 4 or flow.ndim != 4 or flow.shape[1] != 2 or x.shape[-2:] != flow.shape[-2:]:
        raise ValueError(f"x must be [K,C,H,W] and flow [K,2,H,W] of one size; got {list(x.shape)}, {list(flow.shape)}")
    height, width = x.shape[-2:]
    values = x if x.dtype in (torch.float32, torch.float64) else x.float()
    in_bounds = in_bounds_mask(flow)
    finite = torch.isfinite(flow).all(dim=1, keepdim=True)
    target = _pixel_grid(flow, values.dtype) + torch.where(finite, flow.to(values.dtype), 0.0)
    size = torch.tensor([max(width - 1, 1), max(height - 1, 1)], dtype=values.dtype, device=values.device)
    grid = 2.0 * target.permute(0, 2, 3, 1) / size - 1.0
    warped = F.grid_sample(values, grid, mode=mode, padding_mode="border", align_corners=True)
    return torch.where(finite, warped, 0.0).to(x.dtype), in_bounds


def in_bounds_mask(flow: Tensor) -> Tensor:
    """Return [K,1,H,W] bool: p + flow(p) lies inside the frame, pixel centres included; False for NaN."""
    height, width = flow.shape[-2:]
    target = _pixel_grid(flow, flow.dtype if flow.dtype == torch.float64 else torch.float32) + flow
    x, y = target[:, :1], target[:, 1:]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def consistency_mask(flow_ab: Tensor, flow_ba: Tensor, alpha: float = 0.01, beta: float = 0.5) -> Tensor:
    """Return where going to b and back ends where it began: |F + w(B)|² < alpha (|F|² + |w(B)|²) + beta.

    Args:
        flow_ab: F [K,2,H,W] px, a → b. flow_ba: B [K,2,H,W] px, b → a; w(B) is B sampled at p + F(p).
        alpha: share of the squared motion allowed as error. beta: squared px allowed in any case.

    Returns:
        [K,1,H,W] bool on the pixels of a; False also where F leaves the frame. Pixels hidden in b fail the
        test.

    Source: Sundaram et al., "Dense point trajectories" (ECCV 2010), equation 5.
    """
    flow_ab = flow_ab if flow_ab.dtype == torch.float64 else flow_ab.float()
    back, in_bounds = backward_warp(flow_ba.to(flow_ab.dtype), flow_ab)
    error = (flow_ab + back).square().sum(dim=1, keepdim=True)
    motion = flow_ab.square().sum(dim=1, keepdim=True) + back.square().sum(dim=1, keepdim=True)
    return in_bounds & (error < alpha * motion + beta)


def rgb_consistency_mask(source: Tensor, target: Tensor, flow: Tensor, max_change: float = 0.06) -> Tensor:
    """Return where the colour found along the flow is the same: mean over channels |source − w(target)| <
    max_change.

    source, target: [K,3,H,W] in [0,1]; flow: source → target [K,2,H,W] px; returns [K,1,H,W] bool.
    """
    warped, in_bounds = backward_warp(target, flow)
    return in_bounds & ((source - warped).abs().mean(dim=1, keepdim=True) < max_change)


def trust_mask(
    source: Tensor, target: Tensor, flow_st: Tensor, flow_ts: Tensor, max_rgb_change: float = 0.06
) -> Tensor:
    """Return [K,1,H,W] bool on the pixels of source: in bounds, forward-backward consistent and of equal
    colour.
    """
    colour = rgb_consistency_mask(source, target, flow_st, max_rgb_change)
    return consistency_mask(flow_st, flow_ts) & colour


def _pixel_grid(flow: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [1,2,H,W], the x and y of every pixel."""
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device, dtype=dtype),
        torch.arange(width, device=flow.device, dtype=dtype),
        indexing="ij",
    )
    return torch.stack([x, y])[None]
