"""The scene families: how a scene is drawn from a seed."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.config import SceneFamily
from videomamba_depth.data.synthetic.furniture import Maker, Stand, furniture, street_object
from videomamba_depth.data.synthetic.geometry import BOX
from videomamba_depth.data.synthetic.indoors import clutter, corridor, tabletop
from videomamba_depth.data.synthetic.outdoors import bodies, forest, street, terrain
from videomamba_depth.data.synthetic.scene import CameraPath, Light, Scene, Solid
from videomamba_depth.data.synthetic.textures import TextureAtlas, facade, paint, random_texture

Vector = NDArray[np.float64]
_CLEARANCE_M = 0.35  # between the camera's range and any solid


def build_scene(seed: int, family: SceneFamily) -> Scene:
    """Draw a scene of a family; the same seed gives the same scene, bit for bit."""
    # The family is part of the seed, so that seed 7 of one family says nothing about seed 7 of another.
    number, build = _FAMILIES[family]
    return build(np.random.default_rng([seed, 0, number]))


def _camera(rng: np.random.Generator, position: Vector, yaw: float, travel: Vector) -> CameraPath:
    heading = (yaw, rng.normal(-0.12, 0.13), rng.normal(0, 0.03))
    turn = (rng.uniform(0.1, 0.45), rng.uniform(0.03, 0.15), rng.uniform(0, 0.05))
    return CameraPath(
        position=_triple(position),
        heading=heading,
        travel=_triple(travel),
        turn=turn,
        rates=tuple(rng.uniform(0.6, 1.8, 6)),
        phases=tuple(rng.uniform(0, 2 * np.pi, 6)),
        shake=float(rng.uniform(0, 0.006)),
        focal=float(rng.uniform(0.6, 1.25)),  # 80° down to 44° across
    )


def _room(rng: np.random.Generator) -> Scene:
    size = np.exp(rng.uniform(np.log([3.0, 2.3, 3.0]), np.log([9.0, 4.2, 11.0])))
    yaw = rng.uniform(-np.pi, np.pi)
    ahead = np.array([np.sin(yaw), 0, np.cos(yaw)])
    margin = size[[0, 2]] / 2 - rng.uniform(0.75, 1.0)
    xz = np.clip(-(ahead * size * rng.uniform(0.2, 0.5))[[0, 2]] + rng.normal(0, 0.4, 2), -margin, margin)
    eye = min(rng.uniform(0.7, 2.1), size[1] - 0.5)
    position = np.array([xz[0], -eye, xz[1]])
    camera = _camera(rng, position, yaw, rng.uniform([0.1, 0.02, 0.1], [0.6, 0.15, 0.6]))

    textures = [random_texture(rng, contrast) for contrast in (1.0, 0.4, 0.5, 0.5, 0.5)]
    textures += [random_texture(rng) for _ in range(9)]
    one_wall = rng.random() < 0.6
    walls = (2, 2, 2, 2) if one_wall else (2, 3, 4, 2)
    shell = Solid(
        BOX, (0, -size[1] / 2, 0), _triple(size / 2), (walls[0], walls[1], 1, 0, walls[2], walls[3]),
        rng.uniform(0.7, 2.5),
    )  # fmt: skip

    stands = _place(rng, camera, size / 2, int(rng.integers(4, 13)), furniture, 9.0)
    solids = [shell, *_furnish(rng, stands, range(5, 14), size[1]), *_wall_pieces(rng, size, range(5, 14))]
    lamp = np.array([*(rng.uniform(-0.35, 0.35, 2) * size[[0, 2]]), -size[1] * rng.uniform(0.8, 0.96)])[[0, 2, 1]]
    light = Light(
        lamp.astype(np.float32), rng.uniform(0.5, 1.3), rng.uniform(2, 6), rng.uniform(0.25, 0.7), rng.random() < 0.8
    )
    return Scene(tuple(solids), TextureAtlas.build(textures), np.zeros(len(textures), bool), light, camera)


def _courtyard(rng: np.random.Generator) -> Scene:
    yaw = rng.uniform(-np.pi, np.pi)
    position = np.array([0, -rng.uniform(1.2, 2.4), 0])
    camera = _camera(rng, position, yaw, rng.uniform([0.2, 0.03, 0.2], [1.2, 0.2, 1.2]))
    textures = [random_texture(rng, 0.7)]
    textures += [paint(rng, facade(rng)) for _ in range(3)]
    textures += [random_texture(rng) for _ in range(8)]
    blue = np.array([0.35, 0.55, 0.9], np.float32) * np.float32(rng.uniform(0.7, 1.1))
    cloud = paint(rng, np.zeros((128, 128), np.float32)).mean(-1, keepdims=True)
    cloud = np.clip((cloud - cloud.mean()) / (cloud.std() + 1e-6) * rng.uniform(0, 0.35), 0, 1)
    textures.append(np.clip(blue + cloud * (1 - blue), 0, 1).astype(np.float32))
    sky = len(textures) - 1
    shell = Solid(BOX, (0, -20, 0), (40, 20, 40), (sky, sky, sky, 0, sky, sky), rng.uniform(1.5, 4))

    solids = [shell]
    for corner in np.arange(6) + rng.uniform(0, 1):
        angle, distance = corner * np.pi / 3 + rng.normal(0, 0.15), rng.uniform(6, 17)
        half = rng.uniform([2.5, 1.4, 1.0], [6, 4.5, 3.0])
        reach = distance + half[2]
        center = (float(reach * np.sin(angle)), -float(half[1]), float(reach * np.cos(angle)))
        solids.append(
            Solid(
                BOX,
                center,
                _triple(half),
                (int(rng.integers(1, 4)),),
                rng.uniform(3, 6),
                yaw=angle + rng.normal(0, 0.2),
            )
        )
    stands = _place(rng, camera, np.array([20.0, 10.0, 20.0]), int(rng.integers(4, 12)), street_object, 13.0)
    solids += _furnish(rng, stands, range(4, 12), 10.0)
    sun_angle, height = rng.uniform(-np.pi, np.pi), rng.uniform(0.5, 1.3)
    sun = 30 * np.array([np.sin(sun_angle) * np.cos(height), -np.sin(height), np.cos(sun_angle) * np.cos(height)])
    light = Light(sun.astype(np.float32), rng.uniform(0.5, 1.2), np.inf, rng.uniform(0.3, 0.6), True)
    emissive = np.zeros(len(textures), bool)
    emissive[sky] = True
    return Scene(tuple(solids), TextureAtlas.build(textures), emissive, light, camera)


def _place(
    rng: np.random.Generator, camera: CameraPath, half: Vector, count: int, make: Maker, far: float
) -> list[Stand]:
    """Put things on the floor in front of the camera without touching each other, the walls or the camera's range."""
    placed: list[Stand] = []
    eye = np.array(camera.position)[[0, 2]]
    reach = float(np.hypot(camera.travel[0], camera.travel[2])) + _CLEARANCE_M
    for _ in range(count):
        stand = make(rng)
        for _attempt in range(10):
            angle, distance = camera.heading[0] + rng.normal(0, 0.6), rng.uniform(reach + stand.radius, far)
            spot = eye + distance * np.array([np.sin(angle), np.cos(angle)])
            inside = np.all(np.abs(spot) < half[[0, 2]] - stand.radius)
            apart = all(np.hypot(*(spot - other.spot)) > stand.radius + other.radius for other in placed)
            if inside and apart:
                placed.append(replace(stand, spot=spot))
                break
    return placed


def _furnish(rng: np.random.Generator, stands: list[Stand], textures: range, ceiling: float) -> list[Solid]:
    """Turn placed things into solids with textures, where the ceiling leaves room."""
    solids = []
    for stand in stands:
        palette = [int(t) for t in rng.choice(textures, 2)]
        solids += [s for s in stand.solids(palette) if -s.center[1] + s.half[1] + s.hop < ceiling]
    return solids


def _wall_pieces(rng: np.random.Generator, size: Vector, textures: range) -> list[Solid]:
    """Hang pictures and doors on the walls, thin boxes that stand out by a few centimeters."""
    pieces = []
    for _ in range(rng.integers(0, 6)):
        axis, side = int(rng.choice([0, 2])), int(rng.choice([-1, 1]))
        door = rng.random() < 0.35
        half = np.array([0.45, 1.0, 0.45]) if door else rng.uniform(0.15, 0.7, 3)
        half[axis] = 0.02
        center = np.zeros(3)
        center[axis] = side * (size[axis] / 2 - 0.02)
        center[2 - axis] = rng.uniform(-0.4, 0.4) * size[2 - axis]
        center[1] = -1.0 if door else -min(1.6, size[1] - 0.8)
        tile = 2 * max(half)
        pieces.append(Solid(BOX, _triple(center), _triple(half), (int(rng.choice(textures)),), tile))
    return pieces


def _triple(vector: Vector) -> tuple[float, float, float]:
    x, y, z = vector
    return float(x), float(y), float(z)


_FAMILIES: dict[SceneFamily, tuple[int, Callable[[np.random.Generator], Scene]]] = {
    "rooms": (1, _room),
    "courtyard": (2, _courtyard),
    "clutter": (3, clutter),
    "corridor": (4, corridor),
    "tabletop": (5, tabletop),
    "street": (6, street),
    "terrain": (7, terrain),
    "forest": (8, forest),
    "bodies": (9, bodies),
}
