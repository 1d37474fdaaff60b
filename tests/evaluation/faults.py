"""Known faults of a depth video, made from exact depth: what every metric is held against."""

from __future__ import annotations

import cv2
import numpy as np


def faulty_depth(exact: np.ndarray, blur_px: float = 3.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Return {case: disparity [F,H,W]} made of the exact one: jitter, drift, an average, blur, nothing."""
    num_frames = len(exact)
    noise = np.random.default_rng(seed).normal(size=num_frames)[:, None, None].astype(np.float32)
    jitter = exact * (1 + 0.01 * noise)
    smooth = jitter.copy()
    for t in range(1, num_frames):
        smooth[t] = 0.1 * jitter[t] + 0.9 * smooth[t - 1]
    growth = np.exp(np.log(1.2) * np.linspace(0, 1, num_frames, dtype=np.float32))[:, None, None]
    return {
        "perfect": exact,
        "scale jitter": jitter,
        "shift jitter": exact + 0.01 * exact.mean() * noise,
        "drift": exact * growth,
        "jitter then EMA": smooth,
        "blur": np.stack([cv2.GaussianBlur(frame, (0, 0), blur_px) for frame in exact]),
        "constant": np.full_like(exact, exact.mean()),
    }
