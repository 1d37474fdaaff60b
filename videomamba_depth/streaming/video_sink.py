"""The video that a person looks at, and the per-frame log that says what its colours mean."""

from __future__ import annotations

import logging
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from videomamba_depth.data.video_io import VideoWriter
from videomamba_depth.streaming.colour import Colouriser, ColourRange, nearness
from videomamba_depth.streaming.frames import DepthFrame
from videomamba_depth.streaming.outputs import disk_error
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.logger import JsonLines

log = logging.getLogger(__name__)

_MAX_TIMESCALE = 2**31 - 1


class VideoSink:
    """Video of the coloured depth, alone or beside the frame it belongs to, with the source's timestamps.

    While it grows the file consists of fragments, so that it plays even after a kill; on closing it is rewritten
    (packets are copied) as an ordinary MP4 with its index in front.

    Args:
        path: the file.
        kind: what the depth means; metric depth is coloured by its inverse, so that near is bright for both kinds.
        fps: a hint for the encoder.
        side_by_side: the frame on the left.
        codec: "h264" or "hevc".
    """

    def __init__(
        self,
        path: Path,
        kind: DepthKind,
        colour_range: ColourRange,
        colouriser: Colouriser,
        fps: float,
        side_by_side: bool = True,
        codec: str = "h264",
    ) -> None:
        self.path, self._kind, self._fps, self._side_by_side = path, kind, fps, side_by_side
        self._range, self._colouriser, self._codec = colour_range, colouriser, codec
        self._writer: VideoWriter | None = None

    def write(self, frame: DepthFrame) -> None:
        """Append one frame."""
        picture = self._draw(frame)
        if self._writer is None:
            size = (picture.shape[1], picture.shape[0])
            fps = Fraction(self._fps).limit_denominator(1001)
            self._writer = VideoWriter(
                self.path, size=size, fps=fps, time_base=frame.time_base, codec=self._codec, fragmented=True
            )
        self._writer.write(picture, frame.pts)

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            _index_in_front(self.path)

    def _draw(self, frame: DepthFrame) -> np.ndarray:
        near = nearness(frame.depth, self._kind)
        if frame.reset:
            self._range.reset()
        coloured = self._colouriser(near, self._range.update(near, frame.timestamp_s))
        if not self._side_by_side:
            return coloured
        rgb, (height, width) = frame.rgb, coloured.shape[:2]
        if rgb.shape != coloured.shape:
            rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
        return np.concatenate([rgb, coloured], axis=1)


class FrameLog:
    """One JSON line per frame: index, time, range of the depth, why the model started afresh, key frames, losses."""

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)

    def write(self, frame: DepthFrame) -> None:
        """Append one line; it is on disk when this returns."""
        low, high = cv2.minMaxLoc(frame.depth)[:2]
        record: dict[str, object] = {"frame": frame.index, "pts": frame.pts, "time_s": round(frame.timestamp_s, 6)}
        record |= {"depth_min": float(f"{low:.6g}"), "depth_max": float(f"{high:.6g}")}
        if frame.reset:
            record["reset"] = frame.reset
        if frame.key is not None:
            record["key"] = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in frame.key.items()}
        if frame.dropped:
            record["dropped"] = frame.dropped
        if frame.outage_s:
            record["outage_s"] = round(frame.outage_s, 3)
        try:
            self._lines.write(record)
        except OSError as error:
            raise disk_error(self._lines.path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def _index_in_front(path: Path) -> None:
    """Rewrite a fragmented MP4 as an ordinary one; the fragmented file stays where that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with av.open(str(path)) as source:
            video = source.streams.video[0]
            scale = str(min(video.time_base.denominator, _MAX_TIMESCALE))
            options = {"movflags": "faststart", "video_track_timescale": scale, "movie_timescale": scale}
            with av.open(str(temporary), "w", format="mp4", options=options) as target:
                copy = target.add_stream_from_template(video)
                copy.time_base = video.time_base
                for packet in source.demux(video):
                    if packet.dts is not None:
                        packet.stream = copy
                        target.mux(packet)
        os.replace(temporary, path)
    except (av.error.FFmpegError, OSError) as error:
        temporary.unlink(missing_ok=True)
        log.warning("%s stays in fragments (it plays as it is): %s", path, error)
