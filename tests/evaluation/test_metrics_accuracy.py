"""Accuracy: hand-computed values, and a second, plain implementation of the published protocol."""

from __future__ import annotations

import math

import numpy as np
import pytest

from videomamba_depth.evaluation.metrics.accuracy import (
    accuracy,
    alignment_per_frame,
    mean_accuracy,
    valid_ground_truth,
)
from videomamba_depth.utils.depth_kind import DepthKind


def random_depth(num_frames: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 12.0, (num_frames, 6, 7)).astype(np.float32)


def published(prediction: np.ndarray, gt: np.ndarray, max_depth_m: float) -> dict[str, float]:
    """The protocol as the benchmark states it, all frames in one system, written without our helpers."""
    valid = (gt > 1e-3) & (gt < max_depth_m)
    q = np.clip(prediction, 1e-3, None)
    system = np.stack([q[valid].astype(np.float64), np.ones(valid.sum())], axis=1)
    scale, shift = np.linalg.lstsq(system, 1.0 / (gt[valid].astype(np.float64) + 1e-8), rcond=None)[0]
    depth = np.clip(1.0 / np.clip(scale * q + shift, 1e-3, None), 1e-3, max_depth_m)
    sums = {"abs_rel": [], "delta1": [], "rmse": [], "rmse_log": []}
    for d, g, v in zip(depth, gt, valid, strict=True):
        if v.sum() == 0:
            continue
        d, g = d[v].astype(np.float64), g[v].astype(np.float64)
        sums["abs_rel"].append(np.mean(np.abs(d - g) / g))
        sums["delta1"].append(np.mean(np.maximum(d / g, g / d) < 1.25))
        sums["rmse"].append(math.sqrt(np.mean((d - g) ** 2)))
        sums["rmse_log"].append(math.sqrt(np.mean(np.log(d / g) ** 2)))
    return {name: float(np.mean(values)) for name, values in sums.items()}


def test_hand_computed_metrics() -> None:
    gt = np.array([[[1.0, 2.0]], [[4.0, 4.0]]])
    d = np.array([[[1.5, 2.0]], [[4.0, 5.0]]])
    valid = np.array([[[True, True]], [[False, True]]])
    found = mean_accuracy(d, gt, valid)
    assert found["abs_rel"] == pytest.approx(0.5 * (0.25 + 0.25))
    assert found["delta1"] == pytest.approx(0.5 * (0.5 + 0.0))  # 1.25 itself is not below 1.25
    assert found["rmse"] == pytest.approx(0.5 * (math.sqrt(0.125) + 1.0))
    assert found["rmse_log"] == pytest.approx(0.5 * (math.log(1.5) / math.sqrt(2) + math.log(1.25)))


def test_frames_weigh_the_same_however_many_pixels_are_valid() -> None:
    gt, d = np.ones((2, 2, 2)), np.ones((2, 2, 2))
    d[1] = 2.0
    valid = np.ones((2, 2, 2), bool)
    valid[1, 0] = valid[1, 1, 0] = False
    assert mean_accuracy(d, gt, valid)["abs_rel"] == pytest.approx(0.5)  # pooled pixels would give 0.2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_the_published_protocol(seed: int) -> None:
    gt = random_depth(seed=seed)
    gt[1] = 0.0
    gt[2, :3] = 0.0
    prediction = (3.0 / np.maximum(gt, 0.3) + random_depth(seed=seed + 10) * 0.1 - 0.2).astype(np.float32)
    ours = accuracy(prediction, gt, depth_kind=DepthKind.RELATIVE, max_depth_m=10.0)["video"]
    theirs = published(prediction, gt, 10.0)
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-6), name


def test_three_alignments_tell_drift_from_shape() -> None:
    gt = np.random.default_rng(3).uniform(1.0, 8.0, (5, 6, 7))
    drifting = (1.0 / gt) * np.array([1.0, 1.1, 1.2, 1.3, 1.4])[:, None, None]
    report = accuracy(drifting, gt, depth_kind=DepthKind.RELATIVE, max_depth_m=10.0)
    assert report["per_frame"]["abs_rel"] < 1e-5
    assert 0.05 < report["video"]["abs_rel"] < report["first_frame"]["abs_rel"]
    # With frame 0's scale, frame k is off by 1 − 1/(1 + k/10).
    expected = np.mean([1 - 1 / (1 + 0.1 * k) for k in range(5)])
    assert report["first_frame"]["abs_rel"] == pytest.approx(expected, rel=1e-3)


def test_metric_depth_is_never_aligned() -> None:
    gt = np.random.default_rng(4).uniform(1.0, 8.0, (2, 4, 4))
    report = accuracy(1.1 * gt, gt, depth_kind=DepthKind.METRIC, max_depth_m=10.0)
    assert list(report) == ["metric"]
    assert report["metric"]["abs_rel"] == pytest.approx(0.1)


def test_masked_values_do_not_matter() -> None:
    gt, p = random_depth(), random_depth(seed=1)
    valid = random_depth(seed=2) > 4.0
    poisoned = np.where(valid, p, np.nan)
    expected = accuracy(p, gt, valid, depth_kind=DepthKind.RELATIVE, max_depth_m=10.0)
    found = accuracy(poisoned, np.where(valid, gt, np.inf), valid, depth_kind=DepthKind.RELATIVE, max_depth_m=10.0)
    assert found == expected


def test_nothing_valid_nan_and_constants_are_never_perfect() -> None:
    gt = random_depth()
    none = accuracy(gt, gt, np.zeros(gt.shape, bool), depth_kind=DepthKind.RELATIVE)
    assert all(math.isnan(v) for metrics in none.values() for v in metrics.values())
    broken = gt.copy()
    broken[1, 2, 3] = np.nan
    assert math.isnan(accuracy(broken, gt, depth_kind=DepthKind.METRIC)["metric"]["delta1"])
    assert math.isnan(accuracy(broken, gt, depth_kind=DepthKind.RELATIVE)["video"]["delta1"])
    flat = accuracy(np.full_like(gt, 2.0), gt, depth_kind=DepthKind.RELATIVE, max_depth_m=20.0)
    assert flat["video"]["abs_rel"] > 0.2
    assert alignment_per_frame(np.full_like(gt, 2.0), gt, gt > 0)[0][0] == 0.0


def test_valid_ground_truth_and_shapes() -> None:
    gt = np.array([[[0.0, 1e-4, 1.0, 10.0, np.nan, np.inf]]])
    assert valid_ground_truth(gt, max_depth_m=10.0)[0].ravel().tolist() == [False, False, True, False, False, False]
    with pytest.raises(ValueError, match="ground truth's shape"):
        accuracy(np.ones((2, 3, 3)), np.ones((2, 3, 4)), depth_kind=DepthKind.METRIC)
    with pytest.raises(TypeError, match="valid must be a bool mask"):
        accuracy(np.ones((2, 3, 3)), np.ones((2, 3, 3)), np.ones((2, 3, 3)), depth_kind=DepthKind.METRIC)
