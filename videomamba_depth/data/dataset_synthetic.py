"""Clips of the synthetic world, rendered as they are asked for, with exact ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from videomamba_depth.data.clip import ClipMeta
from videomamba_depth.data.playback import Playback, adapt_relative_maps
from videomamba_depth.data.synthetic import SyntheticVideo, WorldConfig, render_video
from videomamba_depth.data.transforms import ClipTransform

MAX_STATIC_MOTION_PX = 0.5  # below this a visible pixel counts as static, px of the render per frame
# Keeps the draws about kept worlds apart from those about items.
_WORLD_STREAM = 0x5EED_0123


class _Rendered(NamedTuple):
    """A rendered video: its name, its maps [F,H,W,...] and the times of its frames."""

    name: str
    maps: dict[str, np.ndarray]
    times_s: tuple[float, ...]


class SyntheticClipDataset(Dataset[dict[str, Any]]):
    """An endless sequence of rendered clips; item i is a pure function of (seed, i).

    Args:
        worlds: one or several configurations, of which each item draws one; `num_frames` is set by the clip's length.
        clip_frames: frames per clip N where the key does not say otherwise.
        seed: not negative; use different seeds for training and evaluation.
        transform: resize, crop, color and perturbations; default: the world's own size, rounded to the patch.
        num_worlds: draw from this many videos of `2 · clip_frames` frames each (more where a stride needs them),
            rendered when first needed and kept in memory, instead of rendering a new one for every item.
        playback: which frames of a render make a clip.
    """

    def __init__(
        self,
        worlds: WorldConfig | Sequence[WorldConfig],
        *,
        clip_frames: int = 8,
        seed: int = 0,
        transform: ClipTransform | None = None,
        num_worlds: int | None = None,
        playback: Playback = Playback(),
    ) -> None:
        self.worlds = (worlds,) if isinstance(worlds, WorldConfig) else tuple(worlds)
        if not self.worlds:
            raise ValueError("worlds must hold at least one WorldConfig; got none")
        if clip_frames < 1 or seed < 0:
            raise ValueError(f"clip_frames must be at least 1 and seed not negative; got {clip_frames} and {seed}")
        self.clip_frames, self.playback, self.seed = clip_frames, playback, seed
        self.transform = ClipTransform() if transform is None else transform
        if num_worlds is not None and num_worlds < 1:
            raise ValueError(f"num_worlds must be at least 1 or None; got {num_worlds}")
        self.num_worlds = num_worlds
        self._kept: dict[int, _Rendered] = {}

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Return item `key`: an index ≥ 0, or (index, clip_frames).

        Returns:
            "rgb", "rgb_clean" float32 [N,3,H,W] in [0,1]; "inv_depth" float32 [N,1,H,W] in 1/m; "valid", "static" bool
            [N,1,H,W]; "flow_bwd" float32 [N,2,H,W] px; at t = 0 flow is 0 and static False; "meta" `ClipMeta`.
        """
        index, frames = (key, self.clip_frames) if isinstance(key, int) else key
        if index < 0:
            raise IndexError(f"item index must not be negative; got {index}")
        rng = np.random.default_rng((self.seed, index))
        if self.num_worlds is None:
            playback = self.playback.one_stride(rng)
            rendered = self._render(rng, (frames - 1) * playback.strides[0] + 1)
        else:
            playback, rendered = self.playback, self._keep(int(rng.integers(self.num_worlds)))
        indices = playback.draw(frames, len(rendered.times_s), rng)
        maps = {name: values[list(indices)] for name, values in rendered.maps.items()}
        item: dict[str, Any] = dict(self.transform(adapt_relative_maps(maps, indices), rng))
        item["meta"] = ClipMeta(rendered.name, tuple(indices), tuple(rendered.times_s[i] for i in indices))
        return item

    def _keep(self, world: int) -> _Rendered:
        """Return video `world` of `num_worlds`, the same for every item and worker."""
        if world not in self._kept:
            rng = np.random.default_rng((_WORLD_STREAM, self.seed, world))
            self._kept[world] = self._render(rng, max(2, *self.playback.strides) * self.clip_frames)
        return self._kept[world]

    def _render(self, rng: np.random.Generator, frames: int) -> _Rendered:
        world = replace(self.worlds[int(rng.integers(len(self.worlds)))], num_frames=frames)
        world_seed = int(rng.integers(2**31))
        video = render_video(world_seed, world)
        name = f"synthetic/{world.family}/{world.camera_motion}/{world_seed}"
        return _Rendered(name, _maps(video), tuple(float(time) for time in video.timestamps_s))


def _maps(video: SyntheticVideo) -> dict[str, np.ndarray]:
    valid = np.isfinite(video.depth_m) & (video.depth_m > 0)
    moved_px = np.linalg.norm(video.flow_bwd, axis=-1)
    return {
        "rgb": video.rgb,
        "inv_depth": np.where(valid, 1 / np.where(valid, video.depth_m, 1), 0).astype(np.float32),
        "valid": valid,
        "static": video.visible_bwd & (moved_px < MAX_STATIC_MOTION_PX),
        "flow_bwd": video.flow_bwd,
    }
