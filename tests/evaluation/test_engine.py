"""The whole evaluation on small clips: methods, means, verdict, reports, and what is kept of them."""

from __future__ import annotations

import csv
import errno
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_room import Room, clip_of, render_room
from torch import Tensor

from videomamba_depth.evaluation import (
    ClipSource,
    EvaluationClip,
    Evaluator,
    Method,
    Protocol,
    clip_from_synthetic,
    evaluate_clips,
    filter_methods,
    shrink_clip,
    to_markdown,
    write_csv,
    write_json,
    write_markdown,
)
from videomamba_depth.evaluation.html.page import render
from videomamba_depth.evaluation.methods import all_filters, causal_affine, filter_method, flow_warped_average
from videomamba_depth.evaluation.progress import EvaluationBar
from videomamba_depth.evaluation.recurrence import run_palindrome, settle_after_cut, to_tensor
from videomamba_depth.evaluation.summary import mean_methods, verdict
from videomamba_depth.flow.clip_motion import ClipMotion
from videomamba_depth.flow.estimators import DISFlow
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError

NUM_FRAMES = 12


@pytest.fixture(scope="module")
def room() -> Room:
    return render_room(NUM_FRAMES, 48, 64, speed_m=0.03)


def brightness(frame: Tensor) -> Tensor:
    """Stand in for a framewise teacher: [1,3,H,W] → [1,1,H,W]."""
    return 1.0 + frame.mean(dim=1, keepdim=True)


def averaging_stream(alpha: float = 0.5) -> Callable[[Tensor], Tensor]:
    state: list[Tensor] = []

    def step(frame: Tensor) -> Tensor:
        depth = brightness(frame)
        state[:] = [alpha * depth + (1 - alpha) * state[0] if state else depth]
        return state[0]

    return step


def evaluator(
    students: dict[str, Any] | None = None,
    *,
    teacher: Any = brightness,
    filters: Any = (),
    flow: DISFlow | None = None,
    depth_kind: DepthKind = DepthKind.RELATIVE,
    **protocol: Any,
) -> Evaluator:
    """Return what scores a teacher, filters and students; each a stream's function, or finished depth."""

    def method(name: str, given: Any, trained: bool) -> Method:
        if callable(given):
            return Method(name, given if trained else lambda: given, trained=trained)
        return Method.recorded(name, given, trained)

    methods = [method("teacher", teacher, False), *filters, *(method(n, g, True) for n, g in (students or {}).items())]
    return Evaluator(methods, depth_kind, flow, protocol=Protocol(**protocol))


def flickering(room: Room, amount: float = 0.03) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(NUM_FRAMES, 1, 1))
    return (1.0 / room.depth_m * (1 + amount * noise)).astype(np.float32)


def test_a_truthful_student_is_better_and_an_average_is_not(room: Room) -> None:
    arguments: dict[str, Any] = {"teacher": flickering(room), "filters": filter_methods()}
    result = evaluator({"student": 1.0 / room.depth_m}, **arguments).evaluate(clip_of(room))
    assert list(result["methods"]) == ["teacher", *all_filters(), "student"]
    assert verdict(mean_methods([result]))["better"]
    copied = evaluator({"student": flickering(room)}, **arguments)
    again = verdict(mean_methods([copied.evaluate(clip_of(room))]))
    assert not again["beats_teacher"]
    assert not again["better"]
    assert again["accuracy_kept"]
    assert result["flags"]["constant"] == ["flat"]
    assert result["alignment"] == "one affine per clip to ground truth"


def test_streams_equal_recorded_depth_and_are_fed_in_order(room: Room) -> None:
    finished = torch.stack([brightness(torch.from_numpy(f).permute(2, 0, 1)[None] / 255.0)[0] for f in room.rgb])
    recorded = evaluator(teacher=finished).evaluate(clip_of(room))
    streamed = evaluator().evaluate(clip_of(room, frames=iter(room.rgb)))
    for metric, score in recorded["methods"]["teacher"].items():
        assert streamed["methods"]["teacher"][metric].value == pytest.approx(score.value, nan_ok=True), metric
    with pytest.raises(ValueError, match="'teacher' has fewer frames than the clip"):
        evaluator(teacher=finished[:3]).evaluate(clip_of(room))


def test_videos_without_ground_truth(room: Room, tmp_path: Path) -> None:
    clips = [
        EvaluationClip("first", np.repeat(np.repeat(room.rgb, 2, 1), 2, 2), fps=10.0),
        EvaluationClip("second", iter(room.rgb[:8]), frame_ids=tuple(range(100, 108))),
    ]
    scorer = evaluator(
        {"student": averaging_stream}, filters=filter_methods(), flow=DISFlow("fast"), max_side=64, max_frames=10,
        palindrome=True,
    )  # fmt: skip
    metadata = {"checkpoint": "runs/x/last", "checkpoint_sha256": "abc"}
    result = evaluate_clips(clips, scorer, metadata=metadata)
    assert [clip["num_frames"] for clip in result["clips"]] == [10, 8]
    assert result["clips"][0]["size"] == [48, 64]
    assert result["clips"][1]["frame_ids"] == list(range(100, 108))
    student, ema = result["mean"]["student"], result["mean"]["ema_0.5"]
    for metric in ("opw", "flk2", "edge_ratio", "teacher_diff/clip"):
        # Resizing does not commute with nothing else here: the student is the baseline, computed by
        # streaming.
        assert student[metric]["value"] == pytest.approx(ema[metric]["value"], rel=1e-3), metric
        assert student[metric]["num_clips"] == 2
    assert student["palindrome_drift"]["value"] > 0.01
    assert result["mean"]["teacher"]["teacher_diff/clip"]["value"] == 0.0
    assert not result["verdicts"]["student"]["better"]
    stored = json.loads(write_json(result, tmp_path / "out" / "evaluation.json").read_text())
    assert stored["metadata"]["checkpoint_sha256"] == "abc"
    assert stored["mean"]["constant"]["flk2"]["value"] is None
    assert stored["clips"][0]["methods"]["constant"]["flk2"]["reason"] == "the prediction is flat"
    assert stored["versions"]["torch"] == torch.__version__.split("+")[0] or stored["versions"]["torch"]
    text = write_markdown(result, tmp_path / "out" / "evaluation.md").read_text()
    assert "| constant (flat) |" in text
    assert "not better" in text
    assert "second: 8 frames" in text
    assert "AbsRel" not in text  # no ground truth, no such column
    assert list((tmp_path / "out").glob("*.partial")) == []


def test_an_interrupted_evaluation_keeps_the_clips_that_are_done(room: Room) -> None:
    def interrupted() -> Iterator[EvaluationClip]:
        yield clip_of(room)
        yield clip_of(room, name="again", frames=list(room.rgb))
        raise KeyboardInterrupt

    kept: list[dict[str, Any]] = []
    with pytest.raises(KeyboardInterrupt):
        evaluate_clips(interrupted(), evaluator({"student": averaging_stream}), keep=kept.append)
    assert [[clip["name"] for clip in result["clips"]] for result in kept] == [["room"], ["room", "again"]]
    assert kept[0]["counts"]["student"]["num_clips"] == 1
    assert "| student |" in to_markdown(kept[0])


def test_clips_that_cannot_be_used_are_named_and_the_others_scored(room: Room) -> None:
    def refuse() -> EvaluationClip:
        raise UserError("there.mp4 is empty")

    def stops() -> Iterator[np.ndarray]:
        yield from room.rgb[:5]
        raise UserError("midway.mp4 is damaged")

    def clips() -> list[EvaluationClip | ClipSource]:
        return [
            ClipSource("there", refuse),
            EvaluationClip("midway", stops()),
            EvaluationClip("one", room.rgb[:1]),
            ClipSource("room", lambda: clip_of(room)),
            clip_of(room, name="last", frames=iter(room.rgb)),
        ]

    scorer = evaluator({"student": averaging_stream}, flow=DISFlow("ultrafast"))
    kept: list[dict[str, Any]] = []
    result = evaluate_clips(clips(), scorer, keep=kept.append, skip_unusable=True)
    assert [clip["name"] for clip in result["clips"]] == ["room", "last"]
    assert list(result["skipped"]) == ["there", "midway", "one"]
    assert result["skipped"]["midway"] == "midway.mp4 is damaged"
    message = "Skipped 3 of 5 clips: there (there.mp4 is empty); midway (midway.mp4 is damaged); one ("
    assert message in to_markdown(result)
    assert "Skipped 3 of 5 clips" in render(result)
    assert len(kept) == 2
    with pytest.raises(UserError, match=r"there\.mp4 is empty"):
        evaluate_clips(clips(), scorer)
    with pytest.raises(UserError, match=r"none of 3 clips can be evaluated: there \(there\.mp4 is empty\); midway"):
        evaluate_clips(clips()[:3], scorer, skip_unusable=True)


def test_a_full_disk_ends_the_evaluation_whatever_the_clip(room: Room, tmp_path: Path, monkeypatch: Any) -> None:
    def full() -> EvaluationClip:
        raise UserError("no space is left for the frames") from OSError(errno.ENOSPC, "No space left on device")

    clips = [clip_of(room), ClipSource("large", full), clip_of(room, name="again")]
    with pytest.raises(UserError, match="no space is left"):
        evaluate_clips(clips, evaluator(), skip_unusable=True)

    def fails(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fails)
    result = evaluate_clips(clips[:1], evaluator())
    with pytest.raises(UserError, match=r"cannot write .*report\.json: No space left on device; free some space"):
        write_json(result, tmp_path / "out" / "report.json")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_clip_run_on_backwards_is_the_whole_palindrome(room: Room) -> None:
    stream = averaging_stream()
    forward = np.stack([stream(to_tensor(frame))[0, 0].numpy() for frame in room.rgb])
    went_on = run_palindrome(stream, room.rgb, (48, 64), forward)
    assert went_on == run_palindrome(averaging_stream(), room.rgb, (48, 64))
    assert went_on.value > 0.0


def test_the_bar_says_clip_method_and_time_left(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    clips = [clip_of(room), ClipSource("broken", lambda: clip_of(room, frames=[])), clip_of(room, name="last")]
    bar = EvaluationBar(3, methods=2, extra=2)
    scorer = evaluator({"student": averaging_stream}, flow=DISFlow("ultrafast"), palindrome=True, cut_frames=4)
    evaluate_clips(bar.over(clips), scorer, progress=bar, skip_unusable=True)
    shown = [line for line in capsys.readouterr().err.replace("\n", "\r").split("\r") if "left" in line]
    assert any(line.startswith("clip 1/3 room:") and "method student" in line for line in shown)
    assert [line for line in shown if "clip 2/3 broken:" in line]
    done = [int(line.partition("%")[0].split()[-1]) for line in shown]
    assert done == sorted(done)
    assert done[-1] == 100
    assert any(line.startswith("clip 3/3 last:") and "00:0" in line.partition("|")[2] for line in shown)


def test_several_students_are_scored_and_counted_apart(room: Room) -> None:
    students = {"copy": lambda: brightness, "average": averaging_stream}
    clips = [clip_of(room), clip_of(room, name="again", frames=list(room.rgb))]
    slow = Method("slow", lambda: averaging_stream(0.2))
    result = evaluate_clips(clips, evaluator(students, filters=[*filter_methods(), slow], flow=DISFlow()))
    assert list(result["clips"][0]["methods"])[-3:] == ["slow", "copy", "average"]
    assert "copy" not in result["verdicts"]["average"]["baselines_not_beaten"]
    assert "slow" in result["verdicts"]["copy"]["baselines_not_beaten"]
    assert result["counts"]["copy"] == {
        "num_clips": 2,
        "steadier": 0,
        "steadier_guards_kept": 0,
        "better": 0,
        "per_metric": {"flk2": 0, "opw": 0, "rtc_1.02": 0, "static_std/flicker": 0},
        "failing": {"room": ["not steadier"], "again": ["not steadier"]},
    }
    # The stand-in has no flicker of its own: its average only ghosts.
    steadier = [
        clip["methods"]["average"]["flk2"].value < clip["methods"]["teacher"]["flk2"].value for clip in result["clips"]
    ]
    assert result["counts"]["average"]["steadier"] == sum(steadier)
    assert "copy is steadier than the teacher in the short term on 0 of 2 clips" in to_markdown(result)


def test_filters_get_the_flow_that_a_user_would_have(room: Room) -> None:
    seen: list[ClipMotion] = []

    def spy(depth: np.ndarray, motion: ClipMotion) -> np.ndarray:
        seen.append(motion)
        return depth

    for flow in (DISFlow(), None):
        evaluator(teacher=flickering(room), filters=[filter_method("spy", spy)], flow=flow).evaluate(clip_of(room))
    assert not np.array_equal(seen[0].flow_bwd[:], room.motion.flow_bwd)
    assert np.array_equal(seen[1].flow_bwd[:], room.motion.flow_bwd)


def test_a_baseline_that_breaks_a_guard_does_not_count_against_the_student() -> None:
    def method(tge: float, edges: float) -> dict[str, dict[str, float]]:
        values = {"tge": tge, "edge_ratio": edges, "lag": 0.0, "abs_rel/video": 0.1}
        return {metric: {"value": value} for metric, value in values.items()}

    mean = {
        "teacher": method(1.0, 1.0),
        "blur": method(0.1, 0.5),
        "ema": method(0.7, 0.95),
        "student": method(0.6, 0.97),
    }
    found = verdict(mean)
    assert found["better"]
    assert found["best_baseline"] == "ema"
    assert found["baselines_not_beaten"] == ["blur"]


@pytest.mark.parametrize(
    ("broken", "guard"),
    [
        ({}, ""),
        ({"edge_ratio": 0.85}, "edges_kept"),
        ({"lag": -0.6}, "lag_kept"),
        ({"abs_rel/video": 0.102}, "accuracy_kept"),
        ({"lag": math.nan}, "lag_kept"),
    ],
)
def test_a_steadier_student_must_keep_every_guard(broken: dict[str, float], guard: str) -> None:
    def method(**changed: float) -> dict[str, dict[str, float]]:
        values = {"tge": 1.0, "edge_ratio": 1.0, "lag": 0.0, "abs_rel/video": 0.1, **changed}
        return {metric: {"value": value} for metric, value in values.items()}

    found = verdict({"teacher": method(), "ema": method(tge=0.7), "student": method(tge=0.5, **broken)})
    assert found["better"] == (not guard)
    guards = {name: found[name] for name in ("edges_kept", "lag_kept", "accuracy_kept")}
    assert [name for name, kept in guards.items() if not kept] == ([guard] if guard else [])


def test_csv_holds_every_score(room: Room, tmp_path: Path) -> None:
    result = evaluate_clips([clip_of(room, name='a, "room"')], evaluator({"student": averaging_stream}))
    with write_csv(result, tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = result["clips"][0]["methods"]
    assert len(rows) == sum(map(len, scores.values()))
    for row in rows:
        score = scores[row["method"]][row["metric"]]
        assert row["clip"] == 'a, "room"'
        assert row["value"] == ("" if math.isnan(score.value) else repr(float(score.value)))
        assert (float(row["coverage"]), row["reason"]) == (score.coverage, score.reason)


def test_markdown_shows_guards_beside_stability(room: Room) -> None:
    result = evaluate_clips([clip_of(room)], evaluator({"student": averaging_stream}))
    head = next(line for line in to_markdown(result).splitlines() if line.startswith("| method |"))
    for column in ("AbsRel video", "TGE", "Flk2", "edges", "lag"):
        assert column in head


def test_metric_depth_is_scored_in_meters(room: Room) -> None:
    result = evaluator(teacher=room.depth_m * 1.1, depth_kind=DepthKind.METRIC).evaluate(clip_of(room))
    scores = result["methods"]["teacher"]
    assert scores["abs_rel/metric"].value == pytest.approx(0.1, abs=1e-3)
    assert "abs_rel/video" not in scores
    assert scores["tae_z"].value < 2.0
    assert result["alignment"] == "none (metric depth)"


def test_a_method_that_is_not_finite_scores_nothing(room: Room) -> None:
    broken = flickering(room)
    broken[3, 5, 5] = np.nan
    result = evaluator({"student": broken}, teacher=flickering(room)).evaluate(clip_of(room))
    assert result["flags"]["student"] == ["not finite"]
    assert "tge" not in result["methods"]["student"]
    assert "1 frames are not finite" in result["methods"]["student"]["finite"].reason


def test_settle_after_cut_of_an_average(room: Room) -> None:
    dark = [np.zeros_like(frame) for frame in room.rgb[:5]]
    slow = settle_after_cut(lambda: averaging_stream(0.3), dark, list(room.rgb))
    fast = settle_after_cut(lambda: averaging_stream(0.9), dark, list(room.rgb))
    assert 1 <= fast.value < slow.value or (fast.value >= 1 and math.isnan(slow.value))
    assert settle_after_cut(lambda: brightness, dark, list(room.rgb)).value == 0.0


def test_wrong_clips_are_refused(room: Room) -> None:
    with pytest.raises(ValueError, match="methods must begin with 'teacher' or another reference"):
        Evaluator([Method("student", averaging_stream, trained=True)], DepthKind.RELATIVE)
    with pytest.raises(UserError, match="has 1 frames"):
        evaluator().evaluate(clip_of(room, frames=room.rgb[:1]))
    with pytest.raises(UserError, match="gt_depth_m has 3 frames for 12 images"):
        evaluator().evaluate(clip_of(room, gt_depth_m=room.depth_m[:3]))
    with pytest.raises(UserError, match="no clip was given"):
        evaluate_clips([], evaluator())


@pytest.mark.parametrize("name", sorted(all_filters()))
def test_filters_are_causal_and_leave_their_input_alone(name: str, room: Room) -> None:
    depth = flickering(room)
    original = depth.copy()
    smooth = all_filters()[name]
    out = np.stack(list(smooth(depth, room.motion)))
    changed = depth.copy()
    changed[7:] += 1.0
    assert np.array_equal(list(smooth(changed, room.motion))[:7], out[:7])
    assert np.array_equal(depth, original)
    assert out.shape == depth.shape
    assert np.allclose(out[0], depth[0]) or name == "constant"


def test_causal_affine_removes_global_flicker_alone() -> None:
    base = np.random.default_rng(0).uniform(1, 2, (10, 10))
    factors = np.array([1.0, 1.1, 0.9, 1.05])
    flicker = base[None] * factors[:, None, None]
    np.testing.assert_allclose(list(causal_affine(flicker, leak=1.0)), np.repeat(base[None], 4, 0), rtol=1e-9)
    # With a leak a part of the flicker stays, on purpose.
    assert 0 < np.abs(list(causal_affine(flicker, leak=0.9))[1] - base).max() < 0.1 * 0.11 * 2


def test_warped_average_follows_motion_and_restarts_where_it_cannot() -> None:
    ramp = np.arange(8.0)[None].repeat(4, 0)
    depth = np.stack([ramp, ramp - 1.0]).astype(np.float32)  # content moves 1 px right
    flow = np.zeros((2, 2, 4, 8), np.float32)
    flow[1, 0] = -1.0
    trusted = np.zeros((2, 4, 8), bool)
    trusted[1, :, 1:] = True
    motion = ClipMotion(flow, -flow, trusted, trusted[::-1].copy())
    out = list(flow_warped_average(depth, motion, 0.5))
    np.testing.assert_allclose(out[1], depth[1], atol=1e-5)
    still = ClipMotion(0 * flow, 0 * flow, trusted, trusted[::-1].copy())
    static = list(flow_warped_average(depth, still, 0.5))
    np.testing.assert_allclose(static[1][:, 1:], depth[1, :, 1:] + 0.5, atol=1e-5)
    np.testing.assert_allclose(static[1][:, 0], depth[1, :, 0], atol=1e-5)


def test_shrunk_ground_truth_keeps_its_geometry() -> None:
    large = render_room(4, 96, 128, speed_m=0.03)
    clip = shrink_clip(clip_of(large), 64)
    assert clip.gt_depth_m.shape == (4, 48, 64)
    small = render_room(4, 48, 64, speed_m=0.03)
    # The same camera at half the size: intrinsics to rounding, flow to a nearest sample.
    np.testing.assert_allclose(clip.intrinsics, small.intrinsics, atol=1e-9)
    assert np.median(np.abs(clip.motion.flow_bwd[1:] - small.motion.flow_bwd[1:])) < 0.01
    assert shrink_clip(clip, 64) is clip
    result = evaluator(teacher=1.0 / large.depth_m, max_gt_side=64).evaluate(clip_of(large))
    assert result["size"] == [48, 64]
    # Half a pixel between a mean of four and a nearest sample: measured 0.013.
    assert result["methods"]["teacher"]["abs_rel/video"].value < 0.02


def test_clip_from_a_rendered_video(room: Room) -> None:
    frames = [
        SimpleNamespace(
            rgb=room.rgb[t],
            depth_m=room.depth_m[t],
            flow_fwd=np.moveaxis(room.motion.flow_fwd[t], 0, -1),
            flow_bwd=np.moveaxis(room.motion.flow_bwd[t], 0, -1),
            visible_fwd=room.motion.trusted_fwd[t],
            visible_bwd=room.motion.trusted_bwd[t],
            intrinsics=room.intrinsics,
            camera_to_world=room.camera_to_world[t],
            timestamp_s=t / 25.0,
        )
        for t in range(NUM_FRAMES)
    ]
    clip = clip_from_synthetic("rendered", frames)
    assert clip.fps == pytest.approx(25.0)
    np.testing.assert_array_equal(clip.motion.flow_bwd[:], room.motion.flow_bwd)
    np.testing.assert_array_equal(clip.camera_to_world, room.camera_to_world)
    result = evaluator(teacher=1.0 / room.depth_m).evaluate(clip)
    assert result["methods"]["teacher"]["tge"].value < 1e-5


def test_what_is_kept_is_neither_opened_nor_run_again(room: Room, tmp_path: Path) -> None:
    opened, made = [], []

    def load() -> EvaluationClip:
        opened.append(1)
        return clip_of(room)

    def stream() -> Callable[[Tensor], Tensor]:
        made.append(1)
        return averaging_stream()

    def scorer(*students: str, digest: str = "x") -> Evaluator:
        methods = [Method("teacher", lambda: brightness, digest="t"), *filter_methods()]
        methods += [Method(name, stream, digest=name + digest, trained=True) for name in students]
        return Evaluator(methods, DepthKind.RELATIVE, cache=tmp_path, shown=["teacher", "mine"], video_frames=0)

    source = ClipSource("a room", load, digest=lambda: "content", keep_depth=True)
    first = scorer("mine").evaluate(source, draw=True)
    assert (len(opened), len(made)) == (1, 1)
    again = scorer("mine").evaluate(source, draw=True)
    assert (len(opened), len(made)) == (1, 1)
    assert str(again) == str(first)
    assert again["pictures"] == first["pictures"]

    second = scorer("mine", "other").evaluate(source)  # another student costs its own pass alone
    assert (len(opened), len(made)) == (2, 2)
    assert str(second["methods"]["mine"]) == str(first["methods"]["mine"])
    scorer("mine", digest="y").evaluate(source)  # other weights
    assert len(made) == 3
    scorer("mine").evaluate(ClipSource("a room", load, digest=lambda: "other content"))
    assert len(made) == 4

    for path in tmp_path.rglob("mine-*.json"):
        path.write_text(path.read_text().replace('"value"', '"velue"', 1))  # damaged
    mended = scorer("mine").evaluate(source)
    assert str(mended["methods"]) == str(first["methods"])
    assert len(made) == 5
