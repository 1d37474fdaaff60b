"""What travels through a stream: a decoded frame goes in (`data.video.reader.Frame`), a frame with depth comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from videomamba_depth.data.video.reader import Frame
from videomamba_depth.models.camera import Camera


@dataclass(frozen=True, slots=True, eq=False)
class DepthFrame:
    """One frame with its depth.

    Attributes:
        index: number of the frame in its source.
        pts: presentation time in units of `time_base`, as in the source.
        time_base: seconds per unit of `pts`.
        rgb: uint8 `[H, W, 3]`, as decoded.
        depth: float32 `[h, w]`; the source's resolution or the model's, see `DepthStream`.
        reset: why the state was reset at this frame: "" (it was not), "start", "cut" or "gap".
        notes: what the stream's hooks say of it, see `StreamHook.notes`.
        dropped: frames that a live source dropped just before this one, because the model was slower.
        camera: where it was taken, for students with geometry.
        outage_s: seconds that a live source was away just before this frame.
    """

    index: int
    pts: int
    time_base: Fraction
    rgb: np.ndarray
    depth: np.ndarray
    reset: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    dropped: int = 0
    outage_s: float = 0.0
    camera: Camera | None = None

    @property
    def timestamp_s(self) -> float:
        """Presentation time in seconds on the source's own clock."""
        return self.pts * self.time_base.numerator / self.time_base.denominator


@dataclass
class LiveLosses:
    """What did not come through from a live source, up to the last frame that did."""

    dropped_frames: int = 0
    outages: int = 0
    outage_s: float = 0.0

    def add(self, frame: Frame) -> None:
        """Count what was lost just before a frame."""
        self.dropped_frames += frame.dropped
        self.outages += frame.outage_s > 0
        self.outage_s += frame.outage_s

    def any(self) -> bool:
        """Tell whether anything was lost."""
        return bool(self.dropped_frames or self.outages)

    def described(self) -> str:
        """Return the end of a summary line; "" where nothing was lost."""
        dropped = f"; {self.dropped_frames} frames dropped, the model is slower" if self.dropped_frames else ""
        return dropped + (f"; {self.outages} outages of {self.outage_s:.1f} s in all" if self.outages else "")


def to_storage(depth: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return depth in `dtype`; values beyond float16's range become its largest, not infinite."""
    limit = np.finfo(dtype).max
    return np.clip(depth, -limit, limit).astype(dtype) if dtype == np.float16 else depth.astype(dtype)
