"""The cache gives back what the teacher said, never what another one said, and survives a kill at any moment."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media import flat_depth, write_empty, write_images, write_video
from processes import finish, make_event, start
from torch import Tensor

pytest.importorskip("zarr", reason="it needs Python 3.11")
import zarr

from videomamba_depth.data.dataset_video import VideoClipDataset
from videomamba_depth.data.labels import cache_format
from videomamba_depth.data.labels.cache_format import StaticKey, chunk_scale, group_name
from videomamba_depth.data.labels.cache_verify import verify_cache
from videomamba_depth.data.labels.precompute import one_ahead, precompute_videos
from videomamba_depth.data.labels.teacher_cache import TeacherCacheReader, TeacherKey
from videomamba_depth.data.playback import Playback
from videomamba_depth.data.transforms import ClipTransform
from videomamba_depth.data.video.find import VideoSource, find_sources, hash_source
from videomamba_depth.data.video.info import VideoReadError
from videomamba_depth.data.video.reader import read_frames
from videomamba_depth.utils.errors import UserError

KEY = TeacherKey("hub/model", "a" * 64, 70, "float32", "affine_invariant_inverse_depth")


def shifted_flow(source: Tensor, target: Tensor) -> Tensor:
    """A stand-in flow that tells frames apart: u is the mean of the source, v that of the target."""
    means = torch.stack([source.mean((1, 2, 3)), target.mean((1, 2, 3))], 1)
    return means[:, :, None, None].expand(-1, -1, *source.shape[-2:]).contiguous()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[VideoSource]:
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "a.mp4", 21)
    write_video(root / "b.mp4", 10, width=50, height=70, seed=1)
    write_images(root / "c", 5)
    return find_sources(root)


def run(videos: list[VideoSource], cache: Path, **kwargs: Any) -> Any:
    return precompute_videos(
        videos, flat_depth, KEY, cache, **{"chunk_frames": 8, "batch_frames": 3, "progress": False, **kwargs}
    )


@pytest.fixture(scope="module")
def cache(videos: list[VideoSource], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache with flow and static masks; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    run(videos, folder, flow=shifted_flow)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def expected_depth(source: VideoSource, indices: list[int]) -> np.ndarray:
    rgb = torch.from_numpy(read_frames(source.path, indices)).permute(0, 3, 1, 2).float() / 255
    return flat_depth(rgb).numpy()


def test_labels_come_back_for_any_frames(videos: list[VideoSource], cache: Path) -> None:
    reader = TeacherCacheReader(cache, KEY)
    for source, indices in zip(videos, ([0, 9, 20, 3], [7, 8, 9], [4]), strict=True):
        depth = reader.lookup(source.video_id, indices, source.path)["teacher_depth"][:, None]  # type: ignore[index]
        assert depth.dtype == np.float32
        np.testing.assert_allclose(depth, expected_depth(source, indices), rtol=2**-11)


def test_flow_refers_to_the_frame_before_across_chunks(videos: list[VideoSource], cache: Path) -> None:
    maps = TeacherCacheReader(cache, KEY).lookup("a.mp4", range(21))
    assert maps is not None
    means = read_frames(videos[0].path, range(21)).astype(np.float32).mean((1, 2, 3)) / 255
    flow = maps["flow_bwd"][:, 0, 0]
    assert (flow[0] == 0).all()
    np.testing.assert_allclose(flow[1:, 0], means[1:], atol=2e-3)
    np.testing.assert_allclose(flow[1:, 1], means[:-1], atol=2e-3)
    assert maps["static"].dtype == bool
    assert not maps["static"][0].any()


def test_stored_size_is_what_frames_are_brought_to(videos: list[VideoSource], tmp_path: Path) -> None:
    run(videos[:2], tmp_path, image_size=(24, 24))
    reader = TeacherCacheReader(tmp_path, KEY)
    assert reader.lookup("a.mp4", [0])["teacher_depth"].shape == (1, 24, 32)  # type: ignore[index]
    assert reader.lookup("b.mp4", [0])["teacher_depth"].shape == (1, 34, 24)  # type: ignore[index]
    run(videos[:1], tmp_path / "large", image_size=(96, 96))
    large = TeacherCacheReader(tmp_path / "large", KEY).lookup("a.mp4", [0])
    assert large is not None
    assert large["teacher_depth"].shape == (1, 96, 128)


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1.0, 7e4, 1e30])
def test_any_unit_keeps_eleven_bits(videos: list[VideoSource], tmp_path: Path, factor: float) -> None:
    precompute_videos(videos[:1], lambda rgb: flat_depth(rgb) * factor, KEY, tmp_path, progress=False)
    maps = TeacherCacheReader(tmp_path, KEY).lookup("a.mp4", [5])
    assert maps is not None
    depth = maps["teacher_depth"][:, None]
    np.testing.assert_allclose(depth / factor, expected_depth(videos[0], [5]), rtol=2**-11)


def test_chunk_scale_is_a_power_of_two_that_fits_float16() -> None:
    for largest in (1e-20, 3.0, 1024.0, 1025.0, 6e8):
        scale = chunk_scale(np.array([largest, 0.0]))
        assert 512 < largest / scale <= 1024
        assert np.log2(scale) == int(np.log2(scale))
    assert chunk_scale(np.zeros(3)) == 1.0


def test_all_zero_labels_are_stored_and_verified(videos: list[VideoSource], tmp_path: Path) -> None:
    precompute_videos(videos[:1], lambda rgb: torch.zeros_like(rgb[:, :1]), KEY, tmp_path, progress=False)
    maps = TeacherCacheReader(tmp_path, KEY).lookup("a.mp4", [5])
    assert maps is not None
    assert (maps["teacher_depth"] == 0).all()
    assert verify_cache(tmp_path, key=KEY).ok


def test_finished_work_is_not_done_again(videos: list[VideoSource], cache: Path) -> None:
    def never(rgb: Tensor) -> Tensor:
        raise AssertionError("the teacher was asked again")

    before = tree(cache)
    summary = precompute_videos(videos, never, KEY, cache, chunk_frames=8, flow=shifted_flow, progress=False)
    assert (summary.finished, summary.already_finished, summary.frames) == (0, 3, 0)
    assert tree(cache) == before


def test_frames_are_read_one_batch_ahead_and_errors_come_in_their_place() -> None:
    begun: list[int] = []

    def read() -> Iterator[int]:
        for number in range(3):
            begun.append(number)
            yield number
        raise VideoReadError("frame 3 is damaged")

    batches = one_ahead(read())
    for number in range(3):
        assert next(batches) == number
        assert len(begun) <= number + 2
    with pytest.raises(VideoReadError):
        next(batches)
    assert list(one_ahead(iter("abc"))) == ["a", "b", "c"]
    assert list(one_ahead(iter(()))) == []


def test_static_masks_found_otherwise_are_not_taken(videos: list[VideoSource], cache: Path, tmp_path: Path) -> None:
    """Those of a cache that does not say how, from before there was a word for it, are."""
    wide, narrow, other = StaticKey("x", 0.5, 2.0), StaticKey("x", 0.5, 1e-6), StaticKey("y", 0.5, 2.0)
    found: dict[tuple[str, str], np.ndarray | None] = {}
    for name, made in (("wide", wide), ("narrow", narrow)):
        run(videos[:1], tmp_path / name, flow=lambda a, b: 0 * shifted_flow(a, b), static=made)
        assert verify_cache(tmp_path / name, key=KEY).ok
    for name, root in (("old", cache), ("wide", tmp_path / "wide"), ("narrow", tmp_path / "narrow")):
        for wanted in (wide, narrow, other):
            maps = TeacherCacheReader(root, KEY, static=wanted).lookup("a.mp4", range(8))
            assert maps is not None
            assert "flow_bwd" in maps
            found[name, f"{wanted.flow} {wanted.max_rgb_change}"] = maps.get("static")
    assert all(found["old", wanted] is not None for wanted in ("x 2.0", "x 1e-06", "y 2.0"))
    assert [wanted for name, wanted in found if name == "wide" and found[name, wanted] is not None] == ["x 2.0"]
    masks = found["wide", "x 2.0"], found["narrow", "x 1e-06"]
    assert masks[0] is not None
    assert masks[1] is not None
    assert masks[0][1:].all()
    assert masks[1].sum() < masks[0].sum()
    with pytest.raises(UserError, match=r"static_masks\.flow is x, wanted y"):
        run(videos[:1], tmp_path / "wide", flow=shifted_flow, static=other)
    before = tree(cache)
    run(videos, cache, flow=shifted_flow, static=wide)
    assert tree(cache) == before


def test_ranks_share_the_work_without_overlap(videos: list[VideoSource], cache: Path, tmp_path: Path) -> None:
    parts = [run(videos, tmp_path, rank=rank, world_size=2, flow=shifted_flow) for rank in range(2)]
    assert [part.finished for part in parts] == [2, 1]
    assert tree(tmp_path) == tree(cache)


def test_broken_video_is_named_and_the_others_go_on(videos: list[VideoSource], tmp_path: Path, caplog: Any) -> None:
    broken = VideoSource("broken.mp4", str(write_empty(tmp_path / "broken.mp4")))
    summary = run([broken, *videos[:1]], tmp_path / "cache")
    assert list(summary.failed) == ["broken.mp4"]
    assert summary.finished == 1
    assert "broken.mp4" in caplog.text


def test_labels_that_are_not_finite_are_refused(videos: list[VideoSource], tmp_path: Path) -> None:
    def broken(rgb: Tensor) -> Tensor:
        return flat_depth(rgb) / (0 if rgb.shape[-1] == 50 else 1)  # b.mp4 only

    summary = precompute_videos(videos, broken, KEY, tmp_path, progress=False)
    assert list(summary.failed) == ["b.mp4"]
    assert "not finite" in summary.failed["b.mp4"]
    assert TeacherCacheReader(tmp_path, KEY).lookup("b.mp4", [0]) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("weights_sha256", "b" * 64), ("input_size", 98), ("dtype", "bfloat16"), ("depth_kind", "metric_depth_m")],
)
def test_cache_of_another_teacher_is_refused_and_named(
    videos: list[VideoSource], cache: Path, caplog: Any, field: str, value: Any
) -> None:
    other = replace(KEY, **{field: value})
    before = tree(cache)
    with pytest.raises(UserError, match=field) as caught:
        precompute_videos(videos, flat_depth, other, cache, chunk_frames=8, flow=shifted_flow, progress=False)
    assert "\n" not in str(caught.value)
    assert tree(cache) == before
    reader = TeacherCacheReader(cache, other)
    assert reader.lookup("a.mp4", [0]) is None
    assert reader.lookup("b.mp4", [0]) is None
    assert sum(field in record.getMessage() for record in caplog.records) == 1  # said once
    problems = verify_cache(cache, key=other).problems
    assert len(problems) == 3
    assert all(field in problem for problem in problems)


def test_the_same_weights_under_another_name_fit(cache: Path) -> None:
    assert TeacherCacheReader(cache, replace(KEY, model_id="/local/copy")).lookup("a.mp4", [0]) is not None


@pytest.mark.parametrize("change", [{"chunk_frames": 4}, {"image_size": (20, 20)}, {"flow": None}])
def test_another_layout_is_refused(videos: list[VideoSource], cache: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"storage\."):
        run(videos, cache, **{"flow": shifted_flow, **change})


def test_changed_video_is_noticed(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v" / "a.mp4", 6)
    (source,) = find_sources(tmp_path / "v")
    run([source], tmp_path / "c")
    os.utime(source.path, ns=(1, 1))  # another time, same content
    assert TeacherCacheReader(tmp_path / "c", KEY).lookup("a.mp4", [0], source.path) is not None
    write_video(Path(source.path), 6, seed=3)
    assert TeacherCacheReader(tmp_path / "c", KEY).lookup("a.mp4", [0], source.path) is None
    assert "has changed" in caplog.text
    with pytest.raises(UserError, match="has changed"):
        run([source], tmp_path / "c")
    report = verify_cache(tmp_path / "c", key=KEY, sources=[source])
    assert "source.sha256" in report.problems[0]


def test_folder_hash_sees_names_and_contents(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "f", 3)
    first = hash_source(folder)
    assert first == hash_source(write_images(tmp_path / "g", 3))
    (folder / "img2.png").rename(folder / "img3.png")
    assert hash_source(folder) != first


def test_verify_reads_every_chunk(videos: list[VideoSource], cache: Path, tmp_path: Path) -> None:
    report = verify_cache(cache, key=KEY, sources=videos)
    assert report.ok
    assert (report.videos, report.frames, report.unfinished) == (3, 36, [])
    folder = tmp_path / "damaged"
    shutil.copytree(cache, folder)
    a, b, c = (folder / group_name(name) for name in ("a.mp4", "b.mp4", "c"))
    chunk = a / "depth" / "c" / "1" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 255
    chunk.write_bytes(data)
    (b / "depth" / "c" / "0" / "0" / "0").unlink()
    (c / "zarr.json").write_text("{}")
    problems = verify_cache(folder, key=KEY).problems
    assert len(problems) == 3
    assert "chunk 1 of depth" in problems[0]
    assert "chunk 0 of depth is missing" in problems[1]
    assert c.name in problems[2]
    with pytest.raises(UserError, match="no teacher cache"):
        verify_cache(tmp_path / "nowhere")


def write(array: str, change: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    """Return what writes other numbers into an array of a group, through Zarr, so that its codecs' checksums fit."""

    def damage(group: Path) -> None:
        stored = zarr.open_group(str(group), mode="r+")[array]
        values = stored[:]
        stored[:] = change(values)

    return damage


def edit(*keys: str, value: Any) -> Callable[[Path], None]:
    """Return what sets an attribute of a group."""

    def damage(group: Path) -> None:
        metadata = json.loads((group / "zarr.json").read_text())
        place = metadata["attributes"]
        for key in keys[:-1]:
            place = place[key]
        assert place[keys[-1]] != value
        place[keys[-1]] = value
        (group / "zarr.json").write_text(json.dumps(metadata))

    return damage


def remove(*parts: str) -> Callable[[Path], None]:
    return lambda group: group.joinpath(*parts).unlink()


def swap(array: str) -> Callable[[Path], None]:
    def damage(group: Path) -> None:
        first, second = (group / array / "c" / str(chunk) / "0" / "0" for chunk in (0, 1))
        data = first.read_bytes(), second.read_bytes()
        first.write_bytes(data[1]), second.write_bytes(data[0])

    return damage


def first(values: np.ndarray, change: Callable[[Any], Any]) -> np.ndarray:
    values[0] = change(values[0])
    return values


DAMAGE: dict[str, Callable[[Path], None]] = {
    "no depth": remove("depth", "c", "0", "0", "0"),
    "no flow": remove("flow_bwd", "c", "0", "0", "0", "0"),
    "no times": remove("timestamps_s", "c", "0"),
    "no digests": remove("chunk_digest", "c", "0", "0"),
    "swapped depth": swap("depth"),
    "scale -1": write("chunk_scale", lambda v: first(v, lambda x: -1)),
    "scale x2": write("chunk_scale", lambda v: first(v, lambda x: 2 * x)),
    "scale nan": write("chunk_scale", lambda v: first(v, lambda x: np.nan)),
    "another depth": write("depth", lambda v: first(v, lambda x: x * np.float16(1.01))),
    "another flow": write("flow_bwd", lambda v: first(v, lambda x: x + np.float16(0.5))),
    "another mask": write("static", lambda v: first(v, lambda x: ~x)),
    "another time": write("timestamps_s", lambda v: first(v, lambda x: x + 1)),
    "another size": edit("storage", "chunk_frames", value=7),
    "another number": edit("source", "num_frames", value=20),
    "another name": edit("source", "video_id", value="b.mp4"),
    "another hash": edit("source", "sha256", value="0" * 64),
    "another key": edit("teacher", "model_id", value="hub/other"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_stored_number_is_under_a_digest(cache: Path, tmp_path: Path, caplog: Any, damage: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(cache, folder)
    DAMAGE[damage](folder / group_name("a.mp4"))
    (problem,) = verify_cache(folder).problems
    assert problem.startswith(group_name("a.mp4"))
    reader = TeacherCacheReader(folder, KEY)
    assert reader.lookup("a.mp4", [3]) is None
    assert len(caplog.records) == 1
    assert reader.lookup("b.mp4", [3]) is not None


def test_a_group_of_another_video_is_refused(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "swapped"
    shutil.copytree(cache, folder)
    names = [group_name(name) for name in ("a.mp4", "b.mp4")]
    shutil.copytree(cache / names[0], folder / names[1], dirs_exist_ok=True)
    assert TeacherCacheReader(folder, KEY).lookup("b.mp4", [3]) is None
    (problem,) = verify_cache(folder).problems
    assert "another video, a.mp4" in problem


def test_flow_that_is_not_finite_is_not_stored(videos: list[VideoSource], tmp_path: Path) -> None:
    summary = run(videos[:1], tmp_path, flow=lambda a, b: shifted_flow(a, b) / 0)
    assert "optical flow of frames 0 to 7 is not finite" in summary.failed["a.mp4"]


def test_a_chunk_is_on_the_disk_before_it_counts(
    videos: list[VideoSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, events, real = tmp_path / group_name("a.mp4"), list[str](), pathlib.Path.replace

    def replace_file(self: Path, target: Any) -> Any:
        events.append(f"put {Path(target).relative_to(group)}")
        return real(self, target)

    def sync_tree(folder: Path) -> None:
        events.append(f"sync {folder.relative_to(group)}")

    monkeypatch.setattr(pathlib.Path, "replace", replace_file)
    monkeypatch.setattr(cache_format, "sync_tree", sync_tree)
    run(videos[:1], tmp_path)
    assert events[-6:] == [
        "put depth/c/2/0/0",
        "put chunk_digest/c/0/0",
        "sync depth/c/2",
        "sync chunk_digest/c",
        "put chunk_scale/c/0",
        "sync chunk_scale/c",
    ]


def test_misfit_falls_back_and_says_so_once(videos: list[VideoSource], tmp_path: Path, caplog: Any) -> None:
    reader = TeacherCacheReader(tmp_path / "nowhere", KEY)
    assert all(reader.lookup("a.mp4", [i]) is None for i in range(3))
    assert len(caplog.records) == 1
    assert "live teacher" in caplog.text
    run(videos[:1], tmp_path / "c")
    reader = TeacherCacheReader(tmp_path / "c", KEY)
    assert reader.lookup("b.mp4", [0]) is None
    assert reader.lookup("a.mp4", [21]) is None
    assert reader.lookup("a.mp4", [20]) is not None


def test_data_set_adds_cached_labels_in_the_clip_s_geometry(
    videos: list[VideoSource], tmp_path: Path, caplog: Any
) -> None:
    transform, cache = ClipTransform(crop=(28, 42), flip=True), tmp_path / "cache"
    run(videos, cache, image_size=(28, 42), flow=shifted_flow)
    reader = TeacherCacheReader(cache, KEY)
    dataset = VideoClipDataset(videos, clip_frames=3, transform=transform, teacher_cache=reader)
    for index in range(6):
        item = dataset[index]
        # The stand-in teacher is pointwise, so that it says the same of a crop: float16 is what is left.
        torch.testing.assert_close(item["teacher_depth"], flat_depth(item["rgb_clean"]), rtol=2**-11, atol=1e-5)
        assert item["flow_bwd"].shape == (3, 2, 28, 42)
        assert (item["flow_bwd"][0] == 0).all()
        assert not item["static"][0].any()
    strided = VideoClipDataset(videos, clip_frames=3, playback=Playback(2), transform=transform, teacher_cache=reader)
    assert {"teacher_depth"} == strided[0].keys() & {"teacher_depth", "flow_bwd", "static"}
    other = TeacherCacheReader(cache, replace(KEY, input_size=98))
    fallback = VideoClipDataset(videos, clip_frames=3, transform=transform, teacher_cache=other)
    assert all("teacher_depth" not in fallback[index] for index in range(3))
    assert len([r for r in caplog.records if "live teacher" in r.getMessage()]) == 1


def crash_at_commit(number: int, videos: list[VideoSource], cache: Path) -> None:
    """Precompute until the `number`-th file is about to be put in place, then die without any clean-up."""
    real, calls = pathlib.Path.replace, 0

    def counting(self: Path, target: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os._exit(9)
        return real(self, target)

    pathlib.Path.replace = counting  # type: ignore[method-assign]
    run(videos, cache, flow=shifted_flow)


@pytest.mark.parametrize("numbers", [(1, 2, 3), (5, 8), (11, 1), (14, 17)])
def test_death_at_any_commit_is_made_good(
    videos: list[VideoSource], cache: Path, tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    for number in numbers:
        assert finish(start(crash_at_commit, number, videos, tmp_path)) == 9
    report = verify_cache(tmp_path, key=KEY) if any(tmp_path.iterdir()) else None
    assert report is None or report.videos < 3
    run(videos, tmp_path, flow=shifted_flow)
    assert tree(tmp_path) == tree(cache)


def slow_depth(rgb: Tensor) -> Tensor:
    time.sleep(0.01)
    return flat_depth(rgb)


def precompute_slowly(videos: list[VideoSource], cache: Path, started: Any) -> None:
    started.set()
    precompute_videos(videos, slow_depth, KEY, cache, chunk_frames=8, batch_frames=3, flow=shifted_flow, progress=False)


def kill_at_random(kills: int, videos: list[VideoSource], cache: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(kills):
        started = make_event()
        process = start(precompute_slowly, videos, cache, started)
        assert started.wait(60)
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        assert finish(process) in (-signal.SIGKILL, 0)


def test_kill_and_run_again_equals_no_kill(videos: list[VideoSource], cache: Path, tmp_path: Path) -> None:
    kill_at_random(2, videos, tmp_path / "c", seed=0)
    run(videos, tmp_path / "c", flow=shifted_flow)
    assert tree(tmp_path / "c") == tree(cache)


@pytest.mark.slow
def test_ten_kills_equal_no_kill(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for number in range(3):
        write_video(tmp_path / "v" / f"{number}.mp4", 120, seed=number)
    videos = find_sources(tmp_path / "v")
    kill_at_random(10, videos, tmp_path / "c", seed=1)
    run(videos, tmp_path / "c", flow=shifted_flow)
    run(videos, tmp_path / "whole", flow=shifted_flow)
    assert tree(tmp_path / "c") == tree(tmp_path / "whole")


@pytest.mark.parametrize("array", ["timestamps_s", "depth", "static"])
def test_an_array_that_is_gone_is_one_clear_line(
    videos: list[VideoSource], cache: Path, tmp_path: Path, array: str
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(cache, folder)
    shutil.rmtree(folder / group_name("a.mp4") / array)
    with pytest.raises(UserError, match=rf"a\.mp4 .*array {array} is missing; delete"):
        run(videos, folder, flow=shifted_flow)


@pytest.mark.parametrize("keys", [("source",), ("storage",), ("teacher",), ("source", "num_frames")])
@pytest.mark.parametrize("value", [None, [], "x"])
def test_attributes_that_make_no_sense_are_one_clear_line(
    videos: list[VideoSource], cache: Path, tmp_path: Path, keys: tuple[str, ...], value: Any
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(cache, folder)
    edit(*keys, value=value)(folder / group_name("a.mp4"))
    with pytest.raises(UserError, match=r"a\.mp4"):
        run(videos, folder, flow=shifted_flow)


def test_another_dtype_is_named_before_the_weights_that_it_changes() -> None:
    other = replace(KEY, dtype="bfloat16", weights_sha256="b" * 64)
    assert KEY.difference(other).startswith("dtype is bfloat16, wanted float32")


def test_of_a_long_field_what_differs_is_named() -> None:
    keys = [
        replace(KEY, resize=f"whole frames, then to patches; field of view {fov}, sky below 0.3") for fov in (60, 71)
    ]
    assert keys[0].difference(keys[1]) == "resize is …view 71, sky …, wanted …view 60, sky …"


def test_unreadable_metadata_is_one_clear_line(videos: list[VideoSource], cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(cache, folder)
    path = folder / group_name("a.mp4") / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["attributes"]["format_version"] = 99
    path.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="format_version is 99"):
        run(videos, folder, flow=shifted_flow)
    assert TeacherCacheReader(folder, KEY).lookup("a.mp4", [0]) is None
    for text in ("{}", ""):
        path.write_text(text)
        with pytest.raises(UserError, match=r"a\.mp4"):
            run(videos, folder, flow=shifted_flow)
        assert TeacherCacheReader(folder, KEY).lookup("a.mp4", [0]) is None
    with pytest.raises(UserError, match="cannot write"):
        run(videos, path)
