"""Metrics that go over a clip frame by frame equal their formulas on the whole clip in memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_room import Room, render_room

from videomamba_depth.evaluation.context import Context
from videomamba_depth.evaluation.methods import all_filters
from videomamba_depth.evaluation.metrics.geometry import temporal_gradient_error
from videomamba_depth.evaluation.metrics.registry import score_depth
from videomamba_depth.evaluation.metrics.sharpness_and_lag import boundary_f1, edge_strength, edge_threshold, lag_frames
from videomamba_depth.evaluation.metrics.stability import (
    optical_flow_warping,
    palindrome_drift,
    positive_log,
    static_variation,
)
from videomamba_depth.flow.clip_motion import ClipMotion, warp_frame
from videomamba_depth.flow.frame_view import on_disk
from videomamba_depth.utils.depth_kind import DepthKind

NUM_FRAMES = 40


@pytest.fixture(scope="module")
def room() -> Room:
    return render_room(NUM_FRAMES, 24, 32, speed_m=0.02)


@pytest.fixture(scope="module")
def disparity(room: Room) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=room.depth_m.shape)
    return (1.0 / room.depth_m * (1 + 0.03 * noise)).astype(np.float32)


def from_disk(motion: ClipMotion) -> ClipMotion:
    arrays = (motion.flow_bwd, motion.flow_fwd, motion.trusted_bwd, motion.trusted_fwd)
    return ClipMotion(*on_disk(zip(*arrays, strict=True)), cuts=motion.cuts)


@pytest.mark.parametrize(
    ("truth", "kind"),
    [(truth, kind) for truth in (True, False) for kind in DepthKind if truth or kind is not DepthKind.AFFINE_DEPTH],
)
def test_frames_on_disk_score_what_arrays_score(
    room: Room, disparity: np.ndarray, truth: bool, kind: DepthKind
) -> None:
    teacher = disparity if kind == DepthKind.RELATIVE else 1.0 / disparity
    depth = np.stack(list(all_filters()["ema_0.5"](teacher, room.motion)))
    known = (room.depth_m, None, 10.0, room.intrinsics, room.camera_to_world) if truth else ()
    expected = score_depth(depth, Context(room.rgb, teacher, room.motion, kind, *known))
    kept = on_disk(zip(room.rgb, depth, teacher, room.depth_m, strict=True))
    context = Context(kept[0], kept[2], from_disk(room.motion), kind, *((kept[3], *known[1:]) if truth else ()))
    found = score_depth(kept[1], context)
    assert list(found) == list(expected)
    for name, score in expected.items():
        assert found[name].value == score.value or math.isnan(score.value), name
        assert (found[name].coverage, found[name].reason) == (score.coverage, score.reason), name


def test_the_floor_of_the_log(disparity: np.ndarray) -> None:
    floor = 0.02 * float(np.percentile(disparity[:, ::2, ::2], 98))
    low = np.where(disparity < np.median(disparity), 0.3 * floor, disparity)
    x, defined = positive_log(low)
    floor = 0.02 * float(np.percentile(low[:, ::2, ::2].astype(np.float64), 98))
    np.testing.assert_array_equal(defined[:], low > np.float32(floor))
    np.testing.assert_allclose(x[:], np.log(np.maximum(low, np.float32(floor))), rtol=1e-6)


def test_one_normalization_per_clip(room: Room, disparity: np.ndarray) -> None:
    spread = np.mean(np.abs(disparity - np.median(disparity)), dtype=np.float64)
    whole = (disparity - np.median(disparity)) / spread
    pairs = []
    for t in range(1, NUM_FRAMES):
        colors = room.rgb[t - 1 : t + 1].astype(np.float32).transpose(0, 3, 1, 2) / 255.0
        warped = warp_frame(np.concatenate([whole[t - 1][None], colors[0]]), room.motion.flow_bwd[t])
        weight = np.exp(-50.0 * np.square(colors[1] - warped[1:]).sum(axis=0))
        mask = room.motion.trusted_bwd[t]
        pairs.append((weight * np.abs(whole[t] - warped[0]))[mask].sum() / weight[mask].sum())
    assert optical_flow_warping(disparity, room.motion, room.rgb).value == pytest.approx(np.mean(pairs), rel=1e-6)


def test_edges_of_the_whole_clip(disparity: np.ndarray) -> None:
    edges = np.stack([edge_strength(frame) for frame in disparity])
    assert edge_threshold(disparity) == pytest.approx(np.percentile(edges[:, ::2, ::2], 95.0), rel=1e-7)
    row = np.roll(disparity, 1, axis=2)
    limit = float(np.percentile(edges[:, ::2, ::2], 95.0))
    assert boundary_f1(row, disparity).value == boundary_f1(row, disparity, threshold=limit).value


def test_lag_by_correlation_of_the_whole_clip(room: Room) -> None:
    depth = 1.0 / room.depth_m
    noisy = (depth * (1 + 0.02 * np.random.default_rng(1).normal(size=(NUM_FRAMES, 1, 1)))).astype(np.float32)
    late = np.stack(list(all_filters()["ema_0.5"](noisy, room.motion)))

    def changes(frames: np.ndarray) -> np.ndarray:
        return np.diff(frames.reshape(NUM_FRAMES, 3, 8, 4, 8).mean(axis=(2, 4)), axis=0)

    a, b = changes(late), changes(noisy)
    curve = {}
    for k in range(-2, 9):
        later, earlier = (a[k:], b[: len(b) - k]) if k >= 0 else (a[:k], b[-k:])
        curve[k] = (later * earlier).sum() / math.sqrt(np.square(later).sum() * np.square(earlier).sum())
    peak = max(curve, key=lambda k: curve[k])
    left, middle, right = curve[peak - 1], curve[peak], curve[peak + 1]
    expected = peak + 0.5 * (left - right) / (left - 2 * middle + right)
    score = lag_frames(late, noisy)
    assert score.value == pytest.approx(expected, abs=1e-4)
    assert score.coverage == pytest.approx(middle, rel=1e-4)


def test_range_of_the_ground_truth(room: Room, disparity: np.ndarray) -> None:
    y, valid = 1.0 / room.depth_m, room.depth_m < 4.0
    motion = room.motion
    once = temporal_gradient_error(disparity, y, motion.flow_fwd, motion.trusted_fwd, valid).value
    low, high = np.percentile(y[valid].astype(np.float64), [2, 98])
    doubled = temporal_gradient_error(2 * disparity, 2 * y, motion.flow_fwd, motion.trusted_fwd, valid).value
    assert doubled == pytest.approx(once, rel=1e-6)  # in units of the range
    stretched = np.where(valid, y, 1e6)  # what is not valid does not stretch it
    assert temporal_gradient_error(disparity, stretched, motion.flow_fwd, motion.trusted_fwd, valid).value == once
    assert high > low


def test_spread_of_a_palindrome(disparity: np.ndarray) -> None:
    d = np.concatenate([disparity, disparity[-2::-1] * 1.01])
    unit = np.mean(np.abs(d - np.median(d)), dtype=np.float64)
    gaps = np.abs(d[: NUM_FRAMES - 1].astype(np.float64) - d[: NUM_FRAMES - 1 : -1]).mean(axis=(1, 2))
    assert palindrome_drift(d).value == pytest.approx(gaps.mean() / unit, rel=1e-9)


def test_static_pixels_of_the_whole_window() -> None:
    still = render_room(32, 24, 32, speed_m=0.0)
    x = np.log(np.random.default_rng(2).uniform(1.0, 1.1, still.depth_m.shape))
    series = x.reshape(32, -1)
    residual = series - series.mean(axis=0)  # total: all of the variance, trend and flicker together
    expected = math.sqrt(np.square(residual).mean())
    assert static_variation(x, still.motion)["total"].value == pytest.approx(expected, rel=1e-6)


def plain_filters(depth: np.ndarray, motion: ClipMotion, alpha: float) -> dict[str, np.ndarray]:
    """Return every average as a loop over one array in memory."""
    ema, warped, affine = depth.copy(), depth.copy(), depth.copy()
    for t in range(1, len(depth)):
        ema[t] = alpha * depth[t] + (1 - alpha) * ema[t - 1]
        moved = warp_frame(warped[t - 1], motion.flow_bwd[t])
        warped[t] = np.where(motion.trusted_bwd[t], alpha * depth[t] + (1 - alpha) * moved, depth[t])
        before, now = affine[t - 1].astype(np.float64), depth[t].astype(np.float64)
        scale = before.std() / now.std()
        affine[t] = (1 + 0.95 * (scale - 1)) * depth[t] + 0.95 * float(before.mean() - scale * now.mean())
    smooth = affine.copy()
    for t in range(1, len(depth)):
        smooth[t] = alpha * affine[t] + (1 - alpha) * smooth[t - 1]
    flat = np.full_like(depth, np.median(depth[0]))
    return {f"ema_{alpha}": ema, f"warped_ema_{alpha}": warped, f"affine_ema_{alpha}": smooth, "constant": flat}


def test_filters_equal_loops_over_an_array(room: Room, disparity: np.ndarray) -> None:
    for name, expected in plain_filters(disparity, room.motion, 0.25).items():
        found = np.stack(list(all_filters()[name](disparity, room.motion)))
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=name)
