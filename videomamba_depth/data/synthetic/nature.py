"""Plants, rocks and hills. Each returns parts, see stage.Part."""

from collections.abc import Sequence

import numpy as np

from videomamba_depth.data.synthetic.cutouts import BRANCHES, FOLIAGE, GRASS, RAGGED
from videomamba_depth.data.synthetic.geometry import BOX, CONE, CYLINDER, ELLIPSOID, PANEL
from videomamba_depth.data.synthetic.materials import Materials
from videomamba_depth.data.synthetic.scene import Solid
from videomamba_depth.data.synthetic.stage import Part, Vector


def _sprays(
    rng: np.random.Generator,
    count: int,
    middle: tuple[float, float, float],
    spread: float,
    size: float,
    texture: int,
    kinds: range,
) -> list[Part]:
    """Draw panels of foliage around a point."""
    parts = []
    for _ in range(count):
        x, y, z = np.array(middle) + rng.normal(0, spread, 3) * np.array([1, 0.8, 1])
        half = size * rng.uniform(0.6, 1.3)
        tilt = (rng.normal(0, 0.5), rng.normal(0, 0.5))
        parts.append(
            Part(
                PANEL,
                (x, y, z),
                (half, half, half),
                texture,
                0.6 * size,
                rng.uniform(0, 3.14),
                tilt,
                int(rng.choice(kinds)),
            )
        )
    return parts


def tree(rng: np.random.Generator, m: Materials, height: float) -> list[Part]:
    """Draw a broad-leaved tree, bare at times."""
    r, bark, leaves = height * rng.uniform(0.015, 0.045), m.pick("bark"), m.pick("leaves")
    trunk = height * rng.uniform(0.3, 0.6)
    parts = [
        Part(
            CYLINDER, (0, -trunk / 2, 0), (r, trunk / 2, r), bark, 0.6, tilt=(rng.normal(0, 0.04), rng.normal(0, 0.04))
        )
    ]
    parts.append(Part(CONE, (0, -trunk * 0.98 - 0.2 * height, 0), (r, 0.22 * height, r), bark, 0.6))
    for _ in range(rng.integers(2, 6)):
        lean, yaw, long = rng.uniform(0.4, 1.1), rng.uniform(0, 6.28), height * rng.uniform(0.1, 0.2)
        y = -trunk * rng.uniform(0.75, 1.0) - long * np.cos(lean)
        x, z = long * np.sin(lean) * np.array([-np.sin(yaw), -np.cos(yaw)])
        parts.append(Part(CONE, (x, y, z), (0.4 * r, long, 0.4 * r), bark, 0.5, yaw, (lean, 0.0)))
    crown = (0.0, -trunk - 0.28 * height, 0.0)
    if rng.random() < 0.15:
        return parts + _sprays(rng, 6, crown, 0.1 * height, 0.2 * height, bark, BRANCHES)
    for _ in range(rng.integers(0, 4)):
        x, y, z = np.array(crown) + rng.normal(0, 0.09, 3) * height
        half = height * rng.uniform(0.07, 0.19, 3)
        parts.append(Part(ELLIPSOID, (x, y, z), tuple(half), leaves, 0.25 * height, rng.uniform(0, 3.14)))
    return parts + _sprays(rng, int(rng.integers(8, 18)), crown, 0.14 * height, 0.16 * height, leaves, FOLIAGE)


def conifer(rng: np.random.Generator, m: Materials, height: float) -> list[Part]:
    """Draw a fir of stacked cones."""
    leaves, wide, levels = m.pick("leaves"), height * rng.uniform(0.12, 0.24), int(rng.integers(3, 6))
    parts = [Part(CYLINDER, (0, -0.1 * height, 0), (0.02 * height, 0.1 * height, 0.02 * height), m.pick("bark"), 0.5)]
    for level in range(levels):
        share = level / levels
        half = (wide * (1 - 0.75 * share), 0.55 * height / levels, wide * (1 - 0.75 * share))
        parts.append(Part(CONE, (0, -height * (0.25 + 0.72 * share), 0), half, leaves, 0.3 * height, rng.uniform(0, 3)))
        at = (0.0, -height * (0.2 + 0.72 * share), 0.0)
        parts += _sprays(rng, 3, at, 0.5 * half[0], 0.7 * half[0], leaves, FOLIAGE)
    return parts


def bush(rng: np.random.Generator, m: Materials, size: float) -> list[Part]:
    """Draw a bush or a fern."""
    leaves, parts = m.pick("leaves"), []
    for _ in range(rng.integers(0, 3)):
        half = size * rng.uniform(0.3, 0.7, 3)
        x, z = rng.normal(0, 0.4 * size, 2)
        parts.append(Part(ELLIPSOID, (x, -half[1] * 0.7, z), tuple(half), leaves, 0.6))
    return parts + _sprays(rng, int(rng.integers(4, 10)), (0, -0.5 * size, 0), 0.35 * size, 0.5 * size, leaves, FOLIAGE)


def tuft(rng: np.random.Generator, m: Materials, size: float) -> list[Part]:
    """Draw grass or reed: panels that cross."""
    grass, yaw = m.pick("grass"), rng.uniform(0, 3.14)
    parts = []
    for turn in (0.0, 1.57):
        half, tilt = (size * rng.uniform(0.6, 1.6), size, 1), (rng.normal(0, 0.15), 0.0)
        parts.append(Part(PANEL, (0, -size * 0.95, 0), half, grass, 0.5, yaw + turn, tilt, int(rng.choice(GRASS))))
    return parts


def rock(rng: np.random.Generator, m: Materials, size: float) -> list[Part]:
    """Draw a boulder of a few ellipsoids and blocks."""
    stone, parts = m.pick("rock"), []
    for _ in range(rng.integers(1, 4)):
        half = size * rng.uniform(0.35, 1.0, 3)
        x, z = rng.normal(0, 0.5 * size, 2)
        shape = int(rng.choice([ELLIPSOID, ELLIPSOID, BOX]))
        tilt = (rng.normal(0, 0.4), rng.normal(0, 0.4))
        parts.append(
            Part(shape, (x, -half[1] * rng.uniform(0.1, 0.6), z), tuple(half), stone, size, rng.uniform(0, 3.14), tilt)
        )
    return parts


def hill(rng: np.random.Generator, texture: int, reach: float, height: float) -> list[Part]:
    """Draw a hill of a radius and a height in m: the upper part of an ellipsoid, with shoulders."""
    parts = []
    for _ in range(rng.integers(1, 4)):
        x, z = rng.normal(0, 0.4 * reach, 2)
        half = np.array([reach * rng.uniform(0.5, 1.2), height * rng.uniform(0.5, 1.0), reach * rng.uniform(0.5, 1.2)])
        tilt = (rng.normal(0, 0.06), rng.normal(0, 0.06))
        parts.append(
            Part(ELLIPSOID, (x, 0.1 * half[1], z), tuple(1.1 * half), texture, 4.0, rng.uniform(0, 3.14), tilt)
        )
    return parts


def heights(hills: Sequence[Solid], spots: Vector) -> Vector:
    """Return how high the ground with its hills lies at spots [n,2] (x, z), in m [n]."""
    ground = np.zeros(len(spots))
    for solid in hills:
        pose = solid.pose(0.0)
        to_unit = pose[:3, :3].T / np.array(solid.half)[:, None]
        base = np.insert(spots, 1, 0.0, axis=1) - pose[:3, 3]
        o, d = to_unit @ base.T, to_unit[:, 1]
        a, b, c = d @ d, d @ o, (o * o).sum(0) - 1
        inside = b * b - a * c
        ground = np.maximum(ground, np.where(inside > 0, (b + np.sqrt(np.maximum(inside, 0))) / a, 0))
    return ground


def ridge(rng: np.random.Generator, texture: int, size: float) -> list[Part]:
    """Draw a far row of crowns or peaks."""
    half = (size, 0.4 * size * rng.uniform(0.3, 1.2), 1.0)
    return [Part(PANEL, (0, -half[1] * 0.5, 0), half, texture, size, mask=int(rng.choice(RAGGED)))]
