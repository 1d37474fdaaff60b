"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from videomamba_depth.evaluation.cache import write_text
from videomamba_depth.evaluation.html.pareto_plot import STUDENT_COLORS, pareto_plots
from videomamba_depth.evaluation.methods import CONSTANT, FAMILIES, TEACHER
from videomamba_depth.evaluation.pictures import fit_videos
from videomamba_depth.evaluation.report import build_report
from videomamba_depth.evaluation.summary import plain_scores


def write_html(result: Mapping[str, Any], path: str | Path) -> Path:
    """Write the result of `evaluate_clips` as one file that refers to no other, atomically; return the path."""
    return write_text(path, render(result))


def render(result: Mapping[str, Any]) -> str:
    """Return the report as HTML, with plots and pictures; whatever is not `Markup` is escaped."""
    environment = Environment(
        loader=PackageLoader("videomamba_depth.evaluation.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["emphasized"] = emphasized
    students, reference = list(result["verdicts"]), result.get("reference", TEACHER)
    result = {**result, "pictures": fit_videos(result["pictures"])}
    plots = {
        group: pareto_plots(
            [plain_scores(clip) for clip in result["clips"] if clip["group"] == group],
            students,
            all_flicker=len(result["groups"]) == 1,
            teacher=reference,
        )
        for group in result["groups"]
    }
    legend = [(name, family.title, family.color) for name, family in FAMILIES.items() if name != CONSTANT]
    legend += [(name, name, STUDENT_COLORS[i % len(STUDENT_COLORS)]) for i, name in enumerate(students)]
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        report=build_report(result),
        plots=plots,
        legend=legend,
        students=students,
        reference=reference,
        style=Markup(style),
    )  # fmt: skip


def emphasized(text: str) -> Markup:
    """Return text with `**bold**` parts as such; everything else is escaped."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text))))
