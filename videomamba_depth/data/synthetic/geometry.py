"""Ray casting against boxes, ellipsoids, cylinders, cones and cut-out panels; exact, vectorized over rays.

Every solid is a unit shape under an affine map: `unit = A (world - center)` with A = diag(1/half) Rᵀ. One formula per
shape then covers every size, and the normal in the world is Aᵀ times the normal of the unit shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.cutouts import masks

Array = NDArray[np.float32]
BOX, ELLIPSOID, CYLINDER, CONE, PANEL = range(5)
# A cylinder's and a cone's axis is the local y; a cone's tip points up (−y). A panel is the local square z = 0, of
# which a mask (see cutouts.py) says what is there: leaves, a fence, a railing.
_NEAREST = np.float32(1e-3)


@dataclass(frozen=True)
class Solids:
    """The solids of a scene at one instant. Solid 0 is the shell: a box seen from inside that encloses everything.

    shape: kind of each solid [k]; to_unit: A [k,3,3]; center: [k,3] in m; radius: of the bounding sphere [k] in m;
    half: half extents [k,3] in m; mask: of panels, index into `cutouts.masks()` [k]; groups: solids that lie together,
    which rays that miss their common sphere need not be tried against; None for no grouping.
    """

    shape: NDArray[np.int8]
    to_unit: Array
    center: Array
    radius: Array
    half: Array
    mask: NDArray[np.int32] | None = None
    groups: "Groups | None" = None


@dataclass(frozen=True)
class Groups:
    """Bounding spheres of groups: center [g,3] and radius [g] in m; start: first solid of each [g], in order."""

    center: Array
    radius: Array
    start: NDArray[np.int64]

    @staticmethod
    def around(start: NDArray[np.int64], center: Array, radius: Array) -> "Groups":
        """Enclose solids k ≥ start[0] with centers [k,3] and radii [k]; group g begins with solid start[g]."""
        sizes = np.diff(np.append(start, len(center)))
        middle = (np.add.reduceat(center, start) / sizes[:, None].astype(np.float32)).astype(np.float32)
        offset = center[start[0] :] - np.repeat(middle, sizes, axis=0)
        reach = np.linalg.norm(offset, axis=1) + radius[start[0] :]
        return Groups(middle, np.maximum.reduceat(reach, start - start[0]) * np.float32(1.0001), start)


Subset = tuple[NDArray[np.int64] | slice, range]


def rotate(matrix: Array, x: Array) -> Array:
    """Return matrix [3,3] @ x [3,n], element by element: bitwise the same for every n and BLAS."""
    return np.stack([m[0] * x[0] + m[1] * x[1] + m[2] * x[2] for m in matrix])


def cast_rays(
    solids: Solids, origin: Array, direction: Array, ignore: NDArray[np.bool_] | None = None
) -> tuple[Array, NDArray[np.int32]]:
    """Find what each ray hits first.

    origin: [3], inside the shell and outside every other solid; direction: [3,n], of any length; ignore: solids that
    rays pass [k].
    Returns t [n] with hit = origin + t·direction, and the index of the solid [n] (0, the shell, if nothing else).
    """
    local_direction = rotate(solids.to_unit[0], direction)
    with np.errstate(divide="ignore", invalid="ignore"):
        local_origin = solids.to_unit[0] @ (origin - solids.center[0])
        _, nearest = _slabs(local_origin, local_direction, (0, 1, 2))
        index = np.zeros(direction.shape[1], np.int32)
        squared = direction[0] ** 2 + direction[1] ** 2 + direction[2] ** 2
        for rays, members in _subsets(solids, origin, direction, squared, nearest):
            some, lengths = direction[:, rays], squared[rays]
            for k in members:
                if ignore is not None and ignore[k]:
                    continue
                found = _meeting(solids, k, origin, some, lengths)
                if found.size == 0:
                    continue
                candidates = found if isinstance(rays, slice) else rays[found]
                t = _first_hit(solids, k, origin, some[:, found])
                closer = t < nearest[candidates]
                hits = candidates[closer]
                nearest[hits] = t[closer]
                index[hits] = k
    return nearest, index


def _subsets(solids: Solids, origin: Array, direction: Array, squared: Array, nearest: Array) -> Iterator[Subset]:
    """Yield which rays are to be tried against which solids; `nearest` [n] is read again for every group."""
    groups = solids.groups
    if groups is None:
        yield slice(None), range(1, len(solids.shape))
        return
    ends = np.append(groups.start[1:], len(solids.shape))
    toward = groups.center - origin
    distance = np.sqrt((toward * toward).sum(1))
    length = np.sqrt(squared)
    for g in np.argsort(distance, kind="stable"):  # the near ones first: they hide the far ones
        radius, members = groups.radius[g], range(int(groups.start[g]), int(ends[g]))
        outside = distance[g] ** 2 - radius**2
        reached = nearest * length > distance[g] - radius
        if outside > 0:
            along = toward[g, 0] * direction[0] + toward[g, 1] * direction[1] + toward[g, 2] * direction[2]
            reached &= (along > 0) & (along * along >= squared * np.float32(outside * 0.9999))
        rays = np.flatnonzero(reached)
        if rays.size:
            yield rays, members


def _meeting(solids: Solids, k: int, origin: Array, direction: Array, squared: Array) -> NDArray[np.int64]:
    """Return the rays [m] that meet a solid's bounding sphere."""
    toward = solids.center[k] - origin
    outside = np.float32(toward @ toward - solids.radius[k] ** 2)
    if outside <= 0 and solids.groups is not None:
        return np.arange(direction.shape[1])
    along = toward[0] * direction[0] + toward[1] * direction[1] + toward[2] * direction[2]
    return np.flatnonzero((along * along >= squared * outside) & (along > 0))


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


def _first_hit(solids: Solids, k: int, origin: Array, direction: Array) -> Array:
    """Return where rays enter solid k [n]; inf for a miss."""
    matrix, shape = solids.to_unit[k], solids.shape[k]
    origin, direction = matrix @ (origin - solids.center[k]), rotate(matrix, direction)
    if shape == PANEL:
        assert solids.mask is not None
        return _panel_hit(masks()[solids.mask[k]], origin, direction)
    if shape == BOX:
        enter, leave = _slabs(origin, direction, (0, 1, 2))
    else:
        enter, leave = _quadric(shape, origin, direction)
        if shape in (CYLINDER, CONE):
            low, high = _slabs(origin, direction, (1,))
            enter, leave = np.maximum(enter, low), np.minimum(leave, high)
    return np.where((enter < leave) & (enter > _NEAREST), enter, np.float32(np.inf))


def _quadric(shape: int, origin: Array, direction: Array) -> tuple[Array, Array]:
    """Return where rays enter and leave x² + z² (+ y²) ≤ 1 or, of a cone, x² + z² ≤ ((1 + y) / 2)²."""
    axes = (0, 1, 2) if shape == ELLIPSOID else (0, 2)
    a = sum(direction[i] * direction[i] for i in axes)
    b = sum(direction[i] * origin[i] for i in axes)
    if shape == CONE:
        slope, start = direction[1] / 2, (1 + origin[1]) / 2
        a, b = a - slope * slope, b - slope * start
        c = np.float32(origin[0] ** 2 + origin[2] ** 2 - start**2)
    else:
        c = np.float32(sum(origin[i] * origin[i] for i in axes) - 1)
    discriminant = b * b - a * c
    root = np.sqrt(np.maximum(discriminant, 0))
    enter, leave = (-b - root) / a, (-b + root) / a
    leave = np.where(discriminant > 0, leave, np.float32(-np.inf))
    if shape == CONE:
        # A steep ray (a < 0) lies in the lower nappe from its larger root on, or up to its smaller one.
        enter, leave = np.minimum(enter, leave), np.maximum(enter, leave)
        steep, down = a < 0, direction[1] > 0
        low, high = enter, leave
        enter = np.where(steep, np.where(down, high, np.float32(-np.inf)), low)
        leave = np.where(steep, np.where(down, np.float32(np.inf), low), high)
        leave = np.where(discriminant > 0, leave, np.float32(-np.inf))
    return enter, leave


def _panel_hit(mask: NDArray[np.bool_], origin: Array, direction: Array) -> Array:
    """Return where rays pass z = 0 within the square and where the mask [s,s] says that something is."""
    t = -origin[2] / direction[2]
    x, y = origin[0] + t * direction[0], origin[1] + t * direction[1]
    inside = (np.abs(x) < 1) & (np.abs(y) < 1) & (t > _NEAREST)
    hits = np.flatnonzero(inside)
    size = len(mask)
    column = np.minimum(((x[hits] + 1) * np.float32(size / 2)).astype(np.int32), size - 1)
    row = np.minimum(((y[hits] + 1) * np.float32(size / 2)).astype(np.int32), size - 1)
    inside[hits] = mask[row, column]
    return np.where(inside, t, np.float32(np.inf))


def unit_normals(shape: NDArray[np.int8], unit: Array) -> Array:
    """Return the outward normal [3,n] of the unit shapes at surface points unit [3,n] (not normalized)."""
    axis = np.abs(unit).argmax(0)
    normal = np.where(axis == np.arange(3)[:, None], np.sign(unit), np.float32(0))
    normal = np.where(shape == ELLIPSOID, unit, normal)
    normal[:, shape == PANEL] = np.array([[0], [0], [1]], np.float32)
    _cone_normals(shape, unit, normal)
    cylinder = shape == CYLINDER
    on_side = unit[0] ** 2 + unit[2] ** 2 > unit[1] ** 2
    normal[:, cylinder] = 0
    normal[0] = np.where(cylinder & on_side, unit[0], normal[0])
    normal[1] = np.where(cylinder & ~on_side, np.sign(unit[1]), normal[1])
    normal[2] = np.where(cylinder & on_side, unit[2], normal[2])
    return normal.astype(np.float32)


def _cone_normals(shape: NDArray[np.int8], unit: Array, normal: Array) -> None:
    """Write the normals of cones into normal [3,n]."""
    chosen = np.flatnonzero(shape == CONE)
    if chosen.size == 0:
        return
    x, y, z = unit[:, chosen]
    on_base = y > 0.999
    side = np.stack([x, -(1 + y) / 4, z])
    normal[:, chosen] = np.where(on_base, np.array([[0], [1], [0]], np.float32), side)
