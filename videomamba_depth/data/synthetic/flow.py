"""Exact optical flow and visibility between two instants of a scene."""

import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.geometry import Array, Solids, cast_rays
from videomamba_depth.data.synthetic.renderer import Rendering, pixel_grid
from videomamba_depth.data.synthetic.rotations import Matrix
from videomamba_depth.data.synthetic.shading import View

# A point is visible when the other camera's ray to it ends no earlier than this share of the way: well above float32
# rounding, well below the thinnest solid at the scene's depths.
_VISIBLE_SHARE = np.float32(0.998)
_MIN_DEPTH_M = 0.05


def exact_flow(
    rendering: Rendering, view: View, poses: Matrix, other_solids: Solids, other_view: View, other_poses: Matrix
) -> tuple[Array, NDArray[np.bool_]]:
    """Follow every pixel's surface point to another instant and see whether it can be seen there.

    poses, other_poses: object-to-world of all solids [k,4,4] at both instants.
    Returns flow [h,w,2] in px (x right, y down) from this frame to the other and visible [h,w]: in view there (within
    the outermost pixel centers) and not occluded, tested by casting a ray at the exact position, not by comparing
    with a rounded pixel. Where the point lies behind the other camera, flow is 0 and visible False.
    """
    height, width = rendering.depth_m.shape
    x, y = pixel_grid(height, width)
    solid = rendering.solid.ravel()
    points = rendering.depth_m.ravel() * view.camera_rays(x, y)
    motion = _camera_motion(view, poses, other_view, other_poses)
    table = np.ascontiguousarray(motion[:, :3].reshape(-1, 12).T.astype(np.float32))[:, solid].reshape(3, 4, -1)
    moved = table[:, 0] * points[0] + table[:, 1] * points[1] + table[:, 2] * points[2] + table[:, 3]

    in_front = moved[2] > _MIN_DEPTH_M
    z = np.where(in_front, moved[2], np.float32(1))
    k = other_view.intrinsics.astype(np.float32)
    other_x = moved[0] / z * k[0, 0] + k[0, 2]
    other_y = moved[1] / z * k[1, 1] + k[1, 2]
    still = (motion == np.eye(4)).all((1, 2))[solid]  # exactly zero, free of rounding
    flow = np.where(in_front & ~still, np.stack([other_x - x, other_y - y]), np.float32(0))
    in_view = in_front & (x + flow[0] >= 0) & (x + flow[0] <= width - 1)
    in_view &= (y + flow[1] >= 0) & (y + flow[1] <= height - 1)

    candidates = np.flatnonzero(in_view)
    rays = other_view.world_rays((x + flow[0])[candidates], (y + flow[1])[candidates])
    reached, _ = cast_rays(other_solids, other_view.origin, rays)
    visible = np.zeros(height * width, bool)
    visible[candidates] = reached >= _VISIBLE_SHARE * moved[2][candidates]
    return np.ascontiguousarray(flow.T).reshape(height, width, 2), visible.reshape(height, width)


def _camera_motion(view: View, poses: Matrix, other_view: View, other_poses: Matrix) -> Matrix:
    """Return, for each solid, the motion [k,4,4] of its points from one camera frame to the other, in float64."""
    object_motion = other_poses @ np.linalg.inv(poses)
    object_motion[(poses == other_poses).all((1, 2))] = np.eye(4)
    motion = np.linalg.inv(other_view.camera_to_world) @ object_motion @ view.camera_to_world
    if np.array_equal(view.camera_to_world, other_view.camera_to_world):
        motion[(poses == other_poses).all((1, 2))] = np.eye(4)
    return motion
