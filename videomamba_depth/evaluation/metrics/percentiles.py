"""Exact percentiles of all numbers of a clip, without holding the clip."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from videomamba_depth.flow.frame_view import Frames

_DIGIT_BITS = 16
_DIGITS = 1 << _DIGIT_BITS


def percentiles(frames: Frames | Sequence[np.ndarray], shares: Sequence[float]) -> list[float]:
    """Return the percentiles of all numbers of all frames together: those of `np.percentile`, "linear", exactly.

    Radix selection: numbers sort like their bit patterns, so a histogram of the first 16 bits says with which bits the
    number of a wanted rank begins, and one more of those that begin so with which it goes on.

    Args:
        frames: arrays of any shapes and one type. Read twice (float32) or four times (anything else, as float64), one
            after another; a histogram has 512 KB.
        shares: in [0, 100].

    Returns:
        A float64 per share, interpolated between neighbouring ranks; NaN where there is no number, or one is NaN.
    """
    digits = 2 if len(frames) and frames[0].dtype == np.float32 else 4
    first = _histograms(frames, digits, [0])
    total = int(first[0].sum())
    if total == 0:
        return [math.nan] * len(shares)
    places = [(total - 1) * (share / 100.0) for share in shares]
    ranks = {0, total - 1, *(math.floor(place) for place in places), *(math.ceil(place) for place in places)}
    values = _values_at(frames, digits, sorted(ranks), first)
    if math.isnan(values[0]) or math.isnan(values[total - 1]):  # NaNs sort to the ends
        return [math.nan] * len(shares)
    return [_between(values[math.floor(place)], values[math.ceil(place)], place % 1.0) for place in places]


def median(frames: Frames | Sequence[np.ndarray]) -> float:
    """Return the median of all numbers of all frames together; see `percentiles`."""
    return percentiles(frames, [50.0])[0]


def _values_at(
    frames: Frames | Sequence[np.ndarray], digits: int, ranks: list[int], histograms: dict[int, np.ndarray]
) -> dict[int, float]:
    """Return the number of each rank, 0 for the smallest. histograms: those of the first digit."""
    found = dict.fromkeys(ranks, 0)  # the digits known so far, as one number
    within = {rank: rank for rank in ranks}  # its rank among the numbers that begin so
    for left in reversed(range(digits)):
        for rank in ranks:
            up_to = histograms[found[rank]].cumsum()
            digit = int(np.searchsorted(up_to, within[rank], side="right"))
            within[rank] -= int(up_to[digit - 1]) if digit else 0
            found[rank] = found[rank] * _DIGITS + digit
        if left:
            histograms = _histograms(frames, left, sorted(set(found.values())))
    return {rank: _number(found[rank], digits) for rank in ranks}


def _histograms(frames: Frames | Sequence[np.ndarray], left: int, beginnings: list[int]) -> dict[int, np.ndarray]:
    """Count the next digit of all numbers with a known beginning, which `left` digits follow."""
    counts = {beginning: np.zeros(_DIGITS, np.int64) for beginning in beginnings}
    for frame in frames:
        keys = _keys(frame)
        shift = keys.dtype.type(_DIGIT_BITS * (left - 1))
        upper = keys >> shift
        digit = (upper & (_DIGITS - 1)).astype(np.intp)
        beginning = upper >> _DIGIT_BITS
        for known, count in counts.items():
            chosen = digit[beginning == known]
            if chosen.size < _DIGITS // 8:
                np.add.at(count, chosen, 1)
            else:
                count += np.bincount(chosen, minlength=_DIGITS)
    return counts


def _keys(values: np.ndarray) -> np.ndarray:
    """Return unsigned integers that sort like the numbers: the sign bit set where positive, else all bits turned."""
    floats = np.ascontiguousarray(values, np.float32 if values.dtype == np.float32 else np.float64).ravel()
    bits = floats.view(np.uint32 if floats.dtype == np.float32 else np.uint64)
    sign = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    return np.where(bits < sign, bits | sign, ~bits)


def _number(key: int, digits: int) -> float:
    """Return the number of a key."""
    width = _DIGIT_BITS * digits
    sign = 1 << (width - 1)
    bits = key ^ sign if key >= sign else key ^ ((1 << width) - 1)
    return float(np.array(bits, np.uint32).view(np.float32) if digits == 2 else np.array(bits, np.uint64).view(float))


def _between(low: float, high: float, share: float) -> float:
    """Interpolate as NumPy does, from the nearer end."""
    if low == high:  # infinities too
        return low
    step = (high - low) * share if share < 0.5 else (high - low) * (1.0 - share)
    return low + step if share < 0.5 else high - step
