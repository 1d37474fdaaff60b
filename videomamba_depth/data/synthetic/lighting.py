"""Light for whole scenes: sun and sky by day, at dusk and in overcast, lamps at night, lamps indoors."""

from dataclasses import replace

import numpy as np

from videomamba_depth.data.synthetic.appearance import Appearance
from videomamba_depth.data.synthetic.materials import Materials
from videomamba_depth.data.synthetic.scene import Light
from videomamba_depth.data.synthetic.stage import Vector
from videomamba_depth.data.synthetic.textures import Array


def _rgb(*values: float) -> Array:
    return np.array(values, np.float32)


def _warm(rng: np.random.Generator) -> Array:
    """Draw a lamp's color, from candle light over white to blue, and at times a colored one."""
    if rng.random() < 0.06:
        return rng.uniform(0.25, 1, 3).astype(np.float32)
    t = np.float32(rng.normal(0.15, 0.3))
    return np.clip(_rgb(1 + 0.3 * t, 1, 1 - 0.9 * t), 0.2, 1.6)


def outdoors(rng: np.random.Generator, materials: Materials, sun_m: float) -> tuple[Light, Appearance]:
    """Draw a sun, a sky and haze; sun_m: distance in m at which the sun is put, inside the shell."""
    kind = str(rng.choice(["clear", "clear", "overcast", "dusk", "night"], p=[0.3, 0.2, 0.25, 0.17, 0.08]))
    elevation = {"clear": rng.uniform(0.4, 1.4), "dusk": rng.uniform(0.08, 0.35)}.get(kind, rng.uniform(0.5, 1.4))
    angle = rng.uniform(-np.pi, np.pi)
    sun = np.array([np.sin(angle) * np.cos(elevation), -np.sin(elevation), np.cos(angle) * np.cos(elevation)])
    shade = np.float32(rng.uniform(0.6, 1.1))
    zenith, horizon, direct, ambient, strength, level = {
        "clear": (_rgb(0.12, 0.28, 0.7), _rgb(0.55, 0.7, 0.95), _rgb(1, 0.95, 0.85), _rgb(0.75, 0.9, 1.2), 1.1, 0.4),
        "overcast": (_rgb(0.7, 0.73, 0.78), _rgb(0.8, 0.8, 0.8), _rgb(1, 1, 1), _rgb(0.95, 1, 1.05), 0.15, 0.75),
        "dusk": (_rgb(0.12, 0.17, 0.4), _rgb(0.9, 0.5, 0.3), _rgb(1.2, 0.65, 0.35), _rgb(0.8, 0.8, 1.1), 0.8, 0.3),
        "night": (_rgb(0.01, 0.012, 0.03), _rgb(0.04, 0.035, 0.05), _rgb(0.5, 0.6, 1), _rgb(0.7, 0.8, 1.2), 0.06, 0.03),
    }[kind]
    tint = np.exp(rng.normal(0, 0.08, 3)).astype(np.float32)
    haze = np.inf if rng.random() < 0.4 else float(np.exp(rng.uniform(np.log(40), np.log(2000))))
    appearance = Appearance(
        direct=direct * tint,
        ambient=ambient,
        zenith=zenith * shade,
        horizon=horizon * shade * tint,
        cloud=(materials.cloud(), float(rng.uniform(0, 1)) if rng.random() < 0.7 else 0.0),
        haze_m=haze,
        grain=(materials.grain(), float(rng.uniform(0.1, 0.9))),
        sun=sun.astype(np.float32),
    )
    strong = strength * rng.uniform(0.7, 1.3)
    light = Light((sun_m * sun).astype(np.float32), strong, np.inf, level * rng.uniform(0.7, 1.3), kind != "overcast")
    if kind == "night":  # a street lamp near the camera
        spot = np.array([rng.normal(0, 4), -rng.uniform(3, 7), rng.normal(0, 4)])
        light = Light(spot.astype(np.float32), rng.uniform(0.5, 1.5), rng.uniform(3, 12), 0.05, True)
        appearance = replace(appearance, direct=_warm(rng), haze_m=haze)
    return light, appearance


def indoors(rng: np.random.Generator, materials: Materials, lamp: Vector) -> tuple[Light, Appearance]:
    """Draw the light of a room with a lamp at a place [3]."""
    dark = rng.random() < 0.15
    strength, ambient = rng.uniform(0.4, 1.4), rng.uniform(0.02, 0.08) if dark else rng.uniform(0.15, 0.75)
    light = Light(lamp.astype(np.float32), strength, rng.uniform(1.5, 8), ambient, rng.random() < 0.85)
    appearance = Appearance(
        direct=_warm(rng),
        ambient=_warm(rng),
        zenith=None,
        horizon=_rgb(0.5, 0.5, 0.5),
        cloud=(0, 0.0),
        haze_m=np.inf,
        grain=(materials.grain(), float(rng.uniform(0.05, 0.7))),
        sun=_rgb(0, -1, 0),
    )
    return light, appearance
