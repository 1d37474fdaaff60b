"""Every number of a training config arrives, under its own name, in the part that it is meant for."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from media import write_video

from videomamba_depth.configuration import build
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.data.perturbations import Perturbations
from videomamba_depth.data.transforms import ClipTransform
from videomamba_depth.layers.temporal_block import InnovationBlock, MambaBlock
from videomamba_depth.models.checkpoint import load_student, student_weights
from videomamba_depth.training.distributed import Ranks
from videomamba_depth.training.run_folder import RunFolder
from videomamba_depth.training.trainer import Trainer
from videomamba_depth.utils.errors import UserError

CPU = torch.device("cpu")
SMOKE = ("debug=smoke", "data.short_side=28", "data.crop=[28,42]", "trainer.device=cpu", "model.scan_backend=reference")


def trainer_of(folder: Path, teacher: str, *overrides: str, ranks: Ranks | None = None) -> Trainer:
    config = load_config("train", TrainConfig, [f"teacher.name={teacher}", *SMOKE, *overrides])
    return build.build_trainer(config, ranks or Ranks(0, 1, CPU), RunFolder(folder), asdict(config))


def test_trainer_and_optimizer(tmp_path: Path, tiny_teacher_folder: str) -> None:
    """Every value differs from every other one."""
    trainer = {
        "steps": 11, "total_steps": 13, "chunk_frames": 4, "reset_probability": 0.25, "accumulate": 3, "seed": 17,
        "checkpoint_every": 19, "keep_checkpoints": 23, "log_every": 29, "picture_every": 31, "channels_last": True,
        "compile": False,
    }  # fmt: skip
    optim = {"lr": 0.011, "weight_decay": 0.3, "warmup_steps": 5, "final_lr_ratio": 0.07, "grad_clip": 1.5,
             "ema_decay": 0.77}  # fmt: skip
    given = [f"trainer.{key}={value}" for key, value in trainer.items()]
    given += [f"optim.{key}={value}" for key, value in optim.items()]
    made = trainer_of(tmp_path, tiny_teacher_folder, *given, "optim.beta1=0.6", "optim.beta2=0.8")
    assert {key: getattr(made.settings, key) for key in trainer} == trainer
    assert {key: getattr(made.optim, key) for key in optim} == optim
    assert made.settings.schedule_steps == 13
    group = made._optimizer.param_groups[0]
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (0.011, (0.6, 0.8), 0.3)
    assert made._average.decay == 0.77
    assert trainer_of(tmp_path, tiny_teacher_folder, "trainer.steps=7").settings.schedule_steps == 7


def test_precision(tmp_path: Path, tiny_teacher_folder: str) -> None:
    made = trainer_of(tmp_path, tiny_teacher_folder, "trainer.precision=bfloat16")
    assert made.labeller.autocast_dtype is torch.bfloat16
    made = trainer_of(tmp_path, tiny_teacher_folder, "trainer.precision=float32")
    assert made.labeller.autocast_dtype is None


def test_objective(tmp_path: Path, tiny_teacher_folder: str) -> None:
    values = {"ssi_weight": 2.0, "ssi_gradient_weight": 3.0, "temporal_gradient_weight": 5.0,
              "state_smoothness_weight": 7.0, "ssi_alignment": "frame"}  # fmt: skip
    given = [f"loss.{key}={value}" for key, value in values.items()]
    for target in ("raw", "stabilized"):
        made = trainer_of(
            tmp_path, tiny_teacher_folder, *given, "loss.temporal_gradient_strides=[2,4]", f"loss.target={target}"
        ).objective
        assert {key: getattr(made, key) for key in values} == values
        assert made.temporal_gradient_strides == (2, 4)
        assert made.target == target


def test_labeller(tmp_path: Path, tiny_teacher_folder: str) -> None:
    made = trainer_of(
        tmp_path, tiny_teacher_folder, "loss.target=geometry", "loss.target_radius=6", "loss.target_sigma=3.5",
        "reference_flow.max_motion_px=0.7", "reference_flow.max_rgb_change=0.09", "data.batch_size=2",
        "trainer.chunk_frames=3", "model.flow.short_side=77",
    )  # fmt: skip
    labeller = made.labeller
    assert (labeller.target.target, labeller.target.target_radius, labeller.target.target_sigma) == ("geometry", 6, 3.5)
    assert (labeller.max_motion_px, labeller.max_rgb_change, labeller.frames_per_pass) == (0.7, 0.09, 6)
    assert labeller.encoder is labeller.teacher is made.student.encoder
    assert labeller.motion is made.student.motion
    assert labeller.motion is not None
    assert labeller.motion.short_side == 77
    still = trainer_of(
        tmp_path, tiny_teacher_folder, "loss=raw", "loss.temporal_gradient_weight=0", "loss.state_smoothness_weight=0",
        "model.flow=null",
    )  # fmt: skip
    assert (still.labeller.flow, still.labeller.motion, still.labeller.target.target) == (None, None, "raw")


def test_geometry_of_the_student(tmp_path: Path, tiny_teacher_folder: str) -> None:
    values = {"short_side": 57, "key_frames": 3, "every": 5, "refined": 2, "spread": 0.35, "focal": 1.25, "keep": 0.75}
    values |= {"estimator": "dis", "focal_spread": 0.15, "picture_steps": 2, "shift_spread": 0.2, "level_spread": 0.25}
    given = ",".join(f"{key}:{value}" for key, value in values.items())
    student = trainer_of(tmp_path, tiny_teacher_folder, f"model.geometry={{{given}}}").student
    assert student.geometry is not None
    assert asdict(student.geometry.spec) == values
    assert trainer_of(tmp_path, tiny_teacher_folder).student.geometry is None
    with pytest.raises(UserError, match="geometry follows the flow"):
        trainer_of(tmp_path, tiny_teacher_folder, "model.geometry={}", "model.flow=null", "model.output=null")


def test_frames_that_are_not_encoded(tmp_path: Path, tiny_teacher_folder: str) -> None:
    made = trainer_of(tmp_path, tiny_teacher_folder, "model.encode_every=5")
    assert made.student.encode_every == 5
    assert any(name.startswith("propagation.update.") for name in made._trainable)
    plain = trainer_of(tmp_path, tiny_teacher_folder).student
    assert plain.encode_every == 1
    assert not [name for name in plain.state_dict() if name.startswith("propagation.")]
    with pytest.raises(UserError, match="a student without flow has none"):
        trainer_of(tmp_path, tiny_teacher_folder, "model.encode_every=2", "model.flow=null")


@pytest.mark.parametrize("form", ["innovation", "plain"])
def test_student(tmp_path: Path, tiny_teacher_folder: str, form: str) -> None:
    scales = {
        "s0": {"num_blocks": 1, "d_state": 3, "d_conv": 2, "expand": 1, "heads": 2, "initial_gain": 0.1},
        "s1": {"num_blocks": 2, "d_state": 5, "d_conv": 3, "expand": 2, "heads": 4, "initial_gain": 0.2},
        "s2": {"num_blocks": 1, "d_state": 6, "d_conv": 4, "expand": 1, "heads": 8, "initial_gain": 0.3},
        "s3": {"num_blocks": 0},
    }  # fmt: skip
    given = [f"model.{s}.{key}={value}" for s, values in scales.items() for key, value in values.items()]
    given += [
        "model=plain_stack",
        f"model.form={form}",
        "model.discretization=foh",
        "model.s0.advect=false",
        "model.s2.state_dtype=float16",
    ]
    student = trainer_of(
        tmp_path, tiny_teacher_folder, *given, "model.s0.ffn_ratio=0", "model.s1.ffn_ratio=3", "model.train_head=false"
    ).student
    assert not any(p.requires_grad for p in student.head.parameters())
    assert list(student.temporal) == ["s0", "s1", "s2"]
    for name, scale in student.temporal.items():
        wanted = scales[name]
        assert (scale.advect, scale.state_dtype) == (name != "s0", torch.float16 if name == "s2" else torch.float32)
        assert len(scale.blocks) == wanted["num_blocks"]
        for index, block in enumerate(scale.blocks):
            mixer = block.mixer
            assert (mixer.d_state, mixer.d_conv) == (wanted["d_state"], wanted["d_conv"])
            assert mixer.out_proj.in_features == wanted["expand"] * mixer.out_proj.out_features
            assert (mixer.discretization, mixer.backend) == ("foh", "reference")
            if form == "innovation":
                assert isinstance(block, InnovationBlock)
                assert mixer.num_heads == wanted["heads"] * wanted["expand"]
                gain = wanted["initial_gain"] if index == 0 else 0.0
                torch.testing.assert_close(mixer.out_proj.weight.sum(1), torch.full((mixer.d_model,), 2 * gain))
            else:
                assert isinstance(block, MambaBlock)
                hidden = None if block.ffn is None else block.ffn[1].out_features
                assert hidden == {"s0": None, "s1": 3 * 12, "s2": 2 * 16}[name]


def test_output_and_motion(tmp_path: Path, tiny_teacher_folder: str) -> None:
    made = trainer_of(
        tmp_path, tiny_teacher_folder, "model.output.gain=0.75",
        "model.output.coarse_gain=0.5", "model.output.outlier=3", "model.output.hidden=5",
        "model.output.affine=0.6",
    ).student.output  # fmt: skip
    assert made is not None
    assert [torch.tensor(x).sigmoid().item() for x in made.base_logits] == pytest.approx([0.5, 0.75])
    assert (made.outlier, made.affine, made.metric) == (3, 0.6, False)
    assert made.gain_net is not None
    assert made.gain_net[0].out_channels == 5


def test_transform(tiny_teacher_folder: str) -> None:
    config = load_config(
        "train", TrainConfig, ["data.crop=[28,42]", "data.color_jitter=0.4", "data.flip=true",
                               "data.perturb.probability=0.6", "data.perturb.exposure=0.1", "data.perturb.noise=0.2",
                               "data.perturb.jpeg=33", "data.perturb.blur=0.9", f"teacher.name={tiny_teacher_folder}"],
    )  # fmt: skip
    made: Any = build.build_dataset(config.data, 3, build.build_teacher(config.teacher, CPU))
    damage = Perturbations(0.6, exposure=0.1, noise=0.2, jpeg=33, blur=0.9)
    assert made.transform == ClipTransform(112, (28, 42), flip=True, color_jitter=0.4, perturb=damage)


def test_videos(tmp_path: Path, tiny_teacher_folder: str) -> None:
    write_video(tmp_path / "a.mp4", 12)
    config = load_config(
        "train", TrainConfig, ["data=video_folder", f"data.root={tmp_path}", "data.clip_frames=5", "data.stride=[1,2]",
                               "data.reverse_probability=0.3", f"teacher.name={tiny_teacher_folder}"],
    )  # fmt: skip
    made: Any = build.build_dataset(config.data, 41, build.build_teacher(config.teacher, CPU))
    assert (made.clip_frames, made.seed) == (5, 41)
    assert (made.playback.strides, made.playback.reverse_probability) == ((1, 2), 0.3)
    assert made.transform.crop == (252, 252)


def test_worlds(tiny_teacher_folder: str) -> None:
    config = load_config(
        "train", TrainConfig, ["data.clip_frames=5", "data.stride=[1,3]", "data.reverse_probability=0.3",
                               "data.num_worlds=7", "data.world=street", "data.camera_motion=mixed",
                               "data.crop=[28,42]", f"teacher.name={tiny_teacher_folder}"],
    )  # fmt: skip
    made: Any = build.build_dataset(config.data, 43, build.build_teacher(config.teacher, CPU))
    assert (made.clip_frames, made.seed, made.num_worlds) == (5, 43, 7)
    assert (made.playback.strides, made.playback.reverse_probability) == ((1, 3), 0.3)
    assert [(w.family, w.height, w.width) for w in made.worlds] == [("street", 28, 42)] * 3
    assert {w.camera_motion for w in made.worlds} == {"static", "moving", "fast"}


def test_batches(tmp_path: Path, tiny_teacher_folder: str) -> None:
    """Rank, seed, start and the share of single images decide which items a batch has."""

    class Keys(torch.utils.data.Dataset):
        def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
            return {"key": torch.tensor(key), "meta": None}

    config = load_config("train", TrainConfig, ["data.batch_size=2", "data.clip_frames=5", "data.p_single_frame=0.5"])
    keys = {}
    for seed, rank, start in itertools.product((0, 1), (0, 1), (0, 10)):
        batches = build.build_batches(Keys(), config.data, seed, Ranks(rank, 2, CPU))(start)
        keys[seed, rank, start] = [batch["key"].tolist() for batch in itertools.islice(batches, 20)]
    first = keys[0, 0, 0]
    assert first[10:] == keys[0, 0, 10][:10]
    assert all(len(batch) == 2 for batch in first)
    frames = [batch[0][1] for batch in first]
    assert set(frames) == {1, 5}
    assert [batch[0][1] for batch in keys[0, 1, 0]] == frames  # ranks agree on the kind
    assert not {tuple(k) for b in first for k in b} & {tuple(k) for b in keys[0, 1, 0] for k in b}
    assert [batch[0][1] for batch in keys[1, 0, 0]] != frames


VIDEO_MAMBA = (
    "model=video_mamba",
    "model.video_mamba.num_layers=4",
    "model.video_mamba.embed_dim=32",
    "model.video_mamba.img_size=32",
)


@pytest.mark.parametrize("model", [(), VIDEO_MAMBA])
def test_recurrence_norms_biases_and_tables_do_not_decay(
    tmp_path: Path, tiny_teacher_folder: str, model: tuple[str, ...]
) -> None:
    made = trainer_of(tmp_path, tiny_teacher_folder, *model, "optim.weight_decay=0.3")
    names = {id(p): name for name, p in made.student.named_parameters()}
    decay, rest = ({names[id(p)] for p in group["params"]} for group in made._optimizer.param_groups)
    assert [group["weight_decay"] for group in made._optimizer.param_groups] == [0.3, 0.0]
    assert not decay & rest
    assert decay | rest == {name for name, p in made.student.named_parameters() if p.requires_grad}
    still = {name for name in decay | rest if name.rpartition(".")[2] in ("A_log", "A_b_log", "bias", "D", "D_b")}
    still |= {
        name for name in decay | rest if name.endswith(("cls_token", "pos_embed", "norm.weight", "norm_f.weight"))
    }
    assert any(name.endswith("A_log") for name in still)
    assert any(name.endswith("cls_token") for name in still) == bool(model)
    assert still <= rest
    assert all(name.endswith(("weight", "proj_b", "_embedding")) for name in decay)
    assert {name for name in rest if made.student.get_parameter(name).ndim > 1} <= still


def test_the_seed_decides_the_weights_and_the_data(tmp_path: Path, tiny_teacher_folder: str) -> None:
    made = [trainer_of(tmp_path, tiny_teacher_folder, f"trainer.seed={seed}") for seed in (3, 3, 4)]
    weights = [torch.cat([p.flatten() for p in trainer.student.temporal.parameters()]) for trainer in made]
    pictures = [next(trainer._batches_from(0))["rgb"] for trainer in made]
    for one, same, other in (weights, pictures):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_a_checkpoint_keeps_the_size_that_was_trained_at(tmp_path: Path, tiny_teacher_folder: str) -> None:
    made = trainer_of(tmp_path, tiny_teacher_folder, "data.short_side=42")
    folder = tmp_path / "checkpoints" / "step"
    folder.mkdir(parents=True)
    made._save_student(folder, student_weights(made.student), 0)
    assert load_student(folder).encoder.short_side == 42
