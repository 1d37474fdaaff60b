"""`model.encoder=video_mamba`: the encoder learns, is saved with the student, and streaming stays exact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run_command
from media import write_video
from test_resume import assert_same_end, free_port, train, train_on_two_ranks

from videomamba_depth.models.checkpoint import load_student, load_teacher, read_weights
from videomamba_depth.models.encoder_video_mamba import VideoMambaEncoder
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.errors import UserError

SMALL = (
    "model=video_mamba",
    "model.video_mamba.num_layers=4",
    "model.video_mamba.embed_dim=32",
    "model.video_mamba.img_size=32",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_folder: str) -> Path:
    """A run of 4 steps over clips of 5 frames in chunks of 2."""
    folder = tmp_path_factory.mktemp("video_mamba") / "run"
    assert train(folder, tiny_teacher_folder, *SMALL, "trainer.steps=4", "optim.lr=0.01")
    return folder


@pytest.fixture(scope="module")
def student(run: Path) -> VideoMambaDepth:
    return load_student(run / "last")


def test_two_steps_move_the_encoder_and_the_checkpoint_holds_it(run: Path, student: VideoMambaDepth) -> None:
    first, later = (
        read_weights(run / "checkpoints" / f"step_0000000{step}" / "trainer.safetensors") for step in (1, 3)
    )
    still = [
        name.removeprefix("weight.encoder.")
        for name in first
        if name.startswith("weight.encoder.") and torch.equal(first[name], later[name])
    ]
    assert still == ["backbone.norm_f.weight"]  # takes no part
    weights = read_weights(run / "last" / "student.safetensors")
    assert isinstance(student.encoder, VideoMambaEncoder)
    for name, tensor in student.encoder.state_dict().items():
        assert torch.equal(tensor, weights[f"encoder.{name}"]), name
    for name, tensor in student.head.state_dict().items():
        assert torch.equal(tensor, weights[f"head.{name}"]), name


@torch.no_grad()
def test_stream_equals_clip_for_every_split(student: VideoMambaDepth) -> None:
    with torch.no_grad():
        for p in student.temporal.parameters():  # so that the state matters
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    clip = torch.rand(2, 6, 3, 30, 45, generator=torch.Generator().manual_seed(1))
    whole, end, _ = student(clip)
    spread = float(whole.max() - whole.min())
    for split in ([1] * 6, [3, 3], [1, 4, 1]):
        states, parts = None, []
        for chunk in clip.split(split, dim=1):
            depth, states, _ = student(chunk, states)
            parts.append(depth)
        assert float((torch.cat(parts, 1) - whole).abs().max()) <= 1e-4 * spread
        assert states is not None
        for name, tensor in states.tensors().items():
            torch.testing.assert_close(tensor, end.tensors()[name], atol=1e-4, rtol=1e-4)
    alone = torch.cat([student(frame)[0] for frame in clip.split(1, dim=1)], 1)
    assert float((alone - whole).abs().max()) > 1e-2 * spread


def test_stopped_and_resumed_gives_the_same_bits(run: Path, tiny_teacher_folder: str, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again, symlinks=True)
    for step in (2, 3, 4):
        shutil.rmtree(again / "checkpoints" / f"step_0000000{step}")
    assert train(again, tiny_teacher_folder, *SMALL, "trainer.steps=4", "optim.lr=0.01")
    assert_same_end(again, run)


def test_two_processes_share_the_encoder_s_gradients(run: Path, tiny_teacher_folder: str, tmp_path: Path) -> None:
    both = tmp_path / "run"
    train_on_two_ranks(both, tiny_teacher_folder, free_port(), *SMALL, "trainer.steps=2", "optim.lr=0.01")
    name = "encoder.backbone.layers.0.mixer.in_proj.weight"
    start, end = (read_weights(both / "checkpoints" / f"step_0000000{step}" / "student.safetensors") for step in (1, 2))
    assert not torch.equal(start[name], end[name])


def test_the_student_needs_no_teacher_but_knows_it(run: Path, tiny_teacher_folder: str, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(run / "last", alone)
    stream = DepthStream(alone, device="cpu")
    depth = stream.step(np.zeros((28, 42, 3), np.uint8))
    assert depth.shape == (28, 42)
    assert stream.model_resolution(28, 42) == (32, 48)
    assert stream.max_depth_m is None
    assert (
        load_teacher(run / "last").weights_sha256()
        == json.loads((run / "last" / "student.json").read_text())["encoder"]["teacher"]["weights_sha256"]
    )
    shutil.rmtree(tmp_path / "alone")
    shutil.copytree(run / "last", alone)
    weights = (alone / "student.safetensors").read_bytes()
    (alone / "student.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="use another checkpoint"):
        load_student(alone)


def test_low_precision_keeps_the_step_sizes(run: Path) -> None:
    stream = DepthStream(run / "last", device="cpu", precision="bfloat16")
    mixer = stream.model.encoder.backbone.layers[0].mixer  # type: ignore[union-attr]
    assert mixer.in_proj.weight.dtype == torch.bfloat16
    assert mixer.dt_proj.bias.dtype == mixer.dt_proj_b.bias.dtype == torch.float32
    exact = DepthStream(run / "last", device="cpu")
    for frame in np.random.default_rng(0).integers(0, 256, (3, 28, 42, 3), np.uint8):
        low, high = stream.step(frame), exact.step(frame)
    assert np.abs(low - high).max() < 0.1 * np.abs(high).max()


def test_the_commands_train_stream_and_evaluate(tiny_teacher_folder: str, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", num_frames=5)
    done = run_command(
        tmp_path, "train.py", f"teacher.name={tiny_teacher_folder}", *SMALL, "run_dir=run", "debug=smoke",
        "trainer.steps=2", "trainer.picture_every=1", "data.short_side=28", "data.crop=[28,42]", "trainer.logger=none",
        "trainer.device=cpu", "trainer.threads=1",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert len(list((tmp_path / "run" / "pictures").glob("*.png"))) == 2
    done = run_command(
        tmp_path, "inference_streaming.py", "checkpoint=run/last", "input=clip.mp4", "output=out", "device=cpu",
        "threads=1",
    )  # fmt: skip
    assert done.status == 0, done.err
    done = run_command(
        tmp_path, "scripts/evaluate.py", "checkpoint=run/last", "output=evaluation", "synthetic.videos=1",
        "synthetic.frames=4", "synthetic.height=28", "synthetic.width=42", "device=cpu", "threads=1",
    )  # fmt: skip
    assert done.status == 0, done.err
    result = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    errors = {row: result["mean"][row]["abs_rel/video"]["value"] for row in ("teacher", "student")}
    assert np.isfinite(list(errors.values())).all()
    assert errors["teacher"] != errors["student"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.video_mamba.variant=xl", "model.video_mamba.variant must be one of t, s, m, b"),
        ("model.video_mamba.num_layers=3", "model.video_mamba.num_layers must be in [4,"),
        ("model.video_mamba.embed_dim=0", "model.video_mamba.embed_dim must be in [8,"),
        ("model.video_mamba.pretrained=/no/such.pth", "'/no/such.pth' does not exist"),
    ],
)
def test_mistakes_are_named(tiny_teacher_folder: str, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", tiny_teacher_folder, *SMALL, override)
    assert message in str(caught.value)
