"""OPW, rTC, Flk2 and the fit of affine-invariant depth against second implementations, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest

from videomamba_depth.evaluation.metrics.accuracy import accuracy
from videomamba_depth.evaluation.metrics.stability import (
    flicker2,
    optical_flow_warping,
    positive_log,
    relative_temporal_consistency,
)
from videomamba_depth.flow.clip_motion import ClipMotion
from videomamba_depth.utils.depth_kind import DepthKind

F, H, W = 5, 14, 17
FLOW = (0.6, -1.3)  # of every pixel to the frame before: (dx, dy) px


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray, ClipMotion, np.ndarray]:
    """Return disparity [F,H,W], RGB, motion, and where the flow leads inside of the frame [H,W]."""
    rng = np.random.default_rng(3)
    disparity = rng.uniform(0.4, 2.0, (F, H, W)).astype(np.float32)
    rgb = rng.integers(90, 130, (F, H, W, 3), dtype=np.uint8)
    y, x = np.mgrid[:H, :W]
    inside = (x + FLOW[0] <= W - 1) & (y + FLOW[1] >= 0)
    flow = np.broadcast_to(np.array(FLOW, np.float32)[:, None, None], (F, 2, H, W)).copy()
    trusted = np.stack([inside] * F)
    return disparity, rgb, ClipMotion(flow, -flow, trusted, trusted), inside


def warped(values: np.ndarray, y: int, x: int) -> float:
    """Return the bilinear value of a frame [H,W] where the flow of pixel (y, x) leads."""
    px, py = x + FLOW[0], y + FLOW[1]
    x0, y0 = min(math.floor(px), W - 2), min(math.floor(py), H - 2)
    ax, ay = px - x0, py - y0
    top = (1 - ax) * values[y0, x0] + ax * values[y0, x0 + 1]
    bottom = (1 - ax) * values[y0 + 1, x0] + ax * values[y0 + 1, x0 + 1]
    return float((1 - ay) * top + ay * bottom)


@pytest.mark.parametrize("per", ["clip", "frame"])
def test_opw_equals_the_plain_form(scene: tuple[np.ndarray, np.ndarray, ClipMotion, np.ndarray], per: str) -> None:
    disparity, rgb, motion, inside = scene
    d = disparity.astype(np.float64)
    parts = [d] if per == "clip" else list(d[:, None])
    units = [(p - np.median(p)) / np.mean(np.abs(p - np.median(p))) for p in parts]
    d = np.concatenate([u.reshape(-1, H, W) for u in units])
    colors = rgb.astype(np.float64) / 255
    pairs = []
    for t in range(1, F):
        total = weights = 0.0
        for y, x in np.argwhere(inside):
            change = sum((colors[t, y, x, c] - warped(colors[t - 1, ..., c], y, x)) ** 2 for c in range(3))
            weight = math.exp(-50 * change)
            total, weights = total + weight * abs(d[t, y, x] - warped(d[t - 1], y, x)), weights + weight
        pairs.append(total / weights)
    assert optical_flow_warping(disparity, motion, rgb, per=per).value == pytest.approx(np.mean(pairs), rel=1e-4)


def test_rtc_and_flicker_equal_the_plain_forms(scene: tuple[np.ndarray, np.ndarray, ClipMotion, np.ndarray]) -> None:
    disparity, _, motion, inside = scene
    x, defined = positive_log(disparity)
    log = np.log(disparity.astype(np.float64))
    shares, flickers = [], []
    steps = [np.full((H, W), np.nan)]
    for t in range(1, F):
        step = np.full((H, W), np.nan)
        for y, column in np.argwhere(inside):
            step[y, column] = log[t, y, column] - warped(log[t - 1], y, column)
        shares.append(np.mean(np.abs(step[inside]) < math.log(1.05)))
        steps.append(step)
    for t in range(2, F):
        found = [
            abs(steps[t][y, column] - before)
            for y, column in np.argwhere(inside)
            if np.isfinite(before := warped(steps[t - 1], y, column))
        ]
        flickers.append(np.mean(found))
    assert relative_temporal_consistency(x, motion, defined)[1.05].value == pytest.approx(np.mean(shares), abs=1e-6)
    assert flicker2(x, motion, defined).value == pytest.approx(np.mean(flickers), rel=1e-4)


def test_affine_invariant_depth_is_fitted_as_depth() -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(1, 9, (3, 6, 7))
    given = 0.3 * truth - 2 + 0.05 * rng.normal(size=truth.shape)
    columns = np.stack([given.ravel(), np.ones(given.size)], 1)
    scale, shift = np.linalg.lstsq(columns, truth.ravel(), rcond=None)[0]
    fitted = np.clip(scale * given + shift, 1e-3, 10)
    expected = np.mean([np.mean(np.abs(d - z) / z) for d, z in zip(fitted, truth, strict=True)])
    found = accuracy(given, truth, depth_kind=DepthKind.AFFINE_DEPTH, max_depth_m=10)
    assert found["video"]["abs_rel"] == pytest.approx(expected, rel=1e-6)
    assert found["per_frame"]["abs_rel"] < found["video"]["abs_rel"]
