"""Guards: what a stability metric must never be shown without. Blur and lag are not stability.

Frames are [F,H,W]. Each guard compares a method with a reference, normally the framewise teacher, both aligned
to the same units (one affine per clip).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np

from videomamba_depth.evaluation.metrics.percentiles import median, percentiles
from videomamba_depth.evaluation.metrics.score import Score, as_frames, is_flat, undefined
from videomamba_depth.flow.frame_view import Frames, computed, mapped, on_disk, remembered

EDGE_PERCENTILE = 95.0


def edge_strength(frame: np.ndarray) -> np.ndarray:
    """Return |∇(d − local mean of d)| of one frame [H,W], float32, unit of d per px.

    Disparity is linear on a plane, so a slanted wall has a gradient but no edge: subtracting the mean of a
    window of a twelfth of the width removes planes and leaves edges.
    """
    values = frame.astype(np.float32)
    side = 2 * max(2, frame.shape[1] // 24) + 1
    dy, dx = np.gradient(values - cv2.blur(values, (side, side), borderType=cv2.BORDER_REFLECT))
    return np.hypot(dx, dy)


def edge_threshold(reference: Any, percentile: float = EDGE_PERCENTILE) -> float:
    """Return the strength above which a pixel of the reference clip is an edge: a percentile of
    `edge_strength`.
    """
    strength = edge_strengths(as_frames("reference", reference))
    return _strong(strength, percentile)


@remembered
def _strong(strength: Frames, percentile: float) -> float:
    return percentiles(mapped(lambda frame: frame[::2, ::2], strength), [percentile])[0]


@remembered
def edge_strengths(frames: Frames) -> Frames:
    """Return `edge_strength` of every frame, worked out once."""
    return computed(mapped(edge_strength, frames))


@remembered
def _energy(strength: Frames) -> float:
    return sum(float(np.square(frame, dtype=np.float64).sum()) for frame in strength)


def edge_ratio(disparity: Any, reference: Any) -> Score:
    """Return sqrt(Σ e(d)² / Σ e(r)²), e = `edge_strength`, over all pixels and frames.

    1 for equal sharpness, below for blur (a step blurred to width σ keeps 1/σ of its energy) and for ghosts,
    above for spurious edges. The square lets strong edges decide, so removing faint noise is not taken for
    blur.
    """
    d, r = as_frames("disparity", disparity), as_frames("reference", reference)
    theirs = _energy(edge_strengths(r))
    if is_flat(r) or theirs <= 0:
        return undefined("the reference has no edges")
    ours = _energy(edge_strengths(d))
    return Score((ours / theirs) ** 0.5)


def boundary_f1(disparity: Any, reference: Any, threshold: float | None = None, tolerance_px: int = 1) -> Score:
    """Return the F1 score of the edge pixels of d against those of r, within `tolerance_px`, pooled over
    frames.

    An edge pixel is one whose `edge_strength` exceeds `threshold`, default `edge_threshold(reference)`. 0
    when d has none; NaN when the reference has none.
    """
    d, r = as_frames("disparity", disparity), as_frames("reference", reference)
    limit = edge_threshold(r) if threshold is None else threshold
    kernel = np.ones((2 * tolerance_px + 1, 2 * tolerance_px + 1), np.uint8)
    found = right = wanted = met = 0
    for ours, b, near in zip(edge_strengths(d), *_edges(edge_strengths(r), limit, tolerance_px), strict=True):
        a = (ours > limit).astype(np.uint8)
        found, wanted = found + int(a.sum()), wanted + int(b.sum())
        right += int((a & near).sum())
        met += int((b & cv2.dilate(a, kernel)).sum())
    if limit <= 0 or wanted == 0:
        return undefined("the reference has no edges")
    if found == 0:
        return Score(0.0)
    precision, recall = right / found, met / wanted
    return Score(0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall))


@remembered
def _edges(strength: Frames, limit: float, tolerance_px: int) -> Sequence[Frames]:
    """Return the edge pixels of every frame as uint8 [H,W], and those within `tolerance_px` of one."""
    kernel = np.ones((2 * tolerance_px + 1, 2 * tolerance_px + 1), np.uint8)
    edges = mapped(lambda frame: (frame > limit).astype(np.uint8), strength)
    return on_disk((b, cv2.dilate(b, kernel)) for b in edges)


def lag_frames(disparity: Any, reference: Any, max_lag: int = 8, cell_px: int = 8) -> Score:
    """Return by how many frames d follows r: the peak of the cross-correlation of their temporal differences.

    C(k) = Σ ∂_t d(t+k) ∂_t r(t), normalized, on means of `cell_px`² pixels (single pixels carry the
    reference's noise, which a smoother passes without delay), for −2 ≤ k ≤ max_lag; the peak is refined by a
    parabola.

    Returns:
        Score in frames; NaN when nothing changes or the peak is at the end of the range. Coverage is max C,
        in [0,1]: how alike the two move.
    """
    d, r = as_frames("disparity", disparity), as_frames("reference", reference)
    if len(d) < max_lag + 4:
        max_lag = max(len(d) - 4, 1)
    if len(d) < 5:
        return undefined("fewer than five frames")
    a, b = (_cells(frames, cell_px) for frames in (d, r))
    lags = range(-2, max_lag + 1)
    correlation = _correlate_changes(a, b, lags)
    if is_flat(d) or not np.isfinite(correlation).all():
        return undefined("nothing changes over time")
    peak = int(correlation.argmax())
    top = float(np.clip(correlation[peak], 0.0, 1.0))
    if peak in (0, len(correlation) - 1):
        return undefined(f"no peak within {lags[0]} to {lags[-1]} frames", top)
    left, middle, right = correlation[peak - 1 : peak + 2]
    bend = left - 2 * middle + right
    return Score(float(lags[peak] + (0.5 * (left - right) / bend if bend < 0 else 0.0)), top)


def frames_to_settle(carried: Any, new: Any, tolerance: float = 0.02) -> Score:
    """Return how many frames after a cut a stream still differs from one that starts at the cut.

    Args:
        carried, new: [F,H,W], the same frames after the cut, with the state carried over it and without.
        tolerance: largest accepted mean |carried − new| over the mean absolute deviation of `new`.

    Returns:
        Score: index of the first frame from which on the difference stays within tolerance; NaN if it never
            does.
    """
    c, f = as_frames("carried", carried), as_frames("new", new)
    middle = median(f)
    spread = float(np.mean([np.mean(np.abs(frame - middle), dtype=np.float64) for frame in f]))
    if is_flat(f):
        return undefined("the new stream is flat")
    above = [i for i in range(len(f)) if not np.mean(np.abs(c[i] - f[i]), dtype=np.float64) / spread <= tolerance]
    first = above[-1] + 1 if above else 0
    return Score(float(first)) if first < len(f) else undefined(f"not settled after {len(f)} frames", 1.0)


@remembered
def _cells(frames: Frames, cell_px: int) -> Frames:
    return computed(mapped(lambda frame: _cell_means(frame, cell_px), frames))


def _cell_means(frame: np.ndarray, cell_px: int) -> np.ndarray:
    height, width = frame.shape
    size = (max(width // cell_px, 1), max(height // cell_px, 1))
    return cv2.resize(frame.astype(np.float32), size, interpolation=cv2.INTER_AREA)


def _correlate_changes(a: Iterable[np.ndarray], b: Iterable[np.ndarray], lags: range) -> np.ndarray:
    """Return the normalized correlation of ∂_t a(t+k) and ∂_t b(t) for every lag k, holding max |k| + 2 frames."""
    farthest = max(abs(lag) for lag in lags)
    # Changes of both with their sums of squares, the newest first.
    recent: deque[tuple[tuple[np.ndarray, float], tuple[np.ndarray, float]]] = deque(maxlen=farthest + 1)
    sums = np.zeros((len(lags), 3))
    before: tuple[np.ndarray, np.ndarray] | None = None
    for now in zip(a, b, strict=True):
        if before is not None:
            changes = [now[i] - before[i] for i in (0, 1)]
            squares = [float(np.square(change, dtype=np.float64).sum()) for change in changes]
            recent.appendleft(((changes[0], squares[0]), (changes[1], squares[1])))
        before = now
        for i, lag in enumerate(lags):
            if abs(lag) < len(recent):
                (later, later_square), (earlier, earlier_square) = recent[max(-lag, 0)][0], recent[max(lag, 0)][1]
                sums[i] += [(later * earlier).sum(dtype=np.float64), later_square, earlier_square]
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[:, 0] / np.sqrt(sums[:, 1] * sums[:, 2])
