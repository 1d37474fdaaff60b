"""The metrics of one row: one depth video judged against ground truth, flow and the teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from videomamba_depth.evaluation.metrics import (
    MIN_DISPARITY,
    ClipMotion,
    Score,
    accuracy,
    aligned_disparity,
    alignment_per_frame,
    boundary_f1,
    edge_ratio,
    flicker2,
    is_flat,
    lag_frames,
    mean_accuracy,
    optical_flow_warping,
    positive_log,
    relative_temporal_consistency,
    scale_jitter_and_drift,
    static_variation,
    tae,
    tae_z,
    temporal_gradient_error,
    valid_ground_truth,
)
from videomamba_depth.evaluation.metrics.percentiles import median, percentiles
from videomamba_depth.flow.frame_view import Frames, FrameView, mapped
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.metrics import clip_scale_and_shift

FAST_PERCENTILE = 90.0
FAST_MIN_PX = 1.0


@dataclass(frozen=True)
class Scene:
    """What all rows of a clip are judged against; sizes and units as in `EvaluationClip`, at the evaluation
    size. All frames are read one by one.
    """

    rgb: Frames
    motion: ClipMotion
    depth_kind: DepthKind
    gt_depth_m: Frames | None = None
    valid: Frames | None = None
    max_depth_m: float = 10.0
    intrinsics: np.ndarray | None = None
    camera_to_world: np.ndarray | None = None
    exact_motion: bool = False


def row_metrics(depth: Frames, teacher: Frames, scene: Scene) -> dict[str, Score]:
    """Return every metric that the scene allows, for one row.

    Args:
        depth: [F,H,W] the row, of `scene.depth_kind`. teacher: [F,H,W] the framewise teacher, the reference
            of guards.

    Ratios and errors are plain numbers (not ×100), except `tae` and `tae_z`, which are ×100 as published.
    """
    if broken := _count_not_finite(depth):
        return {"finite": Score(0.0, 1.0, f"{broken} frames are not finite")}
    disparity = common_disparity(depth, teacher, scene)
    reference = common_disparity(teacher, teacher, scene)
    scores = {} if scene.gt_depth_m is None else _ground_truth_scores(depth, disparity, scene)
    scores |= _agreement(disparity, reference)
    scores |= _stability(disparity, scene)
    scores |= scale_jitter_and_drift(to_disparity(depth, scene.depth_kind), to_disparity(teacher, scene.depth_kind))
    scores["edge_ratio"] = edge_ratio(disparity, reference)
    scores["boundary_f1"] = boundary_f1(disparity, reference)
    scores["lag"] = lag_frames(disparity, reference)
    return scores


def row_flags(depth: Frames) -> list[str]:
    """Return warnings that must stand beside a row's numbers."""
    if _count_not_finite(depth):
        return ["not finite"]
    return ["flat"] if is_flat(depth) else []


def to_disparity(depth: Frames, depth_kind: DepthKind) -> Frames:
    """Return inverse depth: as it is when it already is one, 1/depth (1/m) for metric depth."""
    if depth_kind == DepthKind.RELATIVE:
        return depth
    return mapped(lambda frame: (1.0 / np.maximum(frame, MIN_DISPARITY)).astype(np.float32), depth)


def common_disparity(depth: Frames, teacher: Frames, scene: Scene) -> Frames:
    """Return a row's disparity in the clip's common units: ONE affine per clip, so that flicker and drift
    stay.

    Inverse depth is fitted to the ground truth (1/m) where there is one, else to the teacher's clip; metric
    depth is only inverted.
    """
    if scene.depth_kind == DepthKind.METRIC:
        return to_disparity(depth, scene.depth_kind)
    if scene.gt_depth_m is not None:
        valid = valid_ground_truth(scene.gt_depth_m, scene.valid, scene.max_depth_m)
        scale, shift = alignment_per_frame(depth, scene.gt_depth_m, valid)[0]
        if np.isfinite(scale):
            return mapped(lambda frame: aligned_disparity(frame, scale, shift).astype(np.float32), depth)
    to_teacher = clip_scale_and_shift(depth, teacher, mapped(_everywhere, depth))
    return mapped(lambda frame: (to_teacher[0] * frame + to_teacher[1]).astype(np.float32), depth)


def _ground_truth_scores(depth: Frames, disparity: Frames, scene: Scene) -> dict[str, Score]:
    gt = scene.gt_depth_m
    assert gt is not None
    valid = valid_ground_truth(gt, scene.valid, scene.max_depth_m)
    share = _share(valid)
    why = "" if share > 0.0 else "no valid ground truth"
    report = accuracy(depth, gt, scene.valid, depth_kind=scene.depth_kind, max_depth_m=scene.max_depth_m)
    scores = {
        f"{metric}/{alignment}": Score(value, share, why)
        for alignment, metrics in report.items()
        for metric, value in metrics.items()
    }
    if "video" in report:
        drift = report["video"]["abs_rel"] - report["per_frame"]["abs_rel"]
        scores["abs_rel/video_minus_per_frame"] = Score(drift, share, why)
    far = scene.max_depth_m
    depth_m = mapped(lambda frame: np.clip(1.0 / np.maximum(frame, 1.0 / far), 1e-3, far), disparity)
    fast = mapped(np.logical_and, valid, _fast_pixels(scene.motion))
    fast_share = _share(fast)
    none_fast = "" if fast_share > 0.0 else "no pixel moves fast"
    scores["abs_rel/fast_pixels"] = Score(mean_accuracy(depth_m, gt, fast)["abs_rel"], fast_share, none_fast)
    gt_disparity = mapped(lambda true, known: np.where(known, 1.0 / np.maximum(true, 1e-3), 0.0), gt, valid)
    motion = scene.motion
    scores["tge"] = temporal_gradient_error(disparity, gt_disparity, motion.flow_fwd, motion.trusted_fwd, valid)
    if scene.intrinsics is not None and scene.camera_to_world is not None:
        cameras = (scene.intrinsics, scene.camera_to_world)
        scores["tae"] = Score(math.nan, 1.0, why) if why else tae(depth_m, *cameras)
        scores["tae_z"] = tae_z(depth_m, *cameras, valid, gt_depth_m=mapped(_only, gt, valid))
    return scores


def _fast_pixels(motion: ClipMotion) -> FrameView:
    """Return [F,H,W] bool: the fastest tenth of the clip's pixels, at least 1 px per frame; where lag
    shows.
    """
    speed = mapped(lambda flow: np.sqrt(np.square(flow).sum(axis=0)), motion.flow_bwd)
    after_first = mapped(speed.__getitem__, range(1, len(speed)))
    limit = max(percentiles(after_first, [FAST_PERCENTILE])[0] if len(speed) > 1 else 0.0, FAST_MIN_PX)
    return mapped(lambda frame: frame > limit, speed)


def _agreement(disparity: Frames, reference: Frames) -> dict[str, Score]:
    """Return mean |row − teacher| over the teacher's spread, after one affine per clip and after one per
    frame.
    """
    middle = median(reference)
    spread = float(np.mean([np.mean(np.abs(frame - middle), dtype=np.float64) for frame in reference]))
    if spread == 0.0:
        reason = "the teacher is flat"
        return {name: Score(float("nan"), 0.0, reason) for name in ("teacher_diff/clip", "teacher_diff/per_frame")}
    per_frame = []
    for ours, theirs in zip(disparity, reference, strict=True):
        scale, shift = clip_scale_and_shift(ours, theirs, _everywhere(ours))
        per_frame.append(float(np.mean(np.abs(scale * ours + shift - theirs))))
    per_clip = [float(np.mean(np.abs(a - b))) for a, b in zip(disparity, reference, strict=True)]
    return {
        "teacher_diff/clip": Score(float(np.mean(per_clip)) / spread),
        "teacher_diff/per_frame": Score(float(np.mean(per_frame)) / spread),
    }


def _stability(disparity: Frames, scene: Scene) -> dict[str, Score]:
    x, defined = positive_log(disparity)
    motion = scene.motion
    scores = {
        "opw": optical_flow_warping(disparity, motion, scene.rgb),
        "opw/per_frame": optical_flow_warping(disparity, motion, scene.rgb, per="frame"),
        "flk2": flicker2(x, motion, defined),
    }
    for threshold, score in relative_temporal_consistency(x, motion, defined).items():
        scores[f"rtc_{threshold}"] = score
    for name, score in static_variation(x, motion, defined).items():
        scores[f"static_std/{name}"] = score
    return scores


def _count_not_finite(depth: Frames) -> int:
    return sum(not np.isfinite(frame).all() for frame in depth)


def _share(masks: Frames) -> float:
    """Return the share of all pixels of all frames where a mask [F,H,W] is True."""
    return sum(int(mask.sum()) for mask in masks) / math.prod(masks.shape)


def _everywhere(frame: np.ndarray) -> np.ndarray:
    return np.ones(frame.shape, dtype=bool)


def _only(frame: np.ndarray, counted: np.ndarray) -> np.ndarray:
    return np.where(counted, frame, 0.0)
