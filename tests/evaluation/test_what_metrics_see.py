"""On an exact room, each metric must see what it is for, and its known blindness must be as documented."""

from __future__ import annotations

import math

import pytest
from faults import faulty_rows
from tiny_room import render_room

from videomamba_depth.evaluation.rows import Scene, row_metrics
from videomamba_depth.utils.depth_kind import DepthKind

NUM_FRAMES = 40


@pytest.fixture(scope="module")
def scores() -> dict[str, dict[str, float]]:
    room = render_room(NUM_FRAMES, 60, 80)
    exact = 1.0 / room.depth_m
    rows = faulty_rows(exact)
    scene = Scene(
        rgb=room.rgb,
        motion=room.motion,
        depth_kind=DepthKind.RELATIVE,
        gt_depth_m=room.depth_m,
        intrinsics=room.intrinsics,
        camera_to_world=room.camera_to_world,
        exact_motion=True,
    )
    return {
        name: {metric: score.value for metric, score in row_metrics(depth, exact, scene).items()}
        for name, depth in rows.items()
    }


def test_perfect_depth_is_perfect(scores: dict[str, dict[str, float]]) -> None:
    row = scores["perfect"]
    assert row["abs_rel/video"] < 1e-5
    assert row["tge"] < 1e-6
    assert row["flk2"] < 3e-4  # measured 1e-4: interpolation at the panel's border
    assert row["rtc_1.02"] > 0.995
    assert abs(row["sDrift"]) < 1e-5
    assert row["edge_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert row["lag"] == pytest.approx(0.0, abs=1e-3)


def test_scale_jitter(scores: dict[str, dict[str, float]]) -> None:
    row, perfect = scores["scale jitter"], scores["perfect"]
    assert row["opw/per_frame"] == pytest.approx(perfect["opw/per_frame"], rel=1e-3)  # blind, as documented
    assert row["opw"] > 1.7 * perfect["opw"]
    assert row["rtc_1.02"] < 0.97
    assert row["tae"] > 1.3 * perfect["tae"]
    assert row["tae_z"] > 2 * perfect["tae_z"]
    assert row["flk2"] > 0.01
    assert row["sJit"] == pytest.approx(0.01, rel=0.3)
    assert row["edge_ratio"] == pytest.approx(1.0, abs=0.02)


def test_shift_jitter_does_not_show_in_the_scale(scores: dict[str, dict[str, float]]) -> None:
    row = scores["shift jitter"]
    assert row["sJit"] < 1e-4
    assert row["flk2"] > 0.005
    assert row["tge"] > 0.003


def test_drift_is_seen_by_sdrift_and_alignment_alone(scores: dict[str, dict[str, float]]) -> None:
    row = scores["drift"]
    assert row["sDrift"] == pytest.approx(100 * math.log(1.2) / (NUM_FRAMES - 1), rel=1e-2)
    assert row["abs_rel/video_minus_per_frame"] > 0.03
    assert row["abs_rel/first_frame"] > row["abs_rel/video"]
    assert row["flk2"] < 1e-3  # pairwise metrics are blind to it


def test_an_average_wins_stability_and_is_caught_by_its_guards(scores: dict[str, dict[str, float]]) -> None:
    row, jitter = scores["jitter then EMA"], scores["scale jitter"]
    for metric in ("tge", "flk2", "opw", "tae_z"):
        assert row[metric] < jitter[metric]
    assert row["edge_ratio"] < 0.9
    assert row["boundary_f1"] < 0.8
    assert row["lag"] > 0.3
    assert row["abs_rel/per_frame"] > 2 * jitter["abs_rel/per_frame"]


def test_blur_is_caught_by_the_edges(scores: dict[str, dict[str, float]]) -> None:
    assert scores["blur"]["edge_ratio"] < 0.5
    assert scores["blur"]["boundary_f1"] < 0.5


def test_a_constant_scores_nowhere(scores: dict[str, dict[str, float]]) -> None:
    row = scores["constant"]
    for metric in ("tae_z", "opw", "opw/per_frame", "rtc_1.02", "flk2", "sJit", "sDrift", "lag", "static_std/total"):
        assert math.isnan(row[metric]), metric
    assert row["abs_rel/video"] > 0.2
    assert row["edge_ratio"] < 0.01
    assert row["boundary_f1"] == 0.0
