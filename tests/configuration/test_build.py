"""What does not fit together is refused when a training is built, with the keys that led there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from depth_models import save_depth_anything_3, save_depth_model
from media import write_video
from tiny import save_tiny_teacher

from videomamba_depth.configuration.build import build_dataset, build_teacher, build_trainer
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.models.teachers import open_encoder
from videomamba_depth.training.distributed import Ranks, start_ranks
from videomamba_depth.training.run_folder import RunFolder
from videomamba_depth.utils.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.s1.heads=7"], "model: s1: d_model must be a multiple of heads"),
        (["model.encoder=/nonexistent/x"], "model.encoder: folder '/nonexistent/x' does not exist"),
        (["teacher.name=/etc/passwd"], "teacher.name: '/etc/passwd' is a file"),
        (["reference_flow=raft", "reference_flow.weights=/etc/passwd"], "reference_flow.weights: "),
        (["model.encoder=video_mamba", "model.video_mamba.pretrained=/etc/passwd"], "model.video_mamba.pretrained: "),
        (["model.scan_backend=triton"], "model.scan_backend: "),
        (
            ["teacher.dtype=float16", "trainer.precision=float32"],
            "needs trainer.precision=float16",
        ),
        (["teacher.dtype=float16", "trainer.precision=bfloat16"], "computes in bfloat16"),
        (["data.crop=[15,15]"], "data: height and width must be at least 16 px"),
        (["data.teacher_cache=/etc/passwd"], "data.teacher_cache is for data=video_folder"),
    ],
)
def test_refused(tmp_path: Path, tiny_teacher_folder: str, overrides: list[str], message: str) -> None:
    given = [f"teacher.name={tiny_teacher_folder}", "debug=smoke", "trainer.device=cpu", *overrides]
    config = load_config("train", TrainConfig, given)
    with pytest.raises(UserError) as caught:
        build_trainer(config, Ranks(0, 1, torch.device("cpu")), RunFolder(tmp_path / "run"), {})
    assert message in str(caught.value)


def test_a_teacher_that_only_labels_wants_an_encoder(tmp_path: Path, tiny_teacher_folder: str) -> None:
    teacher = save_depth_model("dpt", tmp_path / "dpt")
    given = [f"teacher.name={teacher}", "debug=smoke", "trainer.device=cpu"]
    for overrides, message in (
        ([], "only labels: name the student's encoder too"),
        (["model.encoder=video_mamba"], "takes its decoder from the teacher"),
        ([f"model.encoder={teacher}"], "only labels: name the student's encoder too"),
        ([f"model.encoder={save_tiny_teacher(tmp_path / 'meters', 'metric')}"], "gives metric_depth_m"),
    ):
        config = load_config("train", TrainConfig, [*given, *overrides])
        with pytest.raises(UserError, match=message):
            build_trainer(config, Ranks(0, 1, torch.device("cpu")), RunFolder(tmp_path / "run"), {})
    config = load_config("train", TrainConfig, [*given, f"model.encoder={tiny_teacher_folder}"])
    trainer = build_trainer(config, Ranks(0, 1, torch.device("cpu")), RunFolder(tmp_path / "run"), {})
    assert trainer.student.encoder.model_id == tiny_teacher_folder  # type: ignore[union-attr]
    assert open_encoder(str(tmp_path / "run" / "encoder")).weights_sha256()


def test_the_scale_that_a_student_gets(
    tmp_path: Path, tiny_teacher_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    teacher, meters = save_depth_model("glpn", tmp_path / "glpn"), save_tiny_teacher(tmp_path / "meters", "metric")
    given = [f"teacher.name={teacher}", "debug=smoke", "trainer.device=cpu"]

    def build(*overrides: str) -> None:
        config = load_config("train", TrainConfig, [*given, *overrides])
        build_trainer(config, Ranks(0, 1, torch.device("cpu")), RunFolder(tmp_path / str(len(overrides))), {})

    for alignment in ("clip", "frame"):
        with pytest.raises(UserError, match=r"set loss\.ssi_alignment=none and model\.train_head=true"):
            build(f"model.encoder={meters}", f"loss.ssi_alignment={alignment}")
    build(f"model.encoder={meters}", "loss.ssi_alignment=none", "model.train_head=true")
    assert not caplog.records
    build(f"model.encoder={tiny_teacher_folder}")
    (record,) = caplog.records
    assert "a single frame keeps the encoder's depth; model.train_head=true lets it learn" in record.getMessage()
    given[0] = f"teacher.name={meters}"
    with pytest.raises(UserError, match=r"teach the student the meters of .*; set loss\.ssi_alignment=none$"):
        build("model.encoder=video_mamba")
    with pytest.raises(UserError, match=r"the meters of '/labels'; set loss\.ssi_alignment=none and model\.train_head"):
        build("data=video_folder", "data.root=.", "data.labels=/labels")
    given[0] = f"teacher.name={save_depth_anything_3('da3metric-large', tmp_path / 'da3')}"
    with pytest.raises(UserError, match=r"data\.crop=\[28, 28\] cuts frames .*; set data\.short_side alone"):
        build("teacher.horizontal_fov_deg=60", "data=video_folder", "data.root=.", "data.crop=[28,28]")


def test_an_encoder_that_is_told_the_field_of_view_trains_on_whole_frames(tmp_path: Path) -> None:
    teacher = save_depth_anything_3("da3metric-large", tmp_path / "da3")
    write_video(tmp_path / "clip.mp4", num_frames=6, width=66, height=48)
    given = [f"teacher.name={teacher}", "teacher.horizontal_fov_deg=60", "debug=smoke", "trainer.device=cpu"]
    given += ["data=video_folder", f"data.root={tmp_path / 'clip.mp4'}", "data.short_side=42", "data.crop=null"]
    given += ["data.clip_frames=2", "data.flip=false", "data.perturb.probability=0", "data.color_jitter=0"]
    given += ["data.num_workers=0", "trainer.precision=float32", "loss.target=raw"]
    config = load_config("train", TrainConfig, given)
    trainer = build_trainer(config, Ranks(0, 1, torch.device("cpu")), RunFolder(tmp_path / "run"), {})
    clip = trainer.labeller(next(trainer._batches_from(0)), torch.device("cpu"))
    assert clip.rgb.shape[-2:] == (42, 56)
    features = {name: x.flatten(0, 1) for name, x in clip.features.items()}  # type: ignore[union-attr]
    own = trainer.student.encoder.decode(features, (42, 56))  # type: ignore[union-attr]
    # Of frames of 42 × 58 px, 56 would be cut out: 3 % of the focal length.
    known = clip.target.valid.flatten(0, 1)
    torch.testing.assert_close(own[known], clip.target.depth.flatten(0, 1)[known], rtol=1e-5, atol=0)


def test_a_cache_that_is_no_folder(tiny_teacher_folder: str) -> None:
    shared = ["data=video_folder", "data.root=."]
    given = [*shared, "data.teacher_cache=/etc/passwd", f"teacher.name={tiny_teacher_folder}"]
    config = load_config("train", TrainConfig, given)
    teacher = build_teacher(config.teacher, torch.device("cpu"))
    with pytest.raises(UserError, match=r"data\.teacher_cache: '/etc/passwd' is not a folder"):
        build_dataset(config.data, 0, teacher)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(UserError, match="is not there"):
        start_ranks("cuda")
