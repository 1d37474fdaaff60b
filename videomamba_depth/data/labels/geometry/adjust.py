"""Dense bundle adjustment: poses, inverse depth of every grid point in every frame, one focal length, one shift.

Minimizes Σ ρ(|r| / σ) over all flow, plus Σ ρ'((D − a − b) / (s (a + b))) for the teacher's inverse depth a with its
shift b, plus the priors of the log focal length and of b. Source: the form of Teed and Deng, "DROID-SLAM" (NeurIPS
2021), section 3, with flow as it is in the place of a network, and with the teacher's depth, its shift and the focal
length.

A point is seen in frame i at its own pixel, with inverse depth D there; its residual r is the distance in px between
its projection into frame j and the end of its flow. A residual's weight is that of Geman and McClure, w(e) =
1 / (1 + e²)² with e = |r| / (3 σ). The inverse depths go by the Schur complement, since each belongs to one frame
alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from videomamba_depth.data.labels.geometry.pairs import FlowPairs
from videomamba_depth.data.labels.geometry.scene import (
    MIN_DEPTH_RATIO,
    MIN_INV_DEPTH,
    RELATIVE_FLOOR,
    Belief,
    Scene,
    View,
    adjoint,
    transform,
)
from videomamba_depth.utils.cameras import rays

MAX_DEPTH_CHANGE = 0.3  # share of the inverse depth that one step may change it by
OUTLIER = 4.0  # deviation from the teacher at which its pull has halved, in standard deviations
ROBUST = 3.0  # residual at which a flow weighs a quarter, in standard deviations
FIXED = 1e15  # added to the diagonal of what stays
FIRST_DAMPING, MIN_DAMPING, MAX_DAMPING = 1e-4, 1e-7, 1.0  # share of the diagonal that is added to it
LESS, MORE = 4.0, 8.0  # by how much damping changes after a step that was kept, or taken back
ALL_FREE = (True, True, True)


class Residuals(NamedTuple):
    """What flow says of the points of N frames in S others each.

    error_px: [N,S,P]. weight: [N,S,P], robust, 1/px²; 0 where flow is not trusted. information, gradient: [N,P],
    Σ_s of w |∂r/∂D|² and of w r·∂r/∂D: what is known of the inverse depth, given poses, and where it is pulled.
    """

    error_px: Tensor
    weight: Tensor
    information: Tensor
    gradient: Tensor


class Linear(NamedTuple):
    """Derivatives of the residuals: by target pose and log focal, products with themselves and with the residual."""

    products: Tensor  # [N,S,8,8] of (6 pose, focal, residual)
    by_depth: Tensor  # [N,S,7,P] of (6 pose, focal) with the derivative by inverse depth
    to_source: Tensor  # [N,S,6,6], see `adjoint`
    residuals: Residuals


def linearize(scene: Scene, view: View, pairs: FlowPairs, noise_px: Tensor) -> Linear:
    """Return the derivatives of the residuals of all flow at a scene; shapes [N,S,P] unless said otherwise."""
    points_px, center_px = view
    focal = scene.log_focal.exp()
    ray = rays(points_px, focal, center_px)  # [3,P] with z = 1
    num_frames, num_slots = pairs.trust.shape[:2]
    source = torch.arange(num_frames, device=ray.device)[:, None].expand(num_frames, num_slots)
    change = scene.poses.relative(source, pairs.other)
    depth = scene.inv_depth[:, None]  # [N,1,P], 1 / distance along the axis
    # R ray + t D: the point in the other frame over its depth in its own, so that far points stay finite.
    px, py, pz = transform(ray, depth, change)
    seen = pz > MIN_DEPTH_RATIO
    inverse = 1 / pz.clamp(min=MIN_DEPTH_RATIO)
    x, y, d = px * inverse, py * inverse, depth * inverse  # projection for focal 1, and inverse depth there
    ru = focal * x + center_px[0] - pairs.target_px[:, :, 0]
    rv = focal * y + center_px[1] - pairs.target_px[:, :, 1]
    squared = ru.square() + rv.square()
    variance = noise_px[:, None].square()
    # Geman and McClure's weight over the variance: 1/px².
    weight = pairs.trust * seen / (1 + squared / (ROBUST**2 * variance)).square() / variance
    # By inverse depth: only translation moves a projection with it (parallax).
    t = change.translation[..., None]  # [N,S,3,1]
    scale = focal * inverse
    du, dv = scale * (t[..., 0, :] - x * t[..., 2, :]), scale * (t[..., 1, :] - y * t[..., 2, :])
    # By log focal: the ray's x and y shrink, the projection grows.
    r = change.rotation[..., None]
    fx, fy, fz = (-(r[..., k, 0, :] * ray[0] + r[..., k, 1, :] * ray[1]) for k in range(3))
    fu, fv = scale * (fx - x * fz) + focal * x, scale * (fy - y * fz) + focal * y
    xy, fd = focal * x * y, focal * d
    zero = torch.zeros_like(x)
    # Columns: translation x, y, z, rotation x, y, z of the target's pose, log focal, residual; [N,S,8,P].
    u = torch.stack([fd, zero, -x * fd, -xy, focal + focal * x.square(), -focal * y, fu, ru], 2)
    v = torch.stack([zero, fd, -y * fd, -focal - focal * y.square(), xy, focal * x, fv, rv], 2)
    weighted_u, weighted_v = u * weight[:, :, None], v * weight[:, :, None]
    # Sums over points: the normal equations of a pair of frames, right side included.
    products = weighted_u @ u.mT + weighted_v @ v.mT
    by_depth = weighted_u[:, :, :7] * du[:, :, None] + weighted_v[:, :, :7] * dv[:, :, None]
    information = (weight * (du.square() + dv.square())).sum(1)
    gradient = (weight * (du * ru + dv * rv)).sum(1)
    found = Residuals(squared.sqrt(), weight, information, gradient)
    return Linear(products, by_depth, adjoint(change), found)


def step(
    scene: Scene, linear: Linear, pairs: FlowPairs, belief: Belief, damping: float, free: tuple[bool, bool, bool]
) -> Scene:
    """Return the scene after one damped Gauss–Newton step; `free`: see `adjust`."""
    local, rhs, depth_blocks, curvature, pull = _eliminate(linear, scene, belief)
    update = _solve(local, rhs, pairs.offsets, scene, belief, damping, free)
    # Back-substitution: the inverse depth given everything else.
    num_frames = len(scene.inv_depth)
    pose_update, global_update = update[:-2].view(num_frames, 6), update[-2:]
    # Each frame's depths answer to its own pose, those of its S others, and the two globals: [N,6(S+1)+2].
    slots = torch.cat([torch.arange(num_frames, device=update.device)[:, None], pairs.other], 1)
    local_update = torch.cat([pose_update[slots].flatten(1), global_update.expand(num_frames, 2)], 1)
    change = -(pull + (local_update.to(depth_blocks.dtype)[:, None] @ depth_blocks)[:, 0]) / curvature
    limit = MAX_DEPTH_CHANGE * scene.inv_depth.clamp(min=1e-2)
    inv_depth = (scene.inv_depth + change.clamp(-limit, limit)).clamp(min=MIN_INV_DEPTH)
    dtype = inv_depth.dtype
    pose_update = pose_update.clamp(-0.3, 0.3).to(dtype)
    focal_update, shift_update = global_update.clamp(-0.1, 0.1).to(dtype)
    return Scene(scene.poses.moved(pose_update), inv_depth, scene.log_focal + focal_update, scene.shift + shift_update)


def _eliminate(linear: Linear, scene: Scene, belief: Belief) -> tuple[Tensor, ...]:
    """Return per frame the normal equations over (own pose, S other poses, focal, shift) without the inverse depths.

    Returns: matrix [N,V,V] and right side [N,V] with V = 6 (S + 1) + 2, depth's rows [N,V,P], its curvature and its
    gradient [N,P], both with the prior.
    """
    products, by_depth, to_source, found = linear
    num_frames, num_slots = products.shape[:2]
    size = 6 * (num_slots + 1) + 2
    pose, focal, residual = slice(0, 6), 6, 7
    mean = belief.mean(scene.shift)
    std = belief.spread * mean.clamp(min=RELATIVE_FLOOR)
    deviation = scene.inv_depth - mean
    # Robust: far from the teacher its pull weakens.
    precision = 1 / (std.square() * (1 + (deviation / (OUTLIER * std)).square()))
    curvature = found.information + precision
    pull = found.gradient + precision * deviation
    source = -to_source.mT  # [N,S,6,6]: derivative by the source's pose = −(by the target's) · adjoint
    blocks = by_depth.new_zeros(num_frames, size, by_depth.shape[-1])
    blocks[:, :6] = (source @ by_depth[:, :, pose]).sum(1)
    blocks[:, 6:-2] = by_depth[:, :, pose].flatten(1, 2)
    blocks[:, -2] = by_depth[:, :, focal].sum(1)
    blocks[:, -1] = -precision
    scaled = blocks / curvature[:, None]
    matrix = -(scaled @ blocks.mT).double()
    rhs = -(scaled @ pull[..., None])[..., 0].double()
    # What the residuals and the prior say directly.
    products, source = products.double(), source.double()
    hessian, by_focal, gradient = products[..., pose, pose], products[..., pose, focal], products[..., pose, residual]
    own = source @ hessian  # [N,S,6,6]: rows source, columns target
    matrix[:, :6, :6] += (own @ source.mT).sum(1)
    own_by_focal = (source @ by_focal[..., None])[..., 0].sum(1)
    matrix[:, :6, -2] += own_by_focal
    matrix[:, -2, :6] += own_by_focal
    rhs[:, :6] += (source @ gradient[..., None])[..., 0].sum(1)
    for s in range(num_slots):
        other = slice(6 + 6 * s, 12 + 6 * s)
        matrix[:, other, other] += hessian[:, s]
        matrix[:, :6, other] += own[:, s]
        matrix[:, other, :6] += own[:, s].mT
        matrix[:, other, -2] += by_focal[:, s]
        matrix[:, -2, other] += by_focal[:, s]
        rhs[:, other] += gradient[:, s]
    matrix[:, -2, -2] += products[..., focal, focal].sum(1)
    rhs[:, -2] += products[..., focal, residual].sum(1)
    matrix[:, -1, -1] += precision.double().sum(1)
    rhs[:, -1] -= (precision * deviation).double().sum(1)
    return matrix, rhs, blocks, curvature, pull


def _solve(
    local: Tensor,
    rhs: Tensor,
    offsets: tuple[int, ...],
    scene: Scene,
    belief: Belief,
    damping: float,
    free: tuple[bool, bool, bool],
) -> Tensor:
    """Sum the frames' equations; return the update [6N+2] of all poses, log focal length and shift; frame 0 stays."""
    num_frames = len(local)
    slots = (0, *offsets)
    poses = local.new_zeros(num_frames, 6, num_frames, 6)  # blocks of the whole clip's matrix
    with_globals = local.new_zeros(num_frames, 6, 2)
    right = local.new_zeros(num_frames, 6)
    matrix = local[:, :-2, :-2].unflatten(1, (-1, 6)).unflatten(3, (-1, 6))
    frames = torch.arange(num_frames, device=local.device)
    for a, offset_a in enumerate(slots):
        here = frames[max(0, -offset_a) : num_frames - max(0, offset_a)]
        with_globals[here + offset_a] += local[here, 6 * a : 6 * a + 6, -2:]
        right[here + offset_a] += rhs[here, 6 * a : 6 * a + 6]
        for b, offset_b in enumerate(slots):
            both = frames[max(0, -offset_a, -offset_b) : num_frames - max(0, offset_a, offset_b)]
            poses[both + offset_a, :, both + offset_b] += matrix[both, a, :, b]
    total = local.new_zeros(6 * num_frames + 2, 6 * num_frames + 2)
    total[:-2, :-2] = poses.view(6 * num_frames, 6 * num_frames)
    total[:-2, -2:] = with_globals.flatten(0, 1)
    total[-2:, :-2] = with_globals.flatten(0, 1).mT
    total[-2:, -2:] = local[:, -2:, -2:].sum(0)
    right = torch.cat([right.flatten(), rhs[:, -2:].sum(0)])
    diagonal = total.diagonal()  # a view: what is added below damps, pins or pulls single unknowns
    diagonal += damping * diagonal.clamp(min=1e-6) + 1e-9
    diagonal[:-2].view(num_frames, 6)[:, :3] += FIXED * torch.tensor([not x for x in free], device=total.device)
    diagonal[:6] += FIXED  # frame 0 is where the world begins
    for i, value, (mean, std) in ((-2, scene.log_focal, belief.log_focal), (-1, scene.shift, belief.shift)):
        precision = FIXED if std == 0 else std**-2
        diagonal[i] += precision
        right[i] += precision * (value.double() - mean)
    factor, failed = torch.linalg.cholesky_ex(total)
    update = -torch.cholesky_solve(right[:, None], factor)[:, 0]
    return torch.where(failed == 0, update, torch.nan)  # a step that is then taken back


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
