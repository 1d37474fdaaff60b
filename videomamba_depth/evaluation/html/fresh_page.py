"""The page of `scripts/evaluate_fresh.py`: kinds of worlds, each with its fronts and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from videomamba_depth.evaluation.fresh_report import (
    HEADINGS,
    KINDS,
    PAIRED,
    cell,
    memory_caption,
    points,
    set_line,
    statement,
)
from videomamba_depth.evaluation.html.clips_page import PRICES, row_class
from videomamba_depth.evaluation.html.front_plot import Axis, front_plot, points_of
from videomamba_depth.evaluation.html.page import Page, Section, Table
from videomamba_depth.evaluation.html.pictures import ClipPictures
from videomamba_depth.evaluation.paired import AXES, Estimate, costs

DOMINATES = (
    "A row dominates another when it is steadier (TGE) and no worse on the other axis, by the means; * by more than two"
    " standard errors in TGE. Points below a family's front: how much steadier than its filter of the same price."
)


def fresh_page(result: Mapping[str, Any], pictures: Mapping[str, Sequence[ClipPictures]] | None = None) -> Page:
    """Return the page of a result of `scripts/evaluate_fresh.py`. pictures: {kind: of some of its worlds}."""
    students = list(next(iter(result["kinds"].values()))["students"])
    sections = [_kind_section(kind, result, students, (pictures or {}).get(kind, ())) for kind in result["kinds"]]
    metadata = {
        **{key: value for key, value in result["metadata"].items() if value is not None},
        "protocol": result["protocol"],
        "worlds": {name: ", ".join(f"{k} {v}" for k, v in spec.items()) for name, spec in result["specs"].items()},
        "versions": result["versions"],
    }
    return Page("Fresh worlds", [set_line(result), DOMINATES], sections, metadata, students)


def _kind_section(
    kind: str, result: Mapping[str, Any], students: Sequence[str], pictures: Sequence[ClipPictures]
) -> Section:
    summary = result["kinds"][kind]
    table = costs(list(result["videos"][kind].values()), ["tge", *AXES.values()])
    upwards = Axis("TGE: change, %", 150.0)
    plots = [
        front_plot(points_of(table, price, "tge", students), students, PRICES[price], upwards)
        for price in AXES.values()
    ]
    as_trained = [student for student in students if "@" not in student] or students
    told = [line for student in as_trained for line in statement(student, summary["students"][student])]
    fronts = [_memory_front(name, gaps) for name, gaps in summary["memory_fronts"].items()]
    changes = _table("Change against the teacher per video, mean ± standard error", summary["changes"], list(HEADINGS))
    paired = [
        _table(f"{student} minus each row, paired by video, in points of the teacher's value; below 0 the student is"
               " better", compared["minus_row"], PAIRED, compared["dominance"])
        for student, compared in summary["students"].items()
    ]  # fmt: skip
    title = f"{KINDS.get(kind, kind)}: {summary['num_videos']} videos".capitalize()
    return Section(title, told, [plots[:3], plots[3:]], [*fronts, changes], paired, pictures)


def _memory_front(student: str, gaps: Mapping[str, Mapping[str, float]]) -> Table:
    lines = [(row, row_class(row), [points(by_axis[axis]) for axis in AXES]) for row, by_axis in gaps.items()]
    return Table(memory_caption(student), list(AXES), lines)


def _table(
    caption: str,
    rows: Mapping[str, Mapping[str, Estimate]],
    metrics: Sequence[str],
    dominance: Mapping[str, Mapping[str, str]] | None = None,
) -> Table:
    columns = [HEADINGS[m] for m in metrics] + ([f"better: TGE × {axis}" for axis in AXES] if dominance else [])
    lines = []
    for row, values in rows.items():
        if row != "teacher" or dominance:
            verdicts = [dominance[row][axis] for axis in AXES] if dominance else []
            lines.append((row, row_class(row), [cell(values[m]) for m in metrics] + verdicts))
    return Table(caption, columns, lines)
