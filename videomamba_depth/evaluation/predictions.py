"""Depth that other programs have recorded, as methods: matched to a clip's frames, in the unit it is scored in."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videomamba_depth.data.recorded_depth import (
    RecordedDepth,
    find_recorded_depth,
    match_frames,
    open_recorded_depth,
)
from videomamba_depth.evaluation.cache import digest
from videomamba_depth.evaluation.clips import EvaluationClip
from videomamba_depth.evaluation.code_digest import code_digest
from videomamba_depth.evaluation.methods import Method
from videomamba_depth.evaluation.metrics.accuracy import MIN_DISPARITY
from videomamba_depth.utils.depth_kind import DepthKind, convert_depth
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

MAX_ASPECT_CHANGE = 0.05  # of width over height, between frames and depth: models round sizes to their patches
MAX_INVALID_SHARE = 0.5
MAX_CLAMPED = 2e-3
"""Share of a recording's spread that the metrics' floor of inverse depth may cut off before it counts."""


@dataclass(frozen=True)
class Prediction:
    """The recorded depth of all clips by one program.

    root: see `find_recorded_depth`. kind, scale: where the files do not say; see `open_recorded_depth`. alone: there is
    one clip, whose depth may be `root` itself. videos: where the clips' videos lie, which are never their own depth.
    scenes: {clip: what it is recorded as}; of others an @LIST at the end of the name does not count.
    """

    name: str
    root: Path
    kind: DepthKind | None = None
    scale: float | None = None
    alone: bool = False
    videos: Mapping[str, str] = field(default_factory=dict, hash=False)
    scenes: Mapping[str, str] = field(default_factory=dict, hash=False)

    def find(self, clip: str) -> Path:
        """Return where the depth of a clip lies; SCENE@LIST, of a protocol, is recorded as SCENE.

        Raises:
            UserError: there is none.
        """
        scene = self.scene_of(clip)
        if scene != clip:
            try:
                return find_recorded_depth(self.root, clip)
            except UserError:
                pass
        return find_recorded_depth(self.root, scene, self.alone, self.videos.get(clip))

    def open(self, clip: str) -> RecordedDepth:
        """Open the depth of a clip.

        Raises:
            UserError: there is none, or it cannot be read; the message names the prediction.
        """
        try:
            return open_recorded_depth(self.find(clip), self.kind, self.scale)
        except UserError as error:
            raise UserError(f"prediction '{self.name}': {error}") from error

    def digest(self, clip: str) -> str:
        """Return what names the depth of a clip: all its bytes, and what they mean."""
        recorded = self.open(clip)
        numbers = None if recorded.frame_numbers is None else recorded.frame_numbers.tolist()
        return digest(recorded.digest(), recorded.frame_names, numbers)

    def scene_of(self, clip: str) -> str:
        """Return SCENE of a clip that is called SCENE@LIST; the name of every other clip, and of every video."""
        if clip in self.scenes:
            return self.scenes[clip]
        return clip if clip in self.videos else clip.rpartition("@")[0] or clip


def scored_kind(kind: DepthKind) -> DepthKind:
    """Return what recorded depth is scored as: inverse depth, but for meters and for depth whose shift is unknown.

    The latter has no inverse; it is aligned to the ground truth as depth. An unknown scale is fitted together with a
    shift, as published protocols do.
    """
    return kind if kind in (DepthKind.METRIC, DepthKind.AFFINE_DEPTH) else DepthKind.RELATIVE


def prediction_method(prediction: Prediction, kind: DepthKind) -> Method:
    """Return recorded depth as a method; `kind`: what the files hold, of every clip."""

    def on_clip(clip: EvaluationClip, max_frames: int | None) -> RecordedStream:
        recorded = prediction.open(clip.name)
        if recorded.kind is not kind:
            raise UserError(
                f"prediction '{prediction.name}': {recorded.path} holds {recorded.kind.value}, other clips {kind.value}"
            )
        return RecordedStream(prediction.name, recorded, clip, max_frames)

    about = digest(kind.value, code_digest(__name__))
    digest_on = lru_cache(prediction.digest)
    return Method(
        prediction.name, on_clip=on_clip, digest=about, trained=True, kind=scored_kind(kind), digest_on=digest_on
    )


@dataclass(frozen=True)
class UsableRange:
    """Map of inverse depth in its own unit, one for a whole clip, to numbers that the metrics' floor leaves alone.

    p becomes (p − low) / unit + least, or stays as it is where `unit` is None. below: share of pixels under the floor.
    """

    low: float = 0.0
    unit: float | None = None
    least: float = 0.0
    below: float = 0.0

    def __call__(self, depth: np.ndarray) -> np.ndarray:
        """Return [h,w] float32."""
        if self.unit is None:
            return depth
        return ((depth.astype(np.float64) - self.low) / self.unit + self.least).astype(np.float32)


def usable_range(frames: Iterable[np.ndarray], has_shift: bool) -> UsableRange:
    """Return what brings inverse depth into a range in which `MIN_DISPARITY` means nothing; nothing where it does.

    With an unknown shift the least value of the clip becomes the floor and its spread 1; without, its median (of the
    medians of frames) becomes 1. Alignment, which fits one scale and shift, undoes either. What lies farther from the
    middle 98 % of its frame than these are wide, over all frames, does not count: few broken pixels decide nothing.

    Args:
        frames: finite inverse depth [h,w], each in the same unit.
    """
    ends, below, total, medians = list[np.ndarray](), 0, 0, list[float]()
    for frame in frames:
        ends.append(np.percentile(frame, [0, 1, 99, 100]))
        below, total = below + int((frame < MIN_DISPARITY).sum()), total + frame.size
        medians.append(float(np.median(frame)))
    if not ends:
        return UsableRange()
    lowest, low, high, highest = np.stack(ends, axis=1).astype(np.float64)
    first, last = float(low.min()), float(high.max())
    least, most = max(float(lowest.min()), 2 * first - last), min(float(highest.max()), 2 * last - first)
    spread, share = most - least, below / total
    if not spread > 0 or MIN_DISPARITY - least <= MAX_CLAMPED * spread:
        return UsableRange()
    if has_shift:
        return UsableRange(least, spread, MIN_DISPARITY, share)
    return UsableRange(0.0, float(np.median(medians)) or most, 0.0, share)


class RecordedStream:
    """Gives the recorded depth of a clip's frames, one after the other.

    Pixels without valid depth count as far away: the farthest value of their frame, or inverse depth 0 where its zero
    is known. The share of them is among `flags`. Inverse depth whose unit is so small, or whose zero so high, that the
    metrics' floor would cut it off is brought into a usable range as a whole, see `usable_range`.

    Raises:
        UserError: frames have no depth, the aspect ratio is another, more than half of a frame is invalid, or depth
            with an unknown shift meets a clip without ground truth.
    """

    def __init__(self, name: str, recorded: RecordedDepth, clip: EvaluationClip, max_frames: int | None) -> None:
        self._name, self._recorded = name, recorded
        if recorded.kind is DepthKind.AFFINE_DEPTH and clip.gt_depth_m is None:
            raise UserError(f"prediction '{name}' is {recorded.kind.value}: it needs ground truth to be aligned to")
        try:
            self._indices = _matched(recorded, clip, max_frames)
        except UserError as error:
            raise UserError(f"prediction '{name}': {error}") from error
        self.range = UsableRange()
        if scored_kind(recorded.kind) is DepthKind.RELATIVE:
            frames = (self._completed(depth, place)[0] for place, depth in enumerate(self._read()))
            self.range = usable_range(frames, recorded.kind.has_shift)
        if self.range.unit is not None:
            log.info(
                "prediction '%s': %s %% of %s is inverse depth below %g in its own unit; the clip is brought into"
                " range as a whole before it is aligned",
                name, 100 * self.range.below, recorded.path, MIN_DISPARITY,
            )  # fmt: skip
        self._frames = self._read()
        self._num_pixels, self._num_invalid = 0, 0
        self._place, self._values = 0, set[float]()  # of all frames so far, at most two

    @property
    def kind(self) -> DepthKind:
        """What it gives, see `scored_kind`."""
        return scored_kind(self._recorded.kind)

    @property
    def flags(self) -> list[str]:
        """What must stand beside its numbers, after it has run."""
        share = self._num_invalid / max(self._num_pixels, 1)
        return [f"{percent(share)} % without depth, taken as far"] if share > 0 else []

    def __call__(self, frame: Tensor) -> Tensor:
        depth = next(self._frames, None)
        if depth is None:
            raise UserError(f"prediction '{self._name}': {self._recorded.path} has fewer frames than the clip")
        (height, width), (h, w) = frame.shape[-2:], depth.shape
        if abs(width / height * h / w - 1) > MAX_ASPECT_CHANGE:
            raise UserError(
                f"prediction '{self._name}': {self._recorded.path} has depth of {h}×{w} px for frames of"
                f" {height}×{width} px: it was cropped, padded or turned"
            )
        depth, num_invalid = self._completed(depth, self._place)
        self._num_pixels, self._num_invalid = self._num_pixels + depth.size, self._num_invalid + num_invalid
        self._note_constant(depth)
        depth = self.range(depth)
        return torch.from_numpy(depth)[None, None]

    def _read(self) -> Iterator[np.ndarray]:
        """Yield the depth of the clip's frames; ascending frames are read in one go."""
        ascending = all(b > a for a, b in zip(self._indices, self._indices[1:], strict=False))
        if ascending:
            yield from self._recorded.iter_frames(self._indices)
        else:
            yield from (self._recorded.read(i) for i in self._indices)

    def _note_constant(self, depth: np.ndarray) -> None:
        """Warn after the last frame where all were one number."""
        self._place += 1
        if len(self._values) < 2:
            self._values |= {float(depth.min()), float(depth.max())}
            if self._place == len(self._indices) and len(self._values) == 1:
                log.warning(
                    "prediction '%s': %s is %g everywhere: is it what was recorded?",
                    *(self._name, self._recorded.path, *self._values),
                )

    def _completed(self, depth: np.ndarray, place: int) -> tuple[np.ndarray, int]:
        """Return a frame of the clip as it is scored, without gaps, and how many pixels were gaps."""
        kind, index = self._recorded.kind, self._indices[place]
        to = scored_kind(kind)
        depth = convert_depth(depth, kind, to)
        invalid = ~np.isfinite(depth)
        count = int(invalid.sum())
        if count > MAX_INVALID_SHARE * depth.size:
            raise UserError(
                f"prediction '{self._name}': {100 * count / depth.size:.0f} % of frame {index} of"
                f" {self._recorded.file_of(index)} are no {kind.value}; is its kind another?"
            )
        if count:
            known = depth[~invalid]
            zero_is_far = to is DepthKind.RELATIVE and not kind.has_shift
            depth[invalid] = 0.0 if zero_is_far else known.min() if to.is_inverse else known.max()
        return depth, count


def percent(share: float) -> str:
    """Return a share as a number of percent, of two digits or more."""
    return f"{100 * share:.2g}" if share < 0.1 else f"{100 * share:.0f}"


def _matched(recorded: RecordedDepth, clip: EvaluationClip, max_frames: int | None) -> Sequence[int]:
    """Return the index in the recording of every frame of a clip."""
    total = clip.source_frames or recorded.num_frames  # nobody knows how many frames an iterator will give
    places = list(range(total) if clip.frame_places is None else clip.frame_places)[:max_frames]
    numbers = recorded.frame_numbers
    if numbers is not None:
        _question_numbers(recorded.path, numbers, clip, total)
    if clip.file_places is not None and (numbers is not None or recorded.num_frames == clip.num_files != total):
        places, total = list(clip.file_places)[:max_frames], clip.num_files or total  # not of the list, of the folder
    if numbers is not None and clip.frame_places is not None and max(numbers) >= total:
        raise UserError(
            f"{recorded.path} has depth of picture number {max(numbers)}, counted from 0; '{clip.name}' has {total}"
            " pictures: record these alone, in the order of their names"
        )
    times = None if clip.times_s is None else clip.times_s[: len(places)]
    ids = (clip.frame_ids or ())[: len(places)]
    names = [str(name) for name in ids] if ids and all(isinstance(name, str) for name in ids) else None
    return match_frames(recorded, len(places), names=names, numbers=places, total=total, timestamps=times)


def _question_numbers(path: Path, numbers: np.ndarray, clip: EvaluationClip, total: int) -> None:
    """Refuse numbers that may count the clip's pictures alone as well as all files beside them, or name the reading."""
    if clip.num_files is None or clip.num_files == total or max(numbers) >= total:
        return
    if clip.file_places is None:
        log.warning(
            "%s: its numbers are read as counting the %d pictures of '%s' alone, not all %d images in their folder",
            path, total, clip.name, clip.num_files,
        )  # fmt: skip
    elif clip.file_places != clip.frame_places and np.array_equal(numbers, range(total)):
        raise UserError(
            f"{path} has depth of {total} frames, numbered from 0: these may be the {total} pictures that '{clip.name}'"
            f" lists, or the first {total} of the {clip.num_files} that lie there; record all {clip.num_files}, or call"
            " one file for each by the picture's name"
        )
