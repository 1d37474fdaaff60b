"""The color of surfaces: texture, light, shadow, gloss, mirroring floors, glass, haze and sky."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.geometry import Array, Solids, cast_rays, rotate, unit_normals
from videomamba_depth.data.synthetic.rotations import Matrix
from videomamba_depth.data.synthetic.scene import Scene
from videomamba_depth.data.synthetic.textures import TILE_PX

# A point is in shadow when the light's ray to it ends earlier than this share of the way.
_SHADOW_SHARE = np.float32(0.999)
_FLOOR = 3  # face +y of the shell
_FLOOR_TOLERANCE_M = 0.05  # what the shell shows above this height is sky, where there is one


@dataclass(frozen=True)
class View:
    """A camera at one time: intrinsics K [3,3] in px (pixel centers at integers) and camera-to-world [4,4]."""

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
class Surface:
    """What rays hit, [n] each: solid, face (0..5), texture, and the cosine between ray and normal."""

    solid: NDArray[np.int32]
    face: NDArray[np.int32]
    texture: NDArray[np.int32]
    facing: Array


def color_of(
    scene: Scene, solids: Solids, view: View, rays: Array, depth: Array, solid: NDArray[np.int32], bounces: int = 1
) -> tuple[Array, NDArray[np.int32]]:
    """Return linear RGB [n,3] and a key [n] that changes where face, solid or shadow changes.

    bounces: how often a ray is followed further, through glass or off a mirroring floor.
    """
    appearance = scene.appearance
    if appearance is None or appearance.zenith is None:
        return _surface_color(scene, solids, view, rays, depth, solid, bounces)
    in_sky = (solid == 0) & (view.origin[1] + depth * rays[1] < -_FLOOR_TOLERANCE_M)
    land, sky = np.flatnonzero(~in_sky), np.flatnonzero(in_sky)
    color, key = np.empty((len(depth), 3), np.float32), np.full(len(depth), -1, np.int32)
    color[sky] = appearance.sky(scene.atlas, rays[:, sky])
    some = rays[:, land]
    near, key[land] = _surface_color(scene, solids, view, some, depth[land], solid[land], bounces)
    color[land] = appearance.through_haze(near, depth[land] * np.sqrt(_dot(some, some)))
    return color, key


def _surface_color(
    scene: Scene, solids: Solids, view: View, rays: Array, depth: Array, solid: NDArray[np.int32], bounces: int
) -> tuple[Array, NDArray[np.int32]]:
    """Do what `color_of` does, for rays that end on a surface."""
    color, key, surface = _shade(scene, solids, view, rays, depth, solid)
    if bounces and scene.finish is not None:
        _reflect_floor(scene, solids, view, rays, color, surface)
        _through_glass(scene, solids, view, rays, color, surface)
    return color, key


def _reflect_floor(scene: Scene, solids: Solids, view: View, rays: Array, color: Array, surface: Surface) -> None:
    """Mix into color [n,3] what polished and wet floors mirror; the mirrored camera sees it through the floor."""
    assert scene.finish is not None
    mirror = scene.finish.mirror[surface.texture] * ((surface.solid == 0) & (surface.face == _FLOOR))
    chosen = np.flatnonzero(mirror > 0)
    if chosen.size == 0:
        return
    # Fresnel's growth toward grazing angles, by Schlick's formula.
    share = mirror[chosen] + (1 - mirror[chosen]) * np.float32(0.7) * (1 - surface.facing[chosen]) ** 5
    mirrored = View(view.intrinsics, view.camera_to_world * np.array([1, -1, 1, 1])[:, None])
    turned = rays[:, chosen] * np.array([[1], [-1], [1]], np.float32)
    reached, hit = cast_rays(solids, mirrored.origin, turned)
    seen, _ = color_of(scene, solids, mirrored, turned, reached, hit, 0)
    color[chosen] += share[:, None] * (seen - color[chosen])


def _through_glass(scene: Scene, solids: Solids, view: View, rays: Array, color: Array, surface: Surface) -> None:
    """Mix into color [n,3] what lies behind glass. Depth stays that of the glass."""
    assert scene.finish is not None
    clear = scene.finish.clear[surface.texture]
    chosen = np.flatnonzero(clear > 0)
    if chosen.size == 0:
        return
    glass = scene.finish.clear[scene.texture_of[:, 0]] > 0
    reached, hit = cast_rays(solids, view.origin, rays[:, chosen], glass)
    seen, _ = color_of(scene, solids, view, rays[:, chosen], reached, hit, 0)
    share = (clear[chosen] * (1 - (1 - surface.facing[chosen]) ** 5))[:, None]
    color[chosen] += share * (seen - color[chosen])


def _shade(
    scene: Scene, solids: Solids, view: View, rays: Array, depth: Array, solid: NDArray[np.int32]
) -> tuple[Array, NDArray[np.int32], Surface]:
    """Return the light that surfaces scatter and shine [n,3], the key of `color_of` [n], and what they are."""
    points = view.origin[:, None] + depth * rays
    matrix = np.ascontiguousarray(solids.to_unit.reshape(-1, 9).T)[:, solid].reshape(3, 3, -1)
    offset = points - np.ascontiguousarray(solids.center.T)[:, solid]
    unit = matrix[:, 0] * offset[0] + matrix[:, 1] * offset[1] + matrix[:, 2] * offset[2]
    unit_normal = unit_normals(solids.shape[solid], unit)
    normal = matrix[0] * unit_normal[0] + matrix[1] * unit_normal[1] + matrix[2] * unit_normal[2]
    normal /= np.sqrt(_dot(normal, normal))
    facing = _dot(normal, rays) / np.sqrt(_dot(rays, rays))
    normal *= -np.sign(facing)  # the shell is seen from inside

    half = np.ascontiguousarray(solids.half.T)[:, solid]
    face, albedo, texture = _albedo(scene, view, unit * half, unit_normal, solid, depth, np.abs(facing))
    emissive = scene.emissive[texture]
    sky, direct, lit = _illumination(scene, solids, points, normal)
    occlusion = _ambient_occlusion(solid, points, unit, half)
    if scene.appearance is None:
        color = np.where(emissive, np.float32(1), (sky + direct) * occlusion)[:, None] * albedo
    else:
        light = sky[:, None] * scene.appearance.ambient + direct[:, None] * scene.appearance.direct
        color = np.where(emissive[:, None], np.float32(1), light * occlusion[:, None]) * albedo
    surface = Surface(solid, face, texture, np.abs(facing))
    if scene.finish is not None and scene.appearance is not None:
        gleam = _highlight(scene, points, normal, rays, texture) * lit
        color += gleam[:, None] * scene.appearance.direct
    return color, (solid * 6 + face) * 2 + lit, surface


def _highlight(scene: Scene, points: Array, normal: Array, rays: Array, texture: NDArray[np.int32]) -> Array:
    """Return the lamp's reflection on glossy surfaces [n]. Source: Blinn, "Models of Light Reflection" (1977)."""
    assert scene.finish is not None
    to_light = scene.light.position[:, None] - points
    halfway = (to_light / np.sqrt(_dot(to_light, to_light)) - rays / np.sqrt(_dot(rays, rays))).astype(np.float32)
    cosine = np.maximum(_dot(halfway, normal), 0) / np.sqrt(np.maximum(_dot(halfway, halfway), np.float32(1e-12)))
    return scene.finish.specular[texture] * cosine ** scene.finish.exponent[texture] * np.float32(scene.light.strength)


def _albedo(
    scene: Scene, view: View, local_m: Array, unit_normal: Array, solid: NDArray[np.int32], depth: Array, facing: Array
) -> tuple[NDArray[np.int32], Array, NDArray[np.int32]]:
    """Look the texture up in the object's own coordinates; return face [n] (0..5), linear RGB [n,3], texture [n]."""
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
    color = scene.atlas.sample(texture, first / tile_m + 0.37, second / tile_m + 0.71, level)
    if scene.appearance is not None:
        # Fine detail of a scale of its own, which the few texels of a tile seen from near do not have.
        number, strength = scene.appearance.grain
        grain = np.full(texture.shape, number, np.int32)
        fine = np.float32(6.7) / np.sqrt(tile_m)
        detail = scene.atlas.sample(
            grain, first * fine, second * fine, np.log2(np.maximum(footprint * TILE_PX * fine, 1e-3))
        )
        color = color * (1 + np.float32(strength) * (detail[:, :1] - np.float32(0.5)))
    return face, color, texture


def _illumination(scene: Scene, solids: Solids, points: Array, normal: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return ambient and Lambertian light [n] each, and whether the lamp or sun reaches the point [n]."""
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
    return sky, lit * lambert * np.float32(light.strength) * fall_off, lit


def _ambient_occlusion(solid: NDArray[np.int32], points: Array, unit: Array, half: Array) -> Array:
    """Darken the shell's inner corners and whatever is close above the floor [n]."""
    # The shell's point lies on the nearest of its three pairs of faces: the middle distance is that to the corner. In
    # float32 a grazing ray ends meters outside of a shell of hundreds.
    x, y, z = half * (1 - np.abs(unit))
    corner = np.maximum(np.minimum(x, y), np.minimum(np.maximum(x, y), z)).clip(0)
    above_floor = np.maximum(-points[1], 0)
    gap = np.where(solid == 0, corner, above_floor + np.float32(0.02))
    return 1 - np.float32(0.35) * np.exp(-gap / np.float32(0.2))


def _dot(a: Array, b: Array) -> Array:
    """Return the inner products [n] of two sets of vectors [3,n]."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
