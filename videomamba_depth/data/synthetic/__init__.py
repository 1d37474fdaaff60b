"""A procedural video world with exact depth, optical flow, visibility and camera poses.

video = render_video(seed=7, config=WorldConfig(num_frames=48, camera_motion="fast"))
"""

from videomamba_depth.data.synthetic.config import FAST_TIME_SCALE, CameraMotion, SceneFamily, WorldConfig
from videomamba_depth.data.synthetic.degradations import degrade
from videomamba_depth.data.synthetic.video import (
    SyntheticFrame,
    SyntheticVideo,
    iter_video,
    render_still,
    render_video,
)

__all__ = [
    "FAST_TIME_SCALE",
    "CameraMotion",
    "SceneFamily",
    "SyntheticFrame",
    "SyntheticVideo",
    "WorldConfig",
    "degrade",
    "iter_video",
    "render_still",
    "render_video",
]
