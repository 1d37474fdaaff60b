"""Flow between the frames of a clip at growing distances, each refined from the chained flow of half the distance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from videomamba_depth.flow.estimators import FlowEstimator, both_ways
from videomamba_depth.utils.flow_utils import ALPHA, BETA, backward_warp, sample_px

DISTANCES = (1, 2, 4, 8, 16)  # frames
MAX_RGB_CHANGE = 0.1  # mean over channels; wider than between neighbors, since light and exposure drift


class Grid(NamedTuple):
    """Every n-th pixel of an H×W frame: rows [gh] and columns [gw], px."""

    rows: Tensor
    columns: Tensor
    step: int
    height: int
    width: int

    @staticmethod
    def of(height: int, width: int, step: int, device: torch.device) -> Grid:
        """Return the grid whose cells of step × step px are centered on its points."""
        rows = torch.arange(step // 2, height, step, device=device)
        columns = torch.arange(step // 2, width, step, device=device)
        return Grid(rows, columns, step, height, width)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)

    def points(self, dtype: torch.dtype) -> Tensor:
        """Return x and y of the P = gh·gw points, [2,P] px."""
        y, x = torch.meshgrid(self.rows.to(dtype), self.columns.to(dtype), indexing="ij")
        return torch.stack([x.flatten(), y.flatten()])

    def sample(self, maps: Tensor) -> Tensor:
        """Return maps [...,H,W] at the points, [...,P]."""
        return maps[..., self.rows[:, None], self.columns].flatten(-2)


class FlowPairs(NamedTuple):
    """Where the P grid points of N frames are in S other frames each.

    offsets: [S] frames, ± each distance. target_px: [N,S,2,P]. trust: [N,S,P] in 0 to 1; 0 beyond the clip's ends.
    """

    offsets: tuple[int, ...]
    target_px: Tensor
    trust: Tensor

    @property
    def other(self) -> Tensor:
        """Return the index of the other frame [N,S], held inside the clip."""
        num_frames = len(self.trust)
        offsets = torch.tensor(self.offsets, device=self.trust.device)
        return (torch.arange(num_frames, device=self.trust.device)[:, None] + offsets).clamp(0, num_frames - 1)


def chained_flow_pairs(
    clip: Tensor, flow: FlowEstimator, grid: Grid, dtype: torch.dtype, distances: tuple[int, ...] = DISTANCES
) -> FlowPairs:
    """Estimate flow both ways between all frames 1, 2, 4, … apart and sample it on a grid.

    Beyond the first distance, the flow over twice the distance starts as the chain of two flows: the other frame is
    warped by it, and the estimator is asked for what remains. So large motion stays within its reach, and errors of the
    chain do not add up.

    Args:
        clip: [N,3,H,W] RGB in [0,1]. distances: powers of two from 1 on; those of N frames or more are left out.
    """
    num_frames = len(clip)
    distances = tuple(k for k in distances if k < num_frames)
    points = grid.points(dtype)
    offsets = [o for k in distances for o in (k, -k)]
    target = points.expand(num_frames, len(offsets), *points.shape).clone()
    trust = torch.zeros(num_frames, len(offsets), points.shape[1], dtype=dtype, device=clip.device)
    forth = back = clip.new_zeros(0)
    for i, distance in enumerate(distances):
        early, late = clip[: num_frames - distance], clip[distance:]
        if distance == 1:
            forth, back = both_ways(flow, early, late)
        else:
            half, pairs = distance // 2, num_frames - distance
            # forth[t] is t → t + half; back[t] is t + half → t.
            forth, back = (
                _refined(flow, early, late, _chain(forth[:pairs], forth[half:])),
                _refined(flow, late, early, _chain(back[half:], back[:pairs])),
            )
        for slot, frames, ab, ba, a, b in (
            (2 * i, slice(0, num_frames - distance), forth, back, early, late),
            (2 * i + 1, slice(distance, num_frames), back, forth, late, early),
        ):
            moved = grid.sample(ab)
            target[frames, slot] = points + moved.to(dtype)
            trust[frames, slot] = _trust(grid, a, b, moved, ba).to(dtype)
    return FlowPairs(tuple(offsets), target, trust)


def _chain(first: Tensor, second: Tensor) -> Tensor:
    """Return the flow [K,2,H,W] of `first`, then `second`."""
    return first + backward_warp(second, first)[0]


def _refined(flow: FlowEstimator, source: Tensor, target: Tensor, start: Tensor) -> Tensor:
    remaining = flow(source, backward_warp(target, start)[0])
    return remaining + backward_warp(start, remaining)[0]


def _trust(grid: Grid, source: Tensor, target: Tensor, moved: Tensor, back: Tensor) -> Tensor:
    """Return [K,P] bool: consistent both ways, and of the same color but for one factor per pair (exposure).

    moved: [K,2,P] px, flow at the points. back: [K,2,H,W] px, from the target to the source. See `trust_mask`.
    """
    points = grid.points(moved.dtype) + moved
    x, y = points.unbind(1)
    found = sample_px(torch.cat([back, target], 1), points.mT[:, None])[:, :, 0]  # [K,5,P]
    returned, color = found[:, :2], found[:, 2:]
    length = moved.square().sum(1) + returned.square().sum(1)
    consistent = (moved + returned).square().sum(1) < ALPHA * length + BETA
    consistent &= (x >= 0) & (x <= grid.width - 1) & (y >= 0) & (y <= grid.height - 1)
    own = grid.sample(source)
    ratio = ((own + 0.05).log() - (color + 0.05).log()).mean(1)
    gain = torch.where(consistent, ratio, torch.nan).nanmedian(1).values.nan_to_num(0.0).exp().view(-1, 1, 1)
    return consistent & ((own - ((color + 0.05) * gain - 0.05)).abs().mean(1) < MAX_RGB_CHANGE)
