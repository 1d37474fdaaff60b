"""A room whose depth, flow, visibility and poses are known in closed form: five planes and a panel, no
noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from videomamba_depth.evaluation import EvaluationClip
from videomamba_depth.flow.clip_motion import ClipMotion
from videomamba_depth.utils.flow_utils import backward_warp

# Axis, offset (m) and extent: back wall, right and left wall, floor and ceiling, then a panel in front.
PLANES = ((2, 5.0), (0, 2.0), (0, -2.0), (1, 1.2), (1, -1.2))
PANEL_Z, PANEL_X, PANEL_Y = 2.5, (-0.4, 0.7), (-0.3, 1.2)


@dataclass(frozen=True)
class Room:
    rgb: np.ndarray  # uint8 [F,H,W,3]
    depth_m: np.ndarray  # float32 [F,H,W]
    motion: ClipMotion
    intrinsics: np.ndarray  # [3,3]
    camera_to_world: np.ndarray  # [F,4,4]


def render_room(num_frames: int = 60, height: int = 48, width: int = 64, speed_m: float = 0.012) -> Room:
    """Render a camera that moves forward and sideways by `speed_m` per frame and turns a little (0:
    still).
    """
    focal = 0.9 * width
    k = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    poses = np.stack([_pose(t, speed_m) for t in range(num_frames)])
    frames = [_cast(pose, k, height, width) for pose in poses]
    depth = np.stack([z for z, _ in frames])
    points = np.stack([p for _, p in frames])
    flows = {step: np.zeros((num_frames, 2, height, width), np.float32) for step in (-1, 1)}
    seen = {step: np.zeros((num_frames, height, width), bool) for step in (-1, 1)}
    for t in range(num_frames):
        for step in (-1, 1):
            if 0 <= t + step < num_frames:
                flows[step][t], seen[step][t] = _flow(points[t], depth[t + step], poses[t + step], k)
    motion = ClipMotion(flows[-1], flows[1], seen[-1], seen[1])
    rgb = np.stack([_color(p) for p in points])
    return Room(rgb, depth.astype(np.float32), motion, k, poses)


def _pose(t: int, speed_m: float) -> np.ndarray:
    angle = 0.25 * speed_m * t
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    pose[:3, 3] = [0.5 * speed_m * t - 0.3, 0.0, speed_m * t]
    return pose


def _cast(pose: np.ndarray, k: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    v, u = np.mgrid[:height, :width].astype(np.float64)
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1) @ pose[:3, :3].T
    origin = pose[:3, 3]
    z = np.full((height, width), np.inf)
    with np.errstate(divide="ignore"):
        for axis, offset in PLANES:
            hit = (offset - origin[axis]) / rays[..., axis]
            z = np.where((hit > 0) & (hit < z), hit, z)
        hit = (PANEL_Z - origin[2]) / rays[..., 2]
    point = origin + hit[..., None] * rays
    inside = (point[..., 0] > PANEL_X[0]) & (point[..., 0] < PANEL_X[1])
    inside &= (point[..., 1] > PANEL_Y[0]) & (point[..., 1] < PANEL_Y[1])
    z = np.where(inside & (hit > 0) & (hit < z), hit, z)
    return z, origin + z[..., None] * rays


def _flow(
    points: np.ndarray, depth_to: np.ndarray, pose_to: np.ndarray, k: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    import torch

    local = (points - pose_to[:3, 3]) @ pose_to[:3, :3]
    v, u = np.mgrid[: points.shape[0], : points.shape[1]].astype(np.float64)
    flow = np.stack(
        [local[..., 0] / local[..., 2] * k[0, 0] + k[0, 2] - u, local[..., 1] / local[..., 2] * k[1, 1] + k[1, 2] - v]
    )
    found, in_bounds = backward_warp(torch.from_numpy(depth_to)[None, None], torch.from_numpy(flow)[None])
    agrees = np.abs(found[0, 0].numpy() - local[..., 2]) < 0.02 * local[..., 2]
    return flow.astype(np.float32), in_bounds[0, 0].numpy() & agrees


def _color(points: np.ndarray) -> np.ndarray:
    x, y, z = np.moveaxis(points, -1, 0)
    waves = [np.sin(5 * x + 2 * z), np.sin(6 * y - 3 * x + z), np.cos(4 * z + 5 * y)]
    return (127 + 60 * np.stack(waves, -1) + 40 * np.sin(9 * (x + y))[..., None]).clip(0, 255).astype(np.uint8)


def clip_of(room: Room, **changes: Any) -> EvaluationClip:
    """Return all that is known of a room as a clip, but for what is changed."""
    values = {
        "name": "room",
        "frames": room.rgb,
        "gt_depth_m": room.depth_m,
        "motion": room.motion,
        "intrinsics": room.intrinsics,
        "camera_to_world": room.camera_to_world,
    }
    return EvaluationClip(**{**values, **changes})
