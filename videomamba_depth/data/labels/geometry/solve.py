"""From flow and a teacher's inverse depth to a scene on a grid: the course of the adjustment.

A camera that stays in its place is fitted first: its rotations are where the search begins, since rotation and sideways
motion look alike near a flat teacher, and its errors are what parallax has to beat. Poses are then searched on every
second grid point, with little trust in the teacher, over growing distances. The whole grid follows, with as much trust
as the teacher has earned.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.data.labels.geometry.adjust import adjust, linearize
from videomamba_depth.data.labels.geometry.pairs import FlowPairs, Grid
from videomamba_depth.data.labels.geometry.scene import RELATIVE_FLOOR, Belief, Poses, Scene, View
from videomamba_depth.data.labels.geometry.trust import (
    INDEPENDENT_SHARE,
    MAX_SPREAD,
    Support,
    confidence,
    evidence_of_frames,
    spread_of_teacher,
    support,
)

COARSE = 2  # every n-th row and column of the grid in the search
FIRST_DISTANCE = 4  # frames; nearer ones alone show too little parallax to begin with
STATIONARY_STEPS = ((1, 4), (4, 4), (16, 3), (16, 3))  # (up to that distance, steps)
STEPS_PER_DISTANCE, LAST_STEPS, WHOLE_GRID_STEPS = 4, 12, 4
START_NOISE_PX, MIN_NOISE_PX, MAX_NOISE_PX = 0.3, 0.08, 2.0
LOST_NOISE_PX = 0.8  # at the largest distance: from there on the search begins again elsewhere
MEDIAN_RADIUS = 1.1774  # median of |r| over its standard deviation per axis, for r normal in the plane
RETRY_LOG_FOCAL, RETRY_SHIFT = 0.29, 0.75  # how far from the first start, the shift in its standard deviations times 3


class Solution(NamedTuple):
    """A scene on the whole grid of P points.

    correction: [N,P], log of the inverse depth over the teacher's. confidence: [N,P] in 0 to 1. support: for the
    scene as a whole. frame_evidence: [N], 0 to 1. spread: of the teacher, see `spread_of_teacher`. noise_px: [S], of
    flow about the scene.
    """

    scene: Scene
    correction: Tensor
    confidence: Tensor
    support: Support
    frame_evidence: Tensor
    spread: float
    noise_px: Tensor


def solve(
    teacher: Tensor, grid: Grid, pairs: FlowPairs, log_focal: tuple[float, float], shift: tuple[float, float]
) -> Solution:
    """Solve for the scene of a shot.

    Args:
        teacher: [N,H,W], inverse depth with mean 1, up to a shift. log_focal, shift: see `Belief`.
    """
    maps = grid.sample(teacher)  # [N,P]
    view = View(grid.points(maps.dtype), maps.new_tensor([(grid.width - 1) / 2, (grid.height - 1) / 2]))
    rows, columns = (torch.arange(COARSE // 2, n, COARSE, device=maps.device) for n in grid.shape)
    index = (rows[:, None] * grid.shape[1] + columns).flatten()  # of the coarse points among the P
    few_view, few = View(view.points_px[:, index], view.center_px), _subset(pairs, points=index)
    loose = maps.new_tensor(MAX_SPREAD)
    best: tuple[Scene, Tensor, Belief] | None = None
    stationary = torch.zeros_like(pairs.trust[0, :, 0])
    for sign in (0.0, 1.0):  # a second start, with another focal length and shift, where the first one gets lost
        start = Belief(
            maps[:, index],
            loose,
            (log_focal[0] + sign * RETRY_LOG_FOCAL * (log_focal[1] > 0), log_focal[1]),
            (shift[0] + sign * RETRY_SHIFT * (shift[1] > 0), shift[1]),
        )
        poses, error = _stationary(few_view, few, start.log_focal)
        scene, noise = _search(few_view, few, start, poses)
        if best is None or float(noise.sum()) < float(best[1].sum()):
            best, stationary = (scene, noise, start), _noise_of(error, few.trust)
        if float(noise[-2:].mean()) < LOST_NOISE_PX:
            break
    assert best is not None
    scene, noise, start = best
    error = linearize(scene, few_view, few, noise).residuals.error_px
    found = support(scene, Belief(start.teacher, loose, log_focal, shift), error, few.trust, noise, stationary)
    belief = start._replace(teacher=maps)
    # The coarse correction, as a ratio so that it stays positive, brought to the whole grid.
    ratio = (scene.inv_depth / start.mean(scene.shift)).log().view(len(maps), 1, len(rows), len(columns))
    ratio = F.interpolate(ratio, grid.shape, mode="bilinear", align_corners=False).flatten(1)
    scene = scene._replace(inv_depth=belief.mean(scene.shift).clamp(min=RELATIVE_FLOOR) * ratio.exp())
    spread = spread_of_teacher(scene, belief, linearize(scene, view, pairs, noise).residuals)
    # All information counts a ninth: the same as a teacher that is trusted three times as much.
    belief = belief._replace(spread=maps.new_tensor(spread * INDEPENDENT_SHARE**0.5))
    scene, residuals, _ = adjust(scene, view, pairs, belief, noise, WHOLE_GRID_STEPS)
    correction = (scene.inv_depth / belief.mean(scene.shift).clamp(min=RELATIVE_FLOOR)).log()
    known = confidence(scene, belief, residuals, pairs.trust, noise, spread)
    frames = evidence_of_frames(residuals, pairs.trust, noise)
    return Solution(scene, correction, known, found, frames, spread, noise)


def _stationary(view: View, pairs: FlowPairs, log_focal: tuple[float, float]) -> tuple[Poses, Tensor]:
    """Return how a camera that stays in its place explains the flow: its rotations, and its errors [N,S,P] px.

    It may also zoom, and that is a motion along its axis toward a plane that it faces.
    """
    like = pairs.trust
    facing = Belief(torch.ones_like(like[:, 0]), like.new_tensor(1e-3), log_focal, (0.0, 0.0))
    scene = _start(facing)
    for distance, steps in STATIONARY_STEPS:
        some = _subset(pairs, distance)
        scene, *_ = adjust(scene, view, some, facing, _unit(some), steps, free=(False, False, True))
        # The same plane in all frames: 1 away from a frame that did not move.
        plane = (1 / (1 + scene.poses.translation[:, 2:]).clamp(min=0.1)).expand_as(facing.teacher)
        scene, facing = scene._replace(inv_depth=plane), facing._replace(teacher=plane)
    error = linearize(scene, view, pairs, _unit(pairs)).residuals.error_px
    return scene.poses._replace(translation=torch.zeros_like(scene.poses.translation)), error


def _search(view: View, pairs: FlowPairs, belief: Belief, poses: Poses) -> tuple[Scene, Tensor]:
    """Return the scene that the adjustment finds from these poses, and the noise [S] of flow about it."""
    scene, damping = _start(belief)._replace(poses=poses), 1e-4
    distances = [o for o in pairs.offsets if o > 0]
    for distance in [d for d in distances if d >= min(FIRST_DISTANCE, distances[-1])]:
        some = _subset(pairs, distance)
        noise = _noise(scene, view, some).clamp(min=START_NOISE_PX)
        scene, _, damping = adjust(scene, view, some, belief, noise, STEPS_PER_DISTANCE, damping=min(damping, 1e-2))
    for _ in range(2):
        noise = _noise(scene, view, pairs)
        scene, _, damping = adjust(scene, view, pairs, belief, noise, LAST_STEPS // 2, damping=min(damping, 1e-2))
    return scene, _noise(scene, view, pairs)


def _subset(pairs: FlowPairs, distance: int | None = None, points: Tensor | None = None) -> FlowPairs:
    """Return the pairs up to a distance, at some points."""
    count = sum(distance is None or abs(o) <= distance for o in pairs.offsets)
    target, trust = pairs.target_px[:, :count], pairs.trust[:, :count]
    if points is not None:
        target, trust = target[..., points], trust[..., points]
    return FlowPairs(pairs.offsets[:count], target, trust)


def _noise(scene: Scene, view: View, pairs: FlowPairs) -> Tensor:
    error = linearize(scene, view, pairs, _unit(pairs)).residuals.error_px
    return _noise_of(error, pairs.trust).clamp(MIN_NOISE_PX, MAX_NOISE_PX)


def _noise_of(error_px: Tensor, trust: Tensor) -> Tensor:
    """Return the robust standard deviation per axis and slot [S] of errors [N,S,P] px."""
    seen = torch.where(trust > 0, error_px, torch.nan).transpose(0, 1).flatten(1)
    return (seen.nanmedian(1).values / MEDIAN_RADIUS).nan_to_num(MIN_NOISE_PX).clamp(min=MIN_NOISE_PX)


def _unit(pairs: FlowPairs) -> Tensor:
    return torch.ones_like(pairs.trust[0, :, 0])


def _start(belief: Belief) -> Scene:
    like = belief.teacher
    log_focal, shift = (like.new_tensor(x[0]) for x in (belief.log_focal, belief.shift))
    mean = belief.mean(shift).clamp(min=RELATIVE_FLOOR)
    return Scene(Poses.identity(len(like), like), mean, log_focal, shift)
