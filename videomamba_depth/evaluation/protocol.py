"""Run teacher, baselines and student over clips and judge them all the same way.

Memory: about 40 bytes per pixel and frame at the evaluation size (both flows 16, masks 2, colour 3, teacher,
student and the row under work 4 each, temporaries), so 300 frames of 384×216 px take about 1 GB. Baseline
rows are made one at a time. Clips are evaluated one after another; an iterator of frames is read once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.flow_utils import FlowEstimator
from videomamba_depth.utils.metrics import Score
from videomamba_depth.utils.motion import ClipMotion, estimate_motion

from .baselines import Baseline, default_baselines
from .clips import EvaluationClip, shrink_clip
from .memory import Stream, resize_depth, run_palindrome, settle_after_own_cut, to_tensor
from .rows import Scene, row_flags, row_metrics
from .summary import count_better, mean_rows, verdict, versions

logger = logging.getLogger(__name__)

Progress = Callable[[str, int], None]
"""Called with what was done ("frame", "flow", "row") and for which frame or row."""

Viewer = Callable[[EvaluationClip, str, np.ndarray, np.ndarray, Scene], None]
"""Called for every row of a clip with (clip, row, its depth [F,H,W], the teacher's, scene), the teacher first."""


@torch.no_grad()
def evaluate_video(
    clip: EvaluationClip,
    rows: Mapping[str, Stream | np.ndarray | Tensor],
    *,
    depth_kind: DepthKind,
    flow: FlowEstimator | None = None,
    baselines: Mapping[str, Baseline] | None = None,
    max_side: int = 384,
    max_gt_side: int | None = None,
    max_frames: int | None = None,
    progress: Progress | None = None,
    viewer: Viewer | None = None,
) -> dict[str, Any]:
    """Judge one clip.

    Args:
        clip: frames and what is known of them.
        rows: name → a stream, called once per frame in order, or finished depth [F,1,H,W] or [F,H,W]. Must
            hold "teacher", the framewise reference of guards and baselines.
        depth_kind: what all rows are.
        flow: needed unless `clip.motion` is given; where both are, the filters get the estimated flow, as a user's
            would, and the metrics the exact one.
        baselines: name → filter over the teacher's depth; default `default_baselines()`, {} for none.
        max_side: longer side of evaluation in px when there is no ground truth; with one, its size is used.
        max_gt_side: bring larger ground truth to this longer side first (`shrink_clip`); published numbers
            use None.
        max_frames: stop after so many frames. progress: see `Progress`. viewer: see `Viewer`, for pictures.

    Returns:
        {"name", "num_frames", "frame_ids", "size" [H,W], "fps", "coverage", "cuts", "alignment",
        "ground_truth", "exact_motion", "rows": {row: {metric: Score}}, "flags": {row: [str]}}.

    Raises UserError when the clip has fewer than two frames or its parts do not fit together.
    """
    if "teacher" not in rows:
        raise ValueError(f"rows must hold 'teacher', the reference; got {sorted(rows)}")
    if max_gt_side is not None:
        clip = shrink_clip(clip, max_gt_side)
    rgb, depths = _run_streams(clip, rows, max_side, max_frames, progress)
    scene = _build_scene(clip, rgb, depth_kind, flow, progress)
    filters = default_baselines() if baselines is None else baselines
    visible = estimate_motion(rgb, flow) if filters and flow is not None and scene.exact_motion else scene.motion
    teacher = depths["teacher"]
    scores: dict[str, dict[str, Score]] = {}
    flags: dict[str, list[str]] = {}
    others = [name for name in depths if name != "teacher"]
    for name in ["teacher", *filters, *others]:
        depth = depths[name] if name in depths else filters[name](teacher, visible)
        scores[name], flags[name] = row_metrics(depth, teacher, scene), row_flags(depth)
        if viewer is not None:
            viewer(clip, name, depth, teacher, scene)
        if progress is not None:
            progress("row", len(scores))
    frame_ids = list(clip.frame_ids or range(len(rgb)))[: len(rgb)]
    return {
        "name": clip.name,
        "num_frames": len(rgb),
        "frame_ids": frame_ids,
        "size": list(rgb.shape[1:3]),
        "fps": clip.fps,
        "coverage": scene.motion.coverage,
        "cuts": list(scene.motion.cuts),
        "alignment": _alignment(scene),
        "ground_truth": scene.gt_depth_m is not None,
        "exact_motion": scene.exact_motion,
        "rows": scores,
        "flags": flags,
    }


def evaluate_videos(
    clips: Iterable[EvaluationClip],
    teacher: Stream,
    students: Mapping[str, Callable[[], Stream]],
    *,
    depth_kind: DepthKind,
    flow: FlowEstimator | None = None,
    baselines: Mapping[str, Baseline] | None = None,
    untrained: Mapping[str, Callable[[], Stream]] | None = None,
    max_side: int = 384,
    max_gt_side: int | None = None,
    max_frames: int | None = None,
    palindrome: bool = False,
    cut_frames: int = 0,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    viewer: Viewer | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Judge teacher, baselines and students on clips, and average.

    Args:
        clips: see `EvaluationClip`. teacher: framewise depth of one frame.
        students: row's name → function that returns a fresh stream; called once per clip (twice with `palindrome`).
        untrained: the same for streams that count as baselines, such as `feature_average_stream`.
        palindrome: also run the students over each clip forward and back ("palindrome_drift").
        cut_frames: also run them across a cut within each clip, see `settle_after_own_cut`; 0: not.
        metadata: checkpoint path and hash, seed, command, …; copied into the result.
        depth_kind, flow, baselines, max_side, max_gt_side, max_frames, progress, viewer: see
            `evaluate_video`.
        keep: called after every clip with the result so far, so that an interrupted run loses one clip at most.

    Returns:
        {"clips": [per clip, see `evaluate_video`], "mean": {row: {metric: {"value", "std_error",
        "num_clips"}}}, "verdicts": {student: see `verdict`}, "counts": {student: see `count_better`}, "protocol":
        {...}, "versions": {...}, "metadata": {...}}.
    """
    results: list[dict[str, Any]] = []
    protocol = {
        "depth_kind": depth_kind.value,
        "flow": "none" if flow is None else type(flow).__name__,
        "max_side": max_side,
        "max_gt_side": max_gt_side,
        "max_frames": max_frames,
        "cut_frames": cut_frames,
        "averaging": "pixels of a frame, then frames, then clips",
    }
    for clip in clips:
        streams = {**(untrained or {}), **students}
        rows: dict[str, Stream] = {"teacher": teacher, **{name: make() for name, make in streams.items()}}
        if palindrome or cut_frames:
            clip = _with_kept_frames(clip, max_frames)
        result = evaluate_video(
            clip,
            rows,
            depth_kind=depth_kind,
            flow=flow,
            baselines=baselines,
            max_side=max_side,
            max_gt_side=max_gt_side,
            max_frames=max_frames,
            progress=progress,
            viewer=viewer,
        )
        for name, make in students.items():
            if palindrome:
                drift = run_palindrome(make(), clip.frames, tuple(result["size"]))
                result["rows"][name]["palindrome_drift"] = drift
            if cut_frames:
                result["rows"][name]["settle_after_cut"] = settle_after_own_cut(make, clip.frames, cut_frames)
        logger.info("evaluated %s: %d frames", clip.name, result["num_frames"])
        results.append(result)
        if keep is not None:
            keep(_summarise(results, students, protocol, metadata))
    if not results:
        raise UserError("there is nothing to evaluate: no clip was given")
    return _summarise(results, students, protocol, metadata)


def _summarise(
    results: list[dict[str, Any]],
    students: Mapping[str, Any],
    protocol: Mapping[str, Any],
    metadata: Mapping[str, Any] | None,
) -> dict[str, Any]:
    mean = mean_rows(results)
    return {
        "clips": list(results),
        "mean": mean,
        "verdicts": {name: verdict(mean, name, students=list(students)) for name in students},
        "counts": {name: count_better(results, name, students=list(students)) for name in students},
        "protocol": dict(protocol),
        "versions": versions(),
        "metadata": dict(metadata or {}),
    }


def _run_streams(
    clip: EvaluationClip,
    rows: Mapping[str, Stream | np.ndarray | Tensor],
    max_side: int,
    max_frames: int | None,
    progress: Progress | None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Read the clip once, feed every stream, and bring frames and depth to the evaluation size."""
    rgb: list[np.ndarray] = []
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    size: tuple[int, int] | None = None
    for index, frame in enumerate(clip.frames):
        if max_frames is not None and index >= max_frames:
            logger.info("%s: stopped after max_frames=%d frames", clip.name, max_frames)
            break
        size = size or _evaluation_size(clip, frame.shape[:2], max_side)
        rgb.append(_resize_rgb(frame, size))
        tensor = to_tensor(frame)
        for name, row in rows.items():
            depth = row(tensor) if callable(row) else _given_frame(name, row, index)
            outputs[name].append(resize_depth(depth, size))
        if progress is not None:
            progress("frame", index)
    if len(rgb) < 2:
        raise UserError(f"clip {clip.name!r} has {len(rgb)} frames; stability needs at least 2: give a longer one")
    return np.stack(rgb), {name: np.stack(frames) for name, frames in outputs.items()}


def _given_frame(name: str, row: Any, index: int) -> Tensor:
    if index >= len(row):
        raise ValueError(f"row {name!r} has {len(row)} frames, fewer than the clip")
    frame = torch.as_tensor(row[index])
    return frame.reshape(1, 1, *frame.shape[-2:])


def _evaluation_size(clip: EvaluationClip, frame_size: tuple[int, int], max_side: int) -> tuple[int, int]:
    for known in (clip.gt_depth_m, None if clip.motion is None else clip.motion.trusted_bwd):
        if known is not None:
            return int(known.shape[-2]), int(known.shape[-1])
    shrink = min(1.0, max_side / max(frame_size))
    return max(16, round(frame_size[0] * shrink)), max(16, round(frame_size[1] * shrink))


def _build_scene(
    clip: EvaluationClip,
    rgb: np.ndarray,
    depth_kind: DepthKind,
    flow: FlowEstimator | None,
    progress: Progress | None,
) -> Scene:
    num_frames = len(rgb)
    for name in ("gt_depth_m", "valid", "camera_to_world"):
        value = getattr(clip, name)
        if value is not None and len(value) < num_frames:
            raise UserError(f"clip {clip.name!r}: {name} has {len(value)} frames for {num_frames} images")
    motion = clip.motion
    if motion is not None:
        if motion.trusted_bwd.shape[1:] != rgb.shape[1:3] or motion.num_frames < num_frames:
            raise UserError(f"clip {clip.name!r}: motion and ground truth differ in size or number of frames")
        motion = _first_frames(motion, num_frames)
    elif flow is not None:
        motion = estimate_motion(rgb, flow, progress=None if progress is None else lambda: progress("flow", 0))
    else:
        raise ValueError("flow must be an estimator when the clip brings no motion of its own; got None")
    return Scene(
        rgb=rgb,
        motion=motion,
        depth_kind=depth_kind,
        gt_depth_m=None if clip.gt_depth_m is None else np.asarray(clip.gt_depth_m[:num_frames]),
        valid=None if clip.valid is None else np.asarray(clip.valid[:num_frames]),
        max_depth_m=clip.max_depth_m,
        intrinsics=clip.intrinsics,
        camera_to_world=None if clip.camera_to_world is None else np.asarray(clip.camera_to_world[:num_frames]),
        exact_motion=clip.motion is not None,
    )


def _first_frames(motion: ClipMotion, num_frames: int) -> ClipMotion:
    """Keep the first frames of a given motion; the last of them has no next."""
    forward = motion.trusted_fwd[:num_frames].copy()
    forward[-1] = False
    cuts = tuple(t for t in motion.cuts if t < num_frames)
    return ClipMotion(
        motion.flow_bwd[:num_frames], motion.flow_fwd[:num_frames], motion.trusted_bwd[:num_frames], forward, cuts
    )


def _with_kept_frames(clip: EvaluationClip, max_frames: int | None) -> EvaluationClip:
    return replace(clip, frames=list(islice(clip.frames, max_frames)))


def _alignment(scene: Scene) -> str:
    if scene.depth_kind == DepthKind.METRIC:
        return "none (metric depth)"
    return "one affine per clip to " + ("ground truth" if scene.gt_depth_m is not None else "the teacher")


def _resize_rgb(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if frame.shape[:2] == size:
        return np.asarray(frame)
    return cv2.resize(np.asarray(frame), (size[1], size[0]), interpolation=cv2.INTER_AREA)
