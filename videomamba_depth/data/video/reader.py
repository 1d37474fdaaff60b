"""Read videos frame by frame, exactly: files (PyAV), image folders, globs and single images.

    probe_video   size, exact frame count and timestamps, without decoding more than one frame of a sound file
    read_frames   any frames by index, by key-frame seek and decoding forward, verified by timestamp
    iter_frames   every frame in order at constant memory

Damage policy: what can be decoded is used. `VideoInfo.damage` says what is wrong, `num_frames` counts the usable
frames, and their timestamps stay their own. A file with no usable frame raises `VideoReadError`.
The write side is `video_writer`.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from videomamba_depth.data.video.clock import Clock
from videomamba_depth.data.video.color import to_rgb
from videomamba_depth.data.video.decode import (
    Losses,
    container_names,
    decode_frames,
    demux_packets,
    frame_orientation,
    is_url,
    open_video,
    stated_frames,
    without_password,
)
from videomamba_depth.data.video.deinterlace import deinterlaced
from videomamba_depth.data.video.image_sequence import is_image_sequence, iter_images, probe_images, read_image
from videomamba_depth.data.video.info import Orientation, VideoInfo, VideoReadError, average_fps
from videomamba_depth.data.video.structure import Structure, read_structure
from videomamba_depth.data.video.writer import VideoWriter

__all__ = [
    "Frame",
    "VideoInfo",
    "VideoReadError",
    "VideoWriter",
    "count_frames",
    "iter_frames",
    "iter_stream",
    "probe_video",
    "read_frames",
    "read_image",
]

log = logging.getLogger(__name__)

# One packet is one displayed frame with its own timestamp in these; everything else is enumerated by decoding.
_EXACT_CONTAINERS = {"mov", "mp4", "matroska", "webm"}
_EXACT_CODECS = {"h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg", "prores", "dnxhd", "ffv1"}
# No timestamps of their own: frames are counted at the nominal rate, in reading, probing and seeking alike.
_COUNTED_CONTAINERS = {"h264", "hevc", "m4v", "mpegvideo", "mjpeg", "obu", "ivf"}
# Their times follow from byte positions after a seek, which are wrong where the file is.
_SOUGHT_BY_POSITION = {"mxf", "mxf_opatom", "gxf"}
_LEAST_PIXEL_ASPECT, _LARGEST_PIXEL_ASPECT = Fraction(1, 4), Fraction(4)  # beyond, the header is wrong
# Key frames tried backwards from the wanted frame before decoding from the start of the file.
_SEEK_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded frame: its index, its exact time (`pts * time_base` seconds), and uint8 RGB [H,W,3].

    Live sources also tell how many frames they dropped just before it, because the reader was slower, and for how many
    seconds they were away before it, if they lost their connection.
    """

    index: int
    pts: int
    time_base: Fraction
    rgb: np.ndarray
    dropped: int = 0
    outage_s: float = 0.0

    @property
    def timestamp_s(self) -> float:
        """Presentation time in seconds on the file's own clock."""
        return self.pts * self.time_base.numerator / self.time_base.denominator


def probe_video(path: str | Path, *, fps: float | None = None) -> VideoInfo:
    """Describe a video file, image folder, glob or image.

    A sound mp4/mov/mkv/webm is demuxed (exact count and timestamps) and one frame is decoded (size, rotation);
    damaged files and other formats are decoded once from end to end.

    Args:
        path: what to probe.
        fps: rate given to image sequences, default 30; ignored for video files, which have timestamps.

    Raises:
        VideoReadError: nothing usable there; one line that says why.
    """
    if not is_url(path) and is_image_sequence(path):
        return probe_images(path, fps)
    with open_video(path) as (container, stream):
        structure = _structure(path)
        stated = stated_frames(container, stream)
        if stated is not None and stated < stream.frames:  # fragments are more
            log.info("%s: its edit list hides %d of %d frames", path, stream.frames - stated, stream.frames)
        if structure.pauses:
            _warn_of_pauses(path)
        table = None if structure.damage else _packet_table(container, stream, structure)
    if table is None:
        return _probe_by_decoding(path, structure)
    pts, keyframes = table
    with open_video(path) as (container, stream):
        first = next(decode_frames(container, stream), None)
        if first is None or first.pts != pts[0]:
            return _probe_by_decoding(path, structure)
        return _make_info(path, stream, first, pts, keyframes, Fraction(stream.time_base))


def count_frames(path: str | Path) -> int | None:
    """Return the number of frames that reading gives, quickly, or None where only decoding would tell.

    For scanning large folders: opens the file and reads no frame. It is known for the images
    of a folder, and for MP4 and MOV files with an index; damage is found by reading alone.

    Raises:
        VideoReadError: not a readable video.
    """
    if is_image_sequence(path):
        return probe_images(path).num_frames
    with open_video(path) as (container, stream):
        stated, structure = stated_frames(container, stream), _structure(path)
        return None if structure.damage or structure.second else stated


def read_frames(
    path: str | Path,
    indices: Sequence[int],
    *,
    info: VideoInfo | None = None,
    convert: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Read frames by index, in any order, repeats allowed.

    Seeks to the last key frame at or before each wanted frame, decodes forward, and takes a frame only when its
    timestamp is the one that the probe found for that index; pictures that follow a key frame in the file but
    precede it in time (open GOP) are never taken from after a seek.

    Args:
        path: file, folder, glob or image.
        indices: K frame indices, each in [0, num_frames).
        info: the result of `probe_video(path)` when at hand; saves probing again.
        convert: applied to each frame as it is decoded, to keep large frames from piling up; from uint8 [H,W,3] to
            one shape for all frames.

    Returns:
        uint8 RGB [K,H,W,3] as displayed (rotation applied), or what `convert` made of it.

    Raises:
        IndexError: an index outside the video.
        VideoReadError: a frame cannot be decoded.
    """
    info = probe_video(path) if info is None else info
    for index in indices:
        if not 0 <= index < info.num_frames:
            raise IndexError(f"frame index {index} is outside {path} with {info.num_frames} frames")
    convert = convert or _unchanged
    wanted = sorted(set(indices))
    frames: dict[int, np.ndarray] = {}
    if info.image_paths or info.animated:
        frames = {index: convert(rgb) for index, rgb in zip(wanted, iter_images(info, wanted), strict=True)}
        return np.stack([frames[index] for index in indices])
    with open_video(path) as (container, stream):
        for run in _runs(wanted, info):
            targets = set(run)
            for index, frame in _frames_from(container, stream, info, run[0]):
                if index in targets:
                    frames[index] = convert(to_rgb(frame, info.orientation, info.width, info.height))
                if index >= run[-1]:
                    break
    missing = [index for index in wanted if index not in frames]
    if missing:
        raise _frame_error(info, missing[0])
    return np.stack([frames[index] for index in indices])


def iter_frames(
    path: str | Path,
    *,
    start: int = 0,
    fps: float | None = None,
    threads: int = 0,
    info: VideoInfo | None = None,
    losses: Losses | None = None,
) -> Iterator[Frame]:
    """Decode every frame in order at constant memory, from a file, URL, folder or glob.

    Args:
        path: what to read.
        start: index of the first frame; a value above 0 seeks, and probes the file unless `info` is given.
        fps: rate of an image sequence, default 30.
        threads: decoder threads; 0 lets FFmpeg choose.
        info: the result of `probe_video(path)` when at hand; indices are then those of the probe even after damage.
        losses: filled as it goes; without it and `info`, what is lost is logged as a warning after the last frame.

    Yields:
        `Frame(index, pts, time_base, rgb)`; `pts` strictly increases, see `Clock`. No frame is left out.

    Raises:
        VideoReadError: nothing can be decoded.
    """
    if not is_url(path) and is_image_sequence(path):
        info = probe_images(path, fps) if info is None else info
        indices = range(start, info.num_frames)
        for index, rgb in zip(indices, iter_images(info, indices), strict=True):
            yield Frame(index, int(info.pts[index]), info.time_base, rgb)
        return
    if start > 0 or info is not None:
        info = probe_video(path) if info is None else info
        with open_video(path, threads) as (container, stream):
            for index, frame in _frames_from(container, stream, info, start, losses):
                rgb = to_rgb(frame, info.orientation, info.width, info.height)
                yield Frame(index, int(info.pts[index]), info.time_base, rgb)
        return
    yield from iter_stream(path, threads, losses=losses)


def iter_stream(
    path: str | Path,
    threads: int = 0,
    *,
    options: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    max_pixels: int | None = None,
    losses: Losses | None = None,
) -> Iterator[Frame]:
    """Decode a file or URL from its start to wherever it ends; nothing is known beforehand. Else as `iter_frames`.

    Args:
        options, timeout_s, max_pixels: see `open_video`.
    """
    opened = open_video(path, threads, options=options, timeout_s=timeout_s, max_pixels=max_pixels)
    found = Losses() if losses is None else losses
    with opened as (container, stream):
        structure = _structure(path)
        found.expect(container, stream, structure)
        if is_url(path):
            found.expect_end(container, stream)
        frames = decode_frames(container, stream, losses=found)
        first = next(frames, None)
        if first is None:
            raise _nothing_decodable(path, found, structure)
        _warn_of_beginning(path, found)
        if structure.pauses:
            _warn_of_pauses(path)
        orientation, width, height = _geometry(first, stream)
        times = _Times(container, stream, first)
        for index, frame in deinterlaced(enumerate(itertools.chain([first], frames))):
            yield Frame(index, times.place(frame), times.time_base, to_rgb(frame, orientation, width, height))
    damage = found.described()
    if damage and losses is None:
        _warn_of_damage(path, damage)
    elif not damage and found.may_be_cut_off:
        log.warning("%s: neither the server nor the file says where it ends", without_password(path))


class _Times:
    """Gives decoded frames their times, in the order of display."""

    def __init__(self, container: Any, stream: Any, first: Any) -> None:
        rate = _nominal_rate(stream)
        self.counting = first.pts is None or bool(container_names(container) & _COUNTED_CONTAINERS)
        self.time_base = 1 / rate if self.counting else Fraction(stream.time_base)
        self._clock = Clock(rate, self.time_base)

    def place(self, frame: Any) -> int:
        return self._clock.place(None if self.counting else frame.pts)


def _packet_table(container: Any, stream: Any, structure: Structure) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (pts ascending, indices of key frames) from the packets alone, or None where they do not suffice."""
    if not (container_names(container) & _EXACT_CONTAINERS and stream.codec_context.name in _EXACT_CODECS):
        return None
    pts, key_pts, losses, latest = [], [], Losses(), -(1 << 63)
    losses.expect(container, stream, structure)
    for packet in demux_packets(container, stream, losses):
        if packet.pts is None:
            return None
        if packet.is_discard:  # hidden by an edit list
            continue
        if packet.is_keyframe and packet.pts < latest:
            return None  # the clock went back: times do not tell the order
        latest = max(latest, packet.pts)
        pts.append(packet.pts)
        if packet.is_keyframe:
            key_pts.append(packet.pts)
    table = np.unique(np.asarray(pts, np.int64))
    losses.num_frames = len(pts)
    if len(table) != len(pts) or not key_pts or losses.described():
        return None
    return table, np.searchsorted(table, np.sort(key_pts))


def _probe_by_decoding(path: str | Path, structure: Structure) -> VideoInfo:
    """Enumerate the frames by decoding the whole file."""
    losses = Losses()
    with open_video(path) as (container, stream):
        losses.expect(container, stream, structure)
        frames = decode_frames(container, stream, losses=losses)
        first = next(frames, None)
        if first is None:
            raise _nothing_decodable(path, losses, structure)
        times = _Times(container, stream, first)
        pts: list[int] = []
        key_indices = []
        has_pts = not times.counting and container.format.name != "avi"
        for frame in itertools.chain([first], frames):
            if frame.key_frame:
                key_indices.append(len(pts))
            pts.append(times.place(frame))
            has_pts = has_pts and pts[-1] == frame.pts
        _warn_of_beginning(path, losses)
        if damage := losses.described():
            _warn_of_damage(path, damage)
            if container_names(container) & _SOUGHT_BY_POSITION:
                has_pts = False
        keyframes = np.asarray(key_indices if has_pts and key_indices else [0], np.int64)
        table = np.asarray(pts, np.int64)
        return _make_info(path, stream, first, table, keyframes, times.time_base, has_pts, damage)


def _make_info(
    path: str | Path,
    stream: Any,
    first: Any,
    pts: np.ndarray,
    keyframes: np.ndarray,
    time_base: Fraction,
    has_pts: bool = True,
    damage: str = "",
) -> VideoInfo:
    orientation, width, height = _geometry(first, stream)
    return VideoInfo(
        path=str(path),
        width=width,
        height=height,
        num_frames=len(pts),
        fps=average_fps(pts, time_base, float(_nominal_rate(stream))),
        time_base=time_base,
        pts=pts,
        rotation=int(first.rotation) % 360,
        orientation=orientation,
        keyframes=keyframes,
        has_pts=has_pts,
        damage=damage,
    )


def _geometry(frame: Any, stream: Any) -> tuple[Orientation, int, int]:
    """Return orientation, width and height of a frame as displayed: turned, and of square pixels."""
    orientation = frame_orientation(frame)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not _LEAST_PIXEL_ASPECT <= aspect <= _LARGEST_PIXEL_ASPECT:
        log.warning("%s states pixels of %s : 1; they are taken as square", stream.container.name, aspect)
        aspect = Fraction(1)
    width, height = max(1, round(frame.width * aspect)), frame.height
    return (orientation, height, width) if orientation.transpose else (orientation, width, height)


def _nominal_rate(stream: Any) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    return Fraction(rate) if rate else Fraction(30)


def _runs(wanted: list[int], info: VideoInfo) -> Iterator[list[int]]:
    """Split ascending indices where seeking to a later key frame beats decoding on."""
    run: list[int] = []
    for index in wanted:
        if run and info.has_pts and _keyframe_before(info, index) > run[-1]:
            yield run
            run = []
        run.append(index)
    if run:
        yield run


def _keyframe_before(info: VideoInfo, index: int) -> int:
    place = int(np.searchsorted(info.keyframes, index, side="right")) - 1
    return int(info.keyframes[place]) if place >= 0 else 0


def _frames_from(
    container: Any, stream: Any, info: VideoInfo, start: int, losses: Losses | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield (index, frame) from exactly frame `start` onwards."""
    # The frame before has a say in how a frame is deinterlaced. Where nothing can be sought it is decoded anyway.
    frames = _decoded_from(container, stream, info, start if info.has_pts else max(0, start - 1), losses)
    first = next(frames, None)
    if first is not None and first[0] == start > 0 and first[1].interlaced_frame:
        frames = _decoded_from(container, stream, info, start - 1, losses)
        first = next(frames, None)
    if first is not None:
        shown = deinterlaced(itertools.chain([first], frames))
        yield from ((index, frame) for index, frame in shown if index >= start)


def _decoded_from(
    container: Any, stream: Any, info: VideoInfo, start: int, losses: Losses | None
) -> Iterator[tuple[int, Any]]:
    """Yield (index, frame) from frame `start` onwards as decoded."""
    if not info.has_pts:
        frames = decode_frames(container, stream, losses=losses)
        yield from itertools.islice(enumerate(frames), start, info.num_frames)
        return
    frames = _seek(container, stream, info, start, losses)
    index = start
    for frame in frames:
        if frame.pts is None:
            continue
        # Frames may be missing after damage: the timestamp, not the count, says which frame this is.
        index += int(np.searchsorted(info.pts[index:], frame.pts))
        if index >= info.num_frames:
            return
        if frame.pts == info.pts[index]:
            yield index, frame
            index += 1


def _seek(container: Any, stream: Any, info: VideoInfo, start: int, losses: Losses | None) -> Iterator[Any]:
    """Return the decoded frames that begin with frame `start`, from the nearest key frame that delivers it."""
    target = int(info.pts[start])
    place = int(np.searchsorted(info.keyframes, start, side="right"))
    candidates = [int(info.pts[k]) for k in info.keyframes[max(place - _SEEK_ATTEMPTS, 0) : place][::-1]]
    losses = Losses() if losses is None else losses
    for seek_pts in [*candidates, None]:
        # Before the first frame, and before zero: some demuxers seek by decoding time, which is earlier.
        begin = int(info.pts[0]) - int(10 / info.time_base) if seek_pts is None else seek_pts
        container.seek(begin, stream=stream, backward=True)
        losses.restart()
        frames = decode_frames(container, stream, skip_before=target, losses=losses)
        for frame in frames:
            if frame.pts is None or frame.pts < target:
                continue
            if frame.pts == target and (seek_pts is None or frame.pts >= seek_pts):
                return itertools.chain([frame], frames)
            break
    raise _frame_error(info, start)


def _frame_error(info: VideoInfo, index: int) -> VideoReadError:
    at_s = float(info.timestamps_s[index])
    return VideoReadError(f"cannot decode frame {index} (at {at_s:.3f} s) of {info.path}: the file is damaged there")


def _unchanged(rgb: np.ndarray) -> np.ndarray:
    return rgb


def _structure(path: str | Path) -> Structure:
    path = Path(os.path.expanduser(path))
    return read_structure(path) if not is_url(path) and path.is_file() else Structure()


def _warn_of_beginning(path: str | Path, losses: Losses) -> None:
    if losses.leading:
        log.warning(
            "%s: %d frames before the first key frame cannot be decoded", without_password(path), losses.leading
        )


def _warn_of_damage(path: str | Path, damage: str) -> None:
    log.warning("%s is damaged or cut off: %s; what is there is used", without_password(path), damage)


def _warn_of_pauses(path: str | Path) -> None:
    log.warning("%s: its edit list pauses in the middle, which is not followed: hidden frames may be shown", path)


def _nothing_decodable(path: str | Path, losses: Losses, structure: Structure) -> VideoReadError:
    name = without_password(path)
    if losses.stated == 0 and structure.is_edited and not structure.damage:
        return VideoReadError(f"cannot read video {name}: its edit list hides all frames; write it anew without one")
    return VideoReadError(f"cannot read video {name}: no frame can be decoded; it is damaged: replace or remove it")
