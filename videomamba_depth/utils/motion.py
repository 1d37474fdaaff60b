"""The motion of a clip: flow both ways, where it can be trusted, and where the clip is cut."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .flow_estimators import FlowEstimator
from .flow_utils import backward_warp, trust_mask

MIN_COVERAGE = 0.1


@dataclass(frozen=True)
class ClipMotion:
    """What every flow-based metric needs, for F frames of H×W px.

    flow_bwd: [F,2,H,W] px, frame t → t−1 on the pixels of t; zeros at 0.
    flow_fwd: [F,2,H,W] px, frame t → t+1 on the pixels of t; zeros at F−1.
    trusted_bwd: [F,H,W] bool, the pixel is seen in frame t−1 and its flow can be trusted; False at 0.
    trusted_fwd: [F,H,W] bool, the same towards t+1; False at F−1.
    cuts: frames t such that the clip is cut between t−1 and t; no pair across a cut is ever used.
    """

    flow_bwd: np.ndarray
    flow_fwd: np.ndarray
    trusted_bwd: np.ndarray
    trusted_fwd: np.ndarray
    cuts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        num_frames, _, height, width = self.flow_bwd.shape
        for name, shape in (
            ("flow_fwd", (num_frames, 2, height, width)),
            ("trusted_bwd", (num_frames, height, width)),
            ("trusted_fwd", (num_frames, height, width)),
        ):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}; got {getattr(self, name).shape}")

    @property
    def num_frames(self) -> int:
        return int(self.flow_bwd.shape[0])

    @property
    def coverage(self) -> float:
        """Share of the pixels of frames 1..F−1 whose flow to the frame before can be trusted; 0 across
        cuts.
        """
        shares = [0.0 if t in self.cuts else float(self.trusted_bwd[t].mean()) for t in range(1, self.num_frames)]
        return float(np.mean(shares)) if shares else 0.0

    def usable(self, t: int, min_coverage: float = MIN_COVERAGE) -> bool:
        """Return whether the pair (t−1, t) may be scored: no cut, and enough trusted pixels."""
        return t >= 1 and t not in self.cuts and float(self.trusted_bwd[t].mean()) >= min_coverage


def estimate_motion(
    frames: Sequence[Any] | np.ndarray,
    flow: FlowEstimator,
    *,
    max_rgb_change: float = 0.06,
    progress: Callable[[], None] | None = None,
) -> ClipMotion:
    """Estimate flow both ways between neighbours of a clip, one pair at a time.

    Args:
        frames: F × uint8 [H,W,3] RGB. flow: the estimator. max_rgb_change: see `trust_mask`.
        progress: called once per pair.

    Needs 16·F·H·W bytes of flow; pass small frames for long clips.
    """
    num_frames, (height, width) = len(frames), np.asarray(frames[0]).shape[:2]
    bwd = np.zeros((num_frames, 2, height, width), np.float32)
    fwd = np.zeros_like(bwd)
    trusted_bwd = np.zeros((num_frames, height, width), bool)
    trusted_fwd = np.zeros_like(trusted_bwd)
    before = _to_tensor(frames[0])
    for t in range(1, num_frames):
        now = _to_tensor(frames[t])
        back, forth = flow(now, before), flow(before, now)
        bwd[t], fwd[t - 1] = back[0].cpu().numpy(), forth[0].cpu().numpy()
        trusted_bwd[t] = trust_mask(now, before, back, forth, max_rgb_change)[0, 0].cpu().numpy()
        trusted_fwd[t - 1] = trust_mask(before, now, forth, back, max_rgb_change)[0, 0].cpu().numpy()
        before = now
        if progress is not None:
            progress()
    return ClipMotion(bwd, fwd, trusted_bwd, trusted_fwd, detect_cuts(frames))


def detect_cuts(frames: Sequence[Any] | np.ndarray, max_histogram_change: float = 0.5) -> tuple[int, ...]:
    """Return the frames at which a new shot starts.

    A cut is where half the L1 distance between the 8×8×8 colour histograms of neighbours, the share of pixels
    that changed bin, exceeds `max_histogram_change` and both its neighbours' distances do not (a run of such
    frames is flicker or fast motion, not cuts). Blind to cuts between shots of equal colours: there the
    forward-backward check leaves too few pixels, and the pair is skipped as well.
    """
    histograms = [_colour_histogram(frame) for frame in frames]
    change = [0.0] + [0.5 * float(np.abs(b - a).sum()) for a, b in itertools.pairwise(histograms)]
    change.append(0.0)
    return tuple(
        t
        for t in range(1, len(histograms))
        if change[t] > max_histogram_change and max(change[t - 1], change[t + 1]) <= max_histogram_change
    )


def warp_frame(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Sample frame [H,W] or [C,H,W] at p + flow(p) (bilinear, in the frame's float precision)."""
    channels = frame[None] if frame.ndim == 2 else frame
    values = torch.from_numpy(np.ascontiguousarray(channels))[None]
    warped = backward_warp(values, torch.from_numpy(np.ascontiguousarray(flow))[None].to(values.dtype))[0][0]
    return warped.numpy()[0] if frame.ndim == 2 else warped.numpy()


def warped_pairs(
    x: np.ndarray, motion: ClipMotion, defined: np.ndarray, min_coverage: float = MIN_COVERAGE
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (t, w(x_{t−1}) [H,W] float32, mask [H,W]) for every usable pair of x [F,H,W].

    The mask holds where the flow is trusted and `defined` is True at either end.
    """
    for t in range(1, motion.num_frames):
        if not motion.usable(t, min_coverage):
            continue
        both = np.stack([x[t - 1], ~defined[t - 1]]).astype(np.float32)
        warped, undefined_before = warp_frame(both, motion.flow_bwd[t])
        yield t, warped, motion.trusted_bwd[t] & (defined[t] | (undefined_before < 0.5))


def _to_tensor(frame: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float() / 255.0


def _colour_histogram(frame: Any) -> np.ndarray:
    bins = (np.asarray(frame)[::2, ::2] >> 5).reshape(-1, 3).astype(np.int64)
    counts = np.bincount(bins @ np.array([64, 8, 1]), minlength=512)
    return counts / max(counts.sum(), 1)
