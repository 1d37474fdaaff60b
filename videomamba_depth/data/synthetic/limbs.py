"""Solids that hang on each other by joints and walk: the parts of people- and animal-like bodies."""

from dataclasses import dataclass

import numpy as np

from videomamba_depth.data.synthetic.rotations import Matrix, rotation_x, rotation_y, rotation_z


@dataclass(frozen=True)
class Walk:
    """A body's way over the floor: on a circle, so that a stream can run for ever.

    center: x and z in m; radius in m; speed in m/s, negative for the other way round, 0 for standing; phase in rad;
    stride: steps in rad per meter walked; sway: amplitude in rad and idle rate in rad/s of a standing body; height: of
    the ground that it stands on, in m.
    """

    center: tuple[float, float]
    radius: float
    speed: float
    phase: float
    stride: float
    sway: tuple[float, float] = (0.3, 1.0)
    height: float = 0.0

    def cycle(self, time_s: float) -> float:
        """Return the phase of the gait in rad; a standing body moves its limbs slowly."""
        return self.phase + (self.stride * abs(self.speed) if self.speed else self.sway[1]) * time_s

    def pose(self, time_s: float) -> Matrix:
        """Return body-to-world [4,4]; the body looks along its z, its origin lies on the ground."""
        angle = self.phase + self.speed / self.radius * time_s
        pose = np.eye(4)
        pose[:3, :3] = rotation_y(angle + (np.pi / 2 if self.speed >= 0 else -np.pi / 2))
        pose[0, 3] = self.center[0] + self.radius * np.sin(angle)
        pose[2, 3] = self.center[1] + self.radius * np.cos(angle)
        pose[1, 3] = -self.height
        return pose


@dataclass(frozen=True)
class Joint:
    """Where a limb turns: pivot [3] in its parent's frame, in m; rest (pitch, roll), swing of the pitch, phase: rad."""

    pivot: tuple[float, float, float]
    rest: tuple[float, float] = (0.0, 0.0)
    swing: float = 0.0
    phase: float = 0.0

    def pose(self, cycle: float, amount: float) -> Matrix:
        """Return limb-to-parent [4,4]."""
        pose = np.eye(4)
        pitch = self.rest[0] + amount * self.swing * np.sin(cycle + self.phase)
        pose[:3, :3] = rotation_z(self.rest[1]) @ rotation_x(pitch)
        pose[:3, 3] = self.pivot
        return pose


@dataclass(frozen=True)
class Limb:
    """One part of a body, in place of a scene.Solid; half and center are given in the frame of the last joint."""

    shape: int
    center: tuple[float, float, float]
    half: tuple[float, float, float]
    textures: tuple[int, ...]
    tile_m: float
    walk: Walk
    joints: tuple[Joint, ...]
    mask: int = 0

    @property
    def moves(self) -> bool:
        return True

    @property
    def middle(self) -> Matrix:
        """The place [3] that its body walks about, and from which no part of it is ever farther than range_m."""
        return np.array([self.walk.center[0], -self.walk.height, self.walk.center[1]])

    @property
    def range_m(self) -> float:
        chain = sum(float(np.linalg.norm(joint.pivot)) for joint in self.joints)
        return self.walk.radius + chain + float(np.linalg.norm(self.center) + np.linalg.norm(self.half))

    def pose(self, time_s: float) -> Matrix:
        """Return object-to-world [4,4] at a time."""
        cycle = self.walk.cycle(time_s)
        amount = 1.0 if self.walk.speed else self.walk.sway[0]
        pose = self.walk.pose(time_s)
        for joint in self.joints:
            pose = pose @ joint.pose(cycle, amount)
        pose[:3, 3] += pose[:3, :3] @ np.array(self.center)
        return pose
