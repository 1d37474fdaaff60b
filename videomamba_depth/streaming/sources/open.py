"""From what a person names to a source."""

from __future__ import annotations

import sys
from pathlib import Path

from videomamba_depth.data.video.decode import is_url
from videomamba_depth.streaming.sources.files import FileSource, FrameSource, UrlSource
from videomamba_depth.streaming.sources.live import CameraSource, LatestFrames, RawFrameSource
from videomamba_depth.streaming.sources.network import NetworkCamera
from videomamba_depth.utils.errors import UserError


def open_source(
    text: str,
    *,
    fps: float | None = None,
    max_frames: int | None = None,
    raw_input_size: tuple[int, int] | None = None,
    live: bool | None = None,
    reconnect_s: float = 60.0,
) -> FrameSource:
    """Open a video file, image folder, glob, image, URL, camera ("0", "1", …) or raw frames from stdin ("-").

    Args:
        fps: of image sequences and raw frames; default 30.
        max_frames: stop after that many frames of the source.
        raw_input_size: (width, height) px of raw frames.
        live: drop frames rather than fall behind, and connect again when a URL breaks off; None: for cameras and rtsp.
        reconnect_s: give up on a live URL after that long without a frame; 0: never connect again.

    Raises:
        UserError: nothing there, or nothing that can be decoded.
    """
    is_camera = text.isdecimal() and not Path(text).exists()
    if live is None:
        live = is_camera or text.startswith("rtsp")
    if text == "-" and raw_input_size is None:
        raise UserError("input=- reads raw frames from stdin: say how large they are, raw_input_size=[WIDTH,HEIGHT]")
    source: FrameSource
    if text == "-" and raw_input_size is not None:
        source = RawFrameSource(sys.stdin.buffer, raw_input_size, fps, max_frames)
    elif is_camera:
        source = CameraSource(int(text), max_frames)
    elif is_url(text) and live:
        source = NetworkCamera(text, max_frames, reconnect_s=reconnect_s)
    elif is_url(text):
        source = UrlSource(text, max_frames)
    else:
        source = FileSource(text, fps, max_frames)
    return LatestFrames(source) if live else source
