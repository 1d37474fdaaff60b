"""Depth in picture files, one per frame: 16-bit PNG and EXR; and in 8-bit videos."""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from videomamba_depth.data.recorded_depth.storage import About, Storage
from videomamba_depth.data.video.info import VideoInfo
from videomamba_depth.data.video.probe import probe_video
from videomamba_depth.data.video.reader import VideoReadError, iter_frames, read_frames
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

_TILED, _SEVERAL_PARTS = 0x200, 0x1000  # flags of an EXR
_DWA = (8, 9)  # compressions of an EXR
_EXR_ATTRIBUTE = re.compile(rb"([^\0]{1,255})\0[^\0]{1,255}\0(.{4})", re.DOTALL)  # name, type, length of its value
_GRAY_SPREAD = 12  # between the channels of a gray video, after its codec


@dataclass(frozen=True)
class PictureFiles(Storage):
    """One PNG or EXR for each frame, `pictures`."""

    pictures: tuple[Path, ...] = ()

    def read_many(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames [h,w] of ascending indices, numbers as they are stored."""
        for i in indices:
            values = read_picture(self.pictures[i])
            if values.shape != self.size:
                raise UserError(
                    f"the frames of {self.path} must have one size; {self.pictures[i].name} has {values.shape}, the"
                    f" first {self.size}"
                )
            yield values

    def files(self) -> Sequence[Path]:
        """Return all files that the depth is read from."""
        return self.pictures


def open_pictures(path: Path, files: Sequence[Path], names: Sequence[str], numbered: bool = False) -> PictureFiles:
    """Open PNG or EXR files, in this order, as one video.

    Args:
        names: of the frames. numbered: they are the numbers of the source's frames, as in our own streams.

    Raises:
        UserError: the first cannot be read, or is colored.
    """
    first = read_picture(files[0])
    if first.dtype == np.uint8:
        log.warning("%s has depth of 8 bits: 256 values alone; record 16 bits or floats where you can", path)
    are_numbers = numbered and all(name.isdigit() for name in names)
    about = About(
        frame_numbers=np.array([int(name) for name in names]) if are_numbers else None,
        names=None if are_numbers else tuple(names),
    )
    return PictureFiles(path, len(files), first.shape, first.dtype.kind in "iu", about, tuple(files))


def read_picture(path: Path) -> np.ndarray:
    """Return the numbers [h,w] of a gray PNG (uint8, uint16) or of an EXR (float16, float32).

    Raises:
        UserError: it is damaged, or has several channels that differ.
    """
    try:
        data = path.read_bytes()
        values = _decode_exr(data) if path.suffix.lower() == ".exr" else _decode_png(data)
    except (OSError, ValueError, cv2.error, av.FFmpegError) as error:
        raise UserError(f"cannot read depth {path}: {error}; it is damaged or of another form") from error
    if values.ndim == 3:
        if not (values == values[..., :1]).all():
            raise UserError(f"{path} is a colored picture; give the numbers themselves: 16-bit gray, EXR, npz or npy")
        values = values[..., 0]
    return values


def _decode_png(data: bytes) -> np.ndarray:
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if values is None:
        raise ValueError("it is empty or no image")
    return values[..., :3] if values.ndim == 3 and values.shape[2] == 4 else values


def _decode_exr(data: bytes) -> np.ndarray:
    """Return [h,w], or [h,w,3] of an EXR with R, G, B."""
    try:
        _check_exr(data)
    except (IndexError, struct.error) as error:
        raise ValueError("it is cut off, or no EXR") from error
    decoder: Any = av.CodecContext.create("exr", "r")
    frames = [*decoder.decode(av.Packet(_with_channel_y(data))), *decoder.decode(None)]
    if not frames:
        raise ValueError("it holds no picture")
    frame = frames[0]
    name = frame.format.name
    dtype = np.dtype("<f2") if "f16" in name else np.dtype("<f4")
    if "f16" not in name and "f32" not in name:
        raise ValueError(f"its numbers are {name}, not floats")
    planes = [
        np.frombuffer(plane, dtype).reshape(frame.height, -1)[:, : frame.width] for plane in list(frame.planes)[:3]
    ]
    return planes[0] if len(planes) == 1 else np.stack(planes, axis=-1)


def _check_exr(data: bytes) -> None:
    """Refuse what FFmpeg decodes to zeros without a word: DWA, and chunks that are missing or cut off.

    After 8 bytes come attributes: name, 0, type, 0, length, value; then a 0, a table of where each chunk begins, and
    the chunks: a line or the four numbers of a tile, their length, and their bytes ("OpenEXR file layout").

    Raises:
        ValueError: as above. IndexError, struct.error: it ends before its chunks.
    """
    (flags,) = struct.unpack_from("<I", data, 4)
    place = 8
    while data[place]:
        found = _EXR_ATTRIBUTE.match(data, place)
        if found is None:
            raise IndexError
        place = found.end()
        if found[1] == b"compression" and data[place] in _DWA:
            raise ValueError("its compression is DWA; write it with another, such as ZIP")
        place += int.from_bytes(found[2], "little")
    if flags & _SEVERAL_PARTS:
        return
    head = 16 if flags & _TILED else 4
    start = place = place + 1
    first = len(data)
    while place < first:
        (chunk,) = struct.unpack_from("<Q", data, place)
        if chunk <= start:  # 0 where its writer was stopped
            raise ValueError("its writer was stopped before the end")
        if chunk > len(data):
            raise IndexError
        (length,) = struct.unpack_from("<I", data, chunk + head)
        if chunk + head + 4 + length > len(data):
            raise IndexError
        place, first = place + 8, min(first, chunk)


def _with_channel_y(data: bytes) -> bytes:
    """Return an EXR whose only channel is called Y; programs call depth Z, V or R, FFmpeg knows Y alone.

    A list of channels is, after its length: name, 0, 16 bytes for each, and a 0.
    """
    mark = data.find(b"channels\0chlist\0", 0, 4096)
    if mark < 0:
        raise ValueError("it is no EXR")
    start = mark + len(b"channels\0chlist\0") + 4
    names, place = [], start
    while place < len(data) and data[place]:
        end = data.index(b"\0", place)
        names.append(data[place:end])
        place = end + 17
    if len(names) == 1 and len(names[0]) == 1:
        return data[:start] + b"Y" + data[start + 1 :]
    if not {b"R", b"G", b"B"} <= set(names):
        listed = ", ".join(name.decode("latin-1") for name in names)
        raise ValueError(f"it has the channels {listed}; write one channel called Y or Z")
    return data


@dataclass(frozen=True)
class VideoFile(Storage):
    """An 8-bit gray video."""

    info: VideoInfo = field(kw_only=True)

    def read_many(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames [h,w] of ascending indices, uint8."""
        try:
            if len(indices) < 2 or indices[-1] - indices[0] + 1 > len(indices):
                yield from read_frames(self.path, indices, info=self.info, convert=self._gray)
                return
            for frame in iter_frames(self.path, start=indices[0], info=self.info):
                if frame.index > indices[-1]:
                    return
                yield self._gray(frame.rgb)
        except VideoReadError as error:
            raise UserError(f"cannot read depth {self.path}: {error}") from error

    def files(self) -> Sequence[Path]:
        """Return all files that the depth is read from."""
        return [self.path]

    def _gray(self, rgb: np.ndarray) -> np.ndarray:
        if int(np.median(np.ptp(rgb[::4, ::4].astype(np.int16), axis=-1))) > _GRAY_SPREAD:
            raise UserError(f"{self.path} is a colored video; give gray depth, or better npz, npy, EXR or 16-bit PNG")
        return rgb[..., 1]


def open_video_depth(path: Path) -> VideoFile:
    """Open a gray video as depth, with a warning.

    Raises:
        UserError: it cannot be read.
    """
    try:
        info = probe_video(path)
    except VideoReadError as error:
        raise UserError(f"cannot read depth {path}: {error}") from error
    log.warning("%s has depth of 8 bits, compressed with loss: fine for a first look, not for numbers", path)
    about = About(timestamps=np.asarray(info.pts, np.float64) * float(info.time_base), made_up_times=True)
    return VideoFile(path, info.num_frames, (info.height, info.width), True, about, info=info)
