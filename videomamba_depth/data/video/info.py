"""What is known of a video before its pixels are read: size, exact timestamps, key frames, damage."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np

from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)


class VideoReadError(UserError):
    """A video or image that cannot be read; one line with the path, the reason and what to do."""


CUT_OFF, BROKEN = "it is cut off", "its structure is broken"


@dataclass(frozen=True, slots=True)
class Structure:
    """What the sizes in a file say.

    Attributes:
        damage: `CUT_OFF` or `BROKEN` where they do not lead from its start to its end, else "".
        packets: of video that a fragmented MP4 or a Matroska file holds, as far as it is whole: by the track's id (MP4)
            or by its place among the tracks of video (Matroska).
        is_edited: whether a track of video has an edit list (MP4).
        pauses: whether such a list shows nothing for a while after its beginning.
        second: what follows that demuxers pass over: a second recording that was joined on; "" for nothing.
    """

    damage: str = ""
    packets: Counter[int] = field(default_factory=Counter)
    second: str = ""
    is_edited: bool = False
    pauses: bool = False


@dataclass(frozen=True, eq=False)
class Orientation:
    """One of the eight right-angle display orientations: transpose first, then the flips.

    Kept apart from `VideoInfo.rotation` because a display matrix may also mirror (front cameras).
    """

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Turn a stored image [H,W,...] into the displayed one, [W,H,...] when transposed."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        if self.flip_x:
            image = image[:, ::-1]
        if self.flip_y:
            image = image[::-1]
        return np.ascontiguousarray(image)


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """A probed video file or image sequence.

    Attributes:
        path: the file, folder or glob as given.
        width, height: px, as displayed: rotated, and of square pixels.
        num_frames: frames that can be decoded, exact.
        fps: average frames per second, `(num_frames - 1) / duration`; the nominal rate for one frame.
        time_base: seconds per unit of `pts`, exact.
        pts: int64 [num_frames], strictly increasing presentation times in units of `time_base`.
        rotation: degrees counter-clockwise that the stored frames are turned for display: 0, 90, 180 or 270.
        orientation: the same with mirroring, as applied by the readers.
        keyframes: int64, indices of frames at which decoding can start, ascending.
        has_pts: whether a frame can be found by its timestamp. Where timestamps are missing (raw streams, AVI) or do
            not increase (joined recordings), `pts` is made of what there is and seeking means decoding from the start.
        damage: "" for an intact file, otherwise what is wrong; `num_frames` then counts the usable part.
        image_paths: the files of an image sequence, in order; empty for a video file.
        animated: one image file of several frames.
    """

    path: str
    width: int
    height: int
    num_frames: int
    fps: float
    time_base: Fraction
    pts: np.ndarray
    rotation: int = 0
    orientation: Orientation = field(default_factory=Orientation)
    keyframes: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    has_pts: bool = True
    damage: str = ""
    image_paths: tuple[Path, ...] = ()
    animated: bool = False

    @property
    def timestamps_s(self) -> np.ndarray:
        """Presentation times in seconds, float64 [num_frames], on the file's own clock."""
        return self.pts * self.time_base.numerator / self.time_base.denominator

    @property
    def own_times_s(self) -> np.ndarray | None:
        """`timestamps_s` where the video says them; None where they are made up: of image folders, raw streams."""
        return self.timestamps_s if self.has_pts and (self.animated or not self.image_paths) else None


@lru_cache
def warn_once(line: str) -> None:
    """Log a warning; the same one no second time."""
    log.warning("%s", line)
