"""Write H.264 or HEVC in MP4 with the timestamps of the input, frame by frame."""

from __future__ import annotations

import logging
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from videomamba_depth.utils.atomic import disk_error, put_in_place, sync
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

CODECS = {"h264": "libx264", "hevc": "libx265"}
_BT709 = 1  # AVCOL_SPC_BT709, AVCOL_PRI_BT709 and AVCOL_TRC_BT709 share this value
_LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG
_MIN_TIMESCALE = 10_000  # the MP4 muxer doubles smaller timescales up to at least this
_MAX_TIMESCALE = 2**31 - 1


class VideoWriter:
    """H.264 or HEVC (yuv420p, BT.709) MP4 writer for uint8 RGB frames with explicit timestamps; a context manager.

    Frame count and timestamps of the file equal what was written: the track keeps the given `time_base` (times a
    power of two), and a stream that starts late keeps its start. Odd sizes are padded to even by repeating the
    last row or column, since 4:2:0 video has even sizes; nothing is cropped or scaled.

    Args:
        path: the file to write; parent folders are made, an existing file is replaced.
        size: (width, height) px of the frames.
        fps: frames per second; alone, frame i is at i / fps seconds. With `time_base` only a hint for the encoder.
        time_base: seconds per unit of the `pts` given to `write`.
        codec: "h264", which plays everywhere, or "hevc": half the size, several times the time.
        crf: quality of x264 and x265, 0 (lossless) to 51; 18 is visually lossless.
        preset: their speed preset.
        fragmented: write fragments of about a second of video, so that a killed process leaves a playable file that
            lacks the last one or two.
        atomic: write to a hidden file beside `path` and rename it on success, so that `path` is always whole;
            after an exception nothing is left. Not together with `fragmented`.

    Raises:
        UserError: the folder cannot be written, or this build of PyAV lacks the encoder.
        ValueError: contradictory arguments, a frame of another size, or a `pts` that does not increase.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: tuple[int, int],
        fps: float | Fraction | None = None,
        time_base: Fraction | None = None,
        codec: str = "h264",
        crf: int = 18,
        preset: str = "veryfast",
        fragmented: bool = False,
        atomic: bool = False,
    ) -> None:
        if fps is None and time_base is None:
            raise ValueError("VideoWriter needs fps or time_base; got neither")
        if fragmented and atomic:
            raise ValueError("fragmented and atomic exclude each other: a fragmented file is meant to be seen early")
        if codec not in CODECS:
            raise ValueError(f"codec must be one of {', '.join(CODECS)}; got '{codec}'")
        rate = Fraction(fps).limit_denominator(1001) if fps is not None else Fraction(30)
        self.path = Path(os.path.expanduser(path))
        self.time_base = _exact_time_base(1 / rate if time_base is None else Fraction(time_base))
        self.num_frames = 0
        self._size = size
        self._shift = 0
        self._last_pts: int | None = None
        self._target = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial") if atomic else self.path
        self._container: Any = self._open(fragmented)
        self._stream = self._add_stream(codec, rate, crf, preset)
        # One for all frames: new memory for each takes longer to get than to fill.
        self._picture = av.VideoFrame(size[0] + size[0] % 2, size[1] + size[1] % 2, "rgb24")

    def write(self, rgb: np.ndarray, pts: int | None = None) -> None:
        """Append one frame.

        Args:
            rgb: uint8 [height,width,3].
            pts: presentation time in units of `time_base`, larger than the last one; default the frame's number.
                A stream that starts below zero is shifted to zero, with a warning, for MP4 cannot hold it.
        """
        width, height = self._size
        if rgb.shape != (height, width, 3) or rgb.dtype != np.uint8:
            raise ValueError(f"rgb must be uint8 {(height, width, 3)} as opened; got {rgb.dtype} {rgb.shape}")
        pts = self.num_frames if pts is None else int(pts)
        if self._last_pts is None and pts < 0:
            self._shift = -pts
            log.warning("%s: timestamps start at %s s; shifted to 0", self.path, float(pts * self.time_base))
        if self._last_pts is not None and pts <= self._last_pts:
            raise ValueError(f"pts must increase from frame to frame; got {pts} after {self._last_pts}")
        self._last_pts = pts
        plane = self._picture.planes[0]
        pixels = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # [height, bytes of a line]
        pixels[:height, : 3 * width] = rgb.reshape(height, 3 * width)
        if width % 2:
            pixels[:height, 3 * width : 3 * width + 3] = rgb[:, -1]
        pixels[height:] = pixels[height - 1]
        frame = self._picture.reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = pts + self._shift, self.time_base
        self._mux(self._stream.encode(frame))
        self.num_frames += 1

    def close(self) -> None:
        """Flush the encoder and finish the file; safe to call twice."""
        if self._container is None:
            return
        try:
            self._mux(self._stream.encode(None))
        finally:
            container, self._container = self._container, None
            container.close()
        if self._target == self.path:
            sync(self.path)
        else:
            put_in_place(self._target, self.path)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._target != self.path:
            container, self._container = self._container, None
            container.close()
            self._target.unlink(missing_ok=True)
            return
        self.close()  # after an exception too: what was written stays playable

    def _open(self, fragmented: bool) -> Any:
        timescale = self.time_base.denominator
        while timescale < _MIN_TIMESCALE:
            timescale *= 2
        # The movie's own clock is 1 ms by default, to which the start of a late stream would be rounded.
        options = {"movie_timescale": str(timescale), "video_track_timescale": str(timescale)}
        if fragmented:
            # delay_moov and not empty_moov: the header then knows the first timestamp and the B-frame delay.
            options |= {
                "movflags": "frag_keyframe+delay_moov+default_base_moof",
                "frag_duration": "1000000",
                "flush_packets": "1",
            }
        else:
            options |= {"movflags": "faststart"}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return av.open(str(self._target.absolute()), "w", format="mp4", options=options)
        except (av.error.FFmpegError, OSError) as error:
            raise disk_error(f"video {self.path}", error) from error

    def _add_stream(self, codec: str, rate: Fraction, crf: int, preset: str) -> Any:
        encoder = CODECS[codec]
        if encoder not in av.codecs_available:
            raise UserError(f"this PyAV cannot encode {codec} (no {encoder}); install the wheel: pip install av")
        # A key frame at least every second keeps seeking quick and fragments short.
        options = {"crf": str(crf), "preset": preset, "g": str(max(1, round(rate)))}
        if codec == "hevc":
            options["x265-params"] = "log-level=error"
        stream = self._container.add_stream(encoder, rate=rate, options=options)
        if codec == "hevc":
            stream.codec_context.codec_tag = "hvc1"  # the name that QuickTime and Safari ask for
        width, height = self._size
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        stream.time_base = self.time_base
        context = stream.codec_context
        context.time_base = self.time_base
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        return stream

    def _mux(self, packets: Any) -> None:
        try:
            self._container.mux(packets)
        except (av.error.FFmpegError, OSError) as error:
            raise disk_error(f"video {self.path}", error) from error


def _exact_time_base(time_base: Fraction) -> Fraction:
    if time_base <= 0:
        raise ValueError(f"time_base must be positive; got {time_base}")
    if time_base.denominator > _MAX_TIMESCALE:
        raise ValueError(f"time_base {time_base} is finer than MP4 can hold (denominator at most {_MAX_TIMESCALE})")
    return time_base
