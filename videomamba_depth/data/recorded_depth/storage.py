"""What every form of recorded depth offers, and what may be written beside the numbers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from videomamba_depth.utils.errors import UserError

ARRAY_NAMES = (
    *("depth", "depths", "depth_m", "disparity", "disparities", "inverse_depth", "inv_depth"),
    *("pred", "preds", "prediction", "predictions", "predicted_depth", "arr_0"),
)
"""Names of arrays that are taken for depth, the first that is there, where a file has several."""


@dataclass(frozen=True)
class About:
    """What files say of their depth; None where they are silent.

    kind: value of `DepthKind`. scales: (first frame, factor from stored numbers to depth), by frame number.
    frame_numbers: of the source's frames [F]. timestamps: s [F]. made_up_times: they are those of a video file that was
    written from frames, whose clock need not be the source's. names: of the frames.
    """

    kind: str | None = None
    scales: Sequence[tuple[int, float]] | None = None
    frame_numbers: np.ndarray | None = None
    timestamps: np.ndarray | None = None
    made_up_times: bool = False
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Storage(ABC):
    """Depth as it lies on disk. Nothing stays open between calls, so that it can be handed to other processes.

    path: as it was given. num_frames: F. size: (h, w). whole_numbers: without a scale, the numbers are not depth.
    """

    path: Path
    num_frames: int
    size: tuple[int, int]
    whole_numbers: bool = False
    about: About = field(default_factory=About)

    @abstractmethod
    def read_many(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames [h,w] of ascending indices, numbers as they are stored.

        Raises:
            UserError: a file is damaged, or a frame has another size; the message names the file.
        """

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """Return all files that the depth is read from."""


def pick_array(names: Sequence[str], where: Path, wanted: str | None = None) -> str:
    """Return the name of the array that holds depth: the wanted one, the only one, or the first of `ARRAY_NAMES`.

    Raises:
        UserError: it cannot be told, or is not there.
    """
    if wanted is not None:
        if wanted not in names:
            raise UserError(f"{where} has no array '{wanted}'; it has {', '.join(names) or 'none'}")
        return wanted
    known = [name for name in ARRAY_NAMES if name in names]
    if known or len(names) == 1:
        return known[0] if known else names[0]
    raise UserError(
        f"{where} must have one array of depth, or one called {', '.join(ARRAY_NAMES[:6])} …; it has"
        f" {', '.join(names) or 'none'}"
    )


def frames_and_size(shape: Sequence[int], where: Path) -> tuple[int, int, int]:
    """Return (n, h, w) of an array [h,w], [h,w,1], [n,h,w], [n,1,h,w] or [n,h,w,1].

    Raises:
        UserError: it has another shape.
    """
    plain = tuple(int(length) for length in shape)
    if len(plain) == 4 and 1 in (plain[1], plain[3]):
        plain = (plain[0], plain[2], plain[3]) if plain[1] == 1 else plain[:3]
    if len(plain) == 3 and plain[2] == 1 < plain[1]:
        plain = plain[:2]
    if len(plain) == 2:
        plain = (1, *plain)
    if len(plain) != 3 or min(plain) < 1:
        raise UserError(f"{where} must hold depth [h,w] or [frames,h,w]; it has the shape {list(shape)}")
    return plain


def times_of(columns: Mapping[str, Any]) -> np.ndarray | None:
    """Return time stamps in s from named columns of a file, as streams and other programs write them."""
    for name in ("timestamp_s", "timestamps_s", "timestamps", "times_s"):
        if name in columns:
            values = np.asarray(columns[name]).reshape(-1)
            return values.astype(np.float64) if values.dtype.kind in "fiu" else values  # refused with the others
    return None


@dataclass(frozen=True)
class Sidecar:
    """What `about.json` or `scale.json` says of the files beside it; see `About`.

    numbered: our own stream wrote it, whose files are called by the numbers of the source's frames.
    """

    kind: str | None = None
    scales: Sequence[tuple[int, float]] | None = None
    numbered: bool = False


def one_number(value: Any, path: Path, what: str) -> float:
    """Return a number that a file says for all of its frames.

    Raises:
        UserError: it is not one number.
    """
    try:
        if np.asarray(value).dtype == bool:
            raise TypeError
        number = float(np.asarray(value, dtype=np.float64).reshape(()))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} must hold one number as {what}, for all frames; got {value!s:.60}") from error
    if not np.isfinite(number):
        raise UserError(f"{path} must hold a finite number as {what}; got {number}")
    return number


def refuse_offsets(about: Mapping[str, Any], path: Path) -> None:
    """Refuse an offset beside a scale: depth is stored number · scale alone."""
    for name in ("offset", "shift"):
        if name in about and one_number(about[name], path, name) != 0:
            raise UserError(
                f"{path} says {name}={about[name]!s:.20}, and depth is stored number · scale; add it before"
            )


def read_sidecar(*paths: Path) -> Sidecar:
    """Return what the first of the files says that is there.

    Raises:
        UserError: it is damaged.
    """
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return Sidecar()
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        scales = sorted((int(entry["first_frame"]), _factor(entry["scale"])) for entry in about.get("scales", []))
        if twice := [first for (first, _), (other, _) in pairwise(scales) if first == other]:
            raise ValueError(f"two scales have first_frame {twice[0]}")
        if "scale" in about:
            if scales and {factor for _, factor in scales} != {_factor(about["scale"])}:
                raise ValueError("its scale and scales disagree")
            scales = [(0, _factor(about["scale"]))]
        refuse_offsets(about, path)
        return Sidecar(about.get("depth_kind"), scales or None, "scales" in about or "channel" in about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(f"cannot read {path}: {error}; it may hold depth_kind and scale, as JSON") from error


def _factor(value: Any) -> float:
    """Return a scale as a number; true is none."""
    if isinstance(value, bool):
        raise TypeError(f"scale is {value}, not a number")
    return float(value)
