"""Where the camera of a stream is, for those who ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from videomamba_depth.models.depth_state import DepthState
from videomamba_depth.models.geometry import CAMERAS, FLOW, SCENE
from videomamba_depth.utils.depth_kind import DepthKind


@dataclass(frozen=True, eq=False)
class Camera:
    """Camera of a stream's latest frame; the world's axes are those of its first frame: x right, y down, z forward.

    Attributes:
        rotation: [3,3] float64, camera to world.
        position: [3] float64, in the world; in meters for metric depth, else in units of 1 / the mean inverse
            depth when parallax was first believed.
        focal_px: focal length in px of the frames; what is assumed, until parallax says more.
        evidence: 0 to 1, how far parallax corrects the depth.
        noise_px: spread of the tracks about the camera, at the flow's size; None: of an offline target.
        lost: the tracks fit no camera: it is held where it was, and geometry starts again from this frame.
    """

    rotation: np.ndarray
    position: np.ndarray
    focal_px: float
    evidence: float
    noise_px: float | None
    lost: bool

    def record(self) -> dict[str, Any]:
        """Return what the frame log says of it."""
        shown = {"evidence": round(self.evidence, 4)}
        shown |= {} if self.noise_px is None else {"noise_px": round(self.noise_px, 4)}
        return shown | ({"lost": True} if self.lost else {})


def cameras_of(states: DepthState, depth_kind: DepthKind) -> list[Camera]:
    """Return the camera of each stream of a state; empty for students without geometry."""
    if CAMERAS not in states.maps:
        return []
    poses = states.maps[CAMERAS][:, 0].double().cpu().numpy()  # [B,3,4], world to camera
    scenes = states.maps[SCENE].flatten(1).tolist()
    scale = states.image_size[1] / states.maps[FLOW].shape[-1]
    cameras = []
    for pose, values in zip(poses, scenes, strict=True):
        unit, _, evidence, noise_px, focal_px, lost, *_ = values  # see `Scene`
        rotation = pose[:, :3].T
        position = -rotation @ pose[:, 3] / (unit if depth_kind is DepthKind.METRIC else 1.0)
        cameras.append(Camera(rotation, position, focal_px * scale, evidence, noise_px, bool(lost)))
    return cameras
