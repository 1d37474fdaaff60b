"""Simple causal filters over the teacher's depth: the bar that a student has to clear.

Every filter goes over the frames of a clip and gives one [H,W] for each as it comes; frame t of its output depends on
frames 0 … t alone. `alpha` is the weight of
the newest frame: alpha = 0.1 is what is often called "EMA 0.9". They run on the teacher's own output (inverse depth or
metres), with motion estimated from the pictures, and are not told about cuts, just like a student.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, repeat

import numpy as np

from videomamba_depth.flow.clip_motion import ClipMotion, warp_frame
from videomamba_depth.flow.frame_view import Frames

Baseline = Callable[[Frames, ClipMotion], Iterable[np.ndarray]]

STRENGTHS = (0.75, 0.5, 0.25, 0.1)
"""Weights of the newest frame at which every average is shown."""


def exponential_average(depth: Iterable[np.ndarray], alpha: float) -> Iterator[np.ndarray]:
    """Return y_t = alpha · x_t + (1 − alpha) · y_{t−1}, y_0 = x_0."""
    _check_alpha(alpha)
    return accumulate(depth, lambda smooth, new: alpha * new + (1.0 - alpha) * smooth)


def causal_affine(depth: Iterable[np.ndarray], leak: float = 0.95) -> Iterator[np.ndarray]:
    """Give every frame the mean and spread of the aligned frame before it: y_t = s_t · x_t + b_t, all pixels
    (ours).

    s_t = std(y_{t−1}) / std(x_t), not least squares: that would shrink the scale a little with every frame,
    since whatever moves lowers the correlation. `leak` < 1 pulls (s, b) back to (1, 0) by that factor every
    frame, so that the output follows true changes. Removes what flickers globally, blurs nothing. A flat
    frame is left as it is.
    """

    def align(before: np.ndarray, new: np.ndarray) -> np.ndarray:
        spread = float(new.std(dtype=np.float64))
        if spread <= 0.0:
            return new
        scale = float(before.std(dtype=np.float64)) / spread
        shift = float(before.mean(dtype=np.float64)) - scale * float(new.mean(dtype=np.float64))
        return (1.0 + leak * (scale - 1.0)) * new + leak * shift

    return accumulate(depth, align)


def flow_warped_average(depth: Frames, motion: ClipMotion, alpha: float) -> Iterator[np.ndarray]:
    """Return y_t = alpha · x_t + (1 − alpha) · warp(y_{t−1}) where the flow to t−1 can be trusted, x_t
    elsewhere.
    """
    _check_alpha(alpha)

    def average(smooth: np.ndarray, t: int) -> np.ndarray:
        new, warped = depth[t], warp_frame(smooth, motion.flow_bwd[t])
        return np.where(motion.trusted_bwd[t], alpha * new + (1.0 - alpha) * warped, new)

    return accumulate(range(1, len(depth)), average, initial=np.array(depth[0]))


def constant(depth: Frames) -> Iterator[np.ndarray]:
    """Return the median of frame 0 everywhere: what wins stability and loses everything else."""
    return repeat(np.full_like(depth[0], np.median(depth[0])), len(depth))


def run_baseline(baseline: Baseline, depth: Frames, motion: ClipMotion) -> np.ndarray:
    """Return what a filter makes of a clip, [F,H,W] in memory."""
    return np.stack(list(baseline(depth, motion)))


def default_baselines(strengths: Sequence[float] = STRENGTHS) -> dict[str, Baseline]:
    """Return the rows that stand beside every student: three families of averages, each at every strength.

    strengths: values of alpha, in (0, 1].
    """
    rows: dict[str, Baseline] = {}
    for name, average in AVERAGES.items():
        rows |= {f"{name}_{alpha:g}": partial(average, alpha=alpha) for alpha in strengths}
    return {**rows, "constant": lambda depth, motion: constant(depth)}


def _ema(depth: Frames, motion: ClipMotion, alpha: float) -> Iterator[np.ndarray]:
    return exponential_average(depth, alpha)


def _affine_ema(depth: Frames, motion: ClipMotion, alpha: float) -> Iterator[np.ndarray]:
    return exponential_average(causal_affine(depth), alpha)


AVERAGES: dict[str, Callable[..., Iterator[np.ndarray]]] = {
    "ema": _ema,
    "affine_ema": _affine_ema,
    "warped_ema": flow_warped_average,
}
"""Families of baselines by name; a row is called FAMILY_ALPHA."""


def _check_alpha(alpha: float) -> None:
    if not 0.0 < alpha <= 1.0:
        raise ValueError(f"alpha must be in (0, 1], the weight of the newest frame; got {alpha}")
