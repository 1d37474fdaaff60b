"""The page: its parts, and how they are written into one file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from videomamba_depth.evaluation.html.pictures import ClipPictures
from videomamba_depth.evaluation.report import write_text


@dataclass(frozen=True)
class Table:
    """columns: headings. groups: (heading, number of columns) above them. rows: (name, CSS class, cells)."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[str]]]
    groups: Sequence[tuple[str, int]] = ()
    first: str = "row"


@dataclass(frozen=True)
class Section:
    """A part of the page under its own heading.

    text: paragraphs; more than one make a list. plots: rows of figures. folded: tables that open on a click.
    """

    title: str
    text: Sequence[str] = ()
    plots: Sequence[Sequence[Markup]] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()
    pictures: Sequence[ClipPictures] = ()


@dataclass(frozen=True)
class Page:
    """metadata: how it was measured; nested mappings become nested lists. students: rows in the legend."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    metadata: Mapping[str, Any]
    students: Sequence[str] = ()


def write_html(page: Page, path: str | Path) -> Path:
    """Write the page as one file without any reference to another, atomically; return the path."""
    return write_text(path, render(page))


def render(page: Page) -> str:
    """Return the page as HTML; whatever is not `Markup` is escaped."""
    environment = Environment(
        loader=PackageLoader("videomamba_depth.evaluation.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["emphasised"] = emphasised
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(page=page, style=Markup(style))


def emphasised(text: str) -> Markup:
    """Return text with `**bold**` parts as such; everything else is escaped."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text))))


def folded_ranges(ids: Sequence[Any]) -> str:
    """Return a frame list in short: 0, 1, 2, 5 → "0–2, 5"."""
    pieces: list[list[Any]] = []
    for frame in ids:
        if pieces and isinstance(frame, int) and isinstance(pieces[-1][-1], int) and frame == pieces[-1][-1] + 1:
            pieces[-1][1:] = [frame]
        else:
            pieces.append([frame])
    return ", ".join("–".join(str(end) for end in piece) for piece in pieces)
