"""Pictures of a clip that make flicker visible: x–t slices, and a video of all methods side by side."""

from __future__ import annotations

import base64
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from videomamba_depth.data.video.writer import VideoWriter
from videomamba_depth.evaluation.clips import EvaluationClip
from videomamba_depth.evaluation.context import Context
from videomamba_depth.evaluation.methods import TEACHER
from videomamba_depth.evaluation.metrics.percentiles import percentiles
from videomamba_depth.flow.frame_view import Frames, computed, first_frames, on_disk
from videomamba_depth.utils.color import INFERNO
from videomamba_depth.utils.depth_kind import DepthKind

MAX_TILE_PX = 320
MAX_VIDEO_BYTES = 12_000_000
MAX_SLICE_FRAMES = 240


@dataclass(frozen=True)
class Slice:
    """One method's x–t slice and what changes in it from frame to frame, as data URIs of PNG files."""

    method: str
    picture: str
    jumps: str = ""


@dataclass(frozen=True)
class WorstFrame:
    """Where a method fails most: input, reference, its depth and its error side by side, as a data URI.

    value, mean: `metric` of this frame, and of all.
    """

    method: str
    frame: int
    metric: str
    value: float
    mean: float
    picture: str


@dataclass(frozen=True)
class ClipPictures:
    """Pictures of one clip.

    image_row: which line of pixels the slices follow, of `height`. video: data URI of an MP4 file, or why there is
    none in `no_video_reason`.
    """

    name: str
    image_row: int
    height: int
    num_frames: int
    slices: tuple[Slice, ...]
    worst: tuple[WorstFrame, ...] = ()
    video: str = ""
    video_frames: int = 0
    video_size: tuple[int, int] = (0, 0)
    no_video_reason: str = ""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ClipPictures:
        """Return the pictures that `dataclasses.asdict` made plain."""
        slices = tuple(Slice(**s) for s in values["slices"])
        worst = tuple(WorstFrame(**frame) for frame in values["worst"])
        return cls(**{**values, "slices": slices, "worst": worst, "video_size": tuple(values["video_size"])})


@dataclass
class ClipView:
    """Gather what is shown of one clip: slices in memory; the video's frames on disk, 1 byte per pixel and method.

    Colors span the 2nd to 98th percentile of the teacher's whole clip for every method and frame, so a flicker that is
    seen is a flicker of the depth. The slices follow the image row (of the middle three fifths) in which the
    teacher jumps most.

    rgb: uint8 [F,H,W,3]. teacher: disparity [F,H,W]. video_frames: at most so many are in the video; 0: none.
    """

    name: str
    rgb: Frames
    fps: float
    teacher: InitVar[Frames]
    video_frames: int = 96
    _slices: dict[str, np.ndarray] = field(default_factory=dict)
    _levels: dict[str, Frames] = field(default_factory=dict)

    def __post_init__(self, teacher: Frames) -> None:
        low, high = percentiles(teacher, [2, 98])
        self._range = (low, high)
        height = teacher.shape[1]
        margin = height // 5
        jumps = _jumps_of_rows(first_frames(teacher, MAX_SLICE_FRAMES), height)
        self.image_row = margin + int(np.argmax(jumps[margin : height - margin]))

    def add(self, method: str, disparity: Frames) -> None:
        """Take a method's disparity [F,H,W], aligned like the teacher's."""
        self._slices[method] = self._slice(disparity).astype(np.float32)
        if self.video_frames:
            shown = first_frames(disparity, self.video_frames)
            (self._levels[method],) = on_disk([self._to_levels(frame)] for frame in shown)

    def finish(self) -> ClipPictures:
        """Draw everything."""
        slices = [Slice("input", _png(_enlarged(self._slice(self.rgb))))]
        unit = max(0.15 * (self._range[1] - self._range[0]), 1e-12)
        for method, values in self._slices.items():
            jumps = np.clip(_second_difference(values) / unit, -1, 1)
            slices.append(
                Slice(method, _png(_enlarged(INFERNO(values, self._range))), _png(_enlarged(_diverging(jumps))))
            )
        video, reason = (b"", "not asked for") if not self.video_frames else (self._encode(), "")
        shown = min(self.video_frames, len(self.rgb))
        frame = self._frame(0) if video else np.empty((0, 0))
        return ClipPictures(
            self.name, self.image_row, int(self.rgb.shape[1]), len(self.rgb), tuple(slices), (),
            _data_uri("video/mp4", video) if video else "", shown if video else 0,
            (frame.shape[1], frame.shape[0]), reason,
        )  # fmt: skip

    def _slice(self, frames: Frames) -> np.ndarray:
        """Return the line of pixels that the slices follow, of every frame."""
        return np.stack([frame[self.image_row] for frame in first_frames(frames, MAX_SLICE_FRAMES)])

    def _to_levels(self, disparity: np.ndarray) -> np.ndarray:
        low, high = self._range
        return np.clip(255 * (disparity - low) / max(high - low, 1e-12), 0, 255).astype(np.uint8)

    def _encode(self) -> bytes:
        height, width = self._frame(0).shape[:2]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "methods.mp4"
            with VideoWriter(path, size=(width, height), fps=self.fps, crf=25) as writer:
                for t in range(min(self.video_frames, len(self.rgb))):
                    writer.write(self._frame(t))
            return path.read_bytes()

    def _frame(self, t: int) -> np.ndarray:
        tiles = [tile(self.rgb[t], "input")]
        for method, levels in self._levels.items():
            tiles.append(tile(INFERNO.paint(levels[t]), method))
        columns = len(tiles) if len(tiles) <= 3 else (len(tiles) + 1) // 2
        tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
        rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
        return np.ascontiguousarray(np.concatenate(rows))


def draw_clip(
    clip: EvaluationClip,
    context: Context,
    depths: Mapping[str, tuple[Frames, DepthKind | None]],
    video_frames: int,
) -> ClipPictures:
    """Return the pictures of a clip's methods; one that is not finite is left out.

    depths: {method: ([F,H,W], its kind)}, see `Evaluator`. video_frames: of the video; 0: none.
    """
    view = ClipView(clip.name, context.rgb, clip.fps, context.reference, video_frames)
    worst: list[WorstFrame] = []
    for name, (depth, kind) in depths.items():
        if all(np.isfinite(frame).all() for frame in depth):
            disparity = computed(context.of_kind(kind).disparity(depth))
            view.add(name, disparity)
            if name != TEACHER:
                worst += worst_frames(name, disparity, context)
    return replace(view.finish(), worst=tuple(worst))


def worst_frames(method: str, disparity: Frames, context: Context, count: int = 2) -> list[WorstFrame]:
    """Return the frames in which a method is farthest from the ground truth, else from the teacher, the worst first.

    The error of a frame is AbsRel of depth aligned once per clip, or the mean distance from the teacher's inverse depth
    over the spread of that. Two frames are at least an eighth of the clip apart.
    """
    reference, metric = context.reference, "distance from the teacher"
    if context.gt_depth_m is not None:
        metric = "AbsRel"

        def error(t: int) -> np.ndarray:
            ratio = context.gt_depth_m[t] * np.maximum(disparity[t], 1.0 / context.max_depth_m)  # type: ignore[index]
            return np.where(context.counted[t], np.abs(1.0 / np.where(context.counted[t], ratio, 1.0) - 1.0), np.nan)
    else:
        low, high = percentiles(reference, [2, 98])

        def error(t: int) -> np.ndarray:
            return np.abs(disparity[t] - reference[t]) / max(high - low, 1e-12)

    errors = np.array([_mean_of_known(error(t)) for t in range(len(disparity))])
    mean, left, found = _mean_of_known(errors), errors.copy(), list[WorstFrame]()
    while len(found) < count and np.isfinite(left).any():
        t = int(np.nanargmax(left))
        left[max(0, t - len(errors) // 8) : t + len(errors) // 8 + 1] = np.nan
        picture = _failure(context, t, disparity[t], error(t), method, metric)
        found.append(WorstFrame(method, t, metric, float(errors[t]), mean, picture))
    return found


def _failure(context: Context, t: int, disparity: np.ndarray, error: np.ndarray, method: str, metric: str) -> str:
    known = np.ones(error.shape, bool)
    reference, title = context.reference[t], "reference"
    if context.gt_depth_m is not None:
        known, title = context.counted[t], "ground truth"
        reference = np.where(known, 1.0 / np.maximum(context.gt_depth_m[t], 1e-3), 0.0)
    low, high = np.percentile(reference[known], [2, 98])
    top = 3.0 * max(_mean_of_known(error), 1e-12)
    blank = ~known[..., None]
    tiles = [
        tile(context.rgb[t], "input"),
        tile(np.where(blank, np.uint8(0), INFERNO(reference, (low, high))), title),
        tile(INFERNO(disparity, (low, high)), method),
        tile(np.where(blank, np.uint8(0), INFERNO(np.nan_to_num(error), (0.0, top))), f"{metric}, 0 to {top:.2g}"),
    ]
    done, data = cv2.imencode(".jpg", np.concatenate(tiles, axis=1)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    if not done:
        raise ValueError(f"cannot encode pictures of shape {tiles[0].shape}")
    return _data_uri("image/jpeg", data.tobytes())


def _mean_of_known(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean(dtype=np.float64)) if known.size else float("nan")


def fit_videos(clips: Sequence[ClipPictures], max_bytes: int | None = None) -> list[ClipPictures]:
    """Leave out the videos that do not fit into `max_bytes` of all together, and say so in their place."""
    left, fitting = MAX_VIDEO_BYTES if max_bytes is None else max_bytes, []
    for pictures in clips:
        size = len(pictures.video) * 3 // 4
        if size > left:
            reason = f"its {size / 1e6:.1f} MB would make the page too large"
            pictures = replace(pictures, video="", video_frames=0, video_size=(0, 0), no_video_reason=reason)
        left -= len(pictures.video) * 3 // 4
        fitting.append(pictures)
    return fitting


def _jumps_of_rows(frames: Iterable[np.ndarray], height: int) -> np.ndarray:
    """Return [H]: the mean |second difference| over time of every image row, times the number of frames."""
    jumps, three = np.zeros(height), deque[np.ndarray](maxlen=3)
    for frame in frames:
        three.append(frame)
        if len(three) == 3:
            jumps += np.abs(_second_difference(np.stack(three))[0]).mean(axis=1, dtype=np.float64)
    return jumps


def _second_difference(values: np.ndarray) -> np.ndarray:
    """Return x_t − (x_{t−1} + x_{t+1}) / 2 along the first axis: a steady change cancels, a jump does not."""
    if len(values) < 3:
        return np.zeros_like(values)
    return values[1:-1] - 0.5 * (values[:-2] + values[2:])


def _diverging(values: np.ndarray) -> np.ndarray:
    """Return uint8 RGB of values in [−1, 1]: blue, white, red."""
    strength = np.abs(values)[..., None]
    end = np.where(values[..., None] > 0, np.array([178.0, 24.0, 43.0]), np.array([33.0, 102.0, 172.0]))
    return np.round(255 * (1 - strength) + end * strength).astype(np.uint8)


def _enlarged(picture: np.ndarray) -> np.ndarray:
    """Return [frames,W,3] with frames two pixels high, so that short clips are seen."""
    return np.repeat(picture, 2, axis=0)


def tile(picture: np.ndarray, label: str) -> np.ndarray:
    """Return uint8 RGB [h,w,3] at an even size, its longer side `MAX_TILE_PX`, below its label."""
    scale = MAX_TILE_PX / max(picture.shape[:2])
    size = [max(2, 2 * round(side * scale / 2)) for side in (picture.shape[1], picture.shape[0])]
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    strip = np.full((22, size[0], 3), 24, np.uint8)
    cv2.putText(strip, label, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([strip, cv2.resize(np.ascontiguousarray(picture), size, interpolation=interpolation)])


def _png(rgb: np.ndarray) -> str:
    done, data = cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]))
    if not done:
        raise ValueError(f"cannot encode a picture of shape {rgb.shape}")
    return _data_uri("image/png", data.tobytes())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
