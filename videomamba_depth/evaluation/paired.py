"""Paired comparison of methods over clips: mean ± standard error of the change per clip, and who dominates whom."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from videomamba_depth.evaluation.methods import TEACHER, averages, memories
from videomamba_depth.evaluation.metrics.registry import COLUMNS

ClipScores = Mapping[str, Mapping[str, float]]
"""{method: {metric: value}} of one clip."""

DIFFERENCES = {column.metric: column.difference for column in COLUMNS if column.difference is not None}
FLICKER = ("tge", "flk2", "opw", "static_std/flicker", "rtc_1.02")
"""What students are to lower; the first that was measured decides who dominates whom."""
AXES = {
    "edges": "edge_ratio",
    "true edges": "boundary_f1/true",
    "true gradients": "gradient_error",
    "lag": "lag",
    "true lag": "lag/true",
    "accuracy": "abs_rel/video",
    "fast pixels": "abs_rel/fast_pixels",
    "distance from the teacher": "teacher_diff/per_frame",
}
"""What flicker is traded for. Edges and lag count by their distance from the teacher's, true lag only if it grows; how
far a method is from its teacher counts where there is no ground truth.
"""


class Estimate(NamedTuple):
    """A mean over clips, its standard error (NaN below two clips) and how many clips had a value."""

    value: float
    std_error: float
    num_clips: int


def estimate(values: Sequence[float]) -> Estimate:
    """Average what is finite."""
    finite = np.array([v for v in values if math.isfinite(v)])
    if len(finite) == 0:
        return Estimate(math.nan, math.nan, 0)
    error = float(finite.std(ddof=1) / math.sqrt(len(finite))) if len(finite) > 1 else math.nan
    return Estimate(float(finite.mean()), error, len(finite))


def change(method: Mapping[str, float], teacher: Mapping[str, float], metric: str) -> float:
    """Return a method's change against the teacher on one clip: percent, or a difference (`Column.difference`).

    Of `rtc_τ` it is the change of what is not consistent, 1 − rTC, so that less is better.
    """
    ours, theirs = method.get(metric, math.nan), teacher.get(metric, math.nan)
    if metric.startswith("rtc_"):
        ours, theirs = 1.0 - ours, 1.0 - theirs
    if metric in DIFFERENCES:
        return DIFFERENCES[metric] * (ours - theirs)
    return 100.0 * (ours / theirs - 1.0) if theirs else math.nan


def cost(method: Mapping[str, float], teacher: Mapping[str, float], metric: str) -> float:
    """Return `change` so that less is better: edges and lag by their distance from the teacher's.

    True lag as it is: to follow the truth earlier than the teacher costs nothing. Of true edges it is what their F1
    score loses, or how much farther from 1 their ratio is, in points.
    """
    value = change(method, teacher, metric)
    if metric == "boundary_f1/true":
        return -value
    if metric == "edge_ratio/true":
        return 100.0 * (abs(method.get(metric, math.nan) - 1.0) - abs(teacher.get(metric, math.nan) - 1.0))
    return abs(value) if metric in ("edge_ratio", "lag") else value


def measured(clips: Sequence[ClipScores], teacher: str = TEACHER) -> list[str]:
    """Return the metrics of tables that any clip has of the teacher."""
    return [
        column.metric
        for column in COLUMNS
        if any(math.isfinite(clip[teacher].get(column.metric, math.nan)) for clip in clips)
    ]


def axes_of(metrics: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the metric of flicker that decides, and the axes {name: metric} that it is traded for."""
    flicker = next((metric for metric in FLICKER if metric in metrics), None)
    if flicker is None:  # no two frames see the same, as in stills
        return FLICKER[0], {}
    axes = {name: metric for name, metric in AXES.items() if metric in metrics}
    if "accuracy" in axes:
        axes.pop("distance from the teacher", None)
    return flicker, axes


def costs(
    clips: Sequence[ClipScores], metrics: Sequence[str], teacher: str = TEACHER
) -> dict[str, dict[str, Estimate]]:
    """Return {method: {metric: mean `cost`}} over clips; the teacher's are 0."""
    return {
        name: {m: estimate([cost(clip[name], clip[teacher], m) for clip in clips]) for m in metrics}
        for name in clips[0]
    }


def changes(
    clips: Sequence[ClipScores], metrics: Sequence[str], teacher: str = TEACHER
) -> dict[str, dict[str, Estimate]]:
    """Return {method: {metric: mean change against the teacher}} over clips."""
    return {
        name: {m: estimate([change(clip[name], clip[teacher], m) for clip in clips]) for m in metrics}
        for name in clips[0]
    }


def differences(
    clips: Sequence[ClipScores], student: str, metrics: Sequence[str], teacher: str = TEACHER
) -> dict[str, dict[str, Estimate]]:
    """Return {method: {metric: student − method}}, paired by clip, in points of the teacher's value.

    Below 0 the student is better. Edges and lag by their distance from the teacher's, so that less is better for every
    metric but sDrift.
    """

    def difference(clip: ClipScores, other: str, metric: str) -> float:
        return cost(clip[student], clip[teacher], metric) - cost(clip[other], clip[teacher], metric)

    return {
        other: {metric: estimate([difference(clip, other, metric) for clip in clips]) for metric in metrics}
        for other in clips[0]
        if other != student
    }


def dominance(
    paired: Mapping[str, Mapping[str, Estimate]], flicker: str, axes: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Return {method: {axis: "student", "method" or "neither"}}: who has less flicker and no higher cost, by the means.

    paired: what `differences` returned. A "*" after the word: the difference in flicker exceeds two standard errors.
    """
    return {
        name: {axis: _dominates(metrics[flicker], metrics[metric]) for axis, metric in axes.items()}
        for name, metrics in paired.items()
    }


def pareto_gaps(
    costs_by_method: Mapping[str, Mapping[str, Estimate]],
    curve: Sequence[str],
    points: Sequence[str],
    flicker: str,
    axes: Mapping[str, str],
    teacher: str = TEACHER,
) -> dict[str, dict[str, float]]:
    """Return {point: {axis: flicker of a Pareto front at the point's cost, minus the point's own}}.

    The Pareto front is the curve through the teacher and the methods of `curve`; it is read at the least flicker that
    it reaches for at most the point's cost on the axis. NaN where nothing of it, not even the teacher, is as cheap.

    Args:
        costs_by_method: what `costs` returned. curve: weak to strong.
    """
    return {
        point: {
            axis: _flicker_at(
                [
                    (costs_by_method[name][metric].value, costs_by_method[name][flicker].value)
                    for name in (teacher, *curve)
                ],
                costs_by_method[point][metric].value,
            )
            - costs_by_method[point][flicker].value
            for axis, metric in axes.items()
        }
        for point in points
    }


def compare(clips: Sequence[ClipScores], students: Sequence[str], teacher: str = TEACHER) -> dict[str, Any]:
    """Return everything that is said about clips of one group; `teacher`: the method that others are held against.

    Returns:
        {"flicker", "axes": see `axes_of`, "changes", "worst": {method: its largest change of accuracy}, "students":
        {student: "minus_method", "dominance", "pareto_gaps": {family of filters, or untrained student: {axis: points of
        flicker by which the student lies below its Pareto front}}}, "memory_fronts": {student: {filter: {axis: points
        by which the Pareto front of the student's memories lies below the filter}}}}. Positive gaps: the student is
        better.
    """
    metrics = measured(clips, teacher)
    flicker, axes = axes_of(metrics)
    costs_by_method = costs(clips, metrics, teacher)
    families = {
        name: [m for m in members if m in costs_by_method]
        for name, members in averages(name for name in clips[0] if name not in students).items()
    }
    accuracy = axes.get("accuracy", axes.get("distance from the teacher", ""))
    result: dict[str, Any] = {
        "flicker": flicker,
        "axes": axes,
        "changes": changes(clips, metrics, teacher),
        "worst": {name: max(change(clip[name], clip[teacher], accuracy) for clip in clips) for name in clips[0]},
        "students": {},
    }
    for student in students:
        paired = differences(clips, student, metrics, teacher)
        result["students"][student] = {
            "minus_method": paired,
            "dominance": dominance(paired, flicker, axes),
            "pareto_gaps": {
                name: pareto_gaps(costs_by_method, members, [student], flicker, axes, teacher)[student]
                for name, members in families.items()
                if members
            },
        }
    filters = list(dict.fromkeys(name for members in families.values() for name in members))
    result["memory_fronts"] = {
        name: {
            point: {axis: -gap for axis, gap in gaps.items()}
            for point, gaps in pareto_gaps(costs_by_method, members, filters, flicker, axes, teacher).items()
        }
        for name, members in memories(students).items()
        if len(members) > 1
    }
    return result


def leaderboard(clips: Sequence[ClipScores], against: str, guards_kept: Mapping[str, bool]) -> list[dict[str, Any]]:
    """Return all methods, the steadiest first and those that break a guard last, held against one of them.

    guards_kept: {method: whether it keeps all guards}, see `verdict`.

    Returns:
        [{"method", "guards_kept", "changes": {metric: change against that one, paired by clip}, "wins": clips on
        which the first of these metrics is better than that one's, "num_clips"}]. The metrics are that of flicker
        which decides, and `AXES`; of stills, which have none, those of accuracy. Methods without a value come last of
        their kind.
    """
    metrics = measured(clips, against)
    flicker, axes = axes_of(metrics)
    shown = [metric for metric in (flicker, *axes.values()) if metric in metrics] or metrics
    places = []
    for name in clips[0]:
        changed = {metric: [change(clip[name], clip[against], metric) for clip in clips] for metric in shown}
        decides = changed[shown[0]] if shown else []
        places.append(
            {
                "method": name,
                "guards_kept": guards_kept[name],
                "changes": {metric: estimate(values) for metric, values in changed.items()},
                "wins": sum(value < 0 for value in decides),
                "num_clips": sum(math.isfinite(value) for value in decides),
            }
        )

    def order(place: dict[str, Any]) -> tuple[bool, bool, float]:
        value = place["changes"][shown[0]].value if shown else math.nan
        return not place["guards_kept"], not math.isfinite(value), value if math.isfinite(value) else 0.0

    return sorted(places, key=order)


def _dominates(flicker: Estimate, axis: Estimate) -> str:
    if not (math.isfinite(flicker.value) and math.isfinite(axis.value)):
        return "neither"
    for name, sign in (("student", 1.0), ("method", -1.0)):
        if sign * flicker.value < 0 and sign * axis.value <= 0:
            clear = sign * flicker.value < -2 * flicker.std_error
            return name + ("*" if clear else "")
    return "neither"


def _flicker_at(curve: Sequence[tuple[float, float]], limit: float) -> float:
    """Return the least flicker that a curve of (cost, flicker) reaches for at most the cost `limit`."""
    best = math.nan
    for (c0, f0), (c1, f1) in itertools.pairwise(curve):
        low, high = min(c0, c1), max(c0, c1)
        reached = [f for c, f in ((c0, f0), (c1, f1)) if c <= limit]
        if low < limit < high:
            reached.append(f0 + (f1 - f0) * (limit - c0) / (c1 - c0))
        best = np.nanmin([best, *reached]) if reached else best
    return float(best)
