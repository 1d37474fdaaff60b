"""Putting a scene together: things made of parts, their groups, the camera, and room for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.appearance import Appearance
from videomamba_depth.data.synthetic.limbs import Limb
from videomamba_depth.data.synthetic.materials import Materials
from videomamba_depth.data.synthetic.scene import CameraPath, Light, Scene, Solid

Vector = NDArray[np.float64]
Triple = tuple[float, float, float]
_CLEARANCE = 0.15  # between the camera's range and any solid, as a share of the camera's distance to what it looks at
_TIMES_S = np.linspace(0, 30, 16)  # at which moving things are kept away from the camera


@dataclass(frozen=True)
class Part:
    """A solid in the frame of the thing that it belongs to: y is up to −height, the thing stands on y = 0."""

    shape: int
    center: Triple
    half: Triple
    texture: int | tuple[int, ...]
    tile_m: float = 0.5
    yaw: float = 0.0
    tilt: tuple[float, float] = (0.0, 0.0)
    mask: int = 0


@dataclass(frozen=True)
class Motion:
    """How a whole thing moves; see scene.Solid."""

    swing: Triple = (0.0, 0.0, 0.0)
    rate: float = 0.0
    phase: float = 0.0


STILL = Motion()


def put(parts: Sequence[Part], spot: Sequence[float], yaw: float = 0.0, motion: Motion = STILL) -> list[Solid]:
    """Set a thing down with its origin at spot (x, y, z) in m, turned by yaw; −y is the height of its ground."""
    c, s = np.cos(yaw), np.sin(yaw)
    x0, y0, z0 = (float(v) for v in spot)
    return [
        Solid(
            shape=p.shape,
            center=(
                x0 + float(c * p.center[0] + s * p.center[2]),
                y0 + p.center[1],
                z0 + float(c * p.center[2] - s * p.center[0]),
            ),
            half=tuple(max(float(h), 1e-3) for h in p.half),  # type: ignore[arg-type]
            textures=p.texture if isinstance(p.texture, tuple) else (p.texture,),
            tile_m=p.tile_m,
            yaw=yaw + p.yaw,
            swing=motion.swing,
            rate=motion.rate,
            phase=motion.phase,
            tilt=p.tilt,
            mask=p.mask,
        )
        for p in parts
    ]


def drift(rng: np.random.Generator, amplitude: float, probability: float = 0.15) -> Motion:
    """Draw a motion over the floor, mostly none."""
    if rng.random() > probability:
        return STILL
    angle, reach = rng.uniform(0, 2 * np.pi), amplitude * rng.uniform(0.3, 1)
    return Motion(
        (float(reach * np.sin(angle)), 0.0, float(reach * np.cos(angle))), float(rng.uniform(0.5, 2.0)), float(angle)
    )


def draw_camera(
    rng: np.random.Generator,
    position: Sequence[float] | Vector,
    yaw: float,
    *,
    travel: float,
    pitch: tuple[float, float] = (-0.12, 0.2),
    roll: float = 0.05,
) -> CameraPath:
    """Draw a camera: 30° to 110° across, mostly 45° to 80°.

    position: (x, y, z) in m; travel: amplitude in m; pitch: mean and std in rad, negative looks down; roll: std in rad.
    """
    usual = rng.random() < 0.65
    fov = np.clip(rng.normal(62, 10), 45, 80) if usual else rng.uniform(30, 110)
    tilted = rng.random() < 0.12
    away = rng.uniform([0.3, 0.05, 0.3], [1, 0.3, 1]) * travel
    return CameraPath(
        position=triple(position),
        heading=(yaw, float(np.clip(rng.normal(*pitch), -1.35, 0.9)), float(rng.normal(0, 0.3 if tilted else roll))),
        travel=triple(away),
        turn=(rng.uniform(0.05, 0.4), rng.uniform(0.02, 0.12), rng.uniform(0, 0.05)),
        rates=tuple(rng.uniform(0.5, 1.7, 6)),
        phases=tuple(rng.uniform(0, 2 * np.pi, 6)),
        shake=float(rng.uniform(0, 0.006)),
        focal=float(0.5 / np.tan(np.radians(fov) / 2)),
    )


@dataclass
class Stage:
    """A scene in the making. The shell is a box of half extents `half` on the floor y = 0, seen from inside."""

    rng: np.random.Generator
    materials: Materials
    shell: Solid
    things: list[list[Solid | Limb]] = field(default_factory=list)

    def add(self, *things: Sequence[Solid | Limb]) -> None:
        """Count things in; the solids of each lie together."""
        self.things += [list(thing) for thing in things if thing]

    def add_cells(self, solids: Sequence[Solid | Limb], cell_m: float) -> None:
        """Count many small solids in, grouped by where they lie."""
        cells: dict[tuple[int, ...], list[Solid | Limb]] = {}
        for solid in solids:
            cells.setdefault(tuple(int(v // cell_m) for v in solid.center), []).append(solid)
        self.add(*cells.values())

    def scene(self, camera: CameraPath, light: Light, appearance: Appearance) -> Scene:
        """Finish the scene, without the things that the camera would run into."""
        clear = max(_CLEARANCE, 0.5 * float(np.hypot(*camera.travel[::2])))
        near = np.array(camera.travel) + clear
        kept = [thing for thing in self.things if not any(_touches(s, camera, near) for s in thing)]
        starts = np.cumsum([1, *(len(thing) for thing in kept)])[:-1] if kept else None
        return Scene(
            (self.shell, *(solid for thing in kept for solid in thing)),
            self.materials.atlas(),
            np.array(self.materials.emissive),
            light,
            camera,
            None if starts is None else starts.astype(np.int64),
            appearance,
            self.materials.finishes(),
        )


def _touches(solid: Solid | Limb, camera: CameraPath, near: Vector) -> bool:
    """Say whether a solid's box comes within `near` [3] of the camera's rest position, at any time looked at."""
    eye = np.array(camera.position)
    if np.linalg.norm(solid.middle - eye) > solid.range_m + np.linalg.norm(near):
        return False
    for time_s in _TIMES_S if solid.moves else _TIMES_S[:1]:
        pose = solid.pose(float(time_s))
        local = pose[:3, :3].T @ (eye - pose[:3, 3])
        if np.all(np.abs(local) < np.array(solid.half) + np.abs(pose[:3, :3].T) @ near):
            return True
    return False


def triple(vector: Sequence[float] | Vector) -> Triple:
    """Return three floats."""
    x, y, z = vector
    return float(x), float(y), float(z)


def lifted(things: Sequence[Solid], height: float) -> list[Solid]:
    """Return things raised by a height in m."""
    return [replace(s, center=(s.center[0], s.center[1] - height, s.center[2])) for s in things]
