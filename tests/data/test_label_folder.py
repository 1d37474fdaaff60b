"""Labels of another program teach what they say, in whatever form and kind they are; what does not fit is named."""

from __future__ import annotations

import json
import os
import runpy
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from media import write_images, write_video
from safetensors.torch import load_file, save_file

pytest.importorskip("zarr", reason="it needs Python 3.11")
import zarr

from videomamba_depth.configuration import build
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.data.dataset_video import VideoClipDataset
from videomamba_depth.data.labels.label_checks import Sample, check_labels, found_shift, sign_agreement
from videomamba_depth.data.labels.label_folder import LabelFolder
from videomamba_depth.data.labels.precompute import precompute_videos
from videomamba_depth.data.labels.stabilized_cache import StabilizeKey, precompute_stabilized
from videomamba_depth.data.labels.teacher_cache import TeacherCacheReader
from videomamba_depth.data.transforms import ClipTransform
from videomamba_depth.data.video.find import VideoSource, find_sources
from videomamba_depth.data.video.reader import probe_video
from videomamba_depth.flow.clip_motion import ClipMotion
from videomamba_depth.flow.estimators import build_flow
from videomamba_depth.models.checkpoint import student_weights
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.training.distributed import Ranks
from videomamba_depth.training.run_folder import RunFolder
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError

FRAMES, HEIGHT, WIDTH = 8, 28, 42


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for seed, name in enumerate(("walk", "drive")):
        write_images(root / name, FRAMES, width=WIDTH, height=HEIGHT, seed=seed)
    return root


def exact_inverse_depth(seed: int) -> np.ndarray:
    """Powers of two in blocks of pixels: every format and every reciprocal holds them exactly."""
    powers = np.random.default_rng(seed).integers(-2, 3, (FRAMES, HEIGHT // 7, WIDTH // 7))
    return np.kron(2.0**powers, np.ones((1, 7, 7))).astype(np.float32)


def write_labels(root: Path, form: str, kind: DepthKind) -> Path:
    """Write the labels of both videos in a form, as a kind."""
    for seed, name in enumerate(("walk", "drive")):
        inverse = exact_inverse_depth(seed)
        depth = inverse if kind.is_inverse else 1 / inverse
        root.mkdir(exist_ok=True)
        if form == "npz":
            np.savez_compressed(root / f"{name}.npz", depths=depth)
        elif form == "npy":
            np.save(root / f"{name}.npy", depth.astype(np.float16))
        elif form == "png":
            (root / f"{name}_depth").mkdir(exist_ok=True)
            for t, frame in enumerate(depth):
                cv2.imwrite(str(root / f"{name}_depth" / f"{t:06d}.png"), (frame * 4).astype(np.uint16))
        else:
            zarr.create_group(root / f"{name}.zarr").create_array("depth", data=depth)
    return root


class Trained(NamedTuple):
    """What two steps lead to."""

    weights: dict[str, torch.Tensor]
    losses: list[float]


def trained(folder: Path, teacher: str, videos: Path, labels: Path, *overrides: str) -> Trained:
    """Train a student for two steps."""
    given = [
        f"teacher.name={teacher}", "debug=smoke", "data=video_folder", f"data.root={videos}", f"data.labels={labels}",
        "data.short_side=28", "data.crop=[28,42]", "data.p_single_frame=0", "trainer.steps=2", "trainer.logger=none",
        "trainer.picture_every=0", "trainer.device=cpu", "model.scan_backend=reference", "loss=consistent",
        "data.labels_check=false", *overrides,
    ]  # fmt: skip
    config = load_config("train", TrainConfig, given)
    trainer = build.build_trainer(config, Ranks(0, 1, torch.device("cpu")), RunFolder(folder), asdict(config))
    trainer.fit()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return Trained(student_weights(trainer.student), [json.loads(line)["loss/total"] for line in lines])


def test_four_formats_and_four_kinds_give_the_same_training(
    tmp_path: Path, tiny_teacher_folder: str, videos: Path
) -> None:
    """Bit for bit, since every number is exact; a scale and an offset of inverse depth change rounding alone."""
    forms = {
        "npz": (DepthKind.RELATIVE, ()),
        "npy": (DepthKind.SCALED_INVERSE, ()),
        "png": (DepthKind.METRIC, ("data.labels_scale=0.25",)),
        "zarr": (DepthKind.SCALED_DEPTH, ()),
    }
    students = {}
    for form, (kind, more) in forms.items():
        labels = write_labels(tmp_path / form, form, kind)
        given = (f"data.labels_kind={kind.value}", *more)
        students[form] = trained(tmp_path / f"run-{form}", tiny_teacher_folder, videos, labels, *given)
    first = students["npz"]
    for form in ("npy", "png", "zarr"):
        assert all(torch.equal(students[form].weights[name], value) for name, value in first.weights.items()), form
    (other := tmp_path / "other").mkdir()
    for seed, name in enumerate(("walk", "drive")):
        np.savez(other / f"{name}.npz", depth=3 * exact_inverse_depth(seed) + 5, depth_kind=DepthKind.RELATIVE.value)
    assert trained(tmp_path / "run-other", tiny_teacher_folder, videos, other).losses == pytest.approx(
        first.losses,
        rel=1.2e-4,  # measured: 4e-5, after a step of Adam
    )
    wrong_kind = (f"data.labels_kind={DepthKind.METRIC.value}",)
    wrong = trained(tmp_path / "run-wrong", tiny_teacher_folder, videos, tmp_path / "npz", *wrong_kind)
    assert wrong.losses != pytest.approx(first.losses, rel=1e-2)
    # A run goes on with the labels that it was started with alone.
    given = (tiny_teacher_folder, videos, tmp_path / "copy", "data.labels_kind=scale_invariant_inverse_depth")
    shutil.copytree(tmp_path / "npy", tmp_path / "copy", copy_function=shutil.copy)  # times of change are other ones
    assert trained(tmp_path / "run-npy", *given).losses == students["npy"].losses
    np.save(tmp_path / "copy" / "walk.npy", np.load(tmp_path / "copy" / "walk.npy")[::-1])  # of the same header
    with pytest.raises(UserError, match=r"was started with other labels, labels of npy: .*start another run"):
        trained(tmp_path / "run-npy", *given)


def test_a_run_goes_on_with_the_teacher_it_was_started_with_alone(
    tmp_path: Path, tiny_teacher_folder: str, videos: Path
) -> None:
    teacher, more = (
        tmp_path / "teacher",
        ("data.labels=null", f"model.encoder={tiny_teacher_folder}", "trainer.steps=1"),
    )
    shutil.copytree(tiny_teacher_folder, teacher)
    trained(tmp_path / "run", str(teacher), videos, tmp_path, *more)
    weights = load_file(teacher / "model.safetensors")
    name = next(name for name in weights if name.startswith("head"))
    save_file(weights | {name: weights[name] + 1}, teacher / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"was started with other labels, .*teacher: weights_sha256 is .*another run"):
        trained(tmp_path / "run", str(teacher), videos, tmp_path, *more)


def test_the_digest_of_large_files_takes_in_blocks(tmp_path: Path) -> None:
    labels = folder_of(tmp_path)
    path, depth = tmp_path / "long.npy", np.zeros((8, 500, 700), np.float32)
    found = set()
    for t in range(8):
        np.save(path, depth)
        depth[t] = 1
        found.add(labels.digest())
    assert len(found) == 8
    (tmp_path / ".DS_Store").touch()
    os.utime(path, (0, 0))
    assert labels.digest() in found


def folder_of(root: Path, **arrays: np.ndarray) -> LabelFolder:
    root.mkdir(exist_ok=True)
    for name, depth in arrays.items():
        np.savez(root / f"{name}.npz", depth=depth)
    return LabelFolder(root, DepthKind.RELATIVE, DepthKind.RELATIVE)


def test_videos_without_labels_that_fit_are_refused_by_name(tmp_path: Path, videos: Path) -> None:
    whole = exact_inverse_depth(0)
    for drive, reason in (
        ({}, "has no depth of 'drive'"),
        ({"drive": whole[1:]}, "7 frames"),
        ({"drive": np.concatenate([whole, whole[:1]])}, "9 frames"),
    ):
        labels = folder_of(tmp_path / reason.replace("'", "").replace(" ", "-"), walk=whole, **drive)
        with pytest.raises(UserError, match=f"1 of 2 videos .*drive.*{reason}") as error:
            VideoClipDataset(videos, clip_frames=4, labels=labels)
        assert "\n" not in str(error.value)
    np.savez(tmp_path / "walk.npz", depth=whole)
    twins = [(VideoSource(f"{folder}/walk", str(videos / "walk")), FRAMES) for folder in "ab"]
    with pytest.raises(UserError, match=r"2 of 2 videos .*the depth of 'a/walk' and of 'b/walk'"):
        LabelFolder(tmp_path, DepthKind.RELATIVE, DepthKind.RELATIVE).check(twins)
    for number, (depth, more, reason) in enumerate(
        (
            (whole, {"frame_index": np.arange(1, FRAMES + 1)}, "no depth of 1 of 8 frames, by number: 0"),
            (whole.transpose(0, 2, 1), {}, "42×28 px, frames are 28×42"),
        )
    ):  # as many frames as the video has
        labels = folder_of(tmp_path / str(number), walk=whole)
        np.savez(labels.root / "drive.npz", depth=depth, **more)
        with pytest.raises(UserError, match=f"1 of 2 videos .*drive.*{reason}"):
            VideoClipDataset(videos, clip_frames=4, labels=labels)
    np.savez(tmp_path / "drive.npz", depth=whole)
    labels = LabelFolder(tmp_path, DepthKind.RELATIVE, DepthKind.AFFINE_DEPTH)
    with pytest.raises(UserError, match=r"2 of 2 videos .* shift is unknown"):
        VideoClipDataset(videos, clip_frames=4, labels=labels)
    with pytest.raises(UserError, match="scale is unknown"):
        VideoClipDataset(videos, clip_frames=4, labels=LabelFolder(tmp_path, DepthKind.METRIC, DepthKind.SCALED_DEPTH))


def test_labels_of_video_files_are_checked_and_a_list_without_any_says_so(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "walk.mp4", FRAMES, width=WIDTH, height=HEIGHT)
    whole = exact_inverse_depth(0)
    assert VideoClipDataset(tmp_path / "videos", clip_frames=4, labels=folder_of(tmp_path / "good", walk=whole)).sources
    for number, depth in enumerate((whole.transpose(0, 2, 1), whole[1:])):
        with pytest.raises(UserError, match=r"1 of 1 videos .*walk"):
            VideoClipDataset(
                tmp_path / "videos", clip_frames=4, labels=folder_of(tmp_path / f"bad-{number}", walk=depth)
            )
    (tmp_path / "list.txt").write_text("videos/walk.mp4\n")
    listed = VideoClipDataset(tmp_path / "list.txt", clip_frames=4, labels=folder_of(tmp_path / "none"))
    with pytest.raises(UserError, match=r"such as videos/walk.mp4 \(its labels .*no depth of .*data\.labels$"):
        listed[0]


def test_frames_are_matched_by_time_and_missing_ones_named(tmp_path: Path, videos: Path) -> None:
    source = find_sources(videos)[0]
    info = probe_video(source.path)
    whole = exact_inverse_depth(0)
    more = np.concatenate([whole[:1] + 1, whole])  # one frame from before the video
    times = np.concatenate([[info.timestamps_s[0] - 1], info.timestamps_s])
    np.savez(tmp_path / f"{source.video_id}.npz", depth=more, timestamps_s=times)
    labels = LabelFolder(tmp_path, DepthKind.RELATIVE, DepthKind.RELATIVE)
    with pytest.raises(UserError, match="depth of 9 frames, the clip has 8"):
        labels.read(source, info, [0])  # the times of image folders are made up
    info = replace(info, image_paths=())
    assert np.array_equal(labels.read(source, info, [7, 0, 3]), whole[[7, 0, 3]])
    np.savez(tmp_path / f"{source.video_id}.npz", depth=more[:6], timestamps_s=times[:6])
    with pytest.raises(UserError, match="no depth of 3 of 8 frames"):
        LabelFolder(tmp_path, DepthKind.RELATIVE, DepthKind.RELATIVE).read(source, info, [0])


@pytest.mark.parametrize(
    ("kind", "share", "hole"),
    [("metric_depth_m", 0.3, 1e-6), ("metric_depth_m", 0.3, 1e-3), ("scale_invariant_depth", 0.3, 1e-4)],
)
def test_depth_too_near_0_to_be_inverted_has_no_label(
    tmp_path: Path, videos: Path, kind: str, share: float, hole: float
) -> None:
    """Two holes; a thing ten times as near as most of a frame is none, and metric labels of meters keep all."""
    depth = np.random.default_rng(0).uniform(1.0, 9.0, (FRAMES, HEIGHT, WIDTH)).astype(np.float32)
    depth[:, 0, 0] = 0.2
    holes = np.random.default_rng(1).random(depth.shape) < share
    holes[:, 0, 0] = False
    source = find_sources(videos)[0]
    folder_of(tmp_path, **{source.video_id: np.where(holes, np.float32(hole), depth)})

    def read(to: DepthKind) -> np.ndarray:
        return LabelFolder(tmp_path, to, kind).read(source, probe_video(source.path), range(FRAMES))

    assert np.array_equal(read(DepthKind.RELATIVE), np.where(holes, np.nan, np.reciprocal(depth)), equal_nan=True)
    if kind == DepthKind.METRIC.value:
        assert np.array_equal(read(DepthKind.METRIC), np.where(holes, np.float32(hole), depth))


def test_other_sizes_are_resized_and_other_views_refused(tmp_path: Path, videos: Path) -> None:
    whole = exact_inverse_depth(0)
    larger = np.kron(whole, np.ones((1, 2, 2), np.float32))
    labels = folder_of(tmp_path / "larger", walk=larger, drive=larger)
    item = VideoClipDataset(videos, clip_frames=FRAMES, labels=labels, transform=ClipTransform(28, (28, 42)))[0]
    indices = list(item["meta"].frame_indices)
    assert torch.equal(item["teacher_depth"][:, 0], torch.from_numpy(whole[indices]))
    cut = whole[:, :, 7:-7]
    labels, source = folder_of(tmp_path / "cut", walk=cut, drive=cut), find_sources(videos)[0]
    with pytest.raises(UserError, match="28×28 px, frames are 28×42"):
        labels.read(source, probe_video(source.path), [0])


def moving_depth(frames: int, shift: int = 0) -> np.ndarray:
    """A textured surface that passes by, with noise of its own in every frame."""
    rng = np.random.default_rng(3)
    surface = cv2.GaussianBlur(rng.normal(size=(40, 200)).astype(np.float32), (0, 0), 2)
    noise = np.random.default_rng(4 + shift).normal(0, 0.02, (frames, 40, 60))
    views = [surface[:, 2 * (t + shift) : 2 * (t + shift) + 60] for t in range(2, frames + 2)]
    return (np.stack(views) + noise).astype(np.float32)


def test_wrong_signs_and_shifts_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    model = moving_depth(16)
    for shift in (-2, -1, 0, 1, 2):
        assert found_shift(3 * moving_depth(16, shift) + 1, model) == shift
    still = np.repeat(model[:1], 16, axis=0)
    assert found_shift(still, still) == 0
    assert sign_agreement(model, model) > 0.99 > -0.99 > sign_agreement(-model, model)
    holed = model.copy()
    holed[:, :20] = np.nan
    holed[5] = np.nan
    check_labels({"good": Sample(model, model), "holed": Sample(holed, model)})
    for sample, reason in (
        (Sample(np.full_like(model, np.nan), model), "first frames of street hold no depth"),
        (Sample(-model, model), "upside down.*data.labels_kind"),
        (Sample(np.ones_like(model), model), "first frames of street hold one value alone"),
        (Sample(moving_depth(16, 1), model), "those of street seem to belong to the frame 1 after"),
        (Sample(moving_depth(16, -1), model), "the frame 1 before"),
    ):
        with pytest.raises(UserError, match=reason):
            check_labels({"street": sample})
    with pytest.raises(UserError, match="those of street seem upside down"):  # one among good ones
        check_labels({"good": Sample(model, model), "street": Sample(-model, model), "other": Sample(model, model)})
    assert not caplog.records
    noise = np.random.default_rng(0).normal(size=model.shape).astype(np.float32)
    check_labels({"good": Sample(model, model), "street": Sample(noise, model)})
    assert [record.getMessage()[:67] for record in caplog.records] == [
        "data.labels: those of street have little to do with the encoder's o"
    ]


def test_labels_are_held_against_the_encoders_own_depth(
    tmp_path: Path, videos: Path, tiny_encoder: DepthAnythingEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    own = {}
    for source in find_sources(videos):
        frames = np.stack([cv2.imread(str(path)) for path in probe_video(source.path).image_paths])[..., ::-1]
        rgb = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 255
        own[source.video_id] = tiny_encoder.predict_depth(rgb)[:, 0].numpy()
    for sign in (1, -1):
        labels = folder_of(tmp_path / str(sign), **{name: 10 + sign * depth for name, depth in own.items()})
        dataset = VideoClipDataset(videos, clip_frames=4, labels=labels, transform=ClipTransform(28, (28, 42)))
        if sign > 0:
            build.check_label_folder(dataset, labels, tiny_encoder)
        else:
            with pytest.raises(UserError, match="upside down"):
                build.check_label_folder(dataset, labels, tiny_encoder)
    assert not caplog.records
    small = folder_of(tmp_path / "small", **{name: depth[:, ::2, ::2] for name, depth in own.items()})
    build.check_label_folder(dataset, small, tiny_encoder)
    assert [record.getMessage() for record in caplog.records] == [
        "labels of drive are 14×21 px, frames 28×42 px: labels are resized"
    ]


def test_a_cache_of_labels_holds_what_the_folder_says(
    tmp_path: Path, videos: Path, tiny_encoder: DepthAnythingEncoder
) -> None:
    root, cache = write_labels(tmp_path / "labels", "npz", DepthKind.METRIC), tmp_path / "cache"
    labels = LabelFolder(root, DepthKind.RELATIVE, DepthKind.METRIC)
    key = build.label_key(tiny_encoder, labels, 28)

    def no_teacher(frames: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a live teacher was asked")

    sources: list[VideoSource] = find_sources(videos)
    summary = precompute_videos(
        sources, no_teacher, key, cache, image_size=(28, 42), chunk_frames=4, labels=labels, progress=False
    )
    assert (summary.finished, summary.frames, summary.failed) == (2, 2 * FRAMES, {})
    reader = TeacherCacheReader(cache, key)
    source = sources[1]
    stored = reader.lookup(source.video_id, [5, 0], source.path, (28, 42))
    assert stored is not None
    assert np.array_equal(stored["teacher_depth"], labels.read(source, probe_video(source.path), [5, 0]))
    os.utime(root / "walk.npz", (0, 0))
    assert not build.label_key(tiny_encoder, labels, 28).difference(key)
    wanted = StabilizeKey(2, 1.5, "dis")
    assert precompute_stabilized(sources, cache, key, wanted, build_flow("dis"), progress=False) == 2 * FRAMES
    smoothed = TeacherCacheReader(cache, key, wanted).lookup(source.video_id, [5, 0], source.path)
    assert smoothed is not None
    assert np.isfinite(smoothed["stabilized_depth"]).all()
    np.savez_compressed(root / "walk.npz", depths=exact_inverse_depth(7))
    assert build.label_key(tiny_encoder, labels, 28).difference(key)


def test_the_oracle_averages_along_the_flow_and_writes_labels_of_its_videos(tmp_path: Path) -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "offline_to_streaming.py"))
    ramp = np.arange(12, dtype=np.float32) + np.zeros((9, 1), np.float32)
    moving = np.stack([ramp - t for t in range(5)])  # to the right by 1 px per frame
    flicker = np.array([1, -1, 1, -1, 0], np.float32)[:, None, None]
    flow, seen = np.zeros((5, 2, 9, 12), np.float32), np.ones((5, 9, 12), bool)
    flow[:, 0] = 1
    smooth = list(script["oracle_depth"](moving + flicker, ClipMotion(-flow, flow, seen, seen)))
    np.testing.assert_allclose(smooth[2][:, 4:8], moving[2][:, 4:8], atol=1e-5)
    script["main"](["write", str(tmp_path), "--worlds", "1", "--frames", "5", "--cache", str(tmp_path / "cache")])
    labels = LabelFolder(tmp_path / "labels", DepthKind.RELATIVE)
    item = VideoClipDataset(tmp_path / "videos", clip_frames=4, labels=labels)[0]
    assert item["teacher_depth"].shape == (4, 1, 112, 140)
    assert item["teacher_depth"].isfinite().all()


def test_score_says_what_is_kept_of_the_oracle_s_gain(tiny_teacher_folder: str, tmp_path: Path) -> None:
    main = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "offline_to_streaming.py"))["main"]
    options = ["--videos", "1", "--frames", "4", "--kinds", "moving", "--cache", str(tmp_path / "cache")]
    main(["score", "one:embedded", "--geometry", *options, "--output", str(tmp_path / "score.json")])
    result = json.loads((tmp_path / "score.json").read_text())
    changes, kept = result["changes"]["moving"], result["kept"]
    assert set(kept) == {"one", "one+geometry"}
    assert changes["one"]["abs_rel/video"] != changes["one+geometry"]["abs_rel/video"]
    for name, shares in kept.items():
        share = changes[name]["tge"][0] / changes["oracle"]["tge"][0]
        assert shares["tge"] == {"moving": pytest.approx(share), "all": pytest.approx(share)}
    with pytest.raises(UserError, match="other has another teacher than one"):
        main(["score", "one:embedded", f"other:teacher:{tiny_teacher_folder}", *options])
