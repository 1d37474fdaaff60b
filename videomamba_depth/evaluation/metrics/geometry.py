"""Stability of depth that is measured with camera poses or with ground truth: TAE, TAEz, TGE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from videomamba_depth.evaluation.metrics.percentiles import percentiles
from videomamba_depth.evaluation.metrics.score import Score, as_frames, as_mask, is_flat, mean_score, undefined
from videomamba_depth.flow.clip_motion import warp_frame
from videomamba_depth.flow.frame_view import Frames, FrameView, mapped, on_disk, recent, remembered
from videomamba_depth.utils.flow_utils import backward_warp

MIN_Z_M = 1e-6
MIN_DETERMINANT = 1e-6
"""Of a pose; that of a rigid one is 1."""
NO_POSE = "no two frames in a row have a finite pose"


def usable_poses(camera_to_world: np.ndarray) -> np.ndarray:
    """Return [F] bool: where a pose [F,4,4] is finite and can be inverted; trackers write NaN or −inf when lost."""
    finite = np.isfinite(camera_to_world).all(axis=(1, 2))
    return finite & (np.abs(np.linalg.det(np.where(finite[:, None, None], camera_to_world, 0.0))) > MIN_DETERMINANT)


def tae(depth_m: Any, intrinsics: np.ndarray, camera_to_world: np.ndarray, valid: Any = None) -> Score:
    """Return the temporal alignment error ×100 exactly as published (Video Depth Anything,
    benchmark/eval/eval_tae).

    Every pixel of frame i is lifted with its depth, moved into frame i+1 and written to the rounded pixel,
    the last writer winning; e = mean |d_{i+1} − z| / d_{i+1} over pixels hit; both directions; TAE = 100 · Σ
    e / (2 (F − 1)). Pairs of which a pose is not finite are left out of sum and count, unlike there.

    Args:
        depth_m: [F,H,W] aligned prediction, m. intrinsics: [3,3] or [F,3,3], px. camera_to_world: [F,4,4], m.
        valid: [F,H,W] bool or None, the mask of target pixels.

    Returns:
        Score; coverage = share of pairs whose poses are finite. NaN for a single frame or without such a pair.

    Known weaknesses, kept here for comparison and mended in `tae_z`: no z-buffer, hidden points are compared
    with what hides them, and a pair without any overlap counts as a perfect 0.
    """
    depth, masks, k, poses = _check_cameras(depth_m, intrinsics, camera_to_world, valid)
    pairs = _both_directions(usable_poses(poses))
    if not pairs:
        return undefined("a single frame" if len(depth) < 2 else NO_POSE)
    total = 0.0
    for source, target in pairs:
        rows, columns, z = _project(depth[source], k[min(source, target)], poses[source], poses[target])
        target_depth = depth[target]
        hit = np.zeros_like(target_depth)
        hit.reshape(-1)[rows * hit.shape[1] + columns] = z
        seen = (hit > 0) & (target_depth > 0) & masks[target]
        if seen.any():
            total += float(np.mean(np.abs(target_depth[seen] - hit[seen]) / target_depth[seen]))
    return Score(100.0 * total / len(pairs), len(pairs) / (2 * (len(depth) - 1)))


def tae_z(
    depth_m: Any,
    intrinsics: np.ndarray,
    camera_to_world: np.ndarray,
    valid: Any = None,
    *,
    gt_depth_m: Any = None,
    max_gt_disagreement: float = 0.05,
    min_coverage: float = 0.1,
) -> Score:
    """Return the temporal alignment error ×100 with its faults mended.

    As `tae`, but points behind the camera are dropped, the nearest point wins a pixel (z-buffer), points that
    the ground truth says are hidden in the target are dropped, and a pair with too little overlap is skipped, as is
    one of which a pose is not finite.

    Args:
        depth_m, intrinsics, camera_to_world: as in `tae`. valid: [F,H,W] bool, for source and target pixels.
        gt_depth_m: [F,H,W] m: a source pixel is co-visible when its true depth, moved, agrees with the
            target's true depth to `max_gt_disagreement` (relative). Without it only the z-buffer hides
            points.
        min_coverage: share of the target's valid pixels that must be hit.

    Returns:
        Score: mean over directed pairs; coverage = mean share of target pixels hit over *all* pairs. NaN for a flat
        prediction, which a camera that hardly moves would call better than the truth.
    """
    depth, masks, k, poses = _check_cameras(depth_m, intrinsics, camera_to_world, valid)
    if is_flat(depth):
        return undefined("the prediction is flat")
    pairs, errors, truth = _both_directions(usable_poses(poses)), [], None
    if gt_depth_m is not None and pairs:
        gt = as_frames("gt_depth_m", gt_depth_m)
        truth = _covisible_pairs(gt, intrinsics, camera_to_world, max_gt_disagreement)
    coverage = [0.0] * (2 * (len(depth) - 1) - len(pairs))
    for number, (source, target) in enumerate(pairs):
        covisible = masks[source] if truth is None else masks[source] & truth[number]
        camera = k[min(source, target)]
        rows, columns, z = _project(depth[source], camera, poses[source], poses[target], keep=covisible)
        target_depth, counted = depth[target], masks[target]
        nearest = np.full(target_depth.shape, np.inf)
        np.minimum.at(nearest.reshape(-1), rows * nearest.shape[1] + columns, z)
        seen = np.isfinite(nearest) & (target_depth > 0) & counted
        coverage.append(float(seen.sum() / max(int(counted.sum()), 1)))
        if coverage[-1] >= min_coverage:
            errors.append(float(np.mean(np.abs(target_depth[seen] - nearest[seen]) / target_depth[seen])))
    result = mean_score(errors, coverage, "no pair of frames overlaps enough" if pairs else NO_POSE)
    return Score(100.0 * result.value, result.coverage, result.reason)


def temporal_gradient_error(
    disparity: Any,
    gt_disparity: Any,
    flow_fwd: Any,
    visible_fwd: Any,
    valid: Any = None,
    min_coverage: float = 0.1,
) -> Score:
    """Return TGE: mean |(d_{t+1}∘flow − d_t) − (y_{t+1}∘flow − y_t)| / range(y) on co-visible pixels (×1, not
    ×100).

    Args:
        disparity: [F,H,W] aligned prediction, 1/m. gt_disparity: [F,H,W] exact, 1/m.
        flow_fwd: [F,2,H,W] px, t → t+1. visible_fwd: [F,H,W] bool, pixel of t is seen in t+1.
        valid: [F,H,W] bool, where gt_disparity holds; both ends must be valid.
        min_coverage: pairs with a smaller share of usable pixels are skipped.

    Returns:
        Score, mean over pairs. range(y) is the 2nd to 98th percentile of the valid ground truth of the clip.
    """
    d, y = as_frames("disparity", disparity), as_frames("gt_disparity", gt_disparity)
    masks, visible = as_mask("valid", valid, y), as_mask("visible_fwd", visible_fwd, y)
    if not any(mask.any() for mask in masks):
        return undefined("no valid ground truth")
    low, high = _range(y, masks)
    if not high > low:
        return undefined("the ground truth is flat")
    changes, seen_pairs = _true_changes(y, masks, flow_fwd, visible)
    errors, coverage, d = [], [], recent(d)
    for t in range(len(d) - 1):
        seen = seen_pairs[t]
        coverage.append(float(seen.mean()))
        if coverage[-1] >= min_coverage:
            change = warp_frame(d[t + 1].astype(np.float64), flow_fwd[t]) - d[t]
            errors.append(float(np.mean(np.abs(change - changes[t])[seen]) / (high - low)))
    return mean_score(errors, coverage, "no pair of frames overlaps enough")


@remembered
def _range(y: Frames, masks: Frames) -> tuple[float, float]:
    low, high = percentiles(mapped(lambda frame, mask: frame[mask], y, masks), [2, 98])
    return low, high


@remembered
def _true_changes(y: Frames, masks: Frames, flow_fwd: Any, visible: Frames) -> Sequence[Frames]:
    """Return for every pair y_{t+1}∘flow − y_t, float64, and where both ends are valid and seen."""

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for t in range(len(y) - 1):
            ends_valid = masks[t + 1]
            ends = np.stack([np.where(ends_valid, y[t + 1], 0.0), ends_valid]).astype(np.float64)
            flow = torch.from_numpy(np.array(flow_fwd[t], np.float64))
            warped, in_bounds = backward_warp(torch.from_numpy(ends)[None], flow[None])
            next_y, next_valid = warped[0].numpy()
            yield next_y - y[t], visible[t] & masks[t] & in_bounds[0, 0].numpy() & (next_valid > 0.999)

    return on_disk(pairs()) or [np.empty((0, 1, 1)), np.empty((0, 1, 1), bool)]


def _check_cameras(
    depth_m: Any, intrinsics: np.ndarray, camera_to_world: np.ndarray, valid: Any
) -> tuple[Frames, Frames, np.ndarray, np.ndarray]:
    depth = recent(mapped(_float64, as_frames("depth_m", depth_m)))
    poses = np.asarray(camera_to_world, dtype=np.float64)
    if poses.shape != (len(depth), 4, 4):
        raise ValueError(f"camera_to_world must have shape [{len(depth)},4,4]; got {list(poses.shape)}")
    k = np.broadcast_to(np.asarray(intrinsics, dtype=np.float64), (len(depth), 3, 3))
    return depth, as_mask("valid", valid, depth), k, poses


def _float64(frame: np.ndarray) -> np.ndarray:
    return frame.astype(np.float64)


def _both_directions(usable: np.ndarray) -> list[tuple[int, int]]:
    """Return (source, target) of all neighbors that are both usable [F], in both directions."""
    neighbors = np.flatnonzero(usable[:-1] & usable[1:])
    return [pair for i in map(int, neighbors) for pair in ((i, i + 1), (i + 1, i))]


def _move(depth: np.ndarray, k: np.ndarray, pose_from: np.ndarray, pose_to: np.ndarray) -> tuple[np.ndarray, ...]:
    """Lift every pixel, move it into the other camera: column, row (float px) and z, each [H,W]."""
    height, width = depth.shape
    u, v = np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)[:, None]
    x, y = (u - k[0, 2]) / k[0, 0] * depth, (v - k[1, 2]) / k[1, 1] * depth
    move = np.linalg.inv(pose_to) @ pose_from
    moved = np.einsum("ij,jhw->ihw", move[:3, :3], np.stack([x, y, depth])) + move[:3, 3, None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        column = moved[0] / moved[2] * k[0, 0] + k[0, 2]
        row = moved[1] / moved[2] * k[1, 1] + k[1, 2]
    return column, row, moved[2]


def _project(
    depth: np.ndarray,
    k: np.ndarray,
    pose_from: np.ndarray,
    pose_to: np.ndarray,
    keep: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rounded rows, columns and z of the points that land in the frame, in raster order of the source.

    With `keep`, only those source pixels, and only points in front of the camera.
    """
    column, row, z = _move(depth, k, pose_from, pose_to)
    column, row = np.round(column), np.round(row)
    with np.errstate(invalid="ignore"):
        inside = (column >= 0) & (column < depth.shape[1]) & (row >= 0) & (row < depth.shape[0])
        if keep is not None:
            inside &= keep & (z > MIN_Z_M) & (depth > 0)
    return row[inside].astype(int), column[inside].astype(int), z[inside]


@remembered
def _covisible_pairs(
    gt_depth_m: Frames, intrinsics: np.ndarray, camera_to_world: np.ndarray, max_disagreement: float
) -> FrameView:
    """Return `_covisible` of every pair (source, target) of `_both_directions`."""
    gt, _, k, poses = _check_cameras(gt_depth_m, intrinsics, camera_to_world, None)
    pairs = _both_directions(usable_poses(poses))
    return on_disk([_covisible(gt[a], gt[b], k[min(a, b)], poses[a], poses[b], max_disagreement)] for a, b in pairs)[0]


def _covisible(
    gt_from: np.ndarray,
    gt_to: np.ndarray,
    k: np.ndarray,
    pose_from: np.ndarray,
    pose_to: np.ndarray,
    max_disagreement: float,
) -> np.ndarray:
    """Return [H,W] bool: the point seen in the source is the one that the target sees at that pixel."""
    column, row, z = _move(gt_from, k, pose_from, pose_to)
    with np.errstate(invalid="ignore"):
        inside = (gt_from > 0) & (z > MIN_Z_M)
        inside &= (np.round(column) >= 0) & (np.round(column) < gt_to.shape[1])
        inside &= (np.round(row) >= 0) & (np.round(row) < gt_to.shape[0])
    found = np.zeros_like(gt_from)
    found[inside] = gt_to[np.round(row[inside]).astype(int), np.round(column[inside]).astype(int)]
    return inside & (found > 0) & (np.abs(z - found) < max_disagreement * found)
