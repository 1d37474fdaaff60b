"""Geometric targets: a clip's depth corrected by the parallax of a moving camera, then smoothed over time."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.data.labels.geometry.fuse import fuse, spread_over_pixels
from videomamba_depth.data.labels.geometry.pairs import Grid, chained_flow_pairs
from videomamba_depth.data.labels.geometry.scene import RELATIVE_FLOOR, Scene
from videomamba_depth.data.labels.geometry.solve import solve
from videomamba_depth.data.labels.stabilize import stabilize_clip
from videomamba_depth.flow.clip_motion import detect_cuts
from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.utils.depth_kind import DepthKind

GRID_CELLS = 28  # grid points along the short side
MIN_FRAMES = 5  # of a shot; below, the teacher is left as it is
FOCAL_OF_LONG_SIDE, FOCAL_LOG_STD = 0.9, 0.25  # of a camera that nothing is known of
SHIFT_OF_LOW, SHIFT_STD = -0.45, 0.3
"""A relative teacher's shift begins at that multiple of the first percentile of its inverse depth, whose mean is 1."""
MIN_METRIC_DEPTH_M = 1e-3
NUM_FUSIONS = 2
RAMP_FRAMES = 2  # over which the correction of a shot comes and goes
SAME_PLACE = 0.3  # share of trusted flow where there is texture, across what looks like a cut, from which on it is none
MIN_TEXTURE = 2 / 255  # standard deviation of luma around a point; below, any flow fits


class GeometricShot(NamedTuple):
    """Corrected depth [N,H,W] of a shot, in the teacher's unit, and its geometry.

    scene: None where there was none to be found. evidence: of parallax, 0 to 1; at 0 depth is the teacher's.
    """

    depth: Tensor
    scene: Scene | None
    evidence: float


@torch.no_grad()
def geometric_clip(
    depth: Tensor,
    clip: Tensor,
    flow: FlowEstimator,
    *,
    radius: int = 4,
    sigma: float = 2.5,
    depth_kind: DepthKind = DepthKind.RELATIVE,
) -> Tensor:
    """Return `stabilize_clip` of the depth that `correct_shot` makes of every shot of a clip.

    Where parallax says nothing, that is `stabilize_clip` of the teacher's depth, to the bit.

    Args:
        depth: [N,1,H,W], a teacher's; values that are not finite stay and are used nowhere. clip: [N,3,H,W] RGB in
            [0,1]: what the teacher saw. The others: see `stabilize_clip`.
    """
    corrected = torch.cat([shot.depth for shot in geometric_shots(depth, clip, flow, depth_kind)])
    return stabilize_clip(corrected[:, None], clip, flow, radius=radius, sigma=sigma, depth_kind=depth_kind)


@torch.no_grad()
def geometric_shots(
    depth: Tensor, clip: Tensor, flow: FlowEstimator, depth_kind: DepthKind = DepthKind.RELATIVE
) -> list[GeometricShot]:
    """Return the shots of a clip, corrected each on its own; arguments as in `geometric_clip`."""
    if clip.ndim != 4 or clip.shape[1] != 3 or depth.shape != (len(clip), 1, *clip.shape[-2:]):
        raise ValueError(f"depth must be [N,1,H,W] and clip [N,3,H,W]; got {list(depth.shape)}, {list(clip.shape)}")
    bounds = [0, *shot_cuts(clip, flow), len(clip)]
    return [
        correct_shot(depth[start:stop, 0], clip[start:stop], flow, depth_kind)
        for start, stop in itertools.pairwise(bounds)
    ]


def shot_cuts(clip: Tensor, flow: FlowEstimator) -> list[int]:
    """Return the frames of a clip [N,3,H,W] in [0,1] at which a new shot starts; a jump of the exposure starts none."""
    frames = (clip * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [t for t in detect_cuts(frames) if not _goes_on(clip[t - 1 : t + 1], flow)]


def _smooth_minimum(evidence: Tensor) -> Tensor:
    """Return the evidence [N] of frames so that it changes slowly and is nowhere more than it was."""
    padded = F.pad(evidence[None, None], (2 * RAMP_FRAMES,) * 2, mode="replicate")
    lowest = -F.max_pool1d(-padded, 2 * RAMP_FRAMES + 1, stride=1)
    return F.avg_pool1d(lowest, 2 * RAMP_FRAMES + 1, stride=1)[0, 0]


def _goes_on(pair: Tensor, flow: FlowEstimator) -> bool:
    """Return whether two frames show the same place, however the exposure jumped between them.

    Only texture tells: to a black or white frame any flow can be trusted, and no place is the same.
    """
    height, width = pair.shape[-2:]
    step = _grid_step(height, width)
    grid = Grid.of(height, width, step, pair.device)
    textured = grid.sample(_texture(pair.float().mean(1, keepdim=True), step)[:, 0]) > MIN_TEXTURE  # [2,P]
    trust = chained_flow_pairs(pair.float(), flow, grid, torch.float32, (1,)).trust.sum(1)
    same = (trust * textured.all(0)).sum(1)
    return float(same.mean()) > SAME_PLACE * float(textured.any(0).sum())


def _texture(luma: Tensor, radius: int) -> Tensor:
    """Return the standard deviation of luma [N,1,H,W] over the pixels up to `radius` away."""

    def mean(maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)

    return (mean(luma.square()) - mean(luma).square()).clamp(min=0).sqrt()


def _grid_step(height: int, width: int) -> int:
    return max(1, round(min(height, width) / GRID_CELLS))


def correct_shot(depth: Tensor, clip: Tensor, flow: FlowEstimator, depth_kind: DepthKind) -> GeometricShot:
    """Return the depth of one shot, corrected by parallax, in the teacher's unit and to its scale and shift.

    1. Flow between frames 1 to 16 apart (`chained_flow_pairs`). 2. Poses, focal length, the shift of the teacher and
    inverse depth on a grid (`solve`). 3. The correction carried to all pixels within the teacher's own edges
    (`spread_over_pixels`). 4. Fusion with the frames around (`fuse`). 5. As much of it as the evidence is
    worth.

    Args:
        depth: [N,H,W]. clip: [N,3,H,W]. The others: see `geometric_clip`.
    """
    raw = depth.float()
    valid = torch.isfinite(raw)
    metric = depth_kind is DepthKind.METRIC
    inverse = 1 / raw.clamp(min=MIN_METRIC_DEPTH_M) if metric else raw
    unit = float(inverse[valid].double().mean()) if valid.any() else 0.0
    height, width = raw.shape[-2:]
    step = _grid_step(height, width)
    if len(raw) < MIN_FRAMES or unit <= 0 or min(height, width) < 4 * step:
        return GeometricShot(raw, None, 0.0)
    teacher = torch.where(valid, inverse / unit, 1.0)
    grid = Grid.of(height, width, step, raw.device)
    pairs = chained_flow_pairs(clip.float(), flow, grid, torch.float32)
    pairs = pairs._replace(trust=pairs.trust * grid.sample(valid.float())[:, None])
    low = float(grid.sample(teacher).flatten().kthvalue(max(1, grid.sample(teacher).numel() // 100)).values)
    shift = (0.0, 0.0) if metric else (SHIFT_OF_LOW * low, SHIFT_STD)
    focal = (math.log(FOCAL_OF_LONG_SIDE * max(height, width)), FOCAL_LOG_STD)
    found = solve(teacher, grid, pairs, focal, shift)
    evidence = found.support.evidence
    if evidence == 0:
        return GeometricShot(raw, found.scene, 0.0)
    base = (teacher + found.scene.shift).clamp(min=RELATIVE_FLOOR)
    guide = base.log()
    correction, known = spread_over_pixels(found.correction, found.confidence, guide, grid)
    center = raw.new_tensor([(width - 1) / 2, (height - 1) / 2])
    for _ in range(NUM_FUSIONS):
        correction = correction + fuse((guide + correction).exp(), known, found.scene, center)
    per_frame = evidence * _smooth_minimum(found.frame_evidence)
    correction = torch.where(valid, per_frame[:, None, None] * correction, 0.0)
    # Written as a change of the teacher's value, which is exact where there is none.
    corrected = raw * (-correction).exp() if metric else raw + unit * base * torch.expm1(correction)
    return GeometricShot(corrected, found.scene, evidence)
