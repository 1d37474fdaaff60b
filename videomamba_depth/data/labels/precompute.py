"""Fill the teacher cache: decode, label, store, chunk by chunk; resumable and split over ranks."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from videomamba_depth.data.labels.cache_format import LabelError, StaticKey, StorageLayout, TeacherKey
from videomamba_depth.data.labels.label_folder import LabelFolder
from videomamba_depth.data.labels.teacher_cache import TeacherCacheWriter
from videomamba_depth.data.transforms import cover_size, resize_depth, resize_images
from videomamba_depth.data.video.find import VideoSource, scan_sources, unique_ids
from videomamba_depth.data.video.reader import Frame, VideoInfo, VideoReadError, iter_frames, probe_video
from videomamba_depth.flow.clip_motion import static_mask
from videomamba_depth.flow.estimators import FlowEstimator, PairsOnce

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class PrecomputeSummary:
    """What a rank did: videos finished now, videos found finished, frames labelled, {video_id: why it failed}."""

    finished: int = 0
    already_finished: int = 0
    frames: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def merged(cls, parts: Iterable[PrecomputeSummary]) -> PrecomputeSummary:
        """Return what several ranks did."""
        whole = cls()
        for part in parts:
            whole.finished += part.finished
            whole.already_finished += part.already_finished
            whole.frames += part.frames
            whole.failed |= part.failed
        return whole


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
    labels: LabelFolder | None = None,
    scan: bool = True,
    progress: bool = True,
    masks: bool = False,
    static: StaticKey | None = None,
) -> PrecomputeSummary:
    """Label every frame of this rank's videos and store the result; finished chunks are skipped.

    Frames reach the teacher at the size that maps are stored at, as those of a clip do in training
    (`dataset_video.VideoClipDataset`): the label is the same. Batches never cross a chunk, so that a run that was
    stopped and continued makes the same batches, hence the same labels bit for bit, as one that was not. While one is
    labelled, the next is read in a thread. Memory holds two batches of frames and one chunk of maps at the stored size.

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
        labels: take depth from there, resized to the stored size, instead of asking `predict_depth`.
        scan: open all videos before the first is labelled, so that the bar knows how many frames there are.
        progress: show a bar with the time left.
        masks: the teacher gives NaN where it has no label.
        static: how static masks are found with `flow`; None: as `static_mask` does, and the cache does not say.

    Returns:
        what was done. A broken video is named in a warning and in `failed`; the others go on.

    Raises:
        UserError: the cache was made with another teacher, layout or video.
        KeyboardInterrupt: Ctrl-C; what is stored stays valid and the next run continues.
    """
    summary = PrecomputeSummary()
    mine = unique_ids(videos)[rank::world_size]
    usable, broken = scan_sources(mine, progress) if scan else ([(source, None) for source in mine], {})
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
                writer = TeacherCacheWriter(cache_root, source, info, key, layout, masks, static if has_flow else None)
                labelled = _Labeller(source, info, writer, predict_depth, batch_frames, flow, labels).label_video(bar)
            except (VideoReadError, LabelError) as error:
                _fail(summary, source.video_id, str(error))
            else:
                summary.frames += labelled
                summary.already_finished += not writer.missing
                summary.finished += bool(writer.missing)
    return summary


def label_size(info: VideoInfo, image_size: tuple[int, int] | int | None) -> tuple[int, int]:
    """Return (height, width) px at which a video is labelled and its maps are stored."""
    if image_size is None:
        return info.height, info.width
    return cover_size(info.height, info.width, image_size)[1]


class _Labeller:
    """Turns the missing chunks of one video into labels; decodes forward, seeking only over finished chunks.

    Whatever reads frames runs in the thread of `one_ahead`.
    """

    def __init__(
        self,
        source: VideoSource,
        info: VideoInfo,
        writer: TeacherCacheWriter,
        predict_depth: Callable[[Tensor], Tensor],
        batch_frames: int,
        flow: FlowEstimator | None,
        labels: LabelFolder | None,
    ) -> None:
        self.source, self.labels = source, labels
        self.path, self.info, self.writer = source.path, info, writer
        self.predict_depth, self.flow = predict_depth, flow
        self.batch_frames = batch_frames
        self.size = (writer.layout.height, writer.layout.width)
        self._frames: Iterator[Frame] = iter(())
        self._next = -1

    def label_video(self, bar: tqdm) -> int:
        """Label and store what is missing, with progress; returns the number of frames labelled."""
        ranges = {chunk: self.writer.chunk_range(chunk) for chunk in self.writer.missing}
        waiting = sum(stop - start for start, stop in ranges.values())
        found = self.info.num_frames - waiting
        if not bar.disable:
            bar.n, bar.initial = bar.n + found, bar.initial + found  # not work of this run: keeps the time left honest
            bar.refresh()
        with closing(one_ahead(self._read(list(ranges.values())))) as batches:
            for chunk, (start, stop) in ranges.items():
                self.writer.write_chunk(chunk, self._label(start, stop, batches))
                bar.update(stop - start)
        return waiting

    def _label(self, start: int, stop: int, batches: Iterator[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the maps of the frames from `start` to before `stop`, see `TeacherCacheWriter.write_chunk`."""
        depth, small = [], []
        if self.flow is not None and start > 0:
            small.append(next(batches))
        for indices in self._batches(start, stop):
            if self.labels is not None:
                depth.append(resize_depth(self.labels.read(self.source, self.info, indices), self.size))
            if self.labels is None or self.flow is not None:
                small.append(next(batches))
            if self.labels is None:
                depth.append(self._predict(small[-1]))
            if self.flow is None:
                small.clear()
        maps = {"depth": np.concatenate(depth)}
        if self.flow is not None:
            motion = _motion(np.concatenate(small), self.flow, self.writer.static)
            maps |= {name: values[start > 0 :] for name, values in motion.items()}
        return maps

    def _batches(self, start: int, stop: int) -> list[range]:
        step = self.batch_frames
        return [range(first, min(first + step, stop)) for first in range(start, stop, step)]

    def _read(self, chunks: list[tuple[int, int]]) -> Iterator[np.ndarray]:
        """Yield what `_label` takes of every chunk at the stored size: with flow the frame before, then its batches."""
        if self.labels is not None and self.flow is None:
            return
        last, small = -1, np.empty(0)
        for start, stop in chunks:
            if self.flow is not None and start > 0:
                yield small[-1:] if last == start - 1 else resize_images(self._take(start - 1, 1), self.size)
            for indices in self._batches(start, stop):
                small = resize_images(self._take(indices.start, len(indices)), self.size)
                yield small
            last = stop - 1

    def _predict(self, frames: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            depth = self.predict_depth(_to_tensor(frames))
        if depth.shape != (len(frames), 1, *self.size):
            raise ValueError(f"predict_depth must return {[len(frames), 1, *self.size]}; got {list(depth.shape)}")
        return depth[:, 0].float().cpu().numpy()

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


def one_ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """Yield the items in their order; each is worked out in a thread while the one before it is used."""
    with ThreadPoolExecutor(1, "read ahead") as thread:
        coming = thread.submit(list, itertools.islice(items, 1))
        while found := coming.result():
            coming = thread.submit(list, itertools.islice(items, 1))
            yield found[0]


@torch.inference_mode()
def _motion(frames: np.ndarray, flow: FlowEstimator, static: StaticKey | None) -> dict[str, np.ndarray]:
    """Return flow to the frame before [N,2,h,w], 0 for the first one, and the static mask [N,h,w]."""
    clip, pairs = _to_tensor(frames), PairsOnce(flow)
    flow_bwd = torch.zeros(len(clip), 2, *clip.shape[-2:])
    if len(clip) > 1:
        flow_bwd[1:] = pairs.both_ways(clip[1:], clip[:-1])[0].cpu()
    bounds = () if static is None else (static.max_motion_px, static.max_rgb_change)
    return {"flow_bwd": flow_bwd.numpy(), "static": static_mask(clip, pairs, *bounds)[:, 0].cpu().numpy()}


def _fail(summary: PrecomputeSummary, video_id: str, reason: str) -> None:
    summary.failed[video_id] = reason
    log.warning("%s is skipped: %s", video_id, reason)


def _to_tensor(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float().div_(255)
