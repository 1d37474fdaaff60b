"""Things of 3 to 40 cm that stand on tables, shelves and floors. Each returns parts, see stage.Part."""

import numpy as np

from videomamba_depth.data.synthetic.cutouts import BRANCHES, FOLIAGE
from videomamba_depth.data.synthetic.geometry import BOX, CONE, CYLINDER, ELLIPSOID, PANEL
from videomamba_depth.data.synthetic.materials import Materials
from videomamba_depth.data.synthetic.stage import Part


def small_thing(rng: np.random.Generator, m: Materials) -> list[Part]:
    """Draw something for a table, 3 to 40 cm."""
    makers = (
        _books,
        _bottle,
        _cup,
        _bowl,
        _box,
        _laptop,
        pot_plant,
        _table_lamp,
        _toy,
        _toy,
        _fruit,
        _frame,
        _glass,
        _cable,
    )
    return makers[rng.integers(len(makers))](rng, m)


def _books(rng: np.random.Generator, m: Materials) -> list[Part]:
    parts, top = [], 0.0
    for _ in range(rng.integers(1, 5)):
        x, y, z = rng.uniform([0.07, 0.008, 0.09], [0.12, 0.03, 0.16])
        yaw = rng.normal(0, 0.25)
        parts.append(Part(BOX, (0, -top - y, 0), (x, y, z), m.pick("print"), 0.25, yaw=yaw))
        top += 2 * y
    return parts


def _bottle(rng: np.random.Generator, m: Materials) -> list[Part]:
    r, h, t = rng.uniform(0.025, 0.05), rng.uniform(0.07, 0.13), m.pick("thing")
    label = m.pick("print")
    return [
        Part(CYLINDER, (0, -h, 0), (r, h, r), t, 0.2),
        Part(CYLINDER, (0, -h, 0), (r * 1.02, h * 0.4, r * 1.02), label, 0.15),
        Part(CONE, (0, -2 * h - r, 0), (r, 1.4 * r, r), t, 0.2),
        Part(CYLINDER, (0, -2 * h - 1.5 * r, 0), (r * 0.35, 1.2 * r, r * 0.35), m.pick("paint"), 0.2),
    ]


def _cup(rng: np.random.Generator, m: Materials) -> list[Part]:
    r, h, t = rng.uniform(0.03, 0.05), rng.uniform(0.04, 0.06), m.pick("paint")
    return [
        Part(CYLINDER, (0, -h, 0), (r, h, r), t, 0.1),
        Part(CYLINDER, (0, -2 * h, 0), (r * 0.85, 0.002, r * 0.85), m.pick("wood"), 0.1),
        Part(BOX, (r * 1.3, -h, 0), (r * 0.35, h * 0.12, r * 0.12), t, 0.1),
        Part(BOX, (r * 1.3, -1.6 * h, 0), (r * 0.35, h * 0.12, r * 0.12), t, 0.1),
        Part(BOX, (r * 1.6, -1.3 * h, 0), (r * 0.12, h * 0.35, r * 0.12), t, 0.1),
    ]


def _bowl(rng: np.random.Generator, m: Materials) -> list[Part]:
    r, t = rng.uniform(0.07, 0.14), m.pick("paint")
    parts = [Part(ELLIPSOID, (0, -0.45 * r, 0), (r, 0.45 * r, r), t, 0.2)]
    for _ in range(rng.integers(0, 6)):
        x, z = rng.normal(0, 0.35 * r, 2)
        parts.append(Part(ELLIPSOID, (x, -0.95 * r, z), (0.3 * r, 0.3 * r, 0.3 * r), m.pick("thing"), 0.2))
    return parts


def _box(rng: np.random.Generator, m: Materials) -> list[Part]:
    x, y, z = np.exp(rng.uniform(np.log(0.02), np.log(0.16), 3))
    return [Part(BOX, (0, -y, 0), (x, y, z), m.pick(str(rng.choice(["print", "thing", "wood"]))), 0.2)]


def _laptop(rng: np.random.Generator, m: Materials) -> list[Part]:
    metal, lean = m.pick("metal"), rng.uniform(0.1, 0.5)
    screen = m.pick("print") if rng.random() < 0.6 else m.lamp(rng.uniform(0.2, 0.9, 3).astype(np.float32), 1.0)
    y, z = 0.11 * np.cos(lean), 0.11 + 0.11 * np.sin(lean)
    return [
        Part(BOX, (0, -0.008, 0), (0.16, 0.008, 0.11), metal, 0.3),
        Part(BOX, (0, -0.017, -0.01), (0.14, 0.002, 0.05), m.pick("print"), 0.3),
        Part(BOX, (0, -y - 0.016, z), (0.16, 0.11, 0.004), metal, 0.3, tilt=(lean, 0)),
        Part(BOX, (0, -y - 0.017, z - 0.005), (0.15, 0.1, 0.003), screen, 0.3, tilt=(lean, 0)),
    ]


def pot_plant(rng: np.random.Generator, m: Materials) -> list[Part]:
    r, leaves = rng.uniform(0.05, 0.12), m.pick("leaves")
    parts = [Part(CYLINDER, (0, -r, 0), (r, r, r), m.pick("paint"), 0.2)]
    size = r * rng.uniform(1.2, 3.0)
    for _ in range(rng.integers(3, 8)):
        mask = int(rng.choice([*FOLIAGE, *BRANCHES[:3]]))
        tilt = (rng.normal(0, 0.35), rng.normal(0, 0.2))
        parts.append(
            Part(PANEL, (0, -2 * r - 0.8 * size, 0), (size, size, size), leaves, 0.15, rng.uniform(0, 3.14), tilt, mask)
        )
    return parts


def _table_lamp(rng: np.random.Generator, m: Materials) -> list[Part]:
    h, r = rng.uniform(0.15, 0.4), rng.uniform(0.08, 0.18)
    lit = m.lamp(np.array([1, 0.85, 0.6], np.float32), rng.uniform(0.8, 2)) if rng.random() < 0.5 else m.pick("cloth")
    return [
        Part(CYLINDER, (0, -0.01, 0), (0.07, 0.01, 0.07), m.pick("metal"), 0.2),
        Part(CYLINDER, (0, -h / 2, 0), (0.008, h / 2, 0.008), m.pick("metal"), 0.2),
        Part(CONE, (0, -h - 0.3 * r, 0), (r, r, r), lit, 0.2),
    ]


def _toy(rng: np.random.Generator, m: Materials) -> list[Part]:
    """A thing of no name: a few solids that lean on each other."""
    parts, size = [], np.exp(rng.uniform(np.log(0.03), np.log(0.12)))
    for _ in range(rng.integers(1, 5)):
        half = size * rng.uniform(0.3, 1.2, 3)
        x, z = rng.normal(0, 0.6 * size, 2)
        shape = int(rng.choice([BOX, ELLIPSOID, CYLINDER, CONE]))
        tilt = (rng.normal(0, 0.6), rng.normal(0, 0.6)) if rng.random() < 0.5 else (0.0, 0.0)
        y = -half.max() * rng.uniform(0.6, 1.6)
        parts.append(Part(shape, (x, y, z), tuple(half), m.pick("thing"), 0.2, rng.uniform(0, 3.14), tilt))
    return parts


def _fruit(rng: np.random.Generator, m: Materials) -> list[Part]:
    r = rng.uniform(0.025, 0.05)
    return [
        Part(
            ELLIPSOID,
            (rng.normal(0, 2 * r), -r, rng.normal(0, 2 * r)),
            (r, r * rng.uniform(0.7, 1.1), r),
            m.pick("thing"),
            0.2,
        )
        for _ in range(rng.integers(1, 5))
    ]


def _frame(rng: np.random.Generator, m: Materials) -> list[Part]:
    x, y = rng.uniform(0.06, 0.15, 2)
    lean = rng.uniform(0.05, 0.3)
    return [
        Part(BOX, (0, -y * 0.97, 0), (x, y, 0.006), m.pick("wood"), 0.2, tilt=(lean, 0)),
        Part(BOX, (0, -y * 0.97, -0.005), (x * 0.85, y * 0.85, 0.004), m.pick("print"), 0.3, tilt=(lean, 0)),
    ]


def _glass(rng: np.random.Generator, m: Materials) -> list[Part]:
    r, h = rng.uniform(0.025, 0.07), rng.uniform(0.05, 0.15)
    return [Part(CYLINDER, (0, -h, 0), (r, h, r), m.glass(), 0.2)]


def _cable(rng: np.random.Generator, m: Materials) -> list[Part]:
    """Pens and sticks that lie about, or stand in a pot."""
    t, parts = m.pick("paint"), []
    for _ in range(rng.integers(1, 6)):
        long, x, z = rng.uniform(0.06, 0.18), *rng.normal(0, 0.04, 2)
        parts.append(Part(CYLINDER, (x, -0.006, z), (0.005, long, 0.005), t, 0.2, rng.uniform(0, 6.28), (1.57, 0.0)))
    return parts
