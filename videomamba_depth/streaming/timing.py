"""How long each stage takes, in constant memory."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_RECENT = 10_000  # frames that percentiles are taken over


class StageTimes:
    """Busy time of one stage, call by call."""

    def __init__(self) -> None:
        self.count, self.total_s = 0, 0.0
        self._recent_s: deque[float] = deque(maxlen=_RECENT)

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Time the body of a `with`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - start)

    def add(self, seconds: float) -> None:
        """Take in one call."""
        self.count += 1
        self.total_s += seconds
        self._recent_s.append(seconds)

    @property
    def mean_ms(self) -> float:
        """Mean per call in ms."""
        return 1000 * self.total_s / max(1, self.count)

    def percentiles_ms(self, levels: tuple[float, ...] = (50, 95, 99)) -> tuple[float, ...]:
        """Return percentiles of the recent calls in ms; zeros before the first."""
        if not self._recent_s:
            return (0.0,) * len(levels)
        return tuple(float(v) for v in 1000 * np.percentile(np.fromiter(self._recent_s, float), levels))


def resident_mb() -> float:
    """Return the memory that this process holds in RAM, in MB (10^6 bytes); its peak where only that is known."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        import resource  # not there on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
