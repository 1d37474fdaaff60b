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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from videomamba_depth.data.video.color import to_rgb
from videomamba_depth.data.video.decode import Losses, decode_frames, is_url, open_video, without_password
from videomamba_depth.data.video.deinterlace import deinterlaced
from videomamba_depth.data.video.image_sequence import is_image_sequence, iter_images, probe_images, read_image
from videomamba_depth.data.video.info import VideoInfo, VideoReadError
from videomamba_depth.data.video.probe import (
    FrameTimes,
    count_frames,
    displayed_geometry,
    nothing_decodable,
    probe_video,
    structure_of,
    warn_of_beginning,
    warn_of_damage,
    warn_of_pauses,
)
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
    wanted = sorted(set(indices))
    is_images = bool(info.image_paths) or info.animated
    found = zip(wanted, iter_images(info, wanted), strict=True) if is_images else _sought(path, info, wanted)
    frames = {index: rgb if convert is None else convert(rgb) for index, rgb in found}
    missing = [index for index in wanted if index not in frames]
    if missing:
        raise _frame_error(info, missing[0])
    return np.stack([frames[index] for index in indices])


def _sought(path: str | Path, info: VideoInfo, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, RGB) of ascending indices of a file, as far as they can be decoded."""
    # To seek to a later key frame beats decoding on.
    keyframes = np.append(0, info.keyframes)[np.searchsorted(info.keyframes, wanted, side="right")]
    begins = [i for i in range(len(wanted)) if i == 0 or (info.has_pts and keyframes[i] > wanted[i - 1])]
    with open_video(path) as stream:
        for begin, end in itertools.pairwise([*begins, len(wanted)]):
            targets = set(wanted[begin:end])
            for index, frame in _frames_from(stream, info, wanted[begin]):
                if index in targets:
                    yield index, to_rgb(frame, info.orientation, info.width, info.height)
                if index >= wanted[end - 1]:
                    break


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
        with open_video(path, threads) as stream:
            for index, frame in _frames_from(stream, info, start, losses):
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
    with opened as stream:
        structure = structure_of(path)
        found.expect(stream, structure)
        if is_url(path):
            found.expect_end(stream)
        frames = decode_frames(stream, losses=found)
        first = next(frames, None)
        if first is None:
            raise nothing_decodable(path, found, structure)
        warn_of_beginning(path, found)
        if structure.pauses:
            warn_of_pauses(path)
        orientation, width, height = displayed_geometry(first, stream)
        times = FrameTimes(stream, first)
        for index, frame in deinterlaced(enumerate(itertools.chain([first], frames))):
            yield Frame(index, times.place(frame), times.time_base, to_rgb(frame, orientation, width, height))
    damage = found.described()
    if damage and losses is None:
        warn_of_damage(path, damage)
    elif not damage and found.may_be_cut_off:
        log.warning("%s: neither the server nor the file says where it ends", without_password(path))


def _frames_from(stream: Any, info: VideoInfo, start: int, losses: Losses | None = None) -> Iterator[tuple[int, Any]]:
    """Yield (index, frame) from exactly frame `start` onwards."""
    # The frame before has a say in how a frame is deinterlaced. Where nothing can be sought it is decoded anyway.
    frames = _decoded_from(stream, info, start if info.has_pts else max(0, start - 1), losses)
    first = next(frames, None)
    if first is not None and first[0] == start > 0 and first[1].interlaced_frame:
        frames = _decoded_from(stream, info, start - 1, losses)
        first = next(frames, None)
    if first is not None:
        shown = deinterlaced(itertools.chain([first], frames))
        yield from ((index, frame) for index, frame in shown if index >= start)


def _decoded_from(stream: Any, info: VideoInfo, start: int, losses: Losses | None) -> Iterator[tuple[int, Any]]:
    """Yield (index, frame) from frame `start` onwards as decoded."""
    if not info.has_pts:
        frames = decode_frames(stream, losses=losses)
        yield from itertools.islice(enumerate(frames), start, info.num_frames)
        return
    frames = _seek(stream, info, start, losses)
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


def _seek(stream: Any, info: VideoInfo, start: int, losses: Losses | None) -> Iterator[Any]:
    """Return the decoded frames that begin with frame `start`, from the nearest key frame that delivers it."""
    target = int(info.pts[start])
    place = int(np.searchsorted(info.keyframes, start, side="right"))
    candidates = [int(info.pts[k]) for k in info.keyframes[max(place - _SEEK_ATTEMPTS, 0) : place][::-1]]
    losses = Losses() if losses is None else losses
    for seek_pts in [*candidates, None]:
        # Before the first frame, and before zero: some demuxers seek by decoding time, which is earlier.
        begin = int(info.pts[0]) - int(10 / info.time_base) if seek_pts is None else seek_pts
        stream.container.seek(begin, stream=stream, backward=True)
        losses.restart()
        frames = decode_frames(stream, skip_before=target, losses=losses)
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
