"""Fresh worlds: their cache, the quick judge against the thorough one, pairing, fronts and the report."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_student, tiny_teacher

from videomamba_depth.configuration.evaluate_schema import name_checkpoints
from videomamba_depth.data.synthetic import iter_video, render_video
from videomamba_depth.evaluation import clip_from_synthetic
from videomamba_depth.evaluation.baselines import default_baselines
from videomamba_depth.evaluation.feature_average import AdvectedFeatureAverage, feature_average_stream, resize_flow
from videomamba_depth.evaluation.fresh import Desk, Student, Teacher, score_world, teacher_folder
from videomamba_depth.evaluation.fresh_report import fresh_markdown
from videomamba_depth.evaluation.judge import Judge
from videomamba_depth.evaluation.paired import compare, differences, dominance, estimate, front_gaps
from videomamba_depth.evaluation.rows import Scene, row_metrics
from videomamba_depth.evaluation.worlds import World, WorldSet, load_world
from videomamba_depth.flow.estimators import DISFlow
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError

TINY = WorldSet(videos=1, frames=8, long_videos=1, long_frames=10, height=42, width=56)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="module")
def encoder() -> DepthAnythingEncoder:
    return DepthAnythingEncoder(tiny_teacher(), "tiny")


@pytest.fixture(scope="module")
def desk(cache: Path, encoder: DepthAnythingEncoder) -> Desk:
    return Desk(cache, Teacher(encoder, "tiny"), DISFlow())


@pytest.fixture(scope="module")
def world(cache: Path) -> World:
    return load_world(cache, TINY.specs()[1], DISFlow())


def test_a_set_names_every_world_once_and_outside_of_training() -> None:
    specs = WorldSet().specs()
    assert [sum(spec.kind == kind for spec in specs) for kind in ("moving", "fast", "static", "long")] == [16] * 3 + [4]
    assert len({spec.seed for spec in specs}) == len(specs)
    assert min(spec.seed for spec in specs) >= 2**31  # the training set draws below


def test_a_kept_world_is_the_rendered_one(world: World, cache: Path) -> None:
    video = render_video(world.spec.seed, world.spec.config())
    np.testing.assert_array_equal(world.rgb, video.rgb)
    np.testing.assert_array_equal(world.depth_m, video.depth_m)
    np.testing.assert_array_equal(world.flow_fwd, np.moveaxis(video.flow_fwd, -1, 1))
    again = load_world(cache, world.spec, DISFlow())
    np.testing.assert_array_equal(again.flow_bwd, world.flow_bwd)
    assert not world.trusted_bwd[world.consistent_bwd == 0].any()
    assert not np.array_equal(world.flow_bwd, np.moveaxis(video.flow_bwd, -1, 1))  # estimated, as a user would have it


def test_the_quick_judge_agrees_with_the_thorough_one(world: World) -> None:
    video = render_video(world.spec.seed, world.spec.config())
    clip = clip_from_synthetic("world", iter_video(world.spec.seed, world.spec.config()))
    scene = Scene(video.rgb, clip.motion, DepthKind.RELATIVE, clip.gt_depth_m, None, 30.0)  # type: ignore[arg-type]
    noise = np.random.default_rng(0).normal(size=(len(video.rgb), 1, 1))
    teacher = (1.0 + 5.0 / video.depth_m * (1 + 0.05 * noise)).astype(np.float32)
    judge = Judge(world, teacher, 30.0)
    for name in ("ema_0.5", "warped_ema_0.25"):
        row = np.stack(list(default_baselines()[name](teacher, world.estimated_motion())))
        thorough = row_metrics(row, teacher, scene)
        for metric, value in judge.scores(row).items():
            if metric not in ("abs_rel/single_image", "lag/true"):
                assert value == pytest.approx(thorough[metric].value, rel=2e-4, abs=1e-6, nan_ok=True), (name, metric)


def test_true_lag_is_behind_the_truth_not_behind_the_flicker(world: World) -> None:
    truth = 1.0 / np.asarray(world.depth_m)
    flicker = np.random.default_rng(0).normal(size=(len(truth), 1, 1)) * truth.std()
    judge = Judge(world, (truth + flicker).astype(np.float32), 30.0)
    clean, late = judge.scores(truth.astype(np.float32)), judge.scores(np.roll(truth, 2, axis=0).astype(np.float32))
    assert clean["lag/true"] == pytest.approx(0.0, abs=0.1)
    assert late["lag/true"] > 1.0


def test_a_constant_and_a_broken_row_score_nothing(world: World) -> None:
    teacher = 1.0 + 1.0 / np.asarray(world.depth_m)
    judge = Judge(world, teacher, 30.0)
    flat = judge.scores(np.full_like(teacher, 2.0))
    assert math.isnan(flat["edge_ratio"])
    assert math.isnan(flat["lag"])
    assert flat["abs_rel/video"] > 0.1
    broken = teacher.copy()
    broken[2, 3, 4] = np.nan
    assert judge.scores(broken) == {"finite": 0.0}
    nothing = Judge(world, teacher, 1e-2).scores(teacher)  # no ground truth that near
    assert math.isnan(nothing["tge"])
    assert math.isnan(nothing["abs_rel/video"])


def test_an_untrained_student_is_the_teacher_and_scores_are_kept(
    desk: Desk, encoder: DepthAnythingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TINY.specs()[0]
    students = [Student("same", tiny_student(encoder, trained=False), "w", "same" * 8)]
    scores = score_world(spec, desk, students, keep_depth=True)
    assert list(scores) == ["teacher", *default_baselines(), "feature_ema", "same"]
    for metric, value in scores["teacher"].items():
        assert scores["same"][metric] == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), metric
    folder = teacher_folder(load_world(desk.cache, spec, desk.flow), desk)
    assert len(list(folder.glob("scores-*/student-*.npy"))) == 1
    monkeypatch.setattr("videomamba_depth.evaluation.fresh.run_student", None)  # would fail if it ran again
    assert str(score_world(spec, desk, students, keep_depth=True)) == str(scores)


def test_feature_average_streams_as_it_does_on_worlds(desk: Desk, encoder: DepthAnythingEncoder) -> None:
    world = load_world(desk.cache, TINY.specs()[0], desk.flow)
    kept = np.load(teacher_folder(world, desk) / "feature_ema.npy")
    stream = feature_average_stream(encoder, DISFlow())
    frames = torch.from_numpy(np.array(world.rgb)).permute(0, 3, 1, 2).float() / 255
    streamed = np.stack([stream(frame[None])[0, 0].detach().numpy() for frame in frames])
    np.testing.assert_allclose(streamed, kept, rtol=1e-3, atol=1e-4)


def test_feature_average_follows_the_motion_and_restarts() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 4, 8)
    flow = torch.zeros(1, 2, 8, 16)
    flow[:, 0] = -2.0  # px at twice the size of the map: content moves one cell to the right
    consistent = torch.ones(1, 1, 8, 16, dtype=torch.bool)
    consistent[..., :2] = False
    average = AdvectedFeatureAverage(0.5)
    average({"s0": ramp}, flow, consistent)
    out = average({"s0": ramp - 1.0}, flow, consistent)["s0"]
    torch.testing.assert_close(out[..., 2:-1], ramp[..., 2:-1] - 1.0)
    torch.testing.assert_close(out[..., 0], ramp[..., 0] - 1.0)
    assert resize_flow(flow, (4, 8))[0, 0].eq(-1.0).all()
    with pytest.raises(ValueError, match="alpha must be in"):
        AdvectedFeatureAverage(0.0)


def videos(student_tge: float, num: int = 4) -> list[dict[str, dict[str, float]]]:
    """Return made-up scores: a filter family that pays an edge of 10 % for every 20 % of TGE."""

    def row(tge: float, edges: float) -> dict[str, float]:
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
        rows = {"teacher": row(base, 1.0), "student": row(student_tge * base, 0.9)}
        for family in ("ema", "affine_ema", "warped_ema"):
            for k, alpha in enumerate((0.75, 0.5, 0.25, 0.1), start=1):
                rows[f"{family}_{alpha:g}"] = row(base * (1 - 0.1 * k + 0.001 * i), 1 - 0.05 * k)
        result.append(rows)
    return result


def test_paired_differences_and_dominance() -> None:
    better = videos(0.5)
    paired = differences(better, "student")
    assert paired["ema_0.5"]["tge"].value == pytest.approx(-30.0, abs=0.5)
    assert paired["ema_0.5"]["tge"].std_error < 0.1
    assert paired["ema_0.25"]["edge_ratio"].value == pytest.approx(-5.0)
    assert dominance(paired)["ema_0.25"]["edges"] == "student*"
    assert dominance(paired)["ema_0.75"]["edges"] == "neither"
    assert dominance(differences(videos(0.95), "student"))["ema_0.5"]["edges"] == "row*"


def test_the_gap_to_a_front_is_read_at_the_student_s_price() -> None:
    gaps = front_gaps(videos(0.5), "student")
    # At 10 % of edges the family reaches −20 % of TGE; the student −50 %.
    assert gaps["ema"]["edges"] == pytest.approx(30.0, abs=0.5)
    cheap = videos(0.9)
    for video in cheap:
        video["student"]["abs_rel/video"] = 0.05  # no filter is so cheap
    assert math.isnan(front_gaps(cheap, "student")["ema"]["accuracy"])


def test_a_front_of_memories_is_read_at_the_filter_s_price() -> None:
    better = videos(0.7)
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
    assert estimate([math.nan]).num_videos == 0
    assert math.isnan(estimate([1.0]).std_error)


def test_the_report_names_rows_guards_and_seeds() -> None:
    result = {
        "kinds": {"moving": compare(videos(0.5), ["student"])},
        "worlds": {
            "family": "courtyard", "seed": 3, "height": 1, "width": 2, "max_depth_m": 30.0, "videos": 4,
            "frames": 5, "long_videos": 0, "long_frames": 0,
        },
        "protocol": {}, "metadata": {"command": "x"}, "versions": {"torch": "2"},
    }  # fmt: skip
    text = fresh_markdown(result)
    for expected in ("seeds from 3", "| student | −50.0 ± 0.0 |", "dominates", "edges %", "lag, frames", "command: x"):
        assert expected in text


def test_checkpoints_get_names() -> None:
    assert name_checkpoints("runs/a/last") == {"student": "runs/a/last"}
    assert name_checkpoints(["runs/a/last", "b:runs/b/last"]) == {"a": "runs/a/last", "b": "runs/b/last"}
    assert name_checkpoints([]) == {}
    with pytest.raises(UserError, match="twice"):
        name_checkpoints(["a:x", "a:y"])
