"""Clips from a folder of videos."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from videomamba_depth.data.clip import ClipMeta, SharedFlags, WholeFrames
from videomamba_depth.data.labels.label_folder import LabelFolder
from videomamba_depth.data.labels.teacher_cache import TeacherCacheReader
from videomamba_depth.data.playback import Playback, adapt_relative_maps
from videomamba_depth.data.transforms import ClipTransform, cover_size, resize_images
from videomamba_depth.data.video.find import VideoSource, find_sources, is_list, scan_sources, summarize, unique_ids
from videomamba_depth.data.video.reader import VideoInfo, VideoReadError, probe_video, read_frames, read_image
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

# Draws of another video when one turns out broken, before giving up.
MAX_ATTEMPTS = 100
_CACHED_INFOS = 4096


class VideoClipDataset(Dataset[dict[str, Any]]):
    """An endless sequence of random clips from video files and image folders.

    Item i is a pure function of (seed, i) and the files: `default_rng((seed, i, attempt))` draws the video (each is as
    likely as any other), the stride, the start and the transform, with attempt 0 unless a file turns out broken. So
    there is no state to save: a run resumes by asking for the next index.

    Args:
        sources: the data root, a folder searched recursively, or a text file that names videos; or a list of sources.
        clip_frames: frames per clip N where the key does not say otherwise.
        playback: which frames make a clip.
        seed: not negative.
        transform: resize, crop, color and perturbations; default: the video's own size, rounded to the patch.
        teacher_cache: adds "teacher_depth" where it fits, and "flow_bwd" and "static" where stored, for clips that play
            forwards at stride 1.
        labels: adds "teacher_depth" where the cache does not; every video must have labels.

    Broken and too short videos are skipped, counted (`skipped`) and named once in a warning. One that only turns out
    broken when it is read is replaced by another draw, and named once among all workers. So are all those of a text
    file, of which none is opened before it is drawn: a start costs the same for ten videos as for 100,000.

    Raises:
        UserError: nothing there, or nothing of it usable; or videos without labels that fit.
    """

    def __init__(
        self,
        sources: str | Path | Sequence[VideoSource],
        *,
        clip_frames: int = 8,
        playback: Playback = Playback(),
        seed: int = 0,
        transform: ClipTransform | None = None,
        teacher_cache: TeacherCacheReader | None = None,
        labels: LabelFolder | None = None,
    ) -> None:
        if clip_frames < 1 or seed < 0:
            raise ValueError(f"clip_frames must be at least 1 and seed not negative; got {clip_frames} and {seed}")
        self.clip_frames, self.playback, self.seed = clip_frames, playback, seed
        self.transform = ClipTransform() if transform is None else transform
        self.teacher_cache, self.labels = teacher_cache, labels
        self.skipped: dict[str, str] = {}
        self._videos = self._usable(sources)
        self._named = SharedFlags(len(self._videos))
        self._infos: dict[str, VideoInfo] = {}

    @property
    def sources(self) -> list[VideoSource]:
        """The videos that clips are drawn from."""
        return list(self._videos)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Return item `key`: an index ≥ 0, or (index, clip_frames).

        Returns:
            "rgb", "rgb_clean" float32 [N,3,H,W] in [0,1]; where cached "teacher_depth" float32 [N,1,H,W], "flow_bwd"
            float32 [N,2,H,W] px and "static" bool [N,1,H,W], which are 0 and False at t = 0; "whole" `WholeFrames`, to
            label where no depth is cached; "meta" `ClipMeta`.

        Raises:
            UserError: a hundred draws in a row hit broken videos.
        """
        index, frames = (key, self.clip_frames) if isinstance(key, int) else key
        if index < 0:
            raise IndexError(f"item index must not be negative; got {index}")
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng((self.seed, index, attempt))
            number = int(rng.integers(len(self._videos)))
            source = self._videos[number]
            try:
                return self._read(source, frames, rng)
            except (VideoReadError, OSError) as error:
                last = f"{source.video_id} ({error})"
                if self._named.first(number):
                    log.warning("%s cannot be used here, drawing another video: %s", source.video_id, error)
        where = "the data folder and its disk" if self.labels is None else "data.root and data.labels"
        raise UserError(f"{MAX_ATTEMPTS} draws in a row hit videos that cannot be used, such as {last}; check {where}")

    def _read(self, source: VideoSource, frames: int, rng: np.random.Generator) -> dict[str, Any]:
        """Draw and read one clip; the order of the draws is part of the data set's definition."""
        info = self._info(source)
        if not self.playback.fitting(frames, info.num_frames):
            raise VideoReadError(self._too_short(info.num_frames, frames))
        indices = self.playback.draw(frames, info.num_frames, rng)
        forwards = indices[::-1] if indices.step < 0 else indices
        clip: dict[str, np.ndarray] = {}
        if frames == 1 and info.image_paths:
            image = read_image(info.image_paths[indices[0]])[None]  # stills of one folder may differ in size
            height, width = image.shape[1:3]
            geometry = self.transform.draw_geometry(height, width, rng)
            clip["rgb"] = resize_images(image, geometry.resized)
        else:
            height, width = info.height, info.width
            geometry = self.transform.draw_geometry(height, width, rng)
            resize = functools.partial(_resize_one, size=geometry.resized)
            clip["rgb"] = read_frames(source.path, forwards, info=info, convert=resize)
        if self.teacher_cache is not None:
            cached = cover_size(height, width, self.transform.crop or self.transform.short_side)[1]
            clip |= self.teacher_cache.lookup(source.video_id, forwards, source.path, cached) or {}
        if self.labels is not None and "teacher_depth" not in clip:
            clip["teacher_depth"] = self.labels.read(source, info, forwards)
        clip = adapt_relative_maps(clip, indices)
        if indices.step < 0:
            clip = {name: values[::-1] for name, values in clip.items()}
        item: dict[str, Any] = dict(self.transform(clip, rng, geometry))
        item["whole"] = WholeFrames(torch.from_numpy(np.ascontiguousarray(clip["rgb"])), geometry)
        times = tuple(float(time) for time in info.timestamps_s[list(indices)])
        item["meta"] = ClipMeta(source.video_id, tuple(indices), times)
        return item

    def _info(self, source: VideoSource) -> VideoInfo:
        if source.path not in self._infos:
            if len(self._infos) >= _CACHED_INFOS:
                self._infos.clear()
            self._infos[source.path] = probe_video(source.path)
        return self._infos[source.path]

    def _usable(self, sources: str | Path | Sequence[VideoSource]) -> list[VideoSource]:
        found = find_sources(sources) if isinstance(sources, str | Path) else unique_ids(sources)
        if isinstance(sources, str | Path) and is_list(sources):
            return found
        scanned, skipped = scan_sources(found)
        usable: list[tuple[VideoSource, int | None]] = []
        for source, num_frames in scanned:
            if num_frames is not None and not self.playback.fitting(self.clip_frames, num_frames):
                skipped[source.video_id] = self._too_short(num_frames, self.clip_frames)
            else:
                usable.append((source, num_frames))
        place = sources if isinstance(sources, str | Path) else "the list of videos"
        if not usable:
            raise UserError(
                f"none of the {len(found)} videos in {place} can be used: {summarize(skipped) or 'none given'}"
            )
        if skipped:
            log.warning("%d of %d videos in %s are skipped: %s", len(skipped), len(found), place, summarize(skipped))
        self.skipped |= skipped
        if self.labels is not None:
            self.labels.check(usable)
        return [source for source, _ in usable]

    def _too_short(self, num_frames: int, clip_frames: int) -> str:
        stride = min(self.playback.strides)
        most = (num_frames - 1) // stride + 1
        remedy = f"; set data.clip_frames={most}" if most > 0 else ""
        return f"{num_frames} frames are too few for clips of {clip_frames} at stride {stride}{remedy}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_infos": {}}


def _resize_one(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resize_images(rgb[None], size)[0]
