"""Synthetic worlds as clips: what is kept, their kinds, and teacher, students and targets on them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_student, tiny_teacher

from videomamba_depth.data.synthetic import WorldConfig, render_video
from videomamba_depth.evaluation import EvaluationClip, Evaluator, Method, evaluate_clips, filter_methods, to_markdown
from videomamba_depth.evaluation.datasets.world_kinds import KINDS, render_world
from videomamba_depth.evaluation.datasets.worlds import WorldSet, load_world
from videomamba_depth.evaluation.feature_average import AdvectedFeatureAverage
from videomamba_depth.evaluation.model_methods import feature_average_method, teacher_method
from videomamba_depth.evaluation.targets import target_methods
from videomamba_depth.flow.clip_motion import detect_cuts, warp_frame
from videomamba_depth.flow.estimators import DISFlow
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.utils.depth_kind import DepthKind

FRAMES, SIZE = 9, (48, 64)
CPU = torch.device("cpu"), torch.float32
TINY = WorldSet(videos=1, frames=8, long_videos=1, long_frames=10, height=42, width=56)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="module")
def encoder() -> DepthAnythingEncoder:
    return DepthAnythingEncoder(tiny_teacher(), "tiny")


@pytest.fixture(scope="module")
def world(cache: Path) -> EvaluationClip:
    return load_world(cache, TINY.specs()[1], DISFlow())


def test_a_set_names_every_world_once_and_outside_of_training() -> None:
    specs = WorldSet().specs()
    assert [sum(spec.kind == kind for spec in specs) for kind in ("moving", "fast", "static", "long")] == [16] * 3 + [4]
    assert len({spec.seed for spec in specs}) == len(specs)
    assert min(spec.seed for spec in specs) >= 2**31  # the training set draws below


def test_a_kept_world_is_the_rendered_one(world: EvaluationClip, cache: Path) -> None:
    spec = TINY.specs()[1]
    video = render_video(spec.seed, spec.config())
    np.testing.assert_array_equal(world.frames, video.rgb)
    np.testing.assert_array_equal(world.gt_depth_m, video.depth_m)
    assert world.motion is not None
    np.testing.assert_array_equal(world.motion.flow_fwd, np.moveaxis(video.flow_fwd, -1, 1))
    again = load_world(cache, spec, DISFlow())
    assert len(list((cache / "worlds").iterdir())) == 1
    assert world.estimated_motion is not None
    np.testing.assert_array_equal(again.estimated_motion.flow_bwd, world.estimated_motion.flow_bwd)  # type: ignore[union-attr]
    # Estimated, as a user would have it.
    assert not np.array_equal(world.estimated_motion.flow_bwd, np.moveaxis(video.flow_bwd, -1, 1))


def test_true_lag_is_against_the_truth_not_the_flicker(world: EvaluationClip) -> None:
    truth = 1.0 / np.asarray(world.gt_depth_m)
    flicker = np.random.default_rng(0).normal(size=(len(truth), 1, 1)) * truth.std()
    methods = [
        Method.recorded("teacher", (truth + flicker).astype(np.float32)),
        Method.recorded("clean", truth.astype(np.float32)),
        Method.recorded("late", np.roll(truth, 2, axis=0).astype(np.float32)),
        Method.recorded("flat", np.full_like(truth, 2.0, dtype=np.float32)),
    ]
    found = Evaluator(methods, DepthKind.RELATIVE).evaluate(world)["methods"]
    assert found["clean"]["lag/true"].value == pytest.approx(0.0, abs=0.1)
    assert found["late"]["lag/true"].value > 1.0
    assert math.isnan(found["flat"]["lag/true"].value)
    assert found["clean"]["boundary_f1/true"].value == 1.0
    assert found["clean"]["gradient_error"].value < 1e-4 < found["flat"]["gradient_error"].value


def test_an_untrained_student_is_the_teacher_and_reports_name_every_group(
    cache: Path, encoder: DepthAnythingEncoder
) -> None:
    student = tiny_student(encoder, trained=False)

    def new_stream():  # type: ignore[no-untyped-def]
        state = [None]

        def step(frame: torch.Tensor) -> torch.Tensor:
            depth, state[0] = student.step(frame, state[0])
            return depth

        return step

    flow = DISFlow()
    methods = [
        teacher_method(encoder, *CPU),
        *filter_methods(),
        feature_average_method(encoder, flow, "dis", *CPU),
        Method("same", new_stream, digest="same", trained=True),
    ]
    evaluator = Evaluator(methods, DepthKind.RELATIVE, flow, "dis", cache=cache)
    result = evaluate_clips(TINY.sources(cache, flow, "dis")[:2], evaluator)
    assert list(result["groups"]) == ["moving", "fast"]
    scores = result["clips"][0]["methods"]
    for metric, score in scores["teacher"].items():
        assert scores["same"][metric].value == pytest.approx(score.value, rel=1e-3, abs=1e-5, nan_ok=True), metric
    assert len(list(cache.glob("results/*/teacher-*/depth.npy"))) == 2
    text = to_markdown(result)
    for expected in (
        "## Moving camera: 1 clip",
        "## 3× speed: 1 clip",
        "same minus each method",
        "dominates",
        "edges %",
    ):
        assert expected in text, expected


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
    with pytest.raises(ValueError, match="alpha must be in"):
        AdvectedFeatureAverage(0.0)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_world_is_whole_and_its_flow_true(kind: str) -> None:
    config = WorldConfig(*SIZE, FRAMES, family="rooms", camera_motion=KINDS[kind].camera_motion)
    world = render_world(kind, 8_000_000_000, config, DISFlow("ultrafast"))
    assert world["rgb"].shape == (FRAMES, *SIZE, 3)
    assert world["rgb"].dtype == np.uint8
    assert np.isfinite(world["depth_m"]).all()
    assert not world["visible_fwd"][-1].any() or kind == "stops"
    if kind == "cuts":
        assert not world["visible_fwd"][FRAMES // 2 - 1].any()
        assert not world["visible_bwd"][FRAMES // 2].any()
        assert detect_cuts(world["rgb"]) == (FRAMES // 2,)
        return
    for flow, visible, step in (("flow_fwd", "visible_fwd", 1), ("flow_bwd", "visible_bwd", -1)):
        errors = []
        for t in range(max(0, -step), FRAMES - max(0, step)):
            seen_later = warp_frame(world["depth_m"][t + step].astype(np.float32), world[flow][t])
            errors.append(np.abs(seen_later / world["depth_m"][t] - 1)[world[visible][t]])
        seen = np.concatenate(errors)
        assert len(seen) > 0.5 * FRAMES * SIZE[0] * SIZE[1]
        assert float(np.median(seen)) < 0.02  # 0.005; 3x speed .01


def test_a_zoom_or_a_stop_changes_no_depth() -> None:
    config = WorldConfig(*SIZE, FRAMES, family="rooms")
    stops = KINDS["stops"].render(8_000_000_000, config)
    same = [t for t in range(FRAMES - 1) if np.array_equal(stops["depth_m"][t], stops["depth_m"][t + 1])]
    assert len(same) == 3
    assert not stops["flow_fwd"][same].any()
    zoom = KINDS["zoom"].render(8_000_000_000, config)
    assert np.ptp(zoom["depth_m"][:, SIZE[0] // 2, SIZE[1] // 2]) < 0.1
    assert float(np.linalg.norm(zoom["flow_bwd"][1:], axis=1).mean()) > 0.2


def test_what_fades_in_is_black_at_first_and_noise_is_new_in_every_frame() -> None:
    config = WorldConfig(*SIZE, FRAMES, family="rooms")
    moving, fade, noise = (KINDS[kind].render(8_000_000_000, config) for kind in ("moving", "fade", "noise"))
    assert fade["rgb"][0].mean() < 4
    assert np.abs(fade["rgb"][3:].astype(float) - moving["rgb"][3:]).mean() < 5  # noise of the camera
    np.testing.assert_array_equal(fade["depth_m"], moving["depth_m"])
    assert abs(np.corrcoef(noise["rgb"][0].ravel(), noise["rgb"][1].ravel())[0, 1]) < 0.05


def test_targets_are_methods_beside_the_teacher(
    encoder: DepthAnythingEncoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = DISFlow()
    worlds = WorldSet(
        world="rooms", seed=8_000_000_000, kinds=("rotation",), videos=1, frames=FRAMES, height=48, width=64
    )
    evaluator = Evaluator([teacher_method(encoder, *CPU), *target_methods(flow)], DepthKind.RELATIVE, flow)
    found = evaluator.evaluate(worlds.sources(cache, flow, "dis")[0])["methods"]
    assert list(found) == ["teacher", "stabilized", "geometry"]
    for metric in ("abs_rel/video", "tge", "gradient_error", "boundary_f1/true", "delta1/video"):
        assert found["geometry"][metric] == found["stabilized"][metric]  # it only turns
        assert found["stabilized"][metric] != found["teacher"][metric]
    from_windows = "videomamba_depth.evaluation.targets"
    monkeypatch.setattr(f"{from_windows}.WINDOW", FRAMES - 1)  # longer clips go frame by frame, through windows
    monkeypatch.setattr(f"{from_windows}.TARGETS", {})
    frame_by_frame = replace(evaluator, methods=evaluator.methods[:2])
    again = frame_by_frame.evaluate(worlds.sources(cache, flow, "dis")[0])["methods"]
    assert again["stabilized"] == found["stabilized"]
