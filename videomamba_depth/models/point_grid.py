"""The grid of points that parallax is worked out on, and means over it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.utils.flow_utils import sample_px

CELLS = 28  # grid points along the short side
COARSE = 2  # the camera is found from every n-th row and column
BLUR_CELLS = 1.5
SURFACE_CELLS, SURFACE_LOG = 3.0, 0.1  # standard deviations of the mean along surfaces: of place, of log inverse depth


class PointGrid(NamedTuple):
    """Points at the centers of square cells of pictures of `size` = (h, w) px, P = gh·gw in all.

    rows, columns: [gh] and [gw], px.
    """

    rows: Tensor
    columns: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int], device: torch.device | str) -> PointGrid:
        """Return the grid of pictures of that size."""
        step = max(1, round(min(size) / CELLS))
        rows, columns = (torch.arange(step // 2, length, step, device=device) for length in size)
        return cls(rows, columns, size)

    @property
    def shape(self) -> tuple[int, int]:
        """(gh, gw)."""
        return len(self.rows), len(self.columns)

    def points_px(self, like: Tensor) -> Tensor:
        """Return the points (x, y), [2,P]."""
        y, x = torch.meshgrid(self.rows.to(like.dtype), self.columns.to(like.dtype), indexing="ij")
        return torch.stack([x.flatten(), y.flatten()])

    def coarse(self) -> Tensor:
        """Return which of the P points lie on every `COARSE`-th row and column."""
        rows, columns = (torch.arange(COARSE // 2, n, COARSE, device=self.rows.device) for n in self.shape)
        return (rows[:, None] * self.shape[1] + columns).flatten()

    def at(self, maps: Tensor) -> Tensor:
        """Return maps [...,h,w] at the points, [...,P]."""
        return maps[..., self.rows[:, None], self.columns].flatten(-2)

    def around(self, maps: Tensor) -> Tensor:
        """Return the mean of maps [B,1,h,w] over 3 × 3 px around the points, [B,P]."""
        return self.at(F.avg_pool2d(maps, 3, 1, 1, count_include_pad=False))[:, 0]

    def maps(self, values: Tensor) -> Tensor:
        """Return values [B,P] as [B,1,gh,gw], or [B,C,P] as [B,C,gh,gw]."""
        values = values[:, None] if values.ndim == 2 else values
        return values.unflatten(-1, self.shape)

    def sample(self, values: Tensor, points_px: Tensor) -> Tensor:
        """Return values [B,1,gh,gw] at points (x, y) px [B,h',w',2], bilinear, as [B,1,h',w']."""
        step = self.rows[1] - self.rows[0]
        return sample_px(values, (points_px - self.rows[0]) / step)

    def spread(self, values: Tensor, like: Tensor) -> Tensor:
        """Return values [B,1,gh,gw] at every pixel of `like` [B,1,H,W], which shows the same at another size."""
        y, x = (
            (torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) * (m / n) - 0.5
            for n, m in zip(like.shape[-2:], self.size, strict=True)
        )
        y, x = torch.meshgrid(y, x, indexing="ij")
        points = torch.stack([x, y], -1)
        return self.sample(values, points.expand(len(values), *points.shape))


def blur(values: Tensor) -> Tensor:
    """Return a Gaussian mean over the grid of [B,1,gh,gw], borders continued."""
    radius = math.ceil(2 * BLUR_CELLS)
    kernel = _gaussian(radius, BLUR_CELLS, values)
    kernel = kernel / kernel.sum()
    padded = F.pad(values, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def along_surfaces(values: Tensor, inv_depth: Tensor) -> Tensor:
    """Return the mean of [B,1,gh,gw] over near points of about the same inverse depth [B,1,gh,gw].

    A bilateral mean (Tomasi and Manduchi, 1998) along rows, then along columns (Pham and van Vliet, 2005): what
    parallax says differs more from cell to cell than the scene does, which shows in the error of gradients.
    """
    log_depth, radius = inv_depth.log(), math.ceil(2 * SURFACE_CELLS)
    near = _gaussian(radius, SURFACE_CELLS, values)
    for dim, border in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        others, depths = (
            F.pad(maps, border, mode="replicate").unfold(dim, len(near), 1) for maps in (values, log_depth)
        )
        weight = near * (-0.5 * ((depths - log_depth[..., None]) / SURFACE_LOG).square()).exp()
        values = (weight * others).sum(-1) / weight.sum(-1)
    return values


def _gaussian(radius: int, deviation: float, like: Tensor) -> Tensor:
    offsets = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    return (-0.5 * (offsets / deviation).square()).exp()
