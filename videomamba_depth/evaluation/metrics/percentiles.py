"""Exact percentiles of all numbers of a clip, without holding the clip."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence

import numpy as np

from videomamba_depth.flow.frame_view import Frames, disk_space, remembered


@remembered
def percentiles(frames: Frames | Sequence[np.ndarray], shares: Sequence[float]) -> list[float]:
    """Return the percentiles of all numbers of all frames together: those of `np.percentile`, "linear", exactly.

    The numbers are copied to a temporary file, which is mapped and partitioned in place: its pages are the system's to
    keep or to write back.

    Args:
        frames: arrays of any shapes and one type, read once, one after another; float32, anything else as float64.
        shares: in [0, 100].

    Returns:
        A float64 per share, interpolated between neighboring ranks; NaN where there is no number, or one is NaN.
    """
    dtype = np.float32 if len(frames) and frames[0].dtype == np.float32 else np.float64
    with tempfile.TemporaryFile() as file:
        with disk_space():
            total = sum(file.write(np.ascontiguousarray(frame, dtype).data.cast("B")) for frame in frames if frame.size)
            file.flush()
        count = total // np.dtype(dtype).itemsize
        if count == 0:
            return [math.nan] * len(shares)
        values = np.memmap(file, dtype, mode="r+", shape=(count,))
        places = [(count - 1) * (share / 100.0) for share in shares]
        ranks = {count - 1, *(math.floor(place) for place in places), *(math.ceil(place) for place in places)}
        values.partition(sorted(ranks))
        found = {rank: float(values[rank]) for rank in ranks}
    if math.isnan(found[count - 1]):  # NaNs are sorted after everything else
        return [math.nan] * len(shares)
    return [_between(found[math.floor(place)], found[math.ceil(place)], place % 1.0) for place in places]


def median(frames: Frames | Sequence[np.ndarray]) -> float:
    """Return the median of all numbers of all frames together; see `percentiles`."""
    return percentiles(frames, [50.0])[0]


def _between(low: float, high: float, share: float) -> float:
    """Interpolate as NumPy does, from the nearer end."""
    if low == high:  # infinities too
        return low
    step = (high - low) * share if share < 0.5 else (high - low) * (1.0 - share)
    return low + step if share < 0.5 else high - step
