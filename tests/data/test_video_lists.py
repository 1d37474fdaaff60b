"""A text file that names videos stands for a folder: same ids, same clips, same labels, and nothing opened at start."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media import flat_depth, write_empty, write_images, write_video

from videomamba_depth.data.dataset_video import VideoClipDataset
from videomamba_depth.data.labels.cache_format import TeacherKey
from videomamba_depth.data.labels.precompute import precompute_videos
from videomamba_depth.data.labels.teacher_cache import TeacherCacheReader
from videomamba_depth.data.transforms import ClipTransform
from videomamba_depth.data.video import find
from videomamba_depth.data.video.find import find_sources
from videomamba_depth.utils.errors import UserError

pytest.importorskip("zarr", reason="it needs Python 3.11")

KEY = TeacherKey("hub/model", "a" * 64, 70, "float32", "affine_invariant_inverse_depth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    (root / "below").mkdir()
    write_video(root / "a.mp4", 9)
    write_video(root / "below" / "#2, second.mp4", 9, seed=1)
    write_images(root / "still images", 9)
    return root


def write_list(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_ids_and_order_are_the_list_s(folder: Path, tmp_path: Path) -> None:
    path = folder / "list.txt"
    lines = ("\ufeff# all of them", "", "still images", "  below/#2, second.mp4 ", "./a.mp4")
    path.write_bytes("\r\n".join(lines).encode())
    found = find_sources(path)
    assert [source.video_id for source in found] == ["still images", "below/#2, second.mp4", "a.mp4"]
    path.unlink()
    assert set(found) == set(find_sources(folder))
    elsewhere = write_list(tmp_path / "b.TXT", os.path.relpath(folder / "a.mp4", tmp_path), f"{folder}/a.mp4", "./#1")
    above, absolute, named = find_sources(elsewhere)
    assert above.video_id.startswith("../")
    assert Path(above.path).samefile(folder / "a.mp4")
    assert absolute.video_id == absolute.path == f"{folder}/a.mp4"
    assert named.video_id == "#1"


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"a\.mp4 in line 1: no file and no folder"):
        find_sources(write_list(tmp_path / "list.txt", "a.mp4"))


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.mp4\n")
    write_video(tmp_path / "a.mp4", 3).rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    (source,) = find_sources(tmp_path / "list.txt")
    assert os.path.isfile(source.path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no video; expected one path per line"),
        ("# a.mp4\n\n", "names no video"),
        ("a.mp4\nb.mp4\n./a.mp4\n", r"names a\.mp4 twice, in lines 1 and 3"),
        ("PK\x03\0\0", "is no list of videos: line 1 is no path"),
        ("a.mp4\ns3://bucket/b.mp4\n", r"line 2 of .*list\.txt is a URL, s3://bucket/b\.mp4; videos are read from"),
    ],
)
def test_lists_that_cannot_be_meant(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        find_sources(path)


def test_a_hundred_thousand_videos_are_not_opened(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_list(tmp_path / "list.txt", *(f"{number}/video.mp4" for number in range(100_000)))
    with monkeypatch.context() as patched:
        for name in ("count_frames", "scan_sources"):
            patched.setattr(find, name, None)
        patched.setattr("videomamba_depth.data.dataset_video.scan_sources", None)
        patched.setattr(os, "walk", None)
        dataset = VideoClipDataset(path, clip_frames=3)
    assert len(dataset.sources) == 100_000
    with pytest.raises(UserError, match=r"100 draws in a row hit videos .*such as .*video\.mp4 .*no such file"):
        dataset[0]


def test_what_is_missing_or_broken_is_named_when_it_is_drawn(folder: Path, tmp_path: Path, caplog: Any) -> None:
    write_video(tmp_path / "short.mp4", 2)
    write_empty(tmp_path / "empty.mp4")
    path = write_list(tmp_path / "list.txt", "gone.mp4", "short.mp4", "empty.mp4", str(folder / "a.mp4"))
    dataset = VideoClipDataset(path, clip_frames=3)
    assert not caplog.records
    drawn = {dataset[index]["meta"].video_id for index in range(30)}
    assert drawn == {str(folder / "a.mp4")}
    assert sorted(record.getMessage().split()[0] for record in caplog.records) == ["empty.mp4", "gone.mp4", "short.mp4"]


def test_clips_and_labels_are_those_of_the_folder(folder: Path, caplog: Any) -> None:
    names = [source.video_id for source in find_sources(folder)]
    path = write_list(folder / "list.txt", *names)
    cache, transform = folder / ".cache", ClipTransform(crop=(28, 42))
    summary = precompute_videos(
        [*find_sources(path), find.VideoSource("gone.mp4", str(folder / "gone.mp4"))],
        flat_depth,
        KEY,
        cache,
        scan=False,
        image_size=(28, 42),
        progress=False,
    )
    assert (summary.finished, summary.frames, list(summary.failed)) == (3, 27, ["gone.mp4"])
    reader = TeacherCacheReader(cache, KEY)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for index in range(6):
            of_list, of_folder = (
                VideoClipDataset(root, clip_frames=3, transform=transform, teacher_cache=reader)[index]
                for root in (path, folder)
            )
            assert of_list["meta"] == of_folder["meta"]
            for name in ("rgb", "teacher_depth"):
                assert np.array_equal(of_list[name], of_folder[name])
    assert not caplog.records
