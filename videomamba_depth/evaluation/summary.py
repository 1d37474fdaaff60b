"""From clips to a mean, and from a mean to a verdict."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from videomamba_depth.evaluation.metrics import Score

Mean = dict[str, dict[str, dict[str, float]]]
EDGE_RANGE = (0.9, 1.1)
MAX_LAG_FRAMES = 0.5
ACCURACY_SLACK = 1.01
ACCURACY_REFERENCE = "ema_0.1"
"""Without ground truth, a row may lie as far from the teacher as this one."""


def mean_rows(clips: Sequence[Mapping[str, Any]]) -> Mean:
    """Average every metric of every row over the clips that have it.

    clips: results of `evaluate_video`. Returns {row: {metric: {"value", "std_error", "num_clips",
    "coverage"}}}; NaN scores are left out and show in "num_clips"; std_error is NaN for fewer than two clips.
    """
    collected: dict[str, dict[str, list[Score]]] = {}
    for clip in clips:
        for row, scores in clip["rows"].items():
            for metric, score in scores.items():
                collected.setdefault(row, {}).setdefault(metric, []).append(score)
    return {row: {metric: _mean(s) for metric, s in metrics.items()} for row, metrics in collected.items()}


def verdict(
    mean: Mean, student: str = "student", teacher: str = "teacher", students: Sequence[str] = ()
) -> dict[str, Any]:
    """Decide whether the student is better: more stable than the teacher AND every baseline that keeps the guards.

    The stability metric is `tge` (against ground truth) where there is one, else `flk2`. Guards, for the student and
    the baselines that it is held against: |lag| < 0.5 frames, edge ratio within 0.9 … 1.1, and accuracy no more than
    1 % worse than the teacher's (`abs_rel`), or, without ground truth, no farther from the teacher than `ema_0.1`.
    What was not measured counts as not kept.

    Args:
        students: other rows that are no baselines.

    Returns:
        {"better": bool, "stability_metric", "beats_teacher", "beats_baselines", "lag_kept", "edges_kept",
        "accuracy_kept", "best_baseline" (of those that keep the guards), "baselines_not_beaten": [any, guards kept or
        not]}; {} without a student.
    """
    if student not in mean:
        return {}
    metric = "tge" if "tge" in mean[student] else "flk2"
    baselines = [row for row in mean if row not in (student, teacher, "constant", *students)]
    ours = _value(mean, student, metric)
    scored = {row: _value(mean, row, metric) for row in baselines if all(_guards(mean, row, teacher).values())}
    guards = _guards(mean, student, teacher)
    checks = {
        "beats_teacher": ours < _value(mean, teacher, metric),
        "beats_baselines": math.isfinite(ours) and all(ours < value for value in scored.values()),
        **guards,
    }
    best = min(scored, key=lambda row: scored[row]) if scored else None
    unbeaten = [row for row in baselines if not ours < _value(mean, row, metric)]
    found = {"better": all(checks.values()), "stability_metric": metric, "best_baseline": best}
    return {**found, "baselines_not_beaten": unbeaten, **checks}


SHORT_TERM = {"flk2": -1.0, "opw": -1.0, "rtc_1.02": 1.0, "static_std/flicker": -1.0}
"""Short-term stability without ground truth, and the sign of better."""


def count_better(clips: Sequence[Mapping[str, Any]], student: str, students: Sequence[str] = ()) -> dict[str, Any]:
    """Count the clips on which the student is steadier than the teacher in the short term, and keeps the guards.

    Returns:
        {"num_clips", "steadier": by `flk2`, "steadier_guards_kept": and all guards of `verdict`, "better": and every
        baseline that keeps the guards is beaten too, "per_metric": {metric: clips}, "failing": {clip: [guards]}}.
    """
    count: dict[str, Any] = {"num_clips": len(clips), "steadier": 0, "steadier_guards_kept": 0, "better": 0}
    per_metric = dict.fromkeys(SHORT_TERM, 0)
    failing: dict[str, list[str]] = {}
    for clip in clips:
        mean = mean_rows([clip])
        for metric, sign in SHORT_TERM.items():
            per_metric[metric] += sign * _value(mean, student, metric) > sign * _value(mean, "teacher", metric)
        guards = [name for name, kept in _guards(mean, student, "teacher").items() if not kept]
        steadier = _value(mean, student, "flk2") < _value(mean, "teacher", "flk2")
        count["steadier"] += steadier
        count["steadier_guards_kept"] += steadier and not guards
        count["better"] += verdict(mean, student, students=students)["better"]
        if guards or not steadier:
            failing[str(clip["name"])] = [*guards, *([] if steadier else ["not steadier"])]
    return {**count, "per_metric": per_metric, "failing": failing}


def versions() -> dict[str, str]:
    """Return the versions that a number may depend on."""
    found = {"python": platform.python_version()}
    for package in ("videomamba-depth", "torch", "torchvision", "transformers", "numpy", "opencv-python"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _guards(mean: Mean, row: str, teacher: str) -> dict[str, bool]:
    return {
        "lag_kept": abs(_value(mean, row, "lag")) < MAX_LAG_FRAMES,
        "edges_kept": EDGE_RANGE[0] <= _value(mean, row, "edge_ratio") <= EDGE_RANGE[1],
        "accuracy_kept": _accuracy_kept(mean, row, teacher),
    }


def _accuracy_kept(mean: Mean, row: str, teacher: str) -> bool:
    for name in ("abs_rel/video", "abs_rel/metric"):
        if name in mean[row]:
            return _value(mean, row, name) <= ACCURACY_SLACK * _value(mean, teacher, name)
    return _value(mean, row, "teacher_diff/per_frame") <= _value(mean, ACCURACY_REFERENCE, "teacher_diff/per_frame")


def _value(mean: Mean, row: str, metric: str) -> float:
    return mean.get(row, {}).get(metric, {}).get("value", math.nan)


def _mean(scores: list[Score]) -> dict[str, float]:
    values = np.array([score.value for score in scores if math.isfinite(score.value)])
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return {
        "value": float(values.mean()) if len(values) else math.nan,
        "std_error": error,
        "num_clips": len(values),
        "coverage": float(np.mean([score.coverage for score in scores])),
    }
