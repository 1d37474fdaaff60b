"""Camera pose and inverse depth from where points were in past frames, by Gauss–Newton; batched, without branches.

All of it is of B streams with S past frames and P points of the frame that has come. A pose [B,3,4] maps world to
camera, see `utils/cameras.py`. Residuals are in px of the pictures that points lie in; weights are those of Geman and
McClure, 1 / (1 + |r|² / scale²)². Equations are summed in float32 and solved in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from videomamba_depth.utils.cameras import orthonormal, rotation_matrix

POSE_SCALES_PX = (4.0, 4.0, 4.0, 3.0, 2.0, 1.5, 1.0, 1.0, 1.0)  # robust scale of each step, wide to narrow
FOCAL_STEPS = 3
TURNING_SCALES_PX = (4.0, 4.0, 2.0, 1.0, 1.0)
TURNING_FOCAL_PX = 4.0  # error, of one point, that counts as much as a focal length e times the one that is believed
MIN_DEPTH_RATIO = 0.05  # of a point's depth after and before the change of camera; what comes nearer is not used
MIN_INV_DEPTH = 1e-4
MAX_POSE_STEP, MAX_DEPTH_STEP = 0.15, 0.3  # of any component; share of the inverse depth
QUANTILE, QUANTILE_RADIUS = 0.3, 0.8446  # of |r|, over its standard deviation per axis, for r normal in the plane
ROBUST = 3.0  # residual at which a track weighs a quarter, in standard deviations
OUTLIER = 4.0  # deviation at which the pull of what is believed has halved, in standard deviations


class View(NamedTuple):
    """Focal length [B] px and principal point [2] px of all frames."""

    focal_px: Tensor
    center_px: Tensor

    def rays(self, points_px: Tensor) -> Tensor:
        """Return rays [B,...,3,P] with z = 1 of pixels [B,...,2,P]."""
        shape = (-1, *[1] * (points_px.ndim - 1))
        plane = (points_px - self.center_px[:, None]) / self.focal_px.view(shape)
        return torch.cat([plane, torch.ones_like(plane[..., :1, :])], -2)


class Tracks(NamedTuple):
    """Where points of the frame that has come were before.

    points_px: [B,2,P] now. found_px: [B,S,2,P] then. inv_depth: [B,S,P] that is known of them there.
    trust: [B,S,P], 0 to 1.
    """

    points_px: Tensor
    found_px: Tensor
    inv_depth: Tensor
    trust: Tensor

    def some(self, index: Tensor) -> Tracks:
        """Return the tracks of some points."""
        return Tracks(*(values[..., index] for values in self))

    def of_frames(self, first: int) -> Tracks:
        """Return the tracks to past frames from the `first` on."""
        return self._replace(**{name: getattr(self, name)[:, first:] for name in ("found_px", "inv_depth", "trust")})

    def motion_px(self) -> Tensor:
        """Return how far each point has moved, [B,S,P]."""
        return (self.found_px - self.points_px[:, None]).square().sum(2).sqrt()


def in_world(tracks: Tracks, poses: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Return homogeneous points: [B,S,3,P] in the world and their inverse depth [B,S,P], for poses [B,S,3,4]."""
    rotation, translation = poses[..., :3], poses[..., 3:]
    offset = view.rays(tracks.found_px) - translation * tracks.inv_depth[:, :, None]
    return rotation.mT @ offset, tracks.inv_depth


def seen_from_another(
    view: View, other: Tensor, pose: Tensor, points_px: Tensor, inv_depth: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the inverse depth [B,P] that points of the frame at a pose [B,3,4] have at the other one's, and whether
    they lie in front of that camera.

    Args:
        points_px: [B,2,P] in the frame. inv_depth: [B,P] there.
    """
    turn = other[..., 2:, :3] @ pose[..., :3].mT
    forward = (other[..., 2:, 3:] - turn @ pose[..., 3:])[..., 0]  # [B,1]
    z = (turn @ view.rays(points_px))[:, 0] + inv_depth * forward  # over the depth in the frame
    return (inv_depth / z.clamp(min=MIN_DEPTH_RATIO)).clamp(min=MIN_INV_DEPTH), z > MIN_DEPTH_RATIO


def fit_camera(tracks: Tracks, poses: Tensor, start: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Return the pose [B,3,4] at which past points are seen where they are now, and their errors [B,S,P] px.

    Args:
        poses: [B,S,3,4] of the past frames. start: [B,3,4], where the search begins.
    """
    points, depth = in_world(tracks, poses, view)
    points, depth = points.transpose(1, 2).flatten(2), depth.flatten(1)  # [B,3,S·P], [B,S·P]
    target = tracks.points_px.unsqueeze(1).expand_as(tracks.found_px).transpose(1, 2).flatten(2)
    trust, pose = tracks.trust.flatten(1), start
    for scale in POSE_SCALES_PX:
        columns, residual, seen = _by_pose(points, depth, target, pose, view)
        weight = trust * seen / (1 + residual.square().sum(1) / scale**2).square()
        pose = moved(pose, _solve(columns, residual, weight))
    pose = torch.cat([orthonormal(pose[..., :3]), pose[..., 3:]], -1)
    _, residual, seen = _by_pose(points, depth, target, pose, view)
    error = torch.where(seen, residual.square().sum(1).sqrt(), torch.inf)
    return pose, error.unflatten(1, tracks.trust.shape[1:])


def _by_pose(points: Tensor, depth: Tensor, target: Tensor, pose: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Return derivatives [B,2,6,M] by (translation, rotation), residuals [B,2,M] px, and what lies in front."""
    f = view.focal_px.view(-1, 1)
    x, y, z = (pose[..., :3] @ points + pose[..., 3:] * depth[:, None]).unbind(1)
    seen = z > MIN_DEPTH_RATIO
    inverse = 1 / z.clamp(min=MIN_DEPTH_RATIO)
    x, y, fd = x * inverse, y * inverse, f * depth * inverse
    residual = torch.stack([f * x, f * y], 1) + view.center_px[:, None] - target
    return _by_twist(x, y, fd, f), residual, seen


def _by_twist(x: Tensor, y: Tensor, fd: Tensor, f: Tensor) -> Tensor:
    """Return derivatives [...,2,6,M] of pixels by the camera's (translation, rotation).

    Args:
        x, y: [...,M], of the points' rays with z = 1. fd: focal length times inverse depth there. f: focal length.
    """
    zero, fxy = torch.zeros_like(x), f * x * y
    u = torch.stack([fd, zero, -x * fd, -fxy, f + f * x.square(), -f * y], -2)
    v = torch.stack([zero, fd, -y * fd, -f - f * y.square(), fxy, f * x], -2)
    return torch.stack([u, v], -3)


def _solve(columns: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    """Return the damped Gauss–Newton step [...,V] of weighted derivatives [...,2,V,M]; 0 where nothing has weight."""
    weighted = columns * weight[..., None, None, :]
    matrix = (weighted @ columns.mT).sum(-3).double()
    gradient = (weighted @ residual[..., None])[..., 0].sum(-2).double()
    return _damped(matrix, gradient).to(residual.dtype)


def _damped(matrix: Tensor, gradient: Tensor) -> Tensor:
    """Return the damped step [...,V] float64, no longer than `MAX_POSE_STEP` in any component."""
    diagonal = torch.diag_embed(1e-4 * matrix.diagonal(dim1=-2, dim2=-1).clamp(min=0) + 1e-6)
    step = -torch.linalg.solve(matrix + diagonal, gradient)
    return step * (MAX_POSE_STEP / step.abs().amax(-1, keepdim=True).clamp(min=MAX_POSE_STEP))


def moved(pose: Tensor, twist: Tensor) -> Tensor:
    """Return exp(twist) ∘ pose for twists [...,6] = (translation, rotation vector), to first order in translation."""
    turned = rotation_matrix(twist[..., 3:]) @ pose
    return torch.cat([turned[..., :3], turned[..., 3:] + twist[..., :3, None]], -1)


def at_another_focal(poses: Tensor, ratio: Tensor) -> Tensor:
    """Return poses [B,S,3,4] that show the same pictures at another focal length, to first order; the first one stays.

    What turns about an axis across the picture, or moves along one, is seen to move by the focal length times that.

    Args:
        ratio: [B] of the focal length that they were found with to the other one.
    """
    first = poses[:, :1]
    turn = poses[..., :3] @ first[..., :3].mT
    path = poses[..., 3] - (turn @ first[..., 3:])[..., 0]
    axis = torch.stack([turn[..., 2, 1] - turn[..., 1, 2], turn[..., 0, 2] - turn[..., 2, 0],
                        turn[..., 1, 0] - turn[..., 0, 1]], -1) / 2  # fmt: skip
    sine = axis.square().sum(-1, keepdim=True).sqrt()
    axis = axis * torch.where(sine > 1e-6, sine.clamp(max=1).asin() / sine.clamp(min=1e-6), 1.0)
    across = torch.stack([ratio, ratio, torch.ones_like(ratio)], -1)[:, None]
    turned = rotation_matrix(axis * across) @ first
    return torch.cat([turned[..., :3], turned[..., 3:] + (path * across)[..., None]], -1)


def fit_turning_camera(tracks: Tracks, poses: Tensor, start: Tensor, view: View) -> Tensor:
    """Return errors [B,S,P] px of the best camera that stays where each past frame was taken: it may turn and zoom.

    Its focal length is free too, within a prior: with a wrong one a camera that turns seems to move.
    """
    rotation = start[:, None, :, :3] @ poses[..., :3].mT  # [B,S,3,3]
    zoom, log_focal = torch.ones_like(tracks.trust[..., :1]), torch.zeros_like(tracks.trust[..., :1])
    believed = torch.zeros_like(zoom)[..., None, None].repeat(1, 1, 2, 5, 1)  # [B,S,2,5,1], derivatives of an equation
    believed[:, :, 0, 4].fill_(TURNING_FOCAL_PX)
    offset, target = tracks.found_px - view.center_px[:, None], (tracks.points_px - view.center_px[:, None])[:, None]
    for scale in (*TURNING_SCALES_PX, None):
        f = view.focal_px.view(-1, 1, 1) * log_focal.exp()  # [B,S,1]
        rays = torch.cat([offset / f[:, :, None], torch.ones_like(offset[:, :, :1])], 2)
        x, y, z = (rotation @ rays).unbind(2)
        inverse = zoom / z.clamp(min=MIN_DEPTH_RATIO)
        x, y = x * inverse, y * inverse
        residual = torch.stack([f * x, f * y], 2) - target  # [B,S,2,P]
        squared = residual.square().sum(2)
        if scale is None:
            break
        fxy, fz = f * x * y / zoom, f * zoom
        right, down, ahead = (v[..., None] for v in rotation[..., 2].unbind(-1))  # the optical axis then, seen from now
        by_focal = [f * (v + inverse * (axis - v * ahead / zoom)) for v, axis in ((x, right), (y, down))]
        u = torch.stack([-fxy, fz + f * x.square() / zoom, -f * y, f * x, by_focal[0]], 2)
        v = torch.stack([-fz - f * y.square() / zoom, fxy, f * x, f * y, by_focal[1]], 2)
        weight = tracks.trust / (1 + squared / scale**2).square()
        # One more equation, of weight 1: the focal length is the one that is believed.
        columns = torch.cat([torch.stack([u, v], 2), believed], -1)
        residual = torch.cat([residual, believed[:, :, :, 4] * log_focal[:, :, None]], -1)
        step = _solve(columns, residual, torch.cat([weight, torch.ones_like(log_focal)], -1))
        rotation, zoom = rotation_matrix(step[..., :3]) @ rotation, zoom * (1 + step[..., 3:4])
        log_focal = log_focal + step[..., 4:]
    return squared.sqrt()


def spread_px(error_px: Tensor, trust: Tensor) -> Tensor:
    """Return the robust standard deviation per axis [B,S] of errors [B,S,P] px; 0 where nothing is trusted."""
    seen = torch.where(trust > 0, error_px, torch.nan)
    return (seen.nanquantile(QUANTILE, -1) / QUANTILE_RADIUS).nan_to_num(0.0, posinf=1e3)


class Known(NamedTuple):
    """What is believed of an inverse depth: mean and precision (1 / variance), each [B,P]."""

    mean: Tensor
    precision: Tensor


class Adjusted(NamedTuple):
    """Pose [B,3,4] of the frame, inverse depth [B,P] there, what the tracks alone know of it [B,P], 1 / variance, and
    their errors [B,S,P] px."""

    pose: Tensor
    inv_depth: Tensor
    information: Tensor
    error_px: Tensor


def find_focal(
    tracks: Tracks, poses: Tensor, pose: Tensor, view: View, noise_px: Tensor, depth: Known, focal: Known
) -> tuple[Tensor, Tensor]:
    """Return the focal length [B] px that fits the tracks, and what they know of its logarithm [B], 1 / variance.

    All cameras and inverse depths are free: those that are known were found with another focal length, and would hold
    on to it. Cameras follow from the past frames' relative to this one, inverse depths go by the Schur complement.

    Args:
        poses [B,S,3,4], pose [B,3,4], view: where the search begins. noise_px: [B,S] of the tracks.
        depth: what is believed of the inverse depth, [B,P] each, and where its search begins.
        focal: what is believed of the logarithm of the focal length, [B] each.
    """
    turn = poses[..., :3] @ pose[:, None, :, :3].mT
    relative = torch.cat([turn, poses[..., 3:] - turn @ pose[:, None, :, 3:]], -1)  # [B,S,3,4], from now to then
    here = torch.eye(3, 4, dtype=pose.dtype, device=pose.device).expand_as(pose)
    batch, slots = tracks.trust.shape[:2]
    variance, inverse, information = noise_px.square()[..., None], depth.mean, torch.zeros_like(focal.mean)
    for _ in range(FOCAL_STEPS):
        seen = see(tracks, relative, here, view, inverse)
        robust = 1 / (1 + seen.error.square().sum(2) / (ROBUST**2 * variance)).square()
        weight = tracks.trust * seen.in_front * robust / variance  # [B,S,P], 1/px²
        weighted = seen.by_depth * weight[:, :, None]
        by_tracks, pull = ((weighted * v).sum((1, 2)) for v in (seen.by_depth, seen.error))
        curvature, pull = pull_of((depth,), inverse, by_tracks, pull)
        # Of each past camera's twist [B,S,2,6,P], and of the focal length [B,S,2,P], the same now and then.
        f = view.focal_px.view(-1, 1, 1)
        rays = view.rays(tracks.points_px)
        z = (relative[..., 2:, :3] @ rays[:, None] + relative[..., 2:, 3:] * inverse[:, None, None])[:, :, 0]
        found = seen.error + tracks.found_px - view.center_px[:, None]
        x, y = (found / f[..., None]).unbind(2)
        by_camera = _by_twist(x, y, f * inverse[:, None] / z.clamp(min=MIN_DEPTH_RATIO), f)
        by_focal = found - (seen.by_point[:, :, :, :2] * rays[:, None, None, :2]).sum(3)
        # Normal equations of 6 S + 1 unknowns.
        camera_weighted, focal_weighted = by_camera * weight[:, :, None, None], by_focal * weight[:, :, None]
        matrix = inverse.new_zeros(batch, slots * 6 + 1, slots * 6 + 1)
        for k, block in enumerate((camera_weighted @ by_camera.mT).sum(2).unbind(1)):
            matrix[:, 6 * k : 6 * k + 6, 6 * k : 6 * k + 6] = block
        mixed = (camera_weighted * by_focal[:, :, :, None]).sum((2, 4)).flatten(1)
        matrix[:, :-1, -1] = matrix[:, -1, :-1] = mixed
        matrix[:, -1, -1] = (focal_weighted * by_focal).sum((1, 2, 3))
        gradient = torch.cat(
            [
                (camera_weighted * seen.error[:, :, :, None]).sum((2, 4)).flatten(1),
                (focal_weighted * seen.error).sum((1, 2, 3))[:, None],
            ],
            1,
        )
        both = torch.cat(
            [
                (by_camera * weighted[:, :, :, None]).sum(2).flatten(1, 2),
                (by_focal * weighted).sum((1, 2))[:, None],
            ],
            1,
        )  # [B,6·S+1,P], with depth
        matrix = (matrix - (both / curvature[:, None]) @ both.mT).double()
        gradient = (gradient - (both * (pull / curvature)[:, None]).sum(-1)).double()
        information = _known_of_last(matrix).to(inverse.dtype)
        log_focal = view.focal_px.log()
        matrix[:, -1, -1] += focal.precision
        gradient[:, -1] += focal.precision * (log_focal - focal.mean)
        step = _damped(matrix, gradient).to(inverse.dtype)
        relative = moved(relative, step[:, :-1].unflatten(1, (slots, 6)))
        view = view._replace(focal_px=(log_focal + step[:, -1]).exp())
        inverse = damped_depth(inverse, curvature, pull + (both * step[..., None]).sum(1), MAX_DEPTH_STEP)
    return view.focal_px, information


def _known_of_last(matrix: Tensor) -> Tensor:
    """Return what a normal matrix [B,V,V] knows of its last unknown [B] where the others are free."""
    free, shared = matrix[:, :-1, :-1], matrix[:, :-1, -1:]
    damped = free + torch.diag_embed(1e-4 * free.diagonal(dim1=-2, dim2=-1).clamp(min=0) + 1e-6)
    return (matrix[:, -1, -1] - (shared.mT @ torch.linalg.solve(damped, shared))[:, 0, 0]).clamp(min=0)


class Seen(NamedTuple):
    """Points as the past frames see them: error [B,S,2,P] px, whether they are in front of those [B,S,P], and the
    error's derivatives by the point [B,S,2,3,P] and by its inverse depth [B,S,2,P]."""

    error: Tensor
    in_front: Tensor
    by_point: Tensor
    by_depth: Tensor


def adjust(
    tracks: Tracks,
    poses: Tensor,
    pose: Tensor,
    view: View,
    noise_px: Tensor,
    beliefs: tuple[Known, ...],
    depth: Tensor,
    *,
    steps: int,
    move: bool,
) -> Adjusted:
    """Return the inverse depth and, with `move`, the pose that tracks and what is believed of the depth agree on.

    Past frames stay. The inverse depths go by the Schur complement: where there is parallax, the pose then rests on
    where tracks lie across epipolar lines, whatever is believed of the depth.

    Args:
        poses: [B,S,3,4]. noise_px: [B,S] of the tracks. pose [B,3,4], depth [B,P]: where the search begins.
    """
    rays = view.rays(tracks.points_px)  # [B,3,P]
    variance = noise_px.square()[..., None]
    information, error = torch.zeros_like(depth), torch.zeros_like(tracks.trust)
    for _ in range(steps):
        seen = see(tracks, poses, pose, view, depth)
        squared = seen.error.square().sum(2)
        error = squared.sqrt()
        robust = 1 / (1 + squared / (ROBUST**2 * variance)).square()
        weight = tracks.trust * seen.in_front * robust / variance  # [B,S,P], 1/px²
        weighted = seen.by_depth * weight[:, :, None]
        information = (weighted * seen.by_depth).sum((1, 2))
        curvature, pull = pull_of(beliefs, depth, information, (weighted * seen.error).sum((1, 2)))
        if move:
            # A twist of this frame's pose moves its points the other way, as the past frames see them: [B,S,2,6,P].
            columns = torch.cat([-depth[:, None, None, None] * seen.by_point, _cross(seen.by_point, rays)], 3)
            both = (columns * weighted[:, :, :, None]).sum((1, 2))  # [B,6,P], pose with depth
            weighted_columns = columns * weight[:, :, None, None]
            matrix = (weighted_columns @ columns.mT).sum((1, 2)) - (both / curvature[:, None]) @ both.mT
            gradient = (weighted_columns * seen.error[:, :, :, None]).sum((1, 2, 4))
            gradient = gradient - (both * (pull / curvature)[:, None]).sum(-1)
            twist = _damped(matrix.double(), gradient.double()).to(depth.dtype)
            pose = moved(pose, twist)
            pull = pull + (both * twist[..., None]).sum(1)
        depth = damped_depth(depth, curvature, pull, MAX_DEPTH_STEP)
    return Adjusted(torch.cat([orthonormal(pose[..., :3]), pose[..., 3:]], -1), depth, information, error)


def pull_of(beliefs: tuple[Known, ...], depth: Tensor, curvature: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
    """Return curvature and gradient [B,P] of the inverse depths with those of what is believed of them added."""
    for mean, precision in beliefs:
        deviation = depth - mean
        trusted = precision / (1 + deviation.square() * precision / OUTLIER**2)
        curvature, pull = curvature + trusted, pull + trusted * deviation
    return curvature.clamp(min=1e-12), pull


def damped_depth(depth: Tensor, curvature: Tensor, pull: Tensor, max_step: float) -> Tensor:
    """Return inverse depths [B,P] after a Newton step that is no longer than `max_step` of them."""
    limit = max_step * depth.clamp(min=1e-2)
    return (depth + torch.minimum(torch.maximum(-pull / curvature, -limit), limit)).clamp(min=MIN_INV_DEPTH)


def see(tracks: Tracks, poses: Tensor, pose: Tensor, view: View, depth: Tensor) -> Seen:
    """Return how the past frames see the points at inverse depths [B,P] by the cameras."""
    f = view.focal_px.view(-1, 1, 1)
    turn = poses[..., :3] @ pose[:, None, :, :3].mT  # [B,S,3,3], from now to then
    shift = poses[..., 3:] - turn @ pose[:, None, :, 3:]
    x, y, z = (turn @ view.rays(tracks.points_px)[:, None] + shift * depth[:, None, None]).unbind(2)
    inverse = 1 / z.clamp(min=MIN_DEPTH_RATIO)
    x, y = x * inverse, y * inverse
    error = torch.stack([f * x, f * y], 2) + view.center_px[:, None] - tracks.found_px
    over = (f * inverse)[:, :, None]
    by_u = over * (turn[:, :, 0, :, None] - x[:, :, None] * turn[:, :, 2, :, None])  # [B,S,3,P]
    by_v = over * (turn[:, :, 1, :, None] - y[:, :, None] * turn[:, :, 2, :, None])
    moves = [over[:, :, 0] * (shift[:, :, k] - a * shift[:, :, 2]) for k, a in ((0, x), (1, y))]
    return Seen(error, z > MIN_DEPTH_RATIO, torch.stack([by_u, by_v], 2), torch.stack(moves, 2))


def _cross(rows: Tensor, rays: Tensor) -> Tensor:
    """Return rows [B,S,2,3,P] times the cross matrix of rays [B,3,P]."""
    a, b, c = rows.unbind(3)
    x, y, _ = rays[:, None, None].unbind(3)
    return torch.stack([b - c * y, c * x - a, a * y - b * x], 3)
