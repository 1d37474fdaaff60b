"""An average of the teacher's features that follows the motion: a student without anything learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.flow.estimators import FlowEstimator, both_ways
from videomamba_depth.utils.flow_utils import backward_warp, consistency_mask, resize_flow

if TYPE_CHECKING:  # the encoder's code is in the key of its weights
    from videomamba_depth.models.encoder_da import Teacher

DEFAULT_ALPHA = 0.27
Features = dict[str, Tensor]


class AdvectedFeatureAverage:
    """Average feature maps over time along the backward flow, one stream of B videos side by side.

    h_t = α · x_t + (1 − α) · w(h_{t−1}), w the bicubic warp along the flow t → t−1; tokens whose flow leaves the frame
    or fails the forward-backward check start again from x_t. At α = 1 it is the teacher.

    alpha: weight of the newest frame, in (0, 1].
    """

    def __init__(self, alpha: float = DEFAULT_ALPHA) -> None:
        if not 0.0 < alpha <= 1.0:
            raise ValueError(f"alpha must be in (0, 1], the weight of the newest frame; got {alpha}")
        self.alpha = alpha
        self._carried: Features | None = None

    def __call__(self, features: Features, flow_bwd: Tensor, consistent: Tensor) -> Features:
        """Return the averaged maps of the next frame.

        Args:
            features: maps [B,C_i,H_i,W_i] by scale.
            flow_bwd: [B,2,H,W] px, this frame → the one before, at any size; not read for the first frame.
            consistent: [B,1,H,W] bool, where that flow passes the forward-backward check.
        """
        if self._carried is None:
            self._carried = dict(features)
        else:
            self._carried = {
                name: self._average(new, self._carried[name], flow_bwd, consistent) for name, new in features.items()
            }
        return self._carried

    def _average(self, new: Tensor, old: Tensor, flow_bwd: Tensor, consistent: Tensor) -> Tensor:
        size = (new.shape[-2], new.shape[-1])
        seen = F.adaptive_avg_pool2d(consistent.float(), size) > 0.5
        warped, _ = backward_warp(old, resize_flow(flow_bwd, size, average=True), mode="bicubic")
        return torch.where(seen, self.alpha * new + (1.0 - self.alpha) * warped, new)


def feature_average_stream(
    encoder: Teacher, flow: FlowEstimator, alpha: float = DEFAULT_ALPHA
) -> Callable[[Tensor, Features], Tensor]:
    """Return a new stream: a function from the next frame [1,3,H,W] in [0,1] and its features to depth [1,1,H,W].

    The flow is estimated at the size that the encoder works in.
    """
    average = AdvectedFeatureAverage(alpha)
    before: Tensor | None = None

    def step(frame: Tensor, features: Features) -> Tensor:
        nonlocal before
        small = F.interpolate(frame, encoder.input_resolution(*frame.shape[-2:]), mode="bilinear", antialias=True)
        previous, before = small if before is None else before, small
        back, forth = both_ways(flow, small, previous)
        averaged = average(features, back, consistency_mask(back, forth))
        return encoder.decode(averaged, (frame.shape[-2], frame.shape[-1]))

    return step
