"""The distillation objective on a chunk, with what must be known of the chunk before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

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


@dataclass(frozen=True)
class Objective(TargetSettings):
    """Weighted sum of the loss terms; the settings of `loss`. A weight of 0 leaves a term out.

    Temporal gradients of raw targets are mostly flicker: they are matched on static pixels only, where depth rests.

    Attributes:
        ssi_alignment: "frame" solves (s, t) per frame and is blind to scale flicker; "clip" solves one pair on the
            first chunk of a clip and keeps it; "none" pins (1, 0), the teacher's own scale and shift.
    """

    ssi_weight: float = ranged(0, 1e6, 1.0)
    ssi_alignment: Literal["frame", "clip", "none"] = "clip"
    ssi_gradient_weight: float = ranged(0, 1e6, 0.5)
    temporal_gradient_weight: float = ranged(0, 1e6, 1.0)
    temporal_gradient_strides: tuple[int, ...] = ranged(1, 100_000, (1,))
    state_smoothness_weight: float = ranged(0, 1e6, 0.1)

    @property
    def needs_flow(self) -> bool:
        """Whether targets or terms need optical flow."""
        return self.temporal_gradient_weight > 0 or self.state_smoothness_weight > 0 or self.target != "raw"

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
        terms: dict[str, LossSums] = {}
        if self.ssi_weight > 0:
            sums = midas_se_sums(
                prediction,
                target.depth,
                target.valid,
                scale_shift=None if self.ssi_alignment == "frame" else (scale, shift),
                gradient_weight=self.ssi_gradient_weight,
            )
            terms["ssi"] = _weighted(sums, self.ssi_weight)
        if self.temporal_gradient_weight > 0:
            depth, wanted, valid = prediction, target.depth, target.valid
            static = target.static
            if tail is not None:  # [B, 1 + N, 1, H, W]: the change across the border of chunks counts too
                depth = torch.cat([tail.prediction, depth], 1)
                wanted = torch.cat([tail.target, wanted], 1)
                valid = torch.cat([tail.valid, valid], 1)
                static = _prepend_false(static)
            sums = temporal_gradient_sums(
                depth,
                wanted,
                valid,
                self.temporal_gradient_strides,
                scale_shift=(scale, shift),
                static=static if self.target == "raw" else None,
            )
            terms["temporal_gradient"] = _weighted(sums, self.temporal_gradient_weight)
        if self.state_smoothness_weight > 0 and summaries:
            terms["state_smoothness"] = self._state_smoothness(summaries, target.static, tail)
        return terms, self._tail(prediction, target, summaries, scale, shift)

    def _clip_alignment(self, prediction: Tensor, target: ChunkTarget, tail: Tail | None) -> tuple[Tensor, Tensor]:
        if tail is not None:
            return tail.scale, tail.shift
        if self.ssi_alignment == "none":
            one = torch.ones(prediction.shape[0], 1, 1, 1, 1, device=prediction.device)
            return one, torch.zeros_like(one)
        return scale_and_shift(prediction, target.depth, target.valid, CLIP_DIMS)

    def _state_smoothness(self, summaries: Sequence[Tensor], static: Tensor, tail: Tail | None) -> LossSums:
        if tail is not None:
            summaries = [torch.cat([before, now], 1) for before, now in zip(tail.summaries, summaries, strict=True)]
            static = _prepend_false(static)
        return _weighted(state_smoothness_sums(list(summaries), static), self.state_smoothness_weight)

    def _tail(
        self, prediction: Tensor, target: ChunkTarget, summaries: Sequence[Tensor], scale: Tensor, shift: Tensor
    ) -> Tail:
        return Tail(
            prediction[:, -1:].detach().float(),
            target.depth[:, -1:],
            target.valid[:, -1:],
            scale,
            shift,
            tuple(summary[:, -1:].detach() for summary in summaries),
        )


def _weighted(sums: LossSums, weight: float) -> LossSums:
    return LossSums(sums.numerators * weight, sums.counts)


def _prepend_false(mask: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(mask[:, :1]), mask], 1)
