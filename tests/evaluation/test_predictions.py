"""Depth that other programs have recorded, compared with and without models of this project."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tiny import save_tiny_teacher
from tiny_room import Room, clip_of, render_room
from torch import Tensor

from videomamba_depth.commands.evaluate import main
from videomamba_depth.commands.stream import main as stream
from videomamba_depth.configuration.build_evaluate import build_evaluation, held_against
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.evaluate_schema import EvaluateConfig, name_predictions
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.data.video.writer import VideoWriter
from videomamba_depth.evaluation import ClipSource, EvaluationClip, Evaluator, Method, evaluate_clips
from videomamba_depth.evaluation.methods import _ema, filter_method
from videomamba_depth.evaluation.predictions import Prediction, prediction_method, scored_kind, usable_range
from videomamba_depth.evaluation.report import metric_table
from videomamba_depth.flow.estimators import build_flow
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError

NUM_FRAMES, SIZE = 8, (48, 64)
RELATIVE, METRIC = DepthKind.RELATIVE, DepthKind.METRIC


@pytest.fixture(scope="module")
def room() -> Room:
    return render_room(NUM_FRAMES, *SIZE, speed_m=0.03)


def framewise(frame: Tensor) -> Tensor:
    """Stand in for a framewise teacher of inverse depth, at half the size: [1,3,H,W] → [1,1,h,w]."""
    small = torch.nn.functional.avg_pool2d(frame, 2)
    return 1.0 + small.mean(dim=1, keepdim=True) + 0.1 * torch.sin(40 * small[:, :1])


def depth_of(room: Room) -> np.ndarray:
    frames = torch.from_numpy(room.rgb).permute(0, 3, 1, 2).float() / 255
    return np.concatenate([framewise(frame[None])[0].numpy() for frame in frames])


def scores(clips: Sequence[EvaluationClip], methods: Sequence[Method], kind: DepthKind) -> dict[str, dict[str, float]]:
    result = evaluate_clips(clips, Evaluator(methods, kind))
    return {
        name: {metric: score.value for metric, score in found.items()}
        for name, found in result["clips"][0]["methods"].items()
    }


def recorded(path: Path, kind: DepthKind, name: str = "recorded", **options: Any) -> Method:
    return prediction_method(Prediction(name, path, kind, **options), kind)


def worst(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Return the largest difference, relative to the larger of 1 and the value; the same metrics are defined."""
    assert {k for k, v in one.items() if math.isnan(v)} == {k for k, v in other.items() if math.isnan(v)}
    shared = one.keys() & other.keys()
    return max(abs(one[k] - other[k]) / max(1.0, abs(one[k])) for k in shared if math.isfinite(one[k]))


def test_recorded_depth_scores_as_the_live_method(tmp_path: Path, room: Room) -> None:
    depth = depth_of(room)
    np.savez_compressed(tmp_path / "room.npz", depth=depth)
    (tmp_path / "png").mkdir()
    for t, frame in enumerate(depth):
        values = np.rint(frame * 20000).astype(np.uint16)
        cv2.imwrite(str(tmp_path / "png" / f"{t:04d}.png"), values)
    methods = [
        Method("teacher", lambda: framewise),
        recorded(tmp_path, RELATIVE, "npz"),
        recorded(tmp_path / "png", RELATIVE, "png", scale=1 / 20000, alone=True),
    ]
    found = scores([clip_of(room)], methods, RELATIVE)
    assert found["npz"].keys() == found["teacher"].keys()
    assert worst(found["teacher"], found["npz"]) == 0
    assert 0 < worst(found["teacher"], found["png"]) < 1e-3


def test_five_kinds_of_the_truth_score_perfect(tmp_path: Path, room: Room) -> None:
    z = room.depth_m
    made = {
        RELATIVE: 3 / z + 1,
        DepthKind.AFFINE_DEPTH: 0.2 * z - 1,
        DepthKind.SCALED_INVERSE: 3 / z,
        DepthKind.SCALED_DEPTH: 0.2 * z,
        METRIC: z,
    }
    methods = [Method("teacher", lambda: framewise)]
    for kind, depth in made.items():
        np.save(tmp_path / f"{kind.value}.npy", depth.astype(np.float32))
        methods.append(recorded(tmp_path / f"{kind.value}.npy", kind, kind.value, alone=True))
    found = scores([clip_of(room)], methods, RELATIVE)
    for kind in DepthKind:
        mine = found[kind.value]
        assert mine["abs_rel/video"] < 2e-5, kind
        assert mine["tge"] < 1e-4, kind
        assert mine["lag/true"] == pytest.approx(0, abs=0.05)
        assert ("abs_rel/metric" in mine) == (kind is METRIC)
    assert found[METRIC.value]["abs_rel/metric"] < 1e-6
    wrong = recorded(tmp_path / f"{RELATIVE.value}.npy", DepthKind.AFFINE_DEPTH, "wrong", alone=True)
    assert scores([clip_of(room)], [methods[0], wrong], RELATIVE)["wrong"]["abs_rel/video"] > 0.02


def test_the_unit_and_the_zero_of_a_recording_mean_nothing(tmp_path: Path, room: Room) -> None:
    z = room.depth_m.astype(np.float64)
    made = {
        "negative": (RELATIVE, 5 / z - 2 * (5 / z).mean()),
        "below": (RELATIVE, 5 / z - (5 / z).max()),
        "tiny": (RELATIVE, 1e-4 / z),
        "tiny_scaled": (DepthKind.SCALED_INVERSE, 1e-3 / z),
        "millimeters": (DepthKind.SCALED_DEPTH, 1000 * z),
    }
    methods = [Method("teacher", lambda: framewise)]
    for name, (kind, depth) in made.items():
        np.save(tmp_path / f"{name}.npy", depth.astype(np.float32))
        methods.append(recorded(tmp_path / f"{name}.npy", kind, name, alone=True))
    found = scores([clip_of(room)], methods, RELATIVE)
    for name in made:
        assert found[name]["abs_rel/video"] < 1e-4, name
        assert found[name]["tge"] < 1e-4, name


@pytest.mark.parametrize(("kind", "broken"), [("shifted", 2000.0), ("shifted", -2000.0), ("scaled", 1.0)])
def test_one_broken_pixel_does_not_decide_how_a_clip_is_read(
    tmp_path: Path, room: Room, kind: str, broken: float
) -> None:
    z = room.depth_m.astype(np.float64)
    depth = 5 / z - 3 if kind == "shifted" else 1e-3 / z
    depth[0, 0, 0] = broken
    np.save(tmp_path / "a.npy", depth.astype(np.float32))
    given = RELATIVE if kind == "shifted" else DepthKind.SCALED_INVERSE
    methods = [Method("teacher", lambda: framewise), recorded(tmp_path / "a.npy", given, "a", alone=True)]
    hidden = np.ones(z.shape, dtype=bool)
    hidden[0, 0, 0] = False  # what is left is the truth
    assert scores([clip_of(room, valid=hidden)], methods, RELATIVE)["a"]["abs_rel/video"] < 1e-4


def test_numbers_that_the_floor_leaves_alone_keep_their_bits() -> None:
    frames = np.random.default_rng(0).uniform(0.0, 4.0, (3, 4, 5)).astype(np.float32)
    frames[1, 0] = 0.0  # the sky of Depth Anything
    same = usable_range(frames, has_shift=True)
    assert same.unit is None
    np.testing.assert_array_equal(same(frames[1]), frames[1])
    moved = usable_range(frames - 1, has_shift=True)
    assert moved.below == pytest.approx((frames - 1 < 1e-3).mean())
    assert np.stack([moved(frame - 1) for frame in frames]).min() == np.float32(1e-3)
    sky = usable_range(1e-4 * frames, has_shift=False)
    assert sky(1e-4 * frames[1])[0].max() == 0, "what is infinitely far stays there"


def test_metric_systems_are_not_aligned_among_themselves(tmp_path: Path, room: Room) -> None:
    for name, factor in (("a", 1.0), ("b", 1.1)):
        np.save(tmp_path / f"{name}.npy", factor * room.depth_m)
    methods = [recorded(tmp_path / f"{name}.npy", METRIC, name, alone=True) for name in ("a", "b")]
    methods[0] = Method("a", on_clip=methods[0].on_clip, kind=METRIC)
    found = scores([clip_of(room)], methods, METRIC)
    assert found["b"]["abs_rel/metric"] == pytest.approx(0.1, abs=1e-4)
    assert "abs_rel/video" not in found["b"]
    relative = Method("teacher", lambda: framewise)
    mixed = scores([clip_of(room)], [relative, methods[1]], RELATIVE)["b"]
    assert mixed["abs_rel/metric"] == pytest.approx(0.1, abs=1e-4)
    assert mixed["abs_rel/video"] < 1e-5


def test_pixels_without_depth_count_as_far_and_are_named(tmp_path: Path, room: Room) -> None:
    depth = room.depth_m.copy()
    depth[:, :6] = np.inf  # an eighth
    np.save(tmp_path / "a.npy", depth)
    methods = [Method("teacher", lambda: framewise), recorded(tmp_path / "a.npy", METRIC, "a", alone=True)]
    result = evaluate_clips([clip_of(room)], Evaluator(methods, RELATIVE))
    assert result["clips"][0]["flags"]["a"] == ["12 % without depth, taken as far"]
    assert math.isfinite(result["clips"][0]["methods"]["a"]["tge"].value)
    depth[2, :40] = np.nan
    np.save(tmp_path / "a.npy", depth)
    with pytest.raises(UserError, match=r"prediction 'a': 83 % of frame 2 of .*a\.npy are no metric_depth_m"):
        evaluate_clips([clip_of(room)], Evaluator(methods, RELATIVE))


@pytest.mark.parametrize(
    ("depth", "changes", "message"),
    [
        (np.ones((7, 48, 64)), {}, "has depth of 7 frames, the clip has 8"),
        (np.ones((8, 64, 48)), {}, "64×48 px for frames of 48×64 px: it was cropped, padded or turned"),
        (np.ones((8, 48, 64)), {"gt_depth_m": None}, "needs ground truth to be aligned to"),
    ],
)
def test_what_does_not_go_together_is_named(
    tmp_path: Path, room: Room, depth: np.ndarray, changes: dict[str, Any], message: str
) -> None:
    np.save(tmp_path / "a.npy", depth)
    kind = DepthKind.AFFINE_DEPTH
    methods = [Method("teacher", lambda: framewise), recorded(tmp_path / "a.npy", kind, "a", alone=True)]
    with pytest.raises(UserError, match=message) as caught:
        evaluate_clips([clip_of(room, **changes)], Evaluator(methods, RELATIVE))
    assert "prediction 'a'" in str(caught.value)


def test_frames_without_ground_truth_are_stepped_over(tmp_path: Path, room: Room) -> None:
    every = depth_of(room)
    picked = [0, 2, 3, 6]
    clip = clip_of(
        room,
        frames=room.rgb[picked],
        gt_depth_m=room.depth_m[picked],
        motion=None,
        frame_ids=tuple(f"img{i}" for i in picked),
        frame_places=tuple(picked),
        source_frames=NUM_FRAMES,
    )
    np.save(tmp_path / "whole.npy", every)
    np.save(tmp_path / "picked.npy", every[picked])
    (tmp_path / "named").mkdir()
    for i in (6, 3, 2, 0, 7):
        np.save(tmp_path / "named" / f"img{i}.npy", every[i])
    paths = ("whole.npy", "picked.npy", "named")
    methods = [Method("teacher", lambda: framewise)]
    methods += [recorded(tmp_path / path, RELATIVE, path, alone=True) for path in paths]
    result = evaluate_clips([clip], Evaluator(methods, RELATIVE, flow=build_flow("dis")))
    found = result["clips"][0]["methods"]
    for path in paths:
        assert found[path]["flk2"].value == found["teacher"]["flk2"].value


def test_predictions_are_named_like_checkpoints() -> None:
    named = name_predictions(["vda:x/vda", "y/pro"], ["pro:metric_depth_m"], "0.001", True)
    assert [(p.name, p.root, p.kind, p.scale) for p in named] == [
        ("vda", Path("x/vda"), None, 0.001),
        ("pro", Path("y/pro"), METRIC, 0.001),
    ]
    for kinds, scales, message in (
        (["z:metric_depth_m"], [], "prediction_kind has a value for 'z'; write NAME:VALUE for one of a"),
        ("meters", [], "prediction_kind of 'a': 'meters' is no kind of depth"),
        ([], "mm", "prediction_scale of 'a' must be a number; got 'mm'"),
    ):
        with pytest.raises(UserError, match=message):
            name_predictions("a:x", kinds, scales, True)
    with pytest.raises(UserError, match="prediction names 'a' twice"):
        name_predictions(["a:x", "a:y"], [], [], True)
    assert scored_kind(DepthKind.SCALED_DEPTH) is RELATIVE


def write_video(path: Path, frames: np.ndarray) -> None:
    with VideoWriter(path, size=(frames.shape[2], frames.shape[1]), fps=Fraction(25), crf=10) as writer:
        for frame in frames:
            writer.write(frame)


def test_two_foreign_systems_without_any_model_of_ours(
    tmp_path: Path, room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    """A framewise system and an average of it, written in three forms, are compared from the command line."""
    write_video(tmp_path / "videos" / "walk.mp4", room.rgb)
    depth = 10 * depth_of(room)
    smooth = depth.copy()
    for t in range(1, NUM_FRAMES):
        smooth[t] = 0.5 * depth[t] + 0.5 * smooth[t - 1]
    (tmp_path / "one").mkdir()
    np.savez_compressed(tmp_path / "one" / "walk_depths.npz", depths=depth)  # as Video Depth Anything's program does
    zarr = pytest.importorskip("zarr", reason="it needs Python 3.11")
    zarr.create_group(tmp_path / "two" / "walk.zarr", attributes={"depth_kind": RELATIVE.value}).create_array(
        "depth", data=smooth
    )
    (tmp_path / "three" / "walk").mkdir(parents=True)
    for t, frame in enumerate(smooth):
        cv2.imwrite(str(tmp_path / "three" / "walk" / f"{t:05d}.png"), np.rint(3000 * frame).astype(np.uint16))
    overrides = [
        f"prediction=[framewise:{tmp_path / 'one'},average:{tmp_path / 'two'},png:{tmp_path / 'three'}]",
        f"prediction_kind=[framewise:{RELATIVE.value},png:{RELATIVE.value}]",
        f"input={tmp_path / 'videos' / 'walk.mp4'}",
        f"output={tmp_path / 'report'}",
        "html.enabled=false",
        "cache=null",
    ]
    main(load_config("evaluate", EvaluateConfig, overrides))
    assert "Change against framewise" in capsys.readouterr().out
    result = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    means = {name: {m: s["value"] for m, s in metrics.items()} for name, metrics in result["mean"].items()}
    assert next(iter(means)) == "framewise"
    assert "teacher" not in means
    assert "feature_ema" not in means
    assert means["average"]["flk2"] < 0.7 * means["framewise"]["flk2"]
    assert means["average"]["flk2"] == pytest.approx(means["ema_0.5"]["flk2"], rel=1e-6)
    assert means["png"]["flk2"] == pytest.approx(means["average"]["flk2"], rel=1e-2)
    assert result["metadata"]["predictions"]["average"]["kind"] == RELATIVE.value
    assert result["metadata"]["predictions"]["average"]["scale"] == 1.0
    assert result["metadata"]["precision"] in ("bfloat16", "float32")
    assert result["reference"] == "framewise"
    assert set(result["verdicts"]) == {"average", "png"}


def test_a_recording_of_our_own_stream_equals_the_live_method(tmp_path: Path, room: Room) -> None:
    """What `inference_streaming.py` writes of the teacher scores as the teacher itself."""
    write_video(tmp_path / "walk.mp4", room.rgb)
    teacher = save_tiny_teacher(tmp_path / "teacher")
    streamed = [
        f"checkpoint=teacher:{teacher}",
        f"input={tmp_path / 'walk.mp4'}",
        f"output={tmp_path / 'out'}",
        *("raw=npz", "raw_precision=float32", "video=none", "short_side=42", "device=cpu"),
    ]
    stream(load_config("stream", StreamConfig, streamed))
    overrides = [
        "checkpoint=[]",
        f"teacher.name={teacher}",
        f"input={tmp_path / 'walk.mp4'}",
        f"prediction=streamed:{tmp_path / 'out'}",
        *("short_side=42", "precision=float32", "cache=null", "device=cpu"),
    ]
    made = build_evaluation(load_config("evaluate", EvaluateConfig, overrides))
    result = made.evaluator.evaluate(made.sources[0])
    (_, _, live), (_, _, replayed) = (
        metric_table("", {name: {m: {"value": s.value} for m, s in result["methods"][name].items()}}).rows[0]
        for name in ("teacher", "streamed")
    )
    assert [abs(float(value)) for value in live] == [abs(float(value)) for value in replayed]  # as printed
    assert worst(*({m: s.value for m, s in result["methods"][n].items()} for n in ("teacher", "streamed"))) < 1e-4


def test_kept_results_follow_the_content(tmp_path: Path, room: Room) -> None:
    """Links, equal sizes and times, or a note beside the recording hide no change."""
    (tmp_path / "real").mkdir()
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "room").symlink_to(tmp_path / "real")
    file, depth = tmp_path / "real" / "0.npy", depth_of(room)
    np.save(file, depth)
    prediction = Prediction("x", tmp_path / "depth", RELATIVE)
    digests, times = {prediction.digest("room")}, (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    np.save(file, depth[::-1])
    os.utime(file, ns=times)
    digests.add(prediction.digest("room"))
    (tmp_path / "depth" / "about.json").write_text('{"scale": 2.0}')
    digests.add(prediction.digest("room"))
    assert len(digests) == 3

    def flicker() -> float:
        source = ClipSource("room", lambda: clip_of(room), digest=lambda: "room")
        reference = replace(prediction_method(prediction, RELATIVE), trained=False)
        found = Evaluator([reference], RELATIVE, cache=tmp_path / "cache").evaluate(source)
        return float(found["methods"]["x"]["flk2"].value)

    before = flicker()
    np.save(file, depth)
    os.utime(file, ns=times)
    assert flicker() != before


def test_an_at_sign_in_the_name_of_a_video_means_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", np.ones((2, *SIZE)))
    assert Prediction("x", tmp_path).find("b@indoor").name == "b.npy"
    with pytest.raises(UserError, match=r"no depth of 'b@1\.mp4'"):
        Prediction("x", tmp_path, videos={"b@1.mp4": "b@1.mp4"}).find("b@1.mp4")


def test_an_at_sign_in_the_name_of_a_sequence_means_nothing(tmp_path: Path, room: Room) -> None:
    for name in ("walk@a", "walk@b"):
        for kind, frames in (("rgb", room.rgb), ("depth", (1000 * room.depth_m).astype(np.uint16))):
            (tmp_path / "data" / name / kind).mkdir(parents=True)
            for t in range(2):
                cv2.imwrite(str(tmp_path / "data" / name / kind / f"{t}.png"), frames[t])
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth" / "walk.npy", np.ones((2, *SIZE)))
    overrides = [f"prediction=x:{tmp_path / 'depth'}", f"input={tmp_path / 'data'}", "rgbd.depth_scale=1000"]
    with pytest.raises(UserError, match=r"prediction 'x' lacks 2 of 2 clips: .* has no depth of 'walk@a'"):
        build_evaluation(load_config("evaluate", EvaluateConfig, overrides))


def test_numbers_of_frames_count_the_files_of_a_folder(tmp_path: Path, room: Room) -> None:
    every, picked = depth_of(room), [1, 2, 4, 5, 6]  # of a list that leaves out three files
    clip = clip_of(
        room,
        frames=room.rgb[picked],
        gt_depth_m=room.depth_m[picked],
        motion=None,
        frame_ids=tuple(f"img{i}" for i in picked),
        frame_places=tuple(range(5)),
        source_frames=5,
        file_places=tuple(picked),
        num_files=NUM_FRAMES,
    )
    np.savez(tmp_path / "numbered.npz", depth=every, frame_index=np.arange(NUM_FRAMES))
    np.save(tmp_path / "folder.npy", every)
    np.save(tmp_path / "listed.npy", every[picked])
    paths = ("numbered.npz", "folder.npy", "listed.npy")
    methods = [Method("teacher", lambda: framewise)]
    methods += [recorded(tmp_path / path, RELATIVE, path, alone=True) for path in paths]
    evaluator = Evaluator(methods, RELATIVE, flow=build_flow("dis"))
    found = evaluate_clips([clip], evaluator)["clips"][0]["methods"]
    for path in paths:
        assert found[path]["flk2"].value == found["teacher"]["flk2"].value
    with pytest.raises(UserError, match=r"depth of picture number 7, counted from 0; 'room' has 5 pictures"):
        evaluate_clips([replace(clip, file_places=None, num_files=None)], evaluator)


def test_numbers_of_the_listed_pictures_alone_are_refused(tmp_path: Path, room: Room) -> None:
    every, picked = depth_of(room), (0, 1, 3, 4, 5, 6, 7)
    clip = clip_of(
        room,
        frames=room.rgb[list(picked)],
        gt_depth_m=room.depth_m[list(picked)],
        motion=None,
        frame_places=tuple(range(7)),
        source_frames=7,
        file_places=picked,
        num_files=NUM_FRAMES,
    )
    np.savez(tmp_path / "room.npz", depth=every[list(picked)], frame_index=np.arange(7))
    method = recorded(tmp_path, RELATIVE, "listed")
    for max_frames in (4, None):
        with pytest.raises(UserError, match=r"may be the 7 pictures that 'room' lists, or the first 7 of the 8"):
            method.on_clip(clip, max_frames)
    np.savez(tmp_path / "room.npz", depth=every, frame_index=np.arange(NUM_FRAMES))
    assert method.on_clip(clip, 4)._indices == [0, 1, 3, 4]
    np.savez(tmp_path / "room.npz", depth=every[:5], frame_index=np.arange(5))
    assert method.on_clip(clip, 4)._indices == [0, 1, 3, 4]


def test_numbers_count_the_pictures_among_which_depth_lies(
    tmp_path: Path, room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 7-Scenes and NYU, whose depth lies beside the pictures; which of both was streamed, numbers do not tell."""
    places = tuple(range(NUM_FRAMES))
    clip = clip_of(room, frame_places=places, source_frames=NUM_FRAMES, num_files=2 * NUM_FRAMES)
    np.savez(tmp_path / "room.npz", depth=depth_of(room), frame_index=places)
    method = recorded(tmp_path, RELATIVE, "pictures")
    assert method.on_clip(clip, 4)._indices == [0, 1, 2, 3]
    assert "counting the 8 pictures of 'room' alone, not all 16 images in their folder" in caplog.text
    np.savez(tmp_path / "room.npz", depth=np.repeat(depth_of(room), 2, 0), frame_index=range(2 * NUM_FRAMES))
    with pytest.raises(UserError, match="picture number 15, counted from 0; 'room' has 8 pictures"):
        method.on_clip(clip, 4)


def test_one_recording_for_two_clips_is_refused(tmp_path: Path, room: Room) -> None:
    for name in ("a/clip", "b/clip"):
        write_video(tmp_path / "videos" / f"{name}.mp4", room.rgb[:2])
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth" / "clip.npy", np.ones((2, *SIZE)))
    overrides = [f"prediction=x:{tmp_path / 'depth'}", f"input={tmp_path / 'videos'}"]
    with pytest.raises(UserError, match=r"prediction 'x': .*'a/clip\.mp4' and of 'b/clip\.mp4'"):
        build_evaluation(load_config("evaluate", EvaluateConfig, overrides))


def test_a_constant_recording_is_named(tmp_path: Path, room: Room, caplog: pytest.LogCaptureFixture) -> None:
    np.save(tmp_path / "a.npy", np.full((NUM_FRAMES, *SIZE), -3.0))
    method = recorded(tmp_path / "a.npy", RELATIVE, "a", alone=True)
    scores([clip_of(room)], [Method("teacher", lambda: framewise), method], RELATIVE)
    assert [record.message for record in caplog.records if "everywhere" in record.message] == [
        f"prediction 'a': {tmp_path / 'a.npy'} is -3 everywhere: is it what was recorded?"
    ]


def test_missing_clips_are_named_before_anything_runs(tmp_path: Path, room: Room) -> None:
    for name in ("a", "b"):
        write_video(tmp_path / "videos" / f"{name}.mp4", room.rgb[:2])
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth" / "a.npy", np.ones((2, *SIZE)))
    overrides = [f"prediction=x:{tmp_path / 'depth'}", f"input={tmp_path / 'videos'}"]
    with pytest.raises(UserError, match=r"prediction 'x' lacks 1 of 2 clips: .*depth has no depth of 'b.mp4'"):
        build_evaluation(load_config("evaluate", EvaluateConfig, overrides))
    np.save(tmp_path / "depth" / "b.npy", np.ones((2, *SIZE)))
    with pytest.raises(UserError, match=r"prediction 'x': .* does not say what its depth means"):
        build_evaluation(load_config("evaluate", EvaluateConfig, overrides))
    with pytest.raises(UserError, match="config: no value for checkpoint"):
        build_evaluation(load_config("evaluate", EvaluateConfig, [f"input={tmp_path / 'videos'}"]))


def test_a_student_is_held_against_the_labels_that_taught_it(room: Room, tmp_path: Path) -> None:
    """Labels in the teacher's place give the numbers that the teacher does whose depth they hold; so do meters."""
    np.savez(tmp_path / "room.npz", depth=depth_of(room))
    student = Method("student", lambda: lambda frame: framewise(frame) + 0.05 * frame[:, :1, ::2, ::2], trained=True)
    live = [Method("teacher", lambda: framewise), filter_method("ema_0.5", partial(_ema, alpha=0.5)), student]
    methods = held_against("labels", [*live, recorded(tmp_path, RELATIVE, "labels")], RELATIVE)
    assert [(m.name, m.trained, m.kind) for m in methods] == [
        ("labels", False, RELATIVE), ("ema_0.5", False, None), ("student", True, RELATIVE),
    ]  # fmt: skip
    before, now = scores([clip_of(room)], live, RELATIVE), scores([clip_of(room)], methods, RELATIVE)
    for name in ("ema_0.5", "student"):
        assert worst(before[name], now[name]) < 1e-5, name
    assert worst(before["teacher"], now["labels"]) < 1e-5
    np.savez(tmp_path / "room.npz", depth=1 / depth_of(room))
    metric = held_against("labels", [*live, recorded(tmp_path, METRIC, "labels")], RELATIVE)
    assert [m.kind for m in metric] == [METRIC, None, RELATIVE]
    assert scores([clip_of(room)], metric, METRIC)["student"].keys() == before["student"].keys()
    with pytest.raises(UserError, match="reference=labels is no prediction"):
        held_against("labels", live, RELATIVE)
