"""What speaks for parallax in a frame: the camera its tracks fit, and whether they show a rigid scene in depth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from videomamba_depth.models.camera_tracking import (
    Known,
    Tracks,
    View,
    adjust,
    fit_camera,
    fit_turning_camera,
    seen_from_another,
    spread_px,
)
from videomamba_depth.models.point_grid import PointGrid

JOINT_STEPS = (3, 3)
LEVEL_STEPS = 3
DECODER_ERRS_ALIKE = 100.0  # what points say of its level or shift counts one part in so many: neighbors err alike
DECODER_OUTLIER = 2.0  # error of it at which a point counts half, in standard deviations
MIN_NOISE_PX, MAX_NOISE_PX = 0.15, 3.0
MIN_TRUSTED = 0.1  # share of points with a track below which a past frame is not counted
PARALLAX = (1.25, 1.8)  # noise about a camera that stays over that about the scene: nothing believed, all believed
NOISE, NOISE_AT_PX = (0.04, 0.08), 3.0
"""Noise of the tracks over (their length + so many px) from which on less is believed, and nothing: no rigid scene."""
LOST_PX = 2.0  # noise from which on the tracks fit no camera
TRACKED = (0.4, 0.6)  # share of the points with a track, in some past frame: nothing believed, all believed
FADING = (0.03, 0.1)
"""Change of the logarithm of mean luma in one frame: all believed, nothing: the decoder's depth changes with it."""
MIN_LUMA = 1 / 255
EVIDENCE_STEP = 0.15  # most that the evidence changes by from frame to frame
SLOW_FALL = 0.7  # share of it by which evidence falls more slowly where only parallax is missing
STILL_PX = (0.15, 0.5)  # median motion since the last frame: of a picture that stands, of one that moves
STAYS_PX, MOVES_PX, EXPECTED_PX = 0.5, 1.0, 1.5  # see `_contradictions`
STAYS_SHARE = 0.15  # of the motion that is expected
MIN_MOVING = 0.05  # share of the tracks that move, below which nothing can contradict them
CONTRADICTED = (0.08, 0.2)  # share of the tracks that contradict the rest: less is believed from here on, nothing


@dataclass(frozen=True)
class Past:
    """What a frame knows of its inverse depth before it looks: by its decoder, and by the frames before.

    poses: [B,S,3,4] of the past frames, the last one first. known: [B,1,gh,gw], what is still known of the logarithm of
    its inverse depth, 1 / variance. decoder: [B,P] inverse depth. prior: 1 / variance of its logarithm. level_spread:
    standard deviation of its error as a whole, likewise.
    """

    poses: Tensor
    view: View
    known: Tensor
    decoder: Tensor
    prior: float
    level_spread: float
    grid: PointGrid

    def seen_from(self, pose: Tensor, tracks: Tracks) -> Expected:
        """Return what is expected of the points, seen from a pose."""
        carried, known = self._carried(pose, tracks)
        level = self._level(carried, known)
        mean = self.decoder * level.exp()[:, None]
        decoder, before = Known(mean, self.prior / mean.square()), Known(carried, known / carried.square())
        inv_depth = mean * ((carried / mean).log() * known / (known + self.prior)).exp()
        return Expected(level, decoder, before, known, inv_depth)

    def _level(self, carried: Tensor, known: Tensor) -> Tensor:
        """Return by how much the logarithm of the decoder's inverse depth is too small as a whole [B].

        A teacher of single frames finds a level for each. Were that believed as the rest of its depth is, the level of
        the scene would follow it little by little.
        """
        ratio = (carried / self.decoder).log()
        level = torch.zeros_like(ratio[:, 0])
        if not self.level_spread:
            return level
        weight, least = known * self.prior / (known + self.prior), DECODER_ERRS_ALIKE / self.level_spread**2
        for _ in range(LEVEL_STEPS):
            outlying = (ratio - level[:, None]).square() * self.prior / DECODER_OUTLIER**2
            robust = weight / (1 + outlying)
            level = (robust * ratio).sum(1) / (robust.sum(1) + least)
        return level

    def _carried(self, pose: Tensor, tracks: Tracks) -> tuple[Tensor, Tensor]:
        """Return the inverse depth [B,P] of what the last frame has at the points, seen from now, and what is known."""
        found = tracks.found_px[:, 0]
        carried, in_front = seen_from_another(self.view, pose, self.poses[:, 0], found, tracks.inv_depth[:, 0])
        known = self.grid.sample(self.known, found.mT[:, None])[:, 0, 0]
        return carried, known * in_front * tracks.trust[:, 0]


class Expected(NamedTuple):
    """What is expected of the inverse depth of a frame's points before parallax is looked at.

    level: [B], by how much the logarithm of the decoder's is too small as a whole. decoder: what the decoder says, at
    that level. carried: what the last frame has there. known: [B,P], about the logarithm of that, 1 / variance.
    inv_depth: [B,P], the mean of both.
    """

    level: Tensor
    decoder: Known
    carried: Known
    known: Tensor
    inv_depth: Tensor

    @property
    def beliefs(self) -> tuple[Known, Known]:
        """Both, as `adjust` wants them."""
        return self.decoder, self.carried


class FoundCamera(NamedTuple):
    """The camera of a frame by some of its points, and how well it explains their tracks.

    pose: [B,3,4]. points: which of the P. tracks: theirs. counted: [B,S] bool, past frames with enough of them.
    noise_px: [B,S] about the scene. turning_px: [B,S] about the best camera that only turns and zooms.
    """

    pose: Tensor
    points: Tensor
    tracks: Tracks
    counted: Tensor
    noise_px: Tensor
    turning_px: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean [B] of [B,S] over the past frames that count."""
        return (values * self.counted).sum(1) / self.counted.sum(1).clamp(min=1)

    @property
    def limited_px(self) -> Tensor:
        """`noise_px` within what an adjustment is told."""
        return _limited(self.noise_px)

    def parallax(self) -> Tensor:
        """Return how far the tracks show that the camera moves [B]: 0, not at all, to 1."""
        ratio = (self.turning_px.clamp(min=MIN_NOISE_PX) / self.limited_px).log().masked_fill(~self.counted, 0.0)
        return rise(ratio.amax(1), *(math.log(p) for p in PARALLAX))

    def rigid(self) -> Tensor:
        """Return how far the tracks show a rigid scene [B]: 0, not at all, to 1."""
        trust = self.tracks.trust
        length = (self.tracks.motion_px() * trust).sum(-1) / trust.sum(-1).clamp(min=1)
        relative = self.mean(self.noise_px / (length + NOISE_AT_PX))
        return (1 - rise(relative, *NOISE)) * rise(trust.mean(-1).amax(1), *TRACKED)


def find_camera(tracks: Tracks, past: Past, start: Tensor) -> FoundCamera:
    """Return the camera of a frame, from a pose [B,3,4] on: by what is known of depth in the past, then together with
    depth here.
    """
    points = past.grid.coarse()
    few = tracks.some(points)
    pose, error = fit_camera(few, past.poses, start, past.view)
    turning = spread_px(fit_turning_camera(few, past.poses, start, past.view), few.trust)
    noise = spread_px(error, few.trust)
    for steps in JOINT_STEPS:
        expected = past.seen_from(pose, tracks)
        some = tuple(Known(b.mean[:, points], b.precision[:, points]) for b in expected.beliefs)
        begin = expected.inv_depth[:, points]
        found = adjust(few, past.poses, pose, past.view, _limited(noise), some, begin, steps=steps, move=True)
        pose, noise = found.pose, spread_px(found.error_px, few.trust)
    return FoundCamera(pose, points, few, few.trust.mean(-1) > MIN_TRUSTED, noise, turning)


def _limited(noise_px: Tensor) -> Tensor:
    return noise_px.clamp(MIN_NOISE_PX, MAX_NOISE_PX)


def of_the_scene(tracks: Tracks, inv_depth: Tensor) -> tuple[Tracks, Tensor]:
    """Return the tracks less those that contradict the rest, and how far there are too many of these, [B], 0 to 1.

    Few are left out: they move by themselves. Of many, who is to say.
    """
    contradict, many = _contradictions(tracks, inv_depth)
    return tracks._replace(trust=tracks.trust * (1 - contradict * (1 - many.view(-1, 1, 1)))), many


def _contradictions(tracks: Tracks, inv_depth: Tensor) -> tuple[Tensor, Tensor]:
    """Return which tracks [B,S,P] stay in place though at their depth they had to move, and how far that is too many.

    Others move; were all of it one rigid scene, points that are as near had to do so too, and only where the camera
    turns just as it walks do they stay. Those that stay belong to the scene and the others move by themselves, or, seen
    from a camera that goes along with them, the other way round. What is far may stay.

    Args:
        inv_depth: [B,P] of the decoder.

    Returns:
        1 or 0 of each track; and [B], 0: few are of that kind, 1: many.
    """
    motion, trusted = tracks.motion_px(), tracks.trust > 0
    count = trusted.sum(-1)
    moves = trusted & (motion > MOVES_PX)
    per_depth = torch.where(moves, motion / inv_depth[:, None], torch.nan).nanmedian(-1, keepdim=True).values
    expected = per_depth * inv_depth[:, None]
    stays = trusted & (motion < (STAYS_SHARE * expected).clamp(max=STAYS_PX)) & (expected > EXPECTED_PX)
    enough = (moves.sum(-1) > MIN_MOVING * count) & (count > MIN_TRUSTED * trusted.shape[-1])
    stays = (stays & enough[..., None]).to(motion.dtype)
    return stays, rise((stays.sum(-1) / count.clamp(min=1)).amax(1), *CONTRADICTED)


def stillness(tracks: Tracks) -> Tensor:
    """Return how far the picture stands since the last frame [B]: 0, it moves, to 1."""
    motion = torch.where(tracks.trust[:, 0] > 0, tracks.motion_px()[:, 0], torch.nan)
    return 1 - rise(motion.nanmedian(-1).values.nan_to_num(torch.inf), *STILL_PX)


def fading(luma: Tensor, before: Tensor) -> Tensor:
    """Return how far the picture fades [B], 0 to 1, by its mean luma [B] and that of the frame before."""
    return rise((luma.clamp(min=MIN_LUMA) / before.clamp(min=MIN_LUMA)).log().abs(), *FADING)


def followed(before: Tensor, now: Tensor, rigid: Tensor, still: Tensor) -> Tensor:
    """Return the evidence [B] that follows what one frame says.

    Less parallax says little against what has been shown, a picture that stands nothing; a wrong model does.
    """
    fall = EVIDENCE_STEP * (1 - rigid * (still + (1 - still) * SLOW_FALL))
    change = torch.minimum(now - before, torch.full_like(now, EVIDENCE_STEP))
    return before + torch.maximum(change, -fall)


def rise(x: Tensor, low: float, high: float) -> Tensor:
    """Return 0 on `low`'s side, 1 on `high`'s, and a cubic in between."""
    share = ((x - low) / (high - low)).clamp(0, 1)
    return share * share * (3 - 2 * share)
