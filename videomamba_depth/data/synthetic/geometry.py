"""Ray casting against boxes, ellipsoids and cylinders; exact, vectorised over rays.

Every solid is a unit shape under an affine map: `unit = A (world - centre)` with A = diag(1/half) Rᵀ. One formula per
shape then covers every size, and the normal in the world is Aᵀ times the normal of the unit shape.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
BOX, ELLIPSOID, CYLINDER = 0, 1, 2  # a cylinder's axis is its local y
_NEAREST = np.float32(1e-3)


@dataclass(frozen=True)
class Solids:
    """The solids of a scene at one instant. Solid 0 is the shell: a box seen from inside that encloses everything.

    shape: kind of each solid [k]; to_unit: A [k,3,3]; centre: [k,3] in m; radius: of the bounding sphere [k] in m;
    half: half extents [k,3] in m.
    """

    shape: NDArray[np.int8]
    to_unit: Array
    centre: Array
    radius: Array
    half: Array


def rotate(matrix: Array, x: Array) -> Array:
    """Return matrix [3,3] @ x [3,n], element by element: bitwise the same for every n and BLAS."""
    return np.stack([m[0] * x[0] + m[1] * x[1] + m[2] * x[2] for m in matrix])


def cast_rays(solids: Solids, origin: Array, direction: Array) -> tuple[Array, NDArray[np.int32]]:
    """Find what each ray hits first.

    origin: [3], inside the shell and outside every other solid; direction: [3,n], of any length.
    Returns t [n] with hit = origin + t·direction, and the index of the solid [n] (0, the shell, if nothing else).
    """
    local_direction = rotate(solids.to_unit[0], direction)
    with np.errstate(divide="ignore", invalid="ignore"):
        local_origin = solids.to_unit[0] @ (origin - solids.centre[0])
        _, nearest = _slabs(local_origin, local_direction, (0, 1, 2))
        index = np.zeros(direction.shape[1], np.int32)
        squared = direction[0] ** 2 + direction[1] ** 2 + direction[2] ** 2
        for k in range(1, len(solids.shape)):
            towards = solids.centre[k] - origin
            along = towards[0] * direction[0] + towards[1] * direction[1] + towards[2] * direction[2]
            outside = np.float32(towards @ towards - solids.radius[k] ** 2)
            candidates = np.flatnonzero((along * along >= squared * outside) & (along > 0))
            if candidates.size == 0:
                continue
            matrix = solids.to_unit[k]
            t = _first_hit(solids.shape[k], matrix @ -towards, rotate(matrix, direction[:, candidates]))
            closer = t < nearest[candidates]
            hits = candidates[closer]
            nearest[hits] = t[closer]
            index[hits] = k
    return nearest, index


def _slabs(origin: Array, direction: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Return the parameters at which rays enter and leave the slabs |x_axis| ≤ 1 of the given axes."""
    enter, leave = None, None
    for axis in axes:
        inverse = 1 / direction[axis]
        first, second = (-1 - origin[axis]) * inverse, (1 - origin[axis]) * inverse
        near, far = np.minimum(first, second), np.maximum(first, second)
        enter = near if enter is None else np.maximum(enter, near)
        leave = far if leave is None else np.minimum(leave, far)
    assert enter is not None
    assert leave is not None
    return enter, leave


def _first_hit(shape: int, origin: Array, direction: Array) -> Array:
    """Return where rays enter the unit shape [n]; inf for a miss."""
    if shape == BOX:
        enter, leave = _slabs(origin, direction, (0, 1, 2))
    else:
        axes = (0, 1, 2) if shape == ELLIPSOID else (0, 2)
        a = sum(direction[i] * direction[i] for i in axes)
        b = sum(direction[i] * origin[i] for i in axes)
        c = np.float32(sum(origin[i] * origin[i] for i in axes) - 1)
        discriminant = b * b - a * c
        root = np.sqrt(np.maximum(discriminant, 0))
        enter, leave = (-b - root) / a, (-b + root) / a
        leave = np.where(discriminant > 0, leave, np.float32(-np.inf))
        if shape == CYLINDER:
            low, high = _slabs(origin, direction, (1,))
            enter, leave = np.maximum(enter, low), np.minimum(leave, high)
    return np.where((enter < leave) & (enter > _NEAREST), enter, np.float32(np.inf))


def unit_normals(shape: NDArray[np.int8], unit: Array) -> Array:
    """Return the outward normal [3,n] of the unit shapes at surface points unit [3,n] (not normalised)."""
    axis = np.abs(unit).argmax(0)
    normal = np.where(axis == np.arange(3)[:, None], np.sign(unit), np.float32(0))
    normal = np.where(shape == ELLIPSOID, unit, normal)
    cylinder = shape == CYLINDER
    on_side = unit[0] ** 2 + unit[2] ** 2 > unit[1] ** 2
    normal[:, cylinder] = 0
    normal[0] = np.where(cylinder & on_side, unit[0], normal[0])
    normal[1] = np.where(cylinder & ~on_side, np.sign(unit[1]), normal[1])
    normal[2] = np.where(cylinder & on_side, unit[2], normal[2])
    return normal.astype(np.float32)
