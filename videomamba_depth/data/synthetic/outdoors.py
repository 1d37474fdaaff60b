"""Families outside: streets, terrain, forest, and open places where people and animals walk."""

import numpy as np

from videomamba_depth.data.synthetic.creatures import animal, person
from videomamba_depth.data.synthetic.geometry import BOX, CYLINDER, ELLIPSOID
from videomamba_depth.data.synthetic.lighting import outdoors
from videomamba_depth.data.synthetic.materials import Materials
from videomamba_depth.data.synthetic.nature import bush, conifer, heights, hill, ridge, rock, tree, tuft
from videomamba_depth.data.synthetic.scene import Scene, Solid
from videomamba_depth.data.synthetic.stage import Part, Stage, draw_camera, drift, lifted, put
from videomamba_depth.data.synthetic.town import SMALL, car, fence, house, wires

_REACH_M, _SKY_M = 220.0, 140.0  # half width of the world, height of the sky
_SUN_M = 130.0


def _open_shell(rng: np.random.Generator, m: Materials, ground: int, tile_m: float) -> Solid:
    sky = m.pick("wall")  # never seen: the appearance draws the sky
    faces = (sky, sky, sky, ground, sky, sky)
    return Solid(BOX, (0, -_SKY_M / 2, 0), (_REACH_M, _SKY_M / 2, _REACH_M), faces, tile_m)


def _polar(rng: np.random.Generator, yaw: float, near: float, far: float, spread: float = 0.8) -> tuple[float, float]:
    """Draw a place ahead: evenly in the logarithm of the distance."""
    distance, angle = np.exp(rng.uniform(np.log(near), np.log(far))), yaw + rng.normal(0, spread)
    return float(distance * np.sin(angle)), float(distance * np.cos(angle))


def street(rng: np.random.Generator) -> Scene:
    """Draw a street along z with houses, cars, trees, poles, people and wires."""
    m = Materials(rng)
    road = m.pick("road")
    if rng.random() < 0.2:
        road = m.polished(road, float(rng.uniform(0.02, 0.2)))  # wet
    stage = Stage(rng, m, _open_shell(rng, m, road, rng.uniform(2, 6)))
    half, walk = rng.uniform(2.5, 9), rng.uniform(1.2, 4)
    kerb, far = m.pick(str(rng.choice(["road", "floor", "grass"]))), rng.uniform(30, 150)
    for side in (-1, 1):
        side_walk = Part(BOX, (side * (half + walk / 2), -0.07, 60), (walk / 2, 0.07, 90), kerb, 1.5)
        stage.add(put([side_walk], (0, 0, 0)))
        z, gaps = -12.0, rng.uniform(0, 0.5)
        while z < far:
            wide = rng.uniform(3, 11)
            if rng.random() > gaps:
                back = half + walk + rng.uniform(0, 2.5)
                stage.add(put(house(rng, m, wide), (side * back, 0, z + wide), side * np.pi / 2))
            elif rng.random() < 0.6:
                trees = [
                    s
                    for _ in range(2)
                    for s in put(
                        tree(rng, m, rng.uniform(4, 12)),
                        (side * (half + walk + 3), 0, z + wide * rng.uniform(0.3, 1.7)),
                    )
                ]
                stage.add(trees)
            z += 2 * wide + (rng.uniform(0, 8) if rng.random() < 0.3 else 0)
        parked, gap = rng.random() < 0.7, rng.uniform(5.5, 14)
        for z in np.arange(rng.uniform(-4, 6), min(far, 60), gap):
            if parked and rng.random() < 0.75:
                stage.add(put(car(rng, m), (side * (half - 1.1), 0, z), np.pi / 2 + rng.normal(0, 0.03)))
            if rng.random() < 0.5:
                small = SMALL[rng.integers(len(SMALL))](rng, m)
                stage.add(
                    put(
                        small,
                        (side * (half + rng.uniform(0.3, walk)), -0.14, z + rng.uniform(0, gap)),
                        rng.uniform(0, 6.28),
                    )
                )
        if rng.random() < 0.35:
            for z in np.arange(rng.uniform(2, 8), min(far, 80), rng.uniform(6, 14)):
                stage.add(put(tree(rng, m, rng.uniform(3, 9)), (side * (half + 0.8), -0.14, z)))
        if rng.random() < 0.2:
            stage.add(put(fence(rng, m, 12), (side * (half + walk), -0.14, 14), np.pi / 2))
    for _ in range(rng.integers(0, 6)):  # traffic
        lane, z = rng.choice([-0.4, 0.4]) * half, np.exp(rng.uniform(np.log(4), np.log(70)))
        stage.add(put(car(rng, m), (lane, 0, z), np.pi / 2, drift(rng, 2.0, 0.5)))
    for _ in range(rng.integers(0, 7)):
        stage.add(
            person(
                rng, m, (float(rng.uniform(-1, 1) * (half + walk)), float(np.exp(rng.uniform(np.log(3), np.log(40)))))
            )
        )
    if rng.random() < 0.3:
        stage.add(put(wires(rng, m, 40), (0, 0, 25), np.pi / 2))
    if rng.random() < 0.5:  # dashes on the road
        paint = m.pick("paint")
        stage.add(
            *(
                put([Part(BOX, (0, -0.004, z), (0.07, 0.004, 1.2), paint, 1.0)], (0, 0, 0))
                for z in np.arange(0, 50, 5.0)
            )
        )
    eye = rng.uniform(1.1, 2.4) if rng.random() < 0.8 else rng.uniform(2.4, 9)
    spot = (rng.uniform(-0.8, 0.8) * (half + 0.5 * walk), -eye, rng.uniform(-3, 3))
    yaw = rng.normal(0, 0.12) if rng.random() < 0.65 else rng.uniform(-1.6, 1.6)
    camera = draw_camera(rng, spot, yaw, travel=rng.uniform(0.2, 1.0), pitch=(-0.03 - 0.03 * eye, 0.09))
    return stage.scene(camera, *outdoors(rng, m, _SUN_M))


def terrain(rng: np.random.Generator) -> Scene:
    """Draw hills, rocks, bushes and far ridges, from the ground or from 40 m above."""
    m = Materials(rng)
    stuff = str(rng.choice(["earth", "grass", "rock", "road"]))
    ground = m.pick(stuff)
    if rng.random() < 0.12:
        ground = m.polished(m.pick("metal"), float(rng.uniform(0.1, 0.5)))  # water
    stage = Stage(rng, m, _open_shell(rng, m, ground, float(np.exp(rng.uniform(np.log(1), np.log(12))))))
    yaw = rng.uniform(-np.pi, np.pi)
    steep = rng.uniform(0.02, 0.3)
    hills: list[Solid] = []
    for _ in range(rng.integers(2, 16)):
        x, z = _polar(rng, yaw, 3, 130)
        reach = np.hypot(x, z) * rng.uniform(0.3, 0.8)
        hills += put(hill(rng, m.pick(stuff), reach, steep * reach * rng.uniform(0.4, 2)), (x, 0, z))
    if rng.random() < 0.3:  # the camera itself stands on a slope
        hills += put(
            hill(rng, m.pick(stuff), rng.uniform(15, 40), rng.uniform(0.5, 5)), (rng.normal(0, 4), 0, rng.normal(0, 4))
        )
    eye = (
        float(np.exp(rng.uniform(np.log(0.4), np.log(2.2))))
        if rng.random() < 0.65
        else float(np.exp(rng.uniform(np.log(2), np.log(40))))
    )
    level = heights(hills, np.zeros((1, 2)))[0]
    camera = draw_camera(
        rng, (0, -level - eye, 0), yaw, travel=min(1.0, 0.3 * eye + 0.1), pitch=(-0.05 - 0.12 * np.log1p(eye), 0.16)
    )
    stage.add(*([h] for h in hills))
    near = max(1.0, 0.8 * eye)
    spots = [_polar(rng, yaw, near, 25 * near, 0.6) for _ in range(int(rng.integers(4, 36)))]
    for (x, z), height in zip(spots, heights(hills, np.array(spots)), strict=True):
        grow = np.hypot(x, z) * rng.uniform(0.02, 0.15)
        kind = rng.integers(5)
        if kind == 0:
            parts = rock(rng, m, grow)
        elif kind == 1:
            parts = bush(rng, m, max(0.2, grow))
        elif kind == 2:
            parts = tuft(rng, m, min(0.6, max(0.1, grow)))
        elif kind == 3 and grow > 0.5:
            parts = (conifer if rng.random() < 0.4 else tree)(rng, m, min(14, 3 + 2 * grow))
        else:
            parts = rock(rng, m, 0.5 * grow)
        stage.add(put(parts, (x, -height, z), rng.uniform(0, 6.28)))
    for _ in range(rng.integers(0, 4)):
        x, z = _polar(rng, yaw, max(2.0, near), 12 * near, 0.4)
        stage.add(
            (animal if rng.random() < 0.6 else person)(rng, m, (x, z), float(heights(hills, np.array([[x, z]]))[0]))
        )
    for _ in range(rng.integers(0, 4)):
        x, z = _polar(rng, yaw, 90, 190, 0.5)
        facing = np.arctan2(x, z)
        stage.add(put(ridge(rng, m.pick(str(rng.choice(["rock", "leaves"]))), rng.uniform(20, 70)), (x, 0, z), facing))
    return stage.scene(camera, *outdoors(rng, m, _SUN_M))


def forest(rng: np.random.Generator) -> Scene:
    """Draw a wood, a park or a garden: trunks near and far, undergrowth, grass, fallen stems."""
    m = Materials(rng, most=5)
    ground = m.pick(str(rng.choice(["earth", "grass"])))
    stage = Stage(rng, m, _open_shell(rng, m, ground, rng.uniform(0.7, 4)))
    yaw, dense = rng.uniform(-np.pi, np.pi), rng.uniform(0.3, 1)
    firs = rng.random()
    for _ in range(int(6 + 22 * dense)):
        x, z = _polar(rng, yaw, 1.8, 50)
        make = conifer if rng.random() < firs * 0.7 else tree
        stage.add(put(make(rng, m, rng.uniform(3, 16)), (x, 0, z), rng.uniform(0, 6.28)))
    for _ in range(int(rng.integers(3, 18))):
        x, z = _polar(rng, yaw, 1, 20)
        stage.add(put(bush(rng, m, rng.uniform(0.2, 1.1)), (x, 0, z), rng.uniform(0, 6.28)))
    if rng.random() < 0.75:
        stage.add_cells([s for _ in range(int(rng.integers(10, 60))) for s in _tuft_at(rng, m, yaw)], 3.0)
    for _ in range(rng.integers(0, 6)):
        x, z = _polar(rng, yaw, 1.5, 15)
        stage.add(put(rock(rng, m, rng.uniform(0.15, 0.9)), (x, 0, z), rng.uniform(0, 6.28)))
    for _ in range(rng.integers(0, 3)):  # fallen stems
        x, z = _polar(rng, yaw, 2, 12)
        r = rng.uniform(0.06, 0.25)
        log = Part(
            CYLINDER, (0, -r, 0), (r, rng.uniform(0.8, 3), r), m.pick("bark"), 0.6, rng.uniform(0, 6.28), (1.57, 0.0)
        )
        stage.add(put([log], (x, 0, z)))
    for _ in range(rng.integers(0, 3)):
        x, z = _polar(rng, yaw, 2, 14, 0.4)
        stage.add((animal if rng.random() < 0.6 else person)(rng, m, (x, z)))
    if rng.random() < 0.3:
        x, z = _polar(rng, yaw, 4, 12, 0.3)
        stage.add(put(fence(rng, m, rng.uniform(3, 10)), (x, 0, z), yaw + rng.normal(0, 0.4)))
    eye = rng.uniform(0.3, 2.2)
    camera = draw_camera(rng, (0, -eye, 0), yaw, travel=rng.uniform(0.1, 0.6), pitch=(-0.06, 0.17))
    return stage.scene(camera, *outdoors(rng, m, _SUN_M))


def _tuft_at(rng: np.random.Generator, m: Materials, yaw: float) -> list[Solid]:
    x, z = _polar(rng, yaw, 0.6, 12)
    return put(tuft(rng, m, rng.uniform(0.05, 0.45)), (x, 0, z))


def bodies(rng: np.random.Generator) -> Scene:
    """Draw people and animals near the camera in a field, on a square or in a hall."""
    m = Materials(rng, most=6)
    stuff = str(rng.choice(["grass", "earth", "road", "floor", "rock"]))
    stage = Stage(rng, m, _open_shell(rng, m, m.pick(stuff), rng.uniform(0.7, 4)))
    yaw = rng.uniform(-np.pi, np.pi)
    share = rng.random()
    for _ in range(rng.integers(1, 9)):
        x, z = _polar(rng, yaw, 1.3, 14, 0.45)
        stage.add((person if rng.random() < share else animal)(rng, m, (x, z)))
    for _ in range(rng.integers(0, 12)):
        x, z = _polar(rng, yaw, 1.5, 30)
        make = (bush, rock, tuft)[rng.integers(3)]
        parts = make(rng, m, rng.uniform(0.1, 0.9)) if rng.random() < 0.6 else SMALL[rng.integers(len(SMALL))](rng, m)
        stage.add(put(parts, (x, 0, z), rng.uniform(0, 6.28)))
    for _ in range(rng.integers(0, 8)):
        x, z = _polar(rng, yaw, 10, 90)
        if rng.random() < 0.5:
            stage.add(put(house(rng, m, rng.uniform(3, 12)), (x, 0, z), np.arctan2(x, z) + rng.normal(0, 0.4)))
        else:
            stage.add(put((conifer if rng.random() < 0.3 else tree)(rng, m, rng.uniform(4, 14)), (x, 0, z)))
    if rng.random() < 0.3:
        x, z = _polar(rng, yaw, 4, 12, 0.3)
        stage.add(put(fence(rng, m, rng.uniform(4, 14)), (x, 0, z), np.arctan2(x, z) + rng.normal(0, 0.3)))
    if rng.random() < 0.25:  # balls
        for _ in range(rng.integers(1, 4)):
            r = rng.uniform(0.08, 0.2)
            x, z = _polar(rng, yaw, 1.2, 6, 0.4)
            ball = put(
                [Part(ELLIPSOID, (0, -r, 0), (r, r, r), m.pick("thing"), 0.3)], (x, 0, z), 0.0, drift(rng, 1.5, 0.9)
            )
            stage.add(lifted(ball, rng.uniform(0, 1.2)))
    eye = float(np.exp(rng.uniform(np.log(0.25), np.log(3.0))))
    camera = draw_camera(rng, (0, -eye, 0), yaw, travel=rng.uniform(0.1, 0.6), pitch=(-0.04 - 0.06 * eye, 0.12))
    return stage.scene(camera, *outdoors(rng, m, _SUN_M))
