"""Things that stand on the floor: tables, chairs, shelves, crates, columns, balls, people-sized posts, vehicles."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.geometry import BOX, CYLINDER, ELLIPSOID
from videomamba_depth.data.synthetic.scene import Solid

# shape, center [3] (y is minus the height above the floor), half [3], which of two textures
Part = tuple[int, tuple[float, float, float], tuple[float, float, float], int]


@dataclass(frozen=True)
class Stand:
    """A thing made of parts around its own origin on the floor, later put at a spot.

    radius: of the circle on the floor that contains it and its motion, in m; spot: [2] x and z in m; the motion fields
    are those of scene.Solid.
    """

    parts: tuple[Part, ...]
    radius: float
    yaw: float
    tile_m: float
    swing: tuple[float, float, float] = (0.0, 0.0, 0.0)
    hop: float = 0.0
    rate: float = 0.0
    phase: float = 0.0
    spin: float = 0.0
    spot: NDArray[np.float64] | tuple[float, float] = (0.0, 0.0)

    def solids(self, textures: list[int]) -> list[Solid]:
        """Return the parts as solids in the world; textures: the two that the parts choose from."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return [
            Solid(
                shape=shape,
                center=(float(self.spot[0] + c * x + s * z), y, float(self.spot[1] - s * x + c * z)),
                half=half,
                textures=(textures[which],),
                tile_m=self.tile_m,
                yaw=self.yaw,
                swing=self.swing,
                hop=self.hop,
                rate=self.rate,
                phase=self.phase,
                spin=self.spin,
            )
            for shape, (x, y, z), half, which in self.parts
        ]


Maker = Callable[[np.random.Generator], Stand]


def furniture(rng: np.random.Generator) -> Stand:
    """Draw a piece of furniture or a toy; about one in five moves."""
    make = (_table, _chair, _crate, _crate, _shelf, _column, _ball, _ball, _lamp, _rug)[rng.integers(10)]
    return _maybe_moving(rng, make(rng, 1.0))


def street_object(rng: np.random.Generator) -> Stand:
    """Draw something that stands in a yard; about one in five moves."""
    make = (_crate, _crate, _column, _column, _ball, _low_wall, _vehicle, _table)[rng.integers(8)]
    return _maybe_moving(rng, make(rng, 1.3))


def _maybe_moving(rng: np.random.Generator, stand: Stand) -> Stand:
    if rng.random() > 0.22:
        return stand
    angle, amplitude = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.7)
    # Only things of one part may spin: parts turn about their own centers.
    alone = len(stand.parts) == 1
    return replace(
        stand,
        swing=(float(amplitude * np.sin(angle)), 0.0, float(amplitude * np.cos(angle))),
        hop=float(rng.uniform(0.1, 0.5)) if alone and rng.random() < 0.4 else 0.0,
        rate=float(rng.uniform(0.7, 2.5)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        spin=float(rng.normal(0, 1.0)) if alone and rng.random() < 0.5 else 0.0,
        radius=stand.radius + amplitude,
    )


def _stand(rng: np.random.Generator, parts: list[Part]) -> Stand:
    radius = max(np.hypot(abs(c[0]) + h[0], abs(c[2]) + h[2]) for _, c, h, _ in parts)
    return Stand(tuple(parts), float(radius), float(rng.uniform(-np.pi, np.pi)), float(rng.uniform(0.3, 1.5)))


def _table(rng: np.random.Generator, scale: float) -> Stand:
    x, height, z = rng.uniform([0.35, 0.4, 0.25], [0.9, 0.85, 0.5]) * scale
    leg = 0.03 * scale
    parts: list[Part] = [(BOX, (0, -height, 0), (x, 0.025, z), 0)]
    for side_x in (-1, 1):
        for side_z in (-1, 1):
            spot = (side_x * (x - leg), -height / 2, side_z * (z - leg))
            parts.append((BOX, spot, (leg, height / 2 - 0.02, leg), 1))
    if rng.random() < 0.5:
        size = rng.uniform(0.06, 0.16)
        shape = int(rng.choice([BOX, ELLIPSOID, CYLINDER]))
        parts.append((shape, (rng.uniform(-0.6, 0.6) * x, -height - 0.025 - size, 0), (size, size, size), 1))
    return _stand(rng, parts)


def _chair(rng: np.random.Generator, scale: float) -> Stand:
    width, seat, back = rng.uniform([0.2, 0.35, 0.4], [0.35, 0.5, 0.6]) * scale
    return _stand(
        rng,
        [
            (BOX, (0, -seat, 0), (width, 0.04, width), 0),
            (BOX, (0, -seat / 2, 0), (width * 0.8, seat / 2 - 0.03, width * 0.8), 1),
            (BOX, (0, -seat - back / 2, width), (width, back / 2, 0.03), 0),
        ],
    )


def _crate(rng: np.random.Generator, scale: float) -> Stand:
    half = rng.uniform(0.1, 0.5, 3) * scale
    parts: list[Part] = [(BOX, (0, -half[1], 0), tuple(half), 0)]
    if rng.random() < 0.35:
        top = half * rng.uniform(0.4, 0.9)
        parts.append((int(rng.choice([BOX, ELLIPSOID])), (0, -2 * half[1] - top[1], 0), tuple(top), 1))
    return _stand(rng, parts)


def _shelf(rng: np.random.Generator, scale: float) -> Stand:
    x, y, z = rng.uniform([0.3, 0.5, 0.15], [0.8, 1.1, 0.35]) * scale
    return _stand(rng, [(BOX, (0, -y, 0), (x, y, z), 0)])


def _column(rng: np.random.Generator, scale: float) -> Stand:
    radius, y = rng.uniform([0.08, 0.3], [0.35, 1.15]) * scale
    return _stand(rng, [(CYLINDER, (0, -y, 0), (radius, y, radius), 0)])


def _ball(rng: np.random.Generator, scale: float) -> Stand:
    half = rng.uniform(0.1, 0.45) * scale * np.array([1, rng.uniform(0.6, 1.2), 1])
    return _stand(rng, [(ELLIPSOID, (0, -half[1], 0), tuple(half), 0)])


def _lamp(rng: np.random.Generator, scale: float) -> Stand:
    height = rng.uniform(0.9, 1.7) * scale
    return _stand(
        rng,
        [
            (CYLINDER, (0, -0.02, 0), (0.16, 0.02, 0.16), 1),
            (CYLINDER, (0, -height / 2, 0), (0.025, height / 2, 0.025), 1),
            (ELLIPSOID, (0, -height - 0.1, 0), (0.2, 0.14, 0.2), 0),
        ],
    )


def _rug(rng: np.random.Generator, scale: float) -> Stand:
    x, z = rng.uniform(0.4, 0.9, 2) * scale
    return _stand(rng, [(BOX, (0, -0.008, 0), (x, 0.008, z), 0)])


def _low_wall(rng: np.random.Generator, scale: float) -> Stand:
    x, y = rng.uniform([0.8, 0.25], [1.8, 0.6]) * scale
    return _stand(rng, [(BOX, (0, -y, 0), (x, y, 0.12), 0)])


def _vehicle(rng: np.random.Generator, scale: float) -> Stand:
    x, y, z = rng.uniform([0.8, 0.3, 0.4], [1.3, 0.45, 0.6]) * scale
    return _stand(
        rng,
        [
            (BOX, (0, -0.2 - y, 0), (x, y, z), 0),
            (BOX, (0, -0.2 - 2.6 * y, 0), (0.55 * x, 0.6 * y, 0.9 * z), 1),
            (CYLINDER, (0.6 * x, -0.2, 0), (0.2, 0.2, z), 1),
            (CYLINDER, (-0.6 * x, -0.2, 0), (0.2, 0.2, z), 1),
        ],
    )
