"""Describe videos before their frames are read: size, exact frame count and timestamps, key frames, damage."""

from __future__ import annotations

import itertools
import logging
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from videomamba_depth.data.video.clock import Clock
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
from videomamba_depth.data.video.image_sequence import is_image_sequence, probe_images
from videomamba_depth.data.video.info import Orientation, Structure, VideoInfo, VideoReadError
from videomamba_depth.data.video.structure import read_structure

log = logging.getLogger(__name__)

# One packet is one displayed frame with its own timestamp in these; everything else is enumerated by decoding.
_EXACT_CONTAINERS = {"mov", "mp4", "matroska", "webm"}
_EXACT_CODECS = {"h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg", "prores", "dnxhd", "ffv1"}
# No timestamps of their own: frames are counted at the nominal rate, in reading, probing and seeking alike.
_COUNTED_CONTAINERS = {"h264", "hevc", "m4v", "mpegvideo", "mjpeg", "obu", "ivf"}
# Their times follow from byte positions after a seek, which are wrong where the file is.
_SOUGHT_BY_POSITION = {"mxf", "mxf_opatom", "gxf"}
_LEAST_PIXEL_ASPECT, _LARGEST_PIXEL_ASPECT = Fraction(1, 4), Fraction(4)  # beyond, the header is wrong


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
    with open_video(path) as stream:
        structure = structure_of(path)
        stated = stated_frames(stream)
        if stated is not None and stated < stream.frames:  # fragments are more
            log.info("%s: its edit list hides %d of %d frames", path, stream.frames - stated, stream.frames)
        if structure.pauses:
            warn_of_pauses(path)
        table = None if structure.damage else _packet_table(stream, structure)
    if table is None:
        return _probe_by_decoding(path, structure)
    pts, keyframes = table
    with open_video(path) as stream:
        first = next(decode_frames(stream), None)
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
    with open_video(path) as stream:
        stated, structure = stated_frames(stream), structure_of(path)
        return None if structure.damage or structure.second else stated


def frame_size(path: str | Path) -> tuple[int, int]:
    """Return the (height, width) in px of a video file's frames as displayed; its first is decoded.

    Raises:
        VideoReadError: not a readable video.
    """
    with open_video(path) as stream:
        first = next(decode_frames(stream), None)
        if first is None:
            raise nothing_decodable(path, Losses(), structure_of(path))
        _, width, height = displayed_geometry(first, stream)
        return height, width


class FrameTimes:
    """Gives decoded frames their times, in the order of display."""

    def __init__(self, stream: Any, first: Any) -> None:
        rate = _nominal_rate(stream)
        self.counting = first.pts is None or bool(container_names(stream) & _COUNTED_CONTAINERS)
        self.time_base = 1 / rate if self.counting else Fraction(stream.time_base)
        self._clock = Clock(rate, self.time_base)

    def place(self, frame: Any) -> int:
        return self._clock.place(None if self.counting else frame.pts)


def _packet_table(stream: Any, structure: Structure) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (pts ascending, indices of key frames) from the packets alone, or None where they do not suffice."""
    if not (container_names(stream) & _EXACT_CONTAINERS and stream.codec_context.name in _EXACT_CODECS):
        return None
    pts, key_pts, losses, latest = [], [], Losses(), -(1 << 63)
    losses.expect(stream, structure)
    for packet in demux_packets(stream, losses):
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
    with open_video(path) as stream:
        losses.expect(stream, structure)
        frames = decode_frames(stream, losses=losses)
        first = next(frames, None)
        if first is None:
            raise nothing_decodable(path, losses, structure)
        times = FrameTimes(stream, first)
        pts: list[int] = []
        key_indices = []
        has_pts = not times.counting and stream.container.format.name != "avi"
        for frame in itertools.chain([first], frames):
            if frame.key_frame:
                key_indices.append(len(pts))
            pts.append(times.place(frame))
            has_pts = has_pts and pts[-1] == frame.pts
        warn_of_beginning(path, losses)
        if damage := losses.described():
            warn_of_damage(path, damage)
            if container_names(stream) & _SOUGHT_BY_POSITION:
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
    orientation, width, height = displayed_geometry(first, stream)
    nominal = float(_nominal_rate(stream))
    return VideoInfo(
        path=str(path),
        width=width,
        height=height,
        num_frames=len(pts),
        fps=float((len(pts) - 1) / (int(pts[-1] - pts[0]) * time_base)) if len(pts) > 1 else nominal,
        time_base=time_base,
        pts=pts,
        rotation=int(first.rotation) % 360,
        orientation=orientation,
        keyframes=keyframes,
        has_pts=has_pts,
        damage=damage,
    )


def displayed_geometry(frame: Any, stream: Any) -> tuple[Orientation, int, int]:
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


def structure_of(path: str | Path) -> Structure:
    path = Path(os.path.expanduser(path))
    return read_structure(path) if not is_url(path) and path.is_file() else Structure()


def warn_of_beginning(path: str | Path, losses: Losses) -> None:
    if losses.leading:
        log.warning(
            "%s: %d frames before the first key frame cannot be decoded", without_password(path), losses.leading
        )


def warn_of_damage(path: str | Path, damage: str) -> None:
    log.warning("%s is damaged or cut off: %s; what is there is used", without_password(path), damage)


def warn_of_pauses(path: str | Path) -> None:
    log.warning("%s: its edit list pauses in the middle, which is not followed: hidden frames may be shown", path)


def nothing_decodable(path: str | Path, losses: Losses, structure: Structure) -> VideoReadError:
    name = without_password(path)
    if losses.stated == 0 and structure.is_edited and not structure.damage:
        return VideoReadError(f"cannot read video {name}: its edit list hides all frames; write it anew without one")
    return VideoReadError(f"cannot read video {name}: no frame can be decoded; it is damaged: replace or remove it")
