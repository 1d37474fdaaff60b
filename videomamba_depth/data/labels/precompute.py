"""Fill the teacher cache: decode, label, store, chunk by chunk; resumable and split over ranks."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from videomamba_depth.data.labels.cache_format import LabelError, StorageLayout, TeacherKey
from videomamba_depth.data.labels.teacher_cache import TeacherCacheWriter
from videomamba_depth.data.transforms import cover_size, resize_images
from videomamba_depth.data.video.find import VideoSource, scan_sources, unique_ids
from videomamba_depth.data.video.reader import Frame, VideoInfo, VideoReadError, iter_frames, probe_video
from videomamba_depth.flow.clip_motion import static_mask
from videomamba_depth.flow.estimators import FlowEstimator, PairsOnce

log = logging.getLogger(__name__)


@dataclass
class PrecomputeSummary:
    """What one rank did: videos finished now, videos found finished, frames labelled, {video_id: why it failed}."""

    finished: int = 0
    already_finished: int = 0
    frames: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def precompute_videos(
    videos: Sequence[VideoSource],
    predict_depth: Callable[[Tensor], Tensor],
    key: TeacherKey,
    cache_root: str | Path,
    *,
    batch_frames: int = 8,
    chunk_frames: int = 16,
    image_size: tuple[int, int] | int | None = None,
    rank: int = 0,
    world_size: int = 1,
    flow: FlowEstimator | None = None,
    progress: bool = True,
) -> PrecomputeSummary:
    """Label every frame of this rank's videos and store the result; finished chunks are skipped.

    Frames reach the teacher at the size that maps are stored at, as those of a clip do in training
    (`dataset_video.VideoClipDataset`): the label is the same. Batches never cross a chunk, so that a run that was
    stopped and continued makes the same batches, hence the same labels bit for bit, as one that was not. Memory holds
    one batch of frames and one chunk of maps at the stored size.

    Args:
        videos: all ranks pass the same list; video i is rank (i mod world_size)'s.
        predict_depth: the teacher: float32 RGB [B,3,h,w] in [0,1] on the CPU to depth [B,1,h,w] on any device.
        key: the teacher's.
        cache_root: folder or URL.
        batch_frames: frames per call of the teacher; more than `chunk_frames` has no effect.
        chunk_frames: frames per stored chunk, which is what a reader decompresses at least.
        image_size: the training's, see `ClipTransform`: frames are resized as for its crops, but not cropped. None: the
            video's own size.
        rank, world_size: this process among all.
        flow: also store optical flow to the frame before, estimated at the stored size, and the static mask.
        progress: show a bar with the time left.

    Returns:
        what was done. A broken video is named in a warning and in `failed`; the others go on.

    Raises:
        UserError: the cache was made with another teacher, layout or video.
        KeyboardInterrupt: Ctrl-C; what is stored stays valid and the next run continues.
    """
    summary = PrecomputeSummary()
    usable, broken = scan_sources(unique_ids(videos)[rank::world_size], progress)
    for video_id, reason in broken.items():
        _fail(summary, video_id, reason)
    total = sum(num_frames or 0 for _, num_frames in usable)
    with tqdm(desc="teacher depth", unit="frame", total=total, disable=not progress) as bar:
        for source, stated in usable:
            bar.set_postfix_str(source.video_id[-40:], refresh=False)
            try:
                info = probe_video(source.path)
                bar.total += info.num_frames - (stated or 0)
                has_flow = flow is not None
                layout = StorageLayout(*label_size(info, image_size), chunk_frames, has_flow, has_static=has_flow)
                writer = TeacherCacheWriter(cache_root, source, info, key, layout)
                labeller = _Labeller(source, info, writer, predict_depth, batch_frames, flow)
                summary.frames += _label_video(labeller, bar)
            except (VideoReadError, LabelError) as error:
                _fail(summary, source.video_id, str(error))
            else:
                done_before = not labeller.missing
                summary.already_finished += done_before
                summary.finished += not done_before
    return summary


def label_size(info: VideoInfo, image_size: tuple[int, int] | int | None) -> tuple[int, int]:
    """Return (height, width) px at which a video is labelled and its maps are stored."""
    if image_size is None:
        return info.height, info.width
    return cover_size(info.height, info.width, image_size)[1]


class _Labeller:
    """Turns the missing chunks of one video into labels; decodes forward, seeking only over finished chunks."""

    def __init__(
        self,
        source: VideoSource,
        info: VideoInfo,
        writer: TeacherCacheWriter,
        predict_depth: Callable[[Tensor], Tensor],
        batch_frames: int,
        flow: FlowEstimator | None,
    ) -> None:
        self.path, self.info, self.writer = source.path, info, writer
        self.missing = writer.missing_chunks()
        self.predict_depth, self.flow = predict_depth, flow
        self.batch_frames = batch_frames
        self.size = (writer.layout.height, writer.layout.width)
        self._frames: Iterator[Frame] = iter(())
        self._next = -1
        self._last: tuple[int, np.ndarray] = (-1, np.empty(0))  # the frame before, at the stored size

    def label(self, chunk: int) -> int:
        """Label and store one chunk; returns its number of frames."""
        start, stop = self.writer.chunk_range(chunk)
        depth, small = [], []
        if self.flow is not None and start > 0:
            small.append(self._before(start))
        for first in range(start, stop, self.batch_frames):
            frames = resize_images(self._take(first, min(self.batch_frames, stop - first)), self.size)
            depth.append(self._predict(frames))
            if self.flow is not None:
                small.append(frames)
        flow_bwd = static = None
        if self.flow is not None:
            flow_bwd, static = self._motion(np.concatenate(small), at_start=start == 0)
            self._last = (stop - 1, small[-1][-1:])
        self.writer.write_chunk(chunk, np.concatenate(depth), flow_bwd, static)
        return stop - start

    def _predict(self, frames: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            depth = self.predict_depth(_to_tensor(frames))
        if depth.shape != (len(frames), 1, *self.size):
            raise ValueError(f"predict_depth must return {[len(frames), 1, *self.size]}; got {list(depth.shape)}")
        return depth[:, 0].float().cpu().numpy()

    def _motion(self, small: np.ndarray, at_start: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Return a chunk's flow to the frame before [K,2,h,w] and static [K,h,w]; `small` begins one frame earlier."""
        assert self.flow is not None
        clip = _to_tensor(small)
        with torch.inference_mode():
            flow_bwd = torch.zeros(len(clip), 2, *self.size)
            flow = PairsOnce(self.flow)
            if len(clip) > 1:
                flow_bwd[1:] = flow.both_ways(clip[1:], clip[:-1])[0].cpu()
            static = static_mask(clip, flow)[:, 0].cpu() if self.writer.layout.has_static else None
        skip = 0 if at_start else 1
        return flow_bwd[skip:].numpy(), None if static is None else static[skip:].numpy()

    def _before(self, start: int) -> np.ndarray:
        if self._last[0] != start - 1:
            self._last = (start - 1, resize_images(self._take(start - 1, 1), self.size))
        return self._last[1]

    def _take(self, first: int, count: int) -> np.ndarray:
        """Return `count` frames from index `first`, uint8 [count,H,W,3]."""
        if self._next != first:
            self._frames = iter_frames(self.path, start=first, info=self.info)
            self._next = first
        frames = list(itertools.islice(self._frames, count))
        if [frame.index for frame in frames] != list(range(first, first + count)):
            raise VideoReadError(f"{self.path}: frames {first} to {first + count - 1} cannot all be decoded")
        self._next = first + count
        return np.stack([frame.rgb for frame in frames])


def _label_video(labeller: _Labeller, bar: tqdm) -> int:
    """Label what is missing of a video, with progress; returns the number of frames labelled."""
    writer = labeller.writer
    waiting = sum(stop - start for start, stop in map(writer.chunk_range, labeller.missing))
    found = labeller.info.num_frames - waiting
    if not bar.disable:
        bar.n, bar.initial = bar.n + found, bar.initial + found  # not work of this run: keeps the time left honest
        bar.refresh()
    for chunk in labeller.missing:
        bar.update(labeller.label(chunk))
    return waiting


def _fail(summary: PrecomputeSummary, video_id: str, reason: str) -> None:
    summary.failed[video_id] = reason
    log.warning("%s is skipped: %s", video_id, reason)


def _to_tensor(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float().div_(255)
