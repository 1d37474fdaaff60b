"""Learning rate over steps, and the moving average of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, final_ratio: float) -> float:
    """Return the factor on the peak learning rate at `step` in [0, total_steps): linear warm-up, then half a cosine.

    Source: Loshchilov & Hutter, SGDR, arXiv 1608.03983, equation 5, without restarts.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class WeightAverage:
    """Exponential moving average of named weights, with a decay that grows at the start: min(decay, (1+t)/(10+t)).

    Args:
        weights: the weights to start from; copied.
        decay: in [0, 1); 0 keeps the average equal to the weights.
    """

    def __init__(self, weights: dict[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.average = {name: w.detach().clone() for name, w in weights.items()}

    @torch.no_grad()
    def update(self, weights: dict[str, Tensor], step: int) -> None:
        """Take in the weights after optimizer step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.average.items():
            average.lerp_(weights[name].to(average.dtype), 1 - decay)
