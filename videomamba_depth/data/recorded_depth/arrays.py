"""Depth in npy and npz files, of one or many frames each, and in Zarr; a frame is read without the others."""

from __future__ import annotations

import bisect
import logging
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np

from videomamba_depth.data.recorded_depth.storage import (
    About,
    Storage,
    frames_and_size,
    one_number,
    pick_array,
    refuse_offsets,
    times_of,
)
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.extras import require

log = logging.getLogger(__name__)

HELD_BYTES = 256 * 2**20  # a compressed array up to this is held as a whole; a larger one is decompressed on the way
_CONSTANTS = ("scale", "offset", "shift")
_COLUMNS = ("depth_kind", *_CONSTANTS, "frame_index", "pts", "time_base")
_BROKEN = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True)
class ArrayFile:
    """One array of n frames in a file.

    member: of an npz. offset: of the numbers in the file, in bytes; None where they are compressed, or not in C order.
    """

    path: Path
    member: str | None
    dtype: np.dtype
    frames: int
    size: tuple[int, int]
    offset: int | None

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame."""
        return self.size[0] * self.size[1] * self.dtype.itemsize

    def read_many(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield frames [h,w] of ascending indices."""
        try:
            if self.offset is not None:
                yield from self._read_plain(indices)
            elif self.frames * self.frame_bytes <= HELD_BYTES or self.member is None:
                whole = _held(self.path, self.member, self.path.stat().st_mtime_ns)
                yield from (whole.reshape(self.frames, *self.size)[i] for i in indices)
            else:
                yield from self._read_compressed(indices)
        except _BROKEN as error:
            raise UserError(f"cannot read depth {self.path}: {error}; it is damaged") from error

    def _read_plain(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        assert self.offset is not None
        with self.path.open("rb") as file:
            for i in indices:
                file.seek(self.offset + i * self.frame_bytes)
                yield self._frame(file.read(self.frame_bytes))

    def _read_compressed(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.member}.npy") as stream:
            _read_header(stream)
            place = 0
            for i in indices:
                while place < i:
                    self._frame(stream.read(self.frame_bytes))
                    place += 1
                yield self._frame(stream.read(self.frame_bytes))
                place += 1

    def _frame(self, data: bytes) -> np.ndarray:
        if len(data) < self.frame_bytes:
            raise EOFError("it ends early")
        return np.frombuffer(data, self.dtype).reshape(self.size)


@dataclass(frozen=True)
class ArrayFiles(Storage):
    """Arrays one after the other, `parts`, in one file or several."""

    parts: tuple[ArrayFile, ...] = ()

    def read_many(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames [h,w] of ascending indices, numbers as they are stored."""
        ends = list(accumulate(part.frames for part in self.parts))
        start = 0
        while start < len(indices):
            number = bisect.bisect_right(ends, indices[start])
            first = ends[number] - self.parts[number].frames
            stop = bisect.bisect_left(indices, ends[number], start)
            yield from self.parts[number].read_many([i - first for i in indices[start:stop]])
            start = stop

    def files(self) -> Sequence[Path]:
        """Return all files that the depth is read from."""
        return [part.path for part in self.parts]


def open_arrays(
    path: Path, files: Sequence[Path], array: str | None = None, names: Sequence[str] | None = None
) -> ArrayFiles:
    """Open npy and npz files, in this order, as one video.

    Args:
        path: as it was given; files: npy or npz, of one frame each, or of several.
        array: name of the array in each npz; None: the only one, or one of `ARRAY_NAMES`.
        names: of the frames, where each file holds one.

    Raises:
        UserError: a file is damaged, holds objects or no depth, or the sizes differ.
    """
    parts = tuple(_open(file, array) for file in files)
    sizes = {part.size: part.path for part in parts}
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise UserError(f"the frames of {path} must have one size; {first.name} has {one}, {second.name} {other}")
    return ArrayFiles(
        path,
        sum(part.frames for part in parts),
        parts[0].size,
        any(part.dtype.kind in "iu" for part in parts),
        _about(parts, names),
        parts,
    )


def _open(path: Path, array: str | None) -> ArrayFile:
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                dtype, shape, in_order = _read_header(file)
                return _array_file(path, None, dtype, shape, file.tell() if in_order else None)
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            member = array or pick_array(_of_frames(archive, names), path)
            pick_array(names, path, member)
            info = archive.getinfo(f"{member}.npy")
            with archive.open(info) as stream:
                dtype, shape, in_order = _read_header(stream)
                header_bytes = stream.tell()
        plain = in_order and info.compress_type == zipfile.ZIP_STORED
        offset = _start_of(path, info) + header_bytes if plain else None
        return _array_file(path, member, dtype, shape, offset)
    except _BROKEN as error:
        raise UserError(f"cannot read depth {path}: {error}; it is damaged or no NumPy file") from error


def _of_frames(archive: zipfile.ZipFile, names: Sequence[str]) -> list[str]:
    """Return the names of the arrays with two or more dimensions, or of all where one alone is left out."""
    found = []
    for name in names:
        with archive.open(f"{name}.npy") as stream:
            dtype, shape, _ = _read_header(stream)
            if len(shape) >= 2 and dtype.kind in "fiu":
                found.append(name)
    return found


def _array_file(
    path: Path, member: str | None, dtype: np.dtype, shape: tuple[int, ...], offset: int | None
) -> ArrayFile:
    if dtype.kind not in "fiu":
        raise UserError(f"{path} must hold numbers; it holds {dtype}, and nothing is unpickled")
    frames, height, width = frames_and_size(shape, path)
    return ArrayFile(path, member, dtype, frames, (height, width), offset)


def _read_header(file: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], bool]:
    """Return type, shape and whether the numbers are in C order; the file then stands at the first number."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"its NumPy format {version} is not known")
    shape, is_fortran, dtype = readers[version](file)
    return dtype, shape, not is_fortran


def _start_of(path: Path, info: zipfile.ZipInfo) -> int:
    """Return where a member's bytes begin: after its local header of 30 bytes, its name and its extra field."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
    return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


@lru_cache(maxsize=1)
def _held(path: Path, member: str | None, changed: int) -> np.ndarray:
    """Return a whole array; the last one is kept. changed: when the file was, in ns."""
    if member is None:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    with np.load(path, allow_pickle=False) as archive:
        return archive[member]


def _about(parts: Sequence[ArrayFile], names: Sequence[str] | None) -> About:
    """Gather what the files say besides depth."""
    own_names = tuple(names) if names is not None and all(part.frames == 1 for part in parts) else None
    columns = [_columns(part.path) for part in parts if part.member is not None]
    where = parts[0].path.parent
    kinds = {str(c["depth_kind"]) for c in columns if "depth_kind" in c}
    for part, c in zip((part for part in parts if part.member is not None), columns, strict=True):
        refuse_offsets(c, part.path)
    factors = {one_number(c["scale"].squeeze(), where, "scale") for c in columns if "scale" in c}
    for name, found in (("depth_kind", kinds), ("scale", factors)):
        if len(found) > 1:
            raise UserError(f"the files in {where} disagree on {name}: {', '.join(map(str, sorted(found)))}")
    if factors and (silent := next((p.path for p, c in zip(parts, columns, strict=True) if "scale" not in c), None)):
        raise UserError(f"of the files in {where} some say a scale and {silent.name} says none; write it into all")
    numbers = _joined([c.get("frame_index") for c in columns])
    return About(
        kind=next(iter(kinds), None),
        scales=[(0, factor) for factor in factors] or None,
        frame_numbers=numbers,
        timestamps=_joined([times_of(c) for c in columns]),
        names=own_names if numbers is None else None,
    )


def _joined(columns: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Return the numbers of all files one after the other; None where a file has none."""
    known = [np.atleast_1d(column) for column in columns if column is not None]
    return np.concatenate(known) if known and len(known) == len(columns) else None


def _columns(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {n: archive[n] for n in archive.files if n in _COLUMNS or n.startswith("time")}
    except _BROKEN as error:
        raise UserError(f"cannot read {path}: {error}; it is damaged") from error


@dataclass(frozen=True)
class ZarrArray(Storage):
    """One array of a Zarr group, `name`, or a Zarr array itself (name ""); formats 2 and 3."""

    name: str = ""

    def read_many(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames [h,w] of ascending indices, numbers as they are stored; chunk after chunk."""
        node = _open_zarr(self.path)
        array = node[self.name] if self.name else node
        per_chunk, held, first = int(array.chunks[0]), np.empty(0), -1
        for i in indices:
            start = i // per_chunk * per_chunk
            if start != first:
                try:
                    held, first = np.asarray(array[start : start + per_chunk]), start
                except Exception as error:  # codecs raise errors of their own
                    raise UserError(f"cannot read depth {self.path}, chunk of frame {start}: {error}") from error
                if (held == array.fill_value).all():  # what Zarr returns of a chunk that is not there
                    log.warning("%s has no chunk of frame %d: these frames count as without depth", self.path, start)
                    held = np.full(held.shape, np.nan, np.float32)
            yield held[i - first].reshape(self.size)

    def files(self) -> Sequence[Path]:
        """Return all files that the depth is read from."""
        return sorted(path for path in self.path.rglob("*") if path.is_file())


def is_zarr(path: Path) -> bool:
    """Tell whether a folder is a Zarr group or array."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))


def open_zarr(path: Path, array: str | None = None) -> ZarrArray:
    """Open a Zarr group or array; `array`: its name in a group, None: the only one, or one of `ARRAY_NAMES`.

    Raises:
        UserError: Zarr is not installed, or the folder is damaged or holds no depth.
    """
    node = _open_zarr(path)
    name, columns = "", {}
    attributes: Mapping[str, Any] = dict(node.attrs)
    if hasattr(node, "array_keys"):
        keys = sorted(node.array_keys())
        name = pick_array(keys if array else [key for key in keys if node[key].ndim >= 2], path, array)
        columns = {key: np.asarray(node[key][...]) for key in keys if node[key].ndim == 1 or key in _CONSTANTS}
    found = node[name] if name else node
    attributes = {**attributes, **dict(found.attrs)}
    frames, height, width = frames_and_size(found.shape, path)
    if found.ndim == 2 or frames != found.shape[0] or found.dtype.kind not in "fiu":
        raise UserError(f"{path} must hold depth [frames,h,w]; '{name}' is {found.dtype} {list(found.shape)}")
    # A stream that was killed counts complete ones.
    frames = min(frames, int(one_number(attributes.get("num_frames", frames), path, "num_frames")))
    if frames < 1:
        raise UserError(f"{path} has no complete frame")
    refuse_offsets({**attributes, **columns}, path)
    factors = {
        one_number(np.squeeze(about["scale"]), path, "scale") for about in (attributes, columns) if "scale" in about
    }
    if len(factors) > 1:
        raise UserError(
            f"the attribute and the array 'scale' of {path} disagree: {', '.join(map(str, sorted(factors)))}"
        )
    times = times_of(columns)
    if times is None and "pts" in columns and "time_base" in attributes:
        pts = columns["pts"]
        times = pts * _time_base(attributes["time_base"], path) if pts.dtype.kind in "fiu" else pts
    numbers = columns.get("frame_index")
    about = About(
        kind=attributes.get("depth_kind"),
        scales=[(0, factor) for factor in factors] or None,
        frame_numbers=None if numbers is None else numbers[:frames],
        timestamps=None if times is None else times[:frames],
    )
    return ZarrArray(path, frames, (height, width), found.dtype.kind in "iu", about, name)


def _time_base(value: Any, path: Path) -> float:
    try:
        return float(Fraction(value))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{path} must hold time_base as a fraction of seconds, such as 1/30; got {value!r:.60}"
        ) from error


@lru_cache(maxsize=8)
def _open_zarr(path: Path) -> Any:
    zarr = require("zarr", f"{path.name}")
    try:
        return zarr.open(str(path), mode="r")
    except Exception as error:  # Zarr raises errors of its own
        raise UserError(f"cannot read depth {path}: {error}; it is damaged or no Zarr group") from error
