"""A leading `~` is the home folder, or part of the name where there is no such home folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from media import write_images, write_video

from videomamba_depth.data.labels.cache_verify import group_names
from videomamba_depth.data.video.decode import open_video
from videomamba_depth.data.video.find import find_sources, hash_source
from videomamba_depth.data.video.image_sequence import list_images
from videomamba_depth.data.video.reader import VideoWriter, probe_video
from videomamba_depth.streaming.sinks.point_cloud import load_intrinsics
from videomamba_depth.streaming.sources.files import name_of
from videomamba_depth.utils.arguments import path_argument
from videomamba_depth.utils.errors import UserError
from videomamba_depth.video_mamba.checkpoint_files import CheckpointError, read_weights


def opened(name: str) -> None:
    with open_video(name, threads=1):
        pass


READ: list[Callable[[str], object]] = [opened, find_sources, hash_source, probe_video, name_of, path_argument]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("name", ["~x.mp4", "~nosuch/x.mp4", "~/x.mp4"])
def test_files_are_found(here: Path, read: Callable[[str], object], name: str) -> None:
    path = here / name.replace("~/", "home/")
    path.parent.mkdir(exist_ok=True)
    write_video(path, 2)
    read(name)


@pytest.mark.parametrize("read", [find_sources, hash_source, probe_video, list_images, group_names, load_intrinsics])
def test_what_is_missing_is_said(here: Path, read: Callable[[str], object]) -> None:
    with pytest.raises(UserError, match=r"~nosuch/x"):
        read("~nosuch/x")
    with pytest.raises(CheckpointError, match=r"~nosuch/x"):
        read_weights("~nosuch/x", unwrap=True)


def test_the_other_kinds(here: Path) -> None:
    write_images(here / "~images", 2)
    assert len(list_images("~images")) == 2
    Path("~numbers").write_text("9 9 1 1")
    assert load_intrinsics("~numbers") == (9, 9, 1, 1)
    with VideoWriter("~x.mp4", size=(16, 16), fps=30) as writer:
        writer.write(np.zeros((16, 16, 3), np.uint8))
    assert Path("~x.mp4").is_file()
