"""Paired changes over clips, who dominates whom, and distances from Pareto fronts, on made-up scores."""

from __future__ import annotations

import math

import pytest

from videomamba_depth.configuration.evaluate_schema import name_checkpoints
from videomamba_depth.evaluation.html.pareto_plot import points_of
from videomamba_depth.evaluation.methods import family_of
from videomamba_depth.evaluation.metrics.score import Score
from videomamba_depth.evaluation.paired import (
    axes_of,
    compare,
    cost,
    costs,
    differences,
    dominance,
    estimate,
    leaderboard,
    measured,
)
from videomamba_depth.evaluation.summary import mean_methods, verdict
from videomamba_depth.utils.errors import UserError


def made_up(student_tge: float, num: int = 4) -> list[dict[str, dict[str, float]]]:
    """Return made-up scores: a filter family that pays an edge of 10 % for every 20 % of TGE."""

    def method(tge: float, edges: float) -> dict[str, float]:
        return {
            "tge": tge,
            "edge_ratio": edges,
            "lag": 0.0,
            "lag/true": 0.0,
            "abs_rel/video": 0.1,
            "abs_rel/fast_pixels": 0.2,
        }

    result = []
    for i in range(num):
        base = 1.0 + 0.1 * i
        methods = {"teacher": method(base, 1.0), "student": method(student_tge * base, 0.9)}
        for family in ("ema", "affine_ema", "warped_ema"):
            for k, alpha in enumerate((0.75, 0.5, 0.25, 0.1), start=1):
                methods[f"{family}_{alpha:g}"] = method(base * (1 - 0.1 * k + 0.001 * i), 1 - 0.05 * k)
        result.append(methods)
    return result


def student_gaps(clips: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return compare(clips, ["student"])["students"]["student"]["pareto_gaps"]


def test_without_ground_truth_flicker_and_distance_from_the_teacher_decide() -> None:
    clips = [
        {name: {"flk2": m["tge"], "teacher_diff/per_frame": 0.1} for name, m in clip.items()} for clip in made_up(0.5)
    ]
    result = compare(clips, ["student"])
    assert (result["flicker"], result["axes"]) == ("flk2", {"distance from the teacher": "teacher_diff/per_frame"})
    assert result["students"]["student"]["dominance"]["ema_0.5"]["distance from the teacher"] == "student*"


def test_a_leaderboard_ranks_by_flicker_against_its_reference_and_broken_guards_last() -> None:
    clips = made_up(0.5)
    kept = {name: not name.endswith("_0.1") for name in clips[0]}
    places = leaderboard(clips, "ema_0.5", kept)
    names = [place["method"] for place in places]
    assert names[0] == "student"
    assert names[-3:] == ["ema_0.1", "affine_ema_0.1", "warped_ema_0.1"]
    assert names.index("ema_0.25") < names.index("ema_0.5") < names.index("teacher")
    first, teacher = places[0], places[names.index("teacher")]
    ratios = [100 * (clip["student"]["tge"] / clip["ema_0.5"]["tge"] - 1) for clip in clips]
    assert first["changes"]["tge"] == estimate(ratios)
    assert first["changes"]["tge"].std_error > 0
    assert (first["wins"], teacher["wins"], first["num_clips"]) == (4, 0, 4)
    assert places[names.index("ema_0.5")]["changes"]["tge"] == (0.0, 0.0, 4)
    stills = [{name: {"abs_rel/per_frame": m["tge"]} for name, m in clip.items()} for clip in clips]
    assert leaderboard(stills, "teacher", kept)[0]["method"] == "student"


def test_paired_differences_and_dominance() -> None:
    better = made_up(0.5)
    metrics = measured(better)
    paired = differences(better, "student", metrics)
    flicker, axes = axes_of(metrics)
    assert paired["ema_0.5"]["tge"].value == pytest.approx(-30.0, abs=0.5)
    assert paired["ema_0.5"]["tge"].std_error < 0.1
    assert paired["ema_0.25"]["edge_ratio"].value == pytest.approx(-5.0)
    assert dominance(paired, flicker, axes)["ema_0.25"]["edges"] == "student*"
    assert dominance(paired, flicker, axes)["ema_0.75"]["edges"] == "neither"
    worse = differences(made_up(0.95), "student", metrics)
    assert dominance(worse, flicker, axes)["ema_0.5"]["edges"] == "method*"


@pytest.mark.parametrize("metric", ["edge_ratio", "lag"])
def test_edges_and_lag_cost_their_distance_in_either_direction(metric: str) -> None:
    less, more = (cost({metric: value}, {metric: 1.0}, metric) for value in (0.75, 1.25))
    assert less == more > 0


def test_true_lag_costs_only_where_it_grows() -> None:
    assert cost({"lag/true": 0.75}, {"lag/true": 1.0}, "lag/true") < 0


def test_true_edges_cost_what_is_lost_of_them() -> None:
    assert cost({"boundary_f1/true": 0.6}, {"boundary_f1/true": 0.7}, "boundary_f1/true") == pytest.approx(0.1)
    less, more = (cost({"edge_ratio/true": r}, {"edge_ratio/true": 0.9}, "edge_ratio/true") for r in (0.95, 1.3))
    assert (less, more) == (pytest.approx(-5.0), pytest.approx(20.0))


def test_an_untrained_student_is_a_family_of_its_own_and_a_target_no_baseline() -> None:
    clips = made_up(0.5)
    for video in clips:
        video["student+untrained"] = {**video["student"], "tge": 0.8 * video["teacher"]["tge"]}
        video["student+untrained@2"] = {**video["student"], "tge": 0.7 * video["teacher"]["tge"]}
        video["geometry"] = {**video["student"], "tge": 0.1 * video["teacher"]["tge"]}
    gaps = compare(clips, ["student"])["students"]["student"]["pareto_gaps"]
    assert gaps["student+untrained"]["edges"] == pytest.approx(20.0, abs=0.5)  # −30 % of TGE beside its −50 %
    assert family_of("student+untrained@2") == "untrained"
    assert family_of("student@2") == "student"
    points = points_of(costs(clips, ["tge", "edge_ratio"]), "edge_ratio", "tge", ["student"])
    assert [point.method for point in points["untrained"]] == ["student+untrained", "student+untrained@2"]
    assert [point.method for point in points["target"]] == ["geometry"]
    scores = [{name: {m: Score(v) for m, v in one.items()} for name, one in video.items()} for video in clips]
    found = verdict(mean_methods([{"methods": one} for one in scores]), students=["student"])
    assert found["beats_baselines"]
    assert found["baselines_not_beaten"] == []


def test_the_gap_to_a_pareto_front_is_read_at_the_student_s_cost() -> None:
    gaps = student_gaps(made_up(0.5))
    # At 10 % of edges the family reaches −20 % of TGE; the student −50 %.
    assert gaps["ema"]["edges"] == pytest.approx(30.0, abs=0.5)
    cheap = made_up(0.9)
    for video in cheap:
        video["student"]["abs_rel/video"] = 0.05  # no filter is so cheap
    assert math.isnan(student_gaps(cheap)["ema"]["accuracy"])


def test_a_pareto_front_of_memories_is_read_at_the_filter_s_cost() -> None:
    better = made_up(0.7)
    for video in better:
        base = video["teacher"]["tge"]
        video["student@3"] = {**video["student"], "tge": 0.5 * base, "edge_ratio": 0.8}
    result = compare(better, ["student@3", "student"])
    gaps = result["memory_fronts"]["student"]
    # −30 % of TGE at 10 % of edges, −50 % at 20 %: −40 % at 15 %, where the filter has −30 %.
    assert gaps["ema_0.25"]["edges"] == pytest.approx(10.0, abs=0.5)
    # At 5 % half of what the shorter memory reaches: −15 % against −10 %.
    assert gaps["ema_0.75"]["edges"] == pytest.approx(5.0, abs=0.5)
    assert compare(better, ["student"])["memory_fronts"] == {}
    for video in better:
        video["ema_0.5"]["abs_rel/video"] = 0.05
    assert math.isnan(compare(better, ["student", "student@3"])["memory_fronts"]["student"]["ema_0.5"]["accuracy"])


def test_estimates_count_what_is_finite() -> None:
    assert estimate([1.0, 3.0, math.nan]) == pytest.approx((2.0, 1.0, 2))
    assert estimate([math.nan]).num_clips == 0
    assert math.isnan(estimate([1.0]).std_error)


def test_checkpoints_get_names() -> None:
    assert name_checkpoints("runs/a/last") == {"student": "runs/a/last"}
    assert name_checkpoints(["runs/a/last", "b:runs/b/last"]) == {"a": "runs/a/last", "b": "runs/b/last"}
    assert name_checkpoints([]) == {}
    with pytest.raises(UserError, match="twice"):
        name_checkpoints(["a:x", "a:y"])


def test_stills_that_share_no_view_have_no_flicker_and_are_compared_all_the_same() -> None:
    clip = {name: {"abs_rel/video": error, "edge_ratio": 1.0} for name, error in (("teacher", 0.2), ("student", 0.1))}
    compared = compare([clip, clip], ["student"])
    assert compared["axes"] == {}
    assert compared["students"]["student"]["dominance"] == {"teacher": {}}
