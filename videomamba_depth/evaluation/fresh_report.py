"""What fresh worlds say, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from videomamba_depth.evaluation.paired import AXES, Estimate

HEADINGS = {
    "tge": "TGE %",
    "abs_rel/video": "AbsRel video %",
    "abs_rel/first_frame": "AbsRel first frame %",
    "abs_rel/per_frame": "AbsRel per frame %",
    "abs_rel/single_image": "AbsRel single image %",
    "edge_ratio": "edges %",
    "abs_rel/fast_pixels": "fast pixels %",
    "lag": "lag, frames",
    "lag/true": "true lag, frames",
    "sDrift": "sDrift %/100 frames",
}
PAIRED = ("tge", "abs_rel/video", "abs_rel/per_frame", "edge_ratio", "abs_rel/fast_pixels", "lag", "lag/true")
"""Metrics in which a student is compared with every row."""
KINDS = {"moving": "moving camera", "fast": "3× speed", "static": "static camera", "long": "long streams"}


def fresh_markdown(result: Mapping[str, Any]) -> str:
    """Return the report: changes against the teacher, then paired differences and fronts of every student."""
    parts = ["# Fresh worlds\n", set_line(result)]
    for kind, summary in result["kinds"].items():
        parts.append(f"\n## {KINDS.get(kind, kind)}: {summary['num_videos']} videos\n")
        parts.append("Change against the teacher per video, mean ± standard error.\n")
        parts.append(_table(summary["changes"], list(HEADINGS)))
        if summary["students"]:
            parts.append(_beaten_table(summary["students"]))
        parts += [_memory_front_table(name, gaps) for name, gaps in summary["memory_fronts"].items()]
        for student, compared in summary["students"].items():
            parts.append(f"\n### {student} minus each row ({KINDS.get(kind, kind)})\n")
            parts.append(
                "Paired by video, in points of the teacher's value; below 0 the student is better. Edges and lag by"
                " their distance from the teacher's.\n"
            )
            parts.append(_table(compared["minus_row"], PAIRED, compared["dominance"]))
            parts.append("\n".join(f"- {line}" for line in statement(student, compared)))
            parts.append("\n\\* by more than two standard errors in TGE.\n")
    parts.append(_notes(result))
    return "\n".join(parts).rstrip() + "\n"


def _table(
    rows: Mapping[str, Mapping[str, Estimate]],
    metrics: Sequence[str],
    dominance: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    heads = [HEADINGS[m] for m in metrics] + ([f"better: TGE × {axis}" for axis in AXES] if dominance else [])
    lines = ["| row | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for row, values in rows.items():
        if row == "teacher" and not dominance:
            continue
        cells = [cell(values[m]) for m in metrics]
        cells += [dominance[row][axis] for axis in AXES] if dominance else []
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _beaten_table(students: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which students are steadier than each filter and no worse on the axis: their front against its own."""
    rows = next(iter(students.values()))["dominance"]
    lines = [
        "\nSteadier than the filter and no worse on the axis, by the means (\\*: by more than two standard errors):\n",
        "| filter | " + " | ".join(AXES) + " |",
        "|---|" + "---|" * len(AXES),
    ]
    for row in rows:
        if row in students or row in ("teacher", "constant"):
            continue
        cells = []
        for axis in AXES:
            verdicts = {name: compared["dominance"][row][axis] for name, compared in students.items()}
            better = [name + "\\*" * v.endswith("*") for name, v in verdicts.items() if v.startswith("student")]
            cells.append(", ".join(better) or "–")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _memory_front_table(student: str, gaps: Mapping[str, Mapping[str, float]]) -> str:
    lines = [
        f"\n{memory_caption(student)}:\n",
        "| filter | " + " | ".join(AXES) + " |",
        "|---|" + "---:|" * len(AXES),
    ]
    for row, by_axis in gaps.items():
        cells = [points(by_axis[axis]) for axis in AXES]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def memory_caption(student: str) -> str:
    """Say what a table of `memory_front_gaps` holds."""
    return f"Points of TGE by which the front of {student}'s memories lies below each filter, at the filter's price"


def points(gap: float) -> str:
    """Return a gap of `front_gaps` or `memory_front_gaps` as text."""
    return f"{gap:+.1f}".replace("-", "−") if math.isfinite(gap) else "never as cheap"


def cell(estimate: Estimate) -> str:
    """Return "mean ± standard error" with a sign."""
    if not math.isfinite(estimate.value):
        return "–"
    decimals = 1 if abs(estimate.value) >= 1 else 2
    error = f" ± {estimate.std_error:.{decimals}f}" if math.isfinite(estimate.std_error) else ""
    return f"{estimate.value:+.{decimals}f}{error}".replace("-", "−")


def statement(student: str, compared: Mapping[str, Any]) -> list[str]:
    """Say for every axis whom the student dominates, who dominates it, and its distance from every family's front."""
    lines = []
    for axis in AXES:
        sides: dict[str, list[str]] = {"student": [], "row": []}
        for row, verdicts in compared["dominance"].items():
            side = verdicts[axis].rstrip("*")
            if side in sides and row != "constant":
                sides[side].append(row + ("*" if verdicts[axis].endswith("*") else ""))
        gaps = ", ".join(f"{family} {points(gap[axis])}" for family, gap in compared["front_gaps"].items())
        lines.append(
            f"TGE against {axis}: {student} dominates {', '.join(sides['student']) or 'nothing'}; dominated by"
            f" {', '.join(sides['row']) or 'nothing'}; points of TGE below each family's front: {gaps}."
        )
    return lines


def set_line(result: Mapping[str, Any]) -> str:
    """Say which worlds were used."""
    worlds = result["worlds"]
    return (
        f"Family {worlds['family']}, seeds from {worlds['seed']}, {worlds['height']}×{worlds['width']} px, ground truth"
        f" up to {worlds['max_depth_m']:g} m; {worlds['videos']} videos × {worlds['frames']} frames of each kind,"
        f" {worlds['long_videos']} streams × {worlds['long_frames']} frames.\n"
    )


def _notes(result: Mapping[str, Any]) -> str:
    pairs = {**result["protocol"], **result["metadata"]}
    lines = [f"- {key}: {value}" for key, value in pairs.items() if value is not None]
    lines.append("- versions: " + ", ".join(f"{name} {v}" for name, v in result["versions"].items()))
    return "\n## How it was measured\n\n" + "\n".join(lines) + "\n"
