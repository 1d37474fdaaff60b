"""From clips to a mean, and from a mean to a verdict."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from videomamba_depth.utils.metrics import Score

Mean = dict[str, dict[str, dict[str, float]]]
EDGE_RANGE = (0.9, 1.1)
MAX_LAG_FRAMES = 0.5
ACCURACY_SLACK = 1.01


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


def verdict(mean: Mean, student: str = "student", teacher: str = "teacher") -> dict[str, Any]:
    """Decide whether the student is better: more stable than teacher AND every baseline, with all guards
    kept.

    The stability metric is `tge` (against ground truth) where there is one, else `flk2`. Guards: |lag| < 0.5
    frames, edge ratio within 0.9 … 1.1, and accuracy no more than 1 % worse than the teacher's (`abs_rel`),
    or, without ground truth, no farther from the teacher than the farthest baseline. What was not measured
    counts as not kept.

    Returns:
        {"better": bool, "stability_metric", "beats_teacher", "beats_baselines", "lag_kept", "edges_kept",
        "accuracy_kept", "best_baseline"}; {} without a student.
    """
    if student not in mean:
        return {}
    metric = "tge" if "tge" in mean[student] else "flk2"
    baselines = [row for row in mean if row not in (student, teacher, "constant")]
    ours, edge, lag = (_value(mean, student, name) for name in (metric, "edge_ratio", "lag"))
    scored = {row: _value(mean, row, metric) for row in baselines}
    finite = {row: value for row, value in scored.items() if math.isfinite(value)}
    checks = {
        "beats_teacher": ours < _value(mean, teacher, metric),
        "beats_baselines": len(finite) == len(baselines) and all(ours < value for value in finite.values()),
        "lag_kept": abs(lag) < MAX_LAG_FRAMES,
        "edges_kept": EDGE_RANGE[0] <= edge <= EDGE_RANGE[1],
        "accuracy_kept": _accuracy_kept(mean, student, teacher, baselines),
    }
    best = min(finite, key=lambda row: finite[row]) if finite else None
    return {"better": all(checks.values()), "stability_metric": metric, "best_baseline": best, **checks}


def versions() -> dict[str, str]:
    """Return the versions that a number may depend on."""
    found = {"python": platform.python_version()}
    for package in ("videomamba-depth", "torch", "torchvision", "transformers", "numpy", "opencv-python"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _accuracy_kept(mean: Mean, student: str, teacher: str, baselines: list[str]) -> bool:
    for name in ("abs_rel/video", "abs_rel/metric"):
        if name in mean[student]:
            return _value(mean, student, name) <= ACCURACY_SLACK * _value(mean, teacher, name)
    limits = [_value(mean, row, "teacher_diff/per_frame") for row in baselines]
    return bool(limits) and _value(mean, student, "teacher_diff/per_frame") <= max(limits)


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
