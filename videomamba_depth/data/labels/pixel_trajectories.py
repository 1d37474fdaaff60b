"""Where the pixels of one frame are in the frames around it, and what depth they have there."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Masks = NDArray[np.bool_]

FEATHER_PX = 5
"""Side of the window over which trust falls to 0 at the border of a trusted region, px. A hard border would show in the
result as an edge, since the two sides of it are smoothed over windows of different length."""


class ClipTracks:
    """A clip's depth with the flow between its neighbors; follows pixels over several frames by chaining that flow.

    Args:
        depth: [N,H,W] float32, any unit; not finite where undefined.
        flow_fwd, flow_bwd: [N,2,H,W] float32 px, to the next frame and to the one before.
        trusted_fwd, trusted_bwd: [N,H,W] bool, where that flow can be trusted; unread at the end without a neighbor.
    """

    def __init__(
        self, depth: Floats, flow_fwd: Floats, flow_bwd: Floats, trusted_fwd: Masks, trusted_bwd: Masks
    ) -> None:
        self.depth: Floats = depth.astype(np.float32)
        valid = np.isfinite(self.depth)
        self._all_valid = bool(valid.all())
        # Per direction of time [N,H,W,4]: depth, the flow (x, y) and the trust in it, from 0 to 1; read in one go.
        self._maps = {
            1: _pack(self.depth, flow_fwd, trusted_fwd & valid),
            -1: _pack(self.depth, flow_bwd, trusted_bwd & valid),
        }

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height and width in px."""
        num_frames, height, width = self.depth.shape
        return num_frames, height, width

    def every(self, step: int) -> Floats:
        """Return the depth of every n-th row and column."""
        return self.depth[:, ::step, ::step]

    def largest(self) -> float:
        """Return the largest magnitude of the depth, 0 where none is defined."""
        return float(np.nanmax(np.abs(self.depth), initial=0))

    def rescale(self, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
        """Replace the depth of every frame t by scale[t] · depth + shift[t]."""
        self.depth = (self.depth * scale[:, None, None] + shift[:, None, None]).astype(np.float32)
        for maps in self._maps.values():
            maps[..., 0] = self.depth

    def follow(self, frame: int, radius: int, grid_step: int = 1) -> tuple[Floats, Floats]:
        """Follow the pixels of `frame` to the frames `frame − radius` to `frame + radius`.

        Args:
            frame: index. radius: ≥ 1, frames. grid_step: follow every n-th row and column only.

        Returns:
            depth [2·radius+1, h, w] found there, bilinear, and trust [2·radius+1, h, w] in it, 0 to 1: the product of
            the trust in every step on the way; 0 beyond the ends of the clip and where depth is undefined. Row `radius`
            is the frame itself, with trust 1 where its depth is defined.
        """
        num_frames, height, width = self.shape
        rows = np.arange(grid_step // 2, height, grid_step)
        columns = np.arange(grid_step // 2, width, grid_step)
        here = np.ix_(rows, columns)
        depth: Floats = np.zeros((2 * radius + 1, len(rows), len(columns)), np.float32)
        trust = np.zeros_like(depth)
        depth[radius], trust[radius] = self.depth[frame][here], 1
        for direction, maps in self._maps.items():
            x, y = (axis.astype(np.float32) for axis in np.meshgrid(columns, rows))
            found, reached = cv2.split(maps[frame][here]), trust[radius]
            for distance in range(1, radius + 1):
                target = frame + direction * distance
                if not 0 <= target < num_frames:
                    break
                x += found[1]
                y += found[2]
                reached = reached * found[3]
                found = cv2.split(cv2.remap(maps[target], x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
                depth[radius + direction * distance] = found[0]
                trust[radius + direction * distance] = reached
        if not self._all_valid:
            undefined = ~np.isfinite(depth)  # also where interpolation touched an undefined value
            depth[undefined] = trust[undefined] = 0
        return depth, trust


def _pack(depth: Floats, flow: Floats, trusted: Masks) -> Floats:
    finite = np.asarray(np.isfinite(flow).all(axis=1))
    if not finite.all():
        flow = np.where(finite[:, None], flow, np.float32(0))
    usable = np.asarray(trusted & finite, dtype=np.float32)
    packed = np.empty((*depth.shape, 4), np.float32)
    for frame, values, (u, v), mask in zip(packed, depth, flow, usable, strict=True):
        share = cv2.blur(mask, (FEATHER_PX, FEATHER_PX), borderType=cv2.BORDER_REPLICATE)
        cv2.merge([values, u, v, np.clip(2 * share - 1, 0, 1) * mask], frame)
    return packed
