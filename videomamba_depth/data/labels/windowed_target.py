"""Offline targets of a video of any length, window by window, at constant memory.

A shot is worked out in windows of `WINDOW` frames that share `OVERLAP` with the window before. Every window finds its
own scale and shift (metric depth: scale) and its own cameras, so that each is brought to the one before on the frames
that both know, and there one is faded into the other. Errors of many seams would add up: what a seam changes is taken
back over some `PULL_FRAMES`, toward the scale and shift that the window has by itself, the teacher's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from videomamba_depth.data.labels.geometry import GeometricShot, correct_shot, shot_cuts
from videomamba_depth.data.labels.geometry.target import FOCAL_OF_LONG_SIDE, MIN_METRIC_DEPTH_M
from videomamba_depth.data.labels.stabilize import stabilize_clip
from videomamba_depth.flow.estimators import FlowEstimator, PairsOnce
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.metrics import robust_scale_and_shift

WINDOW, OVERLAP = 64, 24  # frames
MARGIN = 4  # frames at either end of an overlap that are one window's alone: its end sees to one side only
PULL_FRAMES = 1000.0
MAX_SCALE = 3.0  # of a window to the one before; what asks for more is no scale
_SAMPLES = 20_000  # pixels that a seam is fitted on, at most


class TargetCamera(NamedTuple):
    """Camera of a frame; the world is that of the first frame of its shot.

    rotation [3,3], position [3]: camera to world, float64, in meters for metric depth, else in units of 1 / the mean
    inverse depth of the teacher in the shot's first window. focal: in px of the depth map. evidence: of parallax, 0 to
    1; at 0 the camera is held where it was. lost: there is no camera either; its rotation is held too.
    """

    rotation: np.ndarray
    position: np.ndarray
    focal: float
    evidence: float
    lost: bool


class TargetFrame(NamedTuple):
    """The target [H,W] of a frame, float32 on the device of the video, its camera, and whether a shot begins with it.

    camera: None for targets without geometry.
    """

    depth: Tensor
    camera: TargetCamera | None
    begins_shot: bool


class WindowedTarget:
    """Frames and their teacher's depth go in, targets come out, later, in the same order.

    A shot of at most `WINDOW` frames has the target that `geometric_clip` or `stabilize_clip` gives it alone.

    Args:
        flow: the estimator. depth_kind: of the teacher.
        geometry: correct the depth by parallax; False: stabilize it alone.
        radius, sigma: see `stabilize_clip`.
        cuts: find cuts; False: shots begin only where `add` is told so.
        window, overlap: frames.
    """

    def __init__(
        self,
        flow: FlowEstimator,
        depth_kind: DepthKind,
        *,
        geometry: bool = True,
        radius: int = 8,
        sigma: float = 5.0,
        cuts: bool = True,
        window: int = WINDOW,
        overlap: int = OVERLAP,
    ) -> None:
        if not 2 * MARGIN < overlap <= window // 2:
            raise ValueError(f"overlap must be above {2 * MARGIN} and at most half of window={window}; got {overlap}")
        self._flow, self._kind, self._geometry, self._cuts = flow, depth_kind, geometry, cuts
        self._radius, self._sigma, self._window, self._overlap = radius, sigma, window, overlap
        self._frames: list[tuple[Tensor, Tensor]] = []  # rgb [3,H,W] and depth [H,W] of what is not finished
        self._seam: _Window | None = None  # what the window before made of the first `overlap` of them
        self._known_whole = 0  # frames up to which no cut is

    def add(self, rgb: Tensor, depth: Tensor, *, begins_shot: bool = False) -> list[TargetFrame]:
        """Take in the next frame; return the targets that are finished by it, in order, often none.

        Args:
            rgb: [3,H,W] in [0,1], what the teacher saw. depth: [H,W], the teacher's, of that size.
            begins_shot: nothing connects it with the frame before.
        """
        done = self._finish_shots() if begins_shot else []
        self._frames.append((rgb, depth.float()))
        if len(self._frames) > self._window:  # one more than it takes: whether that begins a shot can be told
            done += self._advance()
        return done

    def finish(self) -> list[TargetFrame]:
        """Return the targets of all frames that are left."""
        return self._finish_shots()

    def _advance(self) -> list[TargetFrame]:
        cut = self._first_cut(at_end=False)
        if cut is not None:
            return self._end_shot(cut)
        done = self._emit(self._solve(self._window), self._window - self._overlap)
        self._known_whole = self._overlap - 1
        return done

    def _finish_shots(self) -> list[TargetFrame]:
        done = []
        while self._frames:
            cut = self._first_cut(at_end=True)
            done += self._end_shot(len(self._frames) if cut is None else cut)
        return done

    def _first_cut(self, at_end: bool) -> int | None:
        if not self._cuts or len(self._frames) < 2:
            return None
        found = shot_cuts(torch.stack([rgb for rgb, _ in self._frames]), self._flow)
        last = len(self._frames) - (1 if at_end else 2)  # flicker is told from a cut by the frame after
        return next((t for t in found if self._known_whole < t <= last), None)

    def _end_shot(self, count: int) -> list[TargetFrame]:
        """Return the targets of a shot's last `count` frames, and forget the shot."""
        nothing_new = self._seam is not None and count <= self._overlap
        window = self._seam if self._seam is not None and nothing_new else self._solve(count)
        done = self._emit(window, count)
        self._seam, self._known_whole = None, 0
        return done

    def _emit(self, window: _Window, count: int) -> list[TargetFrame]:
        """Return the first `count` frames of a window and keep what it knows of the others as the seam."""
        starts = self._seam is None
        done = [
            TargetFrame(window.depth[i], window.cameras[i] if self._geometry else None, starts and i == 0)
            for i in range(count)
        ]
        self._seam = window.after(count)
        del self._frames[:count]
        return done

    def _solve(self, count: int) -> _Window:
        """Return what the first `count` frames say, brought to the window before and faded in."""
        rgb, depth = (torch.stack(maps[:count]) for maps in zip(*self._frames, strict=True))
        flow = PairsOnce(self._flow)
        shot = GeometricShot(depth, None, 0.0)
        if self._geometry:
            shot = correct_shot(depth, rgb, flow, self._kind)
        smooth = stabilize_clip(
            shot.depth[:, None], rgb, flow, radius=self._radius, sigma=self._sigma, depth_kind=self._kind
        )[:, 0]
        size = (smooth.shape[-2], smooth.shape[-1])
        if self._seam is None:
            return _Window(smooth, *_cameras(shot, _unit(depth, self._kind), size, self._kind, None))
        seam, shared = self._seam, len(self._seam.depth)
        scale, shift = _fit(smooth[:shared], seam.depth, self._kind)
        age = torch.arange(count, device=smooth.device) - shared
        share = torch.exp(-age.clamp(min=0) / PULL_FRAMES)[:, None, None]
        smooth = smooth * scale**share + shift * share
        fade = ((torch.arange(shared, device=smooth.device) - MARGIN + 1) / (shared - 2 * MARGIN + 1)).clamp(0, 1)
        smooth[:shared] = torch.lerp(seam.depth, smooth[:shared], fade[:, None, None])
        return _Window(smooth, *_cameras(shot, _unit(depth, self._kind), size, self._kind, seam))


class _Window(NamedTuple):
    """What was found of some frames in a row.

    depth: [N,H,W]. cameras: of each, in the shot's world. inv_depth: [N,P] of the scene on a grid, in that world's
    unit; None where there was no scene. unit: mean inverse depth of the teacher, per unit of that world's.
    """

    depth: Tensor
    cameras: list[TargetCamera]
    inv_depth: Tensor | None
    unit: float

    def after(self, count: int) -> _Window:
        inv_depth = None if self.inv_depth is None else self.inv_depth[count:]
        return _Window(self.depth[count:], self.cameras[count:], inv_depth, self.unit)


def _fit(new: Tensor, before: Tensor, kind: DepthKind) -> tuple[float, float]:
    """Return scale and shift that bring a window's depth [N,H,W] to that of the window before, robustly."""
    step = max(1, int((new.numel() / _SAMPLES) ** 0.5))
    ours, theirs = (x[:, step // 2 :: step, ::step].flatten().double().cpu().numpy() for x in (new, before))
    both = np.isfinite(ours) & np.isfinite(theirs)
    if kind is DepthKind.METRIC:
        both &= (ours > MIN_METRIC_DEPTH_M) & (theirs > MIN_METRIC_DEPTH_M)
        ratio = float(np.median(theirs[both] / ours[both])) if both.any() else 1.0
        return float(np.clip(ratio, 1 / MAX_SCALE, MAX_SCALE)), 0.0
    if not both.any():
        return 1.0, 0.0
    scale, shift = robust_scale_and_shift(ours[both], theirs[both])
    if not 1 / MAX_SCALE < scale < MAX_SCALE:  # flat, or nothing alike
        return 1.0, float(np.median(theirs[both] - ours[both]))
    return scale, shift


def _unit(depth: Tensor, kind: DepthKind) -> float:
    """Return the mean inverse depth of a teacher's depth, by which `correct_shot` counts; 1 where there is none."""
    inverse = 1 / depth.clamp(min=MIN_METRIC_DEPTH_M) if kind is DepthKind.METRIC else depth
    known = inverse[inverse.isfinite()]
    unit = float(known.double().mean()) if known.numel() else 0.0
    return unit if unit > 0 else 1.0


def _cameras(
    shot: GeometricShot, unit: float, size: tuple[int, int], kind: DepthKind, seam: _Window | None
) -> tuple[list[TargetCamera], Tensor | None, float]:
    """Return the cameras of a window, the scene's inverse depth and the teacher's unit, in the world of its shot.

    seam: what the window before says of the first of these frames; None: the world begins here.
    """
    scene, count = shot.scene, len(shot.depth)
    rotation, position = np.tile(np.eye(3), (count, 1, 1)), np.zeros((count, 3))
    focal = FOCAL_OF_LONG_SIDE * max(size)
    if scene is not None:
        rotation = scene.poses.rotation.double().cpu().numpy().transpose(0, 2, 1)
        if shot.evidence > 0:
            position = -(rotation @ scene.poses.translation.double().cpu().numpy()[..., None])[..., 0]
            focal = float(scene.log_focal.exp())
    length = 1 / unit if kind is DepthKind.METRIC else 1.0  # of a window's unit, in that of the world
    if seam is not None:
        shared = len(seam.depth)
        length = seam.unit / unit
        if scene is not None and seam.inv_depth is not None:
            length = float((scene.inv_depth[:shared] / seam.inv_depth.to(scene.inv_depth)).median())
        middle = seam.cameras[shared // 2]
        turn = middle.rotation @ rotation[shared // 2].T
        position = middle.position + length * (position - position[shared // 2]) @ turn.T
        rotation = turn @ rotation
    else:
        position = length * position
    cameras = [TargetCamera(r, p, focal, shot.evidence, scene is None) for r, p in zip(rotation, position, strict=True)]
    if seam is not None:
        cameras[: shared // 2] = seam.cameras[: shared // 2]
    return cameras, None if scene is None else scene.inv_depth / length, unit * length
