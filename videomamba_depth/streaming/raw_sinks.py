"""Depth as numbers: shards of arrays, or 16-bit pictures."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from videomamba_depth.streaming.frames import DepthFrame
from videomamba_depth.streaming.outputs import disk_error, write_json
from videomamba_depth.utils.depth_kind import DepthKind

_SHARD_BYTES = 64 * 2**20  # a shard holds fewer frames than asked for rather than more memory than this
_HEADROOM = 2.0  # how far above the first frame's largest value relative depth may go before the scale changes


class NpzSink:
    """Shards `depth_000000.npz` of up to `shard_frames` frames, named after their first frame.

    Each holds `depth [n, h, w]`, `frame_index [n]`, `pts [n]`, `timestamp_s [n]`, `time_base [2]` (numerator and
    denominator), `depth_kind` and `scale` (depth in the unit of its kind = `depth · scale`; 1 here). A shard appears
    whole or not at all; a kill loses the frames of the one in hand.

    Args:
        dtype: "float16" or "float32" of the stored depth.
    """

    def __init__(self, folder: Path, kind: DepthKind, dtype: str = "float16", shard_frames: int = 64) -> None:
        self.folder, self._kind, self._dtype, self._shard_frames = folder, kind, np.dtype(dtype), shard_frames
        self._depth: list[np.ndarray] = []
        self._index: list[int] = []
        self._pts: list[int] = []
        self._time_base = Fraction(1)
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, frame: DepthFrame) -> None:
        """Append one frame."""
        self._depth.append(to_storage(frame.depth, self._dtype))
        self._index.append(frame.index)
        self._pts.append(frame.pts)
        self._time_base = frame.time_base
        full = max(1, min(self._shard_frames, _SHARD_BYTES // max(1, self._depth[0].nbytes)))
        if len(self._depth) >= full:
            self._flush()

    def close(self) -> None:
        """Write the last, shorter shard."""
        if self._depth:
            self._flush()

    def _flush(self) -> None:
        path = self.folder / f"depth_{self._index[0]:06d}.npz"
        base = self._time_base
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(
                    file,
                    depth=np.stack(self._depth),
                    frame_index=np.array(self._index, np.int64),
                    pts=np.array(self._pts, np.int64),
                    timestamp_s=np.array([pts * base.numerator / base.denominator for pts in self._pts]),
                    time_base=np.array([base.numerator, base.denominator], np.int64),
                    depth_kind=np.array(self._kind.value),
                    scale=np.array(1.0),
                )
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise disk_error(path, error) from error
        self._depth, self._index, self._pts = [], [], []


class Png16Sink:
    """One 16-bit grey PNG per frame, `000000.png`, and `scale.json`: depth = value · scale.

    The scale is one number for the stream: the largest depth of metric checkpoints over 65535; for relative depth,
    twice the first frame's largest value over 65535. A frame that goes beyond doubles it, for itself and all that
    follow. `scale.json` lists each scale with the first frame that it holds for.

    Args:
        max_depth_m: largest depth that a metric checkpoint gives.
    """

    def __init__(self, folder: Path, kind: DepthKind, max_depth_m: float | None = None) -> None:
        self.folder, self._kind = folder, kind
        self._scales: list[tuple[int, float]] = []
        self._scale = 0.0 if max_depth_m is None else max_depth_m / 65535
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, frame: DepthFrame) -> None:
        """Write one picture."""
        depth = np.nan_to_num(frame.depth, nan=0.0, posinf=0.0, neginf=0.0)
        self._fit_scale(float(depth.max()), frame.index)
        value = np.clip(np.rint(depth / np.float32(self._scale)), 0, 65535).astype(np.uint16)
        write_image(self.folder / f"{frame.index:06d}.png", value, [cv2.IMWRITE_PNG_COMPRESSION, 1])

    def close(self) -> None:
        """Nothing is left to write."""

    def _fit_scale(self, largest: float, index: int) -> None:
        scale = self._scale
        if scale == 0.0 and largest > 0.0:
            scale = _HEADROOM * largest / 65535
        while largest > 65535 * scale > 0:
            scale *= 2
        scale = scale or 1.0 / 65535  # an all-zero first frame
        if not self._scales or scale != self._scales[-1][1]:
            self._scales.append((index, scale))
            formula = "depth = value * scale"
            entries = [{"first_frame": first, "scale": value} for first, value in self._scales]
            about = {"depth_kind": self._kind.value, "formula": formula, "scales": entries}
            write_json(self.folder / "scale.json", about)
        self._scale = scale


def to_storage(depth: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return depth in `dtype`; values beyond float16's range become its largest, not infinite."""
    limit = np.finfo(dtype).max
    return np.clip(depth, -limit, limit).astype(dtype) if dtype == np.float16 else depth.astype(dtype)


def write_image(path: Path, image: np.ndarray, parameters: list[int]) -> None:
    """Write a picture file whole or not at all.

    Raises:
        UserError: the disk refuses.
    """
    _, data = cv2.imencode(path.suffix, image, parameters)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        data.tofile(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from error
