"""A plot of flicker against its cost: families of filters as curves, students as stars, the Pareto front dashed."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from videomamba_depth.evaluation.methods import CONSTANT, FAMILIES, TARGET, TEACHER, UNTRAINED, family_of, memories
from videomamba_depth.evaluation.paired import FLICKER, ClipScores, Estimate, axes_of, costs, measured
from videomamba_depth.evaluation.report import change_title

STUDENT_COLORS = ("#d5340b", "#7a2fbf", "#8a5a00")
TEACHER_COLOR, PARETO_FRONT_COLOR = "#1d2126", "#626a73"
LIMITS = {"edge_ratio": 40.0, "boundary_f1/true": 0.4, "gradient_error": 40.0, "lag": 4.0, "lag/true": 8.0,
          "abs_rel/video": 40.0, "abs_rel/fast_pixels": 40.0, "teacher_diff/per_frame": 40.0}  # fmt: skip
FLICKER_LIMIT = 150.0
"""Values beyond the limit of an axis are named below the plot instead of drawn."""


@dataclass(frozen=True)
class Axis:
    """An axis of a plot. title: with its unit. limit: values beyond it are named below the plot instead of drawn."""

    title: str
    limit: float = math.inf


@dataclass(frozen=True)
class Point:
    """A method of the table as (x, y) with standard errors, and the family that colors it."""

    method: str
    family: str
    x: Estimate
    y: Estimate


def pareto_plots(
    clips: Sequence[ClipScores], students: Sequence[str], all_flicker: bool, teacher: str = TEACHER
) -> list[list[Markup]]:
    """Return plots of flicker against every cost that was measured, one list per metric of flicker.

    clips: scores of one group. all_flicker: every metric of flicker, not only the one that decides. teacher: the method
    that the others are held against.
    """
    metrics = measured(clips, teacher)
    decides, axes = axes_of(metrics)
    table = costs(clips, metrics, teacher)
    return [
        [
            pareto_plot(
                points_of(table, metric, flicker, students, teacher),
                students,
                Axis(f"{axis}: {change_title(metric)}", LIMITS[metric]),
                Axis(f"{change_title(flicker)}, change", FLICKER_LIMIT),
            )
            for axis, metric in axes.items()
        ]
        for flicker in (FLICKER if all_flicker else [decides])
        if flicker in metrics
    ]


def points_of(
    costs: Mapping[str, Mapping[str, Estimate]], x: str, y: str, students: Sequence[str], teacher: str = TEACHER
) -> dict[str, list[Point]]:
    """Return {family: points in the order of strength}, each family of several strengths starting at the teacher.

    costs: {method: {metric: estimate}}, less is better. x, y: metrics. Methods without a value are left out, and so
    is the constant, which would win.
    """
    families = {
        name: [*([teacher] if len(family.members) > 1 and name != TARGET else []), *family.members]
        for name, family in FAMILIES.items()
        if name != CONSTANT
    }
    untrained = [m for members in memories(costs).values() for m in members if family_of(m) == UNTRAINED]
    families |= {UNTRAINED: untrained, TEACHER: [teacher], **{name: [name] for name in students}}
    found = {}
    for family, methods in families.items():
        points = [Point(name, family, costs[name][x], costs[name][y]) for name in methods if name in costs]
        points = [p for p in points if math.isfinite(p.x.value) and math.isfinite(p.y.value)]
        if [p for p in points if p.method != teacher or family == TEACHER]:
            found[family] = points
    return found


def pareto_plot(families: Mapping[str, Sequence[Point]], students: Sequence[str], x: Axis, y: Axis) -> Markup:
    """Return the plot as `<figure>`; below-left is better, the dashed line is the Pareto front of everything untrained.

    families: what `points_of` returned.
    """
    points = {p.method: p for family in families.values() for p in family}
    drawn = {name: p for name, p in points.items() if abs(p.x.value) <= x.limit and abs(p.y.value) <= y.limit}
    if not drawn:
        return Markup('<figure class="plot empty"><p>Not measured: {}.</p></figure>').format(x.title)
    figure = Figure(figsize=(4.6, 3.6))  # with fixed margins: a layout that looks for them draws everything twice
    axes = figure.subplots(gridspec_kw={"left": 0.16, "right": 0.97, "bottom": 0.14, "top": 0.97})
    axes.set(xlabel=x.title, ylabel=y.title)
    axes.grid(color="#efece6")
    axes.set_axisbelow(True)
    for family, members in families.items():
        inside = [p for p in members if p.method in drawn]
        if family not in students:
            _draw(axes, inside, family, FAMILIES[family].color if family in FAMILIES else TEACHER_COLOR)
    _draw_pareto_front(axes, [p for p in drawn.values() if p.family not in (TARGET, *students)])
    for number, student in enumerate(students):  # on top of everything
        inside = [p for p in families.get(student, ()) if p.method in drawn]
        _draw(axes, inside, student, STUDENT_COLORS[number % len(STUDENT_COLORS)], marker="*")
    left_out = [p for name, p in points.items() if name not in drawn]
    note = "; ".join(f"{p.method} ({_number(p.x.value)}, {_number(p.y.value)})" for p in left_out)
    image = Markup('<img src="{}" alt="{} against {}">').format(_data_uri(figure), y.title, x.title)
    caption = Markup("<figcaption>Outside of the plot: {}</figcaption>").format(note) if note else Markup("")
    return Markup('<figure class="plot">{}{}</figure>').format(image, caption)


def _draw(axes: Axes, points: Sequence[Point], family: str, color: str, marker: str = "o") -> None:
    """Draw a family as a curve from weak to strong, with standard errors and the name of its end."""
    if not points:
        return
    xs, ys = [p.x.value for p in points], [p.y.value for p in points]
    errors = [[e if math.isfinite(e) else 0.0 for e in side] for side in _errors(points)]
    size = 12 if marker == "*" else 5
    axes.errorbar(xs, ys, xerr=errors[0], yerr=errors[1], fmt="none", ecolor=color, elinewidth=0.8, alpha=0.45)
    axes.plot(xs, ys, marker=marker, color=color, markersize=size, linewidth=1.4, markeredgecolor="white", gid=family)
    end = points[-1]
    label = end.method if end.method == family else end.method.rpartition("_")[2]
    axes.annotate(label, (xs[-1], ys[-1]), (5, 4), textcoords="offset points", color=color, fontsize=8)


def _errors(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [p.x.std_error for p in points], [p.y.std_error for p in points]


def _draw_pareto_front(axes: Axes, points: Sequence[Point]) -> None:
    """Draw the steps below which no filter lies: the least flicker for every cost."""
    pareto: list[Point] = []
    for p in sorted(points, key=lambda p: (p.x.value, p.y.value)):
        if not pareto or p.y.value < pareto[-1].y.value:
            pareto.append(p)
    if not pareto:
        return
    right = axes.get_xlim()[1]
    axes.step(
        [*(p.x.value for p in pareto), right],
        [*(p.y.value for p in pareto), pareto[-1].y.value],
        where="post",
        linestyle="--",
        linewidth=1.0,
        color=PARETO_FRONT_COLOR,
        gid="pareto",
    )
    axes.set_xlim(right=right)


def _data_uri(figure: Figure) -> str:
    """Return the figure as an SVG of its own, so that nothing in it meets the page's names and styles."""
    file = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "plot"}):  # text stays text; equal plots, equal bytes
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
