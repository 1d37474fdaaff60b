"""A student goes on from another, on offline labels that the training makes of its own video."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from media import write_empty, write_truncated, write_video
from safetensors.torch import load_file
from tiny import tiny_student, tiny_teacher

from videomamba_depth.commands import train
from videomamba_depth.configuration import offline_labels
from videomamba_depth.configuration.build import build_started
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.data.video.reader import iter_frames
from videomamba_depth.models.checkpoint import (
    describe_encoder,
    load_student,
    save_student,
    student_weights,
)
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.streaming.sinks.npz import NpzSink
from videomamba_depth.training.run_folder import RunFolder
from videomamba_depth.utils.errors import UserError

QUICK = (
    "data.clip_frames=6", "data.batch_size=1", "data.short_side=42", "trainer.chunk_frames=3", "trainer.device=cpu",
    "trainer.logger=none", "trainer.picture_every=0", "trainer.checkpoint_every=1", "trainer.precision=float32",
    "trainer.log_every=1", "optim.warmup_steps=0", "data.p_single_frame=0", "trainer.prefetch=false",
)  # fmt: skip


@pytest.fixture(autouse=True)
def without_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "sweep_folder", lambda: None)


@pytest.fixture
def start(tmp_path: Path, tiny_teacher_folder: str) -> Path:
    """A trained student of other blocks than the default recipe's."""
    encoder = DepthAnythingEncoder.from_pretrained(tiny_teacher_folder)
    folder = tmp_path / "start" / "last"
    folder.mkdir(parents=True)
    spec = TemporalSpec(*(ScaleSpec(num_blocks=n, backend="reference") for n in (1, 1, 2, 2)))
    about = describe_encoder(encoder, "../../no_copy") | {"model_id": tiny_teacher_folder}
    save_student(folder, student_weights(tiny_student(encoder)), spec, about, short_side=42)
    return folder


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4", 11)


def adapt(run: Path, start: Path, video: Path, teacher: str, *overrides: str) -> Path:
    named = [f"run_dir={run}", f"model.start={start}", f"data.root={video}", f"teacher.name={teacher}"]
    train.main(load_config("train", TrainConfig, ["experiment=adapt", *QUICK, *named, *overrides]))
    return run / "last"


def test_it_goes_on_from_the_student_on_targets_of_the_video(
    start: Path,
    video: Path,
    tiny_teacher_folder: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    last = adapt(tmp_path / "run", start, video, tiny_teacher_folder, "trainer.steps=1", "optim.lr=1e-12")
    before, after = load_student(start), load_student(last)
    assert after.signature == before.signature
    pairs = zip(student_weights(before).items(), student_weights(after).items(), strict=True)
    for (name, ours), (other, theirs) in pairs:
        assert name == other
        torch.testing.assert_close(theirs, ours)
    labels = np.load(next((tmp_path / "run" / "labels" / "clip").glob("*.npz")))
    assert labels["depth"].shape == (11, 42, 56)
    assert labels["frame_index"].tolist() == list(range(11))
    line = f"python inference_streaming.py checkpoint={last} input={video} output=out/"
    assert caplog.messages[-1] == f"stream the video with it: {line}"
    monkeypatch.setattr(sys, "argv", ["videomamba-depth train"])
    moved = adapt(tmp_path / "other", start, video, tiny_teacher_folder, "trainer.steps=1")
    assert caplog.messages[-1].startswith("stream the video with it: videomamba-depth stream checkpoint=")
    differs = [
        n for n, t in student_weights(load_student(moved)).items() if not torch.equal(t, student_weights(before)[n])
    ]
    assert any(name.startswith("head.") for name in differs)  # the decoder learns too


def test_a_run_that_is_continued_gives_the_same_bits_without_the_student_it_began_from(
    start: Path, video: Path, tiny_teacher_folder: str, tmp_path: Path
) -> None:
    through = adapt(tmp_path / "through", start, video, tiny_teacher_folder, "trainer.steps=2")
    halves = (tmp_path / "halves", start, video, tiny_teacher_folder, "trainer.total_steps=2")
    adapt(*halves, "trainer.steps=1")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "halves" / "labels").rglob("*")}
    shutil.rmtree(start)
    stopped = adapt(*halves, "trainer.steps=2")
    ours, theirs = (load_file(last / "student.safetensors") for last in (through, stopped))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "halves" / "labels").rglob("*")} == made


def test_labels_are_made_again_where_the_video_changed_and_are_atomic(
    start: Path, video: Path, tiny_teacher_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [f"run_dir={tmp_path}/run", f"data.root={video}", f"teacher.name={tiny_teacher_folder}", *QUICK]
    config = load_config("train", TrainConfig, ["experiment=adapt", *named, "model.start=null"])
    device, folder = torch.device("cpu"), tmp_path / "run" / "labels" / "clip"
    flush = NpzSink.close

    def fails(self: NpzSink) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(NpzSink, "close", fails)
    with pytest.raises(KeyboardInterrupt):
        offline_labels.write_offline_labels(config, device)
    assert not list((tmp_path / "run").rglob("*.npz"))
    monkeypatch.setattr(NpzSink, "close", flush)
    offline_labels.write_offline_labels(config, device)
    first = np.load(folder / "depth_000000.npz")["depth"]
    write_video(video, 11, seed=1)
    offline_labels.write_offline_labels(config, device)
    assert not np.allclose(np.load(folder / "depth_000000.npz")["depth"], first)


def test_a_damaged_video_has_labels_as_far_as_it_goes(
    tiny_teacher_folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    write_truncated(folder / "clip.mp4", 0.7, 30)
    write_empty(folder / "empty.mp4")
    named = [f"run_dir={tmp_path}/run", f"data.root={folder}", f"teacher.name={tiny_teacher_folder}", *QUICK]
    offline_labels.write_offline_labels(
        load_config("train", TrainConfig, ["experiment=adapt", *named, "model.start=null"]), torch.device("cpu")
    )
    usable = sum(1 for _ in iter_frames(folder / "clip.mp4"))
    assert len(np.load(tmp_path / "run" / "labels" / "clip" / "depth_000000.npz")["depth"]) == usable > 5
    assert f"labels of its first {usable} frames alone" in caplog.text
    assert "1 of 2 videos" in caplog.text
    assert "empty.mp4" in caplog.text


@pytest.mark.parametrize("overrides", [[], ["data.stride=2"]])
def test_a_video_that_is_too_short_is_refused_before_its_labels_are_made(
    tiny_teacher_folder: str, tmp_path: Path, overrides: list[str]
) -> None:
    video = write_video(tmp_path / "clip.mp4", 5)
    named = [f"run_dir={tmp_path}/run", f"data.root={video}", f"teacher.name={tiny_teacher_folder}", *QUICK, *overrides]
    config = load_config("train", TrainConfig, ["experiment=adapt", *named])
    fits = 3 if overrides else 5
    with pytest.raises(UserError, match=rf"5 frames are too few for clips of 6 .*; set data.clip_frames={fits}\)"):
        offline_labels.write_offline_labels(config, torch.device("cpu"))
    assert not (tmp_path / "run").exists()


def test_a_start_that_does_not_fit_is_refused_before_labels_are_made(
    start: Path, video: Path, tiny_teacher_folder: str, tmp_path: Path
) -> None:
    tiny_teacher(seed=1).save_pretrained(tmp_path / "other")
    for place, teacher, message in (
        (tmp_path / "none", tiny_teacher_folder, "not a student checkpoint"),
        (start, str(tmp_path / "other"), "was trained with the encoder"),
    ):
        with pytest.raises(UserError, match=rf"model\.start: .*{message}"):
            adapt(tmp_path / "run", place, video, teacher)
        assert not (tmp_path / "run" / "labels").exists()


def test_videos_of_which_none_can_be_read_are_named(tiny_teacher_folder: str, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", 11)
    damaged = bytearray(video.read_bytes())
    start = damaged.index(b"mdat") + 4
    damaged[start : damaged.index(b"moov") - 4] = bytes(damaged.index(b"moov") - 4 - start)
    video.write_bytes(damaged)
    for root in (video, tmp_path / "list.txt"):
        (tmp_path / "list.txt").write_text("clip.mp4\n", encoding="utf-8")
        named = [f"run_dir={tmp_path}/run", f"data.root={root}", f"teacher.name={tiny_teacher_folder}", *QUICK]
        config = load_config("train", TrainConfig, ["experiment=adapt", *named, "model.start=null"])
        with pytest.raises(UserError, match=r"none of the 1 videos in .* can be (read|used): clip"):
            offline_labels.write_offline_labels(config, torch.device("cpu"))


def test_what_does_not_fit_is_one_line(start: Path, video: Path, tiny_teacher_folder: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    tiny_teacher(seed=1).save_pretrained(other)
    with pytest.raises(UserError, match=r"model.start: .* was trained with the encoder .*; set teacher.name") as caught:
        adapt(tmp_path / "run", start, video, other, "trainer.steps=1")
    assert "\n" not in str(caught.value)
    for part in ("encode_every=4", "output.affine=0.8", "geometry={}"):
        with pytest.raises(
            UserError, match=rf"model\.{part.split('=')[0]} is as .*start/last' was trained.*leave it out"
        ):
            build_started(
                load_config("train", TrainConfig, [f"model.start={start}", f"model.{part}"]).model,
                DepthAnythingEncoder.from_pretrained(tiny_teacher_folder),
                RunFolder(tmp_path / "new"),
            )
    with pytest.raises(UserError, match=r"data.offline_labels=true makes the labels of data=video_folder"):
        load_config("train", TrainConfig, ["data.offline_labels=true"])
    with pytest.raises(UserError, match=r"model.start: .*not a student checkpoint"):
        adapt(tmp_path / "run", tmp_path / "none", video, tiny_teacher_folder)
