"""Published protocols: their frame lists, what they change of a layout, how they align, and single pictures."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_layouts import save, units, write_kitti, write_tum, write_vda
from tiny_room import Room, render_room
from torch import Tensor

from videomamba_depth.commands.evaluate import outcomes
from videomamba_depth.configuration.build_evaluate import build_evaluation, build_sources
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.evaluate_schema import EvaluateConfig
from videomamba_depth.evaluation import ClipSource, EvaluationClip, Evaluator, Method, Protocol, filter_methods
from videomamba_depth.evaluation.datasets.layout_tree import Found
from videomamba_depth.evaluation.datasets.layouts import LAYOUTS
from videomamba_depth.evaluation.datasets.recording import Recording, RgbdFrame
from videomamba_depth.evaluation.engine import collect, evaluate_clips
from videomamba_depth.evaluation.protocols import (
    EIGEN_PICTURES,
    KITTI_DRIVES,
    PROTOCOLS,
    SCANNET_SCENES,
    Chosen,
    choose,
)
from videomamba_depth.evaluation.report import to_markdown
from videomamba_depth.flow.estimators import build_flow
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError


@pytest.fixture(scope="module")
def room() -> Room:
    return render_room(6, 48, 64, speed_m=0.05)


def sequence(name: str, layout: str, frames: int, first: int = 0, listed_in: str = "") -> Found:
    """Return a sequence of frames that are called by their numbers."""
    names = [RgbdFrame(None, None, f"{first + i:010d}", i) for i in range(frames)]
    return Found(name, lambda: Recording(folder=Path(), frames=names), listed_in, layout)


def frames_of(chosen: Chosen, count: int | None = None) -> list[int]:
    recording = chosen.found.open()
    places = chosen.frames.pick(chosen.found.name, count).places(recording.frames)
    return [int(recording.frames[i].name) for i in places]


def load(path: Path, *overrides: str) -> list[ClipSource]:
    return load_all(f"input={path}", *overrides)


def load_all(*overrides: str) -> list[ClipSource]:
    return build_sources(load_config("evaluate", EvaluateConfig, ["checkpoint=[]", *overrides]), build_flow("dis"))


def test_the_lists_of_scannet() -> None:
    found = [sequence(name, "scannet", 600) for name in SCANNET_SCENES]
    chosen = choose("vda", [*found, sequence("scene0000_00", "scannet", 600)])
    groups: dict[str, list[Chosen]] = {}
    for one in chosen:
        groups.setdefault(one.group, []).append(one)
    assert {name: len(members) for name, members in groups.items()} == {
        "vda scannet 500": 100, "vda scannet 90": 100, "vda scannet tae": 20,
    }  # fmt: skip
    assert frames_of(groups["vda scannet 500"][0]) == list(range(500))
    assert frames_of(groups["vda scannet 90"][0]) == list(range(0, 270, 3))
    assert frames_of(groups["vda scannet tae"][0]) == list(range(10, 180))
    assert groups["vda scannet tae"][-1].name == "scene0726_00@tae"
    read = chosen[0].rules.applied(found[0].open())
    assert (read.crop, read.max_depth_m) == ((8, 8, 11, 11), 10.0)
    assert len({one.name for one in chosen}) == len(chosen)


def test_the_lists_of_kitti_bonn_and_nyu() -> None:
    kitti = choose(
        "vda", [sequence(name, "kitti", 700, 5) for name in [*KITTI_DRIVES, "2011_09_26_drive_0001/image_02"]]
    )
    assert [len(frames_of(one)) for one in kitti] == [500] * 13 + [110] * 13
    assert frames_of(kitti[-1])[::109] == [5, 114]
    bonn = choose("vda", [sequence("data/rgbd_bonn_crowd2", "bonn", 300), sequence("rgbd_bonn_box", "bonn", 300)])
    assert [(one.name, frames_of(one)[0], frames_of(one)[-1]) for one in bonn] == [
        ("data/rgbd_bonn_crowd2@500", 0, 299), ("data/rgbd_bonn_crowd2@110", 30, 139),
    ]  # fmt: skip
    (nyu,) = choose("vda", [sequence("kitchen_0003", "nyu", 20), sequence("bathroom", "nyu", 20)])
    assert nyu.rules.crop == (45, 9, 41, 39)


def test_the_lists_of_an_extraction_are_taken_as_they_are_but_for_tae() -> None:
    found = [sequence(f"scannet_video_tae/s{i}", "vda", 192, 0, "scannet_video_tae") for i in range(30)]
    found += [sequence("kitti_video/d", "vda", 110, 0, "kitti_video")]
    chosen = choose("vda", found)
    assert [one.group for one in chosen] == ["vda kitti_video"] + ["vda scannet_video_tae"] * 20
    assert [frames_of(one) for one in chosen[:2]] == [list(range(110)), list(range(10, 180))]


def test_eigen_s_pictures() -> None:
    """697 pictures of 28 drives, 25 of each but for one of 22: as monodepth2's splits/eigen/test_files.txt has them."""
    assert len(EIGEN_PICTURES) == 28
    assert sorted(map(len, EIGEN_PICTURES.values())) == [22] + [25] * 27
    drive = "2011_09_29_drive_0071_sync/image_02"
    assert sorted(EIGEN_PICTURES[drive])[-8:] == [612, 735, 771, 807, 879, 915, 951, 1054]
    (one,) = choose("kitti_eigen", [sequence(drive, "kitti", 80, 5), sequence("x/image_03", "kitti", 9)])
    assert frames_of(one) == [36, 72]
    with pytest.raises(UserError, match="9 frames with depth, of which 0 are listed"):
        frames_of(choose("kitti_eigen", [sequence("x/image_03", "kitti", 9)], scenes=["x/*"])[0])


def test_what_is_given_by_hand_takes_precedence(caplog: pytest.LogCaptureFixture) -> None:
    found = [sequence("a/scene0707_00", "scannet", 600), sequence("a/other", "scannet", 600)]
    assert [one.name for one in choose("vda", found, ["oth*"], ["90"])] == ["a/other@90"]
    assert [one.name for one in choose(None, found, ["other"])] == ["a/other"]
    (one,) = choose("vda", found, lists=["90"])
    assert frames_of(one, 5) == [0, 3, 6, 9, 12]
    assert "99 of 100 sequences are not there, so that means are not those of the whole protocol: scene0708_00, " in (
        caplog.text
    )
    for wrong, message in (
        ({"lists": ["91"]}, "choose from 500, 90, tae"),
        ({"scenes": ["b*"]}, r"none of 2 sequences is among \['b\*'\]; they are called a/scene0707_00, a/other"),
        ({"protocol": "nyu"}, "no frame list for rgbd.layout=scannet; it has some for nyu: leave"),
        ({"protocol": None, "lists": ["90"]}, "set protocol=NAME too"),
    ):
        with pytest.raises(UserError, match=message):
            choose(**{"protocol": "vda", "found": found, **wrong})  # type: ignore[arg-type]


def test_every_protocol_names_layouts_that_there_are() -> None:
    for protocol in PROTOCOLS.values():
        assert set(protocol.layouts) <= set(LAYOUTS)


def test_by_the_command_line(tmp_path: Path, room: Room, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    root = write_tum(tmp_path, room)
    (source,) = load(root, "protocol=streaming", "rgbd.start=1", "rgbd.stride=2")
    assert (source.group, source.protocol, source.stills) == ("streaming tum all", "streaming", False)
    clip = source.load()
    names = sorted(path.stem for path in (root / "rgb").iterdir())
    assert clip.frame_ids == tuple(names[1::2])
    assert clip.fps == 15
    np.testing.assert_allclose(clip.camera_to_world, room.camera_to_world[1::2], atol=1e-6)  # type: ignore[arg-type]
    np.testing.assert_allclose(clip.gt_depth_m[:], room.depth_m[1::2], atol=1e-4)  # type: ignore[index]
    assert (
        "protocol=streaming on TUM RGB-D: all: frames from 0, sequences: 1; scale and shift of the first" in caplog.text
    )
    (source,) = load(root, "rgbd.scenes=[rgbd_*]", "max_frames=2", "rgbd.start=3")
    assert source.load().frame_ids == tuple(names[3:5])
    with pytest.raises(UserError, match=r"6 frames with depth; rgbd.start=6 leaves none"):
        load(root, "rgbd.start=6")[0].load()
    with pytest.raises(UserError, match=r"protocol=vda has no frame list for rgbd.layout=tum"):
        load(root, "protocol=vda")
    with pytest.raises(UserError, match="protocol=vda is of a data set"):
        load(Path("synthetic"), "protocol=vda")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="needs a data set with depth"):
        load(tmp_path / "empty", "protocol=vda")
    write_vda(tmp_path / "json", room)
    (source,) = load(tmp_path / "json", "protocol=vda")
    assert (source.name, source.group) == ("scene0707_00", "vda scannet_video")


def test_several_inputs_are_groups_with_names_that_differ(tmp_path: Path, room: Room) -> None:
    write_tum(tmp_path / "a", room)
    write_tum(tmp_path / "b", room)
    write_vda(tmp_path / "c", room)
    sources = load_all(f"input=[{tmp_path / 'a'},{tmp_path / 'b'},{tmp_path / 'c'}]")
    name = "rgbd_dataset_freiburg2_desk"
    assert [(one.group, one.name) for one in sources] == [
        ("a", f"a: {name}"), ("b", f"b: {name}"), ("c", "scene0707_00"),
    ]  # fmt: skip
    sources = load_all(f"input=[{tmp_path / 'c'},{tmp_path / 'a'}]", "protocol=streaming")
    assert [one.group for one in sources] == ["streaming scannet_video", "streaming tum all"]
    with pytest.raises(UserError, match=r"input=\[\] names nothing"):
        load_all("input=[]")


def test_pictures_of_kitti_by_the_command_line(tmp_path: Path, tiny_teacher_folder: str) -> None:
    """Two drives; of one, a single picture is in Eigen's list. The mean runs over pictures."""
    whole = render_room(8, 48, 64, speed_m=0.3)
    write_kitti(tmp_path, whole)  # frames 5 to 12 of drive 2, of which 6, 9 and 12 are listed
    drive, number = "2011_09_26_drive_0048_sync", 7
    save(tmp_path / f"raw/2011_09_26/{drive}/image_02/data/{number:010d}.png", whole.rgb[0])
    depth = tmp_path / f"data_depth_annotated/val/{drive}/proj_depth/groundtruth/image_02/{number:010d}.png"
    save(depth, units(whole.depth_m[0], 256))
    given = [f"teacher.name={tiny_teacher_folder}", "checkpoint=[]", "device=cpu", "cache=null", "protocol=kitti_eigen"]
    config = load_config("evaluate", EvaluateConfig, [*given, f"input={tmp_path}", "html.enabled=false"])
    made = build_evaluation(config)
    result = collect(outcomes(made, config), made.evaluator, metadata=made.metadata, skip_unusable=False)
    first, second = result["clips"]
    assert first["frame_ids"] == [f"{i:010d}" for i in (6, 9, 12)]
    assert (second["num_frames"], second["protocol"]) == (1, "kitti_eigen")
    assert first["alignment"] == "one affine per picture to ground truth"
    assert set(first["methods"]) == {"teacher", "constant"}
    assert set(first["methods"]["teacher"]) == {f"{m}/per_frame" for m in ("abs_rel", "delta1", "rmse", "rmse_log")}
    values = [clip["methods"]["teacher"]["abs_rel/per_frame"].value for clip in (first, second)]
    mean = result["mean"]["teacher"]["abs_rel/per_frame"]["value"]
    assert mean == pytest.approx((3 * values[0] + values[1]) / 4, abs=1e-12)
    valid = made.sources[0].load().valid[0]  # type: ignore[index]
    rows, columns = (
        slice(int(0.40810811 * 48), int(0.99189189 * 48)),
        slice(int(0.03594771 * 64), int(0.96405229 * 64)),
    )
    assert valid[rows, columns].all()
    assert valid.sum() == valid[rows, columns].sum()
    table = to_markdown(result, per_clip=False)
    assert "δ1 per frame ×100 ↑" in table
    assert "Kitti_eigen kitti all: 2 clips" in table
    assert first["frames_digest"] != second["frames_digest"]


def _growing(depth: np.ndarray) -> np.ndarray:
    return 1 / depth * (1 + 0.05 * np.arange(len(depth)))[:, None, None]


def clip_of(room: Room, name: str, frames: int | None = None) -> EvaluationClip:
    return EvaluationClip(name, room.rgb[:frames], gt_depth_m=room.depth_m[:frames], intrinsics=room.intrinsics,
                          camera_to_world=room.camera_to_world[:frames])  # fmt: skip


def test_stability_is_aligned_as_the_protocol_says(room: Room) -> None:
    scores: dict[str, Any] = {}
    for alignment in ("video", "first_frame"):
        teacher = Method.recorded("teacher", _growing(room.depth_m))
        evaluator = Evaluator(
            [teacher], DepthKind.RELATIVE, build_flow("dis_fast"), protocol=Protocol(alignment=alignment)
        )
        clip = evaluator.evaluate(clip_of(room, "room"))
        scores[clip["alignment"]] = {name: score.value for name, score in clip["methods"]["teacher"].items()}
    video, first = (
        scores["one affine per clip to ground truth"],
        scores["the affine of frame 0 for the clip to ground truth"],
    )
    assert video["abs_rel/first_frame"] == first["abs_rel/first_frame"] > video["abs_rel/video"]
    assert first["tge"] > 1.05 * video["tge"]  # the last frames are 25 % too near
    assert first["tae"] != video["tae"]


def test_single_pictures_have_no_past(room: Room) -> None:
    def memory() -> Any:
        state: list[Tensor] = []

        def step(frame: Tensor) -> Tensor:
            state.append(frame.mean(1, keepdim=True))
            return torch.stack(state).mean(0)

        return step

    teacher = Method("teacher", lambda: lambda frame: frame.mean(1, keepdim=True))
    student = Method("student", memory, trained=True, remembers=True)
    other = Method.recorded("other", 1 / room.depth_m)
    evaluator = Evaluator(
        [teacher, *filter_methods(), student, other],
        DepthKind.RELATIVE,
        protocol=Protocol(palindrome=True, cut_frames=2),
    )
    sources = [
        ClipSource(f"{n}", partial(clip_of, room, f"{n}", n), "nyu test", stills=True, protocol="nyu") for n in (6, 1)
    ]
    result = evaluate_clips(sources, evaluator)
    assert list(result["mean"]) == ["teacher", "constant", "student", "other"]
    mean = {name: {metric: v["value"] for metric, v in metrics.items()} for name, metrics in result["mean"].items()}
    assert mean["student"] == mean["teacher"]
    assert mean["other"]["abs_rel/per_frame"] < 1e-5
    assert mean["other"]["delta1/per_frame"] == 1
    page = to_markdown(result)
    assert "6: 6 pictures, 48×64 px" in page
    assert not any(word in page for word in ("Verdict", "dominate each", "flow trusted"))
