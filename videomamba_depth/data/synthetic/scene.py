"""A scene: solids that move as functions of time, their materials, a light, and a camera that moves as well.

World frame: meters, x right, y down, z forward; the floor is the plane y = 0, so heights are negative y.
Camera frame: the OpenCV one, x right, y down, z forward (optical axis).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.appearance import Appearance, Finish
from videomamba_depth.data.synthetic.geometry import Array, Groups, Solids
from videomamba_depth.data.synthetic.limbs import Limb
from videomamba_depth.data.synthetic.rotations import Matrix, rotation_x, rotation_y, rotation_z
from videomamba_depth.data.synthetic.textures import TextureAtlas


@dataclass(frozen=True)
class Solid:
    """One solid and its motion: a swing along `swing`, a hop upwards, and a spin about the vertical axis.

    shape: BOX, ELLIPSOID or CYLINDER; center, half: [3] in m; yaw in rad; textures: one for each face
    (−x, +x, −y, +y, −z, +z) or a single one for all; tile_m: size of one texture tile in m; swing [3] in m; hop in m;
    rate: swings in rad/s; phase in rad; spin in rad/s; tilt: pitch and roll in rad, before the yaw; mask: of a panel.
    """

    shape: int
    center: tuple[float, float, float]
    half: tuple[float, float, float]
    textures: tuple[int, ...]
    tile_m: float
    yaw: float = 0.0
    swing: tuple[float, float, float] = (0.0, 0.0, 0.0)
    hop: float = 0.0
    rate: float = 0.0
    phase: float = 0.0
    spin: float = 0.0
    tilt: tuple[float, float] = (0.0, 0.0)
    mask: int = 0

    @property
    def moves(self) -> bool:
        return self.spin != 0 or (self.rate != 0 and (any(self.swing) or self.hop != 0))

    @property
    def middle(self) -> Matrix:
        """The place [3] that it moves about, and from which it is never farther than range_m."""
        return np.array(self.center)

    @property
    def range_m(self) -> float:
        return float(np.linalg.norm(self.half) + np.linalg.norm(self.swing) + self.hop)

    def pose(self, time_s: float) -> Matrix:
        """Return object-to-world [4,4] at a time."""
        angle = self.yaw + self.spin * time_s
        pose = np.eye(4)
        pose[:3, :3] = rotation_y(angle)
        if any(self.tilt):
            pose[:3, :3] = pose[:3, :3] @ rotation_x(self.tilt[0]) @ rotation_z(self.tilt[1])
        swing = np.sin(self.rate * time_s + self.phase)
        pose[:3, 3] = np.array(self.center) + swing * np.array(self.swing)
        pose[1, 3] -= self.hop * abs(np.sin(1.7 * self.rate * time_s + self.phase))
        return pose


@dataclass(frozen=True)
class CameraPath:
    """A smooth bounded path with hand-held shake; a function of time alone, so a stream can run for ever.

    position, heading (yaw, pitch, roll in rad): rest pose; travel [3] in m and turn [3] in rad: amplitudes;
    rates, phases: of the six sinusoids; shake: amplitude in rad; focal: focal length over frame width.
    """

    position: tuple[float, float, float]
    heading: tuple[float, float, float]
    travel: tuple[float, float, float]
    turn: tuple[float, float, float]
    rates: tuple[float, ...]
    phases: tuple[float, ...]
    shake: float
    focal: float

    def pose(self, time_s: float, static: bool = False) -> Matrix:
        """Return camera-to-world [4,4] at a time; the pose of time 0 when static."""
        time_s = 0.0 if static else time_s
        waves = np.sin(np.array(self.rates) * time_s + np.array(self.phases))
        angles = np.array(self.heading) + np.array(self.turn) * waves[3:]
        shakes = np.sin(np.array([9.1, 7.3, 6.1]) * time_s + np.array(self.phases[:3]))
        angles = angles + self.shake * shakes
        pose = np.eye(4)
        pose[:3, :3] = rotation_y(angles[0]) @ rotation_x(angles[1]) @ rotation_z(angles[2])
        pose[:3, 3] = np.array(self.position) + np.array(self.travel) * waves[:3]
        return pose


@dataclass(frozen=True)
class Light:
    """A point light (a sun when far away) above an ambient sky.

    position [3] in m; strength: light at normal incidence; reach: distance in m at which a lamp has halved, inf for a
    sun; ambient: light from everywhere; casts_shadows.
    """

    position: Array
    strength: float
    reach: float
    ambient: float
    casts_shadows: bool


@dataclass(frozen=True)
class Scene:
    """Everything that a frame needs besides its time. Solid 0 is the shell (see geometry.Solids).

    group_start: first solid of each group, for families whose solids lie in groups; appearance, finish: see
    appearance.py; None for plain white light and matt surfaces.
    """

    solids: tuple[Solid | Limb, ...]
    atlas: TextureAtlas
    emissive: NDArray[np.bool_]  # per texture: shines by itself (sky, lamps) and is not shaded
    light: Light
    camera: CameraPath
    group_start: NDArray[np.int64] | None = None
    appearance: Appearance | None = None
    finish: Finish | None = None
    texture_of: NDArray[np.int32] = field(init=False)  # [k,6]
    tile_m: Array = field(init=False)
    moves: NDArray[np.bool_] = field(init=False)
    _shape: NDArray[np.int8] = field(init=False)
    _half: Array = field(init=False)
    _radius: Array = field(init=False)
    _mask: NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        faces = [s.textures if len(s.textures) == 6 else s.textures[:1] * 6 for s in self.solids]
        half = np.array([s.half for s in self.solids], np.float32)
        shape = np.array([s.shape for s in self.solids], np.int8)
        # An ellipsoid fits in the sphere of its longest half axis, a box or a cylinder in that of its diagonal.
        radius = np.where(shape == 1, half.max(1), np.linalg.norm(half, axis=1)) * np.float32(1.0001)
        for name, value in {
            "texture_of": np.array(faces, np.int32),
            "tile_m": np.array([s.tile_m for s in self.solids], np.float32),
            "moves": np.array([s.moves for s in self.solids]),
            "_shape": shape,
            "_half": half,
            "_radius": radius,
            "_mask": np.array([s.mask for s in self.solids], np.int32),
        }.items():
            object.__setattr__(self, name, value)

    def object_poses(self, time_s: float) -> Matrix:
        """Return object-to-world of every solid [k,4,4]."""
        return np.stack([solid.pose(time_s) for solid in self.solids])

    def solids_at(self, time_s: float) -> Solids:
        """Freeze the solids at a time."""
        poses = self.object_poses(time_s)
        to_unit = np.swapaxes(poses[:, :3, :3], 1, 2) / self._half[:, :, None]
        center = poses[:, :3, 3].astype(np.float32)
        groups = None if self.group_start is None else Groups.around(self.group_start, center, self._radius)
        return Solids(self._shape, to_unit.astype(np.float32), center, self._radius, self._half, self._mask, groups)
