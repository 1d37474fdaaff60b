"""Accuracy against ground truth, by the protocol of Video Depth Anything (Chen et al., 2025, benchmark/eval).

Depth is in meters, disparity in 1/m; frames are [F,H,W] (or [F,1,H,W]), numpy, torch or `FrameView`; all sums are
float64 and run frame by frame, so that no copy of a clip is made.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from videomamba_depth.evaluation.metrics.score import as_frames, as_mask
from videomamba_depth.flow.frame_view import Frames, computed, mapped, remembered
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.metrics import abs_rel, clip_scale_and_shift, delta1, rmse, rmse_log

MIN_DEPTH_M = 1e-3
MIN_DISPARITY = 1e-3
ALIGNMENTS = ("video", "first_frame", "per_frame")
ACCURACY_METRICS = ("abs_rel", "delta1", "rmse", "rmse_log")


@remembered
def valid_ground_truth(gt_depth_m: Any, valid: Any = None, max_depth_m: float = 80.0) -> Frames:
    """Return where ground truth counts: {1e-3 < gt < max_depth_m} (and `valid`), [F,H,W] bool."""
    gt = as_frames("gt_depth_m", gt_depth_m)

    def counts(depth_m: np.ndarray, known: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return known & (depth_m > MIN_DEPTH_M) & (depth_m < max_depth_m)

    return computed(mapped(counts, gt, as_mask("valid", valid, gt)))


def aligned_disparity(prediction: np.ndarray, scale: float, shift: float) -> np.ndarray:
    """Return max(s · max(p, 1e-3) + t, 1e-3), 1/m: step 2 of the protocol, before inversion."""
    return np.maximum(scale * np.maximum(prediction, MIN_DISPARITY) + shift, MIN_DISPARITY)


def aligned_depth_m(prediction: np.ndarray, scale: float, shift: float, max_depth_m: float) -> np.ndarray:
    """Return clip(1 / aligned disparity, 1e-3, max_depth_m) in meters."""
    return np.clip(1.0 / aligned_disparity(prediction, scale, shift), MIN_DEPTH_M, max_depth_m)


def aligned_as_depth(prediction: np.ndarray, scale: float, shift: float, max_depth_m: float) -> np.ndarray:
    """Return clip(s · p + t, 1e-3, max_depth_m) in meters, of depth whose scale and shift are unknown."""
    return np.clip(scale * prediction + shift, MIN_DEPTH_M, max_depth_m)


@remembered
def alignment_per_frame(
    prediction: Any, gt_depth_m: Any, valid: Any, alignment: str = "video", domain: str = "disparity"
) -> list[tuple[float, float]]:
    """Solve the protocol's (s, t), one pair per frame: max(p, 1e-3) fitted to 1/(gt + 1e-8) on valid pixels.

    Args:
        prediction: disparity-like [F,H,W]. gt_depth_m: [F,H,W] m. valid: [F,H,W] bool.
        alignment: "video" (all frames at once), "first_frame" (frame 0's pair for all) or "per_frame".
        domain: "disparity", or "depth": p itself is fitted to gt, for depth whose shift is unknown.
    """
    p, gt = as_frames("prediction", prediction), as_frames("gt_depth_m", gt_depth_m)
    mask = as_mask("valid", valid, gt)
    q, y = (p, gt) if domain == "depth" else (mapped(lambda f: np.maximum(f, MIN_DISPARITY), p), _inverses(gt))
    if alignment == "video":
        return [clip_scale_and_shift(q, y, mask)] * len(p)
    if alignment == "first_frame":
        return [clip_scale_and_shift(q[:1], y[:1], mask[:1])] * len(p)
    if alignment == "per_frame":
        return [clip_scale_and_shift(*frames) for frames in zip(q, y, mask, strict=True)]
    raise ValueError(f"alignment must be one of {ALIGNMENTS}; got {alignment!r}")


def frame_accuracy(depth_m: np.ndarray, gt_depth_m: np.ndarray, valid: np.ndarray) -> dict[str, float] | None:
    """Return the four accuracy metrics of one frame [H,W]; None when nothing is valid; NaN in, NaN out."""
    if not valid.any():
        return None
    d, gt = depth_m[valid].astype(np.float64), gt_depth_m[valid].astype(np.float64)
    if not np.isfinite(d).all():
        return dict.fromkeys(ACCURACY_METRICS, math.nan)
    return {metric.__name__: metric(d, gt) for metric in (abs_rel, delta1, rmse, rmse_log)}


def mean_accuracy(depth_m: Any, gt_depth_m: Any, valid: Any) -> dict[str, float]:
    """Return the four metrics of depth [F,H,W] in meters over valid pixels of a frame, then over frames.

    NaN where nothing is valid.
    """
    d, gt = as_frames("depth_m", depth_m), as_frames("gt_depth_m", gt_depth_m)
    mask = as_mask("valid", valid, gt)
    return _mean([frame_accuracy(*frames) for frames in zip(d, gt, mask, strict=True)])


def accuracy(
    prediction: Any,
    gt_depth_m: Any,
    valid: Any = None,
    *,
    depth_kind: DepthKind,
    max_depth_m: float = 80.0,
) -> dict[str, dict[str, float]]:
    """Return every accuracy metric under every alignment of the protocol.

    Args:
        prediction: [F,H,W], what `depth_kind` says.
        gt_depth_m: [F,H,W] m. valid: [F,H,W] bool or None.
        max_depth_m: ground truth beyond it does not count, predictions are clipped to it (10 indoors, 70
            Sintel, 80 KITTI).

    Returns:
        {"video" | "first_frame" | "per_frame": {"abs_rel", "delta1", "rmse" (m), "rmse_log"}} for inverse
        depth, and for affine-invariant depth, which is aligned as depth; {"metric": {...}} for metric depth, which is
        never aligned. NaN where nothing is valid.
    """
    p = as_frames("prediction", prediction)
    gt = as_frames("gt_depth_m", gt_depth_m)
    if p.shape != gt.shape:
        raise ValueError(f"prediction must have the ground truth's shape {list(gt.shape)}; got {list(p.shape)}")
    mask = valid_ground_truth(gt, valid, max_depth_m)
    if depth_kind == DepthKind.METRIC:
        frames = [frame_accuracy(np.clip(p[i], MIN_DEPTH_M, max_depth_m), gt[i], mask[i]) for i in range(len(p))]
        return {"metric": _mean(frames)}
    report = {}
    as_depth = depth_kind == DepthKind.AFFINE_DEPTH
    aligned = aligned_as_depth if as_depth else aligned_depth_m
    for alignment in ALIGNMENTS:
        pairs = alignment_per_frame(p, gt, mask, alignment, "depth" if as_depth else "disparity")
        report[alignment] = _mean(
            [
                frame_accuracy(aligned(p[i].astype(np.float64), *pairs[i], max_depth_m), gt[i], mask[i])
                for i in range(len(p))
            ]
        )
    return report


def _mean(frames: list[dict[str, float] | None]) -> dict[str, float]:
    seen = [frame for frame in frames if frame is not None]
    if not seen:
        return dict.fromkeys(ACCURACY_METRICS, math.nan)
    return {name: float(np.mean([frame[name] for frame in seen])) for name in ACCURACY_METRICS}


@remembered
def _inverses(gt_depth_m: Frames) -> Frames:
    return computed(mapped(_inverse, gt_depth_m))


def _inverse(gt_depth_m: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1.0 / (gt_depth_m.astype(np.float64) + 1e-8)
