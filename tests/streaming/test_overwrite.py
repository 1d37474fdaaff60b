"""Outputs replace nothing but what an earlier stream wrote, and that only when the first frame has come."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from media import write_images, write_video

from videomamba_depth.configuration.build_stream import stream_main
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.streaming import job
from videomamba_depth.utils.errors import UserError


@pytest.fixture
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip in a folder of its own."""
    return write_video(tmp_path_factory.mktemp("videos") / "clip.mp4", 4)


def stream(checkpoint: Path, source: Path | str, output: Path | str, *overrides: str) -> None:
    given = [f"checkpoint={checkpoint}", f"input={source}", f"output={output}", "device=cpu", "max_frames=2"]
    stream_main(load_config("stream", StreamConfig, [*given, *overrides]))


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


def test_what_was_added_or_changed_stays(tmp_path: Path, checkpoint: Path, video: Path) -> None:
    stream(checkpoint, video, tmp_path, "raw=npz")
    (tmp_path / "clip_depth" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"clip_depth exists already and holds notes\.txt"):
        stream(checkpoint, video, tmp_path, "raw=npz", "overwrite=true")
    shutil.rmtree(tmp_path / "clip_depth")
    shutil.copy(video, tmp_path / "clip.mp4")
    with pytest.raises(UserError, match=r"clip\.mp4 exists already and has changed"):
        stream(checkpoint, video, tmp_path, "raw=npz", "overwrite=true")
    assert (tmp_path / "clip.mp4").read_bytes() == video.read_bytes()


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


def test_records_of_stopped_streams_and_of_version_0_1_0(tmp_path: Path, checkpoint: Path, video: Path) -> None:
    stream(checkpoint, video, tmp_path, "raw=npz")
    record = json.loads((tmp_path / "clip.json").read_text())
    assert set(record["outputs"]) == {"clip.mp4", "clip_depth", "clip.json", "clip.frames.jsonl"}
    running = record | {"status": "running", "outputs": dict.fromkeys(record["outputs"])}
    old = {key: value for key, value in record.items() if key != "outputs"}
    for earlier in (running, old):
        (tmp_path / "clip.json").write_text(json.dumps(earlier))
        shutil.copy(video, tmp_path / "clip.mp4")  # of any size
        stream(checkpoint, video, tmp_path, "raw=npz", "overwrite=true")


@pytest.mark.parametrize("name", ["n" * 246 + ".mp4", "é" * 120 + ".mp4", os.fsdecode(b"\xff\xfe x.mp4")])
def test_long_and_foreign_names(tmp_path: Path, checkpoint: Path, video: Path, name: str) -> None:
    source = shutil.copy(video, tmp_path / name)
    for overwrite in ("false", "true"):
        stream(checkpoint, source, tmp_path / "out", "raw=npz", f"overwrite={overwrite}")
    (about,) = (tmp_path / "out").glob("*.json")
    assert json.loads(about.read_text())["input"] == str(source)
    assert len(list((tmp_path / "out").iterdir())) == 4
