"""Depth as a Zarr group."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from videomamba_depth.streaming.depth_frame import DepthFrame, to_storage
from videomamba_depth.utils.atomic import disk_errors, sync_tree
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.extras import require

_CHUNK_BYTES = 16 * 2**20


def require_zarr() -> None:
    """Raise UserError where Zarr is not installed."""
    require("zarr", "raw=zarr")


class ZarrSink:
    """A Zarr v3 group with `depth [F, h, w]`, `frame_index [F]` and `pts [F]`, chunked by frames, compressed.

    Its attributes are `depth_kind`, `time_base` (seconds per unit of `pts`) and `num_frames`, which is raised after
    every chunk: what a kill leaves is whole up to there.

    Args:
        dtype: "float16" or "float32" of the stored depth.
        chunk_frames: frames per chunk, at most.
    """

    def __init__(self, path: Path, kind: DepthKind, dtype: str = "float16", chunk_frames: int = 16) -> None:
        self.path, self._kind, self._dtype, self._chunk_frames = path, kind, np.dtype(dtype), chunk_frames
        self._group: Any = None
        self._pending: list[DepthFrame] = []
        self._num_frames = 0

    def write(self, frame: DepthFrame) -> None:
        """Append one frame."""
        with disk_errors(self.path):
            if self._group is None:
                self._create(frame)
            depth = to_storage(frame.depth, self._dtype)
            no_picture = np.empty((0, 0, 3), np.uint8)
            self._pending.append(DepthFrame(frame.index, frame.pts, frame.time_base, no_picture, depth))
            if len(self._pending) >= self._group["depth"].chunks[0]:
                self._flush()

    def close(self) -> None:
        """Write the last, shorter chunk, and flush all to the disk."""
        with disk_errors(self.path):
            if self._pending:
                self._flush()
            if self._group is not None:
                sync_tree(self.path)

    def files(self) -> Iterable[Path]:
        """Return the files that were written; chunks of nothing but zeros have none."""
        if self._group is None:
            return
        yield self.path / "zarr.json"
        for name, array in self._group.arrays():
            yield self.path / name / "zarr.json"
            for chunk in np.ndindex(array.cdata_shape):
                yield self.path / name / array.metadata.encode_chunk_key(chunk)

    def _create(self, frame: DepthFrame) -> None:
        attributes = {"depth_kind": self._kind.value, "time_base": str(frame.time_base), "num_frames": 0}
        self._group = require("zarr").create_group(self.path, zarr_format=3, attributes=attributes)
        height, width = frame.depth.shape
        per_chunk = max(1, min(self._chunk_frames, _CHUNK_BYTES // (frame.depth.size * self._dtype.itemsize)))
        options: dict[str, Any] = {"compressors": require("zarr.codecs").ZstdCodec(level=1)}
        self._group.create_array(
            "depth", shape=(0, height, width), chunks=(per_chunk, height, width), dtype=self._dtype, **options
        )
        for name in ("frame_index", "pts"):
            self._group.create_array(name, shape=(0,), chunks=(4096,), dtype=np.int64, **options)

    def _flush(self) -> None:
        start, end = self._num_frames, self._num_frames + len(self._pending)
        columns = {
            "depth": np.stack([frame.depth for frame in self._pending]),
            "frame_index": np.array([frame.index for frame in self._pending]),
            "pts": np.array([frame.pts for frame in self._pending]),
        }
        for name, values in columns.items():
            array = self._group[name]
            array.resize((end, *array.shape[1:]))
            array[start:end] = values
        self._group.attrs["num_frames"] = self._num_frames = end
        self._pending = []
