"""Training losses: pure functions of tensors, masked everywhere, float32 inside autocast."""

from .masked import LossSums, mean_of_sums
from .midas_se import (
    scale_shift_invariant_loss,
    scale_shift_invariant_sums,
    solve_scale_shift,
    target_spread,
)
from .state_smooth import state_smoothness_loss, state_smoothness_sums, static_cells
from .temporal_gradient import temporal_gradient_loss, temporal_gradient_sums

__all__ = [
    "LossSums",
    "mean_of_sums",
    "scale_shift_invariant_loss",
    "scale_shift_invariant_sums",
    "solve_scale_shift",
    "state_smoothness_loss",
    "state_smoothness_sums",
    "static_cells",
    "target_spread",
    "temporal_gradient_loss",
    "temporal_gradient_sums",
]
