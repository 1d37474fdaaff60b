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

from videomamba_depth.evaluation.baselines import AVERAGES, STRENGTHS
from videomamba_depth.evaluation.feature_average import FEATURE_ROW
from videomamba_depth.evaluation.paired import Estimate

# Okabe and Ito's colors, which color-blind readers tell apart, then those of the students; style.css has the same.
FAMILY_COLORS = {"ema": "#0072b2", "affine_ema": "#c98500", "warped_ema": "#009e73", FEATURE_ROW: "#b0588f"}
STUDENT_COLORS = ("#d5340b", "#7a2fbf", "#8a5a00")
TEACHER_COLOR, FRONT_COLOR = "#1d2126", "#626a73"


@dataclass(frozen=True)
class Axis:
    """An axis of a plot. title: with its unit. limit: values beyond it are named below the plot instead of drawn."""

    title: str
    limit: float = math.inf


@dataclass(frozen=True)
class Point:
    """A row of the table as (x, y) with standard errors, and the family that colors it."""

    row: str
    family: str
    x: Estimate
    y: Estimate


def points_of(
    costs: Mapping[str, Mapping[str, Estimate]], x: str, y: str, students: Sequence[str]
) -> dict[str, list[Point]]:
    """Return {family: points in the order of strength}, each family of filters starting at the teacher.

    costs: {row: {metric: estimate}}, less is better. x, y: metrics. Rows without a value are left out, and so is the
    constant, which would win.
    """
    families = {family: ["teacher", *(f"{family}_{a:g}" for a in STRENGTHS)] for family in AVERAGES}
    families |= {FEATURE_ROW: [FEATURE_ROW], "teacher": ["teacher"], **{name: [name] for name in students}}
    found = {}
    for family, rows in families.items():
        points = [Point(row, family, costs[row][x], costs[row][y]) for row in rows if row in costs]
        points = [p for p in points if math.isfinite(p.x.value) and math.isfinite(p.y.value)]
        if [p for p in points if p.row != "teacher" or family == "teacher"]:
            found[family] = points
    return found


def front_plot(families: Mapping[str, Sequence[Point]], students: Sequence[str], x: Axis, y: Axis) -> Markup:
    """Return the plot as `<figure>`; below-left is better, the dashed line is the front of everything untrained.

    families: what `points_of` returned.
    """
    points = {p.row: p for family in families.values() for p in family}
    drawn = {row: p for row, p in points.items() if abs(p.x.value) <= x.limit and abs(p.y.value) <= y.limit}
    if not drawn:
        return Markup('<figure class="plot empty"><p>Not measured: {}.</p></figure>').format(x.title)
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x.title, ylabel=y.title)
    axes.grid(color="#efece6")
    axes.set_axisbelow(True)
    for family, members in families.items():
        inside = [p for p in members if p.row in drawn]
        if family not in students:
            _draw(axes, inside, family, FAMILY_COLORS.get(family, TEACHER_COLOR))
    _draw_front(axes, [p for p in drawn.values() if p.family not in students])
    for number, student in enumerate(students):  # on top of everything
        inside = [p for p in families.get(student, ()) if p.row in drawn]
        _draw(axes, inside, student, STUDENT_COLORS[number % len(STUDENT_COLORS)], marker="*")
    left_out = [p for row, p in points.items() if row not in drawn]
    note = "; ".join(f"{p.row} ({_number(p.x.value)}, {_number(p.y.value)})" for p in left_out)
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
    label = end.row if end.row == family else end.row.rpartition("_")[2]
    axes.annotate(label, (xs[-1], ys[-1]), (5, 4), textcoords="offset points", color=color, fontsize=8)


def _errors(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [p.x.std_error for p in points], [p.y.std_error for p in points]


def _draw_front(axes: Axes, points: Sequence[Point]) -> None:
    """Draw the steps below which no filter lies: the least flicker for every cost."""
    front: list[Point] = []
    for p in sorted(points, key=lambda p: (p.x.value, p.y.value)):
        if not front or p.y.value < front[-1].y.value:
            front.append(p)
    if not front:
        return
    right = axes.get_xlim()[1]
    axes.step(
        [*(p.x.value for p in front), right],
        [*(p.y.value for p in front), front[-1].y.value],
        where="post",
        linestyle="--",
        linewidth=1.0,
        color=FRONT_COLOR,
        gid="front",
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
