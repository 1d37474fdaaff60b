"""Stability metrics and guards on series whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from videomamba_depth.evaluation.metrics.sharpness_and_lag import boundary_f1, edge_ratio, frames_to_settle, lag_frames
from videomamba_depth.evaluation.metrics.stability import (
    flicker2,
    optical_flow_warping,
    palindrome_drift,
    palindrome_indices,
    positive_log,
    relative_temporal_consistency,
    scale_jitter_and_drift,
    scale_series,
    static_variation,
)
from videomamba_depth.flow.clip_motion import ClipMotion, detect_cuts, estimate_motion


def still_motion(num_frames: int, size: int = 16, cuts: tuple[int, ...] = ()) -> ClipMotion:
    """Return a clip in which nothing moves and every flow is trusted."""
    flow = np.zeros((num_frames, 2, size, size), np.float32)
    bwd, fwd = np.ones((num_frames, size, size), bool), np.ones((num_frames, size, size), bool)
    bwd[0] = fwd[-1] = False
    return ClipMotion(flow, flow.copy(), bwd, fwd, cuts)


def picture(size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).uniform(1.0, 3.0, (size, size))


def scaled(factors: list[float]) -> np.ndarray:
    return picture()[None] * np.array(factors)[:, None, None]


def test_rtc_and_flicker_of_known_scales() -> None:
    x, _ = positive_log(scaled([1.0, 1.03, 1.03, 1.0]))
    motion = still_motion(4)
    shares = relative_temporal_consistency(x, motion, thresholds=(1.02, 1.05))
    assert shares[1.02].value == pytest.approx(1 / 3)
    assert shares[1.05].value == 1.0
    # log scale 0, a, a, 0: second differences −a and −a.
    assert flicker2(x, motion).value == pytest.approx(math.log(1.03), rel=1e-3)
    steady, _ = positive_log(scaled([1.0, 1.02, 1.02**2, 1.02**3]))
    assert flicker2(steady, motion).value < 1e-6


def test_opw_per_clip_sees_scale_flicker_and_per_frame_does_not() -> None:
    disparity = scaled([1.0, 1.1, 1.0])
    rgb = np.zeros((3, 16, 16, 3), np.uint8)
    spread = np.mean(np.abs(disparity - np.median(disparity)))
    expected = 0.1 * picture().mean() / spread
    assert optical_flow_warping(disparity, still_motion(3), rgb).value == pytest.approx(expected, rel=1e-6)
    assert optical_flow_warping(disparity, still_motion(3), rgb, per="frame").value < 1e-6


def test_opw_weighs_by_color() -> None:
    disparity = scaled([1.0, 1.0])
    disparity[1, :8] += 1.0
    rgb = np.zeros((2, 16, 16, 3), np.uint8)
    rgb[1, :8] = 255  # where depth changes, so does color: weight exp(−150)
    assert optical_flow_warping(disparity, still_motion(2), rgb).value < 1e-6


def test_uncovered_pairs_are_skipped_and_cuts_dropped() -> None:
    x, _ = positive_log(scaled([1.0, 2.0, 2.0]))
    with_cut = relative_temporal_consistency(x, still_motion(3, cuts=(1,)))[1.01]
    assert with_cut.value == 1.0
    blind = still_motion(3)
    blind.trusted_bwd[1:, 2:] = False  # 2 of 16 rows are left: more than 10 %, scored
    assert flicker2(x, blind).value > 0.1
    blind.trusted_bwd[1:, 1:] = False  # 1 of 16: less, skipped rather than perfect
    score = flicker2(x, blind)
    assert math.isnan(score.value)
    assert "trusted" in score.reason
    none = relative_temporal_consistency(x, still_motion(3, cuts=(1, 2)))[1.01]
    assert math.isnan(none.value)


def test_constants_never_score() -> None:
    flat, motion = np.full((10, 16, 16), 2.0), still_motion(10)
    x, defined = positive_log(flat)
    rgb = np.zeros((10, 16, 16, 3), np.uint8)
    scores = [
        optical_flow_warping(flat, motion, rgb),
        flicker2(x, motion, defined),
        relative_temporal_consistency(x, motion, defined)[1.02],
        static_variation(x, motion, defined)["total"],
        scale_jitter_and_drift(flat, scaled([1.0] * 10))["sJit"],
        lag_frames(flat, scaled([1.0] * 10)),
        palindrome_drift(flat[:9]),
    ]
    assert all(math.isnan(score.value) and score.reason for score in scores)


def test_pixels_at_the_floor_are_left_out_instead_of_still() -> None:
    disparity = scaled([1.0, 1.1, 1.0])
    disparity[:, :14] = 0.0  # sky: the log is at its floor at both ends
    x, defined = positive_log(disparity)
    score = flicker2(x, still_motion(3), defined)
    assert score.coverage == pytest.approx(2 / 16)
    assert score.value == pytest.approx(2 * math.log(1.1), rel=1e-3)


@pytest.mark.parametrize(("cycles", "band"), [(2, "change"), (12, "flicker")])
def test_static_variation_splits_at_a_quarter_cycle_per_frame(cycles: int, band: str) -> None:
    time = np.arange(32)
    wave = 0.1 * np.sin(2 * np.pi * cycles * time / 32 + 0.3)
    x = np.log(picture())[None] + wave[:, None, None]
    scores = static_variation(x, still_motion(32))
    other = "flicker" if band == "change" else "change"
    # Detrending takes a few percent of a slow wave into the trend, which counts as change.
    assert scores[band].value == pytest.approx(0.1 / math.sqrt(2), rel=1e-2)
    assert scores[other].value < 0.007  # the trend of the fast wave, exactly 0 for a long one
    assert scores["total"].value == pytest.approx(x.std(axis=0).mean(), rel=1e-2)


def test_static_variation_counts_a_trend_as_change_and_needs_static_pixels() -> None:
    x = np.log(picture())[None] + 0.01 * np.arange(20)[:, None, None]
    scores = static_variation(x, still_motion(20))
    assert scores["flicker"].value < 1e-6
    assert scores["change"].value == pytest.approx(0.01 * np.arange(20).std(), rel=1e-6)
    moving = still_motion(20)
    moving.flow_bwd[:, 0] = 1.0
    assert math.isnan(static_variation(x, moving)["total"].value)


def test_scale_jitter_and_drift() -> None:
    reference = scaled([1.0] * 50)
    time = np.arange(50)
    jitter = 0.02 * (-1.0) ** time
    prediction = reference * np.exp(0.002 * time + jitter)[:, None, None] + 0.3
    prediction[:, :4, :4] += 5.0  # a sixteenth of the picture is wrong
    scores = scale_jitter_and_drift(prediction, reference, stride=1)
    assert scores["sDrift"].value == pytest.approx(0.2, rel=0.05)
    assert scores["sJit"].value == pytest.approx(0.02, rel=0.05)
    scales, shifts = scale_series(reference * 2 + 1, reference)
    np.testing.assert_allclose(scales, 2.0)
    np.testing.assert_allclose(shifts, 1.0)
    assert np.isnan(scale_series(reference, np.ones_like(reference))[0]).all()


def test_palindrome() -> None:
    assert palindrome_indices(3) == [0, 1, 2, 1, 0]
    symmetric = scaled([1.0, 1.5, 2.0, 1.5, 1.0])
    assert palindrome_drift(symmetric).value == 0.0
    drifted = symmetric.copy()
    drifted[3:] += 0.2
    spread = np.mean(np.abs(drifted - np.median(drifted)))
    assert palindrome_drift(drifted).value == pytest.approx(0.2 / spread)


def moving_bump(num_frames: int = 30, delay: int = 0) -> np.ndarray:
    """Return a smooth bump that swings from side to side, `delay` frames late."""
    x = np.arange(64)
    centers = 32 + 20 * np.sin(0.25 * (np.arange(num_frames) - delay))
    row = np.exp(-(((x[None] - centers[:, None]) / 6.0) ** 2))
    return 1.0 + np.repeat(row[:, None, :], 32, axis=1)


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_lag_is_found(delay: int) -> None:
    score = lag_frames(moving_bump(delay=delay), moving_bump())
    assert score.value == pytest.approx(delay, abs=0.1)
    assert score.coverage > 0.99


def test_lag_of_an_average_is_seen_through_noise() -> None:
    rng = np.random.default_rng(0)
    teacher = moving_bump(60) + 0.05 * rng.normal(size=(60, 32, 64))
    smooth = teacher.copy()
    for t in range(1, 60):
        smooth[t] = 0.3 * teacher[t] + 0.7 * smooth[t - 1]
    assert lag_frames(smooth, teacher).value > 0.5
    assert abs(lag_frames(teacher, teacher).value) < 1e-6


def test_edge_guards_see_blur_but_not_a_slanted_plane() -> None:
    import cv2

    plane = np.linspace(1, 3, 96)[None, :].repeat(72, 0)
    scene = plane.copy()
    scene[20:50, 30:60] += 1.0
    frames = scene[None].repeat(3, 0)
    blurred = np.stack([cv2.GaussianBlur(f, (0, 0), 3.0) for f in frames])
    assert edge_ratio(frames, frames).value == 1.0
    assert boundary_f1(frames, frames).value == 1.0
    assert edge_ratio(blurred, frames).value < 0.5
    assert boundary_f1(blurred, frames).value < 0.5
    ghost = frames + np.roll(frames, 15, axis=2) * 0.5
    assert edge_ratio(ghost, frames).value > 1.05
    assert edge_ratio(plane[None].repeat(3, 0), frames).value < 0.2
    assert boundary_f1(np.ones_like(frames), frames).value == 0.0
    assert math.isnan(edge_ratio(frames, np.ones_like(frames)).value)
    faint = frames + 0.01 * np.random.default_rng(0).normal(size=frames.shape)
    assert edge_ratio(frames, faint).value == pytest.approx(1.0, abs=0.1)


def test_boundary_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    """Of two equal steps far apart, one alone has all it shows right and half of what is wanted, and the other way."""
    one, two = np.zeros((2, 40, 96), np.float32), np.zeros((2, 40, 96), np.float32)
    one[:, :, 24:] += 1.0
    two[:, :, 24:] += 1.0
    two[:, :, 72:] += 1.0
    for row, reference in ((one, two), (two, one)):
        assert boundary_f1(row, reference, threshold=0.2).value == pytest.approx(2 / 3, abs=0.02)


def test_frames_to_settle() -> None:
    new = scaled([1.0] * 6)
    carried = new + np.array([0.5, 0.1, 0.001, 0.1, 0.001, 0.0])[:, None, None]
    assert frames_to_settle(carried, new).value == 4.0
    assert frames_to_settle(new, new).value == 0.0
    assert math.isnan(frames_to_settle(new + 1.0, new).value)


def test_cuts_are_detected_and_flashes_are_not() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 100, (24, 24, 3)).astype(np.uint8)
    b = rng.integers(150, 255, (24, 24, 3)).astype(np.uint8)
    assert detect_cuts([a, a, b, b, b]) == (2,)
    assert detect_cuts([a, a, b, a, a]) == ()
    assert detect_cuts([a]) == ()


def test_estimated_motion_of_a_shift() -> None:
    y, x = np.mgrid[:48, :64]
    frames = []
    for t in range(3):
        waves = [np.sin(0.3 * (x - 2 * t) + k + 0.21 * y) + np.sin(0.17 * y - 0.1 * (x - 2 * t)) for k in range(3)]
        frames.append((127 + 50 * np.stack(waves, -1)).astype(np.uint8))
    from videomamba_depth.flow.estimators import DISFlow

    motion = estimate_motion(frames, DISFlow())
    assert motion.num_frames == 3
    assert np.median(motion.flow_bwd[1:, 0]) == pytest.approx(-2.0, abs=0.2)
    assert np.median(motion.flow_fwd[:2, 0]) == pytest.approx(2.0, abs=0.2)
    assert not motion.trusted_bwd[0].any()
    assert not motion.trusted_fwd[-1].any()
    assert motion.coverage > 0.8
    with pytest.raises(ValueError, match="trusted_fwd must have shape"):
        ClipMotion(motion.flow_bwd, motion.flow_fwd, motion.trusted_bwd, motion.trusted_fwd[:2])
