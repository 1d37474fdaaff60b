"""Frames, depth maps and poses that were recorded apart, brought together by their time stamps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from videomamba_depth.utils.errors import UserError

MAX_DIFFERENCE_S = 0.02
"""Farther apart than this, two stamps do not belong together: the benchmark's own default."""


def associate(first: Sequence[float], second: Sequence[float], max_difference_s: float = MAX_DIFFERENCE_S) -> list[int]:
    """Return, for each stamp of `first`, the index of its partner in `second`, or −1 without one.

    Each stamp has one partner at most; the closest pair is made first.

    Args:
        first, second: s, in any order; what is not finite has no partner.
        max_difference_s: pairs farther apart are not made.

    Source: the rule of the TUM RGB-D benchmark (Sturm et al., IROS 2012; its tool associate.py).
    """
    a, b = (np.asarray(stamps, dtype=np.float64) for stamps in (first, second))
    order = np.argsort(b, kind="stable")  # NaN last
    low = np.searchsorted(b[order], a - max_difference_s, "left")
    high = np.searchsorted(b[order], a + max_difference_s, "right")
    pairs = [
        (abs(a[i] - b[j]), i, int(j))
        for i in np.flatnonzero(np.isfinite(a))
        for j in order[low[i] : high[i]]
        if abs(a[i] - b[j]) < max_difference_s
    ]
    partners, taken = [-1] * len(a), set()
    for _, i, j in sorted(pairs):
        if partners[i] < 0 and j not in taken:
            partners[i] = j
            taken.add(j)
    return partners


def frame_stamps(images: Sequence[Path], listing: Path) -> list[float] | None:
    """Return when the images were taken, in s: as a list beside them says, or as they are called; None if neither does.

    Args:
        images: files called by their stamps, such as 1305031102.175304.png; whole numbers count frames.
        listing: text file with rows "stamp filename" and comments (#), such as rgb.txt; need not exist.

    Raises:
        UserError: the list leaves images out, or a row of it is not of that form.
    """
    if not listing.is_file():
        stamps = [_number(path.stem) for path in images]
        named = all("." in path.stem and math.isfinite(stamp) for path, stamp in zip(images, stamps, strict=True))
        return stamps if named else None
    listed: dict[str, float] = {}
    for line in listing.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        row = line.split()
        if not row or row[0].startswith("#"):
            continue
        if len(row) != 2 or not math.isfinite(_number(row[0])):
            raise UserError(f"{listing} must have rows 'stamp filename'; got '{line.strip()}'")
        listed[Path(row[1]).name] = float(row[0])
    missing = [path.name for path in images if path.name not in listed]
    if missing:
        raise UserError(f"{listing} has no stamp for {len(missing)} of {len(images)} images, first {missing[0]}")
    return [listed[path.name] for path in images]


def frame_numbers(images: Sequence[Path]) -> list[float | None]:
    """Return the whole number that each image is called; None where it is called something else."""
    return [float(path.stem) if path.stem.isdecimal() else None for path in images]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
