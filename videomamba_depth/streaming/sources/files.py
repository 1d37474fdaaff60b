"""Sources of recorded frames: video files, image folders and URLs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol
from urllib.parse import urlparse

from videomamba_depth.data.video.decode import Losses, without_password
from videomamba_depth.data.video.reader import Frame, VideoReadError, iter_frames, probe_video


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
        """Yield the frames; raises `UserError` after the last one when not all could be read."""


class FileSource:
    """A video file, an image folder, a glob or an image.

    What can be decoded is yielded; damage is raised after the last frame.

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
        info, num_yielded, losses = self._info, 0, Losses()
        for frame in itertools.islice(iter_frames(self._path, info=info, losses=losses), self.num_frames):
            yield frame
            num_yielded += 1
        damage = info.damage if num_yielded == info.num_frames else ""
        if num_yielded < (self.num_frames or 0):
            damage = f"{num_yielded} of its {info.num_frames} frames could be decoded"
        if damage := damage or losses.described():
            raise VideoReadError(f"{info.path} is damaged: {damage}")


class UrlSource:
    """A video at a URL that FFmpeg opens (http, https, rtsp, …), read once from its start.

    A connection that breaks off, and damage, are raised after the last frame.

    Raises:
        UserError: it cannot be opened, or holds no frame.
    """

    def __init__(self, url: str, max_frames: int | None = None) -> None:
        self._url, self._losses = url, Losses()
        self._frames = iter_frames(url, losses=self._losses)
        self._first = next(self._frames)
        self._max_frames = max_frames
        self.name = name_of(urlparse(url).path) or "stream"
        self.num_frames: int | None = None
        self.fps, self.time_base = 30.0, self._first.time_base

    def __iter__(self) -> Iterator[Frame]:
        num_yielded = 0
        for frame in itertools.islice(itertools.chain([self._first], self._frames), self._max_frames):
            yield frame
            num_yielded += 1
        complete = self._max_frames is None or num_yielded < self._max_frames
        if complete and (damage := self._losses.described()):
            raise VideoReadError(f"{without_password(self._url)} is damaged: {damage}")


def name_of(path: str) -> str:
    """Return what to call the outputs of an input: the file's stem or the folder's name, without glob signs."""
    plain = "".join("_" if c in "*?[]" else c for c in Path(path).name)
    resolved = Path(os.path.expanduser(path)).resolve()
    return resolved.name if resolved.is_dir() else Path(plain).stem
