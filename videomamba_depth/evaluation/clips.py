"""What is evaluated: a clip, with as much ground truth as there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from videomamba_depth.flow.clip_motion import ClipMotion
from videomamba_depth.flow.frame_view import Frames, Keep, mapped, on_disk

if TYPE_CHECKING:
    from videomamba_depth.data.synthetic import SyntheticFrame


@dataclass(frozen=True)
class EvaluationClip:
    """One clip and what is known of it. Everything but name and frames is optional.

    name: identifies the clip in reports.
    frames: F × uint8 [H,W,3] RGB; an array, a sequence or an iterator (read once, in order).
    Arrays may be `FrameView`s, which hold nothing in memory.
    fps: frames per second, for the report alone.
    frame_ids: which frames of the source these are; default 0 … F−1. frame_places: their places among all pictures
    of the source, also those without ground truth; source_frames: how many these are. file_places: their places among
    the num_files files of the folder that they lie in, where a list names the pictures; programs that are given the
    folder count these. Without them, the other files are not pictures, but depth.
    times_s: of the frames, on the source's own clock.
    gt_depth_m: [F,h,w] float, z in meters; anything not positive is invalid. Its size is the size of
    evaluation.
    valid: [F,h,w] bool, where gt_depth_m holds.
    max_depth_m: ground truth beyond it does not count (10 indoors, 70 Sintel, 80 KITTI).
    motion: exact flow and visibility at h×w, instead of estimated ones.
    estimated_motion: the motion at h×w as a user would estimate it, for filters; worked out where it is not given.
    intrinsics: [3,3] px at h×w. camera_to_world: [F,4,4], m.
    """

    name: str
    frames: Iterable[np.ndarray]
    fps: float = 30.0
    frame_ids: tuple[int | str, ...] | None = None
    frame_places: tuple[int, ...] | None = None
    source_frames: int | None = None
    file_places: tuple[int, ...] | None = None
    num_files: int | None = None
    times_s: tuple[float, ...] | None = None
    gt_depth_m: Frames | None = None
    valid: Frames | None = None
    max_depth_m: float = 10.0
    motion: ClipMotion | None = None
    estimated_motion: ClipMotion | None = None
    intrinsics: np.ndarray | None = None
    camera_to_world: np.ndarray | None = None


@dataclass(frozen=True)
class ClipSource:
    """A clip that is opened when its turn comes.

    name: identifies it in reports, also when it cannot be opened. load: opens it. group: clips of one group are
    averaged and compared together. digest: returns what names the clip's content; results are kept under it, none
    without one. keep_depth: the depth of untrained streams is kept too, for the next student. stills: its frames are
    pictures that have nothing to do with each other. protocol: of its frame list, for the report. path: of a video.
    frame_list: of the protocol, where its name ends in @LIST.
    """

    name: str
    load: Callable[[], EvaluationClip]
    group: str = ""
    digest: Callable[[], str] | None = None
    keep_depth: bool = False
    stills: bool = False
    protocol: str | None = None
    path: str | None = None
    frame_list: str | None = None


def clip_from_synthetic(
    name: str, frames: Iterable[SyntheticFrame], max_depth_m: float = 80.0, keep: Keep = on_disk
) -> EvaluationClip:
    """Build a clip with complete ground truth from frames as they are rendered (`iter_video`); see `world_arrays`."""
    return world_clip(name, world_arrays(frames, keep), max_depth_m)


def world_arrays(frames: Iterable[SyntheticFrame], keep: Keep) -> dict[str, Frames]:
    """Return the arrays of a world by name: frame by frame those of `columns`, and its cameras and times.

    keep: where pictures, depth and flow go, 25 bytes per pixel and frame: `on_disk` or `in_memory`.
    """
    cameras: list[tuple[float, np.ndarray, np.ndarray]] = []

    def columns() -> Iterator[tuple[np.ndarray, ...]]:
        for frame in frames:
            cameras.append((frame.timestamp_s, frame.intrinsics, frame.camera_to_world))
            flows = (_channels_first(frame.flow_bwd), _channels_first(frame.flow_fwd))
            yield frame.rgb, frame.depth_m, *flows, frame.visible_bwd, frame.visible_fwd

    names = ("rgb", "depth_m", "flow_bwd", "flow_fwd", "visible_bwd", "visible_fwd")
    arrays: dict[str, Frames] = dict(zip(names, keep(columns()), strict=True))
    times, intrinsics, poses = zip(*cameras, strict=True)
    return arrays | {
        "intrinsics": np.asarray(intrinsics[0], dtype=np.float64),
        "camera_to_world": np.asarray(poses, dtype=np.float64),
        "times_s": np.asarray(times, dtype=np.float64),
    }


def world_clip(name: str, arrays: Mapping[str, Any], max_depth_m: float) -> EvaluationClip:
    """Build a clip from the arrays of `world_arrays`.

    Beside them may be `estimated_bwd` [F,2,H,W] px and `estimated_trusted` [F,H,W]: the estimated motion toward the
    past, which is all that a causal filter may read.
    """
    times, estimated = arrays["times_s"], None
    if "estimated_bwd" in arrays:
        flow, trusted = arrays["estimated_bwd"], arrays["estimated_trusted"]
        nothing, nowhere = np.broadcast_to(np.float32(0), flow.shape), np.broadcast_to(np.bool_(False), trusted.shape)
        estimated = ClipMotion(flow, nothing, trusted, nowhere)
    return EvaluationClip(
        name=name,
        frames=arrays["rgb"],
        fps=float((len(times) - 1) / (times[-1] - times[0])) if len(times) > 1 else 30.0,
        gt_depth_m=arrays["depth_m"],
        max_depth_m=max_depth_m,
        motion=ClipMotion(arrays["flow_bwd"], arrays["flow_fwd"], arrays["visible_bwd"], arrays["visible_fwd"]),
        estimated_motion=estimated,
        intrinsics=arrays.get("intrinsics"),
        camera_to_world=arrays.get("camera_to_world"),
    )


def shrink_clip(clip: EvaluationClip, max_side: int) -> EvaluationClip:
    """Return the clip with ground truth, motion and intrinsics brought to a longer side of at most `max_side`
    px.

    Nearest sampling at pixel centers, so that no depth is invented at edges. Frames are left alone: a model
    sees them in full, and its depth is resized to the evaluation size. The smaller clip lies on disk; one that is
    small enough is returned as it is.
    """
    known = clip.gt_depth_m
    if known is None and clip.motion is not None:
        known = clip.motion.trusted_bwd
    if known is None or max(known.shape[-2:]) <= max_side:
        return clip
    height, width = known.shape[-2:]
    ratio = max_side / max(height, width)
    size = (max(round(height * ratio), 1), max(round(width * ratio), 1))
    rows = ((np.arange(size[0]) + 0.5) * height / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * width / size[1]).astype(int)
    scale = np.array([size[1] / width, size[0] / height])

    def pick(values: Frames, unit: np.ndarray | None = None) -> Frames:
        smaller = mapped(lambda frame: frame[..., rows[:, None], columns[None]], values)
        return on_disk([frame if unit is None else frame * unit] for frame in smaller)[0]

    motion = None
    if clip.motion is not None:
        unit = scale.astype(np.float32)[:, None, None]
        motion = ClipMotion(
            pick(clip.motion.flow_bwd, unit),
            pick(clip.motion.flow_fwd, unit),
            pick(clip.motion.trusted_bwd),
            pick(clip.motion.trusted_fwd),
            clip.motion.cuts,
        )
    return replace(
        clip,
        gt_depth_m=None if clip.gt_depth_m is None else pick(clip.gt_depth_m),
        valid=None if clip.valid is None else pick(clip.valid),
        motion=motion,
        estimated_motion=None,
        intrinsics=None if clip.intrinsics is None else scale_intrinsics(clip.intrinsics, scale),
    )


def scale_intrinsics(intrinsics: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Scale [3,3] intrinsics by (x, y); the corner of pixel 0, at −0.5, stays where it is."""
    scaled = np.array(intrinsics, dtype=np.float64)
    for axis in (0, 1):
        scaled[axis, axis] *= scale[axis]
        scaled[axis, 2] = (scaled[axis, 2] + 0.5) * scale[axis] - 0.5
    return scaled


def _channels_first(flow: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(np.asarray(flow, dtype=np.float32), -1, 0))
