"""Numbers of the loop and of the optimizer; `configs/trainer` and `configs/optim` hold their values and meaning."""

from __future__ import annotations

from dataclasses import dataclass

from videomamba_depth.utils.device import DTYPES
from videomamba_depth.utils.settings import choice, ranged

_COUNT = 10**9


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """AdamW, its schedule, and the average of the weights."""

    lr: float = ranged(0, 10, open="low")
    weight_decay: float = ranged(0, 100)
    beta1: float = ranged(0, 1, open="high")
    beta2: float = ranged(0, 1, open="high")
    warmup_steps: int = ranged(0, _COUNT)
    final_lr_ratio: float = ranged(0, 1)
    grad_clip: float = ranged(0, 1e9)
    ema_decay: float = ranged(0, 1, open="high")


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """The loop."""

    steps: int = ranged(1, _COUNT)
    total_steps: int | None = ranged(1, _COUNT, None)
    chunk_frames: int = ranged(1, 100_000)
    reset_probability: float = ranged(0, 1)
    accumulate: int = ranged(1, 100_000)
    precision: str = choice("auto", *DTYPES)
    channels_last: bool
    compile: bool
    prefetch: bool = True
    label_memory_gb: float = ranged(0, 1e6, 1.0)
    device: str = choice("auto", "cpu", "cuda")
    threads: int | None = ranged(1, 1024, None)
    seed: int = ranged(0, 2**31 - 1)
    deterministic: bool
    checkpoint_every: int = ranged(1, _COUNT)
    keep_checkpoints: int = ranged(1, _COUNT)
    log_every: int = ranged(1, _COUNT)
    picture_every: int = ranged(0, _COUNT)
    logger: str = choice("tensorboard", "wandb", "none")

    @property
    def schedule_steps(self) -> int:
        """Length of the learning rate's curve."""
        return self.total_steps or self.steps
