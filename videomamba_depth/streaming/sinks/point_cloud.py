"""Depth as colored points in space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from videomamba_depth.streaming.depth_frame import DepthFrame
from videomamba_depth.streaming.sinks.images import NumberedFiles
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.intrinsics import camera_matrix

Intrinsics = tuple[float, float, float, float]
"""(fx, fy, cx, cy) in px of the source's frames as displayed; the center of the first pixel lies at (0, 0)."""

_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])
_FARTHEST = 20.0  # relative depth beyond that many medians is left out: near zero, the inverse means nothing


class PointCloudSink(NumberedFiles):
    """Binary PLY files, `000000.ply`: x to the right, y down, z forward, and the pixel's color.

    Metric depth gives meters. Relative depth is an inverse depth up to an unknown scale and shift: z = m / depth, where
    m is the median of the shot's first cloud, so that half of its points lie before z = 1. That has no unit, and as
    the shift is unknown, shapes are bent along z.

    Args:
        every: frames from one cloud to the next, or what chooses with every frame which clouds to write: of it, or of
            earlier ones.
    """

    suffix = ".ply"

    def __init__(
        self,
        folder: Path,
        kind: DepthKind,
        intrinsics: Intrinsics,
        every: int | Callable[[DepthFrame], Sequence[DepthFrame]] = 30,
    ) -> None:
        super().__init__(folder)
        self._kind, self._intrinsics, self._every = kind, intrinsics, every
        self._next_index = 0
        self._unit: float | None = None

    def write(self, frame: DepthFrame) -> None:
        """Write the points of the frames whose turn it is."""
        chosen = self._choose(frame)
        for earlier in chosen:
            if earlier is not frame:
                self._write(earlier)
        if frame.reset:
            self._unit = None
        if any(each is frame for each in chosen):
            self._write(frame)

    def _choose(self, frame: DepthFrame) -> Sequence[DepthFrame]:
        if not isinstance(self._every, int):
            return self._every(frame)
        if frame.index < self._next_index:
            return []
        self._next_index = frame.index + self._every
        return [frame]

    def _write(self, frame: DepthFrame) -> None:
        if self._kind is DepthKind.RELATIVE and self._unit is None:
            depths = frame.depth[usable(frame.depth)]
            self._unit = float(np.median(depths)) if depths.size else None
        points = to_points(frame.rgb, frame.depth, self._intrinsics, self._unit)
        unit = "meter" if self._kind is DepthKind.METRIC else "none, the scale and the shift of 1/z are unknown"
        self.save(frame.index, _ply(points, unit))


def usable(depth: np.ndarray) -> np.ndarray:
    """Tell which values are a depth, positive and finite; bool, shaped like `depth`."""
    return np.isfinite(depth) & (depth > 0)


def to_points(rgb: np.ndarray, depth: np.ndarray, intrinsics: Intrinsics, unit: float | None = None) -> np.ndarray:
    """Return the points of a frame, a structured array `[P]` of `xyz` float32 and `rgb` uint8, P ≤ h·w.

    Pixels without a usable depth are left out.

    Args:
        rgb: uint8 `[H, W, 3]`.
        depth: `[h, w]`, of the same view at any size.
        intrinsics: in px of `rgb`.
        unit: None: `depth` is z. Else it is inverse depth, z = `unit` / depth, and what lies beyond 20 is left out.
    """
    (height, width), (h, w) = rgb.shape[:2], depth.shape
    if (height, width) != (h, w):
        rgb = cv2.resize(rgb, (w, h), interpolation=cv2.INTER_AREA)
    valid = usable(depth)
    z = np.where(valid, depth, 1).astype(np.float32)
    if unit is not None:
        z = np.float32(unit) / z
        valid &= z <= _FARTHEST
    fx, fy, cx, cy = intrinsics
    x = ((np.arange(w) + 0.5) * (width / w) - 0.5 - cx) / fx
    y = ((np.arange(h) + 0.5) * (height / h) - 0.5 - cy) / fy
    points = np.empty(int(valid.sum()), _VERTEX)
    points["xyz"] = np.stack([z * x[None, :], z * y[:, None], z], -1)[valid]
    points["rgb"] = rgb[valid]
    return points


def load_intrinsics(given: Sequence[float] | str) -> Intrinsics:
    """Return (fx, fy, cx, cy) of what `camera_matrix` takes.

    Raises:
        UserError: as there, or focal lengths that are not positive.
    """
    matrix = camera_matrix(given)
    fx, fy, cx, cy = (float(matrix[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2)))
    if min(fx, fy) < 0:
        raise UserError(f"intrinsics must have positive fx and fy; got {given}")
    return fx, fy, cx, cy


def _ply(points: np.ndarray, unit: str) -> bytes:
    axes = [f"property float {name}" for name in "xyz"]
    colors = [f"property uchar {name}" for name in ("red", "green", "blue")]
    head = ["ply", "format binary_little_endian 1.0", f"comment unit: {unit}", f"element vertex {len(points)}"]
    return "\n".join([*head, *axes, *colors, "end_header\n"]).encode("ascii") + points.tobytes()
