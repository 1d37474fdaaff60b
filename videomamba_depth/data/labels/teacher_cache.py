"""Write and read the teacher's labels on disk: Zarr v3, one group per video; `cache_format` describes the layout."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from videomamba_depth.data.clip import SharedFlags
from videomamba_depth.data.labels.cache_format import (
    RAW,
    STABILIZED,
    LabelError,
    StorageLayout,
    TeacherKey,
    chunk_rows,
    content_difference,
    create_bookkeeping,
    create_maps,
    group_attributes,
    group_difference,
    group_name,
    join_path,
    local_folder,
    read_chunk,
    scaled,
    source_unchanged,
    store_chunk,
)
from videomamba_depth.data.labels.stabilized_cache import StabilizeKey
from videomamba_depth.data.video.find import VideoSource
from videomamba_depth.data.video.info import VideoInfo
from videomamba_depth.utils.atomic import disk_errors, sync_tree
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

    Raises:
        UserError: the group exists and was made with another teacher, source or layout (the line names the field), or
            it cannot be read or written.
    """

    def __init__(
        self, cache_root: str | Path, source: VideoSource, info: VideoInfo, key: TeacherKey, layout: StorageLayout
    ) -> None:
        self.layout, self.num_frames = layout, info.num_frames
        self.num_chunks = -(-info.num_frames // layout.chunk_frames)
        self._folder = local_folder(cache_root, group_name(source.video_id))
        try:
            self._group = self._open_group(str(cache_root), source, info, key)
            self._create_arrays(info)
            self._scales: np.ndarray = self._group["chunk_scale"][:]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # Attributes that make no sense show as whatever reading them raises.
            reason = " ".join(str(error).split())
            if not isinstance(error, OSError | ValueError):
                reason = f"its metadata are damaged ({error!r}); delete the group {group_name(source.video_id)}"
            raise UserError(f"cannot write {source.video_id} to the teacher cache {cache_root}: {reason}") from error

    def missing_chunks(self) -> list[int]:
        """Return the chunks still to be written, ascending."""
        return [int(chunk) for chunk in np.flatnonzero(self._scales == 0)]

    def chunk_range(self, chunk: int) -> tuple[int, int]:
        """Return the frames [start, stop) of a chunk."""
        rows = chunk_rows(chunk, self.layout.chunk_frames, self.num_frames)
        return rows.start, rows.stop

    def write_chunk(
        self,
        chunk: int,
        depth: np.ndarray,
        flow_bwd: np.ndarray | None = None,
        static: np.ndarray | None = None,
    ) -> None:
        """Store a whole chunk and mark it complete, in this order.

        Args:
            chunk: number of the chunk.
            depth: float32 [K,h,w] with K the chunk's frames.
            flow_bwd: float32 [K,2,h,w], exactly when the layout has flow.
            static: bool [K,h,w], exactly when the layout has it.

        Raises:
            ValueError: a wrong shape or a missing map.
            LabelError: values that are not finite.
            UserError: the disk is full or cannot be written.
        """
        start, stop = self.chunk_range(chunk)
        maps = {"depth": depth, "flow_bwd": flow_bwd, "static": static}
        for name, shape in self.layout.map_shapes(stop - start).items():
            got = None if maps[name] is None else maps[name].shape  # type: ignore[union-attr]
            if got != shape:
                raise ValueError(f"{name} of chunk {chunk} must have shape {shape}; got {got}")
        for name, values in (("depth", depth), ("optical flow", flow_bwd)):
            if values is not None and not np.isfinite(values).all():
                raise LabelError(f"the teacher's {name} of frames {start} to {stop - 1} is not finite")
        scale, half = scaled(depth)
        stored = {"depth": half}
        if flow_bwd is not None and self.layout.has_flow:
            stored["flow_bwd"] = np.clip(flow_bwd, -6e4, 6e4).astype(np.float16)
        if static is not None and self.layout.has_static:
            stored["static"] = static
        with disk_errors("the teacher cache"):
            store_chunk(self._group, RAW, chunk, scale, stored, self._folder)
        self._scales[chunk] = scale

    def _open_group(self, root: str, source: VideoSource, info: VideoInfo, key: TeacherKey) -> Any:
        name = group_name(source.video_id)
        store = join_path(root, name)
        try:
            group = zarr.open_group(store, mode="r+", zarr_format=3)
        except (FileNotFoundError, KeyError):
            attributes = group_attributes(source, info, key, self.layout)
            group = zarr.create_group(store, zarr_format=3, attributes=attributes)
        if "://" not in root:
            for left_over in Path(root, name).rglob("*.partial"):  # of a write that was killed
                left_over.unlink(missing_ok=True)
        stored = dict(group.attrs)
        problem = group_difference(stored, key) or content_difference(stored, source, info, self.layout)
        if problem:
            raise UserError(
                f"teacher cache {root} does not fit {source.video_id}: {problem}; "
                "use another cache folder, or delete this one to make it anew"
            )
        return group

    def _create_arrays(self, info: VideoInfo) -> None:
        """Create what a killed run has not created yet.

        Raises:
            ValueError: an array is gone, or the frames' times are not those that are stored.
        """
        complete = "chunk_scale" in self._group
        frames, shapes = self.num_frames, self.layout.map_shapes(self.num_frames)
        gone = [name for name in (*shapes, "timestamps_s") if name not in self._group]
        if complete and gone:
            raise ValueError(f"array {gone[0]} is missing; delete this one to make it anew")
        for name, shape in shapes.items():
            create_maps(self._group, name, shape, self.layout.chunk_frames)
        if not complete:
            times = self._group.require_array("timestamps_s", shape=(frames,), chunks=(frames,), dtype="float64")
            times[:] = info.timestamps_s
        elif not np.array_equal(self._group["timestamps_s"][:], np.asarray(info.timestamps_s, np.float64)):
            raise ValueError("timestamps_s are not those of the video; delete this one to make it anew")
        create_bookkeeping(self._group, RAW, self.num_chunks)
        if not complete and self._folder is not None:
            sync_tree(self._folder)


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
    """

    _KINDS = ("no cache", "no entry", "other teacher", "other source", "not finished", "unreadable", "other size")

    def __init__(self, cache_root: str | Path, key: TeacherKey, stabilized: StabilizeKey | None = None) -> None:
        self.cache_root, self.key, self.stabilized = str(cache_root), key, stabilized
        self._warned = SharedFlags(len(self._KINDS))
        self._open: dict[str, Any] = {}
        self._verified: set[tuple[str, str, int]] = set()  # (video, kind, chunk) that this process has compared
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
            "teacher_depth" float32 [N,h,w]; "flow_bwd" float32 [N,h,w,2] and "static" bool [N,h,w] where stored. Both
            refer to the frame before in the video, whatever `frame_indices` says. "stabilized_depth" float32 [N,h,w]
            where it is asked for and finished. None where the cache does not fit.

        Raises:
            UserError: there are stabilized targets, but of other parameters.
        """
        try:
            arrays = self._arrays(video_id, path)
            stored = (arrays["depth"].shape[1], arrays["depth"].shape[2])
            if size is not None and stored != size:
                problem = f"{video_id} was labelled at {stored} (height, width) px, training resizes it to {size}"
                raise _Misfit("other size", problem)
            return self._read(arrays, video_id, np.asarray(frame_indices, np.int64))
        except UserError:
            raise
        except _Misfit as misfit:
            self._say(misfit)
        except Exception as error:  # damage shows as whatever Zarr and its codecs raise
            self._say(_Misfit("unreadable", f"{video_id} cannot be read ({' '.join(str(error).split())})"))
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_verified": set(), "_owner": -1}

    def _arrays(self, video_id: str, path: str | None) -> dict[str, Any]:
        if self._owner != os.getpid():  # handles do not cross a fork
            self._open, self._verified, self._owner = {}, set(), os.getpid()
        if video_id not in self._open:
            if len(self._open) >= _OPEN_VIDEOS:
                self._open.clear()
            try:
                self._open[video_id] = self._open_video(video_id, path)
            except _Misfit as misfit:  # remembered: finding out may have meant hashing the file
                self._open[video_id] = misfit
        arrays = self._open[video_id]
        if isinstance(arrays, _Misfit):
            raise arrays
        return arrays

    def _open_video(self, video_id: str, path: str | None) -> dict[str, Any]:
        if "://" not in self.cache_root and not Path(os.path.expanduser(self.cache_root)).is_dir():
            raise _Misfit("no cache", f"there is no folder {self.cache_root}")
        try:
            group = zarr.open_group(join_path(self.cache_root, group_name(video_id)), mode="r", zarr_format=3)
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
        names = ["depth", "flow_bwd", "static", "timestamps_s"]
        stored = attributes.get("stabilised")
        if self.stabilized is not None and stored is not None and "stabilised_scale" in group:
            problem = self.stabilized.difference(stored)
            if problem:
                raise UserError(
                    f"stabilized targets of {video_id} in the teacher cache {self.cache_root} do not fit: {problem};"
                    " set loss.target, loss.target_radius, loss.target_sigma and flow.name like the cache, or use"
                    " another cache"
                )
            names.append("stabilised")
        elif self.stabilized is not None and stored is not None:
            self._say(_Misfit("not finished", f"stabilized targets of {video_id} are not finished"))
        arrays = {name: group[name] for name in names if name in group}
        for kind in (RAW, *([STABILIZED] if "stabilised" in arrays else [])):
            arrays |= {f"{kind}_{name}": group[f"{kind}_{name}"][:] for name in ("scale", "digest")}
        return {**arrays, "attributes": attributes}

    def _read(self, arrays: dict[str, Any], video_id: str, indices: np.ndarray) -> dict[str, np.ndarray]:
        if indices.min() < 0 or indices.max() >= arrays["attributes"]["source"]["num_frames"]:
            raise _Misfit("other source", f"{video_id} has frames that were not cached")
        raw = self._rows(arrays, video_id, RAW, indices)
        if raw is None:
            raise _Misfit("not finished", f"{video_id} is not finished")
        maps = {"teacher_depth": raw["depth"]}
        if "flow_bwd" in raw:
            maps["flow_bwd"] = np.moveaxis(raw["flow_bwd"].astype(np.float32), 1, -1)
        if "static" in raw:
            maps["static"] = raw["static"]
        if "stabilised" in arrays:
            stabilized = self._rows(arrays, video_id, STABILIZED, indices)
            if stabilized is None:
                self._say(_Misfit("not finished", f"stabilized targets of {video_id} are not finished"))
            else:
                maps["stabilized_depth"] = stabilized["stabilised"]
        return maps

    def _rows(
        self, arrays: dict[str, Any], video_id: str, kind: str, indices: np.ndarray
    ) -> dict[str, np.ndarray] | None:
        """Return a kind's maps of some frames, depth in its unit; None where one is not finished.

        Zarr decodes whole chunks anyway; a process compares each with its digest when it reads it first.
        """
        chunk_frames, scales = arrays["attributes"]["storage"]["chunk_frames"], arrays[f"{kind}_scale"]
        chunks, where = np.unique(indices // chunk_frames, return_inverse=True)
        if (scales[chunks] == 0).any():
            return None
        parts = []
        for chunk in chunks.tolist():
            known = (video_id, kind, chunk)
            parts.append(read_chunk(arrays, arrays["attributes"], kind, chunk, verify=known not in self._verified))
            self._verified.add(known)
        first = np.cumsum([0, *(len(next(iter(part.values()))) for part in parts)])[where]
        rows = {name: np.concatenate([p[name] for p in parts])[first + indices % chunk_frames] for name in parts[0]}
        depth = next(iter(rows))
        return rows | {depth: rows[depth].astype(np.float32) * scales[indices // chunk_frames][:, None, None]}

    def _say(self, misfit: _Misfit) -> None:
        if self._warned.first(self._KINDS.index(misfit.kind)):
            log.warning(
                "teacher cache %s does not fit (%s): the live teacher labels instead; further cases are not named",
                self.cache_root,
                misfit,
            )
