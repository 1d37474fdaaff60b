"""Depth from parallax inside a stream: where the camera is, and what its motion says of the depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from videomamba_depth.flow.estimators import WEIGHTLESS, FlowEstimator, both_ways, build_stream_flow
from videomamba_depth.models.camera_tracking import (
    MIN_INV_DEPTH,
    Known,
    Tracks,
    View,
    adjust,
    at_another_focal,
    find_focal,
    seen_from_another,
)
from videomamba_depth.models.decoder_fit import DecoderFit
from videomamba_depth.models.motion import Motion
from videomamba_depth.models.parallax_evidence import (
    DECODER_ERRS_ALIKE,
    DECODER_OUTLIER,
    LOST_PX,
    FoundCamera,
    Past,
    fading,
    find_camera,
    followed,
    of_the_scene,
    rise,
    stillness,
)
from videomamba_depth.models.parallax_trust import Parallax, ParallaxTrust, clues_of
from videomamba_depth.models.photometric import Patches, compare_pictures
from videomamba_depth.models.point_grid import PointGrid, blur
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

DEPTH_STEPS = 4
RELATIVE_FLOOR = 0.02  # inverse depth, in units of its mean, below which relative errors stop shrinking
MIN_METRIC_DEPTH_M = 1e-3
SHIFT_OF_LOW = -0.2  # shift of a relative teacher that is assumed, as a multiple of the first percentile
MAX_SHIFT_STEP = 0.05
SHIFT_BELIEVED = (1.5, 2.5)  # standard deviations of it from what was assumed: all believed, nothing
MIN_LEVEL = 0.1  # share of the mean inverse depth that a shift leaves at least
MIN_SHARE = 0.05  # of a point's depth that is due to parallax, below which it is taken for that much
MAX_KNOWN = 1 / 0.05**2  # information of log inverse depth that is carried at most
MAX_LOG_CORRECTION = 1.5
ENOUGH = 0.05  # confidence that is added where the correction is smoothed
KEY_MOTION_PX = 1.0  # mean motion since the newest key frame below which no other is kept
KEY_TRUST = 0.5  # share of the picture that is still tracked from it below which one is
FLOW_ERRS_ALIKE = 100.0  # what tracks say of the focal length counts one part in so many: neighboring flow errs alike
CAMERA_KEEP = 0.97
"""Share of what is known of focal length and shift beyond what is assumed, which the next frame keeps."""
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
        level_spread: of the true level of the decoder's inverse depth in a frame about the one that it says, which then
            follows the frames before; 0: the decoder's stays.
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
    level_spread: float = ranged(0, 10, 0.2)
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
        fit      [B,1,1,6]    see `DecoderFit`
        scene    [B,1,1,10]   see `Scene`
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
        slots, grid = self.spec.key_frames, PointGrid.of((h, w), device)
        shapes = {
            "flow": (2 * slots, h, w),
            "trust": (slots, h, w),
            "luma": (slots, h, w),
            "depth": (1 + slots, h, w),
            "cameras": (2 + slots, 3, 4),
            "known": (1, *grid.shape),
            "fit": (1, 1, len(DecoderFit._fields)),
            "scene": (1, 1, len(Scene._fields)),
        }
        return {_NAME + name: torch.zeros(batch, *shape, device=device) for name, shape in shapes.items()}

    def at_points(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return maps `[B,1,H,W]` at the grid's points `[B,1,gh,gw]`, where flow comes at `size` = (h, w) px."""
        size = self.work_size(*size)
        grid = PointGrid.of(size, maps.device)
        return grid.maps(grid.around(resize_maps(maps, size, average=True)))

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
        size, is_first = (flow.shape[-2], flow.shape[-1]), index == 0
        scene = Scene(*state["scene"].flatten(1).unbind(1))  # each [B]
        decoded, state = self._decoded(x, size, scene, state, is_first)
        assumed = torch.full_like(decoded.unit, self.spec.focal * max(size))
        view = View(torch.where(is_first, assumed, scene.focal_px), _center(x, *size))
        chained, trust = self._chained(flow, trusted, light, state, index)
        grid = PointGrid.of(size, x.device)
        mean = grid.around(decoded.small)
        tracks = _tracks(torch.cat([flow, chained], 1), torch.cat([trusted, trust], 1), state["depth"], grid)
        tracks, contradicted = of_the_scene(tracks, mean)
        # The camera, and what speaks for parallax.
        still = stillness(tracks)
        keep = self.spec.keep + (1 - self.spec.keep) * still  # nothing is forgotten before a picture that stands
        past = Past(
            poses=state["cameras"][:, :-1],
            view=view,
            known=_4d(keep) * state["known"],
            decoder=mean,
            prior=1 / self.spec.spread**2,
            level_spread=self.spec.level_spread,
            grid=grid,
        )
        camera = find_camera(tracks, past, _start(state["cameras"][:, 0], state["cameras"][:, -1], index))
        noise_px, brightness = camera.mean(camera.noise_px), light.mean((1, 2, 3))
        lost = ~is_first & ((noise_px > LOST_PX) | ~camera.counted.any(1))
        pose = torch.where(_3d(lost), state["cameras"][:, 0], camera.pose)
        noise = camera.limited_px
        rigid = camera.rigid() * (1 - contradicted) * (1 - fading(brightness, scene.light)) * ~lost
        rigid = rigid * self._believed_shift(scene)
        evidence = camera.parallax() * rigid * ~is_first
        counted = camera.counted[..., None] * ~_3d(lost)
        focal_px, focal_known = self._find_focal(camera, counted, past, pose, noise, scene, evidence, is_first)
        evidence = followed(scene.evidence, evidence, rigid, still)
        # Inverse depth on the whole grid, by flow, then by pictures.
        tracks = tracks._replace(trust=tracks.trust * counted)
        expected = past.seen_from(pose, tracks)
        decoded, beliefs = decoded.at_level(expected.level), expected.beliefs
        by_flow = adjust(
            tracks, past.poses, pose, view, noise, beliefs, expected.inv_depth, steps=DEPTH_STEPS, move=False
        )
        keys = tracks.of_frames(1)
        patches = Patches(keys, light, state["luma"], past.poses[:, 1:], pose, view)
        found = compare_pictures(by_flow, keys.trust, patches, beliefs, self.spec.picture_steps)
        known = (found.information * found.inv_depth.square() + expected.known).clamp(max=MAX_KNOWN)
        # The correction of its logarithm, smooth.
        confidence = grid.maps(known / (known + past.prior))
        log_ratio = (found.inv_depth / expected.decoder.mean).log()
        log_ratio = grid.maps(log_ratio.clamp(-MAX_LOG_CORRECTION, MAX_LOG_CORRECTION))
        correction = blur(log_ratio * confidence) / (blur(confidence) + ENOUGH)
        assumed_mean = grid.around(decoded.small_as_assumed)
        by_scene = (expected.decoder.mean / assumed_mean).log()
        clues = correction[:, :0]
        if self.trust is not None:
            maps = (confidence.flatten(1), correction.flatten(1), by_scene)
            numbers = (evidence, noise_px.log1p(), focal_known.log1p() / 5)
            clues = grid.maps(clues_of(keys, past.poses[:, 1:], view, patches, by_flow, found, *beliefs, maps, numbers))
        on_grid = (clues, correction, grid.maps(assumed_mean), grid.maps(by_scene))
        parallax = Parallax(*on_grid, evidence, decoded.unit, decoded.shift)
        fit = DecoderFit(*state["fit"].flatten(1).unbind(1))
        known_there = keys._replace(trust=keys.trust * confidence.flatten(1)[:, None])
        change, fit = self._shown(x, decoded, parallax, fit, known_there, past, pose)
        corrected = decoded.small * grid.spread(correction, decoded.small).exp()
        # The cameras that are known show the same pictures at the new focal length; depth is as it was.
        cameras = at_another_focal(torch.cat([pose[:, None], state["cameras"]], 1), view.focal_px / focal_px)
        state = {**state, "cameras": cameras[:, 1:]}
        after, is_key = self._after(state, corrected, light, chained, trust, pose, index, lost)
        fit = fit.after_frame(is_first, is_key, lost)
        scene = Scene(
            decoded.unit,
            decoded.shift,
            evidence,
            noise_px,
            focal_px,
            lost.to(x.dtype),
            brightness,
            focal_known,
            *self._find_shift(log_ratio, confidence, mean, scene, 1 + decoded.shift, evidence, is_first),
        )
        after = {**after, "fit": torch.stack(fit, -1)[:, None, None], "scene": torch.stack(scene, -1)[:, None, None]}
        return change, {**after, "known": grid.maps(known)}

    def _decoded(
        self, x: Tensor, size: tuple[int, int], scene: Scene, state: dict[str, Tensor], is_first: Tensor
    ) -> tuple[Decoded, dict[str, Tensor]]:
        """Return what the decoder says of a frame of depth `x [B,1,H,W]`, and the state in its unit and shift."""
        inverse = 1 / x.clamp(min=MIN_METRIC_DEPTH_M) if self.metric else x
        small = resize_maps(inverse, size, average=True)
        low = small.flatten(1).kthvalue(max(1, size[0] * size[1] // 100)).values
        unit, shift, state = self._anchor(small.mean((1, 2, 3)).clamp(min=1e-6), low, scene, state, is_first)
        as_assumed, small = ((v / _4d(unit) + _4d(shift)).clamp(min=RELATIVE_FLOOR) for v in (inverse, small))
        full, base = (_shifted(v, scene.shift_change, 1 + shift) for v in (as_assumed, small))
        return Decoded(as_assumed, full, small, base, unit, shift), state

    def _chained(
        self, flow: Tensor, trusted: Tensor, light: Tensor, state: dict[str, Tensor], index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return flow `[B,2·S,h,w]` to the key frames and where it is trusted `[B,S,h,w]`."""
        chained, trust = chain_flow(state["flow"], state["trust"], flow, trusted)
        turns = min(self.spec.refined, self.spec.key_frames)
        if not turns:
            return chained, trust
        slots = (index[:, None] + torch.arange(turns, device=index.device)) % self.spec.key_frames
        return self._refine(chained, trust, light, state["luma"], slots)

    def _shown(
        self,
        x: Tensor,
        decoded: Decoded,
        parallax: Parallax,
        fit: DecoderFit,
        keys: Tracks,
        past: Past,
        pose: Tensor,
    ) -> tuple[Tensor, DecoderFit]:
        """Return what is added to depth `x [B,1,H,W]`, and the fit with this frame.

        Args:
            keys: points in the key frames, trusted as far as their depth is known here.
        """
        shown = parallax.shown(parallax.correction if self.trust is None else self.trust(parallax))
        change = self._changed(x, decoded, past.grid.spread(shown, decoded.full), parallax.evidence)
        if self.metric:
            return change, fit
        fit = self._fitted(fit, parallax, parallax.in_scene(shown).flatten(1), keys, past, pose)
        return change + fit.added(x + change, parallax.evidence), fit

    def _fitted(
        self, fit: DecoderFit, parallax: Parallax, corrected: Tensor, keys: Tracks, past: Past, pose: Tensor
    ) -> DecoderFit:
        """Return the fit with a frame of corrected inverse depth `[B,P]`, in the scene's unit."""
        slots, streams = keys.trust.shape[1], torch.arange(len(fit.slot), device=fit.slot.device)
        slot = fit.slot.long().clamp(max=slots - 1)
        first_pose = past.poses[:, 1:][streams, slot]
        at_first, in_front = seen_from_another(past.view, first_pose, pose, keys.points_px, corrected)
        trust = keys.trust[streams, slot] * in_front * (fit.slot < slots)[:, None]
        decoder = torch.cat([keys.inv_depth[streams, slot], parallax.inv_depth.flatten(1)], 1)
        corrected = torch.cat([at_first, corrected], 1)
        share = torch.cat([trust, 1 - trust], 1) / trust.shape[1]
        in_unit = parallax.in_decoders_unit
        return fit.with_frame(in_unit(decoder), in_unit(corrected), share, parallax.evidence)

    def _changed(self, x: Tensor, decoded: Decoded, correction: Tensor, evidence: Tensor) -> Tensor:
        """Return what is added to depth `x [B,1,H,W]` for a correction of the logarithm of its inverse `[B,1,H,W]`."""
        log_change = _4d(evidence) * (correction + (decoded.full / decoded.full_as_assumed).log())
        if self.metric:
            return x * torch.expm1(-log_change)
        return _4d(decoded.unit) * decoded.full_as_assumed * torch.expm1(log_change)

    def _find_focal(
        self,
        camera: FoundCamera,
        counted: Tensor,
        past: Past,
        pose: Tensor,
        noise_px: Tensor,
        scene: Scene,
        evidence: Tensor,
        is_first: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the focal length for the next frame and what is known of its logarithm, each `[B]`.

        It follows the tracks as far as there is evidence of parallax, and is held where there is none.

        Args:
            counted: `[B,S,1]` bool, past frames that count.
        """
        focal_px = past.view.focal_px
        if not self.spec.focal_spread:
            return focal_px, torch.zeros_like(evidence)
        known = _remembered(scene.focal_known, self.spec.focal_spread, is_first)
        held = Known(focal_px.log(), known * FLOW_ERRS_ALIKE / evidence.clamp(min=1e-6))
        tracks = camera.tracks._replace(trust=camera.tracks.trust * counted * ~_3d(is_first))
        mean = past.decoder[:, camera.points]
        depth = Known(mean, past.prior / mean.square())
        focal_px, seen = find_focal(tracks, past.poses, pose, past.view, noise_px, depth, held)
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
        weight = 1 / (variance * (1 + residual.square() / (DECODER_OUTLIER**2 * variance)))
        residual, slope = (
            v - (weight * v).sum(1, keepdim=True) / weight.sum(1, keepdim=True) for v in (residual, slope)
        )
        counted = weight * evidence[:, None] / DECODER_ERRS_ALIKE
        known = known + (counted * slope.square()).sum(1)
        step = (counted * slope * residual).sum(1) / known
        return (change + step.clamp(-MAX_SHIFT_STEP, MAX_SHIFT_STEP)).clamp(min=(MIN_LEVEL - 1) * level), known

    def _believed_shift(self, scene: Scene) -> Tensor:
        """Return how far the shift that was found is one that was to be expected [B]: 0, not at all, to 1."""
        if not self.spec.shift_spread:
            return torch.ones_like(scene.shift_change)
        return 1 - rise(scene.shift_change.abs() / self.spec.shift_spread, *SHIFT_BELIEVED)

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
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the next state of those, and whether the frame is a key frame now [B]; it is the last one."""
        since = (chained[:, :2].square().sum(1, keepdim=True).sqrt() * trust[:, :1]).sum((1, 2, 3))
        seen = trust[:, :1].mean((1, 2, 3))
        moved = (since > KEY_MOTION_PX * trust[:, :1].sum((1, 2, 3))) | (seen < KEY_TRUST)
        new_key = (index % self.spec.every == 0) & moved | lost
        is_key = _4d(new_key)
        trust = trust * ~_4d(lost)  # nothing before is known any more
        keys, poses = state["depth"][:, 1:], state["cameras"]
        pose = pose[:, None]
        flow = torch.where(is_key, torch.cat([torch.zeros_like(chained[:, :2]), chained[:, :-2]], 1), chained)
        trust = torch.where(is_key, torch.cat([torch.ones_like(trust[:, :1]), trust[:, :-1]], 1), trust)
        past = torch.where(is_key, torch.cat([light, state["luma"][:, :-1]], 1), state["luma"])
        keys = torch.where(is_key, torch.cat([depth, keys[:, :-1]], 1), keys)
        cameras = torch.where(is_key, torch.cat([pose, poses[:, 1:-2]], 1), poses[:, 1:-1])
        after = {
            "flow": flow,
            "trust": trust,
            "luma": past,
            "depth": torch.cat([depth, keys], 1),
            "cameras": torch.cat([pose, cameras, poses[:, :1]], 1),
        }
        return after, new_key


class Decoded(NamedTuple):
    """What the decoder says of a frame: its inverse depth with a shift, in units of its mean.

    full_as_assumed: [B,1,H,W], with the shift that was assumed at first. full: with the one that was found since, at
    the frame's level.
    small_as_assumed, small: the same at the flow's size, [B,1,h,w]. unit: that mean, [B]. shift: the assumed one, [B].
    """

    full_as_assumed: Tensor
    full: Tensor
    small_as_assumed: Tensor
    small: Tensor
    unit: Tensor
    shift: Tensor

    def at_level(self, level: Tensor) -> Decoded:
        """Return it where its logarithm is larger by `level [B]` than it says."""
        factor = _4d(level.exp())
        return self._replace(full=self.full * factor, small=self.small * factor)


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
FLOW, CAMERAS, SCENE, FIT = (_NAME + name for name in ("flow", "cameras", "scene", "fit"))


def _tracks(flow: Tensor, trust: Tensor, depth: Tensor, grid: PointGrid) -> Tracks:
    """Return the tracks of the grid's points for flow `[B,2·S,h,w]`, trust and depth `[B,S,h,w]`."""
    points, slots = grid.points_px(flow), depth.shape[1]
    found = points + grid.at(flow).unflatten(1, (slots, 2))  # [B,S,2,P]
    seen = sample_px(depth.flatten(0, 1)[:, None], found.flatten(0, 1).mT[:, None])[:, 0, 0]
    inv_depth = seen.view(*depth.shape[:2], -1).clamp(min=MIN_INV_DEPTH)
    return Tracks(points.expand(len(flow), 2, -1), found, inv_depth, grid.at(trust).to(flow.dtype))


def _start(last: Tensor, before: Tensor, index: Tensor) -> Tensor:
    """Return the pose `[B,3,4]` at constant velocity; the first camera is where the world begins."""
    turn = last[..., :3] @ before[..., :3].mT
    ahead = torch.cat([turn @ last[..., :3], turn @ (last[..., 3:] - before[..., 3:]) + last[..., 3:]], -1)
    eye = torch.eye(3, 4, dtype=last.dtype, device=last.device).expand_as(last)
    return torch.where(_3d(index == 0), eye, torch.where(_3d(index == 1), last, ahead))


def _center(like: Tensor, height: int, width: int) -> Tensor:
    return torch.stack([like.new_full((), (width - 1) / 2), like.new_full((), (height - 1) / 2)])


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
