"""A carried estimate at output resolution: what the coarser temporal stacks cannot hold still."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomamba_depth.models.motion import Motion, warp_map

EDGE_PX = 2  # trust fades out this far from pixels that are not trusted, so that none of their edges is drawn


@dataclass(frozen=True)
class OutputSpec:
    """What the recurrent refinement after the decoder is made of.

    Attributes:
        gain: weight of the newest frame before training, in (0, 1).
        outlier: a pixel whose innovation is this many times the frame's mean counts half as much in the estimate.
        hidden: channels of the small network that learns to adapt the gain; 0 leaves it fixed.
    """

    gain: float = 0.5
    outlier: float = 4.0
    hidden: int = 8

    def __post_init__(self) -> None:
        if not 0.0 < self.gain < 1.0 or self.outlier <= 0.0 or self.hidden < 0:
            raise ValueError(
                "gain must be in (0, 1), outlier positive and hidden at least 0;"
                f" got {self.gain}, {self.outlier}, {self.hidden}"
            )


class OutputRefiner(nn.Module):
    """Recurrent estimate y of the depth x that the decoder returns (ours):

        p_t = warp(y_{t−1}),  r_t = x_t − p_t,  y_t = x_t − (1 − g_t) c_t r_t,

    c the trust in the motion and in p, near 0 where r stands out, g the gain: fixed, or of a small convolutional
    network that starts at the fixed one and sees r in units of its own mean, so that depth's gauge does not matter.
    A frame without a past passes unchanged. `memory`, 1 as trained, multiplies the odds (1 − g) / g of the past.
    """

    def __init__(self, spec: OutputSpec) -> None:
        super().__init__()
        self.outlier = spec.outlier
        self.memory = 1.0
        self.base_logit = math.log(spec.gain / (1.0 - spec.gain))
        self.gain_net: nn.Sequential | None = None
        if spec.hidden:
            last = nn.Conv2d(spec.hidden, 1, kernel_size=3, padding=1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
            first = nn.Conv2d(4, spec.hidden, kernel_size=3, padding=1)
            self.gain_net = nn.Sequential(first, nn.GELU(), last)

    def forward(
        self, depth: Tensor, estimate: Tensor, frame_index: Tensor, motion: Motion | None
    ) -> tuple[Tensor, Tensor]:
        """Refine a chunk.

        Args:
            depth: `[B, N, 1, H, W]` of the decoder.
            estimate: `[B, 1, H, W]` carried, in float32 at least; not read for streams at frame 0.
            frame_index: `[B]` int64 of the first of the N frames.
            motion: None holds the estimate in place.

        Returns:
            depth `[B, N, 1, H, W]` and the next estimate.
        """
        frames = []
        size = (depth.shape[-2], depth.shape[-1])
        with torch.autocast(depth.device.type, enabled=False):
            for t in range(depth.shape[1]):
                x = depth[:, t].to(estimate.dtype)
                seen = (frame_index + t > 0).view(-1, 1, 1, 1).expand_as(x)
                if motion is None:
                    predicted, speed = estimate, torch.zeros_like(x)
                else:
                    flow, trusted = motion.frame(t, size)
                    predicted, seen = warp_map(estimate, flow.to(x.dtype)), seen & trusted
                    speed = flow.square().sum(1, keepdim=True).sqrt().to(x.dtype)
                estimate = self._step(x, predicted, seen, speed)
                frames.append(estimate)
        return torch.stack(frames, 1), estimate

    def _step(self, x: Tensor, predicted: Tensor, seen: Tensor, speed_px: Tensor) -> Tensor:
        trust = _fade(seen.to(x.dtype))
        innovation = torch.where(seen, x - predicted, 0.0)
        scale = (innovation.detach().abs() * trust).sum((1, 2, 3), keepdim=True) / (
            trust.sum((1, 2, 3), keepdim=True) + 1e-6
        )
        unit = innovation / (scale + 1e-6 * x.detach().abs().mean((1, 2, 3), keepdim=True) + 1e-12)
        local = F.avg_pool2d(unit, 3, stride=1, padding=1, count_include_pad=False)
        confidence = trust / (1 + (local / self.outlier).square())
        keep = torch.sigmoid(-self._gain_logit(unit, confidence, speed_px)) * confidence
        return x - keep * innovation

    def _gain_logit(self, unit: Tensor, confidence: Tensor, speed_px: Tensor) -> Tensor:
        start = self.base_logit - math.log(self.memory)
        if self.gain_net is None:
            return torch.full_like(unit, start)
        bounded = unit / (1 + unit.abs())
        inputs = torch.cat([bounded, bounded.abs(), confidence, speed_px / (4 + speed_px)], dim=1)
        logit: Tensor = start + self.gain_net(inputs)
        return logit


def _fade(seen: Tensor) -> Tensor:
    """Return the share of trusted pixels in a small neighbourhood, 0 where a pixel is not trusted itself."""
    width = 2 * EDGE_PX + 1
    return seen * F.avg_pool2d(seen, width, stride=1, padding=EDGE_PX, count_include_pad=False)
