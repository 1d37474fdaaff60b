"""In which scale and shift the depth that parallax has corrected is shown."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FITTED = 8.0  # sum of the evidence of frames, from which on the fit to the decoder's depth stays as it is
MAX_FIT_SCALE = 3.0
MIN_FIT_VARIANCE = 1e-6  # of the corrected depth, in its squared mean, below which nothing is fitted


class DecoderFit(NamedTuple):
    """The least-squares fit of the decoder's depth d by the corrected depth c, over the first frames with parallax.

    c by it is what is shown, so that one scale and shift fits what was shown before parallax was found and after it, as
    far as one can. What was shown first is the first frame: a point that is still tracked from there counts with
    both its depths there, and any other with those of the frame that it is in.

    Each [B]: weight of the frames so far; means of c and of d; variance of c, and its covariance with d; slot: which of
    the key frames the first one is, newest first.
    """

    weight: Tensor
    corrected: Tensor
    decoder: Tensor
    variance: Tensor
    covariance: Tensor
    slot: Tensor

    def with_frame(self, decoder: Tensor, corrected: Tensor, share: Tensor, evidence: Tensor) -> DecoderFit:
        """Return it with the depths [B,M] of a frame, each with its share [B,M] of the frame's weight: its evidence
        [B], until there is enough.
        """
        weight = self.weight + torch.where(self.weight < FITTED, evidence, 0.0)
        new = (weight - self.weight) / weight.clamp(min=1e-6)
        means = (share * corrected).sum(1), (share * decoder).sum(1)
        off = means[0] - self.corrected, means[1] - self.decoder
        apart = corrected - means[0][:, None], decoder - means[1][:, None]

        def merged(before: Tensor, k: int) -> Tensor:
            return (1 - new) * (before + new * off[0] * off[k]) + new * (share * apart[0] * apart[k]).sum(1)

        return DecoderFit(
            weight,
            self.corrected + new * off[0],
            self.decoder + new * off[1],
            merged(self.variance, 0),
            merged(self.covariance, 1),
            self.slot,
        )

    def after_frame(self, is_first: Tensor, is_key: Tensor, lost: Tensor) -> DecoderFit:
        """Return it after a frame, each [B]: a new key frame comes before the first one; if lost, it begins again."""
        slot = torch.where(is_first, 0.0, self.slot + is_key)
        return self._replace(weight=torch.where(lost, 0.0, self.weight), slot=slot)

    def added(self, corrected: Tensor, evidence: Tensor) -> Tensor:
        """Return what it adds to corrected depth [B,1,H,W], as far as there is evidence [B]."""
        known = self.variance > MIN_FIT_VARIANCE * self.corrected.square()
        scale = self.covariance / torch.where(known, self.variance, 1.0)
        scale = torch.where(known, scale.clamp(1 / MAX_FIT_SCALE, MAX_FIT_SCALE), 1.0)
        mean, level, scale, evidence = (
            v.view(-1, 1, 1, 1)
            for v in (self.corrected, self.decoder, scale, torch.where(self.weight > 0, evidence, 0.0))
        )
        return evidence * (level + scale * (corrected - mean) - corrected)
