"""Things of the street: vehicles, poles, signs, houses, benches, wires. Each returns parts, see stage.Part."""

from collections.abc import Callable

import numpy as np

from videomamba_depth.data.synthetic.cutouts import FENCE
from videomamba_depth.data.synthetic.geometry import BOX, CONE, CYLINDER, ELLIPSOID, PANEL
from videomamba_depth.data.synthetic.materials import Materials
from videomamba_depth.data.synthetic.stage import Part


def car(rng: np.random.Generator, m: Materials) -> list[Part]:
    """Draw a car, a van or a lorry along x."""
    x, h, z = rng.uniform([1.7, 0.33, 0.75], [2.4, 0.45, 0.95])
    body, glass, tire = m.pick("paint"), m.pick("metal"), m.pick("metal")
    tall = rng.random() < 0.3
    cabin = rng.uniform(0.5, 1.2) if tall else rng.uniform(0.24, 0.34)
    at, long = (0.1 * x, 0.85 * x) if tall else (rng.uniform(-0.2, 0.1) * x, x * rng.uniform(0.45, 0.6))
    base = 0.25
    parts = [
        Part(BOX, (0, -base - h, 0), (x, h, z), body, 1.5),
        Part(ELLIPSOID, (-x * 0.8, -base - h * 1.1, 0), (x * 0.32, h * 0.95, z * 0.99), body, 1.5),
        Part(BOX, (at, -base - 2 * h - cabin, 0), (long, cabin, z * 0.9), body if tall else glass, 1.0),
        Part(BOX, (at, -base - 2 * h - 2 * cabin, 0), (long * 0.9, 0.03, z * 0.85), body, 1.0),
    ]
    for side in (-1, 1):
        parts.append(Part(BOX, (side * x, -base - 1.2 * h, 0), (0.02, h * 0.3, z * 0.9), m.pick("paint"), 0.5))
        for end in (-0.6, 0.62):
            spot = (end * x, -0.32, side * z * 0.95)
            parts.append(Part(CYLINDER, spot, (0.32, 0.1, 0.32), tire, 0.3, tilt=(1.5708, 0.0)))
    return parts


def pole(rng: np.random.Generator, m: Materials) -> list[Part]:
    """Draw a lamp post, a mast, a bollard or a column."""
    h, metal = float(np.exp(rng.uniform(np.log(0.8), np.log(8)))), m.pick("metal")
    r = max(0.02, h * rng.uniform(0.006, 0.02))
    parts = [Part(CYLINDER, (0, -h / 2, 0), (r, h / 2, r), metal, 0.5)]
    if h > 3 and rng.random() < 0.7:
        arm = rng.uniform(0.3, 1.2)
        parts.append(Part(CYLINDER, (arm / 2, -h, 0), (r * 0.7, arm / 2, r * 0.7), metal, 0.5, tilt=(0.0, 1.57)))
        parts.append(Part(ELLIPSOID, (arm, -h, 0), (0.25, 0.08, 0.12), m.pick("paint"), 0.3))
    elif h > 1.8:
        parts.append(
            Part(BOX, (0, -h, 0), (rng.uniform(0.15, 0.5), rng.uniform(0.15, 0.4), 0.02), m.pick("print"), 0.6)
        )
    return parts


def cone(rng: np.random.Generator, m: Materials) -> list[Part]:
    return [
        Part(CONE, (0, -0.35, 0), (0.16, 0.33, 0.16), m.pick("paint"), 0.3),
        Part(BOX, (0, -0.02, 0), (0.2, 0.02, 0.2), m.pick("paint"), 0.3),
    ]


def bench(rng: np.random.Generator, m: Materials) -> list[Part]:
    x, wood = rng.uniform(0.6, 1.0), m.pick("wood")
    parts = [Part(BOX, (0, -0.45, 0.1 * i), (x, 0.015, 0.04), wood, 0.5) for i in range(-2, 3)]
    parts += [Part(BOX, (0, -0.6 - 0.12 * i, 0.26), (x, 0.045, 0.015), wood, 0.5) for i in range(3)]
    return parts + [Part(BOX, (s * 0.8 * x, -0.22, 0), (0.03, 0.22, 0.2), m.pick("metal"), 0.5) for s in (-1, 1)]


def bin_(rng: np.random.Generator, m: Materials) -> list[Part]:
    h, r = rng.uniform(0.4, 0.6), rng.uniform(0.2, 0.35)
    shape = int(rng.choice([BOX, CYLINDER]))
    return [
        Part(shape, (0, -h, 0), (r, h, r), m.pick("paint"), 0.6),
        Part(shape, (0, -2 * h - 0.03, 0), (r * 1.05, 0.04, r * 1.05), m.pick("paint"), 0.6),
    ]


def fence(rng: np.random.Generator, m: Materials, long: float) -> list[Part]:
    """Draw a fence along x: panels between posts."""
    h, mask, wood = rng.uniform(0.35, 0.9), int(rng.choice(FENCE)), m.pick(str(rng.choice(["wood", "metal", "paint"])))
    parts = []
    for at in np.arange(-long, long, 2 * h):
        parts.append(Part(PANEL, (at + h, -h, 0), (h, h, 1), wood, 0.5, mask=mask))
        parts.append(Part(BOX, (at, -h * 1.05, 0), (0.04, h * 1.05, 0.04), wood, 0.5))
    return parts


def wires(rng: np.random.Generator, m: Materials, long: float) -> list[Part]:
    """Draw lines above a street along x."""
    metal = m.pick("metal")
    return [
        Part(
            CYLINDER,
            (0, -rng.uniform(4.5, 7.5), rng.normal(0, 1.0)),
            (0.015, long, 0.015),
            metal,
            0.5,
            rng.normal(0, 0.06),
            (0.0, 1.57),
        )
        for _ in range(rng.integers(1, 5))
    ]


def house(rng: np.random.Generator, m: Materials, wide: float) -> list[Part]:
    """Draw a building whose front looks to −z: a box with ledges, a roof, a door, balconies."""
    h, z = float(np.exp(rng.uniform(np.log(1.6), np.log(12)))), rng.uniform(2.5, 6)
    wall, trim = m.facade(), m.pick("wall")
    parts = [Part(BOX, (0, -h, z), (wide, h, z), wall, rng.uniform(2.5, 7))]
    roof = rng.integers(3)
    if roof == 0 and h < 6:
        lean, slope = 0.6, z / np.cos(0.6)
        for side in (-1, 1):
            spot = (0, -2 * h - 0.5 * z * np.tan(lean), z + side * z * 0.5)
            parts.append(
                Part(BOX, spot, (wide * 1.05, 0.08, slope * 0.55), m.pick("rock"), 1.5, tilt=(side * lean, 0.0))
            )
    elif roof == 1:
        parts.append(Part(BOX, (0, -2 * h, z), (wide * 1.03, 0.15, z * 1.05), trim, 1.5))
    for y in np.arange(2.8, 2 * h - 0.5, 3.0):
        if rng.random() < 0.4:
            parts.append(Part(BOX, (0, -y, -0.05), (wide, 0.08, 0.12), trim, 1.0))
        if rng.random() < 0.25:
            at = rng.uniform(-0.6, 0.6) * wide
            parts.append(Part(BOX, (at, -y, -0.45), (1.0, 0.08, 0.5), trim, 1.0))
            parts.append(
                Part(PANEL, (at, -y - 0.5, -0.93), (1.0, 0.5, 1), m.pick("metal"), 0.5, mask=int(rng.choice(FENCE)))
            )
    at = rng.uniform(-0.7, 0.7) * wide
    parts.append(Part(BOX, (at, -1.05, -0.02), (0.5, 1.05, 0.05), m.pick("wood"), 1.0))
    if rng.random() < 0.3:
        parts.append(
            Part(BOX, (at, -2.4, -0.7), (rng.uniform(0.8, wide), 0.04, 0.7), m.pick("cloth"), 0.8, tilt=(-0.25, 0.0))
        )
    return parts


SMALL: tuple[Callable[[np.random.Generator, Materials], list[Part]], ...] = (pole, pole, cone, bench, bin_)
