"""Dense bundle adjustment: poses, inverse depth of every grid point in every frame, one focal length, one shift.

Minimizes Σ ρ(|r| / σ) over all flow, plus Σ ρ'((D − a − b) / (s (a + b))) for the teacher's inverse depth a with its
shift b, plus the priors of the log focal length and of b. Source: the form of Teed and Deng, "DROID-SLAM" (NeurIPS
2021), section 3, with flow as it is in the place of a network, and with the teacher's depth, its shift and the focal
length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from videomamba_depth.data.labels.geometry.equations import OUTLIER, ROBUST, Residuals, linearize, step
from videomamba_depth.data.labels.geometry.pairs import FlowPairs
from videomamba_depth.data.labels.geometry.scene import RELATIVE_FLOOR, Belief, Scene, View

FIRST_DAMPING, MIN_DAMPING, MAX_DAMPING = 1e-4, 1e-7, 1.0  # share of the diagonal that is added to it
LESS, MORE = 4.0, 8.0  # by how much damping changes after a step that was kept, or taken back
ALL_FREE = (True, True, True)


def adjust(
    scene: Scene,
    view: View,
    pairs: FlowPairs,
    belief: Belief,
    noise_px: Tensor,
    num_steps: int,
    free: tuple[bool, bool, bool] = ALL_FREE,
    damping: float = FIRST_DAMPING,
) -> tuple[Scene, Residuals, float]:
    """Return the scene after so many Levenberg–Marquardt steps, what flow says of it, and the damping to go on with.

    A step that makes the sum larger is taken back.

    Args:
        noise_px: [S], standard deviation of the flow per slot; three of it is where a flow weighs a quarter.
        free: which components of the translations may change.
    """
    linear = linearize(scene, view, pairs, noise_px)
    cost = _cost(scene, linear.residuals, pairs, belief, noise_px)
    for _ in range(num_steps):
        following = step(scene, linear, pairs, belief, damping, free)
        new_linear = linearize(following, view, pairs, noise_px)
        new_cost = _cost(following, new_linear.residuals, pairs, belief, noise_px)
        if new_cost <= cost:
            scene, linear, cost, damping = following, new_linear, new_cost, max(damping / LESS, MIN_DAMPING)
        else:
            damping = min(damping * MORE, MAX_DAMPING)
    return scene, linear.residuals, damping


def _cost(scene: Scene, found: Residuals, pairs: FlowPairs, belief: Belief, noise_px: Tensor) -> float:
    squared = (found.error_px / noise_px[:, None]).square()  # [N,S,P], in standard deviations
    limit = ROBUST**2  # Geman and McClure's ρ saturates there: a moving object costs no more than that
    flow = (pairs.trust * squared * limit / (limit + squared)).sum(dtype=torch.float64)
    mean = belief.mean(scene.shift)
    # Student's t for the teacher: it may be wrong by far, at a cost that only grows as the logarithm.
    deviation = ((scene.inv_depth - mean) / (belief.spread * mean.clamp(min=RELATIVE_FLOOR))).square()
    depth = (OUTLIER**2 * torch.log1p(deviation / OUTLIER**2)).sum(dtype=torch.float64)
    total = flow + depth
    for value, (middle, std) in ((scene.log_focal, belief.log_focal), (scene.shift, belief.shift)):
        if std > 0:
            total = total + ((value.double() - middle) / std).square()
    return float(total)
