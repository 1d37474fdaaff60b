"""The teacher cache's format on disk, and when it fits.

    <cache root>/<name>-<digest of the video id>/
        depth        float16 [F,h,w]    the teacher's depth / chunk_scale, in the unit of `depth_kind`
        flow_bwd     float16 [F,2,h,w]  optional; frame t → t-1, px of the stored grid (x right, y down), 0 at t = 0
        static       bool    [F,h,w]    optional; static and visible with respect to the frame before; False at t = 0
        timestamps_s float64 [F]
        chunk_digest uint8   [chunks,32] SHA-256 of the attributes and of everything of a chunk, see `chunk_digest`
        chunk_scale  float32 [chunks]   0 until the chunk is whole on disk, then the factor of its depth
        attributes   format_version, teacher (the key), source (file, hash, frames), storage (sizes), and of caches with
                     static masks `static_masks`, the `StaticKey`, which those before it lack

Float16 keeps 11 bits, a relative error of at most 2^-11 = 0.05 %. Each chunk is divided by a power of two that brings
its largest magnitude into (512, 1024]: nothing overflows, and the error stays relative down to 1e-7 of the maximum,
whatever the unit. Values that are not finite are refused, but for NaN where the teacher itself has no label.

A chunk counts once `chunk_scale` says so, which is written last, after the rest has been flushed to the disk; Zarr
replaces each file atomically. So a process may be killed, or the power cut, at any moment: running it again finishes
the chunks that are missing and changes none of the others. Whoever reads a chunk compares it with its digest first: a
file that is missing (which Zarr reads as zeros), of another chunk or video, or a number that was changed is damage.

The root is a folder, or a URL that fsspec and Zarr can write (s3://bucket/labels), with an object for each file. An
object store replaces objects atomically and in order, which is all that the above asks for. It has no lock: one process
writes a video at a time (`precompute_videos` gives each to one rank). Two of them make the same bytes in the end, since
each puts whole objects of what itself has read and labelled (`ChunkWriter`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from videomamba_depth.data.labels.cache_server import local_root
from videomamba_depth.data.video.find import hash_source, source_stamp
from videomamba_depth.data.video.info import VideoReadError
from videomamba_depth.utils.atomic import disk_errors, sync_tree
from videomamba_depth.utils.extras import require

FORMAT_VERSION = 2
_SCALED_MAX = 1024.0

RAW, STABILIZED = "chunk", "stabilised"
"""Kinds of labels: the first words of the arrays of their scales and digests."""
STATIC_MASKS = "static_masks"
"""The attribute that says how static masks were found; beside stabilized targets, the key of the same name there."""
TARGET_STATIC = "target_static"
ARRAYS = {RAW: ("depth", "flow_bwd", "static"), STABILIZED: ("stabilised", TARGET_STATIC)}
"""The arrays of each kind that are stored in chunks of frames; the first is divided by the chunk's scale."""


def zarr_library() -> Any:
    """Import Zarr, which whoever trains without a cache can do without."""
    return require("zarr", "a teacher cache")


class LabelError(ValueError):
    """A teacher's answer that cannot be stored."""


class ChunkError(ValueError):
    """A stored chunk is not what was written."""


@dataclass(frozen=True)
class TeacherKey:
    """What decides a teacher's labels. Two keys fit when all fields but `model_id` are equal.

    model_id: hub id or folder, for people; the same weights under another name are the same teacher.
    weights_sha256: digest of the weights.
    input_size: short side in px at which the teacher is shown a frame.
    dtype: of the computation, such as "float32".
    depth_kind: value of `DepthKind`.
    resize: how frames come to that size, and into the teacher.
    """

    model_id: str
    weights_sha256: str
    input_size: int | None
    dtype: str
    depth_kind: str
    resize: str = "antialiased cubic, whole frames in whole levels, then to multiples of the patch"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TeacherKey:
        """Build a key from a dict such as `DepthAnythingEncoder.cache_key()` returns; unknown names are refused."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"teacher key has unknown fields {sorted(unknown)}")
        return cls(**values)

    def difference(self, other: TeacherKey) -> str:
        """Name the first field in which `other` (the cache's key) does not fit, with both values; "" if it fits.

        The weights come last: another dtype changes their digest too.
        """
        for field in sorted(fields(self), key=lambda field: field.name == "weights_sha256"):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name != "model_id" and mine != theirs:
                named = f" (model {other.model_id}, wanted {self.model_id})" if field.name == "weights_sha256" else ""
                return f"{field.name} is {_short(theirs, mine)}, wanted {_short(mine, theirs)}{named}"
        return ""


@dataclass(frozen=True)
class StaticKey:
    """What decides static masks, see `static_mask`.

    flow: names the estimator. version: of how they are found.
    """

    flow: str
    max_motion_px: float
    max_rgb_change: float
    version: int = 1

    def difference(self, stored: Mapping[str, Any]) -> str:
        """Name the first field in which stored masks do not fit, with both values; "" if they fit."""
        for name, wanted in asdict(self).items():
            if stored.get(name) != wanted:
                return f"{STATIC_MASKS}.{name} is {stored.get(name)}, wanted {wanted}"
        return ""


@dataclass(frozen=True)
class StorageLayout:
    """How a video is stored: (height, width) px, frames per chunk, and which optional arrays there are."""

    height: int
    width: int
    chunk_frames: int = 16
    has_flow: bool = False
    has_static: bool = False

    def map_shapes(self, num_frames: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the raw maps of so many frames, by the names of their arrays."""
        size = (self.height, self.width)
        shapes: dict[str, tuple[int, ...]] = {"depth": (num_frames, *size)}
        if self.has_flow:
            shapes["flow_bwd"] = (num_frames, 2, *size)
        return shapes | ({"static": (num_frames, *size)} if self.has_static else {})


def chunk_scale(depth: np.ndarray) -> float:
    """Return the power of two by which `depth` is divided, so that its largest magnitude lies in (512, 1024]."""
    largest = float(np.abs(depth[np.isfinite(depth)]).max(initial=0.0))
    if largest == 0:
        return 1.0
    # Kept within float32, in which the scale is stored.
    return float(2.0 ** np.clip(np.ceil(np.log2(largest / _SCALED_MAX)), -120, 120))


def scaled(depth: np.ndarray) -> tuple[float, np.ndarray]:
    """Return a chunk's scale and its depth as it is stored, float16."""
    scale = chunk_scale(depth)
    return scale, (depth / scale).astype(np.float16)


def chunk_digest(
    attributes: Mapping[str, Any], kind: str, chunk: int, scale: float, maps: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return the SHA-256, uint8 [32], of a chunk's labels: their bits, scale and times, and what they are labels of.

    Args:
        attributes: of the group: format, teacher, source, storage; how targets were stabilized, and masks found.
        maps: the chunk's part of every array as it is stored, by name, and of "timestamps_s".
    """
    made = STABILIZED if kind == STABILIZED else STATIC_MASKS
    names = ("format_version", "teacher", "source", "storage", *([made] if made in attributes else []))
    about = [{name: attributes[name] for name in names}, kind, chunk, float(np.float32(scale)).hex()]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(maps):
        digest.update(f"{name} {maps[name].dtype} {maps[name].shape} ".encode())
        digest.update(np.ascontiguousarray(maps[name]).data)
    return np.frombuffer(digest.digest(), np.uint8)


class ChunkWriter:
    """Write a kind's chunks into a video's group, which it holds open: a chunk costs one put of each of its objects.

    Args:
        group: with the arrays of the kind.
        kind: `RAW` or `STABILIZED`.
    """

    def __init__(self, group: Any, kind: str) -> None:
        self._group, self._kind = group, kind
        self._attributes, self._times = dict(group.attrs), group["timestamps_s"][:]
        bookkeeping = (f"{kind}_digest", f"{kind}_scale")
        self._arrays = {name: group[name] for name in (*ARRAYS[kind], *bookkeeping) if name in group}
        self._digests, self._scales = (self._arrays[name][:] for name in bookkeeping)
        is_missing = (self._scales == 0) | ~self._digests.any(1)
        self.missing: list[int] = np.flatnonzero(is_missing).tolist()
        """The chunks that were still to be written when the group was opened, ascending."""

    def write(self, chunk: int, depth: np.ndarray, others: Mapping[str, np.ndarray] | None = None) -> None:
        """Write a chunk's maps, then its digest, and its scale last, which makes it count; on a local disk all flushed.

        Args:
            depth: float32 [K,h,w], stored divided by its scale.
            others: the chunk's part of the other arrays in `ARRAYS`, as they are to be stored.

        Raises:
            UserError: the disk is full or cannot be written.
        """
        kind, attributes = self._kind, self._attributes
        scale, half = scaled(depth)
        maps = {ARRAYS[kind][0]: half, **(others or {})}
        rows = chunk_rows(chunk, attributes["storage"]["chunk_frames"], attributes["source"]["num_frames"])
        digest = chunk_digest(attributes, kind, chunk, scale, {**maps, "timestamps_s": self._times[rows]})
        self._digests[chunk], self._scales[chunk] = digest, scale
        with disk_errors("the teacher cache"):
            for name, values in maps.items():
                self._arrays[name][rows] = values
            self._arrays[f"{kind}_digest"][:] = self._digests
            _flush(self._group, *(f"{name}/c/{chunk}" for name in maps), f"{kind}_digest/c")
            self._arrays[f"{kind}_scale"][:] = self._scales
            _flush(self._group, f"{kind}_scale/c")


def read_chunk(
    arrays: Mapping[str, Any], attributes: Mapping[str, Any], kind: str, chunk: int, verify: bool = True
) -> dict[str, np.ndarray]:
    """Return the stored maps of a chunk that counts, by the names in `ARRAYS`, as they are stored.

    Args:
        arrays: a group, or its arrays by name; `{kind}_scale` and `{kind}_digest` may be read already.

    Raises:
        ChunkError: it is not what was written. Other errors where a file cannot be decoded.
    """
    rows = chunk_rows(chunk, attributes["storage"]["chunk_frames"], attributes["source"]["num_frames"])
    maps = {name: arrays[name][rows] for name in ARRAYS[kind] if name in arrays}
    if verify:
        scale, stored = float(arrays[f"{kind}_scale"][chunk]), arrays[f"{kind}_digest"][chunk]
        times = arrays["timestamps_s"][rows]
        digest = chunk_digest(attributes, kind, chunk, scale, {**maps, "timestamps_s": times})
        if not np.array_equal(stored, digest):
            raise ChunkError(f"chunk {chunk} of {ARRAYS[kind][0]} is missing or damaged: it is not what was written")
    return maps


class StoredLabels:
    """A video's labels, opened for reading; each chunk is compared with its digest when it is read first.

    Args:
        group: with its raw labels, finished or not.
        kinds: `RAW`, and `STABILIZED` where these are there too.
    """

    def __init__(self, group: Any, kinds: Sequence[str] = (RAW,)) -> None:
        self.attributes = dict(group.attrs)
        names = [name for kind in kinds for name in ARRAYS[kind]]
        self.arrays: dict[str, Any] = {name: group[name] for name in names if name in group}
        self.arrays["timestamps_s"] = group["timestamps_s"][:]
        for kind in kinds:
            self.arrays |= {f"{kind}_{name}": group[f"{kind}_{name}"][:] for name in ("scale", "digest")}
        self._verified: set[tuple[str, int]] = set()

    def read(self, kind: str, indices: np.ndarray) -> dict[str, np.ndarray] | None:
        """Return a kind's maps of the frames `indices` [N], depth float32 in its unit; None where one is not finished.

        Raises:
            ChunkError: see `read_chunk`.
        """
        chunk_frames, scales = self.attributes["storage"]["chunk_frames"], self.arrays[f"{kind}_scale"]
        chunks, where = np.unique(indices // chunk_frames, return_inverse=True)
        if (scales[chunks] == 0).any():
            return None
        parts = []
        for chunk in chunks.tolist():  # Zarr decodes whole chunks anyway
            is_new = (kind, chunk) not in self._verified
            parts.append(read_chunk(self.arrays, self.attributes, kind, chunk, verify=is_new))
            self._verified.add((kind, chunk))
        first = np.cumsum([0, *(len(next(iter(part.values()))) for part in parts)])[where]
        maps = {name: np.concatenate([p[name] for p in parts])[first + indices % chunk_frames] for name in parts[0]}
        depth = ARRAYS[kind][0]
        return maps | {depth: maps[depth].astype(np.float32) * scales[indices // chunk_frames][:, None, None]}


def chunk_rows(chunk: int, chunk_frames: int, num_frames: int) -> slice:
    """Return the frames of a chunk."""
    return slice(chunk * chunk_frames, min((chunk + 1) * chunk_frames, num_frames))


def create_arrays(group: Any, kind: str, shapes: Mapping[str, tuple[int, ...]], chunk_frames: int) -> None:
    """Create the arrays of a kind that are not there: maps of these shapes, digests, and last the scales.

    The scales make the rest count: when they are new, what is on a local disk is flushed.
    """
    is_new = f"{kind}_scale" not in group
    for name, shape in shapes.items():
        dtype, chunks = "bool" if name.endswith("static") else "float16", (chunk_frames, *shape[1:])
        if name not in group:
            zstd = require("zarr.codecs").ZstdCodec(level=3, checksum=True)
            group.create_array(name, shape=shape, chunks=chunks, dtype=dtype, compressors=zstd)
    count = -(-next(iter(shapes.values()))[0] // chunk_frames)
    if f"{kind}_digest" not in group:
        group.create_array(f"{kind}_digest", shape=(count, 32), chunks=(count, 32), dtype="uint8", fill_value=0)
    if is_new:
        group.create_array(f"{kind}_scale", shape=(count,), chunks=(count,), dtype="float32", fill_value=0.0)
        _flush(group, ".")


def local_folder(group: Any) -> Path | None:
    """Return a group's folder; None for a cache at a URL."""
    return getattr(group.store, "root", None)


def _flush(group: Any, *names: str) -> None:
    """Flush folders of a group to the disk; nothing to do where it is not on a local one."""
    folder = local_folder(group)
    for path in [folder / name for name in names] if folder is not None else []:
        if path.is_dir():
            sync_tree(path)


def group_name(video_id: str) -> str:
    """Return a video's folder name: readable, safe on every file system, and unique through a digest."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", video_id).strip("._")[-60:] or "video"
    return f"{slug}-{hashlib.sha256(video_id.encode()).hexdigest()[:10]}"


def address_of(cache_root: str | Path, name: str) -> str:
    """Return where the group of this name is: its folder, or its URL."""
    folder = local_root(cache_root)
    return f"{str(cache_root).rstrip('/')}/{name}" if folder is None else str(folder / name)


def group_address(cache_root: str | Path, video_id: str) -> str:
    """Return where a video's group is: its folder, or its URL."""
    return address_of(cache_root, group_name(video_id))


def open_group(cache_root: str | Path, video_id: str, mode: Literal["r", "r+"]) -> Any:
    """Open a video's group; raises FileNotFoundError or KeyError where there is none."""
    return zarr_library().open_group(group_address(cache_root, video_id), mode=mode, zarr_format=3)


def source_unchanged(attributes: Mapping[str, Any], path: str | Path) -> bool:
    """Tell whether the video at `path` has the content that a group was made from."""
    source = attributes["source"]
    try:
        if source_stamp(path) == (source["size_bytes"], source["mtime_ns"]):
            return True
        return source_stamp(path)[0] == source["size_bytes"] and hash_source(path) == source["sha256"]
    except (OSError, VideoReadError):
        return False


def group_difference(attributes: Mapping[str, Any], key: TeacherKey) -> str:
    """Name what keeps a group from being of this format and teacher; "" if it fits."""
    version = attributes.get("format_version")
    if version != FORMAT_VERSION:
        return f"format_version is {version}, wanted {FORMAT_VERSION}"
    try:
        return key.difference(TeacherKey.from_dict(attributes["teacher"]))
    except (KeyError, TypeError, ValueError) as error:
        return f"its teacher key cannot be read ({error})"


def _short(value: object, other: object) -> str:
    """Return a value for a message: of a long one what differs from the other, from the word before on."""
    text = str(value)
    if len(text) < 50:
        return text
    same = next((i for i, (mine, its) in enumerate(zip(text, str(other), strict=False)) if mine != its), len(text))
    start = text.rfind(" ", 0, max(text.rfind(" ", 0, same), 0)) + 1
    return ("…" if start else "") + text[start : max(start + 12, same + 8)] + "…"
