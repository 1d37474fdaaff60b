"""TAE, TAEz and TGE against second, plain implementations, and their known differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_room import Room, render_room

from videomamba_depth.evaluation.metrics.geometry import tae, tae_z, temporal_gradient_error


@pytest.fixture(scope="module")
def room() -> Room:
    return render_room(4, 24, 32, speed_m=0.06)


def noisy(depth: np.ndarray, seed: int = 0) -> np.ndarray:
    return depth * np.exp(0.03 * np.random.default_rng(seed).normal(size=depth.shape))


def plain_tae(depth: np.ndarray, k: np.ndarray, poses: np.ndarray, zbuffer: bool) -> float:
    """Pixel by pixel, in the order of the published script; with `zbuffer`, the nearest point wins."""
    num_frames, height, width = depth.shape
    total = 0.0
    for i in range(num_frames - 1):
        for a, b in ((i, i + 1), (i + 1, i)):
            move = np.linalg.inv(poses[b]) @ poses[a]
            hit = np.zeros((height, width))
            for v in range(height):
                for u in range(width):
                    point = np.linalg.inv(k) @ [u, v, 1.0] * depth[a, v, u]
                    moved = move[:3, :3] @ point + move[:3, 3]
                    x, y, w = k @ moved
                    column, row = round(x / w), round(y / w)
                    if 0 <= column < width and 0 <= row < height:
                        nearer = hit[row, column] == 0 or moved[2] < hit[row, column]
                        hit[row, column] = moved[2] if nearer or not zbuffer else hit[row, column]
            seen = hit > 0
            total += np.mean(np.abs(depth[b][seen] - hit[seen]) / depth[b][seen]) if seen.any() else 0.0
    return 100.0 * total / (2 * (num_frames - 1))


def test_tae_equals_the_plain_form() -> None:
    room = render_room(3, 24, 32, speed_m=0.3)  # fast, so that points collide
    depth = noisy(room.depth_m)
    expected = plain_tae(depth, room.intrinsics, room.camera_to_world, zbuffer=False)
    assert tae(depth, room.intrinsics, room.camera_to_world).value == pytest.approx(expected, rel=1e-9)
    with_buffer = plain_tae(depth, room.intrinsics, room.camera_to_world, zbuffer=True)
    assert with_buffer != pytest.approx(expected, rel=1e-4)
    assert tae_z(depth, room.intrinsics, room.camera_to_world).value == pytest.approx(with_buffer, rel=1e-9)


def test_covisibility_removes_what_the_panel_hides(room: Room) -> None:
    cameras = (room.intrinsics, room.camera_to_world)
    plain = tae_z(room.depth_m, *cameras).value
    clean = tae_z(room.depth_m, *cameras, gt_depth_m=room.depth_m)
    assert clean.value < 0.7 * plain  # exact depth: what remains is rounding to pixels
    assert clean.coverage > 0.8


def test_scale_jitter_shows_and_a_still_constant_does_not_hide(room: Room) -> None:
    jitter = room.depth_m * np.array([1.0, 1.02, 0.99, 1.01])[:, None, None]
    cameras = (room.intrinsics, room.camera_to_world)
    # |Δ log s| is .020, .030 and .020: 2.3 % on average, beside the rounding.
    assert tae_z(jitter, *cameras, gt_depth_m=room.depth_m).value == pytest.approx(2.4, abs=0.3)


@pytest.mark.parametrize("broken", [np.nan, -np.inf, 0.0])
def test_a_pose_that_is_not_one_is_skipped_and_never_perfect(room: Room, broken: float) -> None:
    depth, poses = room.depth_m * 1.1, np.array(room.camera_to_world)
    rest = tae(depth[1:], room.intrinsics, poses[1:])
    poses[0] = broken
    result = tae(depth, room.intrinsics, poses)
    assert (result.value, result.coverage) == (rest.value, pytest.approx(2 / 3))
    assert tae_z(depth, room.intrinsics, poses).value == tae_z(depth[1:], room.intrinsics, poses[1:]).value
    poses[2] = broken  # no pair is left
    for metric in (tae, tae_z):
        result = metric(depth, room.intrinsics, poses)
        assert math.isnan(result.value)
        assert (result.coverage, result.reason) == (0.0, "no two frames in a row have a finite pose")


def test_pairs_without_overlap_are_skipped_by_taez_and_perfect_in_tae(room: Room) -> None:
    poses = room.camera_to_world.copy()
    poses[2:, :3, :3] = np.diag([-1.0, 1.0, -1.0])  # turned round: frames 1 and 2 share nothing
    turned = tae_z(room.depth_m, room.intrinsics, poses, gt_depth_m=room.depth_m)
    assert math.isfinite(turned.value)
    assert turned.coverage < 0.75
    apart = poses[[0, 2]]
    score = tae_z(room.depth_m[[0, 2]], room.intrinsics, apart, gt_depth_m=room.depth_m[[0, 2]])
    assert math.isnan(score.value)
    assert "overlap" in score.reason
    far = np.stack([np.eye(4), np.eye(4)])
    far[1, 0, 3] = 1e6
    assert tae(room.depth_m[:2], room.intrinsics, far).value == 0.0  # the published form's fault, kept as published
    assert math.isnan(tae(room.depth_m[:1], room.intrinsics, poses[:1]).value)


def test_intrinsics_per_frame_and_wrong_poses(room: Room) -> None:
    depth = noisy(room.depth_m)
    per_frame = np.repeat(room.intrinsics[None], 4, 0)
    shared = tae(depth, room.intrinsics, room.camera_to_world)
    assert tae(depth, per_frame, room.camera_to_world) == shared
    with pytest.raises(ValueError, match="camera_to_world must have shape"):
        tae(depth, room.intrinsics, room.camera_to_world[:2])


def plain_tge(d: np.ndarray, y: np.ndarray, flow: np.ndarray, visible: np.ndarray) -> float:
    """Bilinear sampling pixel by pixel."""
    low, high = np.percentile(y, [2, 98])
    height, width = y.shape[1:]
    pairs = []
    for t in range(len(d) - 1):
        errors = []
        for v in range(height):
            for u in range(width):
                x, w = u + float(flow[t, 0, v, u]), v + float(flow[t, 1, v, u])
                if not visible[t, v, u] or not (0 <= x <= width - 1 and 0 <= w <= height - 1):
                    continue
                c, r = min(int(x), width - 2), min(int(w), height - 2)
                a, b = x - c, w - r
                corners = [
                    (r, c, (1 - a) * (1 - b)),
                    (r, c + 1, a * (1 - b)),
                    (r + 1, c, (1 - a) * b),
                    (r + 1, c + 1, a * b),
                ]
                next_d = sum(weight * d[t + 1, i, j] for i, j, weight in corners)
                next_y = sum(weight * y[t + 1, i, j] for i, j, weight in corners)
                errors.append(abs((next_d - d[t, v, u]) - (next_y - y[t, v, u])))
        pairs.append(np.mean(errors))
    return float(np.mean(pairs) / (high - low))


def test_tge_equals_the_plain_form_and_is_zero_for_the_truth(room: Room) -> None:
    y = 1.0 / room.depth_m.astype(np.float64)
    d = noisy(y)
    motion = room.motion
    ours = temporal_gradient_error(d, y, motion.flow_fwd, motion.trusted_fwd)
    assert ours.value == pytest.approx(plain_tge(d, y, motion.flow_fwd, motion.trusted_fwd), rel=1e-6)
    assert temporal_gradient_error(y, y, motion.flow_fwd, motion.trusted_fwd).value == 0.0


def test_tge_ignores_invalid_pixels_and_reports_what_is_missing(room: Room) -> None:
    y = 1.0 / room.depth_m.astype(np.float64)
    motion = room.motion
    valid = np.ones(y.shape, bool)
    valid[:, 5:9, 3:8] = False
    broken = np.where(valid, y, np.nan)
    score = temporal_gradient_error(y * 1.0, broken, motion.flow_fwd, motion.trusted_fwd, valid)
    assert score.value == 0.0
    nothing = temporal_gradient_error(y, y, motion.flow_fwd, np.zeros(y.shape, bool))
    assert math.isnan(nothing.value)
    assert math.isnan(temporal_gradient_error(y, y, motion.flow_fwd, motion.trusted_fwd, ~valid & valid).value)
    assert math.isnan(temporal_gradient_error(y, np.ones_like(y), motion.flow_fwd, motion.trusted_fwd).value)
