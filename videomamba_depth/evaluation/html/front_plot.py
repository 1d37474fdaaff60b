"""A plot of flicker against its price as inline SVG: families of filters as curves, students as stars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from videomamba_depth.evaluation.baselines import AVERAGES, STRENGTHS
from videomamba_depth.evaluation.feature_average import FEATURE_ROW
from videomamba_depth.evaluation.paired import Estimate

from .labels import Label, place_labels

WIDTH, HEIGHT = 400, 316
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 44


@dataclass(frozen=True)
class Axis:
    """An axis of a plot. title: with its unit. limit: values beyond it are named below the plot instead of drawn."""

    title: str
    limit: float = math.inf


@dataclass(frozen=True)
class Point:
    """A row of the table as (x, y) with standard errors, and the class that colours it."""

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
    points = [p for family in families.values() for p in family]
    drawn = [p for p in points if abs(p.x.value) <= x.limit and abs(p.y.value) <= y.limit]
    if not drawn:
        return Markup('<figure class="plot empty"><p>Not measured: {}.</p></figure>').format(x.title)
    frame = _Frame(_span(p.x for p in drawn), _span(p.y for p in drawn))
    texts = _labels(frame, drawn, students)
    parts = [_axes(frame, x, y), _front(frame, [p for p in drawn if p.family not in students])]
    for family, members in families.items():
        inside = [p for p in members if p in drawn]
        if family in students:
            continue
        line = " ".join(f"{frame.x(p.x.value):.1f},{frame.y(p.y.value):.1f}" for p in inside)
        if len(inside) > 1:
            parts.append(Markup('<polyline class="curve {}" points="{}"/>').format(family, line))
        parts += [_mark(frame, p, texts[p.row]) for p in inside if p.row != "teacher" or family == "teacher"]
    for number, student in enumerate(students):  # on top of everything
        parts += [_star(frame, p, number, texts[p.row]) for p in families.get(student, ()) if p in drawn]
    left_out = {p.row: p for p in points if p not in drawn}
    note = "; ".join(f"{p.row} ({_number(p.x.value)}, {_number(p.y.value)})" for p in left_out.values())
    svg = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{} against {}">{}</svg>').format(
        WIDTH, HEIGHT, y.title, x.title, Markup("").join(parts)
    )
    caption = Markup("<figcaption>Outside of the plot: {}</figcaption>").format(note) if note else Markup("")
    return Markup('<figure class="plot">{}{}</figure>').format(svg, caption)


class _Frame:
    """From values to px."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x_range, self.y_range = x, y

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max((value - low) / (high - low), -0.02), 1.02)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max((value - low) / (high - low), -0.02), 1.02)


def _span(estimates: Iterable[Estimate]) -> tuple[float, float]:
    """Return a range around all values and their errors, with a margin."""
    ends = []
    for e in estimates:
        error = e.std_error if math.isfinite(e.std_error) else 0.0
        ends += [e.value - error, e.value + error]
    margin = 0.07 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def _ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return round numbers between low and high."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _axes(frame: _Frame, x: Axis, y: Axis) -> Markup:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [Markup('<rect class="frame" x="{}" y="{}" width="{}" height="{}"/>').format(
        LEFT, TOP, right - LEFT, bottom - TOP)]  # fmt: skip
    for value in _ticks(*frame.x_range):
        px = round(frame.x(value), 1)
        parts.append(Markup('<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(px, TOP, bottom))
        parts.append(Markup('<text class="tick" x="{}" y="{}">{}</text>').format(px, bottom + 14, _number(value)))
    for value in _ticks(*frame.y_range):
        py = round(frame.y(value), 1)
        parts.append(Markup('<line class="grid" x1="{1}" x2="{2}" y1="{0}" y2="{0}"/>').format(py, LEFT, right))
        parts.append(Markup('<text class="tick left" x="{}" y="{}">{}</text>').format(LEFT - 6, py + 3, _number(value)))
    middle = (TOP + bottom) / 2
    parts.append(Markup('<text class="title" x="{}" y="{}">{}</text>').format((LEFT + right) / 2, HEIGHT - 8, x.title))
    parts.append(
        Markup('<text class="title" transform="translate(12 {}) rotate(-90)">{}</text>').format(middle, y.title)
    )
    return Markup("").join(parts)


def _front(frame: _Frame, points: Sequence[Point]) -> Markup:
    """Return the steps below which no filter lies: the least flicker for every price."""
    best = math.inf
    corners: list[tuple[float, float]] = []
    for p in sorted(points, key=lambda p: (p.x.value, p.y.value)):
        if p.y.value < best:
            if corners:
                corners.append((p.x.value, best))
            corners.append((p.x.value, p.y.value))
            best = p.y.value
    corners.append((frame.x_range[1], best))
    line = " ".join(f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in corners)
    return Markup('<polyline class="front" points="{}"/>').format(line)


def _labels(frame: _Frame, points: Sequence[Point], students: Sequence[str]) -> dict[str, Markup]:
    """Return {row: its label}: students first, then whatever stands alone, then strengths as far as there is room."""
    once = {p.row: p for p in sorted(points, key=lambda p: (p.family not in students, p.row != p.family))}
    labels = []
    for p in once.values():
        text = p.row if p.family in students else p.row.replace("_", " ")
        alone = p.row == p.family or p.row == "teacher"
        text, size = text if alone else p.row.rpartition("_")[2], 12.0 if p.family in students else 10.0
        labels.append(Label(frame.x(p.x.value), frame.y(p.y.value), text, size, alone))
    spots = place_labels(labels, (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM))
    return {row: _label(label, spot) for row, label, spot in zip(once, labels, spots, strict=True)}


def _mark(frame: _Frame, point: Point, label: Markup) -> Markup:
    x, y = frame.x(point.x.value), frame.y(point.y.value)
    shape = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4"/>').format(x, y)
    return _group(frame, point, point.family, shape + label)


def _star(frame: _Frame, point: Point, number: int, label: Markup) -> Markup:
    x, y = frame.x(point.x.value), frame.y(point.y.value)
    corners = []
    for k in range(10):
        radius, angle = (8.5 if k % 2 == 0 else 3.6), math.pi * k / 5
        corners.append(f"{x + radius * math.sin(angle):.1f},{y - radius * math.cos(angle):.1f}")
    shape = Markup('<polygon points="{}"/>').format(" ".join(corners))
    return _group(frame, point, f"student student-{number % 3}", shape + label)


def _label(label: Label, spot: tuple[float, float] | None) -> Markup:
    if spot is None:
        return Markup("")
    side = "" if spot[0] > 0 else " left" if spot[0] < 0 else " middle"
    form = Markup('<text class="label{}" x="{:.1f}" y="{:.1f}">{}</text>')
    return form.format(side, label.x + spot[0], label.y + spot[1], label.text)


def _group(frame: _Frame, point: Point, classes: str, shape: Markup) -> Markup:
    """Return a mark with its error bars and the numbers that show when a pointer rests on it."""
    x, y = frame.x(point.x.value), frame.y(point.y.value)
    bars = []
    if math.isfinite(point.x.std_error) and point.x.std_error > 0:
        ends = [frame.x(point.x.value + sign * point.x.std_error) for sign in (-1, 1)]
        bars.append(Markup('<line class="error" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(*ends, y, y))
    if math.isfinite(point.y.std_error) and point.y.std_error > 0:
        ends = [frame.y(point.y.value + sign * point.y.std_error) for sign in (-1, 1)]
        bars.append(Markup('<line class="error" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(x, x, *ends))
    says = f"{point.row}: {_said(point.x)}, {_said(point.y)}"
    body = Markup("").join([Markup("<title>{}</title>").format(says), *bars, shape])
    return Markup('<g class="mark {}">{}</g>').format(escape(classes), body)


def _said(estimate: Estimate) -> str:
    error = f" ± {estimate.std_error:.2f}" if math.isfinite(estimate.std_error) else ""
    return f"{_number(estimate.value)}{error}"


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
