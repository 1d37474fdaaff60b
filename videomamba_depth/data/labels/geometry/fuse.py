"""From the grid to every pixel, within the edges of the depth that is corrected, and over the frames around."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.data.labels.geometry.pairs import Grid
from videomamba_depth.data.labels.geometry.scene import MIN_DEPTH_RATIO, Poses, Scene, transform
from videomamba_depth.utils.cameras import rays
from videomamba_depth.utils.flow_utils import pixel_grid, sample_px

RADIUS = 3  # grid cells to either side that a pixel looks at
SIGMA_CELLS = 1.5
SIGMA_LOG = 0.15  # difference of log inverse depth at which a grid point counts 61 %
ENOUGH = 0.2  # confidence that is added to what a pixel sees, so that little of it means little correction
OFFSETS = tuple(s * o for o in (1, 2, 3, 4, 6, 8, 12, 16) for s in (1, -1))  # frames
SIGMA_FRAMES = 10.0
AGREEMENT = 0.3  # difference of log inverse depth at which another frame counts a quarter


def spread_over_pixels(correction: Tensor, confidence: Tensor, guide: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the correction [N,H,W] of every pixel and the confidence in it, by a joint bilateral mean over the grid.

    Σ w c x / (Σ w c + ε Σ w) with w Gaussian in distance and in the difference of the guide. Source: Kopf et al.,
    "Joint bilateral upsampling" (SIGGRAPH 2007), with confidences.

    Args:
        correction, confidence: [N,P], the latter in 0 to 1. guide: [N,H,W], log inverse depth.
    """
    num_frames = len(correction)
    maps = torch.stack([correction * confidence, confidence, grid.sample(guide)], 1).unflatten(-1, grid.shape)
    maps = F.pad(maps, (RADIUS,) * 4, mode="replicate")
    rows, y_off = _nearest(grid.height, grid.step, grid.shape[0], guide)
    columns, x_off = _nearest(grid.width, grid.step, grid.shape[1], guide)
    total = guide.new_zeros(num_frames, 3, grid.height, grid.width)
    for dy in range(-RADIUS, RADIUS + 1):
        for dx in range(-RADIUS, RADIUS + 1):
            shifted = maps[:, :, (rows + dy + RADIUS)[:, None], (columns + dx + RADIUS)[None]]
            distance = (dy - y_off).square()[:, None] + (dx - x_off).square()[None]
            log_weight = -0.5 * (distance / SIGMA_CELLS**2 + ((shifted[:, 2] - guide) / SIGMA_LOG).square())
            weight = log_weight.exp()
            total[:, 0] += weight * shifted[:, 0]
            total[:, 1] += weight * shifted[:, 1]
            total[:, 2] += weight
    known = total[:, 1] / total[:, 2].clamp(min=1e-6)
    return total[:, 0] / (total[:, 1] + ENOUGH * total[:, 2]).clamp(min=1e-6), known


def _nearest(size: int, step: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return for every pixel of an axis the nearest grid index, and where it lies from shifted in cells."""
    position = (torch.arange(size, device=like.device, dtype=like.dtype) - step // 2) / step
    nearest = position.round().clamp(0, count - 1)
    return nearest.long(), position - nearest


def fuse(inv_depth: Tensor, confidence: Tensor, scene: Scene, center_px: Tensor) -> Tensor:
    """Return log of the fused over the given inverse depth [N,H,W].

    Every pixel is carried into the frames around; what is found there is carried back, and averaged in the logarithm
    with weights of confidence, distance in time and agreement. The weight of the pixel itself is 1.

    Args:
        inv_depth: [N,H,W] > 0. confidence: [N,H,W] in 0 to 1, in the geometry of the pixel.
    """
    num_frames, height, width = inv_depth.shape
    focal = scene.log_focal.exp()
    ray = rays(pixel_grid(inv_depth, inv_depth.dtype)[0].flatten(1), focal, center_px)
    log_depth = inv_depth.log()
    total, weights = torch.zeros_like(inv_depth), torch.ones_like(inv_depth)
    frames = torch.arange(num_frames, device=inv_depth.device)
    for offset in OFFSETS:
        if abs(offset) >= num_frames:
            continue
        here = frames[max(0, -offset) : num_frames - max(0, offset)]
        other = here + offset
        change = scene.poses.relative(here, other)
        px, py, pz = transform(ray, inv_depth[here].flatten(1), change)  # each [K,HW] for K pairs of frames
        inverse = 1 / pz.clamp(min=MIN_DEPTH_RATIO)
        u, v = focal * px * inverse + center_px[0], focal * py * inverse + center_px[1]
        inside = (pz > MIN_DEPTH_RATIO) & (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
        maps = torch.stack([inv_depth[other], confidence[other]], 1)
        points = torch.stack([u, v], -1).unflatten(1, (height, width))
        seen, known = sample_px(maps, points).flatten(2).unbind(1)  # each [K,HW]
        back = Poses(change.rotation.mT, -(change.rotation.mT @ change.translation[..., None])[..., 0])
        # Depth in the first frame of the point that the other frame has there: third row of R⁻¹ X + t⁻¹ D.
        xj, yj = (u - center_px[0]) / focal, (v - center_px[1]) / focal
        row, shift = back.rotation[:, 2], back.translation[:, 2]
        depth = row[:, 0, None] * xj + row[:, 1, None] * yj + row[:, 2, None] + seen * shift[:, None]
        inside &= depth > MIN_DEPTH_RATIO
        found = (seen / depth.clamp(min=MIN_DEPTH_RATIO)).clamp(min=1e-6).log().view_as(inv_depth[here])
        difference = found - log_depth[here]
        # Both ends must be known; another frame that contradicts this one is a hidden or a moving point.
        weight = inside.view_as(difference) * known.view_as(difference) * confidence[here]
        weight = weight * torch.exp(difference.new_tensor(-0.5 * (offset / SIGMA_FRAMES) ** 2))
        weight = weight / (1 + (difference / AGREEMENT).square()).square()
        total[here] += weight * difference
        weights[here] += weight
    return total / weights
