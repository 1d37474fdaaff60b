"""The metrics of fresh worlds, row after row: what belongs to the world is worked out once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from videomamba_depth.evaluation.metrics import (
    MIN_DISPARITY,
    aligned_disparity,
    edge_ratio,
    is_flat,
    lag_frames,
    scale_jitter_and_drift,
    valid_ground_truth,
)
from videomamba_depth.evaluation.rows import FAST_MIN_PX, FAST_PERCENTILE
from videomamba_depth.utils.metrics import clip_scale_and_shift

if TYPE_CHECKING:  # how worlds are kept does not decide their scores
    from videomamba_depth.evaluation.worlds import World

CHUNK_FRAMES = 64


class Judge:
    """Judge rows of relative inverse depth on one world; every number is that of `row_metrics`, to rounding.

    But for `lag/true`, by how many frames a row follows the ground truth, which has no holes here. `lag` is against
    the teacher, whose changes are mostly flicker: it says how much is averaged, `lag/true` what that costs.

    Args:
        world: see `World`. teacher: [F,H,W] the framewise teacher's depth, the reference of the guards.
        max_depth_m: ground truth beyond it does not count.
    """

    def __init__(self, world: World, teacher: np.ndarray, max_depth_m: float) -> None:
        self.gt_m = np.asarray(world.depth_m)
        self.valid = valid_ground_truth(self.gt_m, None, max_depth_m)[:]
        self.max_depth_m = max_depth_m
        self.inverse = (1.0 / (self.gt_m.astype(np.float64) + 1e-8)).astype(np.float32)
        self.teacher = np.asarray(teacher)
        self.fast = self.valid & _fast(np.asarray(world.speed_px))
        self.gradient = _TrueGradient(world, self.valid)
        self.reference = self._align(self.teacher, self.valid)

    def scores(self, depth: np.ndarray) -> dict[str, float]:
        """Return {metric: value} of a row [F,H,W]; NaN where a metric is not defined, {"finite": 0} for a bad row.

        Plain ratios, not ×100; `lag` in frames, `sDrift` per 100 frames.
        """
        if not np.isfinite(depth).all():
            return {"finite": 0.0}
        disparity = self._align(depth, self.valid)
        row = {
            "tge": self.gradient.error(disparity),
            "abs_rel/video": self._abs_rel(disparity, self.valid),
            "abs_rel/first_frame": self._abs_rel(self._align(depth, self.valid, slice(0, 1)), self.valid),
            "abs_rel/fast_pixels": self._abs_rel(disparity, self.fast),
        }
        frames = [
            self._abs_rel(self._align(depth[t : t + 1], self.valid[t : t + 1], gt=self.inverse[t : t + 1]), None, t)
            for t in range(len(depth))
        ]
        seen = [error for error in frames if math.isfinite(error)]
        row["abs_rel/per_frame"] = float(np.mean(seen)) if seen else math.nan
        row["abs_rel/single_image"] = frames[0]
        if is_flat(depth):  # a constant wins these; it gets no score
            return row | dict.fromkeys(("edge_ratio", "lag", "lag/true", "sDrift", "sJit"), math.nan)
        row["edge_ratio"] = edge_ratio(disparity, self.reference).value
        row["lag"] = lag_frames(disparity, self.reference).value
        row["lag/true"] = lag_frames(
            np.where(self.valid, disparity, 0.0), np.where(self.valid, self.inverse, 0.0)
        ).value
        drift = scale_jitter_and_drift(depth, self.teacher)
        return row | {name: drift[name].value for name in ("sDrift", "sJit")}

    def _align(
        self, depth: np.ndarray, valid: np.ndarray, fitted: slice = slice(None), gt: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the row in 1/m, by one affine fitted on the frames `fitted`."""
        target = self.inverse if gt is None else gt
        clipped = np.maximum(depth, MIN_DISPARITY)
        scale, shift = clip_scale_and_shift(clipped[fitted], target[fitted], valid[fitted])
        return aligned_disparity(depth, scale, shift).astype(np.float32)

    def _abs_rel(self, disparity: np.ndarray, mask: np.ndarray | None, first: int = 0) -> float:
        """Return the mean over pixels, then over frames, of |d − gt| / gt for frames `first` …"""
        frames = slice(first, first + len(disparity))
        counted = self.valid[frames] if mask is None else mask
        gt = self.gt_m[frames]
        depth_m = np.clip(1.0 / disparity, 1e-3, self.max_depth_m)
        error = np.where(counted, np.abs(depth_m - gt) / gt, 0.0).sum(axis=(1, 2), dtype=np.float64)
        count = counted.sum(axis=(1, 2))
        return float(np.mean(error[count > 0] / count[count > 0])) if count.any() else math.nan


class _TrueGradient:
    """The change over time that the world really has, along its exact flow, and how far a row is from it: TGE."""

    def __init__(self, world: World, valid: np.ndarray, min_coverage: float = 0.1) -> None:
        truth = np.where(valid, 1.0 / np.maximum(np.asarray(world.depth_m), 1e-3), 0.0).astype(np.float32)
        low, high = np.percentile(truth[valid], [2, 98]) if valid.any() else (0.0, 0.0)
        self.range = float(high - low)
        self.grid, in_bounds = _sampling_grid(np.asarray(world.flow_fwd)[:-1])
        ends_valid = self._next(valid.astype(np.float32)) > 0.999
        self.seen = np.asarray(world.visible_fwd)[:-1] & valid[:-1] & in_bounds & ends_valid
        self.change = self._next(truth) - truth[:-1]
        share = self.seen.mean(axis=(1, 2))
        self.usable = share >= min_coverage

    def error(self, disparity: np.ndarray) -> float:
        """Return TGE of an aligned row [F,H,W] in 1/m, see `temporal_gradient_error`."""
        if not self.range > 0 or not self.usable.any():
            return math.nan
        wrong = np.abs(self._next(disparity) - disparity[:-1] - self.change)
        pairs = np.where(self.seen, wrong, 0.0).sum(axis=(1, 2), dtype=np.float64)[self.usable]
        return float(np.mean(pairs / self.seen.sum(axis=(1, 2))[self.usable])) / self.range

    def _next(self, values: np.ndarray) -> np.ndarray:
        """Return [F−1,H,W]: what frame t+1 has where the pixels of frame t have gone."""
        following = torch.from_numpy(np.ascontiguousarray(values[1:]))[:, None]
        chunks = zip(following.split(CHUNK_FRAMES), self.grid.split(CHUNK_FRAMES), strict=True)
        sampled = [F.grid_sample(x, g, padding_mode="border", align_corners=True) for x, g in chunks]
        return torch.cat(sampled)[:, 0].numpy()


def _sampling_grid(flow: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Return where flow [K,2,H,W] px points, for `grid_sample` [K,H,W,2], and whether that is in the frame."""
    height, width = flow.shape[-2:]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = x + flow[:, 0], y + flow[:, 1]
    in_bounds = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
    grid = np.stack([2 * u / (width - 1) - 1, 2 * v / (height - 1) - 1], axis=-1)
    return torch.from_numpy(grid), in_bounds


def _fast(speed_px: np.ndarray) -> np.ndarray:
    """Return [F,H,W] bool: the fastest tenth of the clip's pixels, at least 1 px per frame."""
    limit = float(np.percentile(speed_px[1:], FAST_PERCENTILE)) if len(speed_px) > 1 else 0.0
    return speed_px > max(limit, FAST_MIN_PX)
