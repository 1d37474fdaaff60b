"""Simple causal filters over the teacher's depth: the bar that a student has to clear.

Every filter maps [F,H,W] to [F,H,W], and frame t of its output depends on frames 0 … t alone. `alpha` is the weight of
the newest frame: alpha = 0.1 is what is often called "EMA 0.9". They run on the teacher's own output (inverse depth or
metres), with motion estimated from the pictures, and are not told about cuts, just like a student.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from videomamba_depth.utils.motion import ClipMotion, warp_frame

Baseline = Callable[[np.ndarray, ClipMotion], np.ndarray]

STRENGTHS = (0.75, 0.5, 0.25, 0.1)
"""Weights of the newest frame at which every average is shown."""


def exponential_average(depth: np.ndarray, alpha: float) -> np.ndarray:
    """Return y_t = alpha · x_t + (1 − alpha) · y_{t−1}, y_0 = x_0."""
    _check_alpha(alpha)
    smooth = np.array(depth, copy=True)
    for t in range(1, len(depth)):
        smooth[t] = alpha * depth[t] + (1.0 - alpha) * smooth[t - 1]
    return smooth


def causal_affine(depth: np.ndarray, leak: float = 0.95) -> np.ndarray:
    """Give every frame the mean and spread of the aligned frame before it: y_t = s_t · x_t + b_t, all pixels
    (ours).

    s_t = std(y_{t−1}) / std(x_t), not least squares: that would shrink the scale a little with every frame,
    since whatever moves lowers the correlation. `leak` < 1 pulls (s, b) back to (1, 0) by that factor every
    frame, so that the output follows true changes. Removes what flickers globally, blurs nothing. A flat
    frame is left as it is.
    """
    aligned = np.array(depth, copy=True)
    for t in range(1, len(depth)):
        spread = float(depth[t].std(dtype=np.float64))
        if spread > 0.0:
            scale = float(aligned[t - 1].std(dtype=np.float64)) / spread
            shift = float(aligned[t - 1].mean(dtype=np.float64)) - scale * float(depth[t].mean(dtype=np.float64))
            aligned[t] = (1.0 + leak * (scale - 1.0)) * depth[t] + leak * shift
    return aligned


def flow_warped_average(depth: np.ndarray, motion: ClipMotion, alpha: float) -> np.ndarray:
    """Return y_t = alpha · x_t + (1 − alpha) · warp(y_{t−1}) where the flow to t−1 can be trusted, x_t
    elsewhere.
    """
    _check_alpha(alpha)
    smooth = np.array(depth, copy=True)
    for t in range(1, len(depth)):
        warped = warp_frame(smooth[t - 1], motion.flow_bwd[t])
        smooth[t] = np.where(motion.trusted_bwd[t], alpha * depth[t] + (1.0 - alpha) * warped, depth[t])
    return smooth


def constant(depth: np.ndarray) -> np.ndarray:
    """Return the median of frame 0 everywhere: what wins stability and loses everything else."""
    return np.full_like(depth, np.median(depth[0]))


def default_baselines(strengths: Sequence[float] = STRENGTHS) -> dict[str, Baseline]:
    """Return the rows that stand beside every student: three families of averages, each at every strength.

    strengths: values of alpha, in (0, 1].
    """
    rows: dict[str, Baseline] = {}
    for name, average in AVERAGES.items():
        rows |= {f"{name}_{alpha:g}": partial(average, alpha=alpha) for alpha in strengths}
    return {**rows, "constant": lambda depth, motion: constant(depth)}


def _ema(depth: np.ndarray, motion: ClipMotion, alpha: float) -> np.ndarray:
    return exponential_average(depth, alpha)


def _affine_ema(depth: np.ndarray, motion: ClipMotion, alpha: float) -> np.ndarray:
    return exponential_average(causal_affine(depth), alpha)


AVERAGES: dict[str, Callable[..., np.ndarray]] = {
    "ema": _ema,
    "affine_ema": _affine_ema,
    "warped_ema": flow_warped_average,
}
"""Families of baselines by name; a row is called FAMILY_ALPHA."""


def _check_alpha(alpha: float) -> None:
    if not 0.0 < alpha <= 1.0:
        raise ValueError(f"alpha must be in (0, 1], the weight of the newest frame; got {alpha}")
