"""Render one frame of a scene at one time: depth, which solid each pixel shows, and linear color."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.geometry import Array, Solids, cast_rays
from videomamba_depth.data.synthetic.scene import Scene
from videomamba_depth.data.synthetic.shading import View, color_of

# Four samples of a rotated grid inside a pixel, in px.
_SUBSAMPLES = np.array([[-0.375, -0.125], [0.125, -0.375], [0.375, 0.125], [-0.125, 0.375]], np.float32)


@dataclass(frozen=True)
class Rendering:
    """depth_m: z-depth [h,w]; solid: index of the solid seen [h,w]; linear_rgb: [h,w,3], or None when not asked for."""

    depth_m: Array
    solid: NDArray[np.int32]
    linear_rgb: Array | None


def pixel_grid(height: int, width: int) -> tuple[Array, Array]:
    """Return the pixel centers x, y, each [h·w], row by row."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return x.ravel(), y.ravel()


def render(
    scene: Scene, solids: Solids, view: View, height: int, width: int, *, rgb: bool = True, antialias: bool = True
) -> Rendering:
    """Cast one ray through each pixel center, and four more through each edge pixel for the color."""
    x, y = pixel_grid(height, width)
    rays = view.world_rays(x, y)
    depth, solid = cast_rays(solids, view.origin, rays)
    color = None
    if rgb:
        color, key = color_of(scene, solids, view, rays, depth, solid)
        edges = np.flatnonzero(_edges(key.reshape(height, width)).ravel())
        if antialias and edges.size:
            samples = (_SUBSAMPLES[:, :, None] + np.stack([x[edges], y[edges]])).transpose(1, 0, 2).reshape(2, -1)
            rays = view.world_rays(*samples)
            fine_depth, fine_solid = cast_rays(solids, view.origin, rays)
            fine, _ = color_of(scene, solids, view, rays, fine_depth, fine_solid)
            color[edges] = fine.reshape(len(_SUBSAMPLES), -1, 3).mean(0)
        color = color.reshape(height, width, 3)
    return Rendering(depth.reshape(height, width), solid.reshape(height, width), color)


def _edges(key: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Mark pixels whose right or lower neighbor shows another face or light, and those neighbors."""
    edges = np.zeros(key.shape, bool)
    across, down = key[:, 1:] != key[:, :-1], key[1:] != key[:-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return edges
