"""Render one frame of a scene at one time: depth, which solid each pixel shows, and linear colour."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.geometry import Array, Solids, cast_rays, rotate, unit_normals
from videomamba_depth.data.synthetic.scene import Matrix, Scene
from videomamba_depth.data.synthetic.textures import TILE_PX

# A point is in shadow when the light's ray to it ends earlier than this share of the way.
_SHADOW_SHARE = np.float32(0.999)
# Four samples of a rotated grid inside a pixel, in px.
_SUBSAMPLES = np.array([[-0.375, -0.125], [0.125, -0.375], [0.375, 0.125], [-0.125, 0.375]], np.float32)


@dataclass(frozen=True)
class View:
    """A camera at one time: intrinsics K [3,3] in px (pixel centres at integers) and camera-to-world [4,4]."""

    intrinsics: Matrix
    camera_to_world: Matrix

    @property
    def origin(self) -> Array:
        return self.camera_to_world[:3, 3].astype(np.float32)

    def camera_rays(self, x: Array, y: Array) -> Array:
        """Return rays [3,n] through pixel positions, in the camera frame, with z = 1: depth is then their length."""
        k = self.intrinsics.astype(np.float32)
        return np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones_like(x)])

    def world_rays(self, x: Array, y: Array) -> Array:
        """Return the same rays [3,n] in the world frame."""
        return rotate(self.camera_to_world[:3, :3].astype(np.float32), self.camera_rays(x, y))


@dataclass(frozen=True)
class Rendering:
    """depth_m: z-depth [h,w]; solid: index of the solid seen [h,w]; linear_rgb: [h,w,3], or None when not asked for."""

    depth_m: Array
    solid: NDArray[np.int32]
    linear_rgb: Array | None


def pixel_grid(height: int, width: int) -> tuple[Array, Array]:
    """Return the pixel centres x, y, each [h·w], row by row."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return x.ravel(), y.ravel()


def render(
    scene: Scene, solids: Solids, view: View, height: int, width: int, *, rgb: bool = True, antialias: bool = True
) -> Rendering:
    """Cast one ray through each pixel centre, and four more through each edge pixel for the colour."""
    x, y = pixel_grid(height, width)
    rays = view.world_rays(x, y)
    depth, solid = cast_rays(solids, view.origin, rays)
    colour = None
    if rgb:
        colour, key = _shade(scene, solids, view, rays, depth, solid)
        edges = np.flatnonzero(_edges(key.reshape(height, width)).ravel())
        if antialias and edges.size:
            samples = (_SUBSAMPLES[:, :, None] + np.stack([x[edges], y[edges]])).transpose(1, 0, 2).reshape(2, -1)
            rays = view.world_rays(*samples)
            fine_depth, fine_solid = cast_rays(solids, view.origin, rays)
            fine, _ = _shade(scene, solids, view, rays, fine_depth, fine_solid)
            colour[edges] = fine.reshape(len(_SUBSAMPLES), -1, 3).mean(0)
        colour = colour.reshape(height, width, 3)
    return Rendering(depth.reshape(height, width), solid.reshape(height, width), colour)


def _edges(key: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Mark pixels whose right or lower neighbour shows another face or light, and those neighbours."""
    edges = np.zeros(key.shape, bool)
    across, down = key[:, 1:] != key[:, :-1], key[1:] != key[:-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return edges


def _shade(
    scene: Scene, solids: Solids, view: View, rays: Array, depth: Array, solid: NDArray[np.int32]
) -> tuple[Array, NDArray[np.int32]]:
    """Return linear RGB [n,3] and a key [n] that changes where face, solid or shadow changes."""
    points = view.origin[:, None] + depth * rays
    matrix = np.ascontiguousarray(solids.to_unit.reshape(-1, 9).T)[:, solid].reshape(3, 3, -1)
    offset = points - np.ascontiguousarray(solids.centre.T)[:, solid]
    unit = matrix[:, 0] * offset[0] + matrix[:, 1] * offset[1] + matrix[:, 2] * offset[2]
    unit_normal = unit_normals(solids.shape[solid], unit)
    normal = matrix[0] * unit_normal[0] + matrix[1] * unit_normal[1] + matrix[2] * unit_normal[2]
    normal /= np.sqrt(_dot(normal, normal))
    facing = _dot(normal, rays) / np.sqrt(_dot(rays, rays))
    normal *= -np.sign(facing)  # the shell is seen from inside

    half = np.ascontiguousarray(solids.half.T)[:, solid]
    face, albedo, emissive = _albedo(scene, view, unit * half, unit_normal, solid, depth, np.abs(facing))
    light, lit = _illumination(scene, solids, points, normal)
    occlusion = _ambient_occlusion(solid, points, unit, half)
    colour = np.where(emissive, np.float32(1), light * occlusion)[:, None] * albedo
    return colour, (solid * 6 + face) * 2 + lit


def _albedo(
    scene: Scene, view: View, local_m: Array, unit_normal: Array, solid: NDArray[np.int32], depth: Array, facing: Array
) -> tuple[NDArray[np.int32], Array, NDArray[np.bool_]]:
    """Look the texture up in the object's own coordinates; return face [n] (0..5), linear RGB [n,3], emissive [n]."""
    axis = np.abs(unit_normal).argmax(0)
    side = np.take_along_axis(unit_normal, axis[None], 0)[0] > 0
    face = (2 * axis + side).astype(np.int32)
    texture = scene.texture_of[solid, face]
    tile_m = scene.tile_m[solid]
    first = np.where(axis == 0, local_m[2], local_m[0])
    second = np.where(axis == 1, local_m[2], local_m[1])
    # The mip level: a pixel's footprint on the surface over a texel, softened at grazing angles where the true
    # footprint is long and thin.
    footprint = depth / np.float32(view.intrinsics[0, 0]) / np.sqrt(np.maximum(facing, np.float32(0.05)))
    level = np.log2(np.maximum(footprint * TILE_PX / tile_m, np.float32(1e-3)))
    colour = scene.atlas.sample(texture, first / tile_m + 0.37, second / tile_m + 0.71, level)
    return face, colour, scene.emissive[texture]


def _illumination(scene: Scene, solids: Solids, points: Array, normal: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Return ambient plus Lambertian light [n], and whether the lamp or sun reaches the point [n]."""
    light = scene.light
    to_light = light.position[:, None] - points
    distance = np.sqrt(_dot(to_light, to_light))
    lambert = _dot(to_light, normal) / distance
    lit = lambert > 0
    if light.casts_shadows:
        candidates = np.flatnonzero(lit)
        reached, _ = cast_rays(solids, light.position, -to_light[:, candidates])
        lit[candidates] = reached > _SHADOW_SHARE
    fall_off = np.float32(1) if np.isinf(light.reach) else 1 / (1 + (distance / np.float32(light.reach)) ** 2)
    sky = np.float32(light.ambient) * (np.float32(0.8) - np.float32(0.2) * normal[1])
    return sky + lit * lambert * np.float32(light.strength) * fall_off, lit


def _ambient_occlusion(solid: NDArray[np.int32], points: Array, unit: Array, half: Array) -> Array:
    """Darken the shell's inner corners and whatever is close above the floor [n]."""
    # The shell's point lies on the nearest of its three pairs of faces: the middle distance is that to the corner.
    x, y, z = half * (1 - np.abs(unit))
    corner = np.maximum(np.minimum(x, y), np.minimum(np.maximum(x, y), z))
    above_floor = np.maximum(-points[1], 0)
    gap = np.where(solid == 0, corner, above_floor + np.float32(0.02))
    return 1 - np.float32(0.35) * np.exp(-gap / np.float32(0.2))


def _dot(a: Array, b: Array) -> Array:
    """Return the inner products [n] of two sets of vectors [3,n]."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
