"""Run streams over a clip once, and gather what their depth is scored against; frames go to disk."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np

from videomamba_depth.evaluation.clips import EvaluationClip
from videomamba_depth.evaluation.metrics.accuracy import (
    MIN_DISPARITY,
    aligned_as_depth,
    aligned_disparity,
    alignment_per_frame,
    valid_ground_truth,
)
from videomamba_depth.evaluation.metrics.stability import positive_log
from videomamba_depth.evaluation.recurrence import Stream, resize_depth, to_tensor
from videomamba_depth.flow.clip_motion import ClipMotion, estimate_motion
from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.flow.frame_view import Frames, FrameView, computed, first_frames, mapped, on_disk
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.metrics import clip_scale_and_shift

log = logging.getLogger(__name__)

Progress = Callable[[str, int | str], None]
"""Called with what was done and for which: "frame" or "flow" with its number, else "method", "palindrome" or "cut"."""


@dataclass(frozen=True)
class Context:
    """A clip at the evaluation size, read frame by frame; sizes and units as in `EvaluationClip`.

    teacher: [F,H,W] the framewise teacher's depth, the reference of the guards. estimated_motion: what filters may
    read; `motion`, which the metrics read, is exact where `exact_motion` says so. aligned_to: what the clip's one scale
    and shift are fitted to, "video" or "first_frame". stills: nothing holds from one frame to the next. teacher_kind,
    teacher_disparity: of the teacher, where the depth that is scored is of another kind. align_metric: metric depth is
    aligned like inverse depth, since methods of several kinds are compared; its accuracy in meters is reported too.
    """

    rgb: Frames
    teacher: Frames
    motion: ClipMotion
    depth_kind: DepthKind
    gt_depth_m: Frames | None = None
    valid: Frames | None = None
    max_depth_m: float = 10.0
    intrinsics: np.ndarray | None = None
    camera_to_world: np.ndarray | None = None
    exact_motion: bool = False
    estimated_motion: ClipMotion | None = None
    aligned_to: str = "video"
    stills: bool = False
    teacher_kind: DepthKind | None = None
    teacher_disparity: Frames | None = None
    align_metric: bool = False

    def of_kind(self, kind: DepthKind | None) -> Context:
        """Return the context that depth of another kind is scored in; the reference stays. None: the teacher's kind."""
        if kind is None or kind is self.depth_kind:
            return self
        return replace(self, depth_kind=kind, teacher_kind=self.depth_kind, teacher_disparity=self.reference)

    @cached_property
    def counted(self) -> Frames:
        """Where ground truth counts, [F,H,W] bool."""
        return valid_ground_truth(self.gt_depth_m, self.valid, self.max_depth_m)

    @cached_property
    def reference(self) -> Frames:
        """The teacher's `disparity`."""
        return computed(self.disparity(self.teacher)) if self.teacher_disparity is None else self.teacher_disparity

    @property
    def alignment(self) -> str:
        """How stability is aligned, in words."""
        if self.depth_kind == DepthKind.METRIC and not self.align_metric:
            return "none (metric depth)"
        if self.gt_depth_m is None:
            return "one affine per clip to the teacher"
        kinds = {"video": "one affine per clip", "first_frame": "the affine of frame 0 for the clip"}
        return f"{'one affine per picture' if self.stills else kinds[self.aligned_to]} to ground truth"

    def disparity(self, depth: Frames) -> Frames:
        """Return the disparity of a method's depth [F,H,W] in the clip's units.

        Inverse depth is aligned with ONE affine per clip, so that flicker and drift stay: to the ground truth (1/m), of
        the video or of its first frame, where there is one, else to the teacher. Metric depth is only inverted, unless
        other methods have to be aligned; affine-invariant depth is aligned to the ground truth as depth, then inverted.
        """
        if self.depth_kind == DepthKind.METRIC and not self.align_metric:
            return self.inverse(depth)
        if self.depth_kind == DepthKind.AFFINE_DEPTH:
            assert self.gt_depth_m is not None, "affine-invariant depth needs ground truth"
            fit = alignment_per_frame(depth, self.gt_depth_m, self.counted, self.aligned_to, "depth")[0]
            far = self.max_depth_m
            return mapped(lambda d: (1.0 / aligned_as_depth(d, *fit, far)).astype(np.float32), depth)
        depth = self.inverse(depth)
        if self.gt_depth_m is not None:
            scale, shift = alignment_per_frame(depth, self.gt_depth_m, self.counted, self.aligned_to)[0]
            if np.isfinite(scale):
                return mapped(lambda frame: aligned_disparity(frame, scale, shift).astype(np.float32), depth)
        teacher = self.inverse(self.teacher, self.teacher_kind)
        to_teacher = clip_scale_and_shift(depth, teacher, mapped(lambda frame: np.ones(frame.shape, bool), depth))
        return mapped(lambda frame: (to_teacher[0] * frame + to_teacher[1]).astype(np.float32), depth)

    def inverse(self, depth: Frames, kind: DepthKind | None = None) -> Frames:
        """Return inverse depth, as it is when it already is one; 1/depth (1/m) of metric depth. kind: else its own."""
        if (kind or self.depth_kind) == DepthKind.RELATIVE:
            return depth
        return mapped(lambda frame: (1.0 / np.maximum(frame, MIN_DISPARITY)).astype(np.float32), depth)


@dataclass(frozen=True)
class ScoredDepth:
    """A method's depth [F,H,W] on a clip, and what several metrics read of it; worked out when asked for."""

    depth: Frames
    context: Context

    @cached_property
    def disparity(self) -> Frames:
        """Aligned disparity, see `Context.disparity`."""
        return computed(self.context.disparity(self.depth))

    @property
    def inverse(self) -> Frames:
        """Inverse depth before alignment, for what fits one itself; where there is none, after it."""
        has_none = self.context.depth_kind == DepthKind.AFFINE_DEPTH
        return self.disparity if has_none else self.context.inverse(self.depth)

    @cached_property
    def depth_m(self) -> FrameView:
        """Aligned depth in meters, at most `max_depth_m`."""
        far = self.context.max_depth_m
        return mapped(lambda frame: np.clip(1.0 / np.maximum(frame, 1.0 / far), 1e-3, far), self.disparity)

    @cached_property
    def log(self) -> tuple[Frames, Frames]:
        """Log disparity and where it is defined, see `positive_log`."""
        x, defined = positive_log(self.disparity)
        return computed(x), computed(defined)


def run_streams(
    clip: EvaluationClip,
    streams: Mapping[str, Stream],
    max_side: int,
    max_frames: int | None,
    progress: Progress | None = None,
    fewest: int = 2,
) -> tuple[Frames, dict[str, Frames]]:
    """Read the clip once and feed every stream; return frames uint8 [F,H,W,3] and depth [F,H,W] at the evaluation size.

    Raises:
        UserError: the clip has fewer than `fewest` frames.
    """
    kept = on_disk(_frames_and_depth(clip, streams.values(), max_side, max_frames, progress))
    num_frames = len(kept[0]) if kept else 0
    if num_frames < fewest:
        raise UserError(f"clip {clip.name!r} has {num_frames} frames; stability needs at least 2: give a longer one")
    return kept[0], dict(zip(streams, kept[1:], strict=True))


def _frames_and_depth(
    clip: EvaluationClip,
    streams: Iterable[Stream],
    max_side: int,
    max_frames: int | None,
    progress: Progress | None,
) -> Iterator[list[np.ndarray]]:
    """Yield every frame and what each stream makes of it."""
    streams, size = list(streams), None
    for index, frame in enumerate(clip.frames):
        if max_frames is not None and index >= max_frames:
            log.info("%s: stopped after max_frames=%d frames", clip.name, max_frames)
            break
        size = size or _evaluation_size(clip, frame.shape[:2], max_side)
        tensor = to_tensor(frame)
        yield [_resize_rgb(frame, size), *(resize_depth(stream(tensor), size) for stream in streams)]
        if progress is not None:
            progress("frame", index)


def _evaluation_size(clip: EvaluationClip, frame_size: tuple[int, int], max_side: int) -> tuple[int, int]:
    for known in (clip.gt_depth_m, None if clip.motion is None else clip.motion.trusted_bwd):
        if known is not None:
            return int(known.shape[-2]), int(known.shape[-1])
    shrink = min(1.0, max_side / max(frame_size))
    return max(16, round(frame_size[0] * shrink)), max(16, round(frame_size[1] * shrink))


def build_context(
    clip: EvaluationClip,
    rgb: Frames,
    teacher: Frames,
    depth_kind: DepthKind,
    flow: FlowEstimator | None,
    for_filters: bool,
    progress: Progress | None = None,
) -> Context:
    """Gather what the methods of a clip are scored against.

    rgb, teacher: what `run_streams` returned. for_filters: whether the motion that filters read is needed.

    Raises:
        UserError: the parts of the clip do not fit together.
    """
    num_frames = len(rgb)
    for name in ("gt_depth_m", "valid", "camera_to_world"):
        value = getattr(clip, name)
        if value is not None and len(value) < num_frames:
            raise UserError(f"clip {clip.name!r}: {name} has {len(value)} frames for {num_frames} images")
    known = []
    for motion in (clip.motion, clip.estimated_motion):
        if motion is not None and (motion.trusted_bwd.shape[1:] != rgb.shape[1:3] or motion.num_frames < num_frames):
            raise UserError(f"clip {clip.name!r}: motion and ground truth differ in size or number of frames")
        known.append(None if motion is None else _first_frames(motion, num_frames))
    exact, estimated = known
    if exact is None and flow is None:
        raise ValueError("flow must be an estimator when the clip brings no motion of its own; got None")
    if estimated is None and flow is not None and (exact is None or for_filters):
        pairs = itertools.count(1)
        tick = None if progress is None else lambda: progress("flow", next(pairs))
        estimated = estimate_motion(rgb, flow, keep=on_disk, progress=tick)
    motion = exact or estimated
    assert motion is not None
    return Context(
        rgb=rgb,
        teacher=teacher,
        motion=motion,
        depth_kind=depth_kind,
        gt_depth_m=None if clip.gt_depth_m is None else first_frames(clip.gt_depth_m, num_frames),
        valid=None if clip.valid is None else first_frames(clip.valid, num_frames),
        max_depth_m=clip.max_depth_m,
        intrinsics=clip.intrinsics,
        camera_to_world=None if clip.camera_to_world is None else np.asarray(clip.camera_to_world[:num_frames]),
        exact_motion=exact is not None,
        estimated_motion=estimated or exact,
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
