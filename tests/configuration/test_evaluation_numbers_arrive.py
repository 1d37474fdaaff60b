"""Every value of `configs/evaluate.yaml` arrives, under its own name, in the part that it is meant for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media import write_images, write_video
from tiny import tiny_teacher

from videomamba_depth.configuration import build_evaluate
from videomamba_depth.configuration.build_evaluate import Evaluation, build_evaluation
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.evaluate_schema import EvaluateConfig
from videomamba_depth.data.synthetic import CameraMotion
from videomamba_depth.evaluation.datasets import rgbd
from videomamba_depth.evaluation.datasets.recording import FramePick, Recording
from videomamba_depth.evaluation.datasets.world_kinds import KINDS
from videomamba_depth.evaluation.datasets.worlds import WorldSpec
from videomamba_depth.utils.errors import UserError


def evaluation(teacher: str, *overrides: str) -> Evaluation:
    given = [f"teacher.name={teacher}", "checkpoint=[]", "device=cpu", "cache=null", *overrides]
    return build_evaluation(load_config("evaluate", EvaluateConfig, given))


def test_protocol_and_page(tiny_teacher_folder: str, tmp_path: Path) -> None:
    protocol = {
        "max_side": 200, "max_gt_side": 150, "max_frames": 7, "palindrome": False, "cut_frames": 5,
        "alignment": "first_frame",
    }  # fmt: skip
    made = evaluation(
        tiny_teacher_folder, *(f"{key}={value}" for key, value in protocol.items()), f"cache={tmp_path}",
        "html.methods=[ema_0.25]", "html.video_frames=9", "html.clips=1", "synthetic.videos=2", "flow.name=dis_fast",
    )  # fmt: skip
    evaluator = made.evaluator
    assert {key: getattr(evaluator.protocol, key) for key in protocol} == protocol
    assert (evaluator.cache, list(evaluator.shown), evaluator.video_frames) == (tmp_path, ["ema_0.25"], 9)
    assert evaluator.flow_name == "dis_fast"
    assert sorted(made.drawn) == [made.sources[0].name]
    assert evaluation(tiny_teacher_folder, "html.enabled=false").drawn == frozenset()


def test_every_student_comes_with_geometry_and_affine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_evaluate, "build_teacher", lambda *_: pytest.fail("students bring their teacher"))
    given = ["checkpoint=[one:embedded,two:embedded]", "device=cpu", "cache=null"]
    for overrides, added in (([], []), (["geometry=true", "affine=true"],
                              ["one+geometry", "two+geometry", "one+affine", "two+affine"])):  # fmt: skip
        methods = build_evaluation(load_config("evaluate", EvaluateConfig, [*given, *overrides])).evaluator.methods
        trained = [method for method in methods if method.trained]
        assert [method.name for method in trained] == ["one", "two", *added]
        assert len({method.digest for method in trained}) == 1 + len(added) // 2


def test_a_teacher_that_jitters(tiny_teacher_folder: str) -> None:
    values = {"scale": 0.02, "shift": 0.03, "drift": 0.04}
    given = [f"jitter.{key}={value}" for key, value in values.items()]
    steady, jittering = (evaluation(tiny_teacher_folder, *keys) for keys in ([], given))
    assert jittering.metadata["jitter"] == values
    assert steady.metadata["jitter"] is None
    for before, now in zip(steady.evaluator.methods, jittering.evaluator.methods, strict=True):
        assert (before.digest == now.digest) == (now.derive is not None), now.name
    alone = load_config("evaluate", EvaluateConfig, ["prediction=/no/such", "cache=null", *given])
    with pytest.raises(UserError):
        build_evaluation(alone)


def test_every_student_comes_untrained_too() -> None:
    given = ["checkpoint=one:embedded", "geometry=true", "untrained=true", "memory=[1,2]", "device=cpu", "cache=null"]
    made, again = (
        build_evaluation(load_config("evaluate", EvaluateConfig, [*given, f"synthetic.seed={n}"])) for n in (1, 2)
    )
    methods = [method for method in made.evaluator.methods if method.name.startswith("one")]
    names = [f"{name}{memory}" for name in ("one", "one+geometry") for memory in ("", "@2")]
    untrained = [name.replace("@2", "") + "+untrained" + "@2" * name.endswith("@2") for name in names]
    assert [(m.name, m.trained) for m in methods] == [*((n, True) for n in names), *((n, False) for n in untrained)]
    assert len({method.digest for method in methods}) == 8
    assert [m.digest for m in again.evaluator.methods] == [m.digest for m in made.evaluator.methods]
    frame = torch.rand(1, 3, 56, 70, generator=torch.Generator().manual_seed(0))
    depth = {method.name: method.open()(frame) for method in methods if "@" not in method.name}
    assert torch.equal(depth["one"], depth["one+untrained"])  # a single frame has the teacher's depth
    with_past = {m.name: [s(frame), s(1 - frame)][1] for m in methods if "@" not in m.name for s in [m.open()]}
    assert not torch.equal(with_past["one"], with_past["one+untrained"])


def test_the_worlds_of_failure_are_run_without_baselines() -> None:
    given = ["preset=failures", "device=cpu", "cache=null", "html.enabled=true"]
    made = build_evaluation(load_config("evaluate", EvaluateConfig, given))
    assert [method.name for method in made.evaluator.methods] == ["teacher", "student", "student+geometry"]
    assert list(made.evaluator.shown) == ["teacher", "student", "student+geometry"]
    assert {source.group for source in made.sources} == {*KINDS} - {"moving", "fast", "long"}
    assert len(made.sources) == 80


def test_every_student_comes_with_every_memory(tmp_path: Path) -> None:
    given = ["checkpoint=[one:embedded,two:embedded]", "memory=[1,0.5,4]", "device=cpu", "cache=null"]
    evaluator = build_evaluation(load_config("evaluate", EvaluateConfig, given)).evaluator
    names = [method.name for method in evaluator.methods]
    students = [f"{name}{memory}" for name in ("one", "two") for memory in ("", "@0.5", "@4")]
    assert names[0] == "teacher"
    assert [m.name for m in evaluator.methods if m.trained] == names[-6:] == students
    assert set(students) <= set(evaluator.shown)
    digests = [method.digest for method in evaluator.methods]
    assert len(set(digests)) == len(digests) - 3  # the same student under two names, at three memories
    frames = torch.rand(3, 1, 3, 56, 70, generator=torch.Generator().manual_seed(0))
    last = {}
    for method in evaluator.methods[-3:]:
        stream = method.open()
        last[method.name] = [stream(frame) for frame in frames][-1]
    assert not torch.equal(last["two"], last["two@0.5"])
    assert not torch.equal(last["two"], last["two@4"])


def test_every_student_comes_with_every_share_of_encoded_frames() -> None:
    given = ["checkpoint=embedded", "encode_every=[1,3]", "memory=[1,2]", "device=cpu", "cache=null"]
    methods = build_evaluation(load_config("evaluate", EvaluateConfig, given)).evaluator.methods[-4:]
    assert [m.name for m in methods] == ["student", "student+every3", "student@2", "student+every3@2"]
    assert len({m.digest for m in methods}) == 4
    frames = torch.rand(1, 3, 14, 18, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(frames, (112, 140), mode="bilinear")
    stream, skipping = (method.open() for method in methods[:2])
    assert torch.equal(stream(picture), skipping(picture))
    assert not torch.equal(stream(picture.roll(1, 3)), skipping(picture.roll(1, 3)))


def test_targets_and_the_teacher_s_size(tiny_teacher_folder: str) -> None:
    made = evaluation(tiny_teacher_folder, "targets=true", "input_size=56", "precision=float32")
    assert len(made.evaluator.methods) > len(evaluation(tiny_teacher_folder).evaluator.methods)
    teacher = made.evaluator.methods[0].open()
    model = build_evaluate.build_teacher(
        load_config("evaluate", EvaluateConfig, [f"teacher.name={tiny_teacher_folder}", "checkpoint=[]"]).teacher,
        torch.device("cpu"),
        56,
    )
    frame = torch.rand(1, 3, 112, 140, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(teacher(frame), model.predict_depth(frame))


def test_worlds(tiny_teacher_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = evaluation(
        tiny_teacher_folder, "synthetic.world=street", "synthetic.seed=500", "synthetic.kinds=[moving,fast,long]",
        "synthetic.videos=2", "synthetic.frames=5", "synthetic.long_videos=1", "synthetic.long_frames=12",
        "synthetic.height=28", "synthetic.width=42", "synthetic.max_depth_m=17",
    )  # fmt: skip
    arguments = [source.load.args for source in made.sources]  # type: ignore[attr-defined]
    specs: list[WorldSpec] = [found[1] for found in arguments]
    assert [(s.kind, s.seed - KINDS[s.kind].seed, s.frames) for s in specs] == [
        ("moving", 500, 5), ("moving", 501, 5), ("fast", 500, 5), ("fast", 501, 5), ("long", 500, 12),
    ]  # fmt: skip
    assert {(s.family, s.height, s.width) for s in specs} == {("street", 28, 42)}
    assert [source.group for source in made.sources] == [s.kind for s in specs]
    assert {found[-1] for found in arguments} == {17.0}
    assert len({source.digest() for source in made.sources}) == 5  # type: ignore[misc]
    motions: Any = CameraMotion.__args__  # type: ignore[attr-defined]
    assert {s.config().camera_motion for s in specs} <= set(motions)
    nearer = evaluation(tiny_teacher_folder, "synthetic.world=street", "synthetic.seed=500", "synthetic.frames=5",
                        "synthetic.height=28", "synthetic.width=42", "synthetic.max_depth_m=16")  # fmt: skip
    assert nearer.sources[0].name == made.sources[0].name
    assert nearer.sources[0].digest() != made.sources[0].digest()  # type: ignore[misc]
    clip = made.sources[0].load()
    assert (clip.max_depth_m, np.asarray(clip.frames[0]).shape) == (17.0, (28, 42, 3))  # type: ignore[index]


def test_videos_and_pictures_with_depth(
    tiny_teacher_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", 4)
    write_images(tmp_path / "videos" / "b", 3)
    made = evaluation(tiny_teacher_folder, f"input={tmp_path / 'videos'}")
    assert [source.name for source in made.sources] == ["a.mp4", "b"]
    assert len({source.digest() for source in made.sources}) == 2  # type: ignore[misc]
    read: list[dict[str, Any]] = []
    monkeypatch.setattr(build_evaluate, "find_sequences", lambda path: [Path(path)])
    recording = Recording(folder=tmp_path, frames=[])
    monkeypatch.setattr(build_evaluate, "folder_recording", lambda path: recording)

    def keep(name: str, recording: Recording, *options: Any, refuse_far: bool) -> None:
        read.append({**vars(recording), "options": options, "refuse_far": refuse_far})

    monkeypatch.setattr(rgbd, "read_recording", keep)
    values = {"depth_scale": 500.0, "max_depth_m": 7.0}
    paths = ("rgbd.invalid=9", "rgbd.poses=p.txt", "max_frames=6", "rgbd.start=2", "rgbd.stride=3")
    pick, region = FramePick(2, 3, 6), (0.1, 0.9, 0.2, 1.0)
    for given, crop, camera in (
        ("rgbd.crop_px=3", (3,) * 4, "k.txt"),
        ("rgbd.crop=[1,2,3,4]", (1, 2, 3, 4), [1.0, 2, 3, 4]),
    ):
        made = evaluation(
            tiny_teacher_folder, f"input={tmp_path / 'videos'}", given, *paths, f"rgbd.intrinsics={camera}",
            f"rgbd.region={list(region)}", *(f"rgbd.{key}={value}" for key, value in values.items()),
        )  # fmt: skip
        made.sources[0].load()
        wanted = {**values, "invalid_value": 9.0, "crop": crop, "options": (camera, "p.txt", pick), "refuse_far": True}
        wanted["region"] = region
        assert {key: read[-1][key] for key in wanted} == wanted


def test_students_of_different_teachers_are_refused(tiny_teacher_folder: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_teacher(seed=1).save_pretrained(other)
    same = {"one": f"teacher:{tiny_teacher_folder}", "two": f"teacher:{tiny_teacher_folder}"}
    teacher, students = build_evaluate.load_students(same, None)
    assert list(students) == ["one", "two"]
    assert teacher.weights_sha256() == students["two"].encoder.weights_sha256()
    with pytest.raises(UserError, match="different teachers"):
        build_evaluate.load_students({**same, "two": f"teacher:{other}"}, None)


def test_a_page_of_methods_that_do_not_exist_is_refused(tiny_teacher_folder: str) -> None:
    with pytest.raises(UserError, match=r"html\.methods: there is no method 'nonsense'; choose from teacher, .*ema_0"):
        evaluation(tiny_teacher_folder, "html.methods=[teacher,nonsense]")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (["checkpoint=embedded", "memory=[1,1]"], "student"),
        (["checkpoint=embedded", "memory=[1.2345671,1.2345672]"], "student@1.23457"),
        (["checkpoint=embedded", "encode_every=[2,2]"], r"student\+every2"),
        (["checkpoint=[teacher:embedded]"], "teacher"),
        (["checkpoint=[ema_0.5:embedded]"], "ema_0.5"),
    ],
)
def test_methods_of_one_name_are_refused(given: list[str], name: str) -> None:
    config = load_config("evaluate", EvaluateConfig, [*given, "device=cpu", "cache=null"])
    message = f"checkpoint, memory, encode_every, prediction: two methods are called '{name}'; write NAME:FOLDER"
    with pytest.raises(UserError, match=f"{message} .* every k once"):
        build_evaluation(config)
