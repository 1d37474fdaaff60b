"""What travels through a stream: a decoded frame goes in (`data.video_io.Frame`), a frame with depth comes out."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class DepthFrame:
    """One frame with its depth.

    Attributes:
        index: number of the frame in its source.
        pts: presentation time in units of `time_base`, as in the source.
        time_base: seconds per unit of `pts`.
        rgb: uint8 `[H, W, 3]`, as decoded.
        depth: float32 `[h, w]`; the source's resolution or the model's, see `DepthStream`.
        reset: why the model started afresh at this frame: "" (it did not), "start", "cut" or "gap".
        key: what was decided about key frames, see `KeyFrames.decision`; None without them.
    """

    index: int
    pts: int
    time_base: Fraction
    rgb: np.ndarray
    depth: np.ndarray
    reset: str = ""
    key: dict[str, Any] | None = None

    @property
    def timestamp_s(self) -> float:
        """Presentation time in seconds on the source's own clock."""
        return self.pts * self.time_base.numerator / self.time_base.denominator


def to_storage(depth: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return depth in `dtype`; values beyond float16's range become its largest, not infinite."""
    limit = np.finfo(dtype).max
    return np.clip(depth, -limit, limit).astype(dtype) if dtype == np.float16 else depth.astype(dtype)
