"""Carry a correction from the grid to every pixel, without letting it cross the edges of the depth that it corrects."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.data.labels.geometry.pairs import Grid

RADIUS = 3  # grid cells to either side that a pixel looks at
SIGMA_CELLS = 1.5
SIGMA_LOG = 0.15  # difference of log inverse depth at which a grid point counts 61 %
ENOUGH = 0.2  # confidence that is added to what a pixel sees, so that little of it means little correction


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
