"""Where frames come from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol
from urllib.parse import urlparse

from videomamba_depth.data.video_io import Frame, VideoReadError, iter_frames, probe_video


class FrameSource(Protocol):
    """Frames in order, and what is known of them beforehand.

    Attributes:
        name: names the outputs.
        num_frames: how many will come; None where nobody knows.
        fps: frames per second, on average.
        time_base: seconds per unit of the frames' `pts`.
    """

    name: str
    num_frames: int | None
    fps: float
    time_base: Fraction

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames; raises `UserError` behind the last one when not all could be read."""


class FileSource:
    """A video file, an image folder, a glob or an image.

    What can be decoded is yielded; damage is raised behind the last frame.

    Args:
        path: what to read.
        fps: of image sequences, which have no timestamps; default 30.
        max_frames: stop after that many.

    Raises:
        UserError: nothing usable there.
    """

    def __init__(self, path: str | Path, fps: float | None = None, max_frames: int | None = None) -> None:
        self._info = probe_video(path, fps=fps)
        self._path, self._max_frames = path, max_frames
        self.name = name_of(str(path))
        self.num_frames: int | None = min(self._info.num_frames, max_frames or self._info.num_frames)
        self.fps, self.time_base = self._info.fps, self._info.time_base

    def __iter__(self) -> Iterator[Frame]:
        info, num_yielded = self._info, 0
        for frame in itertools.islice(iter_frames(self._path, info=info), self.num_frames):
            yield frame
            num_yielded += 1
        if num_yielded < (self.num_frames or 0):
            raise VideoReadError(
                f"{info.path} is damaged: {num_yielded} of its {info.num_frames} frames could be decoded"
            )
        if info.damage and num_yielded == info.num_frames:
            raise VideoReadError(f"{info.path} is damaged: {info.damage}")


class UrlSource:
    """A video behind a URL that FFmpeg opens (http, https, rtsp, …), read once from its start.

    Raises:
        UserError: it cannot be opened, or holds no frame.
    """

    def __init__(self, url: str, max_frames: int | None = None) -> None:
        self._frames = iter_frames(url)
        self._first = next(self._frames)
        self._max_frames = max_frames
        self.name = name_of(urlparse(url).path) or "stream"
        self.num_frames: int | None = None
        self.fps, self.time_base = 30.0, self._first.time_base

    def __iter__(self) -> Iterator[Frame]:
        return itertools.islice(itertools.chain([self._first], self._frames), self._max_frames)


def name_of(path: str) -> str:
    """Return what to call the outputs of an input: the file's stem or the folder's name, without glob signs."""
    plain = "".join("_" if c in "*?[]" else c for c in Path(path).name)
    resolved = Path(path).expanduser().resolve()
    return resolved.name if resolved.is_dir() else Path(plain).stem
