"""Furniture and what hangs on walls. Each returns parts, see stage.Part."""

import numpy as np

from videomamba_depth.data.synthetic.cutouts import FENCE, FOLIAGE, RAGGED
from videomamba_depth.data.synthetic.geometry import BOX, CONE, CYLINDER, ELLIPSOID, PANEL
from videomamba_depth.data.synthetic.materials import Materials
from videomamba_depth.data.synthetic.small_things import pot_plant
from videomamba_depth.data.synthetic.stage import Part


def table(rng: np.random.Generator, m: Materials) -> tuple[list[Part], float, tuple[float, float]]:
    """Draw a table or desk; return its parts, the height of its top and the half extents of the top."""
    x, h, z = rng.uniform([0.35, 0.4, 0.3], [1.1, 0.95, 0.6])
    top, legs = m.pick("wood"), m.pick(str(rng.choice(["wood", "metal"])))
    t = rng.uniform(0.012, 0.03)
    parts = [Part(BOX, (0, -h + t, 0), (x, t, z), top, 1.0)]
    if rng.random() < 0.7:
        r = rng.uniform(0.015, 0.04)
        shape = int(rng.choice([BOX, CYLINDER]))
        parts += [
            Part(shape, (sx * (x - r), -h / 2 + t, sz * (z - r)), (r, h / 2 - t, r), legs, 0.5)
            for sx in (-1, 1)
            for sz in (-1, 1)
        ]
    else:
        parts += [Part(BOX, (s * (x - 0.03), -h / 2 + t, 0), (0.02, h / 2 - t, z * 0.95), legs, 0.7) for s in (-1, 1)]
        parts.append(Part(BOX, (0, -h * 0.7, z * 0.9), (x * 0.95, h * 0.25, 0.01), legs, 0.7))
    return parts, h, (x, z)


def large_thing(rng: np.random.Generator, m: Materials) -> list[Part]:
    """Draw a piece of furniture other than a table."""
    makers = (
        _chair,
        _chair,
        _sofa,
        _shelf,
        _shelf,
        _cupboard,
        _floor_lamp,
        _bed,
        _heap,
        _tall_plant,
        _stool,
        _screen,
        _rack,
    )
    return makers[rng.integers(len(makers))](rng, m)


def _chair(rng: np.random.Generator, m: Materials) -> list[Part]:
    w, seat, back = rng.uniform([0.19, 0.38, 0.2], [0.28, 0.5, 0.35])
    wood, cloth, r = m.pick(str(rng.choice(["wood", "metal"]))), m.pick("cloth"), rng.uniform(0.012, 0.025)
    parts = [Part(BOX, (0, -seat, 0), (w, 0.025, w), cloth, 0.4)]
    parts += [
        Part(CYLINDER, (sx * (w - r), -seat / 2, sz * (w - r)), (r, seat / 2, r), wood, 0.3)
        for sx in (-1, 1)
        for sz in (-1, 1)
    ]
    if rng.random() < 0.5:
        parts.append(Part(PANEL, (0, -seat - back, w), (w, back, 0.01), wood, 0.3, mask=int(rng.choice(FENCE))))
    else:
        parts.append(Part(BOX, (0, -seat - back, w), (w, back * 0.8, 0.02), cloth, 0.4, tilt=(0.12, 0)))
    return parts


def _stool(rng: np.random.Generator, m: Materials) -> list[Part]:
    h, r = rng.uniform(0.3, 0.75), rng.uniform(0.14, 0.25)
    parts = [Part(CYLINDER, (0, -h, 0), (r, 0.02, r), m.pick("wood"), 0.3)]
    for a in np.arange(3) * 2.1:
        x, z = 0.8 * r * np.sin(a), 0.8 * r * np.cos(a)
        parts.append(Part(CYLINDER, (x, -h / 2, z), (0.015, h / 2, 0.015), m.pick("metal"), 0.3))
    return parts


def _sofa(rng: np.random.Generator, m: Materials) -> list[Part]:
    x, z, cloth = rng.uniform(0.4, 1.1), rng.uniform(0.38, 0.5), m.pick("cloth")
    parts = [
        Part(BOX, (0, -0.2, 0), (x, 0.2, z), cloth, 0.6),
        Part(BOX, (0, -0.55, z * 0.8), (x, 0.35, 0.13), cloth, 0.6, tilt=(0.15, 0)),
    ]
    parts += [Part(BOX, (s * x, -0.32, 0), (0.1, 0.32, z), cloth, 0.6) for s in (-1, 1)]
    for _ in range(rng.integers(0, 4)):
        spot = (rng.uniform(-x, x) * 0.8, -0.55, z * 0.4)
        parts.append(
            Part(ELLIPSOID, spot, (0.2, 0.2, 0.09), m.pick("cloth"), 0.3, rng.normal(0, 0.3), (0.3, rng.normal(0, 0.5)))
        )
    return parts


def _bed(rng: np.random.Generator, m: Materials) -> list[Part]:
    x, z, h = rng.uniform(0.45, 0.9), 1.0, rng.uniform(0.15, 0.3)
    return [
        Part(BOX, (0, -h / 2, 0), (x, h / 2, z), m.pick("wood"), 0.8),
        Part(BOX, (0, -h - 0.1, 0), (x * 0.97, 0.1, z * 0.98), m.pick("cloth"), 0.7),
        Part(ELLIPSOID, (rng.normal(0, 0.1), -h - 0.2, -0.2), (x * 0.95, 0.12, 0.7), m.pick("cloth"), 0.5),
        Part(ELLIPSOID, (0, -h - 0.24, z * 0.75), (x * 0.7, 0.09, 0.2), m.pick("cloth"), 0.5),
        Part(BOX, (0, -h - 0.25, z), (x, 0.45, 0.03), m.pick("wood"), 0.8),
    ]


def _shelf(rng: np.random.Generator, m: Materials) -> list[Part]:
    x, h, z = rng.uniform([0.3, 0.5, 0.13], [0.7, 1.1, 0.22])
    wood, boards = m.pick("wood"), int(rng.integers(2, 6))
    parts = [Part(BOX, (s * x, -h, 0), (0.012, h, z), wood, 0.8) for s in (-1, 1)]
    if rng.random() < 0.7:
        parts.append(Part(BOX, (0, -h, z), (x, h, 0.008), wood, 0.8))
    for board in range(boards + 1):
        y = -2 * h * board / boards - 0.012
        parts.append(Part(BOX, (0, y, 0), (x, 0.012, z), wood, 0.8))
        at = -x * 0.95
        while board < boards and at < x * 0.85 and rng.random() < 0.93:
            width, tall = rng.uniform(0.012, 0.09), h / boards * rng.uniform(0.4, 0.9)
            texture, deep = m.pick(str(rng.choice(["print", "thing"]))), z * rng.uniform(0.5, 0.95)
            parts.append(
                Part(BOX, (at + width, y - 0.012 - tall, 0.2 * z), (width * 0.97, tall, deep * 0.8), texture, 0.2)
            )
            at += 2 * width + (rng.uniform(0, 0.25) if rng.random() < 0.2 else 0)
    return parts


def _cupboard(rng: np.random.Generator, m: Materials) -> list[Part]:
    x, h, z = rng.uniform([0.3, 0.35, 0.2], [0.9, 1.1, 0.35])
    wood, front, doors = m.pick("wood"), m.pick(str(rng.choice(["wood", "paint"]))), int(rng.integers(1, 4))
    parts = [Part(BOX, (0, -h, 0), (x, h, z), wood, 1.0)]
    for door in range(doors):
        at = x * ((2 * door + 1) / doors - 1)
        parts.append(Part(BOX, (at, -h, -z), (x / doors * 0.93, h * 0.93, 0.012), front, 0.8))
        parts.append(Part(ELLIPSOID, (at + 0.7 * x / doors, -h, -z - 0.02), (0.012, 0.03, 0.02), m.pick("metal"), 0.2))
    return parts


def _floor_lamp(rng: np.random.Generator, m: Materials) -> list[Part]:
    h, r, metal = rng.uniform(1.1, 1.8), rng.uniform(0.12, 0.25), m.pick("metal")
    lit = m.lamp(np.array([1, 0.85, 0.6], np.float32), rng.uniform(0.8, 2)) if rng.random() < 0.5 else m.pick("cloth")
    return [
        Part(CYLINDER, (0, -0.015, 0), (0.15, 0.015, 0.15), metal, 0.2),
        Part(CYLINDER, (0, -h / 2, 0), (0.012, h / 2, 0.012), metal, 0.2),
        Part(CONE, (0, -h, 0), (r, r * 0.9, r), lit, 0.3),
    ]


def _heap(rng: np.random.Generator, m: Materials) -> list[Part]:
    """Boxes, clothes and bags on the floor."""
    parts = []
    for _ in range(rng.integers(2, 7)):
        half = rng.uniform(0.06, 0.28, 3)
        x, z = rng.normal(0, 0.25, 2)
        soft = rng.random() < 0.4
        parts.append(
            Part(
                ELLIPSOID if soft else BOX, (x, -half[1] * rng.uniform(0.8, 1.8), z), tuple(half),
                m.pick("cloth" if soft else "thing"), 0.4, rng.uniform(0, 3.14),
                (rng.normal(0, 0.15), rng.normal(0, 0.15)),
            )
        )  # fmt: skip
    return parts


def _tall_plant(rng: np.random.Generator, m: Materials) -> list[Part]:
    parts, leaves, h = pot_plant(rng, m)[:1], m.pick("leaves"), rng.uniform(0.5, 1.5)
    parts.append(Part(CYLINDER, (0, -h / 2, 0), (0.012, h / 2, 0.012), m.pick("bark"), 0.3))
    for _ in range(rng.integers(4, 10)):
        size = rng.uniform(0.12, 0.35)
        spot = (rng.normal(0, 0.12), -h * rng.uniform(0.5, 1.1), rng.normal(0, 0.12))
        tilt = (rng.normal(0, 0.6), rng.normal(0, 0.6))
        parts.append(
            Part(PANEL, spot, (size, size, size), leaves, 0.2, rng.uniform(0, 3.14), tilt, int(rng.choice(FOLIAGE)))
        )
    return parts


def _screen(rng: np.random.Generator, m: Materials) -> list[Part]:
    """A television or a monitor on a stand."""
    x, h = rng.uniform(0.25, 0.6), rng.uniform(0.4, 1.1)
    lit = m.lamp(rng.uniform(0.05, 0.9, 3).astype(np.float32), 1.0) if rng.random() < 0.4 else m.pick("metal")
    return [
        Part(BOX, (0, -h / 2, 0.05), (0.04, h / 2, 0.03), m.pick("metal"), 0.3),
        Part(BOX, (0, -0.01, 0.05), (0.2, 0.01, 0.13), m.pick("metal"), 0.3),
        Part(BOX, (0, -h, 0), (x, x * 0.58, 0.02), m.pick("metal"), 0.5),
        Part(BOX, (0, -h, -0.02), (x * 0.96, x * 0.54, 0.003), lit, 0.7),
    ]


def _rack(rng: np.random.Generator, m: Materials) -> list[Part]:
    """Clothes on a rail."""
    h, x, metal = rng.uniform(1.2, 1.7), rng.uniform(0.4, 0.8), m.pick("metal")
    parts = [Part(CYLINDER, (s * x, -h / 2, 0), (0.014, h / 2, 0.014), metal, 0.3) for s in (-1, 1)]
    parts.append(Part(CYLINDER, (0, -h, 0), (0.012, x, 0.012), metal, 0.3, tilt=(0, 1.57)))
    for at in np.arange(-x * 0.85, x * 0.85, rng.uniform(0.09, 0.3)):
        size = rng.uniform(0.2, 0.35)
        mask = int(rng.choice(RAGGED)) if rng.random() < 0.3 else -1
        half = (0.03, size * 1.6, size) if mask < 0 else (size, size * 1.7, 0.01)
        shape, yaw = (BOX, rng.normal(0, 0.1)) if mask < 0 else (PANEL, 1.57 + rng.normal(0, 0.2))
        parts.append(Part(shape, (at, -h + half[1] + 0.03, 0), half, m.pick("cloth"), 0.4, yaw, mask=max(mask, 0)))
    return parts


def wall_thing(rng: np.random.Generator, m: Materials) -> list[Part]:
    """Draw something that hangs on a wall at z = 0, seen from −z, around its own origin."""
    kind, (x, y) = rng.integers(6), rng.uniform(0.15, 0.7, 2)
    if kind == 0:  # a window
        lit = m.lamp(rng.uniform(0.5, 1, 3).astype(np.float32), rng.uniform(0.5, 4))
        frame = m.pick("paint")
        bars = [
            Part(BOX, (0, 0, -0.03), (0.025, y + 0.04, 0.02), frame),
            Part(BOX, (0, 0, -0.03), (x, 0.02, 0.02), frame),
        ]
        sides = [Part(BOX, (s * x, 0, -0.03), (0.04, y + 0.04, 0.04), frame) for s in (-1, 1)]
        sides += [Part(BOX, (0, s * y, -0.03), (x + 0.04, 0.04, 0.05), frame) for s in (-1, 1)]
        return [Part(BOX, (0, 0, 0), (x, y, 0.01), lit), *bars, *sides]
    if kind == 1:  # a curtain of folds
        cloth, w = m.pick("cloth"), rng.uniform(0.04, 0.09)
        return [Part(CYLINDER, (at, 0.2, -0.06), (w, 1.0, w * 0.6), cloth, 0.5) for at in np.arange(-x, x, 1.7 * w)]
    if kind == 2:  # a board with things on it
        board = [Part(BOX, (0, 0.1, -0.12), (x, 0.012, 0.12), m.pick("wood"), 0.5)]
        for at in np.arange(-x * 0.9, x * 0.9, rng.uniform(0.08, 0.25)):
            half = rng.uniform(0.02, 0.09, 3)
            board.append(
                Part(
                    int(rng.choice([BOX, CYLINDER, ELLIPSOID])),
                    (at, 0.088 - half[1], -0.12),
                    tuple(half),
                    m.pick("thing"),
                    0.2,
                )
            )
        return board
    if kind == 3:  # a heater
        return [Part(PANEL, (0, 0.6, -0.1), (x, 0.3, 0.01), m.pick("paint"), 0.4, mask=int(rng.choice(FENCE))),
                Part(BOX, (0, 0.6, -0.04), (x, 0.29, 0.03), m.pick("paint"), 0.4)]  # fmt: skip
    depth = rng.uniform(0.005, 0.04)
    return [
        Part(BOX, (0, 0, -depth), (x, y, depth), m.pick("wood"), 0.4),
        Part(BOX, (0, 0, -2 * depth), (x * 0.88, y * 0.88, 0.003), m.pick("print"), 1.5 * max(x, y)),
    ]
