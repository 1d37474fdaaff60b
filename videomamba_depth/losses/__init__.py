"""Training losses: pure functions of tensors, masked everywhere, float32 inside autocast."""

from videomamba_depth.losses.masked import LossSums, mean_of_sums
from videomamba_depth.losses.midas_se import midas_se_loss, midas_se_sums, target_spread
from videomamba_depth.losses.state_smooth import state_smoothness_loss, state_smoothness_sums, static_cells
from videomamba_depth.losses.temporal_gradient import temporal_gradient_loss, temporal_gradient_sums

__all__ = [
    "LossSums",
    "mean_of_sums",
    "midas_se_loss",
    "midas_se_sums",
    "state_smoothness_loss",
    "state_smoothness_sums",
    "static_cells",
    "target_spread",
    "temporal_gradient_loss",
    "temporal_gradient_sums",
]
