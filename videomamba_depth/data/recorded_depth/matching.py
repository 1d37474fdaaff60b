"""Which recorded depth belongs to which frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from videomamba_depth.data.recorded_depth.open import RecordedDepth
from videomamba_depth.utils.errors import UserError

_NAMED = 5


def match_frames(
    recorded: RecordedDepth,
    num_frames: int,
    *,
    names: Sequence[str] | None = None,
    numbers: Sequence[int] | None = None,
    total: int | None = None,
    timestamps: Sequence[float] | np.ndarray | None = None,
) -> list[int]:
    """Return for every frame of a clip the index of its recorded depth.

    Frames are matched by the first of these that both sides have: the number of the frame in its source, as our own
    streams record it; its name, where any is shared; its time, at most half a frame apart, one to one; its place,
    where there is depth for every frame of the source, or of the clip (of 8-bit videos place goes before time).
    Nothing is matched by place in lists of different lengths.

    Args:
        num_frames: F of the clip.
        names: of its frames, without a suffix.
        numbers: which frames of their source they are, from 0 on; None: the first F.
        total: frames of the whole source; None: F.
        timestamps: of its frames, s, on the source's own clock; None where it has none.

    Raises:
        UserError: frames have no depth; the message names the first of them.
    """
    places = list(range(num_frames)) if numbers is None else [int(n) for n in numbers]
    total = num_frames if total is None else total
    if recorded.frame_numbers is not None:
        return _looked_up(recorded, [int(n) for n in recorded.frame_numbers], places, "number")
    if names is not None and recorded.frame_names is not None and set(names) & set(recorded.frame_names):
        return _looked_up(recorded, list(recorded.frame_names), list(names), "name")
    times = None if timestamps is None else recorded.timestamps
    if times is not None and not recorded.storage.about.made_up_times:
        return _by_time(recorded, times, np.asarray(timestamps, dtype=np.float64))
    if recorded.num_frames == total and max(places, default=0) < total:
        return places
    if recorded.num_frames == num_frames:
        return list(range(num_frames))
    if times is not None:
        return _by_time(recorded, times, np.asarray(timestamps, dtype=np.float64))
    raise UserError(
        f"{recorded.path} has depth of {recorded.num_frames} frames, the clip has {total}; record every frame, or call"
        " one file for each by the frame's name"
    )


def _looked_up(recorded: RecordedDepth, known: list, wanted: list, what: str) -> list[int]:
    place = {key: i for i, key in enumerate(known)}
    if len(place) < len(known):
        raise UserError(f"{recorded.path} has depth of two frames with the same {what}")
    _refuse_missing(recorded, [str(key) for key in wanted if key not in place], len(wanted), what)
    return [place[key] for key in wanted]


def _by_time(recorded: RecordedDepth, known: np.ndarray, wanted: np.ndarray) -> list[int]:
    limit = 0.5 * float(np.median(np.diff(wanted))) if len(wanted) > 1 else 0.5
    order = np.argsort(known, kind="stable")
    after = np.clip(np.searchsorted(known[order], wanted), 1, max(len(known) - 1, 1))
    choices = np.stack([np.minimum(after - 1, len(known) - 1), np.minimum(after, len(known) - 1)])
    nearest = np.take_along_axis(choices, np.abs(known[order][choices] - wanted).argmin(axis=0)[None], 0)[0]
    far = np.abs(known[order][nearest] - wanted) > limit
    twice = np.zeros(len(wanted), dtype=bool)
    twice[1:] = nearest[1:] == nearest[:-1]
    missing = [f"{time:.3f} s" for time in wanted[far | twice]]
    _refuse_missing(recorded, missing, len(wanted), "time", _offset_hint(known[order], wanted, limit))
    return [int(i) for i in order[nearest]]


def _offset_hint(known: np.ndarray, wanted: np.ndarray, limit: float) -> str:
    """Name the offset between two clocks where, counted from their first stamps, it is the same for every frame."""
    count = min(len(known), len(wanted))
    late = known[:count] - np.sort(wanted)[:count]
    offset = float(np.median(late))
    if abs(offset) <= limit or np.abs(late - offset).max() > limit:
        return ""
    return (
        f"; from the first frame on, all stamps are {abs(offset):.3f} s {'late' if offset > 0 else 'early'}: bring them"
        " to the video's clock, or leave them out to match frames by their place"
    )


def _refuse_missing(
    recorded: RecordedDepth, missing: Sequence[str], num_frames: int, what: str, hint: str = ""
) -> None:
    if missing:
        more = ", …" if len(missing) > _NAMED else ""
        raise UserError(
            f"{recorded.path} has no depth of {len(missing)} of {num_frames} frames, by {what}:"
            f" {', '.join(missing[:_NAMED])}{more}{hint}"
        )
