"""Items are functions of (seed, index); broken files cost a warning, never the run; batches resume anywhere."""

from __future__ import annotations

import itertools
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media import frame_number, write_empty, write_images, write_text, write_truncated, write_video
from processes import SERVER

from videomamba_depth.data.clip import ClipMeta, WholeFrames, collate_clips
from videomamba_depth.data.dataset_synthetic import SyntheticClipDataset
from videomamba_depth.data.dataset_video import VideoClipDataset
from videomamba_depth.data.perturbations import Perturbations
from videomamba_depth.data.playback import Playback
from videomamba_depth.data.sampling import ClipBatchSampler, build_loader, iterate_loader
from videomamba_depth.data.synthetic import WorldConfig, render_video
from videomamba_depth.data.transforms import ClipTransform
from videomamba_depth.data.video.find import VideoSource, find_sources
from videomamba_depth.utils.errors import UserError

RANDOM = ClipTransform(crop=(28, 36), flip=True, color_jitter=0.2, perturb=Perturbations())
PLAIN = ClipTransform(crop=(48, 64))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sound videos of 20, 12 and 9 frames: at the top, in a subfolder, and as images."""
    root = tmp_path_factory.mktemp("root")
    (root / "sub").mkdir()
    write_video(root / "a.mp4", 20)
    write_video(root / "sub" / "b.mkv", 12, seed=1)
    write_images(root / "sub" / "images", 9)
    return root


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if one.keys() != other.keys() or one["meta"] != other["meta"]:
        return False
    views = [item.get("whole", []) for item in (one, other)]
    views = [[view] if isinstance(view, WholeFrames) else view for view in views]
    if not all(torch.equal(a.rgb, b.rgb) and a.geometry == b.geometry for a, b in zip(*views, strict=True)):
        return False
    return all(torch.equal(one[name], other[name]) for name in one.keys() - {"meta", "whole"})


def numbers(item: dict[str, Any]) -> tuple[int, ...]:
    return tuple(frame_number((f.permute(1, 2, 0).numpy() * 255).astype(np.uint8)) for f in item["rgb"])


def test_sources_are_found_with_stable_ids(root: Path) -> None:
    assert [s.video_id for s in find_sources(root)] == ["a.mp4", "sub/b.mkv", "sub/images"]
    assert [s.video_id for s in find_sources(root / "a.mp4")] == ["a.mp4"]
    assert [s.video_id for s in find_sources(root / "sub" / "images")] == ["images"]


def test_hidden_files_depth_folders_and_link_loops_are_left_out(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 2)
    (tmp_path / "._a.mp4").write_bytes(b"resource fork")
    write_images(tmp_path / "scene" / "depth", 2)
    write_images(tmp_path / "scene" / "rgb", 2)
    (tmp_path / "scene" / "loop").symlink_to(tmp_path)
    assert [s.video_id for s in find_sources(tmp_path)] == ["a.mp4", "scene/rgb"]


@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
def test_clip_holds_the_frames_that_its_meta_names(root: Path, stride: Any) -> None:
    dataset = VideoClipDataset(root, clip_frames=3, playback=Playback(stride), transform=PLAIN)
    strides, videos = set(), set()
    for index in range(30):
        item = dataset[index]
        meta = item["meta"]
        assert numbers(item) == meta.frame_indices
        steps = set(np.diff(meta.frame_indices))
        assert len(steps) == 1
        strides |= steps
        videos.add(meta.video_id)
        fps = 30 if meta.video_id == "sub/images" else 10
        np.testing.assert_allclose(meta.timestamps_s, np.array(meta.frame_indices) / fps, atol=1e-9)
    assert strides == ({stride} if isinstance(stride, int) else set(stride))
    assert len(videos) == 3


def test_item_is_a_function_of_seed_and_index(root: Path) -> None:
    one = VideoClipDataset(root, clip_frames=4, seed=5, transform=RANDOM)
    two = VideoClipDataset(root, clip_frames=4, seed=5, transform=RANDOM)
    other = VideoClipDataset(root, clip_frames=4, seed=6, transform=RANDOM)
    forward = [one[i] for i in range(6)]
    backward = [two[i] for i in reversed(range(6))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not any(same(forward[i], other[i]) for i in range(6))
    assert same(pickle.loads(pickle.dumps(one))[3], forward[3])
    assert one[10**9]["rgb"].shape == (4, 3, 28, 36)
    with pytest.raises(IndexError):
        one[-1]


def test_broken_and_short_videos_are_named_once_and_skipped(root: Path, tmp_path: Path, caplog: Any) -> None:
    write_video(tmp_path / "good.mp4", 12)
    write_video(tmp_path / "short.mp4", 3)
    write_empty(tmp_path / "zero.mp4")
    write_text(tmp_path / "text.mp4")
    dataset = VideoClipDataset(tmp_path, clip_frames=8, transform=PLAIN)
    assert set(dataset.skipped) == {"short.mp4", "zero.mp4", "text.mp4"}
    assert len([record for record in caplog.records if not record.name.startswith("libav")]) == 1
    assert "3 of 4" in caplog.text
    assert all(name in caplog.text for name in dataset.skipped)
    assert {dataset[i]["meta"].video_id for i in range(5)} == {"good.mp4"}


def test_video_that_breaks_while_reading_is_replaced_and_named_once(tmp_path: Path, caplog: Any) -> None:
    write_video(tmp_path / "good.mp4", 24)
    write_truncated(tmp_path / "cut.mp4")  # states 24 frames, holds fewer
    caplog.set_level(logging.WARNING)
    make = lambda: VideoClipDataset(tmp_path, clip_frames=16, transform=PLAIN)  # noqa: E731
    dataset = make()
    assert dataset.skipped == {}
    items = [dataset[i] for i in range(8)]
    assert {item["meta"].video_id for item in items} == {"good.mp4"}
    assert sum("cut.mp4 cannot be used" in r.getMessage() for r in caplog.records) == 1
    assert all(same(make()[i], items[i]) for i in (5, 0))  # the replacement does not depend on what was read before


def test_nothing_usable_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        VideoClipDataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no videos or image folders"):
        VideoClipDataset(tmp_path)
    write_text(tmp_path / "text.mp4")
    with pytest.raises(UserError, match=r"none of the 1 videos.*text\.mp4"):
        VideoClipDataset(tmp_path)
    source = VideoSource("same", str(tmp_path / "text.mp4"))
    with pytest.raises(UserError, match="two videos are called same"):
        VideoClipDataset([source, source])


def test_a_disk_that_vanishes_ends_in_one_line_not_in_a_loop(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 4)
    dataset = VideoClipDataset(tmp_path, clip_frames=2)
    path.unlink()
    with pytest.raises(UserError, match="in a row"):
        dataset[0]


def test_batches_do_not_depend_on_workers_or_on_where_they_resume(root: Path) -> None:
    dataset = VideoClipDataset(root, clip_frames=3, transform=RANDOM)

    def batches(start: int, workers: int, context: Any = None) -> list[dict[str, Any]]:
        sampler = ClipBatchSampler(2, clip_frames=3, p_single_frame=0.4, start_batch=start)
        loader = build_loader(dataset, sampler, num_workers=workers)
        loader.multiprocessing_context = context
        return list(itertools.islice(iterate_loader(loader), 6 - start))

    whole = batches(0, 0)
    assert {batch["rgb"].shape[1] for batch in whole} == {1, 3}
    for start, workers, context in ((2, 0, None), (0, 2, SERVER)):  # it has imported what a worker needs
        again = batches(start, workers, context)
        assert len(again) == 6 - start
        assert all(same(a, b) for a, b in zip(whole[start:], again, strict=True))


@pytest.mark.slow
def test_spawned_workers_give_the_same_batches(root: Path) -> None:
    dataset = VideoClipDataset(root, clip_frames=3, transform=RANDOM)
    sampler = ClipBatchSampler(2, clip_frames=3)
    spawned = build_loader(dataset, sampler, num_workers=2)
    spawned.multiprocessing_context = "spawn"
    pairs = itertools.islice(zip(build_loader(dataset, sampler), iterate_loader(spawned), strict=True), 3)
    assert all(same(a, b) for a, b in pairs)


def test_ranks_agree_on_the_kind_of_batch_and_share_no_item() -> None:
    ranks = [
        itertools.islice(ClipBatchSampler(3, clip_frames=(4, 8), rank=r, world_size=2, seed=9, p_single_frame=0.3), 50)
        for r in range(2)
    ]
    seen: set[int] = set()
    lengths = []
    for one, two in zip(*ranks, strict=True):
        assert {frames for _, frames in one} == {frames for _, frames in two}
        assert len(one) == len(two) == 3
        indices = {index for index, _ in one + two}
        assert len(indices) == 2 * len(one)
        assert not seen & indices
        seen |= indices
        lengths.append(one[0][1])
    assert set(lengths) == {1, 4, 8}
    assert 5 <= lengths.count(1) <= 25
    with pytest.raises(ValueError, match="rank"):
        ClipBatchSampler(3, clip_frames=4, rank=2, world_size=2)


def test_collate_stacks_and_leaves_out_what_only_some_have() -> None:
    meta = ClipMeta("v", (0,), (0.0,))
    one = {"rgb": torch.zeros(1, 3, 4, 4), "teacher_depth": torch.ones(1, 1, 4, 4), "meta": meta}
    batch = collate_clips([one, one])
    assert batch["teacher_depth"].shape == (2, 1, 1, 4, 4)
    assert batch["meta"] == [meta, meta]
    assert "teacher_depth" not in collate_clips([one, {"rgb": one["rgb"], "meta": meta}])
    with pytest.raises(ValueError, match="image_size"):
        collate_clips([one, {**one, "rgb": torch.zeros(1, 3, 5, 4)}])


def test_synthetic_items_carry_exact_ground_truth() -> None:
    world = WorldConfig(height=28, width=42, camera_motion="static", exposure_flicker=0, noise=0, jpeg_quality=None)
    dataset = SyntheticClipDataset(world, clip_frames=3, seed=2)
    item = dataset[4]
    assert same(item, SyntheticClipDataset(world, clip_frames=3, seed=2)[4])
    assert not same(item, dataset[5])
    video = render_video(int(item["meta"].video_id.split("/")[-1]), WorldConfig(**{**vars(world), "num_frames": 3}))
    np.testing.assert_allclose(item["inv_depth"][:, 0].numpy(), 1 / video.depth_m, rtol=1e-6)
    np.testing.assert_array_equal(item["flow_bwd"].permute(0, 2, 3, 1).numpy(), video.flow_bwd)
    assert item["valid"].all()
    assert not item["static"][0].any()
    assert item["static"][1:].float().mean() > 0.5
    assert dataset[(4, 1)]["rgb"].shape == (1, 3, 28, 42)


def test_kept_worlds_are_cut_from_the_same_videos() -> None:
    world = WorldConfig(28, 42)
    transform = ClipTransform(random_crop=False)
    options = {"clip_frames": 3, "seed": 2, "num_worlds": 2, "transform": transform}
    dataset = SyntheticClipDataset(world, **options)  # type: ignore[arg-type]
    items = [dataset[index] for index in range(12)]
    assert len({item["meta"].video_id for item in items}) == 2
    assert len({item["meta"].frame_indices[0] for item in items}) > 2
    new = SyntheticClipDataset(world, **options)  # type: ignore[arg-type]
    assert all(torch.equal(new[index]["rgb"], items[index]["rgb"]) for index in (7, 1))
