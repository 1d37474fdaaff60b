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

    @property
    def error(self) -> Tensor:
        """Root mean square [B,S,P] over the patch, of full scale."""
        return self.residual.square().mean(-1).sqrt()


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
        self._view = view

    def at(self, inv_depth: Tensor) -> Compared:
        """Compare with where the points lie in the past frames at inverse depths [B,P]."""
        f, (center_x, center_y) = self._view.focal_px.view(-1, 1, 1, 1), self._view.center_px
        height, width = self._maps.shape[-2:]
        x, y, z = (self._turned + self._shift * inv_depth[:, None, None, :, None]).unbind(2)
        inverse = 1 / z.clamp(min=MIN_DEPTH_RATIO)
        x, y = x * inverse, y * inverse
        u, v = f * x + center_x, f * y + center_y
        inside = (z > MIN_DEPTH_RATIO) & (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
        seen = sample_px(self._maps, torch.stack([u, v], -1).flatten(0, 1))
        seen, by_u, by_v = seen.unflatten(0, x.shape[:2]).unbind(2)
        moves = [f * inverse * (self._shift[:, :, k] - a * self._shift[:, :, 2]) for k, a in ((0, x), (1, y))]
        by_depth = _less_mean(by_u * moves[0] + by_v * moves[1])
        return Compared(_less_mean(seen) - self.now, by_depth, inside.all(-1))


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
        error = compared.error
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


def _less_mean(patches: Tensor) -> Tensor:
    return patches - patches.mean(-1, keepdim=True)
