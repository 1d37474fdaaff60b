"""A clip's label is the teacher's word on the whole clean frame, whether it is cached or made while training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from depth_models import save_depth_anything_3, save_depth_model
from media import write_images, write_video

from videomamba_depth.data.clip import ClipMeta, collate_clips
from videomamba_depth.data.dataset_video import VideoClipDataset
from videomamba_depth.data.labels.cache_format import TeacherKey
from videomamba_depth.data.labels.precompute import precompute_videos
from videomamba_depth.data.labels.stabilized_cache import StabilizeKey, TargetSettings, precompute_stabilized
from videomamba_depth.data.labels.teacher_cache import TeacherCacheReader
from videomamba_depth.data.perturbations import Perturbations
from videomamba_depth.data.playback import Playback
from videomamba_depth.data.transforms import ClipTransform
from videomamba_depth.data.video.find import find_sources
from videomamba_depth.flow.estimators import build_flow
from videomamba_depth.models.encoder_da import DepthAnythingEncoder, Teacher
from videomamba_depth.models.teachers import open_teacher
from videomamba_depth.training.label_memory import LabelMemory
from videomamba_depth.training.labeller import Labeller
from videomamba_depth.utils.depth_kind import DepthKind

SIDE = 42
KEY = TeacherKey("hub/model", "a" * 64, SIDE, "float32", "affine_invariant_inverse_depth")
TRANSFORMS = {
    "crop": ClipTransform(crop=(SIDE, SIDE)),
    "crop, flip, colors, damage": ClipTransform(
        crop=(SIDE, SIDE), flip=True, color_jitter=0.4, perturb=Perturbations()
    ),
    "short side": ClipTransform(SIDE, flip=True),
}


def labeller(teacher: DepthAnythingEncoder, encoder: DepthAnythingEncoder | None = None) -> Labeller:
    return Labeller(encoder, teacher, None, 1.0, 0.1, frames_per_pass=4, autocast_dtype=None)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos and stills that shrink, that grow, and of several aspects; noise, so that every place is its own."""
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "wide.mp4", 9, width=112, height=60)
    write_video(root / "tall.mp4", 9, width=36, height=50, seed=1)
    write_images(root / "stills", 5)
    return root


def precompute(videos: Path, folder: Path, teacher: Teacher, transform: ClipTransform) -> Path:
    options: dict[str, Any] = {"image_size": transform.crop or transform.short_side, "progress": False}
    precompute_videos(find_sources(videos), teacher.predict_depth, KEY, folder, **options)
    return folder


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("frames", [1, 4])
def test_cached_and_live_labels_are_the_same(
    videos: Path, tmp_path: Path, tiny_encoder: DepthAnythingEncoder, transform: str, frames: int
) -> None:
    """Until now a cached label differed from the live one of the crop by 10 to 33 % of its spread."""
    made = TRANSFORMS[transform]
    cache = precompute(videos, tmp_path / "cache", tiny_encoder, made)
    options: dict[str, Any] = {
        "clip_frames": frames, "playback": Playback((1, 2), 0.5), "transform": made,
    }  # fmt: skip
    live = VideoClipDataset(videos, **options)
    cached = VideoClipDataset(videos, **options, teacher_cache=TeacherCacheReader(cache, KEY))
    label, spreads = labeller(tiny_encoder), []
    for index in range(8):
        one, other = collate_clips([live[index]]), collate_clips([cached[index]])
        assert torch.equal(one["rgb"], other["rgb"])
        assert ("teacher_depth" in other, "whole" in other, "teacher_depth" in one) == (True, False, False)
        depth, stored = (label(batch, torch.device("cpu")).target.depth for batch in (one, other))
        # Stored in float16, which keeps 2^-11; the rest is 1e-5 of the spread (measured 2e-6).
        tolerance = 2.0**-11 * stored.abs().max() + 1e-5 * (stored.max() - stored.min())
        assert (depth - stored).abs().max() <= tolerance
        spreads.append(float(depth.max() - depth.min()))
    assert np.mean(spreads) > 0.1


def test_a_teacher_of_meters_labels_a_student_of_relative_depth(
    videos: Path, tmp_path: Path, tiny_encoder: DepthAnythingEncoder
) -> None:
    """Encoder and teacher are models of other kinds; labels are 1/m, cached or live, and may be invalid."""
    teacher = open_teacher(save_depth_model("glpn", tmp_path / "glpn"))
    cache = precompute(videos, tmp_path / "cache", teacher, TRANSFORMS["crop"])
    options: dict[str, Any] = {"clip_frames": 2, "transform": TRANSFORMS["crop"]}
    live = VideoClipDataset(videos, **options)
    cached = VideoClipDataset(videos, **options, teacher_cache=TeacherCacheReader(cache, KEY))
    label = Labeller(tiny_encoder, teacher, None, 1.0, 0.1, 4, None, depth_kind=DepthKind.RELATIVE)
    one, other = collate_clips([live[0]]), collate_clips([cached[0]])
    made, stored = (label(batch, torch.device("cpu")) for batch in (one, other))
    frames, geometry = one["whole"][0]
    meters = teacher.predict_depth(frames.permute(0, 3, 1, 2) / 255)
    expected = (1 / meters)[..., geometry.top :, geometry.left :][..., :SIDE, :SIDE]
    torch.testing.assert_close(made.target.depth[0], expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(stored.target.depth, made.target.depth, rtol=2.0**-10, atol=0)
    assert made.features is not None
    torch.testing.assert_close(made.features["s1"][0], tiny_encoder.encode_frame(one["rgb"][0])["s1"])
    other["teacher_depth"][0, 0, 0, 3, 5:7] = torch.tensor([0.0, 1e-6])
    holed = label(other, torch.device("cpu")).target
    assert not holed.valid[0, 0, 0, 3, 5:7].any()
    assert holed.valid.sum() == holed.valid.numel() - 2


def test_where_a_teacher_has_no_label_there_is_none(
    videos: Path, tmp_path: Path, tiny_encoder: DepthAnythingEncoder
) -> None:
    """The sky of Depth Anything 3 is invalid in live and in cached labels, and in targets made of either."""
    teacher = open_teacher(save_depth_anything_3("da3mono-large", tmp_path / "da3"))
    options: dict[str, Any] = {"image_size": (SIDE, SIDE), "progress": False}
    cache = tmp_path / "cache"
    refused = precompute_videos(find_sources(videos), teacher.predict_labels, KEY, cache, **options)
    assert all("not finite" in reason for reason in refused.failed.values())
    assert len(refused.failed) == 3
    made = precompute_videos(find_sources(videos), teacher.predict_labels, KEY, cache, **options, masks=teacher.masks)
    assert not made.failed
    flow = build_flow("dis_ultrafast")
    stabilized = StabilizeKey(2, 1.0, "dis_ultrafast", "stabilized")
    precompute_stabilized(find_sources(videos), cache, KEY, stabilized, flow, progress=False)
    cropped: dict[str, Any] = {"clip_frames": 3, "transform": TRANSFORMS["crop"]}
    live = VideoClipDataset(videos, **cropped)
    cached = VideoClipDataset(videos, **cropped, teacher_cache=TeacherCacheReader(cache, KEY, stabilized))
    target = TargetSettings("stabilized", 2, 1.0)
    label = Labeller(tiny_encoder, teacher, flow, 1.0, 0.1, 4, None, target)
    masks = [label(collate_clips([data[0]]), torch.device("cpu")).target.valid for data in (live, cached)]
    assert torch.equal(*masks)
    assert 0.02 < masks[0].float().mean() < 0.98


def test_a_label_made_at_another_size_is_not_taken(
    videos: Path, tmp_path: Path, tiny_encoder: DepthAnythingEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    cache = precompute(videos, tmp_path / "cache", tiny_encoder, TRANSFORMS["crop"])
    options: dict[str, Any] = {"transform": ClipTransform(crop=(56, 56))}
    larger = VideoClipDataset(videos, clip_frames=2, teacher_cache=TeacherCacheReader(cache, KEY), **options)
    items = [larger[index] for index in range(4)]
    assert all("teacher_depth" not in item and "whole" in item for item in items)
    assert "training resizes it to" in caplog.text


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_the_teacher_never_sees_the_damage(
    videos: Path, tiny_encoder: DepthAnythingEncoder, shared: bool, whole: bool
) -> None:
    """Input and clean frames differ; features are of the one, labels of the other."""
    clean = torch.rand(1, 3, 3, SIDE, SIDE)
    rgb = (clean + 0.3 * torch.rand_like(clean)).clamp(0, 1)
    batch: dict[str, Any] = {"rgb": rgb, "rgb_clean": clean, "meta": [ClipMeta("x", (0, 1, 2), (0.0, 0.1, 0.2))]}
    if whole:
        damaged = ClipTransform(crop=(SIDE, SIDE), perturb=Perturbations(1.0, noise=0.3))
        batch = collate_clips([VideoClipDataset(videos, clip_frames=3, transform=damaged)[0]])
        frames, geometry = batch["whole"][0]
        depth = tiny_encoder.predict_depth(frames.permute(0, 3, 1, 2) / 255)
        expected = depth[..., geometry.top :, geometry.left :][..., :SIDE, :SIDE]
        assert not torch.equal(batch["rgb"], batch["rgb_clean"])
    else:
        expected = tiny_encoder.predict_depth(clean[0])
    made = labeller(tiny_encoder, tiny_encoder if shared else None)(batch, torch.device("cpu"))
    torch.testing.assert_close(made.target.depth[0], expected, rtol=0, atol=1e-5)
    if shared:
        assert made.features is not None
        wanted = tiny_encoder.encode_frame(batch["rgb"][0])
        torch.testing.assert_close(made.features["s2"][0], wanted["s2"], rtol=0, atol=1e-5)


def test_a_clip_without_larger_frames_shares_one_pass(
    tiny_encoder: DepthAnythingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synthetic worlds are rendered at the crop's size: their labels are those of the frames themselves."""
    rgb, calls = torch.rand(1, 2, 3, SIDE, SIDE), []
    real = tiny_encoder.encode_frame
    monkeypatch.setattr(tiny_encoder, "encode_frame", lambda x: calls.append(1) or real(x))
    batch = {"rgb": rgb, "rgb_clean": rgb.clone(), "meta": [ClipMeta("x", (0, 1), (0.0, 0.1))]}
    made = labeller(tiny_encoder, tiny_encoder)(batch, torch.device("cpu"))
    assert len(calls) == 1
    assert torch.equal(made.target.depth[0], tiny_encoder.decode(real(rgb[0]), (SIDE, SIDE)))


def test_on_a_cpu_a_frame_is_labeled_once_and_alone(
    videos: Path, tiny_encoder: DepthAnythingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips that share frames, forwards and backwards, have the labels that each has by itself."""
    asked: list[int] = []
    real = tiny_encoder.decode_labels
    monkeypatch.setattr(tiny_encoder, "decode_labels", lambda f, size: asked.append(len(f["s1"])) or real(f, size))
    options: dict[str, Any] = {"transform": TRANSFORMS["crop, flip, colors, damage"], "clip_frames": 4}
    dataset = VideoClipDataset(videos, playback=Playback(1, 0.5), **options)
    batches = [collate_clips([dataset[i]]) for i in range(6)]
    frames = {(batch["meta"][0].video_id, index) for batch in batches for index in batch["meta"][0].frame_indices}
    cpu = torch.device("cpu")
    alone = [labeller(tiny_encoder)(batch, cpu).target.depth for batch in batches]
    assert len(asked) == 24
    for gigabytes, passes in ((1.0, len(frames)), (1e-9, 24)):
        asked.clear()
        keeping = Labeller(None, tiny_encoder, None, 1.0, 0.1, 4, None, memory_bytes=int(gigabytes * 1e9))
        for batch, wanted in zip(batches, alone, strict=True):
            assert torch.equal(keeping(batch, cpu).target.depth, wanted)
        assert asked == [1] * passes
    assert len(frames) < 24


def test_kept_labels_stay_below_their_bound() -> None:
    memory, made = LabelMemory(100), []

    def get(key: str) -> torch.Tensor:
        return memory.get(key, lambda: made.append(key) or torch.zeros(10, dtype=torch.float32))

    for key in "abacabb":
        get(key)
    assert made == ["a", "b", "c", "b"]
