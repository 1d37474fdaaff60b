"""On an exact room, each metric must see what it is for, and its known blindness must be as documented."""

from __future__ import annotations

import math

import pytest
from faults import faulty_depth
from tiny_room import render_room

from videomamba_depth.evaluation.context import Context
from videomamba_depth.evaluation.metrics.registry import score_depth
from videomamba_depth.utils.depth_kind import DepthKind

NUM_FRAMES = 40


@pytest.fixture(scope="module")
def scores() -> dict[str, dict[str, float]]:
    room = render_room(NUM_FRAMES, 60, 80)
    exact = 1.0 / room.depth_m
    context = Context(
        rgb=room.rgb,
        teacher=exact,
        motion=room.motion,
        depth_kind=DepthKind.RELATIVE,
        gt_depth_m=room.depth_m,
        intrinsics=room.intrinsics,
        camera_to_world=room.camera_to_world,
        exact_motion=True,
    )
    return {
        name: {metric: score.value for metric, score in score_depth(depth, context).items()}
        for name, depth in faulty_depth(exact).items()
    }


def test_perfect_depth_is_perfect(scores: dict[str, dict[str, float]]) -> None:
    found = scores["perfect"]
    assert found["abs_rel/video"] < 1e-5
    assert found["tge"] < 1e-6
    assert found["flk2"] < 3e-4  # measured 1e-4: interpolation at the panel's border
    assert found["rtc_1.02"] > 0.995
    assert abs(found["sDrift"]) < 1e-5
    assert found["edge_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert found["lag"] == pytest.approx(0.0, abs=1e-3)


def test_scale_jitter(scores: dict[str, dict[str, float]]) -> None:
    found, perfect = scores["scale jitter"], scores["perfect"]
    assert found["opw/per_frame"] == pytest.approx(perfect["opw/per_frame"], rel=1e-3)  # blind, as documented
    assert found["opw"] > 1.7 * perfect["opw"]
    assert found["rtc_1.02"] < 0.97
    assert found["tae"] > 1.3 * perfect["tae"]
    assert found["tae_z"] > 2 * perfect["tae_z"]
    assert found["flk2"] > 0.01
    assert found["sJit"] == pytest.approx(0.01, rel=0.3)
    assert found["edge_ratio"] == pytest.approx(1.0, abs=0.02)


def test_shift_jitter_does_not_show_in_the_scale(scores: dict[str, dict[str, float]]) -> None:
    found = scores["shift jitter"]
    assert found["sJit"] < 1e-4
    assert found["flk2"] > 0.005
    assert found["tge"] > 0.003


def test_drift_is_seen_by_sdrift_and_alignment_alone(scores: dict[str, dict[str, float]]) -> None:
    found = scores["drift"]
    assert found["sDrift"] == pytest.approx(100 * math.log(1.2) / (NUM_FRAMES - 1), rel=1e-2)
    assert found["abs_rel/video_minus_per_frame"] > 0.03
    assert found["abs_rel/first_frame"] > found["abs_rel/video"]
    assert found["flk2"] < 1e-3  # pairwise metrics are blind to it


def test_an_average_wins_stability_and_is_caught_by_its_guards(scores: dict[str, dict[str, float]]) -> None:
    found, jitter = scores["jitter then EMA"], scores["scale jitter"]
    for metric in ("tge", "flk2", "opw", "tae_z"):
        assert found[metric] < jitter[metric]
    assert found["edge_ratio"] < 0.9
    assert found["boundary_f1"] < 0.8
    assert found["lag"] > 0.3
    assert found["abs_rel/per_frame"] > 2 * jitter["abs_rel/per_frame"]


def test_blur_is_caught_by_the_edges(scores: dict[str, dict[str, float]]) -> None:
    assert scores["blur"]["edge_ratio"] < 0.5
    assert scores["blur"]["boundary_f1"] < 0.5


def test_a_constant_scores_nowhere(scores: dict[str, dict[str, float]]) -> None:
    found = scores["constant"]
    for metric in ("tae_z", "opw", "opw/per_frame", "rtc_1.02", "flk2", "sJit", "sDrift", "lag", "static_std/total"):
        assert math.isnan(found[metric]), metric
    assert found["abs_rel/video"] > 0.2
    assert found["edge_ratio"] < 0.01
    assert found["boundary_f1"] == 0.0
