"""Families inside: cluttered rooms, corridors and halls, table tops."""

import numpy as np

from videomamba_depth.data.synthetic.creatures import animal, person
from videomamba_depth.data.synthetic.cutouts import FENCE
from videomamba_depth.data.synthetic.geometry import BOX, CYLINDER, ELLIPSOID, PANEL
from videomamba_depth.data.synthetic.household import large_thing, table, wall_thing
from videomamba_depth.data.synthetic.lighting import indoors
from videomamba_depth.data.synthetic.materials import Materials
from videomamba_depth.data.synthetic.scene import Scene, Solid
from videomamba_depth.data.synthetic.small_things import small_thing
from videomamba_depth.data.synthetic.stage import Part, Stage, Vector, draw_camera, drift, put


def _shell(rng: np.random.Generator, m: Materials, size: Vector) -> Solid:
    """Draw walls, floor and ceiling of a room of size [3] in m."""
    floor = m.pick("floor")
    if rng.random() < 0.35:
        floor = m.polished(floor, float(rng.uniform(0.03, 0.3)))
    wall, other = m.pick("wall"), m.pick("wall")
    sides = (wall, wall, m.pick("wall"), floor, other if rng.random() < 0.4 else wall, wall)
    half = (float(size[0] / 2), float(size[1] / 2), float(size[2] / 2))
    return Solid(BOX, (0, -half[1], 0), half, sides, float(rng.uniform(0.8, 3)))


def _lamp(rng: np.random.Generator, size: Vector) -> Vector:
    x, z = rng.uniform(-0.4, 0.4, 2) * size[[0, 2]]
    return np.array([x, -size[1] * rng.uniform(0.75, 0.96), z])


def _hang(stage: Stage, size: Vector, count: int, margin: float = 0.8) -> None:
    """Hang things on the walls."""
    for _ in range(count):
        side = int(stage.rng.integers(4))
        yaw = side * np.pi / 2  # the wall's inside looks along −z turned by it
        across, away = (size[0], size[2]) if side % 2 == 0 else (size[2], size[0])
        along = stage.rng.uniform(-0.5, 0.5) * max(across - margin, 0.1)
        x, z = along * np.cos(yaw) + away / 2 * np.sin(yaw), away / 2 * np.cos(yaw) - along * np.sin(yaw)
        height = stage.rng.uniform(1.1, max(1.3, min(1.9, size[1] - 0.6)))
        stage.add(put(wall_thing(stage.rng, stage.materials), (x, -height, z), yaw))


def _dress(
    stage: Stage, spot: tuple[float, float, float], half: tuple[float, float], count: int, yaw: float = 0.0
) -> None:
    """Put small things on a top of half extents (x, z) around a spot, closer together in its middle."""
    c, s = np.cos(yaw), np.sin(yaw)
    for _ in range(count):
        x, z = np.clip(stage.rng.normal(0, 0.5, 2), -0.92, 0.92) * half
        place = (spot[0] + c * x + s * z, spot[1], spot[2] + c * z - s * x)
        stage.add(
            put(
                small_thing(stage.rng, stage.materials), place, stage.rng.uniform(0, 6.28), drift(stage.rng, 0.15, 0.06)
            )
        )


def clutter(rng: np.random.Generator) -> Scene:
    """Draw a furnished, untidy room, seen from anywhere at any height."""
    size = np.exp(rng.uniform(np.log([2.2, 2.2, 2.5]), np.log([8, 4, 10])))
    m = Materials(rng)
    stage = Stage(rng, m, _shell(rng, m, size))
    yaw = rng.uniform(-np.pi, np.pi)
    ahead = np.array([np.sin(yaw), np.cos(yaw)])
    room = size[[0, 2]] / 2
    eye = rng.uniform(0.25, min(2.2, size[1] - 0.3))
    spot = np.clip(-ahead * room * rng.uniform(0.1, 0.95) + rng.normal(0, 0.3, 2), 0.4 - room, room - 0.4)
    for _ in range(rng.integers(5, 18)):
        x, z = spot + ahead * rng.uniform(0.5, 5) + rng.normal(0, 1.4, 2)
        x, z = np.clip([x, z], 0.35 - room, room - 0.35)
        turned = rng.choice([0, 1, 2, 3]) * np.pi / 2 + (
            rng.normal(0, 0.05) if rng.random() < 0.6 else rng.uniform(-0.7, 0.7)
        )
        if rng.random() < 0.3:
            parts, height, half = table(rng, m)
            stage.add(put(parts, (x, 0, z), turned))
            _dress(stage, (x, -height, z), half, int(rng.integers(0, 10)), turned)
        else:
            stage.add(put(large_thing(rng, m), (x, 0, z), turned, drift(rng, 0.4, 0.08)))
    for _ in range(rng.integers(0, 9)):
        x, z = np.clip(spot + ahead * rng.uniform(0.3, 4) + rng.normal(0, 0.8, 2), -room, room)
        stage.add(put(small_thing(rng, m), (x, 0, z), rng.uniform(0, 6.28), drift(rng, 0.3)))
    for _ in range(rng.integers(0, 3)):
        place = tuple(
            float(v) for v in np.clip(spot + ahead * rng.uniform(1.2, 4) + rng.normal(0, 0.7, 2), -room, room)
        )
        stage.add((person if rng.random() < 0.75 else animal)(rng, m, place))  # type: ignore[arg-type]
    if rng.random() < 0.4:  # a hanging lamp
        x, z, drop = *(rng.uniform(-0.3, 0.3, 2) * size[[0, 2]]), rng.uniform(0.3, 0.9)
        bulb = m.lamp(np.ones(3, np.float32), 1.5)
        cord = Part(CYLINDER, (0, -size[1] + drop / 2, 0), (0.008, drop / 2, 0.008), m.pick("metal"))
        stage.add(put([cord, Part(ELLIPSOID, (0, -size[1] + drop, 0), (0.2, 0.15, 0.2), bulb)], (x, 0, z)))
    _hang(stage, size, int(rng.integers(1, 9)))
    down = float(np.clip((1.0 - eye) * 0.25, -0.5, 0.3))
    camera = draw_camera(rng, (spot[0], -eye, spot[1]), yaw, travel=rng.uniform(0.1, 0.5), pitch=(down - 0.08, 0.22))
    return stage.scene(camera, *indoors(rng, m, _lamp(rng, size)))


def corridor(rng: np.random.Generator) -> Scene:
    """Draw a corridor, tunnel, arcade or hall with what repeats along it."""
    wide, tall, long = np.exp(rng.uniform(np.log([1.2, 2.1, 8]), np.log([9, 6, 60])))
    size = np.array([wide, tall, long])
    m = Materials(rng)
    stage = Stage(rng, m, _shell(rng, m, size))
    at = -long / 2 + rng.uniform(0.5, 0.4 * long)
    step, kind = rng.uniform(1.2, 5), rng.integers(5)
    trim, lit = m.pick("wood"), m.lamp(np.array([1, 0.95, 0.9], np.float32), float(rng.uniform(1, 4)))
    r = min(rng.uniform(0.06, 0.35), 0.12 * wide)
    for z in np.arange(-long / 2 + step / 2, long / 2, step):
        lamp = Part(BOX, (0, -tall + 0.02, z), (0.1 * wide, 0.02, 0.25 * step * rng.uniform(0.3, 1)), lit, 1.0)
        stage.add(put([lamp], (0, 0, 0)))
        for side in (-1, 1):
            x = side * wide / 2
            if kind == 0:  # doors
                door = [
                    Part(BOX, (0, -1.0, 0), (0.45, 1.0, 0.03), trim, 1.0),
                    Part(ELLIPSOID, (0.35, -1.0, -0.06), (0.04, 0.02, 0.04), m.pick("metal"), 0.3),
                ]
                stage.add(put(door, (x, 0, z), side * np.pi / 2))
            elif kind == 1:  # columns
                shape = int(rng.choice([BOX, CYLINDER])) if z < -long / 2 + step else int(stage.things[-1][0].shape)
                column = [
                    Part(shape, (0, -tall / 2, 0), (r, tall / 2, r), m.pick("wall"), 1.0),
                    Part(BOX, (0, -tall + 0.1, 0), (1.5 * r, 0.1, 1.5 * r), trim, 1.0),
                ]
                stage.add(put(column, (x - side * 0.15 * wide, 0, z)))
            elif kind == 2:  # ribs
                stage.add(
                    put([Part(BOX, (0, -tall / 2, 0), (0.1 * wide, tall / 2, 0.08 * step), trim, 1.0)], (x, 0, z))
                )
            elif kind == 3:  # shelves of a store
                rack = [Part(BOX, (0, -tall * 0.35, 0), (0.16 * wide, tall * 0.35, 0.45 * step), m.pick("thing"), 0.6)]
                stage.add(put(rack, (x - side * 0.17 * wide, 0, z)))
            elif rng.random() < 0.7:
                stage.add(put(wall_thing(rng, m), (x, -1.4, z), side * np.pi / 2))
    for x in rng.uniform(-0.45, 0.45, rng.integers(0, 4)) * wide:  # pipes, rails
        y = -tall * rng.uniform(0.85, 0.98) if rng.random() < 0.7 else -1.0
        stage.add(
            put(
                [Part(CYLINDER, (x, y, 0), (0.04, long / 2, 0.04), m.pick("metal"), 1.0, tilt=(1.5708, 0.0))], (0, 0, 0)
            )
        )
    for _ in range(rng.integers(0, 7)):
        x, z = rng.uniform(-0.42, 0.42) * wide, at + rng.uniform(1, 0.5 * long)
        stage.add(put(large_thing(rng, m), (x, 0, z), rng.uniform(0, 6.28), drift(rng, 0.4)))
    for _ in range(rng.integers(0, 4)):
        stage.add(person(rng, m, (float(rng.uniform(-0.3, 0.3) * wide), float(at + rng.uniform(2, 14)))))
    if rng.random() < 0.3:
        mask = int(rng.choice(FENCE))
        panel = Part(
            PANEL, (0, -tall / 2, at + rng.uniform(2, 9)), (wide / 2, tall / 2, 1), m.pick("metal"), 1.0, mask=mask
        )
        stage.add(put([panel], (0, 0, 0)))
    eye = rng.uniform(0.3, min(2.3, tall - 0.3))
    spot = (rng.uniform(-0.3, 0.3) * wide, -eye, at)
    turn = rng.normal(0, 0.15) if rng.random() < 0.6 else rng.uniform(-0.9, 0.9)
    camera = draw_camera(rng, spot, turn, travel=min(0.5, 0.12 * wide), pitch=(-0.05, 0.12))
    bulb = np.array([0, -tall * 0.9, at + rng.uniform(-2, 8)])
    bulb[2] = np.clip(bulb[2], -0.45 * long, 0.45 * long)
    return stage.scene(camera, *indoors(rng, m, bulb))


def tabletop(rng: np.random.Generator) -> Scene:
    """Draw a table, shelf or floor with small things, seen from 20 cm to 1.5 m."""
    size = np.exp(rng.uniform(np.log([2, 2.2, 2]), np.log([7, 3.5, 8])))
    m = Materials(rng, most=6)
    stage = Stage(rng, m, _shell(rng, m, size))
    parts, height, half = table(rng, m)
    on_floor = rng.random() < 0.2
    if on_floor:
        height, half = 0.0, (1.2, 1.2)
    else:
        stage.add(put(parts, (0, 0, 0)))
    _dress(stage, (0, -height, 0), half, int(rng.integers(6, 34)))
    for _ in range(rng.integers(0, 5)):
        x, z = rng.uniform(-0.45, 0.45, 2) * size[[0, 2]]
        if np.hypot(x, z) > 1.3:
            stage.add(put(large_thing(rng, m), (x, 0, z), rng.uniform(0, 6.28)))
    _hang(stage, size, int(rng.integers(0, 6)))
    away, up = float(np.exp(rng.uniform(np.log(0.25), np.log(1.3)))), rng.uniform(0.12, 1.35)
    yaw = rng.uniform(-np.pi, np.pi)
    target = np.array([rng.normal(0, 0.35) * half[0], -height - 0.06, rng.normal(0, 0.35) * half[1]])
    spot = target - away * np.array([np.sin(yaw) * np.cos(up), np.sin(up), np.cos(yaw) * np.cos(up)])
    spot = np.clip(
        spot, [-size[0] / 2 + 0.2, -size[1] + 0.2, -size[2] / 2 + 0.2], [size[0] / 2 - 0.2, -0.1, size[2] / 2 - 0.2]
    )
    camera = draw_camera(rng, spot, yaw, travel=0.12 * away, pitch=(-up * rng.uniform(0.6, 1.05), 0.08), roll=0.08)
    return stage.scene(camera, *indoors(rng, m, _lamp(rng, size)))
