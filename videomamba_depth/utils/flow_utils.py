"""Optical flow: warping, resizing, and the masks of where flow can be trusted.

A flow `a → b` is in pixels, channels (x right, y down), and lives on the pixels of a: pixel p of a is at p +
flow(p) in b. The estimators are in `flow/estimators.py`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA = 0.01  # share of the squared motion allowed as error of the way there and back
BETA = 0.5  # squared px allowed in any case


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
    return sample_along(x, flow, mode), in_bounds_mask(flow)


def sample_along(x: Tensor, flow: Tensor, mode: Literal["bilinear", "bicubic", "nearest"] = "bilinear") -> Tensor:
    """Return what `backward_warp` does, without the mask."""
    if x.ndim != 4 or flow.ndim != 4 or flow.shape[1] != 2 or x.shape[-2:] != flow.shape[-2:]:
        raise ValueError(f"x must be [K,C,H,W] and flow [K,2,H,W] of one size; got {list(x.shape)}, {list(flow.shape)}")
    values = x if x.dtype in (torch.float32, torch.float64) else x.float()
    finite = torch.isfinite(flow).all(dim=1, keepdim=True)
    # `grid_sample` is undefined at NaN; pixels whose flow is not finite are zeroed below.
    target = pixel_grid(flow, values.dtype) + torch.where(finite, flow.to(values.dtype), 0.0)
    warped = sample_px(values, target.permute(0, 2, 3, 1), mode)
    return torch.where(finite, warped, 0.0).to(x.dtype)


def sample_px(maps: Tensor, points_px: Tensor, mode: Literal["bilinear", "bicubic", "nearest"] = "bilinear") -> Tensor:
    """Return maps [K,C,H,W] at the points (x, y) px [K,h,w,2], as [K,C,h,w]; border values beyond the border."""
    sides = (maps.shape[-1], maps.shape[-2])
    grid = [2.0 * x / max(side - 1, 1) - 1.0 for x, side in zip(points_px.unbind(-1), sides, strict=True)]
    return F.grid_sample(maps, torch.stack(grid, -1), mode=mode, padding_mode="border", align_corners=True)


def warp_map(values: Tensor, flow_px: Tensor) -> Tensor:
    """Return a map [B,C,H,W] float moved along `flow_px` [B,2,H,W], bicubic, borders continued.

    `backward_warp` without its masks. Coordinates are scaled in another order, which differs in the last bit: the
    recurrent depth of every trained student went through this one, and it is what exported graphs hold.
    """
    height, width = values.shape[-2:]
    x = torch.arange(width, device=values.device, dtype=values.dtype) + flow_px[:, 0].to(values.dtype)
    y = torch.arange(height, device=values.device, dtype=values.dtype)[:, None] + flow_px[:, 1].to(values.dtype)
    grid = torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], dim=-1)
    return F.grid_sample(values, grid, mode="bicubic", padding_mode="border", align_corners=True)


def resize_maps(maps: Tensor, size: tuple[int, int], *, average: bool = False) -> Tensor:
    """Return maps [K,C,H,W] at `size` (height, width): bilinear, or with `average` the mean where they shrink."""
    if (maps.shape[-2], maps.shape[-1]) == size:
        return maps
    if average and size[0] <= maps.shape[-2] and size[1] <= maps.shape[-1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def resize_flow(flow: Tensor, size: tuple[int, int], *, average: bool = False) -> Tensor:
    """Return a flow [K,2,H,W] px at another size, in px of that size; see `resize_maps`."""
    height, width = flow.shape[-2:]
    x, y = resize_maps(flow, size, average=average).split(1, 1)
    return torch.cat([x * (size[1] / width), y * (size[0] / height)], 1)  # no constant is copied to the device


def chain_flow(before: Tensor, trust: Tensor, flow: Tensor, trusted: Tensor) -> tuple[Tensor, Tensor]:
    """Return flow and trust from this frame to earlier ones, out of those from the frame before.

    Args:
        before: [B,2·S,H,W] px, from the frame before to S earlier ones, on its pixels. trust: [B,S,H,W], 1 where it can
            be trusted, else 0.
        flow: [B,2,H,W] px, from this frame to the one before. trusted: [B,1,H,W] bool, where it can be trusted.

    Returns:
        flow [B,2·S,H,W] and trust [B,S,H,W] as they came, on the pixels of this frame; out of bounds there is no trust.
    """
    slots = trust.shape[1]
    chained = flow.repeat(1, slots, 1, 1) + warp_map(before, flow)
    apart = chained.unflatten(1, (slots, 2)).flatten(0, 1)
    inside = in_bounds_mask(apart).view_as(trust)
    position = (pixel_grid(flow, flow.dtype) + flow).permute(0, 2, 3, 1)
    return chained, (trusted & inside & (sample_px(trust, position) > 0.9)).to(trust.dtype)


def in_bounds_mask(flow: Tensor) -> Tensor:
    """Return [K,1,H,W] bool: p + flow(p) lies inside the frame, pixel centers included; False for NaN."""
    height, width = flow.shape[-2:]
    target = pixel_grid(flow, flow.dtype if flow.dtype == torch.float64 else torch.float32) + flow
    x, y = target[:, :1], target[:, 1:]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def consistency_mask(flow_ab: Tensor, flow_ba: Tensor) -> Tensor:
    """Return where going to b and back ends where it began: |F + w(B)|² < ALPHA (|F|² + |w(B)|²) + BETA.

    Args:
        flow_ab: F [K,2,H,W] px, a → b. flow_ba: B [K,2,H,W] px, b → a; w(B) is B sampled at p + F(p).

    Returns:
        [K,1,H,W] bool on the pixels of a; False also where F leaves the frame. Pixels hidden in b fail the
        test.

    Source: Sundaram et al., "Dense point trajectories" (ECCV 2010), equation 5.
    """
    flow_ab = flow_ab if flow_ab.dtype == torch.float64 else flow_ab.float()
    back, in_bounds = backward_warp(flow_ba.to(flow_ab.dtype), flow_ab)  # w(B) on the pixels of a
    error = (flow_ab + back).square().sum(dim=1, keepdim=True)
    motion = flow_ab.square().sum(dim=1, keepdim=True) + back.square().sum(dim=1, keepdim=True)
    return in_bounds & (error < ALPHA * motion + BETA)


def rgb_consistency_mask(source: Tensor, target: Tensor, flow: Tensor, max_change: float = 0.06) -> Tensor:
    """Return where the color found along the flow is the same: mean over channels |source − w(target)| <
    max_change.

    source, target: [K,3,H,W] in [0,1]; flow: source → target [K,2,H,W] px; returns [K,1,H,W] bool.
    """
    warped, in_bounds = backward_warp(target, flow)
    return in_bounds & ((source - warped).abs().mean(dim=1, keepdim=True) < max_change)


def trust_mask(
    source: Tensor, target: Tensor, flow_st: Tensor, flow_ts: Tensor, max_rgb_change: float = 0.06
) -> Tensor:
    """Return [K,1,H,W] bool on the pixels of source: in bounds, forward-backward consistent and of equal
    color.
    """
    color = rgb_consistency_mask(source, target, flow_st, max_rgb_change)
    return consistency_mask(flow_st, flow_ts) & color


def pixel_grid(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [1,2,H,W], the x and y px of every pixel of a map [...,H,W]."""
    height, width = like.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=like.device, dtype=dtype),
        torch.arange(width, device=like.device, dtype=dtype),
        indexing="ij",
    )
    return torch.stack([x, y])[None]
