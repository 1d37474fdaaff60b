"""Run every row's stream over a clip once, and gather what its depth is judged against; frames go to disk."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from videomamba_depth.evaluation.clips import EvaluationClip
from videomamba_depth.evaluation.memory import Stream, resize_depth, to_tensor
from videomamba_depth.evaluation.rows import Scene
from videomamba_depth.flow.clip_motion import ClipMotion, estimate_motion
from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.flow.frame_view import Frames, FrameView, first_frames, mapped, on_disk
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError

logger = logging.getLogger(__name__)

Progress = Callable[[str, int | str], None]
"""Called with what was done and for which: "frame" or "flow" (its number), "row", "palindrome" or "cut" (its row)."""


def run_streams(
    clip: EvaluationClip,
    rows: Mapping[str, Stream | np.ndarray | Tensor],
    max_side: int,
    max_frames: int | None,
    progress: Progress | None,
) -> tuple[Frames, dict[str, Frames]]:
    """Read the clip once, feed every stream, and keep frames and depth at the evaluation size."""
    kept = on_disk(_frames_and_depth(clip, rows, max_side, max_frames, progress))
    num_frames = len(kept[0]) if kept else 0
    if num_frames < 2:
        raise UserError(f"clip {clip.name!r} has {num_frames} frames; stability needs at least 2: give a longer one")
    return kept[0], dict(zip(rows, kept[1:], strict=True))


def _frames_and_depth(
    clip: EvaluationClip,
    rows: Mapping[str, Stream | np.ndarray | Tensor],
    max_side: int,
    max_frames: int | None,
    progress: Progress | None,
) -> Iterator[list[np.ndarray]]:
    """Yield every frame and what each stream makes of it."""
    size: tuple[int, int] | None = None
    for index, frame in enumerate(clip.frames):
        if max_frames is not None and index >= max_frames:
            logger.info("%s: stopped after max_frames=%d frames", clip.name, max_frames)
            break
        size = size or _evaluation_size(clip, frame.shape[:2], max_side)
        tensor = to_tensor(frame)
        made = [row(tensor) if callable(row) else _given_frame(name, row, index) for name, row in rows.items()]
        yield [_resize_rgb(frame, size), *(resize_depth(depth, size) for depth in made)]
        if progress is not None:
            progress("frame", index)


def _given_frame(name: str, row: Any, index: int) -> Tensor:
    if index >= len(row):
        raise ValueError(f"row {name!r} has {len(row)} frames, fewer than the clip")
    frame = torch.as_tensor(row[index])
    return frame.reshape(1, 1, *frame.shape[-2:])


def _evaluation_size(clip: EvaluationClip, frame_size: tuple[int, int], max_side: int) -> tuple[int, int]:
    for known in (clip.gt_depth_m, None if clip.motion is None else clip.motion.trusted_bwd):
        if known is not None:
            return int(known.shape[-2]), int(known.shape[-1])
    shrink = min(1.0, max_side / max(frame_size))
    return max(16, round(frame_size[0] * shrink)), max(16, round(frame_size[1] * shrink))


def build_scene(
    clip: EvaluationClip,
    rgb: Frames,
    depth_kind: DepthKind,
    flow: FlowEstimator | None,
    progress: Progress | None,
) -> Scene:
    """Gather what the rows of a clip are judged against; see `evaluate_video` for arguments and errors."""
    num_frames = len(rgb)
    for name in ("gt_depth_m", "valid", "camera_to_world"):
        value = getattr(clip, name)
        if value is not None and len(value) < num_frames:
            raise UserError(f"clip {clip.name!r}: {name} has {len(value)} frames for {num_frames} images")
    motion = clip.motion
    if motion is not None:
        if motion.trusted_bwd.shape[1:] != rgb.shape[1:3] or motion.num_frames < num_frames:
            raise UserError(f"clip {clip.name!r}: motion and ground truth differ in size or number of frames")
        motion = _first_frames(motion, num_frames)
    elif flow is not None:
        pairs = itertools.count(1)
        tick = None if progress is None else lambda: progress("flow", next(pairs))
        motion = estimate_motion(rgb, flow, keep=on_disk, progress=tick)
    else:
        raise ValueError("flow must be an estimator when the clip brings no motion of its own; got None")
    return Scene(
        rgb=rgb,
        motion=motion,
        depth_kind=depth_kind,
        gt_depth_m=None if clip.gt_depth_m is None else first_frames(clip.gt_depth_m, num_frames),
        valid=None if clip.valid is None else first_frames(clip.valid, num_frames),
        max_depth_m=clip.max_depth_m,
        intrinsics=clip.intrinsics,
        camera_to_world=None if clip.camera_to_world is None else np.asarray(clip.camera_to_world[:num_frames]),
        exact_motion=clip.motion is not None,
    )


def _first_frames(motion: ClipMotion, num_frames: int) -> ClipMotion:
    """Keep the first frames of a given motion; the last of them has no next."""
    bwd, fwd, trusted_bwd, trusted_fwd = (
        first_frames(frames, num_frames)
        for frames in (motion.flow_bwd, motion.flow_fwd, motion.trusted_bwd, motion.trusted_fwd)
    )
    has_next = mapped(lambda trusted, t: trusted & (t < num_frames - 1), trusted_fwd, range(num_frames))
    return ClipMotion(bwd, fwd, trusted_bwd, has_next, tuple(t for t in motion.cuts if t < num_frames))


def frames_in_any_order(frames: Iterable[np.ndarray], max_frames: int | None) -> Sequence[np.ndarray] | FrameView:
    """Return frames that can be read by index and again; those of an iterator are put on disk."""
    if isinstance(frames, Sized) and hasattr(frames, "__getitem__"):
        return first_frames(frames, len(frames) if max_frames is None else max_frames)
    kept = on_disk([frame] for frame in itertools.islice(frames, max_frames))
    return kept[0] if kept else []


def _resize_rgb(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if frame.shape[:2] == size:
        return np.asarray(frame)
    return cv2.resize(np.asarray(frame), (size[1], size[0]), interpolation=cv2.INTER_AREA)
