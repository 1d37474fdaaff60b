"""What a fresh world holds: kept under a digest of this module and of all that it imports."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from videomamba_depth.data.synthetic import SyntheticFrame, WorldConfig, iter_video
from videomamba_depth.flow.clip_motion import ClipMotion, estimate_motion
from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.utils.flow_utils import consistency_mask


def render_world(seed: int, config: WorldConfig, flow: FlowEstimator) -> dict[str, np.ndarray]:
    """Return the arrays of a `World`: rendered, and flow estimated from the pictures."""
    frames = list(_slim(iter_video(seed, config)))
    arrays = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
    motion = estimate_motion(arrays["rgb"], flow)
    return {
        **arrays,
        "flow_bwd": motion.flow_bwd[:],
        "trusted_bwd": motion.trusted_bwd[:],
        "consistent_bwd": _consistent(motion),
    }


def _consistent(motion: ClipMotion) -> np.ndarray:
    """Return [F,H,W] bool: the flow to the frame before passes the forward-backward check; False at frame 0."""
    passes = np.zeros(motion.trusted_bwd.shape, bool)
    for t in range(1, motion.num_frames):
        back, forth = torch.from_numpy(motion.flow_bwd[t]), torch.from_numpy(motion.flow_fwd[t - 1])
        passes[t] = consistency_mask(back[None], forth[None])[0, 0].numpy()
    return passes


def _slim(frames: Iterable[SyntheticFrame]) -> Iterable[dict[str, np.ndarray]]:
    for frame in frames:
        yield {
            "rgb": frame.rgb,
            "depth_m": frame.depth_m,
            "flow_fwd": np.ascontiguousarray(np.moveaxis(frame.flow_fwd, -1, 0)),
            "visible_fwd": frame.visible_fwd,
            "speed_px": np.linalg.norm(frame.flow_bwd, axis=-1).astype(np.float32),
        }
