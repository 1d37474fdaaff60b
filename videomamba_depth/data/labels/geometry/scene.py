"""What is looked for in a clip, and what is believed of it before any flow is seen."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from videomamba_depth.data.labels.geometry.camera import Poses

MIN_INV_DEPTH = 1e-4  # in units of the teacher's mean, like all inverse depth here
RELATIVE_FLOOR = 0.02  # inverse depth below which relative errors stop shrinking


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
