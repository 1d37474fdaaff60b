"""Thin layer over PyAV: open, decode past damage, count what is lost. All PyAV reading goes through here."""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from videomamba_depth.data.video.info import CUT_OFF, Orientation, Structure, VideoReadError

log = logging.getLogger(__name__)

_REMEDY = "it is damaged, cut off or not a video: replace or remove it"
# Decoders that honor a change of `skip_frame` from packet to packet; others (dav1d) lose frames over it.
_SKIP_ON_REQUEST = {"h264", "hevc", "mpeg4", "mpeg2video"}
# Here a packet that is marked corrupt may be whole: it stands where a recording was joined, or in a block that is cut
# further on. Elsewhere the mark means that the file ends within the packet.
_MARKED_LOOSELY = {"mpegts", "mpeg"}
_READ_ATTEMPTS = 16  # that fail one after the other, after damage
# One packet is one displayed frame here, unless it holds a field, or a hidden frame of VP8. (MPEG-4 has empty ones.)
_ONE_TO_ONE = {"h264", "hevc", "av1", "vp8", "vp9", "mpeg2video", "mjpeg", "prores", "dnxhd", "ffv1", "gif"}
_STATE_THEIR_END = {"matroska", "webm", "asf"}
_COVERS = Disposition.attached_pic | Disposition.timed_thumbnails


@dataclass
class Losses:
    """What was read of a video, and what could not be.

    Attributes:
        num_frames: that were decoded.
        num_packets: that were read and are to be shown.
        expected_packets: that the container's structure states; None where it does not.
        unknown_length: of a URL whose server does not say how long the file is.
        stated_end_s: where the last packet of any stream ends by the header of such a file, two frames less; None
            where it does not say so.
        end_s: where it ended.
        second: what follows and is not read, see `Structure`; "" for nothing.
        stated: that there should be; None where nobody says.
        leading: before the first frame, in pieces that refer to what is not there: a recording that begins between two
            key frames.
        undecodable: packets after it that cannot be decoded, or gave no frame.
        damaged: frames with parts that the decoder made up.
        structure: what is wrong with the container's structure, see `find_damage`; "" for nothing.
        broken: why reading ended before the end; "" if it did not.
    """

    num_frames: int = 0
    stated: int | None = None
    leading: int = 0
    undecodable: int = 0
    damaged: int = 0
    structure: str = ""
    broken: str = ""
    num_packets: int = 0
    expected_packets: int | None = None
    second: str = ""
    end_s: float = 0.0
    stated_end_s: float | None = None
    unknown_length: bool = False

    def expect(self, stream: Any, structure: Structure) -> None:
        """Note what there should be in `stream`, by the index and by the structure of the file."""
        films = [film for film in stream.container.streams.video if not film.disposition & Disposition.attached_pic]
        is_matroska = "matroska" in container_names(stream)
        track = films.index(stream) if is_matroska and stream in films else stream.id
        self.stated, self.structure = stated_frames(stream), structure.damage
        self.expected_packets, self.second = structure.packets.get(track), structure.second
        if self.expected_packets and not is_matroska:  # FFmpeg's edit list has no say in fragments
            self.expected_packets -= sum(entry.is_discard for entry in islice(stream.index_entries, stream.frames))

    def expect_end(self, stream: Any) -> None:
        """Note where a video at a URL ends by its header, where the server does not say how long it is."""
        self.unknown_length = stream.container.size <= 0
        if self.unknown_length and stream.container.duration and container_names(stream) & _STATE_THEIR_END:
            slack_s = 2 / (stream.average_rate or 10) + 0.05  # of a last frame of unknown duration, and of rounding
            self.stated_end_s = float(stream.container.duration / av.time_base - slack_s)

    @property
    def may_be_cut_off(self) -> bool:
        """Tell whether nobody states where a video at a URL ends."""
        stated = self.stated_end_s is not None or self.num_frames == self.stated
        return self.unknown_length and not stated

    def described(self) -> str:
        """Return what is wrong, "" for nothing."""
        parts = []
        if self.stated is not None and self.num_frames < self.stated:
            parts.append(f"only {self.num_frames} of {self.stated} frames can be decoded")
        if self.num_packets < (self.expected_packets or 0):
            parts.append(f"only {self.num_packets} of the {self.expected_packets} frames in its structure can be read")
        if self.second:
            parts.append(f"{self.second} follows, which is not read: a second recording was joined on")
        if self.stated_end_s is not None and self.end_s < self.stated_end_s:
            parts.append(f"it ends at {self.end_s:.2f} s; its header states more than {self.stated_end_s:.2f} s")
        if self.broken and (self.may_be_cut_off or not self.unknown_length):
            parts.append(f"reading broke off after frame {self.num_frames} ({self.broken})")
        elif self.structure:
            place = f" after frame {self.num_frames}" if self.structure == CUT_OFF else ""
            parts.append(f"{self.structure}{place}")
        if self.undecodable:
            parts.append(f"{self.undecodable} packets cannot be decoded")
        if self.damaged:
            parts.append(f"{self.damaged} frames are partly made up by the decoder")
        return ", ".join(parts)

    def restart(self) -> None:
        """Forget what was counted, for another attempt."""
        vars(self).update(vars(Losses(stated=self.stated)))


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
) -> Iterator[Any]:
    """Open a file's best video stream; yields it, with its `container`, and closes both.

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
        path = Path(os.path.expanduser(path))
        _check_file(path)
    # "12:30.mp4" would be one of FFmpeg's protocols.
    address = str(path) if is_url(path) else str(Path(path).absolute())
    try:
        container = av.open(address, options=dict(options or {}), timeout=timeout_s)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = "is the address right and the server on?" if is_url(path) else _REMEDY
        raise VideoReadError(f"cannot open video {without_password(path)}: {reason}; {remedy}") from error
    with container, _reported(path):
        stream = _video_stream(container, without_password(path))
        stream.codec_context.thread_count = threads
        if max_pixels is not None:
            stream.codec_context.options = {"max_pixels": str(max_pixels)}
        if threads != 1:
            stream.thread_type = "AUTO"
        yield stream


def decode_frames(stream: Any, skip_before: int | None = None, losses: Losses | None = None) -> Iterator[Any]:
    """Decode from the current position to the end; what cannot be decoded is counted in `losses`, never raised.

    A packet cut off by the end of the file is not shown to the decoder, so that no concealed frame comes out.
    Frames earlier than `skip_before` (a pts) that no other frame refers to are not decoded: after a seek nobody looks
    at them, and the frames from `skip_before` on are the same bit for bit.
    """
    losses = Losses() if losses is None else losses
    decoding_times: deque[int | None] | None = deque() if stream.container.format.name == "avi" else None
    aspects: list[Any] = []  # of pixels, that there were
    early: list[int] = []  # times of packets up to the first frame
    one_to_one, num_given = stream.codec_context.name in _ONE_TO_ONE, 0
    for packet in demux_packets(stream, losses):
        if skip_before is not None and stream.codec_context.name in _SKIP_ON_REQUEST:
            skipped = packet.pts is not None and packet.pts < skip_before
            stream.codec_context.skip_frame = "NONREF" if skipped else "DEFAULT"
            one_to_one = one_to_one and not skipped
        if losses.num_frames == 0 and packet.pts is not None and not packet.is_discard:
            early.append(packet.pts)
        try:
            frames = packet.decode()
        except av.error.EOFError:
            break
        except av.error.FFmpegError:
            losses.undecodable += losses.num_frames > 0
            continue
        num_given += not (packet.is_discard or _is_hidden(packet, stream))
        if decoding_times is not None:
            decoding_times.append(packet.dts)
        for frame in frames:
            aspect = stream.codec_context.sample_aspect_ratio
            aspects = aspects or [aspect]
            if aspect not in aspects:
                aspects.append(aspect)
                log.warning(
                    "%s: its pixels change from %s : 1 to %s : 1 midway, which is not followed",
                    without_password(stream.container.name),
                    *(shape or 1 for shape in (aspects[0], aspect)),
                )
            one_to_one = one_to_one and not frame.interlaced_frame
            _check(frame, losses, decoding_times, early)
            yield frame
    try:
        frames = stream.decode(None)
    except av.error.FFmpegError:
        losses.undecodable += 1
        return
    for frame in frames:
        _check(frame, losses, decoding_times, early)
        yield frame
    if one_to_one:
        losses.undecodable += max(0, num_given - losses.leading - losses.num_frames)


def _is_hidden(packet: Any, stream: Any) -> bool:
    """Tell whether a VP8 frame is only there to be referred to (RFC 6386, 9.1)."""
    return stream.codec_context.name == "vp8" and not bytes(packet)[0] & 0x10


def _check(frame: Any, losses: Losses, decoding_times: deque[int | None] | None, early: list[int]) -> None:
    """Count a frame; give one of an AVI file its time: the decoding times, which are in order, are all it has.

    Null frames in between (nothing has changed) take up time there and hold no data.
    """
    if decoding_times is not None:
        frame.pts = decoding_times.popleft() if decoding_times else None
    if losses.num_frames == 0 and frame.pts is not None:
        losses.leading = sum(pts < frame.pts for pts in early)
    losses.num_frames += 1
    losses.damaged += frame.is_corrupt


def demux_packets(stream: Any, losses: Losses | None = None) -> Iterator[Any]:
    """Yield the whole packets of `stream`; ends where the file cannot be read further, `losses` says why."""
    losses = Losses() if losses is None else losses
    loosely = bool(container_names(stream) & _MARKED_LOOSELY)
    wanted = [] if losses.stated_end_s is not None else [stream]  # the last packet may be one of sound
    packets, failures = stream.container.demux(*wanted), 0
    while failures < _READ_ATTEMPTS:
        try:
            packet = next(packets)
        except (StopIteration, av.error.EOFError):
            return
        except IndexError:  # PyAV, of a packet of a stream that began after the header: none of ours
            packets = stream.container.demux(*wanted)
            continue
        except av.error.InvalidDataError as error:
            losses.broken, failures = error.strerror, failures + 1
            packets = stream.container.demux(*wanted)
            continue
        except av.error.FFmpegError as error:
            losses.broken = error.strerror or str(error)
            return
        if failures:  # after the damage it goes on
            losses.undecodable, losses.broken, failures = losses.undecodable + failures, "", 0
        if losses.stated_end_s is not None and packet.pts is not None:
            losses.end_s = max(losses.end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream:
                continue
        losses.num_packets += packet.size > 0 and not packet.is_discard
        if packet.is_corrupt and stream.container.format.name != "mpegts":
            losses.structure = CUT_OFF
        # A packet without data is PyAV's flush mark, or a null frame.
        if packet.size and (loosely or not packet.is_corrupt):
            yield packet


def stated_frames(stream: Any) -> int | None:
    """Return how many frames an MP4 or MOV file's index lists and its edit list shows; None where there is no index.

    The number in the header also counts what an edit list hides.
    """
    if "mp4" not in container_names(stream) or not stream.frames:
        return None
    return sum(1 for entry in stream.index_entries if entry.size and not entry.is_discard)


def container_names(stream: Any) -> set[str]:
    """Return FFmpeg's names of the format of a stream's container."""
    return set(stream.container.format.name.split(","))


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


def _video_stream(container: Any, name: str) -> Any:
    """Return the best video stream; a cover picture is none.

    Raises:
        VideoReadError: there is none.
    """
    moving = [stream for stream in container.streams.video if not stream.disposition & _COVERS]
    best = container.streams.best("video")
    if best not in moving:
        best = max(moving, key=lambda stream: stream.width * stream.height, default=None)
    if best is None and container.streams.video:
        raise VideoReadError(f"cannot read video {name}: it holds no video, only a cover picture beside its sound")
    if best is None or best.codec_context is None:
        raise VideoReadError(f"cannot read video {name}: it has no video stream that can be decoded")
    return best


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
