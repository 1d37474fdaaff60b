"""A teacher cache at a URL holds the same bytes as one in a folder, whatever was interrupted and however many wrote."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from media import flat_depth, write_images, write_video

from videomamba_depth.configuration.build import build_dataset
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.data.labels import precompute
from videomamba_depth.data.labels.cache_format import TeacherKey, group_name
from videomamba_depth.data.labels.cache_server import has_content
from videomamba_depth.data.labels.cache_verify import verify_cache
from videomamba_depth.data.labels.precompute import precompute_videos
from videomamba_depth.data.labels.teacher_cache import TeacherCacheReader, TeacherCacheWriter
from videomamba_depth.data.video.find import VideoSource, find_sources
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.utils.errors import UserError

pytest.importorskip("zarr", reason="it needs Python 3.11")

KEY = TeacherKey("hub/model", "a" * 64, 70, "float32", "affine_invariant_inverse_depth")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[VideoSource]:
    root = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate((21, 10, 35, 5)):
        write_video(root / f"{number}.mp4", frames, seed=number)
    write_images(root / "images", 5)
    return find_sources(root)


def run(videos: list[VideoSource], cache: str | Path, **kwargs: Any) -> Any:
    return precompute_videos(
        videos, flat_depth, KEY, cache, **{"chunk_frames": 8, "batch_frames": 3, "progress": False, **kwargs}
    )


def tree(cache: str | Path) -> dict[str, bytes]:
    """Return the content of every file or object of a cache, by its name below the root."""
    system, root = fsspec.core.url_to_fs(str(cache))
    system.invalidate_cache()
    return {name.removeprefix(root).strip("/"): system.cat_file(name) for name in system.find(root)}


@pytest.fixture(scope="module")
def local(videos: list[VideoSource], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    run(videos, folder)
    return folder


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://labels/mine"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def test_objects_are_the_files_of_a_folder(videos: list[VideoSource], local: Path, memory: str, caplog: Any) -> None:
    for rank in (2, 0, 1):
        run(videos, memory, rank=rank, world_size=3)
    assert tree(memory) == tree(local)
    assert has_content(memory)
    assert not has_content("memory://labels/other")
    report = verify_cache(memory, key=KEY, sources=videos)
    assert (report.ok, report.videos, report.frames) == (True, 5, 76)
    with caplog.at_level(logging.WARNING):
        for source in videos:
            at_url, in_folder = (
                TeacherCacheReader(cache, KEY).lookup(source.video_id, [4, 0], source.path) for cache in (memory, local)
            )
            assert (at_url["teacher_depth"] == in_folder["teacher_depth"]).all()  # type: ignore[index]
    assert not caplog.records


def test_verify_names_what_is_damaged_at_a_url(videos: list[VideoSource], memory: str) -> None:
    run(videos[:2], memory)
    system, root = fsspec.core.url_to_fs(memory)
    system.pipe_file(f"{root}/{group_name(videos[0].video_id)}/depth/c/0/0/0", b"")
    system.pipe_file(f"{root}/notes.txt", b"beside the groups")
    (problem,) = verify_cache(memory, key=KEY).problems
    assert "chunk 0 of depth" in problem
    with pytest.raises(UserError, match="memory://labels/none is empty"):
        verify_cache("memory://labels/none")


@pytest.mark.parametrize("failing", [1, 4, 7, 11, 12, 13])
def test_a_put_that_fails_is_made_good_by_the_next_run(
    videos: list[VideoSource], local: Path, memory: str, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    real, puts = MemoryFileSystem.pipe_file, [0]

    def unreliable(self: Any, *args: Any, **kwargs: Any) -> Any:
        puts[0] += 1
        if puts[0] >= failing:
            raise RuntimeError("the server does not answer")  # client libraries have classes of their own
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "pipe_file", unreliable)
        with pytest.raises(UserError, match="teacher cache memory://labels/mine: the server does not answer; see to"):
            run(videos, memory)
    assert puts[0] >= failing
    run(videos, memory)
    assert tree(memory) == tree(local)


def test_two_writers_of_a_video_end_in_the_same_bytes(
    videos: list[VideoSource], local: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run labels all of it between two chunks of the first one."""
    real = TeacherCacheWriter.write_chunk

    def write_chunk(self: Any, chunk: int, maps: Any) -> None:
        real(self, chunk, maps)
        if chunk == 1:
            monkeypatch.setattr(TeacherCacheWriter, "write_chunk", real)
            other(videos[2:3], memory)

    other: Any = run
    monkeypatch.setattr(TeacherCacheWriter, "write_chunk", write_chunk)
    run(videos, memory)
    assert tree(memory) == tree(local)


def test_a_slow_first_writer_that_is_killed_leaves_nothing_damaged(
    videos: list[VideoSource], local: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, real, puts = videos[2], MemoryFileSystem.pipe_file, [0]

    def pipe_file(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        if "chunk_scale/c" in path:
            puts[0] += 1
            if puts[0] == 2:  # its digests are put, without those of the other writer
                raise RuntimeError("killed")
        return real(self, path, *args, **kwargs)

    def overtaken(self: Any, first: int, *rest: Any) -> Any:
        if first == 8:
            with monkeypatch.context() as inner:
                inner.setattr(MemoryFileSystem, "pipe_file", real)
                inner.setattr(precompute._Labeller, "_label", label)
                run([source], memory)
        return label(self, first, *rest)

    label = precompute._Labeller._label
    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "pipe_file", pipe_file)
        patched.setattr(precompute._Labeller, "_label", overtaken)
        with pytest.raises(UserError, match="killed"):
            run([source], memory)
    assert not verify_cache(memory, key=KEY).ok  # the next run sees to it
    run(videos, memory)
    assert tree(memory) == tree(local)


def test_a_file_url_is_a_folder(videos: list[VideoSource], local: Path, tmp_path: Path) -> None:
    run(videos, f"file://{tmp_path}/cache")
    assert tree(tmp_path / "cache") == tree(local)
    assert verify_cache(f"file://{tmp_path}/cache").ok


def test_an_address_that_cannot_be_used_is_one_line(videos: list[VideoSource], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "s3fs"] or ["s3fs"]:
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("s3", "s3a"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, name, raising=False)
    fsspec.AbstractFileSystem.clear_instance_cache()
    for use in (has_content, verify_cache, lambda url: run(videos, url)):
        with pytest.raises(UserError, match=r"s3://bucket/a: Install s3fs .*; pip install 'videomamba-depth\[s3\]'"):
            use("s3://bucket/a")
        with pytest.raises(UserError, match=r"nosuch://bucket/a: .*nosuch"):
            use("nosuch://bucket/a")


def test_a_url_that_holds_nothing_is_refused_by_training(
    videos: list[VideoSource], tiny_encoder: DepthAnythingEncoder
) -> None:
    overrides = ["data=video_folder", f"data.root={Path(videos[0].path).parent}", "data.teacher_cache=memory://none"]
    config = load_config("train", TrainConfig, overrides)
    with pytest.raises(UserError, match=r"data\.teacher_cache: 'memory://none' holds nothing; make it with"):
        build_dataset(config.data, 0, tiny_encoder)
