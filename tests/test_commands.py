"""The commands, run as a user runs them: the whole path on real files, and every mistake that a person can make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from commands import run_command
from media import write_empty, write_headless, write_text, write_truncated, write_video

SMOKE = (
    "debug=smoke",
    "data.short_side=28",
    "data.crop=[28,42]",
    "data.num_workers=0",
    "trainer.logger=none",
    "trainer.device=cpu",
    "trainer.threads=1",
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two good videos, one of variable frame rate and odd size, and one of each kind of broken file."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "good.mp4", num_frames=14)
    (folder / "deeper").mkdir()
    uneven = [0, 1, 3, 4, 5, 9, 10, 11, 14, 15, 16, 20]
    write_video(folder / "deeper" / "odd.mkv", width=61, height=47, pix_fmt="yuv444p", pts=uneven)
    write_truncated(folder / "truncated.mp4")
    write_headless(folder / "headless.mp4")
    write_empty(folder / "empty.mp4")
    write_text(folder / "text.mp4")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_folder: str, videos: Path) -> Path:
    """A student trained for four steps on the folder of videos, from a teacher cache."""
    work = tmp_path_factory.mktemp("work")
    teacher = f"teacher.name={tiny_teacher_folder}"
    cache = run_command(
        work, "scripts/precompute_teacher_depth.py", teacher, f"root={videos}", "cache=cache", "short_side=28",
        "crop=[28,42]", "device=cpu", "threads=1",
    )  # fmt: skip
    assert cache.status == 1, cache.err  # broken videos are there
    assert "3 videos labelled" in cache.err
    done = run_command(
        work, "train.py", teacher, "data=video_folder", f"data.root={videos}", "data.teacher_cache=cache",
        "run_dir=run", *SMOKE,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "live teacher" not in done.err
    return work


def test_training_names_broken_files_once_and_goes_on(trained: Path) -> None:
    log = (trained / "stderr.txt").read_text()
    for name in ("headless.mp4", "empty.mp4", "text.mp4"):
        assert sum(name in line for line in log.splitlines()) == 1
    assert (trained / "run" / "last" / "student.safetensors").is_file()
    records = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert list((trained / "run" / "pictures").glob("*.png"))


def test_a_finished_run_says_so(trained: Path, tiny_teacher_folder: str, videos: Path) -> None:
    again = run_command(
        trained, "train.py", f"teacher.name={tiny_teacher_folder}", "data=video_folder", f"data.root={videos}",
        "data.teacher_cache=cache", "run_dir=run", *SMOKE,
    )  # fmt: skip
    assert again.status == 0
    assert "already at step 4 of 4" in again.err


@pytest.mark.parametrize("name", ["good.mp4", "deeper/odd.mkv"])
def test_streamed_video_has_the_input_s_frames_and_times(
    trained: Path, videos: Path, tmp_path: Path, name: str
) -> None:
    done = run_command(
        tmp_path, "inference_streaming.py", f"checkpoint={trained}/run/last", f"input={videos / name}", "output=out",
        "raw=npz", "device=cpu", "threads=1",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "ms" in done.out + done.err

    def times(path: Path) -> list[float]:
        with av.open(str(path)) as file:
            return [float(frame.pts * frame.time_base) for frame in file.decode(video=0)]

    (written,) = (tmp_path / "out").glob("*.mp4")
    assert times(written) == pytest.approx(times(videos / name), abs=1e-6)


def test_evaluation_prints_and_writes_the_table(trained: Path) -> None:
    done = run_command(
        trained, "scripts/evaluate.py", "checkpoint=run/last", "output=evaluation", "synthetic.videos=1",
        "synthetic.frames=6", "synthetic.height=28", "synthetic.width=42", "device=cpu", "threads=1",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "teacher" in done.out
    assert "student" in done.out
    result = json.loads((trained / "evaluation" / "evaluation.json").read_text())
    assert np.isfinite(result["mean"]["teacher"]["abs_rel/video"]["value"])
    assert "student" in (trained / "evaluation" / "evaluation.md").read_text()
    assert not list((trained / "evaluation").glob("*.so_far.*"))


def test_evaluation_leaves_out_what_cannot_be_used_and_says_so(trained: Path, videos: Path) -> None:
    done = run_command(
        trained, "scripts/evaluate.py", "checkpoint=run/last", f"input={videos}", "output=folder", "max_frames=4",
        "cut_frames=0", "html.enabled=false", "device=cpu",
    )  # fmt: skip
    assert done.status == 1, done.err  # as precompute: done, but something was unusable
    assert done.errors == []
    result = json.loads((trained / "folder" / "evaluation.json").read_text())
    assert {"deeper/odd.mkv", "good.mp4"} <= {clip["name"] for clip in result["clips"]}
    assert {"empty.mp4", "headless.mp4", "text.mp4"} <= set(result["skipped"])
    for name in result["skipped"]:
        assert name in done.out
        assert f"{name} is skipped" in done.err
    assert f"Skipped {len(result['skipped'])} of 6 clips" in done.out
    assert "clip 6/6" in done.err
    assert not list((trained / "folder").glob("*.so_far.*"))


def test_held_out_worlds_are_evaluated_by_a_preset_in_several_processes(trained: Path) -> None:
    small = (
        "worlds.videos=1",
        "synthetic.frames=6",
        "synthetic.height=28",
        "synthetic.width=42",
        "kinds=[moving,fast]",
    )
    arguments = ("checkpoint=[mine:run/last]", "output=held_out", "cache=cache")
    workers = "workers=2"
    done = run_command(trained, "scripts/evaluate_fresh.py", *arguments, workers, *small)  # former name and keys
    assert done.status == 0, done.err
    assert "scripts/evaluate_fresh.py is now scripts/evaluate.py preset=held_out" in done.err
    assert "worlds.videos=1 is now synthetic.videos=1" in done.err
    assert "mine minus each method" in done.out
    first = (trained / "held_out" / "held_out.json").read_text()
    result = json.loads(first)
    assert len(result["metadata"]["weights_sha256"]["mine"]) == 64
    assert [clip["name"] for clip in result["clips"]] == [
        f"courtyard-{k}" for k in ("moving-3000000000", "fast-3000010000")
    ]
    assert np.isfinite(result["clips"][1]["methods"]["mine"]["tge"]["value"])
    again = run_command(trained, "scripts/evaluate.py", "preset=held_out", *arguments, "synthetic.videos=1", *small[1:])
    assert again.status == 0, again.err
    for key in ("clips", "groups"):  # from the cache
        assert json.loads((trained / "held_out" / "held_out.json").read_text())[key] == result[key]


def test_cache_is_verified(trained: Path, tiny_teacher_folder: str, videos: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    shutil.copy(videos / "good.mp4", good / "good.mp4")
    shared = (f"teacher.name={tiny_teacher_folder}", f"root={good}", f"cache={tmp_path / 'cache'}", "short_side=28")
    quick = ("device=cpu", "threads=1")
    assert run_command(tmp_path, "scripts/precompute_teacher_depth.py", *shared, *quick).status == 0
    verified = run_command(tmp_path, "scripts/precompute_teacher_depth.py", *shared, *quick, "verify=true")
    assert verified.status == 0, verified.err
    chunk = next(p for p in (tmp_path / "cache").rglob("depth/c/*") if p.is_file() or (p / "0" / "0").is_file())
    chunk = chunk if chunk.is_file() else chunk / "0" / "0"
    chunk.write_bytes(b"\x00" + chunk.read_bytes()[1:])
    damaged = run_command(tmp_path, "scripts/precompute_teacher_depth.py", *shared, *quick, "verify=true")
    assert damaged.status == 2
    other = run_command(tmp_path, "scripts/precompute_teacher_depth.py", *shared[:3], "short_side=42", *quick)
    assert other.status == 2
    assert len(other.errors) == 1


STREAM, PRECOMPUTE = "inference_streaming.py", "scripts/precompute_teacher_depth.py"

MISTAKES = {
    "train, misspelled key": ("train.py", ["data.rooot=x"], "no key 'data.rooot'"),
    "train, wrong type": ("train.py", ["trainer.steps=many"], "trainer.steps"),
    "train, no data folder given": ("train.py", ["data=video_folder"], "data.root"),
    "train, missing data folder": ("train.py", ["data=video_folder", "data.root=/no/such"], "does not exist"),
    "train, folder without videos": ("train.py", ["data=video_folder", "data.root={empty_folder}"], "{empty_folder}"),
    "train, no folder of labels": (
        "train.py",
        ["data=video_folder", "data.root={empty_folder}", "data.labels=/no/such"],
        "'/no/such' is not a folder",
    ),
    "train, zero-byte video": ("train.py", ["data=video_folder", "data.root={only}/empty"], "empty.mp4"),
    "train, text named .mp4": ("train.py", ["data=video_folder", "data.root={only}/text"], "text.mp4"),
    "train, headless mp4": ("train.py", ["data=video_folder", "data.root={only}/headless"], "headless.mp4"),
    "train, missing teacher folder": ("train.py", ["teacher.name=./nowhere"], "does not exist"),
    "train, no network": ("train.py", ["teacher=depth_anything_v2"], "no network"),
    "train, a flag among keys": ("train.py", ["debug=smoke", "-m", "trainer.steps=many,2"], "trainer.steps"),
    "train, unknown discretization": ("train.py", ["model.discretization=euler"], "euler"),
    "precompute, missing folder": (PRECOMPUTE, ["root=/no/such", "cache=c"], "does not exist"),
    "precompute, nothing given": (PRECOMPUTE, [], "no value for"),
    "evaluate, not a checkpoint": ("scripts/evaluate.py", ["checkpoint={empty_folder}"], "not a student checkpoint"),
    "evaluate, missing input": ("scripts/evaluate.py", ["checkpoint={run}", "input=/no/such"], "does not exist"),
    "stream, not a checkpoint": (STREAM, ["checkpoint=/no", "input={good}", "output=o"], "/no"),
    "stream, missing input": (STREAM, ["checkpoint={run}", "input=/no/x.mp4", "output=o"], "/no/x.mp4"),
    "stream, zero-byte video": (STREAM, ["checkpoint={run}", "input={only}/empty/empty.mp4", "output=o"], "empty.mp4"),
    "stream, text named .mp4": (STREAM, ["checkpoint={run}", "input={only}/text/text.mp4", "output=o"], "text.mp4"),
    "stream, headless mp4": (
        STREAM,
        ["checkpoint={run}", "input={only}/headless/headless.mp4", "output=o"],
        "headless",
    ),
    "stream, misspelled key": (STREAM, ["checkpont=x"], "no key 'checkpont'"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, videos: Path, trained: Path) -> dict[str, str]:
    only = tmp_path_factory.mktemp("only")
    for name in ("empty", "text", "headless"):
        (only / name).mkdir()
        shutil.copy(videos / f"{name}.mp4", only / name)
    empty_folder = tmp_path_factory.mktemp("nothing")
    return {
        "only": str(only),
        "empty_folder": str(empty_folder),
        "run": str(trained / "run" / "last"),
        "good": str(videos / "good.mp4"),
    }


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_ends_in_one_clear_line(
    case: str, places: dict[str, str], tmp_path: Path, tiny_teacher_folder: str
) -> None:
    script, arguments, message = MISTAKES[case]
    arguments = [argument.format(**places) for argument in arguments]
    if script == "train.py":
        chosen = any(argument.startswith("teacher") for argument in arguments)
        arguments += ["run_dir=run", *SMOKE, *([] if chosen else [f"teacher.name={tiny_teacher_folder}"])]
    elif "precompute" in script and arguments:
        arguments += [f"teacher.name={tiny_teacher_folder}"]
    result = run_command(tmp_path, script, *arguments)
    assert result.status == 2, result.err
    assert len(result.errors) == 1, result.err
    assert message.format(**places) in result.errors[0]
    assert "Traceback" not in result.err


def test_a_truncated_video_is_streamed_as_far_as_it_goes(places: dict[str, str], videos: Path, tmp_path: Path) -> None:
    result = run_command(
        tmp_path, "inference_streaming.py", f"checkpoint={places['run']}", f"input={videos / 'truncated.mp4'}",
        "output=out", "device=cpu", "threads=1",
    )  # fmt: skip
    assert result.status != 0
    assert len(result.errors) == 1
    (written,) = (tmp_path / "out").glob("*.mp4")
    with av.open(str(written)) as file:
        assert sum(1 for _ in file.decode(video=0)) > 0


def test_a_damaged_student_is_refused(trained: Path, videos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run, symlinks=True)
    path = run / "last" / "student.safetensors"
    path.write_bytes(path.read_bytes()[:64])
    result = run_command(
        tmp_path, "inference_streaming.py", f"checkpoint={run}/last", f"input={videos / 'good.mp4'}", "output=o"
    )
    assert result.status == 2
    assert len(result.errors) == 1
