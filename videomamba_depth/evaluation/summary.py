"""From the results of clips to means, and from means to a verdict."""

from __future__ import annotations

import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from videomamba_depth.evaluation.methods import CONSTANT, TEACHER, is_causal
from videomamba_depth.evaluation.metrics.score import Score
from videomamba_depth.evaluation.paired import compare, leaderboard

Mean = dict[str, dict[str, dict[str, float]]]
EDGE_RANGE = (0.9, 1.1)
MAX_LAG_FRAMES = 0.5
ACCURACY_SLACK = 1.01
ACCURACY_REFERENCE = "ema_0.1"
"""Without ground truth, a method may lie as far from the teacher as this one."""


def summarize_clips(
    clips: Sequence[Mapping[str, Any]],
    skipped: Mapping[str, str],
    students: Sequence[str],
    protocol: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
    against: str | None = None,
) -> dict[str, Any]:
    """Average and compare the results of clips, over all of them and group by group.

    reference, of the protocol: the method that the others are held against; else the teacher. against: the same, of the
    leaderboard alone.

    Returns:
        {"clips": [per clip, see `Evaluator.evaluate`], "skipped": {clip: reason}, "mean", "verdicts", "counts":
        over all clips, "groups": {group: "num_clips", the same three, all of `compare`, and "leaderboard", see
        `leaderboard`}, "reference", "protocol", "versions", "metadata", "pictures": of clips that were drawn}.
    """
    reference = protocol.get("reference", TEACHER)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for clip in clips:
        groups.setdefault(clip["group"], []).append(clip)
    return {
        "clips": [{key: value for key, value in clip.items() if key != "pictures"} for clip in clips],
        "skipped": dict(skipped),
        **_averages(clips, students, reference),
        "groups": {
            name: _averages(members, students, reference) | _compared(members, students, reference, against)
            for name, members in groups.items()
        },
        "reference": reference,
        "protocol": dict(protocol),
        "versions": versions(),
        "metadata": dict(metadata or {}),
        "pictures": [clip["pictures"] for clip in clips if clip.get("pictures") is not None],
    }


def _averages(clips: Sequence[Mapping[str, Any]], students: Sequence[str], reference: str) -> dict[str, Any]:
    mean = mean_methods(clips)
    return {
        "mean": mean,
        "verdicts": {name: verdict(mean, name, reference, students) for name in students},
        "counts": {name: count_better(clips, name, reference, students) for name in students},
    }


def _compared(
    clips: Sequence[Mapping[str, Any]], students: Sequence[str], reference: str, against: str | None
) -> dict[str, Any]:
    scores, mean = [plain_scores(clip) for clip in clips], mean_methods(clips)
    kept = {name: all(_guards(mean, name, reference).values()) for name in mean}
    against = against if against is not None and against in mean else reference
    return {
        "num_clips": len(clips),
        **compare(scores, students, reference),
        "leaderboard": {"against": against, "places": leaderboard(scores, against, kept)},
    }


def plain_scores(clip: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return {method: {metric: value}} of a clip."""
    return {name: {m: score.value for m, score in scores.items()} for name, scores in clip["methods"].items()}


def mean_methods(clips: Sequence[Mapping[str, Any]]) -> Mean:
    """Average every metric of every method over the clips that have it.

    clips: results of `Evaluator.evaluate`. Returns {method: {metric: {"value", "std_error", "num_clips", "coverage"}}};
    NaN scores are left out and show in "num_clips"; std_error is NaN for fewer than two clips. Clips of stills count by
    their pictures, since published means run over pictures.
    """
    collected: dict[str, dict[str, list[tuple[Score, int]]]] = {}
    for clip in clips:
        weight = clip["num_frames"] if clip.get("stills") else 1
        for method, scores in clip["methods"].items():
            for metric, score in scores.items():
                collected.setdefault(method, {}).setdefault(metric, []).append((score, weight))
    return {method: {metric: _mean(s) for metric, s in metrics.items()} for method, metrics in collected.items()}


def verdict(
    mean: Mean, student: str = "student", teacher: str = TEACHER, students: Sequence[str] = ()
) -> dict[str, Any]:
    """Decide whether the student is better: more stable than the teacher AND every baseline that keeps the guards.

    The stability metric is `tge` (against ground truth) where there is one, else `flk2`. Guards, for the student and
    the baselines that it is held against: |lag| < 0.5 frames, edge ratio within 0.9 … 1.1, and accuracy no more than
    1 % worse than the teacher's (`abs_rel`), or, without ground truth, no farther from the teacher than `ema_0.1`.
    What was not measured counts as not kept.

    Args:
        students: other methods that are no baselines; nor are training targets, which see both sides in time.

    Returns:
        {"better": bool, "stability_metric", "beats_teacher", "beats_baselines", "lag_kept", "edges_kept",
        "accuracy_kept", "best_baseline" (of those that keep the guards), "baselines_not_beaten": [any, guards kept or
        not]}; {} without a student.
    """
    if student not in mean:
        return {}
    metric = "tge" if "tge" in mean[student] else "flk2"
    others = [name for name in mean if name not in (student, teacher, CONSTANT, *students)]
    baselines = [name for name in others if is_causal(name)]
    ours = _value(mean, student, metric)
    scored = {name: _value(mean, name, metric) for name in baselines if all(_guards(mean, name, teacher).values())}
    guards = _guards(mean, student, teacher)
    checks = {
        "beats_teacher": ours < _value(mean, teacher, metric),
        "beats_baselines": math.isfinite(ours) and all(ours < value for value in scored.values()),
        **guards,
    }
    best = min(scored, key=lambda name: scored[name]) if scored else None
    unbeaten = [name for name in baselines if not ours < _value(mean, name, metric)]
    found = {"better": all(checks.values()), "stability_metric": metric, "best_baseline": best}
    return {**found, "baselines_not_beaten": unbeaten, **checks}


SHORT_TERM = {"flk2": -1.0, "opw": -1.0, "rtc_1.02": 1.0, "static_std/flicker": -1.0}
"""Short-term stability without ground truth, and the sign of better."""


def count_better(
    clips: Sequence[Mapping[str, Any]], student: str, teacher: str = TEACHER, students: Sequence[str] = ()
) -> dict[str, Any]:
    """Count the clips on which the student is steadier than the teacher in the short term, and keeps the guards.

    Returns:
        {"num_clips", "steadier": by `flk2`, "steadier_guards_kept": and all guards of `verdict`, "better": and every
        baseline that keeps the guards is beaten too, "per_metric": {metric: clips}, "failing": {clip: [guards]}}.
    """
    count: dict[str, Any] = {"num_clips": len(clips), "steadier": 0, "steadier_guards_kept": 0, "better": 0}
    per_metric = dict.fromkeys(SHORT_TERM, 0)
    failing: dict[str, list[str]] = {}
    for clip in clips:
        mean = mean_methods([clip])
        for metric, sign in SHORT_TERM.items():
            per_metric[metric] += sign * _value(mean, student, metric) > sign * _value(mean, teacher, metric)
        guards = [name for name, kept in _guards(mean, student, teacher).items() if not kept]
        steadier = _value(mean, student, "flk2") < _value(mean, teacher, "flk2")
        count["steadier"] += steadier
        count["steadier_guards_kept"] += steadier and not guards
        count["better"] += verdict(mean, student, teacher, students)["better"]
        if guards or not steadier:
            failing[str(clip["name"])] = [*guards, *([] if steadier else ["not steadier"])]
    return {**count, "per_metric": per_metric, "failing": failing}


def versions() -> dict[str, str]:
    """Return the versions that a number may depend on."""
    found = {"python": platform.python_version()}
    packages = ("torch", "torchvision", "transformers", "numpy", "opencv-python", "opencv-python-headless")
    for package in ("videomamba-depth", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found | revision()


@cache
def revision() -> dict[str, str]:
    """Return the commit of this code, and whether it was changed since; nothing outside of a repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {}
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"revision": answer.stdout.strip()} if answer.returncode == 0 else {}


def _guards(mean: Mean, method: str, teacher: str) -> dict[str, bool]:
    return {
        "lag_kept": abs(_value(mean, method, "lag")) < MAX_LAG_FRAMES,
        "edges_kept": EDGE_RANGE[0] <= _value(mean, method, "edge_ratio") <= EDGE_RANGE[1],
        "accuracy_kept": _accuracy_kept(mean, method, teacher),
    }


def _accuracy_kept(mean: Mean, method: str, teacher: str) -> bool:
    for name in ("abs_rel/video", "abs_rel/metric"):
        if name in mean[method]:
            return _value(mean, method, name) <= ACCURACY_SLACK * _value(mean, teacher, name)
    return _value(mean, method, "teacher_diff/per_frame") <= _value(mean, ACCURACY_REFERENCE, "teacher_diff/per_frame")


def _value(mean: Mean, method: str, metric: str) -> float:
    return mean.get(method, {}).get(metric, {}).get("value", math.nan)


def _mean(scores: list[tuple[Score, int]]) -> dict[str, float]:
    finite = [(score.value, weight) for score, weight in scores if math.isfinite(score.value)]
    values, weights = (np.array([pair[i] for pair in finite]) for i in (0, 1))
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    alike = len(set(weights.tolist())) < 2
    mean = math.nan if not finite else float(values.mean() if alike else np.average(values, weights=weights))
    return {
        "value": mean,
        "std_error": error,
        "num_clips": len(values),
        "coverage": float(np.mean([score.coverage for score, _ in scores])),
    }
