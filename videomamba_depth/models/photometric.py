"""Inverse depth from the pictures themselves, of which flow is a smooth summary."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from videomamba_depth.models.camera_tracking import (
    MIN_DEPTH_RATIO,
    Adjusted,
    Known,
    Tracks,
    View,
    damped_depth,
    pull_of,
)
from videomamba_depth.utils.flow_utils import sample_px
from videomamba_depth.utils.images import gradients

PATCH = 3  # px along the side of the square around a point that is compared
FLOW_SHARE = 0.25  # of what flow knows, which is still counted
OUTLIER = 2.0  # error at which a patch weighs a quarter, in medians
MIN_ERROR = 0.01  # of full scale
MAX_DEPTH_STEP = 0.2  # share of the inverse depth


class Compared(NamedTuple):
    """Patches in past frames, less those of now: residual [B,S,P,K], its derivative by the inverse depth [B,S,P,K], and
    whether the patch is in view [B,S,P]."""

    residual: Tensor
    by_depth: Tensor
    in_view: Tensor


class Projected(NamedTuple):
    """Where patches lie in past frames: rays (x, y, 1) and the inverse of z, each [B,S,P,K], points (u, v) px
    [B,S,P,K,2], and whether the whole patch is in view [B,S,P]."""

    x: Tensor
    y: Tensor
    inverse_z: Tensor
    points_px: Tensor
    in_view: Tensor


class Patches:
    """Squares of K pixels around points of this frame, each less its mean, so that exposure does not count.

    Args:
        tracks: of S past frames. light: [B,1,h,w], luma, and past [B,S,h,w]. poses: [B,S,3,4]. pose: [B,3,4] of now.
    """

    def __init__(self, tracks: Tracks, light: Tensor, past: Tensor, poses: Tensor, pose: Tensor, view: View) -> None:
        offset = torch.arange(PATCH, device=light.device, dtype=light.dtype) - PATCH // 2
        around = torch.stack(torch.meshgrid(offset, offset, indexing="xy")).flatten(1)  # [2,K]
        points = tracks.points_px[..., None] + around[:, None]  # [B,2,P,K]
        self.now = _less_mean(sample_px(light, points.permute(0, 2, 3, 1)))  # [B,1,P,K]
        self._maps = torch.stack([past, *gradients(past)], 2).flatten(0, 1)  # [B·S,3,h,w]
        turn = poses[..., :3] @ pose[:, None, :, :3].mT  # [B,S,3,3], from now to then
        self._shift = (poses[..., 3:] - turn @ pose[:, None, :, 3:])[..., None]  # [B,S,3,1,1]
        self._turned = (turn @ view.rays(points.flatten(2))[:, None]).unflatten(-1, points.shape[-2:])  # [B,S,3,P,K]
        self._focal, self._center = view.focal_px.view(-1, 1, 1, 1), view.center_px

    def at(self, inv_depth: Tensor) -> Compared:
        """Compare with where the points lie in the past frames at inverse depths [B,P]."""
        where = self._project(inv_depth)
        seen, by_u, by_v = self._sample(self._maps, where)
        shift_x, shift_y, shift_z = self._shift.unbind(2)
        by_depth = by_u * (shift_x - where.x * shift_z) + by_v * (shift_y - where.y * shift_z)
        by_depth = _less_mean(self._focal * where.inverse_z * by_depth)
        return Compared(_less_mean(seen) - self.now, by_depth, where.in_view)

    def error(self, inv_depth: Tensor) -> Tensor:
        """Return by how much patches differ at inverse depths [B,P]: their root mean square [B,S,P], of full scale."""
        (seen,) = self._sample(self._maps[:, :1], self._project(inv_depth))
        return root_mean_square(_less_mean(seen) - self.now)

    def _project(self, inv_depth: Tensor) -> Projected:
        x, y, z = (self._turned + self._shift * inv_depth[:, None, None, :, None]).unbind(2)
        inverse = 1 / z.clamp(min=MIN_DEPTH_RATIO)
        x, y = x * inverse, y * inverse
        u, v = (self._focal * a + center for a, center in zip((x, y), self._center, strict=True))
        height, width = self._maps.shape[-2:]
        inside = (z > MIN_DEPTH_RATIO) & (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
        return Projected(x, y, inverse, torch.stack([u, v], -1), inside.all(-1))

    def _sample(self, maps: Tensor, where: Projected) -> tuple[Tensor, ...]:
        """Return each of the maps [B·S,C,h,w] there, [B,S,P,K]."""
        seen = sample_px(maps, where.points_px.flatten(0, 1))
        return seen.unflatten(0, where.x.shape[:2]).unbind(2)


def compare_pictures(
    found: Adjusted, trust: Tensor, patches: Patches, beliefs: tuple[Known, ...], steps: int
) -> Adjusted:
    """Return the inverse depth at which patches look alike in all past frames at once, by Gauss–Newton.

    Σ_s w_s |P_s(D) − P|² over frames s, P a patch less its mean, P_s what frame s shows where the patch lies at inverse
    depth D by the cameras (Engel et al., DSO, 2018, with cameras held), beside what is believed of the depth and a
    share of what flow knows of it, which leads to the minimum that is meant.

    Args:
        found: where the search begins. trust: [B,S,P] of the tracks.
    """
    depth, by_flow = found.inv_depth, FLOW_SHARE * found.information
    information = found.information
    for _ in range(steps):
        compared = patches.at(depth)
        error = root_mean_square(compared.residual)
        visible = trust * compared.in_view
        noise = torch.where(visible > 0, error, torch.nan).flatten(1).nanmedian(-1).values
        noise = noise.nan_to_num(1.0).clamp(min=MIN_ERROR).view(-1, 1, 1)
        weight = visible / (1 + (error / (OUTLIER * noise)).square()).square() / noise.square()
        by_pictures = (weight * compared.by_depth.square().sum(-1)).sum(1)
        pull = (weight * (compared.by_depth * compared.residual).sum(-1)).sum(1) + by_flow * (depth - found.inv_depth)
        information = by_pictures + by_flow
        curvature, pull = pull_of(beliefs, depth, information, pull)
        depth = damped_depth(depth, curvature, pull, MAX_DEPTH_STEP)
    return found._replace(inv_depth=depth, information=information)


def root_mean_square(patches: Tensor) -> Tensor:
    """Return [...] of [...,K]."""
    return patches.square().mean(-1).sqrt()


def _less_mean(patches: Tensor) -> Tensor:
    return patches - patches.mean(-1, keepdim=True)
