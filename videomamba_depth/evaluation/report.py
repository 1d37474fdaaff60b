"""Write results for machines (JSON) and for people (Markdown)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videomamba_depth.data.video.find import summarize
from videomamba_depth.evaluation.metrics import Score
from videomamba_depth.utils import atomic
from videomamba_depth.utils.atomic import to_json


@dataclass(frozen=True)
class Column:
    """How a metric is shown: heading, factor (100: per cent), decimals, and which way is better ("↓", "↑",
    "1", "0").
    """

    metric: str
    heading: str
    factor: float = 100.0
    decimals: int = 2
    better: str = "↓"


ACCURACY_COLUMNS = (
    Column("abs_rel/video", "AbsRel video"),
    Column("abs_rel/first_frame", "AbsRel first frame"),
    Column("abs_rel/per_frame", "AbsRel per frame"),
    Column("abs_rel/metric", "AbsRel metric"),
    Column("delta1/video", "δ1 video", better="↑"),
    Column("delta1/metric", "δ1 metric", better="↑"),
    Column("abs_rel/fast_pixels", "AbsRel fast px"),
    Column("teacher_diff/per_frame", "teacher diff"),
)
STABILITY_COLUMNS = (
    Column("tge", "TGE"),
    Column("tae_z", "TAEz", factor=1.0),
    Column("opw", "OPW/clip"),
    Column("rtc_1.02", "rTC 1.02", decimals=1, better="↑"),
    Column("flk2", "Flk2"),
    Column("static_std/flicker", "static flicker"),
    Column("sJit", "sJit"),
    Column("sDrift", "sDrift", decimals=1, better="0"),
    Column("palindrome_drift", "palindrome"),
)
GUARD_COLUMNS = (
    Column("edge_ratio", "edges", factor=1.0, better="1"),
    Column("boundary_f1", "edge F1", factor=1.0, better="↑"),
    Column("lag", "lag (frames)", factor=1.0, better="0"),
    Column("settle_after_cut", "settled after a cut (frames)", factor=1.0, decimals=1),
)


def to_jsonable(value: Any) -> Any:
    """Turn results into plain JSON types; a `Score` becomes {"value", "coverage", "reason"}, NaN becomes
    null.
    """
    if isinstance(value, Score):
        plain = {"value": value.value, "coverage": value.coverage}
        return to_jsonable(plain | ({"reason": value.reason} if value.reason else {}))
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def write_json(result: Mapping[str, Any], path: str | Path) -> Path:
    """Write the result of `evaluate_videos` as JSON, atomically; return the path."""
    return write_text(path, to_json(to_jsonable(result), indent=2) + "\n")


def write_markdown(result: Mapping[str, Any], path: str | Path) -> Path:
    """Write the result of `evaluate_videos` as Markdown, atomically; return the path."""
    return write_text(path, to_markdown(result))


def to_markdown(result: Mapping[str, Any], per_clip: bool = True) -> str:
    """Return the report: mean table, verdicts, and one table per clip. Stability never stands without its guards."""
    clips = result["clips"]
    parts = [f"# Depth over time: {len(clips)} clip{'s' if len(clips) != 1 else ''}\n"]
    flags = {row: sorted({f for clip in clips for f in clip["flags"].get(row, [])}) for row in result["mean"]}
    parts.append(table(result["mean"], flags))
    for student, checks in result["verdicts"].items():
        parts.append(verdict_line(student, checks))
        parts.append(count_line(student, result["counts"][student]))
    if line := skipped_line(result):
        parts.append(line)
    parts.append(_notes(result))
    for clip in clips if per_clip and len(clips) > 1 else []:
        rows = {
            row: {metric: {"value": score.value} for metric, score in scores.items()}
            for row, scores in clip["rows"].items()
        }
        cuts = f", cuts at {clip['cuts']}" if clip["cuts"] else ""
        size = "×".join(str(side) for side in clip["size"])
        parts.append(f"\n## {clip['name']}\n\n{clip['num_frames']} frames, {size} px, ")
        parts[-1] += f"flow trusted on {100 * clip['coverage']:.0f} % of pixels{cuts}\n"
        parts.append(table(rows, clip["flags"]))
    return "\n".join(parts).rstrip() + "\n"


def table(
    rows: Mapping[str, Mapping[str, Mapping[str, float]]], flags: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Return one Markdown table, rows × the columns that any row has; "–" where a metric is not defined.

    rows: {row: {metric: {"value", optional "std_error"}}}. flags: {row: warnings}, shown behind the row's
    name.
    """
    wanted = (*ACCURACY_COLUMNS, *STABILITY_COLUMNS, *GUARD_COLUMNS)
    columns = [c for c in wanted if any(math.isfinite(_value(m, c.metric)) for m in rows.values())]
    lines = ["| row | " + " | ".join(column_heading(c) for c in columns) + " |", "|---|" + "---:|" * len(columns)]
    for row, metrics in rows.items():
        note = ", ".join((flags or {}).get(row, []))
        cells = [metric_cell(metrics.get(c.metric, {}), c) for c in columns]
        lines.append(f"| {row}{f' ({note})' if note else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def column_heading(column: Column) -> str:
    """Return the heading with its factor and which way is better."""
    unit = " ×100" if column.factor == 100.0 or column.metric == "tae_z" else ""
    better = {"1": "→ 1", "0": "→ 0"}.get(column.better, column.better)
    return f"{column.heading}{unit} {better}"


def metric_cell(entry: Mapping[str, float], column: Column) -> str:
    """Return "value ± standard error" in the column's unit, "–" where there is none."""
    value = entry.get("value", math.nan)
    if not math.isfinite(value):
        return "–"
    error = entry.get("std_error", math.nan)
    spread = f" ± {column.factor * error:.{column.decimals}f}" if math.isfinite(error) else ""
    return f"{column.factor * value:.{column.decimals}f}{spread}"


def _value(metrics: Mapping[str, Mapping[str, float]], metric: str) -> float:
    return metrics.get(metric, {}).get("value", math.nan)


def verdict_line(student: str, checks: Mapping[str, Any]) -> str:
    """Return what `verdict` found, in words."""
    names = ("beats_teacher", "beats_baselines", "lag_kept", "edges_kept", "accuracy_kept")
    detail = ", ".join(f"{name.replace('_', ' ')}: {'yes' if checks[name] else 'no'}" for name in names)
    answer = "better" if checks["better"] else "not better"
    unbeaten = ", ".join(checks["baselines_not_beaten"]) or "none"
    return (
        f"Verdict: {student} is **{answer}** ({checks['stability_metric']}; {detail}). Baselines that are at least as"
        f" steady, guards kept or not: {unbeaten}.\n"
    )


def count_line(student: str, count: Mapping[str, Any]) -> str:
    """Return what `count_better` found, in words."""
    total = count["num_clips"]
    metrics = ", ".join(f"{metric} {k}" for metric, k in count["per_metric"].items())
    failing = "; ".join(f"{clip}: {', '.join(why)}" for clip, why in count["failing"].items())
    return (
        f"{student} is steadier than the teacher in the short term on {count['steadier']} of {total} clips, with all"
        f" guards kept on **{count['steadier_guards_kept']} of {total}**, and better than every filter that keeps them"
        f" on {count['better']} (by metric: {metrics})." + (f" Not on: {failing}." if failing else "") + "\n"
    )


def skipped_line(result: Mapping[str, Any]) -> str:
    """Return which clips could not be used, and why; nothing where all could."""
    skipped = result["skipped"]
    clips = len(skipped) + len(result["clips"])
    return f"Skipped {len(skipped)} of {clips} clips: {summarize(skipped)}.\n" if skipped else ""


def _notes(result: Mapping[str, Any]) -> str:
    alignments = sorted({clip["alignment"] for clip in result["clips"]})
    pairs = {**result["protocol"], "alignment of stability": "; ".join(alignments), **result["metadata"]}
    lines = [f"- {key}: {value}" for key, value in pairs.items() if value is not None]
    lines.append("- versions: " + ", ".join(f"{name} {v}" for name, v in result["versions"].items()))
    lines.append("- – means not defined (the JSON says why); ± is the standard error over clips")
    return "\n".join(lines) + "\n"


def write_text(path: str | Path, text: str) -> Path:
    """Write text atomically, making the folder where needed; return the path. Raises as `atomic.replacing`."""
    path = Path(path)
    with atomic.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, text)
    return path
