"""The distillation objective on a chunk, with what must be known of the chunk before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from videomamba_depth.data.labels.stabilized_cache import TargetSettings
from videomamba_depth.losses import (
    LossSums,
    midas_se_sums,
    state_smoothness_sums,
    temporal_gradient_sums,
)
from videomamba_depth.utils.metrics import CLIP_DIMS, scale_and_shift
from videomamba_depth.utils.settings import ranged

Term = Callable[["Objective", "Chunk"], LossSums | None]
"""What a loss term computes of a chunk; None where there is nothing to compute it of."""


class Tail(NamedTuple):
    """The last frame of a chunk, detached: what temporal losses across the border to the next chunk need."""

    prediction: Tensor  # [B, 1, 1, H, W]
    target: Tensor  # [B, 1, 1, H, W]
    valid: Tensor  # [B, 1, 1, H, W] bool
    scale: Tensor  # [B, 1, 1, 1, 1], of the clip
    shift: Tensor  # [B, 1, 1, 1, 1], of the clip
    summaries: tuple[Tensor, ...]  # each [B, 1, d_state, h, w]


class ChunkTarget(NamedTuple):
    """What the student's depth of a chunk is compared with."""

    depth: Tensor  # [B, N, 1, H, W], the teacher's
    valid: Tensor  # [B, N, 1, H, W] bool
    static: Tensor  # [B, N, 1, H, W] bool: unchanged and unmoved with respect to the frame before


class Chunk(NamedTuple):
    """All that a loss term may look at."""

    prediction: Tensor  # [B, N, 1, H, W]
    target: ChunkTarget
    summaries: Sequence[Tensor]  # per temporal block [B, N, d_state, h, w]
    tail: Tail | None  # of the chunk before; None at the start of a clip
    scale: Tensor  # [B, 1, 1, 1, 1], of the clip
    shift: Tensor  # [B, 1, 1, 1, 1], of the clip


def ssi(objective: Objective, chunk: Chunk) -> LossSums:
    """Return the scale-and-shift-invariant error of every frame, with the gradients of what is left of it."""
    return midas_se_sums(
        chunk.prediction,
        chunk.target.depth,
        chunk.target.valid,
        scale_shift=None if objective.ssi_alignment == "frame" else (chunk.scale, chunk.shift),
        gradient_weight=objective.ssi_gradient_weight,
    )


def temporal_gradient(objective: Objective, chunk: Chunk) -> LossSums:
    """Return how much the depth's change over time differs from the target's.

    Changes of raw targets are mostly flicker: they are matched on static pixels only, where depth rests. Those of
    consistent and of smoothed ones are matched everywhere.
    """
    depth, wanted, valid, static = chunk.prediction, *chunk.target
    if chunk.tail is not None:  # [B, 1 + N, 1, H, W]: the change across the border of chunks counts too
        depth = torch.cat([chunk.tail.prediction, depth], 1)
        wanted = torch.cat([chunk.tail.target, wanted], 1)
        valid = torch.cat([chunk.tail.valid, valid], 1)
        static = _prepend_false(static)
    return temporal_gradient_sums(
        depth,
        wanted,
        valid,
        objective.temporal_gradient_strides,
        scale_shift=(chunk.scale, chunk.shift),
        static=static if objective.target == "raw" else None,
    )


def state_smoothness(objective: Objective, chunk: Chunk) -> LossSums | None:
    """Return how much the states of static pixels change over time; None for a student without temporal blocks."""
    del objective
    if not chunk.summaries:
        return None
    summaries, static = list(chunk.summaries), chunk.target.static
    if chunk.tail is not None:
        summaries = [torch.cat([before, now], 1) for before, now in zip(chunk.tail.summaries, summaries, strict=True)]
        static = _prepend_false(static)
    return state_smoothness_sums(summaries, static)


def weight_of(term: Term, default: float, *, needs_flow: bool | str = False) -> Any:
    """Declare the weight `NAME_weight` of a loss term: this field is its whole entry, 0 leaves the term out.

    Args:
        needs_flow: the term looks at static pixels, which optical flow finds; a target: only with that one.
    """
    about = {"term": term, "needs_flow": needs_flow}
    return field(default=default, metadata={**ranged(0, 1e6).metadata, **about})


@dataclass(frozen=True)
class Objective(TargetSettings):
    """Weighted sum of the loss terms; the settings of `loss`.

    Attributes:
        ssi_alignment: "frame" solves (s, t) per frame and is blind to scale flicker; "clip" solves one pair on the
            first chunk of a clip and keeps it; "none" pins (1, 0), the teacher's own scale and shift.
    """

    ssi_weight: float = weight_of(ssi, 1.0)
    ssi_alignment: Literal["frame", "clip", "none"] = "clip"
    ssi_gradient_weight: float = ranged(0, 1e6, 0.5)
    temporal_gradient_weight: float = weight_of(temporal_gradient, 1.0, needs_flow="raw")
    temporal_gradient_strides: tuple[int, ...] = ranged(1, 100_000, (1,))
    state_smoothness_weight: float = weight_of(state_smoothness, 0.1, needs_flow=True)

    @property
    def needs_flow(self) -> bool:
        """Whether targets or terms need optical flow."""
        return self.is_offline or any(entry.metadata["needs_flow"] in (True, self.target) for entry, _ in self._terms())

    def __call__(
        self, prediction: Tensor, target: ChunkTarget, summaries: Sequence[Tensor], tail: Tail | None
    ) -> tuple[dict[str, LossSums], Tail]:
        """Return the weighted sums of every term that is switched on, and the tail for the next chunk.

        Args:
            prediction: `[B, N, 1, H, W]`.
            summaries: per temporal block `[B, N, d_state, h, w]`.
            tail: what the chunk before returned; None at the start of a clip.
        """
        # [B, 1, 1, 1, 1] each: solved on the first chunk of a clip, without gradient, and carried in the tail.
        scale, shift = self._clip_alignment(prediction, target, tail)
        chunk = Chunk(prediction, target, summaries, tail, scale, shift)
        terms: dict[str, LossSums] = {}
        for entry, weight in self._terms():
            sums = entry.metadata["term"](self, chunk)
            if sums is not None:
                terms[entry.name.removesuffix("_weight")] = LossSums(sums.numerators * weight, sums.counts)
        last = (prediction[:, -1:].detach().float(), target.depth[:, -1:], target.valid[:, -1:])
        return terms, Tail(*last, scale, shift, tuple(summary[:, -1:].detach() for summary in summaries))

    def _terms(self) -> Iterator[tuple[Field[Any], float]]:
        """Yield the entry and the weight of every term that is switched on."""
        for entry in fields(self):
            if "term" in entry.metadata and getattr(self, entry.name) > 0:
                yield entry, getattr(self, entry.name)

    def _clip_alignment(self, prediction: Tensor, target: ChunkTarget, tail: Tail | None) -> tuple[Tensor, Tensor]:
        if tail is not None:
            return tail.scale, tail.shift
        if self.ssi_alignment == "none":
            one = torch.ones(prediction.shape[0], 1, 1, 1, 1, device=prediction.device)
            return one, torch.zeros_like(one)
        return scale_and_shift(prediction, target.depth, target.valid, CLIP_DIMS)


def _prepend_false(mask: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(mask[:, :1]), mask], 1)
