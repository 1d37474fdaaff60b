"""The trainer does what a plain loop of a page does: the same weights, average and losses after some steps."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from videomamba_depth.configuration.build import build_trainer
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.losses import mean_of_sums
from videomamba_depth.models.checkpoint import read_weights, student_weights
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.training.distributed import Ranks
from videomamba_depth.training.run_folder import RunFolder
from videomamba_depth.training.trainer import Trainer
from videomamba_depth.utils.logger import read_json_lines

CPU = torch.device("cpu")
STEPS, TOTAL, WARMUP, CHUNK, ACCUMULATE = 5, 8, 2, 2, 2
LR, FINAL, CLIP, DECAY, BETAS, WEIGHT_DECAY = 0.01, 0.1, 0.5, 0.6, (0.7, 0.9), 0.2


def small_trainer(folder: Path, teacher: str) -> Trainer:
    """Clips of 5 frames in chunks of 2: border, odd rest and accumulation over a border all occur."""
    numbers = {
        "data.clip_frames": 5, "data.p_single_frame": 0, "data.batch_size": 2, "data.short_side": 28,
        "data.crop": "[28,42]", "model.scan_backend": "reference", "loss.state_smoothness_weight": 0,
        "trainer.steps": STEPS, "trainer.total_steps": TOTAL, "trainer.chunk_frames": CHUNK,
        "trainer.accumulate": ACCUMULATE, "trainer.checkpoint_every": STEPS, "trainer.reset_probability": 0,
        "trainer.precision": "float32", "trainer.device": "cpu", "trainer.logger": "none", "trainer.picture_every": 0,
        "optim.lr": LR, "optim.warmup_steps": WARMUP, "optim.final_lr_ratio": FINAL, "optim.grad_clip": CLIP,
        "optim.ema_decay": DECAY, "optim.beta1": BETAS[0], "optim.beta2": BETAS[1], "optim.weight_decay": WEIGHT_DECAY,
    }  # fmt: skip
    overrides = ["debug=smoke", f"teacher.name={teacher}", *(f"{key}={value}" for key, value in numbers.items())]
    config = load_config("train", TrainConfig, overrides)
    return build_trainer(config, Ranks(0, 1, CPU), RunFolder(folder), asdict(config))


def plain_loop(trainer: Trainer) -> tuple[VideoMambaDepth, dict[str, Tensor], list[dict[str, float]]]:
    """Train a copy of the student from its public call alone; return it, its average and the records."""
    student = copy.deepcopy(trainer.student)
    learned = {name: p for name, p in student.named_parameters() if p.requires_grad}
    still = [p for name, p in learned.items() if p.ndim == 1 or name.endswith("A_log")]
    groups = [
        {
            "params": [p for p in learned.values() if all(p is not other for other in still)],
            "weight_decay": WEIGHT_DECAY,
        },
        {"params": still, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS)
    average = {name: w.clone() for name, w in student_weights(student).items()}
    batches = trainer._batches_from(0)
    clip: Any = None
    start, states, tail, records = 0, None, None, []
    for step in range(STEPS):
        ramp = 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (TOTAL - WARMUP)))
        lr = LR * ((step + 1) / WARMUP if step < WARMUP else FINAL + (1 - FINAL) * ramp)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss_sum = 0.0
        for _ in range(ACCUMULATE):
            if clip is None or start >= clip.rgb.shape[1]:
                clip = trainer.labeller(next(batches), CPU)
                start, states, tail = 0, None, None
            chunk = slice(start, min(start + CHUNK, clip.rgb.shape[1]))
            depth, states, _ = student(clip.rgb[:, chunk], states)
            target = type(clip.target)(*(x[:, chunk] for x in clip.target))
            sums, tail = trainer.objective(depth, target, (), tail)
            loss = torch.stack([mean_of_sums(*term) for term in sums.values()]).sum() / ACCUMULATE
            loss.backward()
            states, start, loss_sum = states.detach(), chunk.stop, loss_sum + loss.item()
        norm = nn.utils.clip_grad_norm_(learned.values(), CLIP)
        optimizer.step()
        decay = min(DECAY, (1 + step) / (10 + step))
        for name, w in student_weights(student).items():
            average[name] = decay * average[name] + (1 - decay) * w
        records.append({"loss/total": loss_sum, "optim/lr": lr, "optim/grad_norm": float(norm)})
    return student, average, records


def test_the_trainer_is_the_plain_loop(tmp_path: Path, tiny_teacher_folder: str) -> None:
    trainer = small_trainer(tmp_path, tiny_teacher_folder)
    before = copy.deepcopy(student_weights(trainer.student))
    student, average, records = plain_loop(trainer)
    assert trainer.fit()
    for expected, got in zip(records, read_json_lines(trainer.run.path / "metrics.jsonl"), strict=True):
        for key, value in expected.items():
            assert got[key] == pytest.approx(value, rel=1e-4), key
    assert max(record["optim/grad_norm"] for record in records) > CLIP  # else clipping would not be seen
    saved = read_weights(trainer.run.last / "student.safetensors")
    moved = 0.0
    for name, w in student_weights(trainer.student).items():
        torch.testing.assert_close(w, student_weights(student)[name], rtol=1e-4, atol=1e-5, msg=name)
        torch.testing.assert_close(saved[name], average[name], rtol=1e-4, atol=1e-5, msg=name)
        moved = max(moved, float((w - before[name]).abs().max()))
    assert moved > 100 * 1e-5
    assert any(not torch.allclose(saved[name], w, atol=1e-3) for name, w in student_weights(student).items())
