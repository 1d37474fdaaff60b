"""Stabilized targets in the teacher cache: what stabilizing live gives, the same bytes however often it was stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media import flat_depth, write_video
from torch import Tensor

pytest.importorskip("zarr", reason="it needs Python 3.11")
import zarr

from videomamba_depth.data.clip import collate_clips
from videomamba_depth.data.dataset_video import VideoClipDataset
from videomamba_depth.data.labels import cache_format, stabilized_cache
from videomamba_depth.data.labels.cache_format import StaticKey, group_name
from videomamba_depth.data.labels.cache_verify import verify_cache
from videomamba_depth.data.labels.precompute import precompute_videos
from videomamba_depth.data.labels.stabilize import stabilize_clip
from videomamba_depth.data.labels.stabilized_cache import (
    StabilizeKey,
    TargetSettings,
    block_range,
    precompute_stabilized,
)
from videomamba_depth.data.labels.teacher_cache import TeacherCacheReader, TeacherKey
from videomamba_depth.data.transforms import ClipTransform
from videomamba_depth.data.video.find import VideoSource, find_sources
from videomamba_depth.data.video.reader import read_frames
from videomamba_depth.flow.clip_motion import static_mask
from videomamba_depth.flow.estimators import DISFlow
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.training.labeller import Labeller
from videomamba_depth.utils.errors import UserError

KEY = TeacherKey("hub/model", "a" * 64, 70, "float32", "affine_invariant_inverse_depth")
TARGET_KEY = StabilizeKey(2, 1.5, "dis")
STATIC = StaticKey("dis", 0.7, 0.09)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[VideoSource]:
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "a.mp4", 21)
    write_video(root / "b.mp4", 6, seed=1)
    return find_sources(root)


def label(videos: list[VideoSource], cache: Path) -> Path:
    calls = [0]

    def flickering(rgb: Tensor) -> Tensor:
        calls[0] += 1
        return flat_depth(rgb) * (1 + 0.05 * (-1) ** calls[0])

    precompute_videos(videos, flickering, KEY, cache, chunk_frames=4, batch_frames=1, progress=False)
    return cache


def stabilize(
    videos: list[VideoSource], cache: Path, target_key: StabilizeKey = TARGET_KEY, static: StaticKey | None = None
) -> int:
    return precompute_stabilized(videos, cache, KEY, target_key, DISFlow("fast"), static=static, progress=False)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def cache(videos: list[VideoSource], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = label(videos, tmp_path_factory.mktemp("cache") / "cache")
    assert stabilize(videos, folder) == 27
    return folder


def test_blocks_cover_every_frame_once_with_margins() -> None:
    blocks = [block_range(block, 16, 150) for block in range(3)]
    assert [frame for inner, _ in blocks for frame in inner] == list(range(150))
    assert [outer for _, outer in blocks] == [range(88), range(40, 150), range(104, 150)]


def test_a_short_video_is_stabilized_as_one_clip(videos: list[VideoSource], cache: Path) -> None:
    maps = TeacherCacheReader(cache, KEY, TARGET_KEY).lookup("b.mp4", range(6), videos[1].path)
    assert maps is not None
    clip = torch.from_numpy(read_frames(videos[1].path, range(6))).permute(0, 3, 1, 2).float() / 255
    raw = torch.from_numpy(maps["teacher_depth"])[:, None]
    live = stabilize_clip(raw, clip, DISFlow("fast"), radius=2, sigma=1.5)[:, 0].numpy()
    np.testing.assert_allclose(maps["stabilized_depth"], live, rtol=2**-10)
    assert not np.allclose(live, maps["teacher_depth"], rtol=1e-3)


def test_raw_targets_stay_selectable_and_other_parameters_are_refused(cache: Path) -> None:
    raw = TeacherCacheReader(cache, KEY).lookup("a.mp4", [3, 4])
    assert raw is not None
    assert "stabilized_depth" not in raw
    with pytest.raises(UserError, match=r"radius is 2, wanted 8; set loss.target, loss.target_radius"):
        TeacherCacheReader(cache, KEY, StabilizeKey(8, 1.5, "dis")).lookup("a.mp4", [3, 4])


def test_another_run_with_other_parameters_is_refused(videos: list[VideoSource], cache: Path) -> None:
    before = tree(cache)
    assert stabilize(videos, cache) == 0  # all there
    with pytest.raises(UserError, match=r"sigma is 1.5, wanted 9.0"):
        stabilize(videos, cache, StabilizeKey(2, 9.0, "dis"))
    assert tree(cache) == before
    assert verify_cache(cache, key=KEY).ok


def test_geometric_targets_take_the_same_place(
    videos: list[VideoSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubled(depth: Tensor, clip: Tensor, flow: object, *, radius: int, sigma: float, depth_kind: object) -> Tensor:
        return 2 * depth + radius

    monkeypatch.setitem(stabilized_cache.OFFLINE_TARGETS, "geometry", doubled)
    geometry = StabilizeKey(2, 1.5, "dis", "geometry")
    folder = label(videos, tmp_path / "cache")
    assert stabilize(videos, folder, geometry) == 27
    assert stabilize(videos, folder, geometry) == 0  # all there
    maps = TeacherCacheReader(folder, KEY, geometry).lookup("b.mp4", range(6), videos[1].path)
    assert maps is not None
    np.testing.assert_allclose(maps["stabilized_depth"], 2 * maps["teacher_depth"] + 2, rtol=2**-9)
    with pytest.raises(UserError, match="target is geometry, wanted stabilized"):
        TeacherCacheReader(folder, KEY, TARGET_KEY).lookup("b.mp4", range(6), videos[1].path)


def test_a_cache_from_before_there_was_another_target_holds_stabilized_ones() -> None:
    stored = {"radius": 2, "sigma": 1.5, "flow": "dis"}
    assert TARGET_KEY.difference(stored) == ""
    assert StabilizeKey(2, 1.5, "dis", "geometry").difference(stored) == "target is stabilized, wanted geometry"
    assert TARGET_KEY.difference({**stored, "target": "stabilised"}) == ""  # as version 0.1.0 spelled it


def set_radius(group: Path) -> None:
    metadata = json.loads((group / "zarr.json").read_text())
    metadata["attributes"]["stabilised"]["radius"] = 3
    (group / "zarr.json").write_text(json.dumps(metadata))


def double_scale(group: Path) -> None:
    scales = zarr.open_group(str(group), mode="r+")["stabilised_scale"]
    scales[0] = 2 * scales[0]


@pytest.mark.parametrize("damage", [set_radius, double_scale, lambda g: (g / "stabilised/c/0/0/0").unlink()])
def test_stabilized_numbers_are_under_a_digest_too(cache: Path, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(cache, folder)
    damage(folder / group_name("a.mp4"))
    (problem,) = verify_cache(folder).problems
    assert "chunk 0 of stabilised is missing or damaged" in problem
    target_key = StabilizeKey(3, 1.5, "dis") if damage is set_radius else TARGET_KEY
    assert TeacherCacheReader(folder, KEY, target_key).lookup("a.mp4", [3]) is None


def test_damaged_labels_are_not_stabilized(videos: list[VideoSource], tmp_path: Path) -> None:
    folder = label(videos, tmp_path / "c")
    (folder / group_name("a.mp4") / "depth/c/1/0/0").unlink()
    with pytest.raises(UserError, match=r"the labels of a\.mp4 .* are damaged \(chunk 1 of depth is missing"):
        stabilize(videos, folder)


def test_a_stop_at_any_frame_is_made_good(
    videos: list[VideoSource], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = label(videos, tmp_path / "c"), cache_format.scaled
    for number in (1, 3):
        calls = [0]

        def dying(depth: np.ndarray, calls: list[int] = calls, number: int = number) -> tuple[float, np.ndarray]:
            calls[0] += 1
            if calls[0] == number:
                raise InterruptedError
            return real(depth)

        monkeypatch.setattr(cache_format, "scaled", dying)
        with pytest.raises(InterruptedError):
            stabilize(videos, folder)
        assert verify_cache(folder, key=KEY).unfinished
        maps = TeacherCacheReader(folder, KEY, TARGET_KEY).lookup("a.mp4", [20])
        assert maps is not None
        assert "stabilized_depth" not in maps
    monkeypatch.setattr(cache_format, "scaled", real)
    stabilize(videos, folder)
    assert tree(folder) == tree(cache)


def test_blocks_agree_with_the_whole_video_but_for_scale_and_shift(
    videos: list[VideoSource], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """21 frames as blocks of 4 with margins of 8, and as one block."""
    monkeypatch.setattr(stabilized_cache, "BLOCK_CHUNKS", 1)
    monkeypatch.setattr(stabilized_cache, "MARGIN_FRAMES", 8)
    folder = label(videos, tmp_path / "c")
    stabilize(videos, folder)
    whole, blocks = (TeacherCacheReader(c, KEY, TARGET_KEY).lookup("a.mp4", range(21)) for c in (cache, folder))
    assert whole is not None
    assert blocks is not None
    difference = np.abs(blocks["stabilized_depth"] - whole["stabilized_depth"]).mean()
    removed = np.abs(whole["stabilized_depth"] - whole["teacher_depth"]).mean()
    assert difference < 0.2 * removed


def test_clips_carry_the_target(videos: list[VideoSource], cache: Path) -> None:
    options: dict[str, Any] = {"transform": ClipTransform(crop=(48, 64)), "clip_frames": 4}
    dataset = VideoClipDataset(videos, teacher_cache=TeacherCacheReader(cache, KEY, TARGET_KEY), **options)
    item = dataset[0]
    assert item["stabilized_depth"].shape == item["teacher_depth"].shape


def test_with_masks_beside_the_targets_training_needs_no_flow(
    videos: list[VideoSource],
    cache: Path,
    tmp_path: Path,
    tiny_encoder: DepthAnythingEncoder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = tree(cache)
    assert stabilize(videos, cache, static=STATIC) == 0  # it was finished without
    assert tree(cache) == before
    folder = label(videos, tmp_path / "c")
    stabilize(videos, folder, static=STATIC)
    assert verify_cache(folder, key=KEY).ok
    targets, masks = {}, {}
    for name, root in (("without", cache), ("with", folder)):
        maps = TeacherCacheReader(root, KEY, TARGET_KEY, STATIC).lookup("b.mp4", range(6), videos[1].path)
        assert maps is not None
        targets[name], masks[name] = maps["stabilized_depth"], maps.get("static")
    assert np.array_equal(targets["without"], targets["with"])
    clip = torch.from_numpy(read_frames(videos[1].path, range(6))).permute(0, 3, 1, 2).float() / 255
    wanted = static_mask(clip, DISFlow("fast"), 0.7, 0.09)[:, 0].numpy()
    assert masks["without"] is None
    assert masks["with"] is not None
    assert np.array_equal(masks["with"], wanted)
    assert 0 < wanted[1:].mean() < 1

    def no_flow(source: Tensor, target: Tensor) -> Tensor:
        raise AssertionError

    options: dict[str, Any] = {"transform": ClipTransform(crop=(48, 64), flip=True), "clip_frames": 4}
    dataset = VideoClipDataset(videos, teacher_cache=TeacherCacheReader(folder, KEY, TARGET_KEY, STATIC), **options)
    settings = TargetSettings("stabilized", 2, 1.5)
    labeller = Labeller(None, tiny_encoder, no_flow, 0.7, 0.09, 8, None, settings)
    batch = collate_clips([dataset[0], dataset[1]])
    made = labeller(batch, torch.device("cpu")).target
    assert torch.equal(made.static, batch["static"])
    assert not made.static[:, 0].any()

    other = StaticKey("dis", 0.7, 0.1)
    maps = TeacherCacheReader(folder, KEY, TARGET_KEY, other).lookup("b.mp4", range(6))
    assert maps is not None
    assert maps.keys() == {"teacher_depth", "stabilized_depth"}
    assert "(static_masks.max_rgb_change is 0.09, wanted 0.1, for b.mp4): masks are estimated" in caplog.text
    with pytest.raises(UserError, match=r"static_masks\.max_rgb_change is 0\.09, wanted 0\.1"):
        stabilize(videos, folder, static=other)
    (folder / group_name("a.mp4") / "target_static/c/0/0/0").unlink()
    assert "missing or damaged" in verify_cache(folder).problems[0]
