"""Trajectories and their smoothing in tensor operations, on the depth's own device; all frames at once.

The same as `pixel_trajectories` and the line fits of `stabilize` do with OpenCV on a CPU. Pixels beside undefined ones
differ: OpenCV takes them for undefined where it reads such a one, even without weight; and OpenCV 4 rounds positions.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.data.labels.pixel_trajectories import FEATHER_PX, Floats

FRAMES_AT_ONCE = 32  # whose trajectories are in memory
DEFINED_SHARE = 1 - 1 / 64  # of what a value is interpolated from


class TensorTracks:
    """A clip's depth with the flow between its neighbors, as `ClipTracks`, on the device of its arguments.

    Args:
        depth: [N,H,W] float32, any unit; not finite where undefined.
        flow_fwd, flow_bwd: [N,2,H,W] float32 px. trusted_fwd, trusted_bwd: [N,H,W] bool.
    """

    def __init__(
        self, depth: Tensor, flow_fwd: Tensor, flow_bwd: Tensor, trusted_fwd: Tensor, trusted_bwd: Tensor
    ) -> None:
        self.depth = depth
        valid = torch.isfinite(depth)
        # Per direction of time [N,5,H,W]: depth, the flow (x, y), the trust in it, 0 to 1, and where depth is defined.
        self._maps = {
            1: _pack(depth, flow_fwd, trusted_fwd & valid),
            -1: _pack(depth, flow_bwd, trusted_bwd & valid),
        }
        self._sampled: dict[tuple[int, int], tuple[Floats, Floats]] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height and width in px."""
        num_frames, height, width = self.depth.shape
        return num_frames, height, width

    def every(self, step: int) -> Floats:
        """Return the depth of every n-th row and column."""
        values: Floats = self.depth[:, ::step, ::step].cpu().numpy()
        return values

    def largest(self) -> float:
        """Return the largest magnitude of the depth, 0 where none is defined."""
        return float(torch.where(torch.isfinite(self.depth), self.depth.abs(), 0.0).max())

    def rescale(self, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
        """Replace the depth of every frame t by scale[t] · depth + shift[t]."""
        factors = torch.from_numpy(np.stack([scale, shift]).astype(np.float32)).to(self.depth.device)
        self.depth = self.depth * factors[0, :, None, None] + factors[1, :, None, None]
        for maps in self._maps.values():
            maps[:, 0] = _or_zero(self.depth)
        self._sampled.clear()

    def follow(self, frame: int, radius: int, grid_step: int) -> tuple[Floats, Floats]:
        """Return what `ClipTracks.follow` does, of every n-th row and column; they come from the device together."""
        key = radius, grid_step
        if key not in self._sampled:
            parts = [self.follow_all(frames, radius, grid_step) for frames in self.blocks()]
            depth, trust = (torch.cat(maps).cpu().numpy() for maps in zip(*parts, strict=True))
            self._sampled[key] = depth, trust
        depth, trust = self._sampled[key]
        return depth[frame], trust[frame]

    def blocks(self) -> list[range]:
        """Return the frames in blocks that `follow_all` can hold."""
        num_frames = self.shape[0]
        return [range(start, min(start + FRAMES_AT_ONCE, num_frames)) for start in range(0, num_frames, FRAMES_AT_ONCE)]

    def follow_all(self, frames: range, radius: int, grid_step: int = 1) -> tuple[Tensor, Tensor]:
        """Follow the pixels of n frames to the frames around each, see `ClipTracks.follow`; both [n,2·radius+1,h,w]."""
        num_frames, height, width = self.shape
        device = self.depth.device
        rows = torch.arange(grid_step // 2, height, grid_step, device=device)
        columns = torch.arange(grid_step // 2, width, grid_step, device=device)
        here = slice(frames.start, frames.stop), slice(None), rows[:, None], columns
        depth = torch.zeros(len(frames), 2 * radius + 1, len(rows), len(columns), device=device)
        trust = torch.zeros_like(depth)
        depth[:, radius], trust[:, radius] = self._maps[1][here][:, [0, 4]].unbind(1)
        for direction, maps in self._maps.items():
            found, reached = maps[here], torch.ones_like(depth[:, radius])  # [n,5,h,w], [n,h,w]
            x, y = columns.float().expand_as(reached), rows.float()[:, None].expand_as(reached)
            for distance in range(1, radius + 1):
                # Frames whose trajectory leaves the clip are the last ones forwards, and backwards the first.
                left = range(
                    max(frames.start, -direction * distance), min(frames.stop, num_frames - direction * distance)
                )
                if not left:
                    break
                kept = slice(0, len(left)) if direction > 0 else slice(len(reached) - len(left), None)
                found, reached = found[kept], reached[kept]
                x, y = x[kept] + found[:, 1], y[kept] + found[:, 2]
                reached = reached * found[:, 3]
                found = _sample(maps[left.start + direction * distance : left.stop + direction * distance], x, y)
                place = slice(left.start - frames.start, left.stop - frames.start), radius + direction * distance
                defined = found[:, 4] > DEFINED_SHARE
                depth[place] = torch.where(defined, found[:, 0] / found[:, 4], 0.0)
                trust[place] = torch.where(defined, reached, 0.0)
        return depth, trust


def smooth_tracks(
    tracks: TensorTracks,
    radius: int,
    sigma: float,
    outlier: float,
    *,
    slope_ridge: float,
    enough: float,
    fill_px: float,
) -> Tensor:
    """Return [N,H,W], every value moved to the robust local linear fit along its trajectory, see `stabilize`."""
    smooth = []
    for frames in tracks.blocks():
        depth, trust = tracks.follow_all(frames, radius)
        correction, confidence = _local_linear_fit(depth, trust, sigma, outlier, slope_ridge, enough)
        spread = _blur(torch.stack([correction * confidence, confidence], 1), fill_px)
        filled = confidence * correction + (1 - confidence) * spread[:, 0] / (spread[:, 1] + 0.05)
        smooth.append(tracks.depth[frames.start : frames.stop] + filled)
    return torch.cat(smooth)


def _local_linear_fit(
    depth: Tensor, trust: Tensor, sigma: float, outlier: float, ridge: float, enough: float
) -> tuple[Tensor, Tensor]:
    radius = depth.shape[1] // 2
    time = torch.arange(-radius, radius + 1, dtype=torch.float32, device=depth.device)[:, None, None]
    prior_weight = torch.exp(-0.5 * (time / sigma) ** 2) * trust  # [n,2r+1,H,W]
    deviation = depth - depth[:, radius : radius + 1]
    weight = prior_weight / (1 + (deviation / (2**0.5 * outlier)) ** 2) ** 2
    value, slope = _weighted_line(deviation, weight, time, ridge)
    weight = prior_weight / (1 + ((deviation - value[:, None] - slope[:, None] * time) / outlier) ** 2) ** 2
    value, _ = _weighted_line(deviation, weight, time, ridge)
    return value, ((weight.sum(1) - weight[:, radius]) / enough).clamp(0, 1)


def _weighted_line(y: Tensor, weight: Tensor, time: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    w0, w1, w2 = weight.sum(1), (weight * time).sum(1), (weight * time * time).sum(1) + ridge
    y0, y1 = (weight * y).sum(1), (weight * y * time).sum(1)
    determinant = (w0 * w2 - w1 * w1).clamp(min=1e-9)
    return (w2 * y0 - w1 * y1) / determinant, (w0 * y1 - w1 * y0) / determinant


def _pack(depth: Tensor, flow: Tensor, trusted: Tensor) -> Tensor:
    finite = torch.isfinite(flow).all(1)
    usable = (trusted & finite).float()
    border = FEATHER_PX // 2
    padded = F.pad(usable[:, None], (border,) * 4, mode="replicate")
    share = F.avg_pool2d(padded, FEATHER_PX, stride=1)[:, 0]
    feathered = (2 * share - 1).clamp(0, 1) * usable
    flow = torch.where(finite[:, None], flow, 0.0)
    return torch.cat([_or_zero(depth)[:, None], flow, feathered[:, None], depth.isfinite()[:, None].float()], 1)


def _or_zero(depth: Tensor) -> Tensor:
    return torch.where(depth.isfinite(), depth, 0.0)


def _sample(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return maps [n,5,H,W] at x, y px [n,h,w], bilinear, borders continued."""
    height, width = maps.shape[-2:]
    grid = torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], -1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _blur(maps: Tensor, sigma: float) -> Tensor:
    """Return maps [n,C,H,W] blurred by a Gaussian, to four standard deviations, borders continued; as OpenCV."""
    radius = round(sigma * 4)
    offset = torch.arange(-radius, radius + 1, dtype=torch.float32, device=maps.device)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    flat = maps.flatten(0, 1)[:, None]
    rows = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="replicate"), kernel)
    columns = F.conv2d(F.pad(rows, (0, 0, radius, radius), mode="replicate"), kernel.transpose(-1, -2))
    return columns[:, 0].unflatten(0, maps.shape[:2])
