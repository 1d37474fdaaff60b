"""The methods that are scored: the teacher, causal filters of its output, recorded depth, students.

A filter goes over the teacher's depth of a clip (inverse depth or meters) and gives one [H,W] for each frame as it
comes; frame t of its output depends on frames 0 … t alone. `alpha` is the weight of the newest frame: alpha = 0.1
is what is often called "EMA 0.9". Filters read motion that is estimated from the pictures, and learn of no cut,
just like a student.

To add a filter, write its function and an entry of `FAMILIES`; reports, legends and plots follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from videomamba_depth.evaluation.code_digest import code_digest
from videomamba_depth.evaluation.recurrence import Stream
from videomamba_depth.flow.clip_motion import ClipMotion, warp_frame
from videomamba_depth.flow.frame_view import Frames
from videomamba_depth.utils.depth_kind import DepthKind

if TYPE_CHECKING:
    from videomamba_depth.evaluation.clips import EvaluationClip
    from videomamba_depth.evaluation.context import Context

Filter = Callable[[Frames, ClipMotion], Iterable[np.ndarray]]
"""Gives the filtered depth of every frame of the teacher's depth [F,H,W], with the motion that was estimated."""

STRENGTHS = (0.75, 0.5, 0.25, 0.1)
"""Weights of the newest frame at which every average is shown."""
TEACHER, CONSTANT, FEATURE_AVERAGE = "teacher", "constant", "feature_ema"
UNTRAINED, TARGET = "untrained", "target"
UNTRAINED_SUFFIX = f"+{UNTRAINED}"
"""Of a student's name: the same model as it was before training."""


@dataclass(frozen=True)
class Method:
    """One method. It has a stream, fed with the clip's frames, or recorded depth, or it derives from the teacher's.

    name: of its results in tables and JSON. new_stream: returns a stream that has seen nothing. derive: gives the
    depth [H,W] of every frame, from a context that holds teacher, pictures and motion. digest: names all that
    decides its depth on a clip, teacher and flow aside; its scores are kept under it, none without one. digest_on:
    returns what more decides it on the clip of that name. trained: a
    student or recorded depth, which is compared with all others. remembers: its stream depends on the frames before.
    on_clip: returns a stream of recorded depth, which only goes with this clip, of which at most so many frames are
    read. kind: of its depth; None: the teacher's.
    """

    name: str
    new_stream: Callable[[], Stream] | None = None
    derive: Callable[[Context], Iterable[np.ndarray]] | None = None
    digest: str = ""
    trained: bool = False
    remembers: bool = False
    on_clip: Callable[[EvaluationClip, int | None], Stream] | None = None
    kind: DepthKind | None = None
    digest_on: Callable[[str], str] | None = None

    def digest_of(self, clip: str) -> str:
        """Return what names its depth on a clip, teacher and flow aside; "" where nothing is kept of it."""
        return self.digest if not self.digest or self.digest_on is None else f"{self.digest}-{self.digest_on(clip)}"

    def open(self, stills: bool = False, clip: EvaluationClip | None = None, max_frames: int | None = None) -> Stream:
        """Return a new stream, for at most so many frames of a clip; only for methods that are not derived.

        stills: it forgets every frame before the next.
        """
        if self.on_clip is not None:
            assert clip is not None
            return self.on_clip(clip, max_frames)
        assert self.new_stream is not None
        if stills and self.remembers:
            return lambda frame: self.open()(frame)
        return self.new_stream()

    @classmethod
    def recorded(cls, name: str, depth: Any, trained: bool = False) -> Method:
        """Return a method whose depth is known: [F,1,H,W] or [F,H,W], array or tensor, at any size."""

        def new_stream() -> Stream:
            frames = iter(depth)

            def following(frame: torch.Tensor) -> torch.Tensor:
                values = next(frames, None)
                if values is None:
                    raise ValueError(f"the recorded depth of '{name}' has fewer frames than the clip")
                known = torch.from_numpy(np.asarray(values).copy())
                return known.reshape(1, 1, *known.shape[-2:])

            return following

        return cls(name, new_stream, trained=trained)


def exponential_average(depth: Iterable[np.ndarray], alpha: float) -> Iterator[np.ndarray]:
    """Return y_t = alpha · x_t + (1 − alpha) · y_{t−1}, y_0 = x_0."""
    _check_alpha(alpha)
    return accumulate(depth, lambda smooth, new: alpha * new + (1.0 - alpha) * smooth)


def causal_affine(depth: Iterable[np.ndarray], leak: float = 0.95) -> Iterator[np.ndarray]:
    """Give every frame the mean and spread of the aligned frame before it: y_t = s_t · x_t + b_t, all pixels.

    s_t = std(y_{t−1}) / std(x_t), not least squares: that would shrink the scale a little with every frame,
    since whatever moves lowers the correlation. `leak` < 1 pulls (s, b) back to (1, 0) by that factor every
    frame, so that the output follows true changes. Removes what flickers globally, blurs nothing. A flat
    frame is left as it is.
    """

    def align(before: np.ndarray, new: np.ndarray) -> np.ndarray:
        spread = float(new.std(dtype=np.float64))
        if spread <= 0.0:
            return new
        scale = float(before.std(dtype=np.float64)) / spread
        shift = float(before.mean(dtype=np.float64)) - scale * float(new.mean(dtype=np.float64))
        return (1.0 + leak * (scale - 1.0)) * new + leak * shift

    return accumulate(depth, align)


def flow_warped_average(depth: Frames, motion: ClipMotion, alpha: float) -> Iterator[np.ndarray]:
    """Return y_t = alpha · x_t + (1 − alpha) · warp(y_{t−1}) where the flow to t−1 can be trusted, x_t elsewhere."""
    _check_alpha(alpha)

    def average(smooth: np.ndarray, t: int) -> np.ndarray:
        new, warped = depth[t], warp_frame(smooth, motion.flow_bwd[t])
        return np.where(motion.trusted_bwd[t], alpha * new + (1.0 - alpha) * warped, new)

    return accumulate(range(1, len(depth)), average, initial=np.array(depth[0]))


def constant(depth: Frames, motion: ClipMotion) -> Iterator[np.ndarray]:
    """Return the median of frame 0 everywhere: what wins stability and loses everything else."""
    return repeat(np.full_like(depth[0], np.median(depth[0])), len(depth))


def _ema(depth: Frames, motion: ClipMotion, alpha: float) -> Iterator[np.ndarray]:
    return exponential_average(depth, alpha)


def _affine_ema(depth: Frames, motion: ClipMotion, alpha: float) -> Iterator[np.ndarray]:
    return exponential_average(causal_affine(depth), alpha)


@dataclass(frozen=True)
class Family:
    """Untrained methods of one kind. color: of its curve in plots; members: name → filter, weak to strong."""

    title: str
    color: str
    members: dict[str, Filter | None]


def _averages(name: str, average: Callable[..., Iterable[np.ndarray]]) -> dict[str, Filter | None]:
    return {f"{name}_{alpha:g}": partial(average, alpha=alpha) for alpha in STRENGTHS}


# Okabe and Ito's colors, which color-blind readers tell apart.
FAMILIES = {
    "ema": Family("output EMA", "#0072b2", _averages("ema", _ema)),
    "affine_ema": Family("causal affine, EMA", "#c98500", _averages("affine_ema", _affine_ema)),
    "warped_ema": Family("flow-warped EMA", "#009e73", _averages("warped_ema", flow_warped_average)),
    CONSTANT: Family("constant", "#626a73", {CONSTANT: constant}),
    # A stream over the encoder's features, see `feature_average.py`; None: it is no filter of the teacher's depth.
    FEATURE_AVERAGE: Family("advected feature EMA", "#b0588f", {FEATURE_AVERAGE: None}),
    # Students with their initial gains, named after them: see `UNTRAINED_SUFFIX`.
    UNTRAINED: Family("student untrained", "#56b4e9", {}),
    # What training targets are, from both sides in time: no stream can know as much. See `targets.py`.
    TARGET: Family("training target, two-sided", "#8f8f2c", {"stabilized": None, "geometry": None}),
}


def filter_methods() -> list[Method]:
    """Return the filters that stand beside every student: three families of averages at every strength, a constant."""
    return [filter_method(name, smooth) for name, smooth in all_filters().items()]


def all_filters() -> dict[str, Filter]:
    """Return the filters of all families by name."""
    members = (member for family in FAMILIES.values() for member in family.members.items())
    return {name: smooth for name, smooth in members if smooth is not None}


def filter_method(name: str, smooth: Filter) -> Method:
    """Return a filter of the teacher's depth as a method."""

    def derive(context: Context) -> Iterable[np.ndarray]:
        return smooth(context.teacher, context.estimated_motion or context.motion)

    return Method(name, derive=derive, digest=f"{name}-{code_digest(__name__)}")


def family_of(method: str) -> str:
    """Return the family of an untrained method, "teacher", or "student"."""
    known = {member: name for name, family in FAMILIES.items() for member in family.members}
    if UNTRAINED in method.partition("@")[0].split("+")[1:]:
        return UNTRAINED
    return TEACHER if method == TEACHER else known.get(method, "student")


def is_average(method: str) -> bool:
    """Return whether a method averages the teacher over time, and is the teacher on a still."""
    return family_of(method) not in (TEACHER, CONSTANT, "student")


def is_causal(method: str) -> bool:
    """Return whether a method is one that a stream could be replaced by: all but training targets."""
    return family_of(method) != TARGET


def averages(methods: Iterable[str] = ()) -> dict[str, Sequence[str]]:
    """Return {family: its methods}, weak to strong, of the families that have several strengths.

    methods: also return the untrained students among these, each as a family of its memories.
    """
    found: dict[str, Sequence[str]] = {
        name: tuple(family.members) for name, family in FAMILIES.items() if len(family.members) > 1 and name != TARGET
    }
    return found | {name: members for name, members in memories(methods).items() if family_of(name) == UNTRAINED}


def memories(methods: Iterable[str]) -> dict[str, list[str]]:
    """Return {student: its methods}, shortest memory first; a method is called NAME or NAME@MEMORY."""
    found: dict[str, list[str]] = {}
    for method in sorted(methods, key=_memory):
        found.setdefault(method.partition("@")[0], []).append(method)
    return found


def _memory(method: str) -> float:
    return float(method.partition("@")[2] or 1.0)


def _check_alpha(alpha: float) -> None:
    if not 0.0 < alpha <= 1.0:
        raise ValueError(f"alpha must be in (0, 1], the weight of the newest frame; got {alpha}")
