"""Paired comparison of rows over videos: mean ± standard error of the change per video, and who dominates whom."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from videomamba_depth.evaluation.baselines import AVERAGES, STRENGTHS
from videomamba_depth.evaluation.fresh import Scores

RELATIVE = ("tge", "abs_rel/video", "abs_rel/first_frame", "abs_rel/per_frame", "abs_rel/single_image",
            "abs_rel/fast_pixels", "edge_ratio")  # fmt: skip
"""Metrics whose change is a share of the teacher's value, in per cent."""
ABSOLUTE = {"sDrift": 100.0, "sJit": 100.0, "lag": 1.0, "lag/true": 1.0}
"""Metrics whose change is a difference, and its factor: sDrift and sJit in per cent, lags in frames."""
METRICS = (*RELATIVE, *ABSOLUTE)
SHARES = {"teacher_diff/per_frame": 100.0, "settle_after_cut": 1.0}
"""Metrics of single clips that are differences too: the teacher's own is 0."""
AXES = {"edges": "edge_ratio", "lag": "lag", "true lag": "lag/true", "accuracy": "abs_rel/video",
        "fast pixels": "abs_rel/fast_pixels"}  # fmt: skip
"""What flicker is traded for; edges and lag count by their distance from the teacher's, true lag only if it grows."""


class Estimate(NamedTuple):
    """A mean over videos, its standard error (NaN below two videos) and how many videos had a value."""

    value: float
    std_error: float
    num_videos: int


def estimate(values: Sequence[float]) -> Estimate:
    """Average what is finite."""
    finite = np.array([v for v in values if math.isfinite(v)])
    if len(finite) == 0:
        return Estimate(math.nan, math.nan, 0)
    error = float(finite.std(ddof=1) / math.sqrt(len(finite))) if len(finite) > 1 else math.nan
    return Estimate(float(finite.mean()), error, len(finite))


def change(row: Mapping[str, float], teacher: Mapping[str, float], metric: str) -> float:
    """Return a row's change against the teacher on one video: per cent, or a difference (`ABSOLUTE`, `SHARES`).

    Of `rtc_τ` it is the change of what is not consistent, 1 − rTC, so that less is better.
    """
    ours, theirs = row.get(metric, math.nan), teacher.get(metric, math.nan)
    if metric.startswith("rtc_"):
        ours, theirs = 1.0 - ours, 1.0 - theirs
    differences_of = {**ABSOLUTE, **SHARES}
    if metric in differences_of:
        return differences_of[metric] * (ours - theirs)
    return 100.0 * (ours / theirs - 1.0) if theirs else math.nan


def cost(row: Mapping[str, float], teacher: Mapping[str, float], metric: str) -> float:
    """Return `change` so that less is better: edges and lag by their distance from the teacher's.

    True lag as it is: to follow the truth earlier than the teacher costs nothing.
    """
    value = change(row, teacher, metric)
    return abs(value) if metric in ("edge_ratio", "lag") else value


def costs(videos: Sequence[Scores], metrics: Sequence[str] = METRICS) -> dict[str, dict[str, Estimate]]:
    """Return {row: {metric: mean `cost`}} over the videos of one kind; the teacher's are 0."""
    return {
        row: {m: estimate([cost(video[row], video["teacher"], m) for video in videos]) for m in metrics}
        for row in videos[0]
    }


def changes(videos: Sequence[Scores]) -> dict[str, dict[str, Estimate]]:
    """Return {row: {metric: mean change against the teacher}} over the videos of one kind."""
    return {
        row: {
            metric: estimate([change(video[row], video["teacher"], metric) for video in videos]) for metric in METRICS
        }
        for row in videos[0]
    }


def differences(videos: Sequence[Scores], student: str) -> dict[str, dict[str, Estimate]]:
    """Return {row: {metric: student − row}}, paired by video, in points of the teacher's value; < 0: student better.

    Edges and lag by their distance from the teacher's, so that less is better for every metric but sDrift.
    """

    def difference(video: Scores, row: str, metric: str) -> float:
        teacher = video["teacher"]
        return cost(video[student], teacher, metric) - cost(video[row], teacher, metric)

    return {
        row: {metric: estimate([difference(video, row, metric) for video in videos]) for metric in METRICS}
        for row in videos[0]
        if row != student
    }


def dominance(paired: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, str]]:
    """Return {row: {axis: "student", "row" or "neither"}}: who is better in TGE and no worse on the axis, by the means.

    paired: what `differences` returned. A "*" behind the word: the difference in TGE exceeds two standard errors.
    """
    return {
        row: {axis: _dominates(metrics["tge"], metrics[metric]) for axis, metric in AXES.items()}
        for row, metrics in paired.items()
    }


def front_gaps(videos: Sequence[Scores], student: str) -> dict[str, dict[str, float]]:
    """Return {family: {axis: points of TGE by which the student lies below the family's front}}.

    The front of a family of filters is the curve through the teacher and its strengths; the student is held against
    it at the least TGE that the family reaches for the student's price on the axis. Positive: the student is better.
    NaN where nothing of the family, not even the teacher, is as cheap as the student.
    """
    prices = costs(videos)
    ours = prices[student]
    gaps: dict[str, dict[str, float]] = {}
    for family in AVERAGES:
        rows = ["teacher", *(f"{family}_{alpha:g}" for alpha in STRENGTHS)]
        gaps[family] = {
            axis: _tge_at([(prices[row][metric].value, prices[row]["tge"].value) for row in rows], ours[metric].value)
            - ours["tge"].value
            for axis, metric in AXES.items()
        }
    return gaps


def memory_front_gaps(videos: Sequence[Scores], memories: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return {filter: {axis: points of TGE by which the front of a student's memories lies below the filter}}.

    The student's front is the curve through the teacher and its rows, held against each filter at that filter's price
    on the axis. Positive: some memory, or what lies between two, is steadier for no more. NaN where none is as cheap.

    Args:
        memories: the rows of one student, shortest memory first.
    """
    prices = costs(videos)
    gaps: dict[str, dict[str, float]] = {}
    for row in (f"{family}_{alpha:g}" for family in AVERAGES for alpha in STRENGTHS):
        theirs = prices[row]
        gaps[row] = {
            axis: theirs["tge"].value
            - _tge_at(
                [(prices[name][metric].value, prices[name]["tge"].value) for name in ("teacher", *memories)],
                theirs[metric].value,
            )
            for axis, metric in AXES.items()
        }
    return gaps


def compare(videos: Sequence[Scores], students: Sequence[str]) -> dict[str, Any]:
    """Return everything that is said about the videos of one kind."""
    result: dict[str, Any] = {"num_videos": len(videos), "changes": changes(videos), "students": {}}
    for student in students:
        paired = differences(videos, student)
        result["students"][student] = {
            "minus_row": paired,
            "dominance": dominance(paired),
            "front_gaps": front_gaps(videos, student),
        }
    memories = {name: [row for row, _ in rows] for name, rows in _by_student(students).items() if len(rows) > 1}
    result["memory_fronts"] = {name: memory_front_gaps(videos, rows) for name, rows in memories.items()}
    return result


def _by_student(rows: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
    """Return {student: [(row, memory)]}, shortest memory first; a row is called NAME or NAME@MEMORY."""
    found: dict[str, list[tuple[str, float]]] = {}
    for row in rows:
        name, _, memory = row.partition("@")
        found.setdefault(name, []).append((row, float(memory or 1.0)))
    return {name: sorted(each, key=lambda pair: pair[1]) for name, each in found.items()}


def _dominates(tge: Estimate, axis: Estimate) -> str:
    if not (math.isfinite(tge.value) and math.isfinite(axis.value)):
        return "neither"
    for name, sign in (("student", 1.0), ("row", -1.0)):
        if sign * tge.value < 0 and sign * axis.value <= 0:
            clear = sign * tge.value < -2 * tge.std_error
            return name + ("*" if clear else "")
    return "neither"


def _tge_at(front: Sequence[tuple[float, float]], price: float) -> float:
    """Return the least TGE that a curve of (price, TGE) reaches for at most `price`."""
    best = math.nan
    for (p0, g0), (p1, g1) in itertools.pairwise(front):
        low, high = min(p0, p1), max(p0, p1)
        reached = [g for p, g in ((p0, g0), (p1, g1)) if p <= price]
        if low < price < high:
            reached.append(g0 + (g1 - g0) * (price - p0) / (p1 - p0))
        best = np.nanmin([best, *reached]) if reached else best
    return float(best)
