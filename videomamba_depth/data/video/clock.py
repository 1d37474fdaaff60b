"""Presentation times that only go forward, whatever the stamps of a stream do."""

from __future__ import annotations

from fractions import Fraction

_JITTER_FRAMES = 2  # stamps that go back by no more are taken for a muxer's mistake, else for a clock that began anew
_LONGEST_GAP_S = 12 * 3600  # a longer step forward is no pause but another clock


class Clock:
    """Places frames in time; every frame gets a time, and strictly increasing stamps are kept as they are.

    A clock that begins anew or jumps by half a day goes on one frame after the last one; frames without a stamp follow
    the one before; equal stamps, or ones a little too early, are moved half a frame after it.

    Args:
        rate: frames per second, nominal.
        time_base: seconds per unit of the stamps.
    """

    def __init__(self, rate: Fraction, time_base: Fraction) -> None:
        self._interval = max(1, round(1 / (rate * time_base)))
        self._longest = int(_LONGEST_GAP_S / time_base)
        self._offset = 0
        self._last: int | None = None

    def place(self, pts: int | None) -> int:
        """Return the time of the next frame, in units of the time base, larger than the one before."""
        last = self._last
        if last is None:
            place = 0 if pts is None else pts
        elif pts is None:
            place = last + self._interval
        else:
            place = pts + self._offset
            if last - _JITTER_FRAMES * self._interval <= place <= last:
                place = last + max(1, self._interval // 2)
            elif not last < place <= last + self._longest:
                self._offset += last + self._interval - place
                place = last + self._interval
        self._last = place
        return place
