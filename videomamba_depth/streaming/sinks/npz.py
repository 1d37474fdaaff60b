"""Depth as shards of arrays."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from videomamba_depth.streaming.depth_frame import DepthFrame, to_storage
from videomamba_depth.utils.atomic import replacing
from videomamba_depth.utils.depth_kind import DepthKind

_SHARD_BYTES = 64 * 2**20  # a shard holds fewer frames than asked for rather than more memory than this


class NpzSink:
    """Shards `depth_000000.npz` of up to `shard_frames` frames, named after their first frame.

    Each holds `depth [n, h, w]`, `frame_index [n]`, `pts [n]`, `timestamp_s [n]`, `time_base [2]` (numerator and
    denominator), `depth_kind` and `scale` (depth in the unit of its kind = `depth · scale`; 1 here). Shards are
    written atomically; a kill loses the frames of the one in hand.

    Args:
        dtype: "float16" or "float32" of the stored depth.
    """

    def __init__(self, folder: Path, kind: DepthKind, dtype: str = "float16", shard_frames: int = 64) -> None:
        self.folder, self._kind, self._dtype, self._shard_frames = folder, kind, np.dtype(dtype), shard_frames
        self._depth = np.empty((0, 0, 0), self._dtype)  # one shard, allocated at the first frame
        self._index: list[int] = []
        self._shards = array("q")  # the first frame of each
        self._pts: list[int] = []
        self._time_base = Fraction(1)
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, frame: DepthFrame) -> None:
        """Append one frame."""
        if not self._depth.size:
            frame_bytes = max(1, frame.depth.size * self._dtype.itemsize)
            full = max(1, min(self._shard_frames, _SHARD_BYTES // frame_bytes))
            self._depth = np.empty((full, *frame.depth.shape), self._dtype)
        self._depth[len(self._index)] = to_storage(frame.depth, self._dtype)
        self._index.append(frame.index)
        self._pts.append(frame.pts)
        self._time_base = frame.time_base
        if len(self._index) == len(self._depth):
            self._flush()

    def close(self) -> None:
        """Write the last, shorter shard."""
        if self._index:
            self._flush()

    def files(self) -> Iterable[Path]:
        """Return the files that were written."""
        return (self._path(first) for first in self._shards)

    def _path(self, first: int) -> Path:
        return self.folder / f"depth_{first:06d}.npz"

    def _flush(self) -> None:
        path = self._path(self._index[0])
        base = self._time_base
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                depth=self._depth[: len(self._index)],
                frame_index=np.array(self._index, np.int64),
                pts=np.array(self._pts, np.int64),
                timestamp_s=np.array([pts * base.numerator / base.denominator for pts in self._pts]),
                time_base=np.array([base.numerator, base.denominator], np.int64),
                depth_kind=np.array(self._kind.value),
                scale=np.array(1.0),
            )
        self._shards.append(self._index[0])
        self._index, self._pts = [], []
