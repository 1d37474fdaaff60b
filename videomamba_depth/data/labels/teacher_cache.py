"""Write and read the teacher's labels on disk: Zarr v3, one group per video; `cache_format` describes the layout."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from videomamba_depth.data.clip import SharedFlags
from videomamba_depth.data.labels.cache_format import (
    FORMAT_VERSION,
    RAW,
    STABILIZED,
    STATIC_MASKS,
    TARGET_STATIC,
    ChunkWriter,
    LabelError,
    StaticKey,
    StorageLayout,
    StoredLabels,
    TeacherKey,
    chunk_rows,
    create_arrays,
    group_address,
    group_difference,
    group_name,
    local_folder,
    open_group,
    source_unchanged,
    zarr_library,
)
from videomamba_depth.data.labels.cache_server import local_root, server_errors
from videomamba_depth.data.labels.stabilized_cache import StabilizeKey
from videomamba_depth.data.video.find import VideoSource, hash_source, source_stamp
from videomamba_depth.data.video.info import VideoInfo
from videomamba_depth.utils.errors import UserError

__all__ = ["LabelError", "StorageLayout", "TeacherCacheReader", "TeacherCacheWriter", "TeacherKey"]

log = logging.getLogger(__name__)

_OPEN_VIDEOS = 256


class TeacherCacheWriter:
    """Write or continue one video's group. One writer per video at a time.

    Args:
        cache_root: folder or URL of the cache.
        source: the video.
        info: its probe.
        key: the teacher's.
        layout: how to store it.
        masks: depth may be NaN, for no label.
        static: how static masks are found, where the layout has them.

    Raises:
        UserError: the group exists and was made with another teacher, source or layout, or other masks (the line names
            the field), or it cannot be read or written.
    """

    def __init__(
        self,
        cache_root: str | Path,
        source: VideoSource,
        info: VideoInfo,
        key: TeacherKey,
        layout: StorageLayout,
        masks: bool = False,
        static: StaticKey | None = None,
    ) -> None:
        self.layout, self.num_frames, self.masks = layout, info.num_frames, masks
        self.static = static
        """How static masks are found; None where the group was begun without saying it."""
        self._root = cache_root
        with server_errors(cache_root):
            self._chunks = self._open(source, info, key)

    @property
    def missing(self) -> list[int]:
        """The chunks that were still to be written when the group was opened, ascending."""
        return self._chunks.missing

    def chunk_range(self, chunk: int) -> tuple[int, int]:
        """Return the frames [start, stop) of a chunk."""
        rows = chunk_rows(chunk, self.layout.chunk_frames, self.num_frames)
        return rows.start, rows.stop

    def write_chunk(self, chunk: int, maps: Mapping[str, np.ndarray]) -> None:
        """Store a whole chunk and mark it complete, in this order.

        Args:
            chunk: number of the chunk.
            maps: those of the layout, of the chunk's K frames: "depth" float32 [K,h,w], "flow_bwd" float32 [K,2,h,w],
                "static" bool [K,h,w].

        Raises:
            ValueError: a wrong shape or a missing map.
            LabelError: values that are not finite.
            UserError: the disk is full or cannot be written.
        """
        start, stop = self.chunk_range(chunk)
        expected, got = self.layout.map_shapes(stop - start), {name: values.shape for name, values in maps.items()}
        if got != expected:
            raise ValueError(f"the maps of chunk {chunk} must have the shapes {expected}; got {got}")
        for name, values in maps.items():
            allowed = np.isnan(values) if self.masks and name == "depth" else False
            if not (np.isfinite(values) | allowed).all():
                shown = "optical flow" if name == "flow_bwd" else name
                raise LabelError(f"the teacher's {shown} of frames {start} to {stop - 1} is not finite")
        others = {name: values for name, values in maps.items() if name != "depth"}
        if "flow_bwd" in others:
            others["flow_bwd"] = np.clip(others["flow_bwd"], -6e4, 6e4).astype(np.float16)
        with server_errors(self._root):
            self._chunks.write(chunk, maps["depth"], others)

    def _open(self, source: VideoSource, info: VideoInfo, key: TeacherKey) -> ChunkWriter:
        try:
            group = self._open_group(self._root, source, info, key)
            self._create_arrays(group, info)
            return ChunkWriter(group, RAW)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # Attributes that make no sense show as whatever reading them raises.
            reason = " ".join(str(error).split())
            if not isinstance(error, OSError | ValueError):
                reason = f"its metadata are damaged ({error!r}); delete the group {group_name(source.video_id)}"
            raise UserError(f"cannot write {source.video_id} to the teacher cache {self._root}: {reason}") from error

    def _open_group(self, root: str | Path, source: VideoSource, info: VideoInfo, key: TeacherKey) -> Any:
        try:
            group = open_group(root, source.video_id, "r+")
        except (FileNotFoundError, KeyError):
            attributes = _attributes(source, info, key, self.layout)
            if self.static is not None:
                attributes[STATIC_MASKS] = asdict(self.static)
            store = group_address(root, source.video_id)
            group = zarr_library().create_group(store, zarr_format=3, attributes=attributes)
        folder = local_folder(group)
        for left_over in folder.rglob("*.partial") if folder is not None else ():  # of a write that was killed
            left_over.unlink(missing_ok=True)
        stored = dict(group.attrs)
        problem = group_difference(stored, key) or _content_difference(stored, source, info, self.layout)
        if STATIC_MASKS not in stored:
            self.static = None
        elif self.static is not None and not problem:
            problem = self.static.difference(stored[STATIC_MASKS])
        if problem:
            raise UserError(
                f"teacher cache {root} does not fit {source.video_id}: {problem}; "
                "use another cache folder, or delete this one to make it anew"
            )
        return group

    def _create_arrays(self, group: Any, info: VideoInfo) -> None:
        """Create what a killed run has not created yet.

        Raises:
            ValueError: an array is gone, or the frames' times are not those that are stored.
        """
        frames, shapes = self.num_frames, self.layout.map_shapes(self.num_frames)
        if "chunk_scale" not in group:
            times = group.require_array("timestamps_s", shape=(frames,), chunks=(frames,), dtype="float64")
            times[:] = info.timestamps_s
        else:
            gone = [name for name in (*shapes, "timestamps_s") if name not in group]
            if gone:
                raise ValueError(f"array {gone[0]} is missing; delete this one to make it anew")
            if not np.array_equal(group["timestamps_s"][:], np.asarray(info.timestamps_s, np.float64)):
                raise ValueError("timestamps_s are not those of the video; delete this one to make it anew")
        create_arrays(group, RAW, shapes, self.layout.chunk_frames)


def _attributes(source: VideoSource, info: VideoInfo, key: TeacherKey, layout: StorageLayout) -> dict[str, Any]:
    size_bytes, mtime_ns = source_stamp(source.path)
    return {
        "format_version": FORMAT_VERSION,
        "teacher": asdict(key),
        "source": {
            "video_id": source.video_id,
            "name": Path(source.path).name,
            "sha256": hash_source(source.path),
            "size_bytes": size_bytes,
            "mtime_ns": mtime_ns,
            "num_frames": info.num_frames,
            "width": info.width,
            "height": info.height,
        },
        "storage": asdict(layout),
    }


def _content_difference(
    attributes: Mapping[str, Any], source: VideoSource, info: VideoInfo, layout: StorageLayout
) -> str:
    """Name the first field in which a group's source or layout differs; "" if they fit."""
    for name, value in asdict(layout).items():
        stored = attributes["storage"].get(name)
        if stored != value:
            return f"storage.{name} is {stored}, wanted {value}"
    if not source_unchanged(attributes, source.path):
        return "source.sha256 differs, the video has changed since it was cached"
    stored = attributes["source"]["num_frames"]
    if stored != info.num_frames:
        return f"source.num_frames is {stored}, wanted {info.num_frames}"
    return ""


class _Misfit(Exception):
    """Why a cache has no answer; `kind` is one of `TeacherCacheReader._KINDS`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class TeacherCacheReader:
    """Look labels up by video and frame; safe to hand to loader workers, which each open their own handles.

    Where the cache does not fit, the answer is None and the reason is logged once per kind of reason, so that training
    goes on with the live teacher.

    Args:
        cache_root: folder or URL of the cache.
        key: of the teacher whose labels are wanted.
        stabilized: also look up targets stabilized like this, where there are any.
        static: static masks are wanted that were found like this; None: whatever there are. Masks of caches that do
            not say how they were found are taken.
    """

    _KINDS = (
        "no cache",
        "no entry",
        "other teacher",
        "other source",
        "not finished",
        "unreadable",
        "other size",
        "other static masks",
    )

    def __init__(
        self,
        cache_root: str | Path,
        key: TeacherKey,
        stabilized: StabilizeKey | None = None,
        static: StaticKey | None = None,
    ) -> None:
        self.cache_root, self.key, self.stabilized, self.static = str(cache_root), key, stabilized, static
        self._warned = SharedFlags(len(self._KINDS))
        self._open: dict[str, StoredLabels | _Misfit] = {}
        self._owner = os.getpid()

    def lookup(
        self,
        video_id: str,
        frame_indices: Sequence[int],
        path: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> dict[str, np.ndarray] | None:
        """Return all stored maps of some frames of a video.

        Args:
            video_id: the id under which it was cached.
            frame_indices: N frames.
            path: the video itself; when given, it must have the content that was cached. Size and time of change are
                compared first, the hash only when they differ.
            size: (height, width) px at which frames are wanted; a label made at another size is another label.

        Returns:
            "teacher_depth" float32 [N,h,w]; "flow_bwd" float32 [N,h,w,2] and "static" bool [N,h,w] where stored, the
            masks with raw labels or with stabilized ones. Both refer to the frame before in the video, whatever
            `frame_indices` says. "stabilized_depth" float32 [N,h,w] where it is asked for and finished. None where the
            cache does not fit.

        Raises:
            UserError: there are stabilized targets, but of other parameters.
        """
        try:
            labels = self._labels(video_id, path)
            stored = labels.arrays["depth"].shape[1:]
            if size is not None and stored != size:
                problem = f"{video_id} was labelled at {stored} (height, width) px, training resizes it to {size}"
                raise _Misfit("other size", problem)
            return self._read(labels, video_id, np.asarray(frame_indices, np.int64))
        except UserError:
            raise
        except _Misfit as misfit:
            self._say(misfit)
        except Exception as error:  # damage shows as whatever Zarr and its codecs raise
            self._say(_Misfit("unreadable", f"{video_id} cannot be read ({' '.join(str(error).split())})"))
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_owner": -1}

    def _labels(self, video_id: str, path: str | None) -> StoredLabels:
        if self._owner != os.getpid():  # handles do not cross a fork
            self._open, self._owner = {}, os.getpid()
        if video_id not in self._open:
            if len(self._open) >= _OPEN_VIDEOS:
                self._open.clear()
            try:
                self._open[video_id] = self._open_video(video_id, path)
            except _Misfit as misfit:  # remembered: finding out may have meant hashing the file
                self._open[video_id] = misfit
        labels = self._open[video_id]
        if isinstance(labels, _Misfit):
            raise labels
        return labels

    def _open_video(self, video_id: str, path: str | None) -> StoredLabels:
        folder = local_root(self.cache_root)
        if folder is not None and not folder.is_dir():
            raise _Misfit("no cache", f"there is no folder {self.cache_root}")
        try:
            group = open_group(self.cache_root, video_id, "r")
        except (FileNotFoundError, KeyError):
            raise _Misfit("no entry", f"{video_id} is not in it") from None
        attributes = dict(group.attrs)
        problem = group_difference(attributes, self.key)
        if problem:
            raise _Misfit("other teacher", problem)
        if attributes["source"]["video_id"] != video_id:
            raise _Misfit("other source", f"{video_id} holds labels of {attributes['source']['video_id']}")
        if path is not None and not source_unchanged(attributes, path):
            raise _Misfit("other source", f"{video_id} has changed since it was cached")
        if "chunk_scale" not in group:
            raise _Misfit("not finished", f"{video_id} is not finished")
        stored = attributes.get(STABILIZED)
        if self.stabilized is None or stored is None:
            return StoredLabels(group)
        if f"{STABILIZED}_scale" not in group:
            self._say(_Misfit("not finished", f"stabilized targets of {video_id} are not finished"))
            return StoredLabels(group)
        problem = self.stabilized.difference(stored)
        if problem:
            raise UserError(
                f"stabilized targets of {video_id} in the teacher cache {self.cache_root} do not fit: {problem};"
                " set loss.target, loss.target_radius, loss.target_sigma and flow.name like the cache, or use"
                " another cache"
            )
        return StoredLabels(group, (RAW, STABILIZED))

    def _read(self, labels: StoredLabels, video_id: str, indices: np.ndarray) -> dict[str, np.ndarray]:
        if indices.min() < 0 or indices.max() >= labels.attributes["source"]["num_frames"]:
            raise _Misfit("other source", f"{video_id} has frames that were not cached")
        raw = labels.read(RAW, indices)
        if raw is None:
            raise _Misfit("not finished", f"{video_id} is not finished")
        maps = {"teacher_depth": raw.pop("depth"), **raw}
        if "static" in maps and not self._wants_masks(labels.attributes, video_id):
            del maps["static"]
        if "flow_bwd" in maps:
            maps["flow_bwd"] = np.moveaxis(maps["flow_bwd"].astype(np.float32), 1, -1)
        if STABILIZED in labels.arrays:
            stabilized = labels.read(STABILIZED, indices)
            if stabilized is None:
                self._say(_Misfit("not finished", f"stabilized targets of {video_id} are not finished"))
            else:
                maps["stabilized_depth"] = stabilized.pop(STABILIZED)
                if "static" not in maps and stabilized and self._wants_masks(labels.attributes[STABILIZED], video_id):
                    maps["static"] = stabilized[TARGET_STATIC]
        return maps

    def _wants_masks(self, about: Mapping[str, Any], video_id: str) -> bool:
        """Tell whether static masks are those that are wanted, by the attributes that say how they were found."""
        stored = about.get(STATIC_MASKS)
        problem = "" if self.static is None or stored is None else self.static.difference(stored)
        if problem:
            self._say(_Misfit("other static masks", f"{problem}, for {video_id}"), "masks are estimated")
        return not problem

    def _say(self, misfit: _Misfit, instead: str = "the live teacher labels") -> None:
        if self._warned.first(self._KINDS.index(misfit.kind)):
            log.warning(
                "teacher cache %s does not fit (%s): %s instead; further cases are not named",
                self.cache_root,
                misfit,
                instead,
            )
