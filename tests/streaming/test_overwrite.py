"""Outputs replace nothing but what an earlier stream wrote, and that only when the first frame has come."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from media import write_images, write_video

from videomamba_depth.commands.stream import main
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.streaming import job
from videomamba_depth.streaming.sinks.video import FrameLog
from videomamba_depth.utils.errors import UserError


@pytest.fixture
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip in a folder of its own."""
    return write_video(tmp_path_factory.mktemp("videos") / "clip.mp4", 4)


def stream(checkpoint: Path, source: Path | str, output: Path | str, *overrides: str) -> None:
    given = [f"checkpoint={checkpoint}", f"input={source}", f"output={output}", "device=cpu", "max_frames=2"]
    main(load_config("stream", StreamConfig, [*given, *overrides]))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_place(video: Path, work: Path) -> tuple[Path, Path]:
    return Path(shutil.copy(video, work / "clip.mp4")), work


def linked(link: Callable[[Path, Path], None]) -> Callable[[Path, Path], tuple[Path, Path]]:
    def make(video: Path, work: Path) -> tuple[Path, Path]:
        source = Path(shutil.copy(video, work / "clip.mp4"))
        (work / "out").mkdir()
        link(source, work / "out" / "clip.mp4")
        return source, work / "out"

    return make


def through_a_linked_folder(video: Path, work: Path) -> tuple[Path, Path]:
    source = Path(shutil.copy(video, work / "clip.mp4"))
    (work / "out").symlink_to(work)
    return source, work / "out"


def in_the_depth_folder(video: Path, work: Path) -> tuple[Path, Path]:
    (work / "clip_depth").mkdir()
    return Path(shutil.copy(video, work / "clip_depth" / "clip.mp4")), work


def images_linked_into_the_depth_folder(video: Path, work: Path) -> tuple[Path, Path]:
    images = write_images(work / "clip", 3)
    (work / "out" / "clip_depth").mkdir(parents=True)
    first = next(images.iterdir())
    os.link(first, work / "out" / "clip_depth" / first.name)
    return images, work / "out"


@pytest.mark.parametrize("overwrite", ["true", "false"])
@pytest.mark.parametrize(
    "make",
    [
        in_place,
        linked(lambda source, link: link.symlink_to(source)),
        linked(lambda source, link: os.link(source, link)),
        through_a_linked_folder,
        in_the_depth_folder,
        images_linked_into_the_depth_folder,
    ],
)
def test_the_input_is_never_an_output(tmp_path: Path, checkpoint: Path, video: Path, make, overwrite: str) -> None:
    source, output = make(video, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"is, or holds, the input .*; give another output folder") as caught:
        stream(checkpoint, source, output, "raw=npz", f"overwrite={overwrite}")
    assert "overwrite" not in str(caught.value)
    assert contents(tmp_path) == before


def test_beside_the_input_without_a_video(tmp_path: Path, checkpoint: Path, video: Path) -> None:
    source, output = in_place(video, tmp_path)
    for _ in range(2):
        stream(checkpoint, source, output, "raw=npz", "video=none", "overwrite=true")
    assert source.read_bytes() == video.read_bytes()


@pytest.mark.parametrize(
    "foreign", ["clip_depth/notes.txt", "clip_depth/000000.png", "clip.json", "clip.mp4", "clip_points/a", "clip.mp4/a"]
)
@pytest.mark.parametrize("overwrite", ["true", "false"])
def test_other_people_s_files_stay(tmp_path: Path, checkpoint: Path, video: Path, foreign: str, overwrite: str) -> None:
    path = tmp_path / foreign
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"mine": 1}')
    with pytest.raises(UserError, match="exists already and no earlier stream is known to have written it") as caught:
        stream(checkpoint, video, tmp_path, "raw=npz", "intrinsics=[9,9,1,1]", f"overwrite={overwrite}")
    assert "overwrite" not in str(caught.value)
    assert contents(tmp_path) == {foreign: b'{"mine": 1}'}


def test_what_is_not_written_is_no_obstacle_and_stays(tmp_path: Path, checkpoint: Path, video: Path) -> None:
    (tmp_path / "clip_depth").mkdir()
    (tmp_path / "clip_depth" / "notes.txt").write_text("mine")
    stream(checkpoint, video, tmp_path)
    stream(checkpoint, video, tmp_path, "overwrite=true")
    with pytest.raises(UserError, match="clip_depth exists already and no earlier stream"):
        stream(checkpoint, video, tmp_path, "overwrite=true", "raw=npz")
    assert (tmp_path / "clip_depth" / "notes.txt").read_text() == "mine"


def test_every_kind_of_output_is_replaced(tmp_path: Path, checkpoint: Path, video: Path) -> None:
    kinds = ("npz", "png16", "zarr", "exr", "none")
    for raw in kinds:
        stream(checkpoint, video, tmp_path, f"raw={raw}", "intrinsics=[9,9,1,1]", "overwrite=true")
    stream(checkpoint, video, tmp_path, "raw=npz", "overwrite=true")  # the folder of two runs before is still known
    assert [path.name for path in (tmp_path / "clip_depth").iterdir()] == ["depth_000000.npz"]


def add(name: str) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")

    return change


def add_empty_folder(out: Path) -> None:
    (out / "clip_depth" / "1").mkdir()


def add_link(out: Path) -> None:
    (out / "clip_depth" / "000009.png").symlink_to(out / "clip.mp4")


def swap_link(out: Path) -> None:
    (out / "clip_depth" / "000001.png").rename(out / "mine.png")
    (out / "clip_depth" / "000001.png").symlink_to(out / "mine.png")


def change_bytes(name: str) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        (out / name).write_bytes(b"x" * (out / name).stat().st_size)

    return change


def rename(out: Path) -> None:
    (out / "clip_depth" / "000001.png").rename(out / "clip_depth" / "000005.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add("clip_depth/notes.txt"), r"clip_depth exists already and has changed .*then files: 3, now: 4"),
        (add("clip_depth/000123.png"), r"clip_depth exists already and has changed .*then files: 3, now: 4"),
        (add("clip_depth/5"), r"clip_depth exists already and has changed"),
        (add("clip_depth/depth_000000.npz"), r"clip_depth exists already and has changed"),
        (add("clip_depth/mine/000000.png"), r"clip_depth exists already and has changed"),
        (add("clip_points/000001.ply"), r"clip_points exists already and has changed"),
        (add_empty_folder, r"clip_depth exists already and has changed"),
        (add_link, r"clip_depth exists already and has changed"),
        (swap_link, r"clip_depth exists already and has changed"),
        (rename, r"clip_depth exists already and has changed"),
        (change_bytes("clip_depth/000001.png"), r"clip_depth exists already and has changed"),
        (change_bytes("clip_depth/scale.json"), r"clip_depth exists already and has changed"),
        (change_bytes("clip.mp4"), r"clip\.mp4 exists already and has changed"),
        (add("clip.frames.jsonl"), r"clip\.frames\.jsonl exists already and has changed"),
    ],
)
def test_what_was_added_or_changed_stays(
    tmp_path: Path, checkpoint: Path, video: Path, change: Callable[[Path], None], message: str
) -> None:
    given = ("raw=png16", "intrinsics=[9,9,1,1]", "overwrite=true")
    stream(checkpoint, video, tmp_path, *given)
    change(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=rf"{message}.*; give another output folder, or move that away"):
        stream(checkpoint, video, tmp_path, *given)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("raw", "foreign"),
    [
        ("npz", "clip_depth/depth_000001.npz"),
        ("png16", "clip_depth/000123.png"),
        ("exr", "clip_depth/scale.json"),
        ("zarr", "clip_depth.zarr/depth/c/1/0/0"),
    ],
)
def test_what_was_added_while_a_stream_wrote_stays(
    tmp_path: Path, checkpoint: Path, video: Path, monkeypatch: pytest.MonkeyPatch, raw: str, foreign: str
) -> None:
    real = FrameLog.close

    def close(log: FrameLog) -> None:
        (tmp_path / foreign).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / foreign).write_text("mine")
        real(log)

    monkeypatch.setattr(FrameLog, "close", close)
    stream(checkpoint, video, tmp_path, f"raw={raw}")
    with pytest.raises(UserError, match=r"clip_depth.* exists already and has changed since a stream wrote it"):
        stream(checkpoint, video, tmp_path, f"raw={raw}", "overwrite=true")
    assert (tmp_path / foreign).read_text() == "mine"


def test_nothing_is_replaced_before_the_first_frame(
    tmp_path: Path, checkpoint: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream(checkpoint, video, tmp_path, "raw=npz")
    before = contents(tmp_path)

    def fail(*_: object) -> None:
        raise UserError("no frame")

    monkeypatch.setattr(job.DepthStream, "step", fail)
    with pytest.raises(UserError, match="no frame"):
        stream(checkpoint, video, tmp_path, "raw=npz", "overwrite=true")
    assert contents(tmp_path) == before


def test_what_a_killed_stream_or_an_earlier_version_wrote_is_not_known_and_stays(
    tmp_path: Path, checkpoint: Path, video: Path
) -> None:
    stream(checkpoint, video, tmp_path, "raw=npz")
    record = json.loads((tmp_path / "clip.json").read_text())
    assert set(record["outputs"]) == {"clip.mp4", "clip_depth", "clip.json", "clip.frames.jsonl"}
    running = record | {"status": "running", "outputs": dict.fromkeys(record["outputs"])}
    with_sizes = record | {"outputs": {name: (tmp_path / name).stat().st_size for name in record["outputs"]}}
    of_0_1_0 = {key: value for key, value in record.items() if key != "outputs"}
    for earlier in (running, with_sizes, of_0_1_0):
        (tmp_path / "clip.json").write_text(json.dumps(earlier))
        before = contents(tmp_path)
        with pytest.raises(
            UserError, match=r"what it wrote is not known.*give another output folder, or move"
        ) as caught:
            stream(checkpoint, video, tmp_path, "raw=npz", "overwrite=true")
        assert all(name in str(caught.value) for name in ("clip.mp4", "clip_depth", "clip.frames.jsonl"))
        assert contents(tmp_path) == before
    shutil.rmtree(tmp_path / "clip_depth")
    (tmp_path / "clip.mp4").unlink()
    (tmp_path / "clip.frames.jsonl").unlink()
    for _ in range(2):
        stream(checkpoint, video, tmp_path, "raw=npz", "overwrite=true")


def test_a_stream_killed_while_it_replaced_leaves_no_stamp_that_fits(
    tmp_path: Path, checkpoint: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream(checkpoint, video, tmp_path, "raw=png16")
    with monkeypatch.context() as patched:
        patched.setattr(job.StreamJob, "_finish_record", lambda *_: None)
        stream(checkpoint, video, tmp_path, "raw=png16", "overwrite=true")
    assert json.loads((tmp_path / "clip.json").read_text())["status"] == "running"
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"clip_depth exists already and has changed"):
        stream(checkpoint, video, tmp_path, "raw=png16", "overwrite=true")
    assert contents(tmp_path) == before


def test_the_outputs_of_a_stream_that_failed_are_known(
    tmp_path: Path, checkpoint: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = job.DepthStream.step, [0]

    def fail(*given: object) -> object:
        calls[0] += 1
        if calls[0] == 2:
            raise UserError("no second frame")
        return real(*given)

    with monkeypatch.context() as patched:
        patched.setattr(job.DepthStream, "step", fail)
        with pytest.raises(UserError, match="no second frame"):
            stream(checkpoint, video, tmp_path, "raw=exr")
    stream(checkpoint, video, tmp_path, "raw=exr", "overwrite=true")


@pytest.mark.parametrize("name", ["n" * 246 + ".mp4", "é" * 120 + ".mp4", os.fsdecode(b"\xff\xfe x.mp4")])
def test_long_and_foreign_names(tmp_path: Path, checkpoint: Path, video: Path, name: str) -> None:
    source = shutil.copy(video, tmp_path / name)
    for overwrite in ("false", "true"):
        stream(checkpoint, source, tmp_path / "out", "raw=npz", f"overwrite={overwrite}")
    (about,) = (tmp_path / "out").glob("*.json")
    assert json.loads(about.read_text())["input"] == str(source)
    assert len(list((tmp_path / "out").iterdir())) == 4
