"""The motion of a clip: flow both ways, where it can be trusted, and where the clip is cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.flow.estimators import FlowEstimator, both_ways
from videomamba_depth.flow.frame_view import Frames, Keep, in_memory
from videomamba_depth.utils.flow_utils import pixel_grid, sample_along, sample_px, trust_mask

MIN_COVERAGE = 0.1
MAX_HISTOGRAM_CHANGE = 0.5  # share of pixels that change bin from frame to frame within a shot


@dataclass(frozen=True)
class ClipMotion:
    """What every flow-based metric needs, for F frames of H×W px, in arrays or read from disk.

    flow_bwd: [F,2,H,W] px, frame t → t−1 on the pixels of t; zeros at 0.
    flow_fwd: [F,2,H,W] px, frame t → t+1 on the pixels of t; zeros at F−1.
    trusted_bwd: [F,H,W] bool, the pixel is seen in frame t−1 and its flow can be trusted; False at 0.
    trusted_fwd: [F,H,W] bool, the same toward t+1; False at F−1.
    cuts: frames t such that the clip is cut between t−1 and t; no pair across a cut is ever used.
    """

    flow_bwd: Frames
    flow_fwd: Frames
    trusted_bwd: Frames
    trusted_fwd: Frames
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
        shares = [0.0 if t in self.cuts else self._trusted_shares[t] for t in range(1, self.num_frames)]
        return float(np.mean(shares)) if shares else 0.0

    @cached_property
    def _trusted_shares(self) -> list[float]:
        return [float(self.trusted_bwd[t].mean()) for t in range(self.num_frames)]

    def usable(self, t: int, min_coverage: float = MIN_COVERAGE) -> bool:
        """Return whether the pair (t−1, t) may be scored: no cut, and enough trusted pixels."""
        return t >= 1 and t not in self.cuts and self._trusted_shares[t] >= min_coverage


def no_motion(shape: tuple[int, ...]) -> ClipMotion:
    """Return the motion of F frames of H×W px that have nothing to do with each other: nothing can be trusted."""
    num_frames, height, width = shape
    flow = np.broadcast_to(np.float32(0), (num_frames, 2, height, width))
    nowhere = np.broadcast_to(np.bool_(False), shape)
    return ClipMotion(flow, flow, nowhere, nowhere)


def estimate_motion(
    frames: Iterable[Any],
    flow: FlowEstimator,
    *,
    keep: Keep = in_memory,
    progress: Callable[[], None] | None = None,
) -> ClipMotion:
    """Estimate flow both ways between neighbors of a clip, one pair at a time.

    Args:
        frames: F × uint8 [H,W,3] RGB; gone over twice. flow: the estimator.
        keep: where flow and masks go, 18 bytes per pixel and frame: `in_memory` or `on_disk`.
        progress: called once per pair.
    """
    bwd, fwd, trusted_bwd, trusted_fwd = keep(_motion_of_frames(frames, flow, progress))
    return ClipMotion(bwd, fwd, trusted_bwd, trusted_fwd, detect_cuts(frames))


def _motion_of_frames(
    frames: Iterable[Any], flow: FlowEstimator, progress: Callable[[], None] | None
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield flow_bwd, flow_fwd, trusted_bwd and trusted_fwd of every frame, see `ClipMotion`."""
    following = iter(frames)
    before = _to_tensor(next(following))
    no_flow = np.zeros((2, *before.shape[-2:]), np.float32)
    nowhere = np.zeros(before.shape[-2:], bool)
    bwd, trusted_bwd = no_flow, nowhere
    for now in map(_to_tensor, following):  # [1,3,H,W]; two frames are in memory at a time
        back, forth = both_ways(flow, now, before)
        trusted_fwd = trust_mask(before, now, forth, back)[0, 0].cpu().numpy()
        yield bwd, forth[0].cpu().numpy(), trusted_bwd, trusted_fwd
        trusted_bwd = trust_mask(now, before, back, forth)[0, 0].cpu().numpy()
        before, bwd = now, back[0].cpu().numpy()
        if progress is not None:
            progress()
    yield bwd, no_flow, trusted_bwd, nowhere


def detect_cuts(frames: Iterable[Any]) -> tuple[int, ...]:
    """Return the frames at which a new shot starts.

    A cut is where half the L1 distance between the 8×8×8 color histograms of neighbors, the share of pixels
    that changed bin, exceeds `MAX_HISTOGRAM_CHANGE` and both its neighbors' distances do not (a run of such
    frames is flicker or fast motion, not cuts). Two such distances alone are the two cuts around a shot of one frame
    where the frames before and after it are as far from each other. Blind to cuts between shots of equal colors:
    there the forward-backward check leaves too few pixels, and the pair is skipped as well. It looks at pictures
    alone, and at a frame's future: streams, which have features but no future, find theirs by
    `streaming.resets.ResetPolicy`.
    """
    recent: deque[np.ndarray] = deque(maxlen=3)
    changes: list[tuple[float, float]] = []  # of every frame to the one before and to the one before that
    for histogram in map(_color_histogram, frames):
        recent.append(histogram)
        one, two = (0.5 * float(np.abs(histogram - recent[max(-1 - k, -len(recent))]).sum()) for k in (1, 2))
        changes.append((one, two))
    high = torch.tensor(changes, dtype=torch.float64).view(-1, 2) > MAX_HISTOGRAM_CHANGE
    return tuple(_begins_shot(high[:, 0], high[:, 1]).nonzero().flatten().tolist())


def _begins_shot(changed: Tensor, changed_over_two: Tensor) -> Tensor:
    """Return [N] bool, see `detect_cuts`, from whether frames differ from the one before and the one before that."""
    before, after = F.pad(changed, (1, 0))[:-1], F.pad(changed, (0, 2))[1:]
    alone = changed & ~before & ~after[:-1]
    first = changed & ~before & after[:-1] & ~after[1:] & F.pad(changed_over_two, (0, 1))[1:]
    return alone | first | F.pad(first, (1, 0))[:-1]


def cuts_of_clip(clip: Tensor) -> Tensor:
    """Return [N] bool, True where `detect_cuts` finds that a new shot starts, of a clip [N,3,H,W] RGB in [0,1].

    The result stays on the clip's device.
    """
    levels = (clip.detach()[:, :, ::2, ::2] * 255).round().to(torch.uint8) >> 5
    red, green, blue = levels.flatten(2).long().unbind(1)  # [N,P] each
    frame = 512 * torch.arange(len(clip), device=clip.device)[:, None]
    counts = torch.bincount((frame + 64 * red + 8 * green + blue).flatten(), minlength=512 * len(clip))
    dtype = torch.float32 if clip.device.type == "mps" else torch.float64  # MPS has no float64
    share = counts.view(len(clip), 512).to(dtype) / max(red.shape[1], 1)
    one, two = (
        F.pad(0.5 * (share[k:] - share[:-k]).abs().sum(1) > MAX_HISTOGRAM_CHANGE, (min(k, len(clip)), 0))
        for k in (1, 2)
    )
    return _begins_shot(one, two)


def static_mask(clip: Tensor, flow: FlowEstimator, max_motion_px: float = 0.5, max_rgb_change: float = 0.06) -> Tensor:
    """Return which pixels of each frame neither moved, changed color nor were hidden since the frame before.

    Args:
        clip: [N,3,H,W] RGB in [0,1].
        flow: estimates both directions, for the forward-backward check.
        max_motion_px: upper bound on |flow|, px per frame. max_rgb_change: see `rgb_consistency_mask`.

    Returns:
        [N,1,H,W] bool; frame 0 is all False, since nothing came before.
    """
    if clip.ndim != 4 or clip.shape[1] != 3:
        raise ValueError(f"clip must have shape [N,3,H,W]; got {list(clip.shape)}")
    static = torch.zeros_like(clip[:, :1], dtype=torch.bool)
    if clip.shape[0] > 1:
        now, before = clip[1:], clip[:-1]
        back, forth = both_ways(flow, now, before)
        still = back.square().sum(dim=1, keepdim=True) < max_motion_px**2
        static[1:] = still & trust_mask(now, before, back, forth, max_rgb_change)
    return static


def warp_frame(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Sample frame [H,W] or [C,H,W] at p + flow(p) (bilinear, in the frame's float precision)."""
    channels = frame[None] if frame.ndim == 2 else frame
    values = torch.from_numpy(np.ascontiguousarray(channels))[None]
    flow_px = torch.from_numpy(np.ascontiguousarray(flow))[None].to(values.dtype)
    if values.is_floating_point() and np.isfinite(flow).all():  # `sample_along` without its search for what is not
        points = _grid(*frame.shape[-2:], values.dtype) + flow_px
        warped = sample_px(values, points.permute(0, 2, 3, 1))[0]
    else:
        warped = sample_along(values, flow_px)[0]
    return warped.numpy()[0] if frame.ndim == 2 else warped.numpy()


@lru_cache(4)
def _grid(height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return pixel_grid(torch.empty(height, width), dtype)


def warped_pairs(x: Frames, motion: ClipMotion, defined: Frames) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (t, w(x_{t−1}) [H,W] float32, mask [H,W]) for every usable pair of x [F,H,W].

    The mask holds where the flow is trusted and `defined` is True at either end.
    """
    for t in range(1, motion.num_frames):
        if not motion.usable(t):
            continue
        # Undefined pixels are carried as a share: interpolation that touched half of one is undefined too.
        both = np.stack([x[t - 1], ~defined[t - 1]]).astype(np.float32)  # [2,H,W]
        warped, undefined_before = warp_frame(both, motion.flow_bwd[t])
        yield t, warped, motion.trusted_bwd[t] & (defined[t] | (undefined_before < 0.5))


def _to_tensor(frame: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float() / 255.0


def _color_histogram(frame: Any) -> np.ndarray:
    # Three bits per channel, every second row and column: 512 bins.
    bins = (np.asarray(frame)[::2, ::2] >> 5).reshape(-1, 3).astype(np.int64)
    counts = np.bincount(bins @ np.array([64, 8, 1]), minlength=512)
    return counts / max(counts.sum(), 1)
