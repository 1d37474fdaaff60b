"""Run teacher, baselines and student over clips and judge them all the same way.

Memory does not grow with a clip: frames are read one by one, and what is read again lies in temporary files, per
pixel and frame at the evaluation size 21 bytes of colour, flow and masks and 4 for each stream and the row under work,
so 300 frames of 384×216 px take about 0.9 GB of disk. Clips are evaluated one after another; an iterator of frames is
read once, and is kept, 3 bytes per pixel at its own size, where a clip is to be run backwards too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videomamba_depth.data.video.find import summarize
from videomamba_depth.evaluation.baselines import Baseline, default_baselines
from videomamba_depth.evaluation.clips import ClipSource, EvaluationClip, shrink_clip
from videomamba_depth.evaluation.memory import Stream, run_palindrome, settle_after_own_cut
from videomamba_depth.evaluation.metrics import Score
from videomamba_depth.evaluation.rows import Scene, row_flags, row_metrics
from videomamba_depth.evaluation.setting import Progress, build_scene, frames_in_any_order, run_streams
from videomamba_depth.evaluation.summary import count_better, mean_rows, verdict, versions
from videomamba_depth.flow.clip_motion import estimate_motion
from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.flow.frame_view import Frames, FrameView, on_disk
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError, is_disk_full

logger = logging.getLogger(__name__)

Viewer = Callable[[EvaluationClip, str, Frames, Frames, Scene], None]
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
    rgb, depths = run_streams(clip, rows, max_side, max_frames, progress)
    scene = build_scene(clip, rgb, depth_kind, flow, progress)
    filters = default_baselines() if baselines is None else baselines
    visible = scene.motion
    if filters and flow is not None and scene.exact_motion:
        visible = estimate_motion(rgb, flow, keep=on_disk)
    teacher = depths["teacher"]
    scores: dict[str, dict[str, Score]] = {}
    flags: dict[str, list[str]] = {}
    others = [name for name in depths if name != "teacher"]
    for name in ["teacher", *filters, *others]:
        depth = depths[name] if name in depths else on_disk([d] for d in filters[name](teacher, visible))[0]
        scores[name], flags[name] = row_metrics(depth, teacher, scene), row_flags(depth)
        if viewer is not None:
            viewer(clip, name, depth, teacher, scene)
        if progress is not None:
            progress("row", name)
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
    clips: Iterable[EvaluationClip | ClipSource],
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
    skip_unusable: bool = False,
) -> dict[str, Any]:
    """Judge teacher, baselines and students on clips, and average.

    Args:
        clips: see `EvaluationClip` and `ClipSource`. teacher: framewise depth of one frame.
        students: row's name → function that returns a fresh stream; called once per clip (twice with `palindrome`).
        untrained: the same for streams that count as baselines, such as `feature_average_stream`.
        palindrome: also run the students over each clip forward and back ("palindrome_drift").
        cut_frames: also run them across a cut within each clip, see `settle_after_own_cut`; 0: not.
        metadata: checkpoint path and hash, seed, command, …; copied into the result.
        depth_kind, flow, baselines, max_side, max_gt_side, max_frames, progress, viewer: see
            `evaluate_video`.
        keep: called after every clip with the result so far, so that an interrupted run loses one clip at most.
        skip_unusable: leave out the clips that cannot be opened, read or judged, and name them in the result.

    Returns:
        {"clips": [per clip, see `evaluate_video`], "skipped": {clip: why}, "mean": {row: {metric: {"value",
        "std_error", "num_clips"}}}, "verdicts": {student: see `verdict`}, "counts": {student: see `count_better`},
        "protocol": {...}, "versions": {...}, "metadata": {...}}.

    Raises:
        UserError: no clip; one that cannot be used, or with `skip_unusable` none that can; the disk is full.
    """
    skipped: dict[str, str] = {}
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
    judge = partial(
        _evaluate_clip, teacher=teacher, students=students, untrained=untrained or {}, palindrome=palindrome,
        cut_frames=cut_frames, depth_kind=depth_kind, flow=flow, baselines=baselines, max_side=max_side,
        max_gt_side=max_gt_side, max_frames=max_frames, progress=progress, viewer=viewer,
    )  # fmt: skip
    for clip in clips:
        try:
            results.append(judge(clip.load() if isinstance(clip, ClipSource) else clip))
        except UserError as error:
            if not skip_unusable or is_disk_full(error):
                raise
            skipped[clip.name] = str(error)
            logger.warning("%s is skipped: %s", clip.name, error)
            continue
        logger.info("evaluated %s: %d frames", clip.name, results[-1]["num_frames"])
        if keep is not None:
            keep(_summarise(results, skipped, students, protocol, metadata))
    if skipped and not results:
        raise UserError(f"none of {len(skipped)} clips can be evaluated: {summarize(skipped)}")
    if not results:
        raise UserError("there is nothing to evaluate: no clip was given")
    return _summarise(results, skipped, students, protocol, metadata)


def _evaluate_clip(
    clip: EvaluationClip,
    *,
    teacher: Stream,
    students: Mapping[str, Callable[[], Stream]],
    untrained: Mapping[str, Callable[[], Stream]],
    palindrome: bool,
    cut_frames: int,
    max_frames: int | None,
    progress: Progress | None,
    viewer: Viewer | None,
    **arguments: Any,
) -> dict[str, Any]:
    """Judge one clip, and what the students remember; see `evaluate_videos`."""
    streams = {name: make() for name, make in {**untrained, **students}.items()}
    frames: Sequence[np.ndarray] | FrameView = []
    if palindrome or cut_frames:
        frames = frames_in_any_order(clip.frames, max_frames)
        clip = replace(clip, frames=frames)
    depths: dict[str, Frames] = {}

    def look(clip: EvaluationClip, row: str, depth: Frames, reference: Frames, scene: Scene) -> None:
        depths[row] = depth
        if viewer is not None:
            viewer(clip, row, depth, reference, scene)

    rows: dict[str, Stream] = {"teacher": teacher, **streams}
    result = evaluate_video(clip, rows, max_frames=max_frames, progress=progress, viewer=look, **arguments)
    for name, make in students.items():
        scores = result["rows"][name]
        if palindrome:  # the stream stands at the end of the clip: it goes back from there
            scores["palindrome_drift"] = run_palindrome(streams[name], frames, tuple(result["size"]), depths[name])
        if progress is not None and palindrome:
            progress("palindrome", name)
        if cut_frames:
            scores["settle_after_cut"] = settle_after_own_cut(make, frames, cut_frames)
        if progress is not None and cut_frames:
            progress("cut", name)
    return result


def _summarise(
    results: list[dict[str, Any]],
    skipped: Mapping[str, str],
    students: Mapping[str, Any],
    protocol: Mapping[str, Any],
    metadata: Mapping[str, Any] | None,
) -> dict[str, Any]:
    mean = mean_rows(results)
    return {
        "clips": list(results),
        "skipped": dict(skipped),
        "mean": mean,
        "verdicts": {name: verdict(mean, name, students=list(students)) for name in students},
        "counts": {name: count_better(results, name, students=list(students)) for name in students},
        "protocol": dict(protocol),
        "versions": versions(),
        "metadata": dict(metadata or {}),
    }


def _alignment(scene: Scene) -> str:
    if scene.depth_kind == DepthKind.METRIC:
        return "none (metric depth)"
    return "one affine per clip to " + ("ground truth" if scene.gt_depth_m is not None else "the teacher")
