"""Every metric of the report: the function that computes it and how its numbers are shown.

To add one, write its function and an entry of `MEASURES`; tables, plots, paired changes and JSON follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from videomamba_depth.evaluation.context import Context, ScoredDepth
from videomamba_depth.evaluation.metrics.accuracy import accuracy, mean_accuracy
from videomamba_depth.evaluation.metrics.geometry import tae, tae_z, temporal_gradient_error
from videomamba_depth.evaluation.metrics.percentiles import median, percentiles
from videomamba_depth.evaluation.metrics.score import Score, is_flat, undefined
from videomamba_depth.evaluation.metrics.sharpness_and_lag import boundary_f1, edge_ratio, lag_frames
from videomamba_depth.evaluation.metrics.stability import (
    flicker2,
    optical_flow_warping,
    relative_temporal_consistency,
    scale_jitter_and_drift,
    static_variation,
)
from videomamba_depth.flow.clip_motion import ClipMotion
from videomamba_depth.flow.frame_view import Frames, FrameView, computed, mapped, remembered
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.metrics import clip_scale_and_shift

Scores = Mapping[str, Score]
Group = Literal["accuracy", "stability", "guards"]

FAST_PERCENTILE = 90.0
FAST_MIN_PX = 1.0
EDGE_OF_RANGE = 0.03  # of the true inverse depth's range: step between neighbors that counts as an edge


@dataclass(frozen=True)
class Column:
    """How a metric is shown.

    factor: 100 for percent. better: "↓", "↑", "1", "0", or "" for a metric that the JSON alone shows. difference:
    factor of the change against the teacher where that is a difference; None: the change is percent of the
    teacher's value.
    """

    metric: str
    heading: str = ""
    group: Group = "accuracy"
    factor: float = 100.0
    decimals: int = 2
    better: str = "↓"
    difference: float | None = None

    @property
    def title(self) -> str:
        """The heading with its factor and which way is better."""
        unit = " ×100" if self.factor == 100.0 or self.metric in ("tae", "tae_z") else ""
        return f"{self.heading}{unit} " + {"1": "→ 1", "0": "→ 0"}.get(self.better, self.better)


@dataclass(frozen=True)
class Measure:
    """A function of a method's depth that returns one or several metrics, and how they are shown.

    columns: those of its metrics that tables show. needs_truth: it is left out on clips without ground truth.
    of_stills: it means something for pictures that have nothing to do with each other.
    """

    function: Callable[[ScoredDepth], Scores]
    columns: tuple[Column, ...]
    needs_truth: bool = False
    of_stills: bool = False


def score_depth(depth: Frames, context: Context) -> dict[str, Score]:
    """Return every metric that the clip allows, for the depth [F,H,W] of one method.

    Ratios and errors are plain numbers (not ×100), except `tae` and `tae_z`, which are ×100 as published.
    """
    if broken := _count_not_finite(depth):
        return {"finite": Score(0.0, 1.0, f"{broken} frames are not finite")}
    scored = ScoredDepth(depth, context)
    scores: dict[str, Score] = {}
    for measure in MEASURES:
        if (context.gt_depth_m is not None or not measure.needs_truth) and (measure.of_stills or not context.stills):
            scores |= measure.function(scored)
    return scores


def depth_flags(depth: Frames) -> list[str]:
    """Return warnings that must stand beside a method's numbers."""
    if _count_not_finite(depth):
        return ["not finite"]
    return ["flat"] if is_flat(depth) else []


def _accuracy(scored: ScoredDepth) -> Scores:
    context = scored.context
    share, reason = _share(context.counted), ""
    if share == 0.0:
        reason = "no valid ground truth"
    arguments = {"depth_kind": context.depth_kind, "max_depth_m": context.max_depth_m}
    depth = scored.depth
    report = accuracy(depth, context.gt_depth_m, context.valid, **arguments)  # type: ignore[arg-type]
    if context.align_metric and context.depth_kind == DepthKind.METRIC:
        arguments["depth_kind"], depth = DepthKind.RELATIVE, scored.inverse
        report |= accuracy(depth, context.gt_depth_m, context.valid, **arguments)  # type: ignore[arg-type]
    scores = {
        f"{metric}/{alignment}": Score(value, share, reason)
        for alignment, metrics in report.items()
        for metric, value in metrics.items()
        if not context.stills or alignment in ("per_frame", "metric")
    }
    if "video" in report and not context.stills:
        drift = report["video"]["abs_rel"] - report["per_frame"]["abs_rel"]
        scores["abs_rel/video_minus_per_frame"] = Score(drift, share, reason)
        first = [None if frames is None else frames[:1] for frames in (depth, context.gt_depth_m, context.valid)]
        alone = accuracy(*first, **arguments)["per_frame"]["abs_rel"]  # type: ignore[arg-type]
        scores["abs_rel/single_image"] = Score(alone, share, reason if math.isfinite(alone) else "none in frame 0")
    return scores


def _fast_pixels(scored: ScoredDepth) -> Scores:
    context = scored.context
    fast = _fast_and_known(context.counted, context.motion)
    share = _share(fast)
    value = mean_accuracy(scored.depth_m, context.gt_depth_m, fast)["abs_rel"]
    return {"abs_rel/fast_pixels": Score(value, share, "" if share > 0.0 else "no pixel moves fast")}


@remembered
def _fast_and_known(counted: Frames, motion: ClipMotion) -> Frames:
    return computed(mapped(np.logical_and, counted, fast_pixels(motion)))


def fast_pixels(motion: ClipMotion) -> FrameView:
    """Return [F,H,W] bool: the fastest tenth of the clip's pixels, at least 1 px per frame; where lag shows."""
    speed = mapped(lambda flow: np.sqrt(np.square(flow).sum(axis=0)), motion.flow_bwd)
    after_first = mapped(speed.__getitem__, range(1, len(speed)))
    limit = max(percentiles(after_first, [FAST_PERCENTILE])[0] if len(speed) > 1 else 0.0, FAST_MIN_PX)
    return mapped(lambda frame: frame > limit, speed)


def _temporal_gradient(scored: ScoredDepth) -> Scores:
    context, motion = scored.context, scored.context.motion
    truth = _true_disparity(context.counted, context.gt_depth_m)
    score = temporal_gradient_error(scored.disparity, truth, motion.flow_fwd, motion.trusted_fwd, context.counted)
    return {"tge": score}


@remembered
def _true_disparity(counted: Frames, gt_depth_m: Frames | None) -> Frames:
    """Return 1/m, 0 where ground truth does not count."""
    return computed(mapped(lambda true, known: np.where(known, 1.0 / np.maximum(true, 1e-3), 0.0), gt_depth_m, counted))


def _true_edges(scored: ScoredDepth) -> Scores:
    """Return the error of the spatial gradient, 1/m per px, and the F1 score and sharpness of edges, where the truth
    has no holes.
    """
    context, counted = scored.context, scored.context.counted
    if not context.exact_motion or _share(counted) == 0.0:
        return {}
    truth = _true_disparity(counted, context.gt_depth_m)
    truth = truth if truth.dtype == np.float32 else _single(truth)
    error = 0.0
    for axis in (0, 1):
        wrong, total = 0.0, 0
        for ours, true, known in zip(scored.disparity, truth, counted, strict=True):
            both = np.delete(known, 0, axis) & np.delete(known, -1, axis)
            difference = np.abs(np.diff(ours, axis=axis) - np.diff(true, axis=axis))[both]
            wrong, total = wrong + float(difference.sum(dtype=np.float64)), total + int(both.sum())
        error += wrong / max(total, 1)
    low, high = _true_range(truth, counted)
    ours = mapped(lambda frame, known: np.where(known, frame, 0.0), scored.disparity, counted)
    edges = boundary_f1(ours, truth, threshold=EDGE_OF_RANGE * (high - low))
    return {"gradient_error": Score(error), "boundary_f1/true": edges, "edge_ratio/true": edge_ratio(ours, truth)}


@remembered
def _single(frames: Frames) -> Frames:
    return computed(mapped(lambda frame: frame.astype(np.float32), frames))


@remembered
def _true_range(truth: Frames, counted: Frames) -> list[float]:
    return percentiles(mapped(lambda true, known: true[known], truth, counted), [1, 99])


def _temporal_alignment(scored: ScoredDepth) -> Scores:
    context = scored.context
    if context.intrinsics is None or context.camera_to_world is None:
        return {}
    cameras = (context.intrinsics, context.camera_to_world)
    counted = context.counted
    truth = _true_depth(counted, context.gt_depth_m)
    blind = _share(counted) == 0.0
    return {
        "tae": Score(math.nan, 1.0, "no valid ground truth") if blind else tae(scored.depth_m, *cameras),
        "tae_z": tae_z(scored.depth_m, *cameras, counted, gt_depth_m=truth),
    }


@remembered
def _true_depth(counted: Frames, gt_depth_m: Frames | None) -> Frames:
    return computed(mapped(lambda true, known: np.where(known, true, 0.0), gt_depth_m, counted))


def _teacher_difference(scored: ScoredDepth) -> Scores:
    """Return mean |method − teacher| over the teacher's spread, after one affine per clip and after one per frame."""
    disparity, reference = scored.disparity, scored.context.reference
    spread = _spread(reference)
    names = ("teacher_diff/clip", "teacher_diff/per_frame")
    if spread == 0.0:
        return {name: undefined("the teacher is flat") for name in names}
    per_frame = []
    for ours, theirs in zip(disparity, reference, strict=True):
        scale, shift = clip_scale_and_shift(ours, theirs, np.ones(ours.shape, bool))
        per_frame.append(float(np.mean(np.abs(scale * ours + shift - theirs))))
    per_clip = [float(np.mean(np.abs(a - b))) for a, b in zip(disparity, reference, strict=True)]
    return {name: Score(float(np.mean(v)) / spread) for name, v in zip(names, (per_clip, per_frame), strict=True)}


@remembered
def _spread(reference: Frames) -> float:
    middle = median(reference)
    return float(np.mean([np.mean(np.abs(frame - middle), dtype=np.float64) for frame in reference]))


def _flow_warping(scored: ScoredDepth) -> Scores:
    context, disparity = scored.context, scored.disparity
    return {
        "opw": optical_flow_warping(disparity, context.motion, context.rgb),
        "opw/per_frame": optical_flow_warping(disparity, context.motion, context.rgb, per="frame"),
    }


def _flicker(scored: ScoredDepth) -> Scores:
    x, defined = scored.log
    return {"flk2": flicker2(x, scored.context.motion, defined)}


def _consistency(scored: ScoredDepth) -> Scores:
    x, defined = scored.log
    found = relative_temporal_consistency(x, scored.context.motion, defined)
    return {f"rtc_{threshold}": score for threshold, score in found.items()}


def _static(scored: ScoredDepth) -> Scores:
    x, defined = scored.log
    found = static_variation(x, scored.context.motion, defined)
    return {f"static_std/{name}": score for name, score in found.items()}


def _scale(scored: ScoredDepth) -> Scores:
    context = scored.context
    teacher = context.inverse(context.teacher, context.teacher_kind)
    return scale_jitter_and_drift(scored.inverse, teacher)


def _sharpness(scored: ScoredDepth) -> Scores:
    disparity, reference = scored.disparity, scored.context.reference
    return {"edge_ratio": edge_ratio(disparity, reference), "boundary_f1": boundary_f1(disparity, reference)}


def _lag(scored: ScoredDepth) -> Scores:
    return {"lag": lag_frames(scored.disparity, scored.context.reference)}


def _true_lag(scored: ScoredDepth) -> Scores:
    """Return by how many frames the depth follows the ground truth of a rendered clip, which has no holes.

    `lag` is against the teacher, whose changes are mostly flicker: it says how much is averaged, this what that costs.
    """
    context = scored.context
    if not context.exact_motion:
        return {}
    if is_flat(scored.depth):
        return {"lag/true": undefined("the prediction is flat")}
    true_inverse = _true_inverse(context.counted, context.gt_depth_m)
    ours = mapped(lambda frame, known: np.where(known, frame, 0.0), scored.disparity, context.counted)
    return {"lag/true": lag_frames(ours, true_inverse)}


@remembered
def _true_inverse(counted: Frames, gt_depth_m: Frames | None) -> Frames:
    return computed(
        mapped(
            lambda true, known: np.where(known, 1.0 / (true.astype(np.float64) + 1e-8), 0.0).astype(np.float32),
            gt_depth_m,
            counted,
        )
    )


MEASURES = (
    Measure(
        _accuracy,
        (
            Column("abs_rel/video", "AbsRel video"),
            Column("abs_rel/first_frame", "AbsRel first frame"),
            Column("abs_rel/per_frame", "AbsRel per frame"),
            Column("abs_rel/single_image", "AbsRel single image"),
            Column("abs_rel/metric", "AbsRel metric"),
            Column("delta1/video", "δ1 video", better="↑", difference=100.0),
            Column("delta1/first_frame", "δ1 first frame", better="↑", difference=100.0),
            Column("delta1/per_frame", "δ1 per frame", better="↑", difference=100.0),
            Column("delta1/metric", "δ1 metric", better="↑", difference=100.0),
        ),
        needs_truth=True,
        of_stills=True,
    ),
    Measure(_fast_pixels, (Column("abs_rel/fast_pixels", "AbsRel fast px"),), needs_truth=True),
    Measure(
        _teacher_difference,
        (Column("teacher_diff/per_frame", "teacher diff", difference=100.0),),
    ),
    Measure(
        _true_edges,
        (
            Column("gradient_error", "gradient error"),
            Column("boundary_f1/true", "true edge F1", factor=1.0, better="↑", difference=1.0),
            Column("edge_ratio/true", "true edges", factor=1.0, better="1"),
        ),
        needs_truth=True,
    ),
    Measure(_temporal_gradient, (Column("tge", "TGE", "stability"),), needs_truth=True),
    Measure(
        _temporal_alignment,
        (
            Column("tae", "TAE", "stability", factor=1.0),
            Column("tae_z", "TAEz", "stability", factor=1.0),
        ),
        needs_truth=True,
    ),
    Measure(_flow_warping, (Column("opw", "OPW/clip", "stability"),)),
    Measure(_consistency, (Column("rtc_1.02", "rTC 1.02", "stability", decimals=1, better="↑"),)),
    Measure(_flicker, (Column("flk2", "Flk2", "stability"),)),
    Measure(_static, (Column("static_std/flicker", "static flicker", "stability"),)),
    Measure(
        _scale,
        (
            Column("sJit", "sJit", "stability", difference=100.0),
            Column("sDrift", "sDrift", "stability", decimals=1, better="0", difference=100.0),
        ),
    ),
    Measure(
        _sharpness,
        (
            Column("edge_ratio", "edges", "guards", factor=1.0, better="1"),
            Column("boundary_f1", "edge F1", "guards", factor=1.0, better="↑"),
        ),
    ),
    Measure(_lag, (Column("lag", "lag (frames)", "guards", factor=1.0, better="0", difference=1.0),)),
    Measure(
        _true_lag,
        (Column("lag/true", "true lag (frames)", "guards", factor=1.0, better="0", difference=1.0),),
        needs_truth=True,
    ),
)

# Measured by running a stream again (`recurrence.py`), on students alone.
RECURRENCE_COLUMNS = (
    Column("palindrome_drift", "palindrome", "stability"),
    Column("settle_after_cut", "settled after a cut (frames)", "guards", 1.0, decimals=1, difference=1.0),
)

COLUMNS = tuple(
    column
    for group in ("accuracy", "stability", "guards")
    for column in (*(c for measure in MEASURES for c in measure.columns), *RECURRENCE_COLUMNS)
    if column.group == group
)
"""What tables show, group by group."""


@remembered
def _count_not_finite(depth: Frames) -> int:
    return sum(not np.isfinite(frame).all() for frame in depth)


@remembered
def _share(masks: Frames) -> float:
    """Return the share of all pixels of all frames where a mask [F,H,W] is True."""
    return sum(int(mask.sum()) for mask in masks) / math.prod(masks.shape)
