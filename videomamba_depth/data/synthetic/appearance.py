"""How a scene looks beyond white light on matt surfaces: colored light, sky, haze, gloss, wet floors and glass."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.textures import TextureAtlas

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Appearance:
    """Colors are linear RGB [3].

    direct, ambient: colors of the lamp or sun and of the light from everywhere; zenith, horizon: of the sky, None
    indoors (then the shell shows its textures); cloud: texture and how much of the sky it covers, 0 to 1; haze_m:
    distance at which 63 % is haze, inf for none; grain: texture of the fine detail that multiplies every surface, and
    its strength; sun: unit vector toward it [3].
    """

    direct: Array
    ambient: Array
    zenith: Array | None
    horizon: Array
    cloud: tuple[int, float]
    haze_m: float
    grain: tuple[int, float]
    sun: Array

    def sky(self, atlas: TextureAtlas, rays: Array) -> Array:
        """Return the color [n,3] of the sky in the direction of rays [3,n], y down."""
        assert self.zenith is not None
        ray = rays / np.sqrt((rays * rays).sum(0))
        up = np.clip(-ray[1], 0, 1)
        color = self.horizon + (self.zenith - self.horizon) * np.sqrt(up)[:, None]
        plane = np.maximum(up, np.float32(0.04))
        texture = np.full(up.shape, self.cloud[0], np.int32)
        level = np.float32(1) - np.log2(plane)  # clouds near the horizon are far and small
        puffs = atlas.sample(texture, 0.13 * ray[0] / plane, 0.13 * ray[2] / plane, level)[:, :1]
        cover = np.clip((puffs - 0.75 + 0.5 * np.float32(self.cloud[1])) * 5, 0, 1) * np.float32(self.cloud[1] > 0)
        white = self.direct * np.float32(0.75) + self.ambient * np.float32(0.25)
        color = color + cover * np.clip(up / 0.15, 0, 1)[:, None] * (white - color)
        glow = np.clip(self.sun @ ray, 0, 1)
        return color + (0.35 * glow**12 + 4 * glow**900)[:, None] * self.direct

    def through_haze(self, color: Array, distance: Array) -> Array:
        """Mix color [n,3] with the horizon's by distance [n] in m."""
        if np.isinf(self.haze_m):
            return color
        clear = np.exp(-distance / np.float32(self.haze_m))[:, None]
        return self.horizon + clear * (color - self.horizon)


@dataclass(frozen=True)
class Finish:
    """What surfaces do besides scattering, per texture [m]: specular strength and exponent; mirror: share of the light
    that a floor at y = 0 reflects at normal incidence; clear: share that passes through a solid (glass)."""

    specular: Array
    exponent: Array
    mirror: Array
    clear: Array
