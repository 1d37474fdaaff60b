"""Which metric sees which fault, in a rendered world with exact depth, flow and poses: every cell of the table."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from faults import faulty_depth
from tiny_room import render_room

from videomamba_depth.data.synthetic import WorldConfig, iter_video
from videomamba_depth.evaluation import clip_from_synthetic
from videomamba_depth.evaluation.context import Context
from videomamba_depth.evaluation.metrics.registry import score_depth
from videomamba_depth.evaluation.metrics.score import Score
from videomamba_depth.flow.clip_motion import ClipMotion
from videomamba_depth.flow.frame_view import in_memory
from videomamba_depth.utils.depth_kind import DepthKind

Scores = dict[str, dict[str, Score]]
JITTER = ("scale jitter", "shift jitter")
SMOOTHED = ("jitter then EMA", "blur")


class Sight(NamedTuple):
    """sees: cases whose error exceeds that of perfect depth by `margin`. blind: those within `slack` of it, or below.

    undefined: cases without a score. In brackets below: what was measured.
    """

    sees: tuple[str, ...]
    margin: float
    blind: tuple[str, ...]
    slack: float
    undefined: tuple[str, ...] = ()


FLAT = ("constant",)
TABLE = {
    # accuracy, a ratio (smallest seen .007)
    "abs_rel/video": Sight((*JITTER, "drift", *SMOOTHED, "constant"), 0.005, (), 0.0),
    "abs_rel/first_frame": Sight((*JITTER, "drift", *SMOOTHED, "constant"), 0.005, (), 0.0),
    "abs_rel/per_frame": Sight((*SMOOTHED, "constant"), 0.01, (*JITTER, "drift"), 1e-4),  # (.026; 2e-7)
    "abs_rel/video_minus_per_frame": Sight((*JITTER, "drift"), 0.005, (*SMOOTHED, "constant"), 0.003),
    # with ground truth or poses; TAE ×100 (.41 for perfect depth, 1.0 jitter, .53 drift, .17 constant)
    "tae": Sight(JITTER, 0.4, ("drift", *SMOOTHED, "constant"), 0.2),
    "tae_z": Sight(JITTER, 0.4, ("drift", *SMOOTHED), 0.2, FLAT),
    "tge": Sight(JITTER, 0.006, ("drift", *SMOOTHED, "constant"), 0.0035),  # (.0089; .003)
    # without ground truth
    "opw/per_frame": Sight((), 0.0, (*JITTER, "drift", *SMOOTHED), 0.002, FLAT),  # (.0123 perfect, .0134 EMA)
    "opw": Sight(JITTER, 0.02, ("drift", *SMOOTHED), 0.005, FLAT),  # (.037 against .008; .010)
    "rtc_1.02": Sight(JITTER, 0.05, ("drift", *SMOOTHED), 0.01, FLAT),  # (.11; .002)
    "rtc_1.01": Sight(JITTER, 0.2, ("drift", *SMOOTHED), 0.02, FLAT),  # (.33; .008)
    "flk2": Sight(JITTER, 0.01, ("drift", *SMOOTHED), 0.002, FLAT),  # (.014; .001)
    "sJit": Sight(("scale jitter", *SMOOTHED), 0.005, ("shift jitter", "drift"), 0.001, FLAT),  # (.0088; 0)
    "sDrift": Sight(("drift", "jitter then EMA"), 0.1, JITTER, 0.02, FLAT),  # (.31, .16; .009)
    # guards
    "edge_ratio": Sight((*SMOOTHED, "constant"), 0.07, (*JITTER, "drift"), 0.05),  # (.08, .82; .04)
    "boundary_f1": Sight((*SMOOTHED, "constant"), 0.07, (*JITTER, "drift"), 0.05),  # (.11, 1; .03)
    "lag": Sight(("jitter then EMA",), 2.0, (*JITTER, "drift", "blur"), 0.6, FLAT),  # (5.4; .52)
}


@pytest.fixture(scope="module")
def context() -> Context:
    """A world whose teacher is exact."""
    frames = iter_video(7, WorldConfig(48, 64, 60, family="rooms", camera_motion="moving"))
    clip = clip_from_synthetic("room", frames, keep=in_memory)
    exact = (1.0 / clip.gt_depth_m).astype(np.float32)
    return Context(
        clip.frames, exact, clip.motion, DepthKind.RELATIVE, clip.gt_depth_m, None, 80.0,
        clip.intrinsics, clip.camera_to_world, exact_motion=True,
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture(scope="module")
def scores(context: Context) -> Scores:
    return {case: score_depth(depth, context) for case, depth in faulty_depth(context.teacher).items()}


def error(metric: str, score: Score) -> float:
    """Return a score so that 0 is perfect and more is worse."""
    if metric.startswith("rtc_") or metric in ("edge_ratio", "boundary_f1"):
        return abs(1.0 - score.value)
    return abs(score.value)


CELLS = [(metric, case) for metric, sight in TABLE.items() for case in (*sight.sees, *sight.blind, *sight.undefined)]


@pytest.mark.parametrize(("metric", "case"), CELLS)
def test_a_metric_sees_what_it_is_for(metric: str, case: str, scores: Scores) -> None:
    sight, found = TABLE[metric], scores[case][metric]
    perfect = error(metric, scores["perfect"][metric])
    if case in sight.undefined:
        assert math.isnan(found.value)
        assert found.reason
    elif case in sight.sees:
        assert error(metric, found) > perfect + sight.margin
    else:
        assert error(metric, found) < perfect + sight.slack


def test_every_case_stands_in_every_line() -> None:
    cases = set(faulty_depth(np.ones((2, 4, 4), np.float32))) - {"perfect"}
    for metric, sight in TABLE.items():
        named = [*sight.sees, *sight.blind, *sight.undefined]
        assert len(named) == len(set(named))
        # What is not named is neither clearly seen nor clearly missed.
        assert set(named) == (cases - {"blur"} if metric == "sDrift" else cases), metric
        assert sight.slack <= sight.margin or not sight.sees


def test_an_average_or_blur_wins_stability_and_no_guard(scores: Scores) -> None:
    """Why no stability number is shown without its guards."""
    for metric in ("tae", "tae_z", "tge", "opw", "rtc_1.02", "rtc_1.01", "flk2"):
        for case in SMOOTHED:
            assert error(metric, scores[case][metric]) < 0.6 * error(metric, scores["scale jitter"][metric]), metric
    for case in SMOOTHED:
        assert scores[case]["abs_rel/video"].value > 3 * scores["scale jitter"]["abs_rel/video"].value


def test_drift_shows_in_alignment_and_slope_alone(scores: Scores) -> None:
    drift = scores["drift"]
    assert drift["sDrift"].value == pytest.approx(100 * math.log(1.2) / 59, rel=1e-3)
    assert drift["abs_rel/first_frame"].value > 1.8 * drift["abs_rel/video"].value


def test_static_pixels_tell_flicker_from_change() -> None:
    room = render_room(32, 24, 32, speed_m=0.0)
    exact = 1.0 / room.depth_m
    context = Context(room.rgb, exact, room.motion, DepthKind.RELATIVE, room.depth_m)
    cases = {case: score_depth(depth, context) for case, depth in faulty_depth(exact).items()}
    flicker = {case: found["static_std/flicker"].value for case, found in cases.items()}
    change = {case: found["static_std/change"].value for case, found in cases.items()}
    assert max(flicker["perfect"], change["perfect"]) < 1e-6
    assert flicker["scale jitter"] > 0.004
    assert flicker["shift jitter"] > 0.004
    assert flicker["drift"] < 1e-4
    assert change["drift"] > 0.03
    assert flicker["jitter then EMA"] < 0.25 * flicker["scale jitter"]
    assert math.isnan(flicker["constant"])


WITH_TRUTH = (
    *(f"abs_rel/{kind}" for kind in ("video", "first_frame", "per_frame", "video_minus_per_frame", "fast_pixels")),
    *(f"{metric}/video" for metric in ("delta1", "rmse", "rmse_log")),
    *("tge", "tae", "tae_z"),
)


def test_nothing_valid_scores_nothing(context: Context) -> None:
    blind = replace(context, valid=np.zeros(context.gt_depth_m.shape, bool))  # type: ignore[union-attr]
    found = score_depth(context.teacher, blind)
    for metric in WITH_TRUTH:
        assert math.isnan(found[metric].value), metric
        assert found[metric].reason, metric


def test_flow_that_cannot_be_trusted_scores_nothing(context: Context) -> None:
    m = context.motion
    nowhere = np.zeros_like(m.trusted_bwd)
    lost = replace(context, motion=ClipMotion(m.flow_bwd, m.flow_fwd, nowhere, nowhere))
    found = score_depth(context.teacher, lost)
    for metric in ("tge", "opw", "opw/per_frame", "rtc_1.01", "rtc_1.02", "rtc_1.05", "flk2", "static_std/flicker"):
        assert math.isnan(found[metric].value), metric
        assert found[metric].reason, metric
