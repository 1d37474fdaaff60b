"""Stability without ground truth, short and long term.

Frames are [F,H,W] and read one by one; `disparity` is positive and aligned once per clip (`positive_log` makes x =
log of it). Every score skips pairs across cuts or with too few trusted pixels, reports its coverage, and is NaN for
a flat prediction: a constant would win them all. None of these numbers means anything without the guards of
`sharpness_and_lag.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from videomamba_depth.evaluation.metrics.percentiles import median, percentiles
from videomamba_depth.evaluation.metrics.score import Score, as_frames, as_mask, is_flat, mean_score, undefined
from videomamba_depth.flow.clip_motion import MIN_COVERAGE, ClipMotion, warp_frame, warped_pairs
from videomamba_depth.flow.frame_view import Frames, FrameView, computed, mapped, on_disk, recent, remembered
from videomamba_depth.utils.metrics import robust_scale_and_shift

FLAT = "the prediction is flat"
NO_PAIR = "no pair of frames has enough trusted pixels"
RTC_THRESHOLDS = (1.01, 1.02, 1.05)


def positive_log(disparity: Any, floor_share: float = 0.02) -> tuple[FrameView, FrameView]:
    """Return x = log max(disparity, floor) [F,H,W] float32 and `defined`, where it was above the floor.

    floor = `floor_share` of the clip's 98th percentile: beyond 1/floor_share times the nearest depth, the log
    of a disparity near 0 is noise. Pixels at the floor at both ends of a pair are left out of the metrics,
    not scored as still.
    """
    d = as_frames("disparity", disparity)
    high = percentiles(mapped(lambda frame: frame[::2, ::2], d), [98])[0]
    floor = max(floor_share * high, float(np.finfo(np.float32).tiny))

    def log(frame: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.log(np.maximum(frame, floor)).astype(np.float32)

    return mapped(log, d), mapped(lambda frame: frame > floor, d)


@remembered
def _is_flat_log(x: Frames) -> bool:
    """Return whether log disparity is that of a flat prediction."""
    return is_flat(mapped(np.exp, x))


def optical_flow_warping(disparity: Any, motion: ClipMotion, rgb: Any, per: str = "clip") -> Score:
    """Return OPW: mean of w |d_t − warp(d_{t−1})| / mean w with w = exp(−50 |ΔRGB|²), d in units of its
    spread.

    Args:
        disparity: [F,H,W]. rgb: F × uint8 [H,W,3]. motion: flow and masks.
        per: "clip" subtracts one median and divides by one mean absolute deviation per clip; "frame" does so
            for every frame, which is how it is mostly published, and hides all flicker of scale and shift.

    Source: Wang et al., "Neural Video Depth Stabilizer" (ICCV 2023), equation 8; masks and `per="clip"` are
    additions.
    """
    d = as_frames("disparity", disparity)
    if is_flat(d):
        return undefined(FLAT)
    if per not in ("clip", "frame"):
        raise ValueError(f"per must be 'clip' or 'frame'; got {per!r}")
    clip_unit = _unit_of_clip(d) if per == "clip" else None
    units = recent(mapped(lambda frame: _in_units(frame.astype(np.float32), clip_unit), d))
    weights = _color_weights(rgb if isinstance(rgb, FrameView) else mapped(np.asarray, rgb), motion)
    values, coverage = [], []
    for t in range(1, len(d)):
        if not motion.usable(t):
            coverage.append(0.0)
            continue
        weight, mask = weights[t - 1], motion.trusted_bwd[t]
        change = np.abs(units[t] - warp_frame(units[t - 1], motion.flow_bwd[t]))
        values.append(float((weight * change)[mask].sum() / weight[mask].sum()))
        coverage.append(float(mask.mean()))
    return mean_score(values, coverage, NO_PAIR)


@remembered
def _color_weights(rgb: FrameView, motion: ClipMotion) -> Frames:
    """Return exp(−50 |ΔRGB|²) of frames 1 … F−1, ΔRGB between a pixel and where the flow leads."""
    colors = recent(mapped(lambda frame: np.asarray(frame, dtype=np.float32).transpose(2, 0, 1) / 255.0, rgb))

    def weight(t: int) -> np.ndarray:
        return np.exp(-50.0 * np.square(colors[t] - warp_frame(colors[t - 1], motion.flow_bwd[t])).sum(axis=0))

    return computed(mapped(weight, range(1, len(rgb))))


def relative_temporal_consistency(
    x: Any, motion: ClipMotion, defined: Any = None, thresholds: Sequence[float] = RTC_THRESHOLDS
) -> dict[float, Score]:
    """Return rTC per threshold τ: share of trusted pixels with max(d/w, w/d) < τ, w the warped previous
    frame.

    x: [F,H,W] log disparity. Source: Li et al., "Enforcing temporal consistency" (2021), which uses 1.25:
    saturated.
    """
    shares: dict[float, list[float]] = {threshold: [] for threshold in thresholds}
    coverage: list[float] = []
    frames, mask_all = _log_frames(x, defined)
    if _is_flat_log(frames):
        return {threshold: undefined(FLAT) for threshold in thresholds}
    for t, warped, mask in _warped_pairs(frames, motion, mask_all):
        coverage.append(float(mask.mean()))
        if coverage[-1] >= MIN_COVERAGE:
            change = np.abs(frames[t] - warped)[mask]
            for threshold in thresholds:
                shares[threshold].append(float(np.mean(change < math.log(threshold))))
    return {threshold: mean_score(values, coverage, NO_PAIR) for threshold, values in shares.items()}


def flicker2(x: Any, motion: ClipMotion, defined: Any = None) -> Score:
    """Return Flk2: mean |x_t − 2 w(x_{t−1}) + w(w(x_{t−2}))| along the flow, on pixels trusted over both
    steps.

    x: [F,H,W] log disparity. A steady change, true motion in depth, cancels; a jump there and back counts
    twice.
    """
    frames, mask_all = _log_frames(x, defined)
    if _is_flat_log(frames):
        return undefined(FLAT)
    previous: tuple[int, np.ndarray, np.ndarray] | None = None
    values, coverage = [], []
    for t, warped, mask in _warped_pairs(frames, motion, mask_all):
        change = frames[t] - warped
        if previous is not None and previous[0] == t - 1:
            # Step t−1 → t−2 was stored on the pixels of t−1; one more warp brings it onto those of t.
            change_before = np.stack([previous[1], ~previous[2]]).astype(np.float32)
            earlier, untrusted = warp_frame(change_before, motion.flow_bwd[t])
            seen = mask & (untrusted < 1e-3)
            coverage.append(float(seen.mean()))
            if coverage[-1] >= MIN_COVERAGE:
                values.append(float(np.mean(np.abs(change - earlier)[seen])))
        previous = (t, change, mask)
    return mean_score(values, coverage, "no three frames in a row have enough trusted pixels")


def static_variation(
    x: Any,
    motion: ClipMotion,
    defined: Any = None,
    *,
    max_motion_px: float = 0.5,
    window: int = 32,
    min_frames: int = 8,
    min_share: float = 0.01,
) -> dict[str, Score]:
    """Return the temporal std of x at static pixels, {"total", "flicker", "change"}.

    The clip is split into windows (cut-free, up to `window` frames, at least `min_frames`). A pixel counts
    where |flow| < `max_motion_px` and the flow is trusted throughout its window. Its series is split at fps/4
    (a quarter cycle per frame, half of Nyquist): "flicker" is the root mean square above, "change" that below
    plus the linear trend; total² = flicker² + change².

    Args:
        x: [F,H,W] log disparity. min_share: of all pixels that must be static for a window to count.

    Returns:
        Scores; NaN when the camera moves all the time; coverage = mean share of static pixels over windows.
    """
    frames, mask_all = _log_frames(x, defined)
    names = ("total", "flicker", "change")
    if _is_flat_log(frames):
        return {name: undefined(FLAT) for name in names}
    sums, count, shares = np.zeros(2), 0, []
    for start, stop in _windows(motion, window, min_frames):
        static = np.any([mask_all[t] for t in range(start, stop)], axis=0)
        for t in range(start + 1, stop):
            static &= (np.square(motion.flow_bwd[t]).sum(axis=0) < max_motion_px**2) & motion.trusted_bwd[t]
        shares.append(float(static.mean()))
        if shares[-1] >= min_share:
            series = np.stack([frames[t][static] for t in range(start, stop)])
            sums += _split_energy(series.astype(np.float64))
            count += int(static.sum())
    if count == 0:
        return {name: undefined("no pixel stays static", float(np.mean(shares or [0.0]))) for name in names}
    flicker, change = sums / count
    values = {"total": flicker + change, "flicker": flicker, "change": change}
    return {name: mean_score([math.sqrt(values[name])], [float(np.mean(shares))], "") for name in names}


def scale_series(prediction: Any, reference: Any, stride: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Fit prediction_t ≈ s_t · reference_t + t_t for every frame by robust least squares (Huber, reweighted).

    Args:
        prediction, reference: [F,H,W], e.g. student and framewise teacher. stride: every n-th pixel is used.

    Returns:
        s, t: [F] float64; NaN where the reference is flat or something is not finite.
    """
    p, r = as_frames("prediction", prediction), as_frames("reference", reference)
    pairs = [
        robust_scale_and_shift(theirs[::stride, ::stride].ravel(), ours[::stride, ::stride].ravel())
        for theirs, ours in zip(r, p, strict=True)
    ]
    scales, shifts = np.array(pairs).T
    return scales, shifts


def scale_jitter_and_drift(prediction: Any, reference: Any, stride: int = 4) -> dict[str, Score]:
    """Return {"sJit": std of detrended log s_t, "sDrift": slope of log s_t per 100 frames} (×1, not ×100).

    s_t as in `scale_series`. Frames with s_t ≤ 0 or NaN are left out; coverage is the share that remains.
    """
    if is_flat(as_frames("prediction", prediction)):
        return {"sJit": undefined(FLAT), "sDrift": undefined(FLAT)}
    scales, _ = scale_series(prediction, reference, stride)
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(scales) & (scales > 0)
    coverage = float(usable.mean())
    if usable.sum() < 3:
        reason = "fewer than three frames fit the reference with a positive scale"
        return {"sJit": undefined(reason, coverage), "sDrift": undefined(reason, coverage)}
    time, log_scale = np.flatnonzero(usable).astype(np.float64), np.log(scales[usable])
    slope, offset = np.polyfit(time, log_scale, 1)
    residual = log_scale - (slope * time + offset)
    return {"sJit": Score(float(residual.std()), coverage), "sDrift": Score(float(100.0 * slope), coverage)}


def palindrome_indices(num_frames: int) -> list[int]:
    """Return 0, 1, …, F−1, …, 1, 0: the clip played forward, then back (2F − 1 frames)."""
    return [*range(num_frames), *range(num_frames - 2, -1, -1)]


def palindrome_drift(disparity: Any) -> Score:
    """Return mean |D(t) − D(mirror t)| over the spread of D, on a clip in the order of `palindrome_indices`.

    disparity: [2F−1,H,W]. 0 for a framewise model; what remains is the memory of the stream.
    """
    d = as_frames("disparity", disparity)
    if len(d) % 2 == 0 or len(d) < 3:
        raise ValueError(f"a palindrome has an odd number of frames, at least 3; got {len(d)}")
    if is_flat(d):
        return undefined(FLAT)
    _, unit = _unit_of_clip(d)
    differences = [float(np.mean(np.abs(d[t].astype(np.float64) - d[-1 - t]))) / unit for t in range(len(d) // 2)]
    return mean_score(differences, [1.0] * len(differences), "")


def _log_frames(x: Any, defined: Any) -> tuple[Frames, Frames]:
    frames = as_frames("x", x)
    return frames, as_mask("defined", defined, frames)


def _warped_pairs(x: Frames, motion: ClipMotion, defined: Frames) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield what `warped_pairs` does, worked out once where x is read from disk or computed."""
    return zip(*_kept_pairs(x, motion, defined), strict=True)


@remembered
def _kept_pairs(x: Frames, motion: ClipMotion, defined: Frames) -> tuple[list[int], Frames, Frames]:
    times: list[int] = []

    def columns() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for t, warped, mask in warped_pairs(x, motion, defined):
            times.append(t)
            yield warped, mask

    kept: Sequence[Frames] = on_disk(columns()) or [np.empty((0, 1, 1)), np.empty((0, 1, 1), bool)]
    return times, kept[0], kept[1]


def _in_units(frame: np.ndarray, unit: tuple[float, float] | None) -> np.ndarray:
    """Return the frame in units of a median and a mean absolute deviation, by default its own."""
    if unit is None:
        middle = float(np.median(frame))
        unit = middle, _deviation([frame], middle)
    return (frame - unit[0]) / unit[1]


@remembered
def _unit_of_clip(d: Frames) -> tuple[float, float]:
    """Return the median of all pixels of all frames and their mean absolute deviation from it."""
    middle = median(d)
    return middle, _deviation(d, middle)


def _deviation(frames: Iterable[np.ndarray], middle: float) -> float:
    mean = float(np.mean([np.mean(np.abs(frame - middle), dtype=np.float64) for frame in frames]))
    return max(mean, float(np.finfo(np.float64).tiny))


def _windows(motion: ClipMotion, window: int, min_frames: int) -> list[tuple[int, int]]:
    bounds = [0, *motion.cuts, motion.num_frames]
    pieces = []
    for begin, end in itertools.pairwise(bounds):
        starts = range(begin, end, window)
        pieces += [(start, min(start + window, end)) for start in starts]
    return [(start, stop) for start, stop in pieces if stop - start >= min_frames]


def _split_energy(series: np.ndarray) -> np.ndarray:
    """Return [above, below]: variance of [L,P] series above and below a quarter cycle per frame, summed over
    P.
    """
    length = len(series)
    time = np.arange(length) - (length - 1) / 2
    centered = series - series.mean(axis=0)
    slope = time @ centered / (time @ time)
    residual = centered - time[:, None] * slope
    energy = np.square(np.abs(np.fft.rfft(residual, axis=0))).sum(axis=1) / length**2
    energy[1 : (length + 1) // 2] *= 2.0  # every frequency but 0 and Nyquist stands for two
    high = np.arange(len(energy)) / length > 0.25
    trend = float(np.square(slope).sum() * np.mean(np.square(time)))
    return np.array([energy[high].sum(), energy[~high].sum() + trend])
