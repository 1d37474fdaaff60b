"""Results as a report for people: made of tables once, written as Markdown here and as HTML in `html/`; and as JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videomamba_depth.data.video.find import summarize
from videomamba_depth.evaluation.cache import to_jsonable, write_text
from videomamba_depth.evaluation.datasets.world_kinds import KINDS
from videomamba_depth.evaluation.methods import CONSTANT, TEACHER, family_of
from videomamba_depth.evaluation.metrics.registry import COLUMNS, Column
from videomamba_depth.evaluation.paired import DIFFERENCES, Estimate, change, estimate
from videomamba_depth.evaluation.pictures import ClipPictures
from videomamba_depth.evaluation.summary import plain_scores
from videomamba_depth.utils.atomic import to_json

BY_METRIC = {column.metric: column for column in COLUMNS}
DOMINATES = (
    "A method dominates another when it flickers less and costs no more on the other axis, by the means; * by more"
    " than two standard errors. Points below a family's Pareto front: how much less flicker than its filter of equal"
    " cost."
)


@dataclass(frozen=True)
class Table:
    """columns: headings. groups: (heading, number of columns) above them. rows: (name, CSS class, cells)."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[str]]]
    groups: Sequence[tuple[str, int]] = ()
    first: str = "method"


@dataclass(frozen=True)
class Section:
    """A part of the report under its own heading.

    text: paragraphs. folded: tables that open on a click. group: of the result, whose plots stand here in HTML.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()
    pictures: Sequence[ClipPictures] = ()
    group: str | None = None


@dataclass(frozen=True)
class Report:
    """metadata: how it was measured; nested mappings become nested lists."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    metadata: Mapping[str, Any]


def build_report(result: Mapping[str, Any], per_clip: bool = True) -> Report:
    """Return the report of a result of `evaluate_clips`: groups of clips, then clip by clip."""
    clips, groups = result["clips"], result["groups"]
    title = f"Depth over time: {len(clips)} clip{'s' if len(clips) != 1 else ''}"
    lead = [line for line in [_skipped_line(result)] if line] + [DOMINATES]
    sections = [_group_section(name, result) for name in groups]
    if per_clip and len(clips) > 1:
        sections.append(Section("Clip by clip", folded=[_clip_table(clip) for clip in clips] + _by_clip_tables(result)))
    frames = {
        clip["name"]: f"{clip['num_frames']} frames: {folded_ranges(clip['frame_ids'])}; {clip['alignment']}"
        + ("; exact flow" if clip["exact_motion"] else "")
        for clip in clips
    }
    metadata = {
        **{key: value for key, value in result["metadata"].items() if value is not None},
        "protocol": {key: value for key, value in result["protocol"].items() if value is not None},
        "clips, frames, alignment of stability": frames,
        "versions": result["versions"],
    }
    return Report(title, lead, sections, metadata)


def _group_section(name: str, result: Mapping[str, Any]) -> Section:
    group = result["groups"][name]
    members = [clip for clip in result["clips"] if clip["group"] == name]
    students = group["students"]
    flags = {method: sorted({f for clip in members for f in clip["flags"].get(method, [])}) for method in group["mean"]}
    reference = result.get("reference", TEACHER)
    changes = {method: values for method, values in group["changes"].items() if method != reference}
    axes = list(group["axes"])
    as_trained = [student for student in students if "@" not in student] or list(students)
    text = [
        line
        for student in (as_trained if axes else [])  # of stills nothing is said about time
        for line in (
            _verdict_line(student, group["verdicts"][student]),
            _count_line(student, group["counts"][student]),
            *_statements(student, students[student], group),
        )
    ]
    tables = [
        metric_table("Mean ± standard error over clips", group["mean"], flags),
        _leaderboard_table(**group["leaderboard"]),
        _change_table(
            f"Change against {_named(reference)}, paired by clip: mean ± standard error", changes, worst=group["worst"]
        ),
        *([_dominated_table(students, axes, reference)] if students and axes else []),
        *(_gap_table(student, gaps, axes) for student, gaps in group["memory_fronts"].items()),
    ]
    paired = [
        _change_table(
            f"{student} minus each method, paired by clip, in points of the teacher's value; below 0 it is better",
            compared["minus_method"],
            compared["dominance"],
        )
        for student, compared in students.items()
    ]
    kind = KINDS[name].title if name in KINDS else name
    title = f"{kind or 'All clips'}: {group['num_clips']} clip{'s' if group['num_clips'] != 1 else ''}"
    pictures = [p for p in result.get("pictures", ()) if p.name in {clip["name"] for clip in members}]
    return Section(title[0].upper() + title[1:], text, tables, paired, pictures, name)


def metric_table(
    caption: str,
    methods: Mapping[str, Mapping[str, Mapping[str, float]]],
    flags: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """Return methods × the metrics that any of them has, under accuracy, stability and guards.

    methods: {method: {metric: {"value", optional "std_error"}}}. flags: {method: warnings}, after its name.
    """
    columns = [
        c for c in COLUMNS if any(math.isfinite(m.get(c.metric, {}).get("value", math.nan)) for m in methods.values())
    ]
    groups = [(name, sum(c.group == name for c in columns)) for name in dict.fromkeys(c.group for c in columns)]
    rows = []
    for method, metrics in methods.items():
        warnings = (flags or {}).get(method)
        label = f"{method} ({', '.join(warnings)})" if warnings else method
        rows.append((label, family_of(method), [_metric_cell(metrics.get(c.metric, {}), c) for c in columns]))
    return Table(caption, [c.title for c in columns], rows, groups)


def _change_table(
    caption: str,
    methods: Mapping[str, Mapping[str, Estimate]],
    dominance: Mapping[str, Mapping[str, str]] | None = None,
    worst: Mapping[str, float] | None = None,
) -> Table:
    columns = [*map(change_title, next(iter(methods.values()), {}))]
    rows = [(name, family_of(name), [*map(cell, values.values())]) for name, values in methods.items()]
    if worst is not None:
        columns.append("accuracy, worst clip %")
        rows = [(name, kind, [*cells, cell(Estimate(worst[name], math.nan, 1))]) for name, kind, cells in rows]
    if dominance is not None:
        columns += [f"better: flicker × {axis}" for axis in next(iter(dominance.values()), {})]
        rows = [(name, kind, [*cells, *dominance[name].values()]) for name, kind, cells in rows]
    return Table(caption, columns, rows)


def _leaderboard_table(against: str, places: Sequence[Mapping[str, Any]]) -> Table:
    """Return the methods in the order of their flicker, those that break a guard last."""
    metrics = list(places[0]["changes"])
    rows = []
    for number, place in enumerate(places, 1):
        name = place["method"]
        wins = "–" if name == against else f"{place['wins']} of {place['num_clips']}"
        cells = [str(number), *(cell(place["changes"][metric]) for metric in metrics)]
        rows.append((name, family_of(name), [*cells, wins, "kept" if place["guards_kept"] else "broken"]))
    caption = f"Leaderboard: change against {against}, paired by clip, mean ± standard error; broken guards rank last"
    return Table(caption, ["rank", *map(change_title, metrics), "better on clips", "guards"], rows)


def change_title(metric: str) -> str:
    """Return the heading of a metric's change against the teacher, with its unit."""
    heading = BY_METRIC[metric].heading
    heading = f"1 − {heading}" if metric.startswith("rtc_") else heading
    return heading if DIFFERENCES.get(metric) == 1.0 else f"{heading} %"


def _dominated_table(students: Mapping[str, Mapping[str, Any]], axes: Sequence[str], reference: str) -> Table:
    """Return which students flicker less than each filter and cost no more on the axis."""
    rows = []
    for name in next(iter(students.values()))["dominance"]:
        if name in students or name in (reference, CONSTANT):
            continue
        cells = []
        for axis in axes:
            verdicts = {student: compared["dominance"][name][axis] for student, compared in students.items()}
            cells.append(
                ", ".join(s + "*" * v.endswith("*") for s, v in verdicts.items() if v.startswith("student")) or "–"
            )
        rows.append((name, family_of(name), cells))
    return Table("Students that dominate each filter, axis by axis", axes, rows)


def _gap_table(student: str, gaps: Mapping[str, Mapping[str, float]], axes: Sequence[str]) -> Table:
    caption = f"Points of flicker by which the Pareto front of {student}'s memories lies below each filter, at its cost"
    rows = [(name, family_of(name), [_points(by_axis[a]) for a in axes]) for name, by_axis in gaps.items()]
    return Table(caption, axes, rows)


def _clip_table(clip: Mapping[str, Any]) -> Table:
    methods = {
        method: {metric: {"value": score.value} for metric, score in scores.items()}
        for method, scores in clip["methods"].items()
    }
    size = "×".join(str(side) for side in clip["size"])
    cuts = f", cuts at {clip['cuts']}" if clip["cuts"] else ""
    if clip.get("stills"):
        return metric_table(f"{clip['name']}: {clip['num_frames']} pictures, {size} px", methods, clip["flags"])
    caption = f"{clip['name']}: {clip['num_frames']} frames, {size} px, {clip['fps']:.4g} frames/s, flow trusted on"
    return metric_table(f"{caption} {100 * clip['coverage']:.0f} % of pixels{cuts}", methods, clip["flags"])


def _by_clip_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the students' changes against the teacher clip by clip."""
    tables = []
    scores = [(clip["name"], plain_scores(clip)) for clip in result["clips"]]
    reference = result.get("reference", TEACHER)
    metrics = list(dict.fromkeys(m for g in result["groups"].values() for m in g["changes"].get(reference, ())))
    for student in result["verdicts"]:
        rows = [
            (name, "", [cell(estimate([change(clip[student], clip[reference], m)])) for m in metrics])
            for name, clip in scores
        ]
        tables.append(
            Table(f"{student}: change against {_named(reference)}", [*map(change_title, metrics)], rows, first="clip")
        )
    return tables


def to_markdown(result: Mapping[str, Any], per_clip: bool = True) -> str:
    """Return the report as Markdown. Stability never stands without its guards."""
    report = build_report(result, per_clip)
    parts = [f"# {report.title}\n", *(f"{line}\n" for line in report.lead)]
    for section in report.sections:
        parts += [f"## {section.title}\n", "".join(f"- {line}\n" for line in section.text)]
        parts += [table_markdown(table) for table in (*section.tables, *section.folded)]
    parts.append("## How it was measured\n\n" + _listed(report.metadata))
    parts.append("– means not defined (the JSON says why); ± is the standard error over clips")
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def table_markdown(table: Table) -> str:
    """Return a table as Markdown below its caption."""
    lines = [
        _markdown_line(table.first, *table.columns),
        "|---|" + "---:|" * len(table.columns),
        *(_markdown_line(name, *cells) for name, _, cells in table.rows),
    ]
    return (f"{table.caption}:\n\n" if table.caption else "") + "\n".join(lines).replace("*", "\\*") + "\n"


def _markdown_line(*cells: str) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def _listed(values: Mapping[str, Any], depth: int = 0) -> str:
    lines = ""
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        lines += "  " * depth + f"- {key}:" + ("\n" + _listed(value, depth + 1) if nested else f" {value}\n")
    return lines


def _metric_cell(entry: Mapping[str, float], column: Column) -> str:
    """Return "value ± standard error" in the column's unit, "–" where there is none."""
    value, error = entry.get("value", math.nan), entry.get("std_error", math.nan)
    if not math.isfinite(value):
        return "–"
    spread = f" ± {column.factor * error:.{column.decimals}f}" if math.isfinite(error) else ""
    return f"{column.factor * value:.{column.decimals}f}{spread}"


def cell(value: Estimate, decimals: int | None = None) -> str:
    """Return "mean ± standard error" with a sign."""
    if not math.isfinite(value.value):
        return "–"
    digits = (1 if abs(value.value) >= 1 else 2) if decimals is None else decimals
    error = f" ± {value.std_error:.{digits}f}" if math.isfinite(value.std_error) else ""
    return f"{value.value:+.{digits}f}{error}".replace("-", "−")


def _named(reference: str) -> str:
    """Return what the reference is called in a sentence."""
    return "the teacher" if reference == TEACHER else reference


def _points(gap: float) -> str:
    return f"{gap:+.1f}".replace("-", "−") if math.isfinite(gap) else "never as cheap"


def _verdict_line(student: str, checks: Mapping[str, Any]) -> str:
    """Return what `verdict` found, in words."""
    names = ("beats_teacher", "beats_baselines", "lag_kept", "edges_kept", "accuracy_kept")
    detail = ", ".join(f"{name.replace('_', ' ')}: {'yes' if checks[name] else 'no'}" for name in names)
    answer = "better" if checks["better"] else "not better"
    unbeaten = ", ".join(checks["baselines_not_beaten"]) or "none"
    return (
        f"Verdict: {student} is **{answer}** ({checks['stability_metric']}; {detail}). Baselines that are at least as"
        f" steady, guards kept or not: {unbeaten}."
    )


def _count_line(student: str, count: Mapping[str, Any]) -> str:
    """Return what `count_better` found, in words."""
    total = count["num_clips"]
    metrics = ", ".join(f"{metric} {k}" for metric, k in count["per_metric"].items())
    failing = "; ".join(f"{clip}: {', '.join(reasons)}" for clip, reasons in count["failing"].items())
    return (
        f"{student} is steadier than the teacher in the short term on {count['steadier']} of {total} clips, with all"
        f" guards kept on **{count['steadier_guards_kept']} of {total}**, and better than every filter that keeps them"
        f" on {count['better']} (by metric: {metrics})." + (f" Not on: {failing}." if failing else "")
    )


def _statements(student: str, compared: Mapping[str, Any], group: Mapping[str, Any]) -> list[str]:
    """Say for every axis whom the student dominates, who dominates it, and its gap to each family's Pareto front."""
    lines = []
    flicker = BY_METRIC[group["flicker"]].heading
    for axis in group["axes"]:
        sides: dict[str, list[str]] = {"student": [], "method": []}
        for name, verdicts in compared["dominance"].items():
            side = verdicts[axis].rstrip("*")
            if side in sides and name != CONSTANT:
                sides[side].append(name + ("*" if verdicts[axis].endswith("*") else ""))
        gaps = ", ".join(f"{family} {_points(gap[axis])}" for family, gap in compared["pareto_gaps"].items())
        lines.append(
            f"{flicker} against {axis}: {student} dominates {', '.join(sides['student']) or 'nothing'}; dominated by"
            f" {', '.join(sides['method']) or 'nothing'}; points of {flicker} below each family's Pareto front: {gaps}."
        )
    return lines


def _skipped_line(result: Mapping[str, Any]) -> str:
    """Return which clips could not be used, and why; nothing where all could."""
    skipped = result["skipped"]
    clips = len(skipped) + len(result["clips"])
    return f"Skipped {len(skipped)} of {clips} clips: {summarize(skipped)}." if skipped else ""


def folded_ranges(ids: Sequence[Any]) -> str:
    """Return a frame list in short: 0, 1, 2, 5 → "0–2, 5"."""
    pieces: list[list[Any]] = []
    for frame in ids:
        if pieces and isinstance(frame, int) and isinstance(pieces[-1][-1], int) and frame == pieces[-1][-1] + 1:
            pieces[-1][1:] = [frame]
        else:
            pieces.append([frame])
    return ", ".join("–".join(str(end) for end in piece) for piece in pieces)


def write_json(result: Mapping[str, Any], path: str | Path) -> Path:
    """Write the result of `evaluate_clips` as JSON, pictures aside, atomically; return the path."""
    numbers = {key: value for key, value in result.items() if key != "pictures"}
    return write_text(path, to_json(to_jsonable(numbers), indent=2) + "\n")


def write_csv(result: Mapping[str, Any], path: str | Path) -> Path:
    """Write every score of a result of `evaluate_clips` as a row of a CSV file, atomically; return the path.

    Columns: clip, group, method, metric, value (empty where not defined), coverage, reason. Values are plain ratios, as
    in the JSON.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["clip", "group", "method", "metric", "value", "coverage", "reason"])
    for clip in result["clips"]:
        for method, scores in clip["methods"].items():
            for metric, score in scores.items():
                value = repr(float(score.value)) if math.isfinite(score.value) else ""
                about = [clip["name"], clip["group"], method, metric]
                rows.writerow([*about, value, repr(float(score.coverage)), score.reason])
    return write_text(path, text.getvalue())


def write_markdown(result: Mapping[str, Any], path: str | Path) -> Path:
    """Write the result of `evaluate_clips` as Markdown, atomically; return the path."""
    return write_text(path, to_markdown(result))
