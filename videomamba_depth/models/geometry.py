"""Depth from parallax inside a stream: where the camera is, and what its motion says of the depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.flow.estimators import WEIGHTLESS, FlowEstimator, both_ways, build_stream_flow
from videomamba_depth.models.camera_tracking import (
    MIN_INV_DEPTH,
    Known,
    Tracks,
    View,
    adjust,
    at_another_focal,
    find_focal,
    fit_camera,
    fit_turning_camera,
    spread_px,
)
from videomamba_depth.models.motion import Motion
from videomamba_depth.models.parallax_trust import Parallax, ParallaxTrust, clues_of
from videomamba_depth.models.photometric import Patches, compare_pictures
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.flow_utils import (
    chain_flow,
    consistency_mask,
    in_bounds_mask,
    resize_maps,
    sample_along,
    sample_px,
)
from videomamba_depth.utils.images import luma
from videomamba_depth.utils.settings import check_settings, choice, ranged

JOINT_STEPS, DEPTH_STEPS = (3, 3), 4
GRID_CELLS = 28  # grid points along the short side
COARSE = 2  # the camera is found from every n-th row and column of the grid
RELATIVE_FLOOR = 0.02  # inverse depth, in units of its mean, below which relative errors stop shrinking
MIN_METRIC_DEPTH_M = 1e-3
SHIFT_OF_LOW = -0.2  # shift of a relative teacher that is assumed, as a multiple of the first percentile
SHIFT_ERRS_ALIKE = 100.0  # what points say of it counts one part in so many: the decoder errs alike on neighbors
SHIFT_OUTLIER = 2.0  # error at which a point counts half, in standard deviations
MAX_SHIFT_STEP = 0.05
MIN_LEVEL = 0.1  # share of the mean inverse depth that a shift leaves at least
MIN_SHARE = 0.05  # of a point's depth that is due to parallax, below which it is taken for that much
MIN_NOISE_PX, MAX_NOISE_PX = 0.15, 3.0
MAX_KNOWN = 1 / 0.05**2  # information of log inverse depth that is carried at most
MAX_LOG_CORRECTION = 1.5
ENOUGH = 0.05  # confidence that is added where the correction is smoothed
SMOOTHING_CELLS = 1.5
PARALLAX = (1.25, 1.8)  # noise about a camera that stays over that about the scene: nothing believed, all believed
NOISE, NOISE_AT_PX = (0.04, 0.08), 3.0
"""Noise of the tracks over (their length + so many px) from which on less is believed, and nothing: no rigid scene."""
LOST_PX = 2.0  # noise from which on the tracks fit no camera
MIN_TRUSTED = 0.1  # share of points with a track below which a past frame is not counted
TRACKED = (0.4, 0.6)  # share of the points with a track, in some past frame: nothing believed, all believed
FADING = (
    0.03,
    0.1,
)  # change of the logarithm of mean luma in one frame: all believed, nothing: the decoder's depth changes with it
MIN_LUMA = 1 / 255
EVIDENCE_STEP = 0.15  # most that the evidence changes by from frame to frame
SLOW_FALL = 0.7  # share of it by which evidence falls more slowly where only parallax is missing
STILL_PX = (0.15, 0.5)  # median motion since the last frame: of a picture that stands, of one that moves
KEY_MOTION_PX = 1.0  # mean motion since the newest key frame below which no other is kept
KEY_TRUST = 0.5  # share of the picture that is still tracked from it below which one is
STAYS_PX, MOVES_PX, EXPECTED_PX = 0.5, 1.0, 1.5  # see `_contradictions`
STAYS_SHARE = 0.15  # of the motion that is expected
MIN_MOVING = 0.05  # share of the tracks that move, below which nothing can contradict them
CONTRADICTED = (0.08, 0.2)  # share of the tracks that contradict the rest: less is believed from here on, nothing
FLOW_ERRS_ALIKE = 100.0  # what tracks say of the focal length counts one part in so many: neighboring flow errs alike
CAMERA_KEEP = (
    0.97  # share of what is known of focal length and shift beyond what is assumed, which the next frame keeps
)
ANCHORED = 0.5  # evidence from which on unit and shift stay as they are


@dataclass(frozen=True)
class GeometrySpec:
    """How parallax corrects the depth of a stream.

    Attributes:
        short_side: of the pictures that flow is followed on, px; larger flow is averaged down.
        key_frames: how many past frames are kept besides the last one.
        every: frames from one of them to the next.
        refined: to how many of them flow is estimated anew in each frame, in turn; 0: flow to them is chained alone.
        estimator: of that flow, see `MotionSpec`.
        spread: relative standard deviation of the true inverse depth about the decoder's.
        focal: focal length over the longer side of the frame.
        focal_spread: relative standard deviation of the true one about it, which then follows the tracks; 0: known.
        shift_spread: standard deviation of the true shift of a relative decoder about the one that is assumed, in units
            of its mean inverse depth; it then follows parallax; 0: the assumed one stays.
        keep: share of what is known of a point that is still known in the next frame.
        picture_steps: in which depth is refined by comparing pictures, see `compare_pictures`; 0: it is flow's.
    """

    short_side: int = ranged(32, 8192, 112)
    key_frames: int = ranged(1, 64, 4)
    every: int = ranged(1, 64, 4)
    refined: int = ranged(0, 64, 4)
    estimator: str = choice(*WEIGHTLESS, default="inverse_search")
    spread: float = ranged(1e-6, 10, 0.3)
    focal: float = ranged(0.1, 100, 0.9)
    focal_spread: float = ranged(0, 10, 0.25)
    shift_spread: float = ranged(0, 10, 0.3)
    keep: float = ranged(0, 1, 0.9)
    picture_steps: int = ranged(0, 64, 4)

    def __post_init__(self) -> None:
        check_settings(self)


class Geometry:
    """Corrects the depth of every frame by parallax to a bounded number of past frames.

    State, in `DepthState.maps` under names that begin with "geometry.", zeros for a new stream; S = key_frames:

        flow     [B,2·S,h,w]  px, from the last frame to the key frames, newest first, chained from frame to frame
        trust    [B,S,h,w]    1 where that can be trusted, else 0
        luma     [B,S,h,w]    of the key frames
        depth    [B,1+S,h,w]  corrected inverse depth of the last frame and the key frames, in the scene's unit
        cameras  [B,2+S,3,4]  their poses, world to camera, and that of the frame before the last one
        known    [B,1,gh,gw]  information about the log inverse depth of the last frame on the grid
        scene    [B,1,1,8]    see `Scene`
    """

    def __init__(self, spec: GeometrySpec, depth_kind: DepthKind, trust: ParallaxTrust | None = None) -> None:
        self.spec, self.metric = spec, depth_kind is DepthKind.METRIC
        self.trust: Callable[[Parallax], Tensor] | None = trust
        self.flow: FlowEstimator = build_stream_flow(spec.estimator)

    @property
    def signature(self) -> str:
        """Text that names what a state must agree in."""
        return str(self.spec)

    def work_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) px that flow of that size is followed at."""
        ratio = min(1.0, self.spec.short_side / min(height, width))
        return round(height * ratio), round(width * ratio)

    def new_maps(self, batch: int, size: tuple[int, int], device: torch.device | str) -> dict[str, Tensor]:
        """Return the state of new streams whose flow comes at `size` = (h, w) px."""
        h, w = self.work_size(*size)
        rows, columns = _grid(h, w, device)
        slots = self.spec.key_frames
        shapes = {
            "flow": (2 * slots, h, w),
            "trust": (slots, h, w),
            "luma": (slots, h, w),
            "depth": (1 + slots, h, w),
            "cameras": (2 + slots, 3, 4),
            "known": (1, len(rows), len(columns)),
            "scene": (1, 1, len(Scene._fields)),
        }
        return {_NAME + name: torch.zeros(batch, *shape, device=device) for name, shape in shapes.items()}

    def at_points(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return maps `[B,1,H,W]` at the grid's points `[B,1,gh,gw]`, where flow comes at `size` = (h, w) px."""
        height, width = self.work_size(*size)
        rows, columns = _grid(height, width, maps.device)
        found = _at_points(resize_maps(maps, (height, width), average=True), rows, columns)
        return found.view(-1, 1, len(rows), len(columns))

    def __call__(
        self, depth: Tensor, clip: Tensor, maps: dict[str, Tensor], first_index: Tensor, motion: Motion
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the corrected depth `[B,N,1,H,W]` of a chunk, and its state `maps` with that of geometry replaced.

        Args:
            depth: `[B,N,1,H,W]` of the decoder. clip: `[B,N,3,H,W]` in [0, 1], of any size.
            first_index: `[B]` of the first of the N frames.
        """
        state = {name.removeprefix(_NAME): t for name, t in maps.items() if name.startswith(_NAME)}
        frames = []
        with torch.no_grad(), torch.autocast(depth.device.type, enabled=False):
            size = (state["flow"].shape[-2], state["flow"].shape[-1])
            for t in range(depth.shape[1]):
                flow, trusted = motion.frame(t, size)
                light = resize_maps(luma(clip[:, t].float()), size, average=True)
                x = depth[:, t].detach().float()
                correction, state = self._frame(x, light, flow, trusted, state, first_index + t)
                frames.append(correction)
        # The decoder's gradient passes: the correction is no thing to be learned through.
        corrected = depth + torch.stack(frames, 1).to(depth.dtype)
        return corrected, {**maps, **{_NAME + name: t for name, t in state.items()}}

    def _frame(
        self, x: Tensor, light: Tensor, flow: Tensor, trusted: Tensor, state: dict[str, Tensor], index: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what is added to the depth `x [B,1,H,W]` of one frame, and the next state.

        Args:
            light: `[B,1,h,w]`, luma. flow: `[B,2,h,w]`. trusted: `[B,1,h,w]` bool. index: `[B]` of the frame.
        """
        spec, (height, width) = self.spec, flow.shape[-2:]
        is_first = index == 0
        scene = Scene(*state["scene"].flatten(1).unbind(1))  # each [B]
        # 1. The decoder's inverse depth with a shift, in units of its mean: full, and at the flow's size.
        inverse = 1 / x.clamp(min=MIN_METRIC_DEPTH_M) if self.metric else x
        small = resize_maps(inverse, (height, width), average=True)
        low = small.flatten(1).kthvalue(max(1, height * width // 100)).values
        unit, shift, state = self._anchor(small.mean((1, 2, 3)).clamp(min=1e-6), low, scene, state, is_first)
        as_assumed, small = ((v / _4d(unit) + _4d(shift)).clamp(min=RELATIVE_FLOOR) for v in (inverse, small))
        full, base = (_shifted(v, scene.shift_change, 1 + shift) for v in (as_assumed, small))
        # 2. Flow to the last frame and, chained, to the key frames; depth there.
        assumed = torch.full_like(unit, spec.focal * max(height, width))
        view = View(torch.where(is_first, assumed, scene.focal_px), _center(x, height, width))
        chained, trust = chain_flow(state["flow"], state["trust"], flow, trusted)
        if turns := min(spec.refined, spec.key_frames):
            slots = (index[:, None] + torch.arange(turns, device=index.device)) % spec.key_frames
            chained, trust = self._refine(chained, trust, light, state["luma"], slots)
        rows, columns = _grid(height, width, x.device)
        tracks = _tracks(torch.cat([flow, chained], 1), torch.cat([trusted, trust], 1), state["depth"], rows, columns)
        mean = _at_points(base, rows, columns)
        contradict, wrong = _contradictions(tracks, mean)
        # Few are left out: they move by themselves. Of many, who is to say.
        tracks = tracks._replace(trust=tracks.trust * (1 - contradict * (1 - _3d(wrong))))
        still = 1 - _rise(_median_motion(tracks), *STILL_PX)
        # 3. What is believed of the inverse depth on the grid: of the decoder, and of the frame before.
        poses = state["cameras"][:, :-1]
        start = _start(state["cameras"][:, 0], state["cameras"][:, -1], index)
        prior = 1 / spec.spread**2
        keep = (spec.keep + (1 - spec.keep) * still)[:, None]  # nothing is forgotten before a picture that stands

        def believed(pose: Tensor, tracks: Tracks) -> tuple[Tensor, tuple[Known, Known], Tensor]:
            """Return what is known from the past, both beliefs seen from a pose, and their mean to begin with."""
            carried, known = _carried(tracks, poses, pose, view, state["known"], rows, columns)
            known = keep * known
            begin = mean * ((carried / mean).log() * known / (known + prior)).exp()
            return known, (Known(mean, prior / mean.square()), Known(carried, known / carried.square())), begin

        coarse = _coarse(len(rows), len(columns), x.device)
        few = tracks.some(coarse)
        counted = few.trust.mean(-1) > MIN_TRUSTED
        # 4. The camera: from constant velocity on by what is known of depth in the past, then together with depth here;
        #    and how well that and a camera that only turns and zooms explain the tracks.
        pose, error = fit_camera(few, poses, start, view)
        turning = spread_px(fit_turning_camera(few, poses, start, view), few.trust)
        noise = spread_px(error, few.trust)
        for steps in JOINT_STEPS:
            _, beliefs, begin = believed(pose, tracks)
            some = tuple(Known(b.mean[:, coarse], b.precision[:, coarse]) for b in beliefs)
            limited = noise.clamp(MIN_NOISE_PX, MAX_NOISE_PX)
            found = adjust(few, poses, pose, view, limited, some, begin[:, coarse], steps=steps, move=True)
            pose, noise = found.pose, spread_px(found.error_px, few.trust)
        overall = (noise * counted).sum(1) / counted.sum(1).clamp(min=1)
        length = (few.motion_px() * few.trust).sum(-1) / few.trust.sum(-1).clamp(min=1)
        relative = (noise / (length + NOISE_AT_PX) * counted).sum(1) / counted.sum(1).clamp(min=1)
        lost = ~is_first & ((overall > LOST_PX) | ~counted.any(1))
        pose = torch.where(_3d(lost), state["cameras"][:, 0], pose)
        noise = noise.clamp(MIN_NOISE_PX, MAX_NOISE_PX)
        ratio = (turning.clamp(min=MIN_NOISE_PX) / noise).log().masked_fill(~counted, 0.0).amax(1)
        tracked = _rise(few.trust.mean(-1).amax(1), *TRACKED)
        brightness = light.mean((1, 2, 3))
        fading = _rise((brightness.clamp(min=MIN_LUMA) / scene.light.clamp(min=MIN_LUMA)).log().abs(), *FADING)
        rigid = (1 - _rise(relative, *NOISE)) * (1 - wrong) * tracked * (1 - fading) * ~lost
        evidence = _rise(ratio, *(math.log(p) for p in PARALLAX)) * rigid * ~is_first
        # The focal length of the next frame.
        decoder = Known(mean[:, coarse], prior / mean[:, coarse].square())
        usable = few._replace(trust=few.trust * counted[..., None] * ~_3d(lost | is_first))
        focal_px, focal_known = self._find_focal(usable, poses, pose, view, noise, decoder, scene, evidence, is_first)
        # Less parallax says little against what has been shown, a picture that stands nothing; a wrong model does.
        fall = EVIDENCE_STEP * (1 - rigid * (still + (1 - still) * SLOW_FALL))
        change = torch.minimum(evidence - scene.evidence, torch.full_like(evidence, EVIDENCE_STEP))
        evidence = scene.evidence + torch.maximum(change, -fall)
        # 5. Inverse depth on the whole grid.
        tracks = tracks._replace(trust=tracks.trust * counted[..., None] * ~_3d(lost))
        known, beliefs, begin = believed(pose, tracks)
        by_flow = adjust(tracks, poses, pose, view, noise, beliefs, begin, steps=DEPTH_STEPS, move=False)
        keys = tracks.of_frames(1)
        patches = Patches(keys, light, state["luma"], poses[:, 1:], pose, view)
        found = compare_pictures(by_flow, keys.trust, patches, beliefs, spec.picture_steps)
        known = (found.information * found.inv_depth.square() + known).clamp(max=MAX_KNOWN)
        # 6. The correction of log inverse depth, smooth, on every pixel.
        confidence = (known / (known + prior)).unflatten(1, (1, len(rows), len(columns)))
        log_ratio = (found.inv_depth / mean).log().clamp(-MAX_LOG_CORRECTION, MAX_LOG_CORRECTION).view_as(confidence)
        correction = learned = _blur(log_ratio * confidence) / (_blur(confidence) + ENOUGH)
        if self.trust is not None:
            grid, assumed_mean = confidence.shape[-2:], _at_points(small, rows, columns)
            by_shift = (mean / assumed_mean).log()
            maps = (confidence.flatten(1), correction.flatten(1), by_shift)
            numbers = (evidence, overall.log1p(), focal_known.log1p() / 5)
            clues = clues_of(keys, poses[:, 1:], view, patches, by_flow, found, *beliefs, maps, numbers)
            clues, assumed_mean, by_shift = (
                values.unflatten(-1, grid) for values in (clues, assumed_mean[:, None], by_shift[:, None])
            )
            learned = self.trust(Parallax(clues, correction, assumed_mean, by_shift, evidence, unit, shift))
        inner = _from_grid(correction, base, (height, width), rows, columns)
        outer = _from_grid(learned, full, (height, width), rows, columns)
        log_change = _4d(evidence) * (outer + (full / as_assumed).log())
        change = x * torch.expm1(-log_change) if self.metric else _4d(unit) * as_assumed * torch.expm1(log_change)
        scene = Scene(
            unit,
            shift,
            evidence,
            overall,
            focal_px,
            lost.to(x.dtype),
            brightness,
            focal_known,
            *self._find_shift(log_ratio, confidence, mean, scene, 1 + shift, evidence, is_first),
        )
        # The cameras that are known show the same pictures at the new focal length; depth is as it was.
        cameras = at_another_focal(torch.cat([pose[:, None], state["cameras"]], 1), view.focal_px / focal_px)
        state = {**state, "cameras": cameras[:, 1:]}
        after = self._after(state, base * inner.exp(), light, chained, trust, pose, index, lost)
        known = known.view_as(confidence)
        return change, {**after, "known": known, "scene": torch.stack(scene, -1)[:, None, None]}

    def _find_focal(
        self,
        tracks: Tracks,
        poses: Tensor,
        pose: Tensor,
        view: View,
        noise_px: Tensor,
        depth: Known,
        scene: Scene,
        evidence: Tensor,
        is_first: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the focal length for the next frame and what is known of its logarithm, each `[B]`.

        It follows the tracks as far as there is evidence of parallax, and is held where there is none.
        """
        if not self.spec.focal_spread:
            return view.focal_px, torch.zeros_like(evidence)
        known = _remembered(scene.focal_known, self.spec.focal_spread, is_first)
        held = Known(view.focal_px.log(), known * FLOW_ERRS_ALIKE / evidence.clamp(min=1e-6))
        focal_px, seen = find_focal(tracks, poses, pose, view, noise_px, depth, held)
        return focal_px, known + evidence * seen / FLOW_ERRS_ALIKE

    def _find_shift(
        self,
        log_ratio: Tensor,
        confidence: Tensor,
        mean: Tensor,
        scene: Scene,
        level: Tensor,
        evidence: Tensor,
        is_first: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return by how much the decoder's shift is another than assumed, and what is known of it, each `[B]`.

        The logarithm of what parallax says over the decoder's depth would be the same everywhere, but for its errors.

        Args:
            log_ratio, confidence: `[B,1,gh,gw]`. mean: `[B,P]` of the decoder as it is shifted now.
        """
        if self.metric or not self.spec.shift_spread:
            return scene.shift_change, scene.shift_known
        change, known = scene.shift_change, _remembered(scene.shift_known, self.spec.shift_spread, is_first)
        share = confidence.flatten(1).clamp(min=MIN_SHARE)  # [B,P]
        residual = log_ratio.flatten(1) / share  # of parallax alone: the decoder's pull is undone
        variance = self.spec.spread**2 / share
        slope = (level / (level + change))[:, None] / mean  # of the logarithm of the decoder's depth, by the shift
        weight = 1 / (variance * (1 + residual.square() / (SHIFT_OUTLIER**2 * variance)))
        residual, slope = (
            v - (weight * v).sum(1, keepdim=True) / weight.sum(1, keepdim=True) for v in (residual, slope)
        )
        counted = weight * evidence[:, None] / SHIFT_ERRS_ALIKE
        known = known + (counted * slope.square()).sum(1)
        step = (counted * slope * residual).sum(1) / known
        return (change + step.clamp(-MAX_SHIFT_STEP, MAX_SHIFT_STEP)).clamp(min=(MIN_LEVEL - 1) * level), known

    def _anchor(
        self, mean: Tensor, low: Tensor, scene: Scene, state: dict[str, Tensor], is_first: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return unit and shift `[B]`, and the state in them: they follow the decoder until parallax is believed.

        So a shot that fades in from black does not keep those of its first, dark frame.

        Args:
            mean, low: `[B]`, of this frame's inverse depth in the decoder's unit, and its first percentile.
        """
        follow = torch.where(is_first, 1.0, (1 - scene.evidence / ANCHORED).clamp(min=0))
        unit = scene.unit + follow * (mean - scene.unit)
        now = torch.zeros_like(low) if self.metric else SHIFT_OF_LOW * low / unit
        shift = scene.shift + follow * (now - scene.shift)
        scale = torch.where(is_first, 1.0, scene.unit / unit)
        depth = (state["depth"] * _4d(scale) + _4d(shift - scale * scene.shift)).clamp(min=MIN_INV_DEPTH)
        rotation, translation = state["cameras"].split([3, 1], -1)
        cameras = torch.cat([rotation, translation / _4d(scale)], -1)
        return unit, shift, {**state, "depth": depth, "cameras": cameras}

    def _refine(
        self, chained: Tensor, trust: Tensor, light: Tensor, past: Tensor, slots: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return flow and trust with those to some key frames per stream, `slots [B,R]`, estimated from the chain on.

        The key frames are warped by the chain and the estimator asked for the rest, so that large motion stays within
        its reach, and the chain's errors do not add up.
        """
        streams, shape = torch.arange(len(slots), device=slots.device)[:, None], slots.shape
        flows = chained.unflatten(1, (trust.shape[1], 2))
        start, seen = flows[streams, slots].flatten(0, 1), trust[streams, slots].flatten(0, 1)[:, None]
        warped = sample_along(past[streams, slots].flatten(0, 1)[:, None], start)
        now = light.repeat_interleave(shape[1], 0)
        rest, back = both_ways(self.flow, now.expand(-1, 3, -1, -1), warped.expand(-1, 3, -1, -1))
        refined = rest + sample_along(start, rest)  # [B·R,2,h,w]
        seen = seen * consistency_mask(rest, back) * in_bounds_mask(refined)
        flows = flows.index_put((streams, slots), refined.unflatten(0, shape))
        return flows.flatten(1, 2), trust.index_put((streams, slots), seen[:, 0].unflatten(0, shape))

    def _after(
        self,
        state: dict[str, Tensor],
        depth: Tensor,
        light: Tensor,
        chained: Tensor,
        trust: Tensor,
        pose: Tensor,
        index: Tensor,
        lost: Tensor,
    ) -> dict[str, Tensor]:
        """Return the next state of those: the frame is now the last one and, in its turn, a key frame."""
        since = (chained[:, :2].square().sum(1, keepdim=True).sqrt() * trust[:, :1]).sum((1, 2, 3))
        seen = trust[:, :1].mean((1, 2, 3))
        moved = (since > KEY_MOTION_PX * trust[:, :1].sum((1, 2, 3))) | (seen < KEY_TRUST)
        is_key = _4d((index % self.spec.every == 0) & moved | lost)
        trust = trust * ~_4d(lost)  # nothing before is known any more
        keys, poses = state["depth"][:, 1:], state["cameras"]
        pose = pose[:, None]
        flow = torch.where(is_key, torch.cat([torch.zeros_like(chained[:, :2]), chained[:, :-2]], 1), chained)
        trust = torch.where(is_key, torch.cat([torch.ones_like(trust[:, :1]), trust[:, :-1]], 1), trust)
        past = torch.where(is_key, torch.cat([light, state["luma"][:, :-1]], 1), state["luma"])
        keys = torch.where(is_key, torch.cat([depth, keys[:, :-1]], 1), keys)
        cameras = torch.where(is_key, torch.cat([pose, poses[:, 1:-2]], 1), poses[:, 1:-1])
        return {
            "flow": flow,
            "trust": trust,
            "luma": past,
            "depth": torch.cat([depth, keys], 1),
            "cameras": torch.cat([pose, cameras, poses[:, :1]], 1),
        }


class Scene(NamedTuple):
    """What a stream knows of its camera besides poses, each `[B]`.

    unit: mean inverse depth, in the decoder's unit, when parallax was first believed. shift: of the decoder's, in it.
    evidence: of parallax, 0 to 1. noise_px: of the tracks about the scene. focal_px: at the flow's size. lost: 1 where
    the tracks fit no camera, and geometry starts again from this frame. light: mean luma of the last frame.
    focal_known: about the logarithm of the focal length, 1 / variance. shift_change: by how much the decoder's shift is
    another than `shift`, in the unit; shift_known: about it, 1 / variance.
    """

    unit: Tensor
    shift: Tensor
    evidence: Tensor
    noise_px: Tensor
    focal_px: Tensor
    lost: Tensor
    light: Tensor
    focal_known: Tensor
    shift_change: Tensor
    shift_known: Tensor


_NAME = "geometry."
FLOW, CAMERAS, SCENE = (_NAME + name for name in ("flow", "cameras", "scene"))


def _grid(height: int, width: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return rows and columns, px, of the points at the centers of square cells."""
    step = _step(height, width)
    return torch.arange(step // 2, height, step, device=device), torch.arange(step // 2, width, step, device=device)


def _step(height: int, width: int) -> int:
    return max(1, round(min(height, width) / GRID_CELLS))


def _coarse(rows: int, columns: int, device: torch.device) -> Tensor:
    first, second = (torch.arange(COARSE // 2, n, COARSE, device=device) for n in (rows, columns))
    return (first[:, None] * columns + second).flatten()


def _on(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return maps [...,h,w] at the grid's points [...,P]."""
    return maps[..., rows[:, None], columns].flatten(-2)


def _at_points(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the mean of maps `[B,1,h,w]` around the grid's points `[B,P]`."""
    return _on(F.avg_pool2d(maps, 3, 1, 1, count_include_pad=False), rows, columns)[:, 0]


def _tracks(flow: Tensor, trust: Tensor, depth: Tensor, rows: Tensor, columns: Tensor) -> Tracks:
    """Return the tracks of the grid's points for flow `[B,2·S,h,w]`, trust and depth `[B,S,h,w]`."""
    y, x = torch.meshgrid(rows.to(flow.dtype), columns.to(flow.dtype), indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()])  # [2,P]
    slots = depth.shape[1]
    found = points + _on(flow, rows, columns).unflatten(1, (slots, 2))  # [B,S,2,P]
    seen = sample_px(depth.flatten(0, 1)[:, None], found.flatten(0, 1).mT[:, None])[:, 0, 0]
    inv_depth = seen.view(*depth.shape[:2], -1).clamp(min=MIN_INV_DEPTH)
    return Tracks(points.expand(len(flow), 2, -1), found, inv_depth, _on(trust, rows, columns).to(flow.dtype))


def _median_motion(tracks: Tracks) -> Tensor:
    """Return the median motion `[B]` px of points since the last frame; infinity where none is trusted."""
    motion = torch.where(tracks.trust[:, 0] > 0, tracks.motion_px()[:, 0], torch.nan)
    return motion.nanmedian(-1).values.nan_to_num(torch.inf)


def _contradictions(tracks: Tracks, inv_depth: Tensor) -> tuple[Tensor, Tensor]:
    """Return which tracks `[B,S,P]` stay in place though at their depth they had to move, and how far that is too many.

    Others move; were all of it one rigid scene, points that are as near had to do so too, and only where the camera
    turns just as it walks do they stay. Those that stay belong to the scene and the others move by themselves, or, seen
    from a camera that goes along with them, the other way round. What is far may stay.

    Args:
        inv_depth: `[B,P]` of the decoder.

    Returns:
        1 or 0 of each track; and `[B]`, 0: few are of that kind, 1: many.
    """
    motion, trusted = tracks.motion_px(), tracks.trust > 0
    count = trusted.sum(-1)
    moves = trusted & (motion > MOVES_PX)
    per_depth = torch.where(moves, motion / inv_depth[:, None], torch.nan).nanmedian(-1, keepdim=True).values
    expected = per_depth * inv_depth[:, None]
    stays = trusted & (motion < (STAYS_SHARE * expected).clamp(max=STAYS_PX)) & (expected > EXPECTED_PX)
    enough = (moves.sum(-1) > MIN_MOVING * count) & (count > MIN_TRUSTED * trusted.shape[-1])
    stays = (stays & enough[..., None]).to(motion.dtype)
    return stays, _rise((stays.sum(-1) / count.clamp(min=1)).amax(1), *CONTRADICTED)


def _start(last: Tensor, before: Tensor, index: Tensor) -> Tensor:
    """Return the pose `[B,3,4]` at constant velocity; the first camera is where the world begins."""
    turn = last[..., :3] @ before[..., :3].mT
    ahead = torch.cat([turn @ last[..., :3], turn @ (last[..., 3:] - before[..., 3:]) + last[..., 3:]], -1)
    eye = torch.eye(3, 4, dtype=last.dtype, device=last.device).expand_as(last)
    return torch.where(_3d(index == 0), eye, torch.where(_3d(index == 1), last, ahead))


def _carried(
    tracks: Tracks, poses: Tensor, pose: Tensor, view: View, known: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the inverse depth `[B,P]` of what the last frame has at the points, seen from now, and what is known."""
    turn = pose[..., :3] @ poses[:, 0, :, :3].mT
    forward = (pose[..., 2:, 3:] - turn[..., 2:, :] @ poses[:, 0, :, 3:])[..., 0]  # [B,1]
    depth, found = tracks.inv_depth[:, 0], tracks.found_px[:, 0]
    z = (turn[..., 2:, :] @ view.rays(found))[:, 0] + depth * forward
    seen = sample_px(known, _to_grid(found.mT[:, None], rows, columns))[:, 0, 0]
    inside = (z > 0.05) * tracks.trust[:, 0]
    return (depth / z.clamp(min=0.05)).clamp(min=MIN_INV_DEPTH), seen * inside


def _to_grid(points_px: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return points (x, y) px [...,2] in units of the grid."""
    step = rows[1] - rows[0]
    return (points_px - rows[0]) / step


def _from_grid(values: Tensor, like: Tensor, size: tuple[int, int], rows: Tensor, columns: Tensor) -> Tensor:
    """Return values `[B,1,gh,gw]` of the grid, which is of pictures of `size`, at every pixel of `like [B,1,H,W]`."""
    y, x = (
        (torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) * (m / n) - 0.5
        for n, m in zip(like.shape[-2:], size, strict=True)
    )
    y, x = torch.meshgrid(y, x, indexing="ij")
    points = _to_grid(torch.stack([x, y], -1), rows, columns)
    return sample_px(values, points.expand(len(values), *points.shape))


def _blur(values: Tensor) -> Tensor:
    """Return a Gaussian mean over the grid of `[B,1,gh,gw]`, borders continued."""
    radius = math.ceil(2 * SMOOTHING_CELLS)
    offsets = torch.arange(-radius, radius + 1, device=values.device, dtype=values.dtype)
    kernel = (-0.5 * (offsets / SMOOTHING_CELLS).square()).exp()
    kernel = kernel / kernel.sum()
    padded = F.pad(values, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def _center(like: Tensor, height: int, width: int) -> Tensor:
    return torch.stack([like.new_full((), (width - 1) / 2), like.new_full((), (height - 1) / 2)])


def _rise(x: Tensor, low: float, high: float) -> Tensor:
    """Return 0 on `low`'s side, 1 on `high`'s, and a cubic in between."""
    share = ((x - low) / (high - low)).clamp(0, 1)
    return share * share * (3 - 2 * share)


def _remembered(known: Tensor, spread: float, is_first: Tensor) -> Tensor:
    """Return what a frame still knows, 1 / variance `[B]`, of what was assumed within `spread`."""
    least = 1 / spread**2
    return torch.where(is_first, least, least + CAMERA_KEEP * (known - least))


def _shifted(inv_depth: Tensor, change: Tensor, level: Tensor) -> Tensor:
    """Return inverse depth `[B,1,H,W]` with another shift, and the same where it is at `level [B]`."""
    return ((inv_depth + _4d(change)) * _4d(level / (level + change))).clamp(min=RELATIVE_FLOOR)


def _3d(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def _4d(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
