"""The depth of models on a fresh world: what is kept under a digest of this module and of the models' code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from videomamba_depth.evaluation.feature_average import FEATURE_ROW, AdvectedFeatureAverage

if TYPE_CHECKING:  # types alone: the teacher's depth must not be thrown away when the student's code changes
    from videomamba_depth.evaluation.worlds import World
    from videomamba_depth.models.encoder_da import DepthAnythingEncoder
    from videomamba_depth.models.videomamba_depth import VideoMambaDepth

CHUNK_FRAMES = 8


def run_teacher(encoder: DepthAnythingEncoder, world: World) -> dict[str, np.ndarray]:
    """Return the framewise teacher's depth and the advected feature average's, {row: [F,H,W]}."""
    average = AdvectedFeatureAverage()
    size = (world.spec.height, world.spec.width)
    depths: dict[str, list[np.ndarray]] = {"teacher": [], FEATURE_ROW: []}
    t = 0
    for clip in _chunks(world.rgb):
        features = encoder.encode_frame(clip)
        averaged = []
        for i in range(len(clip)):
            flow = torch.from_numpy(np.array(world.flow_bwd[t]))[None]
            consistent = torch.from_numpy(np.array(world.consistent_bwd[t]))[None, None]
            averaged.append(average({name: x[i : i + 1] for name, x in features.items()}, flow, consistent))
            t += 1
        smooth = {name: torch.cat([maps[name] for maps in averaged]) for name in features}
        for row, maps in (("teacher", features), (FEATURE_ROW, smooth)):
            depths[row].append(encoder.decode(maps, size)[:, 0].float().cpu().numpy())
    return {row: np.concatenate(frames) for row, frames in depths.items()}


def run_student(model: VideoMambaDepth, world: World, memory: float = 1.0) -> np.ndarray:
    """Return a student's depth [F,H,W] on a world, streamed in chunks with that memory: the same as frame by frame."""
    states = model.init_states(1, (world.spec.height, world.spec.width), memory=memory)
    depths = []
    for clip in _chunks(world.rgb):
        depth, states, _ = model(clip[None], states)
        depths.append(depth[0, :, 0].float().cpu().numpy())
    return np.concatenate(depths)


def _chunks(rgb: np.ndarray) -> Iterator[Tensor]:
    """Yield pieces [N,3,H,W] in [0,1] of a video [F,H,W,3] uint8."""
    for start in range(0, len(rgb), CHUNK_FRAMES):
        pixels = torch.from_numpy(np.array(rgb[start : start + CHUNK_FRAMES]))
        yield pixels.permute(0, 3, 1, 2).float() / 255.0
