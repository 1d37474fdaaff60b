"""The page of `evaluate_videos`: any clips, with ground truth or without."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from videomamba_depth.evaluation.fresh import Scores
from videomamba_depth.evaluation.fresh_report import cell
from videomamba_depth.evaluation.html.front_plot import Axis, front_plot, points_of
from videomamba_depth.evaluation.html.page import Page, Section, Table, folded_ranges
from videomamba_depth.evaluation.html.pictures import ClipPictures
from videomamba_depth.evaluation.paired import ABSOLUTE, change, costs, estimate
from videomamba_depth.evaluation.report import (
    ACCURACY_COLUMNS,
    GUARD_COLUMNS,
    STABILITY_COLUMNS,
    Column,
    column_heading,
    count_line,
    metric_cell,
    skipped_line,
    verdict_line,
)

FLICKER = {
    "tge": "TGE",
    "flk2": "Flk2",
    "opw": "OPW per clip",
    "static_std/flicker": "static flicker",
    "rtc_1.02": "pixels that jump > 2 %",
}
"""What is plotted upwards, as far as it was measured."""
PRICES = {
    "edge_ratio": Axis("edge strength: distance from the teacher's, %", 40.0),
    "lag": Axis("lag: distance from the teacher's, frames", 4.0),
    "lag/true": Axis("lag behind the truth: change, frames", 8.0),
    "abs_rel/video": Axis("AbsRel, one alignment per video: change, %", 40.0),
    "abs_rel/fast_pixels": Axis("AbsRel on fast pixels: change, %", 40.0),
    "teacher_diff/per_frame": Axis("difference from the teacher, % of its spread", 40.0),
}
CHANGES = {
    "tge": "TGE %",
    "opw": "OPW/clip %",
    "flk2": "Flk2 %",
    "rtc_1.02": "jumps > 2 % (1 − rTC) %",
    "static_std/flicker": "static flicker %",
    "edge_ratio": "edges %",
    "boundary_f1": "edge F1 %",
    "lag": "lag, frames",
    "sDrift": "sDrift %/100 frames",
    "abs_rel/video": "AbsRel video %",
}


def clips_page(result: Mapping[str, Any], pictures: Sequence[ClipPictures] = ()) -> Page:
    """Return the page of a result of `evaluate_videos`. pictures: see `Gallery`."""
    clips, students = result["clips"], list(result["verdicts"])
    videos = [plain_scores(clip) for clip in clips]
    lead = [line for name in students for line in (verdict_line(name, result["verdicts"][name]),
                                                   count_line(name, result["counts"][name]))]  # fmt: skip
    lead += [line for line in [skipped_line(result)] if line]
    flags = {row: sorted({f for clip in clips for f in clip["flags"].get(row, [])}) for row in result["mean"]}
    sections = [
        Section(
            "Flicker against its price",
            ["Change against the framewise teacher, paired by clip: mean ± standard error. Below-left is better."],
            plots=[row for metric in FLICKER if (row := _plots(videos, metric, students))],
        ),
        Section(
            "All numbers",
            [
                "Mean ± standard error over clips. Stability never stands without its guards: blur, lag and a constant"
                " win every stability metric."
            ],
            tables=[metric_table("", result["mean"], flags), _changes_table(videos)],
            folded=[_clip_table(clip) for clip in clips] if len(clips) > 1 else [],
        ),
        *([_student_section(videos, clips, students)] if len(clips) > 1 else []),
        *([Section("What it looks like", pictures=pictures)] if pictures else []),
    ]  # fmt: skip
    title = f"Depth over time: {len(clips)} clip{'s' if len(clips) != 1 else ''}"
    return Page(title, lead, sections, _metadata(result), students)


def plain_scores(clip: Mapping[str, Any]) -> Scores:
    """Return {row: {metric: value}} of a clip."""
    return {row: {metric: s.value for metric, s in scores.items()} for row, scores in clip["rows"].items()}


def metric_table(
    caption: str, rows: Mapping[str, Mapping[str, Mapping[str, float]]], flags: Mapping[str, Sequence[str]]
) -> Table:
    """Return rows × metrics like `report.table`, under the groups accuracy, stability and guards."""
    groups: list[tuple[str, int]] = []
    columns: list[Column] = []
    for name, wanted in (("accuracy", ACCURACY_COLUMNS), ("stability", STABILITY_COLUMNS), ("guards", GUARD_COLUMNS)):
        known = [c for c in wanted if any(math.isfinite(_value(m, c.metric)) for m in rows.values())]
        columns += known
        groups += [(name, len(known))] if known else []
    lines = []
    for row, metrics in rows.items():
        note = f" ({', '.join(flags[row])})" if flags.get(row) else ""
        lines.append((row + note, row_class(row), [metric_cell(metrics.get(c.metric, {}), c) for c in columns]))
    return Table(caption, [column_heading(c) for c in columns], lines, groups)


def row_class(row: str) -> str:
    """Return the CSS class of a row: teacher, constant, filter or student."""
    if row in ("teacher", "constant"):
        return row
    return "filter" if row == "feature_ema" or "ema_" in row else "student"


def _plots(videos: Sequence[Scores], metric: str, students: Sequence[str]) -> list[Any]:
    if not any(math.isfinite(video["teacher"].get(metric, math.nan)) for video in videos):
        return []
    has_truth = any(math.isfinite(video["teacher"].get("abs_rel/video", math.nan)) for video in videos)
    prices = ["edge_ratio", "lag", "abs_rel/video" if has_truth else "teacher_diff/per_frame"]
    table = costs(videos, [metric, *prices])
    upwards = Axis(f"{FLICKER[metric]}: change, %", 150.0)
    return [front_plot(points_of(table, price, metric, students), students, PRICES[price], upwards) for price in prices]


def _changes_table(videos: Sequence[Scores]) -> Table:
    """Return the change of every row against the teacher, paired by clip."""
    metrics = [m for m in CHANGES if any(math.isfinite(video["teacher"].get(m, math.nan)) for video in videos)]
    rows = []
    for row in videos[0]:
        if row != "teacher":
            cells = [cell(estimate([change(v[row], v["teacher"], m) for v in videos])) for m in metrics]
            rows.append((row, row_class(row), cells))
    return Table("Change against the teacher, paired by clip", [CHANGES[m] for m in metrics], rows)


def _student_section(videos: Sequence[Scores], clips: Sequence[Mapping[str, Any]], students: Sequence[str]) -> Section:
    """Return the students' changes clip by clip."""
    metrics = [m for m in CHANGES if any(math.isfinite(video["teacher"].get(m, math.nan)) for video in videos)]
    tables = []
    for student in students:
        rows = []
        for video, clip in zip(videos, clips, strict=True):
            values = [change(video[student], video["teacher"], m) for m in metrics]
            rows.append((clip["name"], "", [cell(estimate([value])) for value in values]))
        tables.append(Table(f"{student} minus teacher", [CHANGES[m] for m in metrics], rows, first="clip"))
    text = "Per cent of the teacher's value" + f" ({', '.join(m for m in ABSOLUTE if m in metrics)}: differences)."
    return Section("Clip by clip", [text], tables=tables)


def _clip_table(clip: Mapping[str, Any]) -> Table:
    rows = {
        row: {metric: {"value": score.value} for metric, score in scores.items()}
        for row, scores in clip["rows"].items()
    }
    size = "×".join(str(side) for side in clip["size"])
    cuts = f", cuts at {clip['cuts']}" if clip["cuts"] else ""
    caption = f"{clip['name']}: {clip['num_frames']} frames, {size} px, {clip['fps']:.4g} frames/s, flow trusted on"
    return metric_table(f"{caption} {100 * clip['coverage']:.0f} % of pixels{cuts}", rows, clip["flags"])


def _metadata(result: Mapping[str, Any]) -> dict[str, Any]:
    frames = {
        clip["name"]: f"{clip['num_frames']} frames: {folded_ranges(clip['frame_ids'])}; {clip['alignment']}"
        + ("; exact flow" if clip["exact_motion"] else "")
        for clip in result["clips"]
    }
    return {
        **{key: value for key, value in result["metadata"].items() if value is not None},
        "protocol": {key: value for key, value in result["protocol"].items() if value is not None},
        "clips, frames, alignment of stability": frames,
        "versions": result["versions"],
    }


def _value(metrics: Mapping[str, Mapping[str, float]], metric: str) -> float:
    return metrics.get(metric, {}).get("value", math.nan)
