"""Poses, projection, what is looked for in a clip, and what is believed of it before any flow is seen.

A pose (R, t) maps world to camera, x_cam = R x_world + t. A point is its ray X = ((u − c) / f, 1) with an inverse depth
D; in another camera it is Y = R X + D t, up to the factor 1 / D, and so a point at infinity is no special case.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from videomamba_depth.utils.cameras import cross_matrix, rotation_matrix

MIN_DEPTH_RATIO = 0.05  # of a point's depth after and before the change of camera; what comes nearer is not used
MIN_INV_DEPTH = 1e-4  # in units of the teacher's mean, like all inverse depth here
RELATIVE_FLOOR = 0.02  # inverse depth below which relative errors stop shrinking


class Poses(NamedTuple):
    """World to camera of N frames: rotation [N,3,3], translation [N,3]."""

    rotation: Tensor
    translation: Tensor

    @staticmethod
    def identity(num_frames: int, like: Tensor) -> Poses:
        """Return N cameras at the origin."""
        eye = torch.eye(3, dtype=like.dtype, device=like.device)
        return Poses(eye.repeat(num_frames, 1, 1), like.new_zeros(num_frames, 3))

    def relative(self, source: Tensor, target: Tensor) -> Poses:
        """Return the change from the camera of frames `source` [...] to that of frames `target` [...]: [...,3,3],
        [...,3]."""
        rotation = self.rotation[target] @ self.rotation[source].mT
        moved = (rotation @ self.translation[source][..., None])[..., 0]
        return Poses(rotation, self.translation[target] - moved)

    def moved(self, twist: Tensor) -> Poses:
        """Return exp(twist) ∘ pose for twists [N,6] = (translation, rotation vector), to first order in translation."""
        rotation = rotation_matrix(twist[:, 3:])
        translation = (rotation @ self.translation[..., None])[..., 0] + twist[:, :3]
        return Poses(rotation @ self.rotation, translation)


def adjoint(change: Poses) -> Tensor:
    """Return [...,6,6]: the twist in the target's frame that equals a twist (translation, rotation) in the source's."""
    rotation = change.rotation
    top = torch.cat([rotation, cross_matrix(change.translation) @ rotation], -1)
    bottom = torch.cat([torch.zeros_like(rotation), rotation], -1)
    return torch.cat([top, bottom], -2)


def transform(ray: Tensor, inv_depth: Tensor, change: Poses) -> tuple[Tensor, Tensor, Tensor]:
    """Return Y = R X + D t as three tensors [...,P].

    ray: [3,...,P] broadcastable. inv_depth: [...,P]. change: [...,3,3] and [...,3].
    """
    r, t = change.rotation[..., None], change.translation[..., None]
    x, y, z = (
        r[..., k, 0, :] * ray[0] + r[..., k, 1, :] * ray[1] + r[..., k, 2, :] * ray[2] + inv_depth * t[..., k, :]
        for k in range(3)
    )
    return x, y, z


class View(NamedTuple):
    """Where the P points are in their own frame [2,P] px, and the principal point [2] px."""

    points_px: Tensor
    center_px: Tensor


class Scene(NamedTuple):
    """Unknowns: poses of N frames, inverse depth [N,P] on the grid, log focal length (px), the teacher's
    shift.

    The teacher's inverse depth is known up to scale and shift: a + shift is what it says; the scale is that of the
    world.
    """

    poses: Poses
    inv_depth: Tensor
    log_focal: Tensor
    shift: Tensor


class Belief(NamedTuple):
    """What is believed before any flow is looked at.

    teacher: a [N,P], inverse depth but for its shift. spread: relative standard deviation of the inverse depth about
    a + shift, scalar or [N,P]. log_focal, shift: mean and standard deviation; standard deviation 0: it is known and
    stays.
    """

    teacher: Tensor
    spread: Tensor
    log_focal: tuple[float, float]
    shift: tuple[float, float]

    def mean(self, shift: Tensor) -> Tensor:
        """Return a + shift [N,P], held above 0."""
        return (self.teacher + shift).clamp(min=MIN_INV_DEPTH)
