"""Recurrent refinement of the depth at output resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomamba_depth.models.causal_affine import remembering, undo_global_change
from videomamba_depth.models.motion import Motion
from videomamba_depth.utils.flow_utils import warp_map
from videomamba_depth.utils.settings import check_settings, ranged

EDGE_PX = 2  # trust fades out this far from pixels that are not trusted, so that none of their edges is drawn
CELL_PX = 14  # what is coarser than this is smoothed and continued as coarse: a token of Depth Anything
SLOW_PX = CELL_PX / 2  # speed per frame at which the coarse correction counts half
_FLOOR = 0.05  # trust below which a cell takes its correction from its neighbors


@dataclass(frozen=True)
class OutputSpec:
    """What the recurrent refinement after the decoder is made of.

    Attributes:
        gain: weight of the newest frame before training, in (0, 1), for what is finer than `CELL_PX`.
        coarse_gain: the same for what is coarser.
        outlier: a pixel whose innovation is this many times the frame's mean counts half as much in the estimate.
        hidden: channels of the small network that learns to adapt the gains; 0 leaves them fixed.
        affine: share of a global change of scale and shift that is undone first, see `undo_global_change`; 0: none.
    """

    gain: float = ranged(0, 1, 0.95, open="both")
    coarse_gain: float = ranged(0, 1, 0.2, open="both")
    outlier: float = ranged(0, 1e6, 4.0, open="low")
    hidden: int = ranged(0, 1024, 8)
    affine: float = ranged(0, 1, 0.0, open="high")

    def __post_init__(self) -> None:
        check_settings(self)


class OutputRefiner(nn.Module):
    """Recurrent estimate y of the depth x that the decoder returns:

        p_t = warp(y_{t−1}),  r_t = x_t − p_t,  y_t = x_t − (1 − a_t) l_t − (1 − g_t) c_t (r_t − l_t),

    c the trust in the motion and in p, near 0 where r stands out; l the coarse part of r, an average over cells of
    the pixels that are trusted, continued to those that are not: what flickers together is corrected together, and
    a pixel that has just come into view is drawn at the level of what was in its place before. a and g are gains,
    fixed, or of a small convolutional network that starts at the fixed ones and sees r in units of its own mean, so
    that the affine ambiguity of depth does not matter. 1 − a is halved where half a cell is crossed in one frame: what
    moves that fast brings little of its past along. A frame without a past passes unchanged.

    metric: whether depth is in m, so that it has a scale alone.
    """

    def __init__(self, spec: OutputSpec, metric: bool = False) -> None:
        super().__init__()
        self.outlier, self.affine, self.metric = spec.outlier, spec.affine, metric
        self.base_logits = [math.log(gain / (1.0 - gain)) for gain in (spec.coarse_gain, spec.gain)]
        self.gain_net: nn.Sequential | None = None
        if spec.hidden:
            last = nn.Conv2d(spec.hidden, 2, kernel_size=3, padding=1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
            first = nn.Conv2d(4, spec.hidden, kernel_size=3, padding=1)
            self.gain_net = nn.Sequential(first, nn.GELU(), last)

    def forward(
        self, depth: Tensor, estimate: Tensor, frame_index: Tensor, motion: Motion | None, memory: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Refine a chunk.

        Args:
            depth: `[B, N, 1, H, W]` of the decoder.
            estimate: `[B, 1, H, W]` carried, in float32 at least; not read for streams at frame 0.
            frame_index: `[B]` int64 of the first of the N frames.
            motion: None holds the estimate in place.
            memory: > 0, multiplies the odds (1 − a) / a of the past and those of `affine`; those of fine detail only
                below 1, since more would blur edges. Above 1 it also multiplies the speed at which 1 − a is halved.
                1: as trained.

        Returns:
            depth `[B, N, 1, H, W]` and the next estimate.
        """
        frames = []
        size = (depth.shape[-2], depth.shape[-1])
        with torch.autocast(depth.device.type, enabled=False):
            for t in range(depth.shape[1]):
                x = depth[:, t].to(estimate.dtype)  # [B, 1, H, W]
                seen = (frame_index + t > 0).view(-1, 1, 1, 1).expand_as(x)
                if motion is None:
                    predicted, speed = estimate, torch.zeros_like(x)
                else:
                    flow, trusted = motion.frame(t, size)
                    predicted, seen = warp_map(estimate, flow.to(x.dtype)), seen & trusted
                    speed = flow.square().sum(1, keepdim=True).sqrt().to(x.dtype)
                if self.affine:
                    x = undo_global_change(x, predicted, seen, remembering(self.affine, memory), self.metric)
                estimate = self._step(x, predicted, seen, speed, memory)
                frames.append(estimate)
        return torch.stack(frames, 1), estimate

    def _step(self, x: Tensor, predicted: Tensor, seen: Tensor, speed_px: Tensor, memory: float) -> Tensor:
        """Return y_t `[B, 1, H, W]`; x, predicted, seen (bool) and speed_px are of that shape too."""
        # 1. The innovation r, 0 without a past; trust in [0, 1] fades toward such pixels: their edges are not drawn.
        trust = _fade(seen.to(x.dtype))
        innovation = torch.where(seen, x - predicted, 0.0)
        # 2. r in units of its mean over the trusted pixels, [B, 1, 1, 1]: free of depth's scale. The second term keeps
        #    rounding of a still picture from being blown up to a unit; detached: a unit is no thing to be learned.
        scale = (innovation.detach().abs() * trust).sum((1, 2, 3), keepdim=True) / (
            trust.sum((1, 2, 3), keepdim=True) + 1e-6
        )
        unit = innovation / (scale + 1e-6 * x.detach().abs().mean((1, 2, 3), keepdim=True) + 1e-12)
        # 3. Confidence c in [0, 1]: small where a neighborhood, not a pixel, stands out: the past was something else.
        local = F.avg_pool2d(unit, 3, stride=1, padding=1, count_include_pad=False)
        confidence = trust / (1 + (local / self.outlier).square())
        # 4. How much of the past stays, [B, 1, H, W] in (0, 1) each; and l, what flickers together.
        keep_coarse, keep = self._keep(unit, confidence, speed_px, memory)
        coarse = _continued(innovation, confidence)
        # 5. l is smooth, so that its weight must be too; detail is kept only where it is trusted.
        return x - _smooth(keep_coarse) * coarse - keep * confidence * (innovation - coarse)

    def _keep(self, unit: Tensor, confidence: Tensor, speed_px: Tensor, memory: float) -> tuple[Tensor, Tensor]:
        """Return the weights `1 − gain` of the past, for what is coarse and for what is fine."""
        coarse = self.base_logits[0] - math.log(memory)
        fine = self.base_logits[1] - math.log(min(memory, 1.0))
        if self.gain_net is None:
            learned = unit.new_zeros(unit.shape[0], 2, *unit.shape[2:])
        else:
            bounded = unit / (1 + unit.abs())  # (−1, 1): outliers must not saturate the network
            inputs = torch.cat([bounded, bounded.abs(), confidence, speed_px / (4 + speed_px)], dim=1)  # [B, 4, H, W]
            learned = self.gain_net(inputs)
        slow = 1 / (1 + (speed_px / (SLOW_PX * max(memory, 1.0))).square())
        return slow * torch.sigmoid(-(coarse + learned[:, :1])), torch.sigmoid(-(fine + learned[:, 1:]))


def _fade(seen: Tensor) -> Tensor:
    """Return the share of trusted pixels in a small neighborhood, 0 where a pixel is not trusted itself."""
    width = 2 * EDGE_PX + 1
    return seen * F.avg_pool2d(seen, width, stride=1, padding=EDGE_PX, count_include_pad=False)


def _continued(values: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean over cells; where a cell has little weight, that of its neighbors, then of the frame.

    Args:
        values, weight: `[B, 1, H, W]`.
    """
    amount, total = _cells(values * weight), _cells(weight)
    mean = amount.mean((2, 3), keepdim=True) / (total.mean((2, 3), keepdim=True) + _FLOOR)
    around = (_around(amount) + _FLOOR * mean) / (_around(total) + _FLOOR)
    return _up((amount + _FLOOR * around) / (total + _FLOOR), values)


def _smooth(values: Tensor) -> Tensor:
    return _up(_cells(values), values)


def _cells(values: Tensor) -> Tensor:
    return F.avg_pool2d(values, CELL_PX, ceil_mode=True)


def _around(cells: Tensor) -> Tensor:
    return F.avg_pool2d(cells, 3, stride=1, padding=1, count_include_pad=False)


def _up(cells: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(cells, (like.shape[-2], like.shape[-1]), mode="bilinear", align_corners=False)
