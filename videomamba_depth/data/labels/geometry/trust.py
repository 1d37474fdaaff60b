"""How far geometry is believed: point by point against the teacher, and for a clip as a whole."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from videomamba_depth.data.labels.geometry.adjust import Residuals
from videomamba_depth.data.labels.geometry.scene import RELATIVE_FLOOR, Belief, Scene

INDEPENDENT_SHARE = 1 / 9
"""Of the information that flow seems to give. Errors of flow to different frames are alike, and so are those of poses:
on worlds for choosing, the error of a point is three times what its residuals say."""

MIN_SPREAD, MAX_SPREAD = 0.05, 1.0
MAX_LOG_CORRECTION = 1.5
PARALLAX = (1.6, 3.0)
"""Ratio of flow's noise about a camera that stays in its place to that about the scene: nothing is believed up to the
one, all from the other on. On worlds for choosing, cameras that stood had 1.0 to 1.5, and moving ones 3.5 and more."""
INLIERS = (0.65, 0.8)  # share of the flow within four standard deviations: the scene is not one rigid body
INLIER_DEVIATIONS = 4.0
FRAME_INLIERS = (0.5, 0.65)  # the same share, of one frame
AGREEING = (0.0, 0.35)  # mean robust weight of the flow of one point
FARTHER = (1.0, 0.7)
"""Log of the teacher's inverse depth over the corrected one: nothing is believed from the one on, all up to the other.
What goes along with the camera, and flow that is caught in a repeating pattern, look far away at all distances."""
SPREAD_UPDATES = 5  # of the fixed point
SURPRISE = (3.0, 2.0)  # by how many standard deviations focal length and shift left what was believed of them


class Support(NamedTuple):
    """What speaks for the geometry of a shot: noise ratio, share of inliers, deviations of focal length and shift."""

    parallax: float
    inliers: float
    focal: float
    shift: float

    @property
    def evidence(self) -> float:
        """Return from 0 to 1, continuously, how far the geometry is believed."""
        surprise = max(abs(self.focal), abs(self.shift))
        parallax = _rise(math.log(max(self.parallax, 1e-6)), math.log(PARALLAX[0]), math.log(PARALLAX[1]))
        return float(parallax * _rise(self.inliers, *INLIERS) * _rise(surprise, *SURPRISE))


def support(
    scene: Scene, belief: Belief, error_px: Tensor, trust: Tensor, noise_px: Tensor, stationary_px: Tensor
) -> Support:
    """Return the support of a scene from its errors [N,S,P] and noise [S], and the noise about a stationary camera."""
    near = (error_px < INLIER_DEVIATIONS * noise_px[:, None]).to(trust.dtype)
    inliers = float((near * trust).sum() / trust.sum().clamp(min=1e-6))
    moved = [
        (float(value) - mean) / std if std > 0 else 0.0
        for value, (mean, std) in ((scene.log_focal, belief.log_focal), (scene.shift, belief.shift))
    ]
    return Support(float((stationary_px / noise_px).max()), inliers, *moved)


def _rise(x: Any, low: float, high: float) -> Any:
    """Return 0 on `low`'s side, 1 on `high`'s, and a cubic in between; of a number or a tensor."""
    share = (x - low) / (high - low)
    share = share.clamp(0, 1) if isinstance(share, Tensor) else min(max(share, 0.0), 1.0)
    return share * share * (3 - 2 * share)


def spread_of_teacher(scene: Scene, belief: Belief, found: Residuals) -> float:
    """Return the relative standard deviation of the true inverse depth about the teacher's, from the clip itself.

    Flow alone says y = D − gradient / information, with variance 1 / information; log y about log (a + b) has that
    variance plus the teacher's. The latter is the fixed point of expectation–maximization: what the corrections and
    their remaining uncertainty amount to.
    """
    information = found.information * INDEPENDENT_SHARE  # [N,P], of the inverse depth
    flow_alone = (scene.inv_depth - found.gradient / found.information.clamp(min=1e-9)).clamp(min=1e-3)
    mean = belief.mean(scene.shift).clamp(min=RELATIVE_FLOOR)
    # Of the logarithm: divided by the square of the inverse depth.
    variance = 1 / (information * scene.inv_depth.square()).clamp(min=1e-6)
    correction = (flow_alone / mean).log().clamp(-MAX_LOG_CORRECTION, MAX_LOG_CORRECTION)
    spread = correction.new_tensor(MAX_SPREAD)
    for _ in range(SPREAD_UPDATES):
        # E: the correction shrunk by how much flow knows, and what remains uncertain; M: their mean square.
        gain = spread.square() / (spread.square() + variance)
        spread = ((gain * correction).square() + gain * variance).mean().sqrt().clamp(MIN_SPREAD, MAX_SPREAD)
    return float(spread)


def confidence(
    scene: Scene, belief: Belief, found: Residuals, trust: Tensor, noise_px: Tensor, spread: float
) -> Tensor:
    """Return c [N,P] = I / (1 + I), I the information that flow gives times the variance of the teacher.

    Less where flow to some frames contradicts flow to others: what moves by itself can look like parallax over one
    distance, hardly over all. Less too where a point is to be much farther than the teacher says (`FARTHER`).
    """
    mean = belief.mean(scene.shift).clamp(min=RELATIVE_FLOOR)
    variance = (spread * mean).square()
    information = found.information * INDEPENDENT_SHARE * variance
    # The robust weight without its 1/σ²: 1 where all flow agrees, 0 where it contradicts itself.
    agreeing = (found.weight * noise_px[:, None].square()).sum(1) / trust.sum(1).clamp(min=1e-6)
    farther = (mean / scene.inv_depth).log()
    return information / (1 + information) * _rise(agreeing, *AGREEING) * _rise(farther, *FARTHER)


def evidence_of_frames(found: Residuals, trust: Tensor, noise_px: Tensor) -> Tensor:
    """Return from 0 to 1 [N] how far each frame is believed: where its flow does not fit, its pose is wrong."""
    near = (found.error_px < INLIER_DEVIATIONS * noise_px[:, None]).to(trust.dtype)
    inliers = (near * trust).sum((1, 2)) / trust.sum((1, 2)).clamp(min=1e-6)
    return torch.as_tensor(_rise(inliers, *FRAME_INLIERS))
