"""Where labels of a plot stand, so that none covers a mark or another label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]

SPOTS = ((7, -5), (-7, -5), (7, 13), (-7, 13), (11, 4), (-11, 4), (0, -11), (0, 19))
"""px from a mark to the near end and base line of its label, as they are tried; < 0: on the left, 0: centred."""
MARK_PX = 5.0


@dataclass(frozen=True)
class Label:
    """What is to be written beside (x, y), in px. font_px: its size. needed: written even where it covers something."""

    x: float
    y: float
    text: str
    font_px: float = 10.0
    needed: bool = False


def place_labels(labels: Sequence[Label], plot: Box) -> list[tuple[float, float] | None]:
    """Return for each label, the first served first, its spot (see `SPOTS`), None for one without a free spot.

    plot: left, top, right and bottom end in px; labels stay inside. One that is `needed` takes the first spot inside.
    """
    taken = [(one.x - MARK_PX, one.y - MARK_PX, one.x + MARK_PX, one.y + MARK_PX) for one in labels]
    chosen: list[tuple[float, float] | None] = []
    for label in labels:
        inside = [spot for spot in SPOTS if _holds(plot, _box(label, spot))]
        free = [spot for spot in inside if not any(_meet(_box(label, spot), box) for box in taken)]
        fallback = next(iter(inside), SPOTS[0]) if label.needed else None
        spot = free[0] if free else fallback
        if spot is not None:
            taken.append(_box(label, spot))
        chosen.append(spot)
    return chosen


def _box(label: Label, spot: tuple[float, float]) -> Box:
    """Return the box of the text; 0.6 of its size is a generous mean width of a letter."""
    width, (dx, dy) = 0.6 * label.font_px * len(label.text), spot
    left = label.x + dx - (width if dx < 0 else width / 2 if dx == 0 else 0)
    return left, label.y + dy - 0.8 * label.font_px, left + width, label.y + dy + 0.1 * label.font_px


def _holds(outer: Box, inner: Box) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
