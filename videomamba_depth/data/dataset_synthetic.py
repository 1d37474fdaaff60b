"""Clips of the synthetic world, rendered as they are asked for, with exact ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from videomamba_depth.data.clip import ClipMeta
from videomamba_depth.data.synthetic import SyntheticVideo, WorldConfig, render_video
from videomamba_depth.data.transforms import ClipTransform


class SyntheticClipDataset(Dataset[dict[str, Any]]):
    """An endless row of rendered clips; item i is a pure function of (seed, i).

    Args:
        worlds: one or several configurations, of which each item draws one; `num_frames` is set by the clip's length.
        clip_frames: frames per clip N where the key does not say otherwise.
        seed: not negative; use different seeds for training and evaluation.
        transform: resize, crop, colour and perturbations; default: the world's own size, rounded to the patch.
        max_motion_px: a visible pixel is static if it moved less than this since the frame before, px of the render.
        clean_teacher_input: give the teacher ("rgb_clean") the render without the camera's defects; otherwise it sees
            what the student sees before `transform.perturbations`, as with real video.
    """

    def __init__(
        self,
        worlds: WorldConfig | Sequence[WorldConfig],
        *,
        clip_frames: int = 8,
        seed: int = 0,
        transform: ClipTransform | None = None,
        max_motion_px: float = 0.5,
        clean_teacher_input: bool = False,
    ) -> None:
        self.worlds = (worlds,) if isinstance(worlds, WorldConfig) else tuple(worlds)
        if not self.worlds:
            raise ValueError("worlds must hold at least one WorldConfig; got none")
        if clip_frames < 1 or seed < 0:
            raise ValueError(f"clip_frames must be at least 1 and seed not negative; got {clip_frames} and {seed}")
        self.clip_frames, self.seed = clip_frames, seed
        self.transform = ClipTransform() if transform is None else transform
        self.max_motion_px = max_motion_px
        self.clean_teacher_input = clean_teacher_input

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Return item `key`: an index ≥ 0, or (index, clip_frames).

        Returns:
            "rgb", "rgb_clean" float32 [N,3,H,W] in [0,1]; "inv_depth" float32 [N,1,H,W] in 1/m; "valid", "static" bool
            [N,1,H,W]; "flow_bwd" float32 [N,2,H,W] px; "meta" `ClipMeta`. At t = 0 flow is 0 and static False.
        """
        index, frames = (key, self.clip_frames) if isinstance(key, int) else key
        if index < 0:
            raise IndexError(f"item index must not be negative; got {index}")
        rng = np.random.default_rng((self.seed, index))
        world = replace(self.worlds[int(rng.integers(len(self.worlds)))], num_frames=frames)
        world_seed = int(rng.integers(2**31))
        video = render_video(world_seed, world)
        item: dict[str, Any] = dict(self.transform(self._maps(video), rng))
        name = f"synthetic/{world.family}/{world.camera_motion}/{world_seed}"
        times = tuple(float(time) for time in video.timestamps_s)
        item["meta"] = ClipMeta(name, tuple(range(frames)), times)
        return item

    def _maps(self, video: SyntheticVideo) -> dict[str, np.ndarray]:
        depth_m = video.depth_m
        valid = np.isfinite(depth_m) & (depth_m > 0)
        moved_px = np.linalg.norm(video.flow_bwd, axis=-1)
        maps = {
            "rgb": video.rgb,
            "inv_depth": np.where(valid, 1 / np.where(valid, depth_m, 1), 0).astype(np.float32),
            "valid": valid,
            "static": video.visible_bwd & (moved_px < self.max_motion_px),
            "flow_bwd": video.flow_bwd,
        }
        return {**maps, "rgb_clean": video.clean_rgb} if self.clean_teacher_input else maps
