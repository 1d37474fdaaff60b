"""Depth as colors, in a video or a window, and the per-frame log with the range of the colors."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from videomamba_depth.data.video.reader import VideoWriter
from videomamba_depth.streaming.depth_frame import DepthFrame
from videomamba_depth.streaming.sinks.preview_window import PreviewWindow
from videomamba_depth.utils.atomic import replacing
from videomamba_depth.utils.color import DepthColors
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.logger import JsonLines

log = logging.getLogger(__name__)

_MAX_TIMESCALE = 2**31 - 1
# 0.6 of the time of x264's "veryfast" at crf 18, at the same error and 1.2 times the size (two clips of 480p and 720p).
_H264: dict[str, Any] = {"preset": "superfast", "crf": 19}


class FramePainter:
    """Colored depth, alone or beside the frame it belongs to.

    Args:
        colors: of the depth; follow the frames that are painted.
        side_by_side: the frame on the left.
    """

    def __init__(self, colors: DepthColors, side_by_side: bool = True) -> None:
        self._colors, self._side_by_side = colors, side_by_side

    def __call__(self, frame: DepthFrame) -> np.ndarray:
        """Return the picture of a frame, uint8 RGB `[h, w, 3]`."""
        colored = self._colors(frame.depth, frame.timestamp_s, reset=bool(frame.reset))
        if not self._side_by_side:
            return colored
        rgb, (height, width) = frame.rgb, colored.shape[:2]
        if rgb.shape != colored.shape:
            rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
        return np.concatenate([rgb, colored], axis=1)


class PreviewSink:
    """Show the newest frame in a window; where the window is closed, `stop` is set."""

    def __init__(self, window: PreviewWindow, painter: FramePainter, stop: threading.Event) -> None:
        self._window, self._painter, self._stop = window, painter, stop

    def write(self, frame: DepthFrame) -> None:
        """Show one frame, or leave it out while the window is busy."""
        if self._window.wants():
            self._window.show(self._painter(frame))
        if self._window.closed:
            self._stop.set()

    def close(self) -> None:
        """Close the window."""
        self._window.close()


class VideoSink:
    """Video of painted frames with the source's timestamps.

    While it grows the file consists of fragments, so that it plays even after a kill; on closing it is rewritten
    (packets are copied) as an ordinary MP4 with its index in front.

    Args:
        path: the file.
        fps: a hint for the encoder.
        codec: "h264" or "hevc".
    """

    def __init__(self, path: Path, painter: FramePainter, fps: float, codec: str = "h264") -> None:
        self.path, self._painter, self._fps, self._codec = path, painter, fps, codec
        self._writer: VideoWriter | None = None

    def write(self, frame: DepthFrame) -> None:
        """Append one frame."""
        picture = self._painter(frame)
        if self._writer is None:
            size = (picture.shape[1], picture.shape[0])
            fps = Fraction(self._fps).limit_denominator(1001)
            self._writer = VideoWriter(
                self.path,
                size=size,
                fps=fps,
                time_base=frame.time_base,
                codec=self._codec,
                fragmented=True,
                **(_H264 if self._codec == "h264" else {}),
            )
        self._writer.write(picture, frame.pts)

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            _index_in_front(self.path)

    def files(self) -> Iterable[Path]:
        """Return the file."""
        return [self.path]


class FrameLog:
    """One JSON line per frame: index, time, range of the depth, why the state was reset, notes of hooks, losses."""

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)

    def write(self, frame: DepthFrame) -> None:
        """Append one line; it is on disk when this returns."""
        low, high = cv2.minMaxLoc(frame.depth)[:2]
        record: dict[str, object] = {"frame": frame.index, "pts": frame.pts, "time_s": round(frame.timestamp_s, 6)}
        record |= {"depth_min": float(f"{low:.6g}"), "depth_max": float(f"{high:.6g}")}
        if frame.reset:
            record["reset"] = frame.reset
        for name, note in frame.notes.items():
            record[name] = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in note.items()}
        if frame.camera is not None:
            record["camera"] = frame.camera.record()
        if frame.dropped:
            record["dropped"] = frame.dropped
        if frame.outage_s:
            record["outage_s"] = round(frame.outage_s, 3)
        self._lines.write(record)

    def close(self) -> None:
        """Flush the file to the disk and close it."""
        self._lines.sync()
        self._lines.close()

    def files(self) -> Iterable[Path]:
        """Return the file."""
        return [self._lines.path]


def _index_in_front(path: Path) -> None:
    """Rewrite a fragmented MP4 as an ordinary one; the fragmented file stays where that fails."""
    try:
        with replacing(path) as partial, av.open(str(path.absolute())) as source:
            video = source.streams.video[0]
            scale = str(min(video.time_base.denominator, _MAX_TIMESCALE))
            options = {"movflags": "faststart", "video_track_timescale": scale, "movie_timescale": scale}
            with av.open(str(partial.absolute()), "w", format="mp4", options=options) as target:
                copy = target.add_stream_from_template(video)
                copy.time_base = video.time_base
                for packet in source.demux(video):
                    if packet.dts is not None:
                        packet.stream = copy
                        target.mux(packet)
    except (av.error.FFmpegError, UserError) as error:
        log.warning("%s stays in fragments (it plays as it is): %s", path, error)
