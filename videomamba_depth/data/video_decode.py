"""Thin layer over PyAV: open, decode past damage, convert to RGB. All PyAV reading goes through here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np

from videomamba_depth.data.video_info import Orientation, VideoReadError

_REMEDY = "it is damaged, cut off or not a video: replace or remove it"
# Decoders that honour a change of `skip_frame` from packet to packet; others (dav1d) lose frames over it.
_SKIP_ON_REQUEST = {"h264", "hevc", "mpeg4", "mpeg2video"}


def is_url(path: str | Path) -> bool:
    """Tell whether `path` is a network address that FFmpeg opens by itself."""
    return "://" in str(path)


def without_password(path: str | Path) -> str:
    """Return `path` as it may be shown: a URL without the user name and the password that it may hold."""
    return re.sub(r"(://)[^/@]*@", r"\1", str(path)) if is_url(path) else str(path)


@contextmanager
def open_video(
    path: str | Path,
    threads: int = 1,
    *,
    options: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    max_pixels: int | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Open a file's best video stream; yields (container, stream) and closes both.

    Args:
        path: file or URL.
        threads: decoder threads; 0 lets FFmpeg choose. Loader workers use 1.
        options: of FFmpeg's demuxer and protocol, by their names there.
        timeout_s: of a network call that does not return; None: no limit.
        max_pixels: of a frame; larger ones are not decoded.

    Raises:
        VideoReadError: missing, empty, not a video, or without a video stream.
    """
    if not is_url(path):
        _check_file(Path(path).expanduser())
        path = Path(path).expanduser()
    try:
        container = av.open(str(path), options=dict(options or {}), timeout=timeout_s)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = "is the address right and the server on?" if is_url(path) else _REMEDY
        raise VideoReadError(f"cannot open video {without_password(path)}: {reason}; {remedy}") from error
    with container, _reported(path):
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise VideoReadError(
                f"cannot read video {without_password(path)}: it has no video stream that can be decoded"
            )
        stream.codec_context.thread_count = threads
        if max_pixels is not None:
            stream.codec_context.options = {"max_pixels": str(max_pixels)}
        if threads != 1:
            stream.thread_type = "AUTO"
        yield container, stream


def decode_frames(container: Any, stream: Any, skip_before: int | None = None) -> Iterator[Any]:
    """Decode from the current position to the end; packets that cannot be decoded are skipped, never raised.

    A packet cut off by the end of the file is not shown to the decoder, so that no concealed frame comes out.
    Frames earlier than `skip_before` (a pts) that no other frame refers to are not decoded: after a seek nobody looks
    at them, and the frames from `skip_before` on are the same bit for bit.
    """
    for packet in demux_packets(container, stream):
        if skip_before is not None and stream.codec_context.name in _SKIP_ON_REQUEST:
            early = packet.pts is not None and packet.pts < skip_before
            stream.codec_context.skip_frame = "NONREF" if early else "DEFAULT"
        try:
            yield from packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            continue
    try:
        yield from stream.decode(None)
    except av.error.FFmpegError:
        return


def demux_packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the whole, undamaged packets of `stream`; ends quietly where the file cannot be read further."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        # A packet without data is PyAV's flush mark; the caller flushes.
        if packet.size and not packet.is_corrupt:
            yield packet


def to_rgb(frame: Any, orientation: Orientation, width: int, height: int) -> np.ndarray:
    """Convert a decoded frame of any pixel format to uint8 RGB [height,width,3], as displayed.

    Deeper samples are rounded to 8 bit, grey is repeated, alpha is dropped, the stream's own colour matrix
    and range are used (BT.601 where it names none). A stream that changes size midway is scaled to its first
    size. Non-square pixels are left as stored.
    """
    stored = (height, width) if orientation.transpose else (width, height)
    if (frame.width, frame.height) != stored:
        frame = frame.reformat(width=stored[0], height=stored[1], format="rgb24")
    return orientation.apply(frame.to_ndarray(format="rgb24"))


def frame_orientation(frame: Any) -> Orientation:
    """Read the display matrix of a frame, rounded to right angles.

    The matrix sends a stored (x, y) to the displayed (a·x + c·y, b·x + d·y).
    """
    for side_data in frame.side_data:
        if side_data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(side_data), np.int32)[:5])
            if abs(a) + abs(d) >= abs(b) + abs(c):
                return Orientation(False, a < 0, d < 0)
            return Orientation(True, c < 0, b < 0)
    return Orientation()


@contextmanager
def _reported(path: str | Path) -> Iterator[None]:
    """Turn what FFmpeg raises inside into a `VideoReadError`."""
    try:
        yield
    except av.error.FFmpegError as error:
        name = without_password(path)
        raise VideoReadError(f"cannot read video {name}: {error.strerror or error}; replace or remove it") from error


def _check_file(path: Path) -> None:
    if not path.exists():
        raise VideoReadError(f"no such file: {path}")
    if path.is_dir():
        raise VideoReadError(f"{path} is a folder, not a video file")
    if path.is_file() and path.stat().st_size == 0:
        raise VideoReadError(f"cannot read video {path}: it is empty (0 bytes); replace or remove it")
