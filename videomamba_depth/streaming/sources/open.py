"""The source of a stream, from its settings. A new source is a file here and an entry of `SOURCES`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from videomamba_depth.data.video.decode import is_url
from videomamba_depth.streaming.sources.files import FileSource, FrameSource, UrlSource
from videomamba_depth.streaming.sources.live import CameraSource, LatestFrames, RawFrameSource
from videomamba_depth.streaming.sources.network import NetworkCamera
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.settings import path, ranged


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """What to read.

    Attributes:
        input: a video file, image folder, glob, image, URL, camera ("0", "1", …), or "-": raw frames from stdin.
        fps: of image sequences and raw frames; default 30.
        max_frames: stop after that many frames of the source.
        raw_input_size: (width, height) px of raw frames.
        live: drop frames rather than fall behind, and connect again when a URL breaks off; None: for cameras and rtsp.
        reconnect_s: give up on a live URL after that long without a frame; 0: never connect again.
    """

    input: str = path()
    fps: float | None = ranged(0.01, 1000, None)
    max_frames: int | None = ranged(1, 10**9, None)
    raw_input_size: tuple[int, int] | None = ranged(1, 65536, None, length=2)
    live: bool | None = None
    reconnect_s: float = ranged(0, 1e9, 60.0)

    @property
    def is_camera(self) -> bool:
        """Whether `input` is the number of a camera."""
        return self.input.isdecimal() and not Path(self.input).exists()

    @property
    def is_live(self) -> bool:
        """Whether frames are dropped rather than kept waiting."""
        return self.is_camera or self.input.startswith("rtsp") if self.live is None else self.live


def _raw_frames(s: SourceSettings) -> FrameSource:
    if s.raw_input_size is None:
        raise UserError("input=- reads raw frames from stdin: say how large they are, raw_input_size=[WIDTH,HEIGHT]")
    return RawFrameSource(sys.stdin.buffer, s.raw_input_size, s.fps, s.max_frames)


SOURCES: list[tuple[Callable[[SourceSettings], bool], Callable[[SourceSettings], FrameSource]]] = [
    (lambda s: s.input == "-", _raw_frames),
    (lambda s: s.is_camera, lambda s: CameraSource(int(s.input), s.max_frames)),
    (
        lambda s: is_url(s.input) and s.is_live,
        lambda s: NetworkCamera(s.input, s.max_frames, reconnect_s=s.reconnect_s),
    ),
    (lambda s: is_url(s.input), lambda s: UrlSource(s.input, s.max_frames)),
    (lambda s: True, lambda s: FileSource(s.input, s.fps, s.max_frames)),
]
"""Which settings a source is for, and how it is opened; the first that fits is taken."""


def open_file(path: Path) -> FrameSource:
    """Return the frames of a video file or image folder, all of them.

    Raises:
        VideoReadError: nothing there, or nothing that can be decoded.
    """
    return FileSource(path)


def open_source(settings: SourceSettings) -> FrameSource:
    """Return the source that the settings name; a live one gives its newest frame whenever it is asked.

    Raises:
        UserError: nothing there, or nothing that can be decoded.
    """
    source = next(opened(settings) for fits, opened in SOURCES if fits(settings))
    return LatestFrames(source) if settings.is_live else source
