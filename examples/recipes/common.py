"""What the recipes share: their options, layer-wise learning rates, sizes, and a Trainer that resumes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from videomamba_depth.utils.errors import UserError, exit_on_user_error
from videomamba_depth.video_mamba.checkpoints import save_backbone
from videomamba_depth.video_mamba.embedding import EmbedsFrames
from videomamba_depth.video_mamba.variants import VARIANTS


def parser(description: str | None, epochs: int, lr: float) -> argparse.ArgumentParser:
    """The options that every recipe has; defaults are those of a published fine-tuning."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True, help="checkpoints, log, and the model; run again to resume")
    options.add_argument("--variant", default="t", help=f"{', '.join(VARIANTS)}, or 'layers,channels'")
    options.add_argument("--size", type=int, default=224, help="px, side of the frames")
    options.add_argument("--pretrained", help="file of weights, or a repository on the Hugging Face hub")
    options.add_argument("--family", help="of --pretrained, see docs/video_mamba.md")
    options.add_argument("--epochs", type=float, default=epochs)
    options.add_argument("--batch", type=int, default=32, help="per device")
    options.add_argument("--lr", type=float, default=lr)
    options.add_argument("--layer-decay", type=float, default=0.75, help="factor of the learning rate per layer down")
    options.add_argument("--weight-decay", type=float, default=0.05)
    options.add_argument("--workers", type=int, default=4)
    options.add_argument("--bf16", action="store_true")
    options.add_argument("--cpu", action="store_true")
    return options


def size_of(variant: str) -> dict[str, int]:
    """Return depth and width under transformers' names."""
    if not (variant in VARIANTS or re.fullmatch("[1-9][0-9]*,[1-9][0-9]*", variant)):
        raise UserError(f"--variant must be {', '.join(VARIANTS)} or 'layers,channels' such as 4,96; got {variant!r}")
    depth, width = VARIANTS[variant] if variant in VARIANTS else map(int, variant.split(","))
    return {"num_hidden_layers": depth, "hidden_size": width}


def run(main: Callable[[], Any]) -> None:
    """Print what main returns, once; what a person can mend is one line, from the loader's processes too."""
    with exit_on_user_error():
        try:
            if (metrics := main()) and PartialState().is_main_process:
                print(metrics)
        except (UserError, OSError) as error:
            if "Original Traceback" not in str(error):
                raise
            last = str(error).strip().splitlines()[-1]  # the process's own error, "module.Name: what is wrong"
            raise UserError(last.partition(": ")[2] or last) from error


def parameter_groups(model: nn.Module, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Group parameters by layer and by weight decay: the top learns with lr, layer i with lr · decay^(depth − i)."""
    (backbone,) = [module for module in model.modules() if hasattr(module, "no_weight_decay")][:1]
    spared, depth = backbone.no_weight_decay(), backbone.get_num_layers()
    groups: dict[tuple[int, float], dict[str, Any]] = {}
    prefix = next(name for name, module in model.named_modules() if module is backbone)
    for name, parameter in model.named_parameters():
        inner = name.removeprefix(f"{prefix}.") if prefix else name
        level = depth + 1  # heads
        if inner.startswith("layers."):
            level = int(inner.split(".")[1]) + 1
        elif inner.startswith("patch_embed") or inner in spared:
            level = 0
        plain = parameter.ndim <= 1 or inner in spared or inner.endswith(("A_log", "A_b_log"))
        decay = 0.0 if plain else args.weight_decay
        scale = args.layer_decay ** (depth + 1 - level)
        group = groups.setdefault((level, decay), {"params": [], "lr": args.lr * scale, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


class MixingTrainer(Trainer):
    """transformers' Trainer with a collator of its own for training: `mix` augments across a batch."""

    def __init__(self, *others: Any, mix: Callable[[list], Any] | None = None, **parts: Any) -> None:
        super().__init__(*others, **parts)
        self.mix = mix or self.data_collator

    def get_train_dataloader(self) -> Any:
        plain, self.data_collator = self.data_collator, self.mix
        loader = super().get_train_dataloader()
        self.data_collator = plain
        return loader


def train(model: nn.Module, args: argparse.Namespace, **parts: Any) -> dict[str, float]:
    """Train with `MixingTrainer`, from the last checkpoint in `args.out` if there is one; returns the metrics."""
    arguments = TrainingArguments(
        output_dir=str(args.out),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch,
        per_device_eval_batch_size=args.batch,
        lr_scheduler_type="cosine",
        save_strategy="epoch",
        save_total_limit=2,
        eval_strategy="epoch" if parts.get("eval_dataset") is not None else "no",
        logging_steps=1 if args.epochs * args.batch < 100 else 50,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        dataloader_num_workers=args.workers,
        bf16=args.bf16,
        use_cpu=args.cpu,
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, args))
    trainer = MixingTrainer(model, arguments, optimizers=(optimizer, None), **parts)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(args.out) if args.out.is_dir() else None)
    trainer.save_model()
    return trainer.evaluate() if parts.get("eval_dataset") is not None else {}


def save(model: EmbedsFrames, path: Path) -> None:
    """Write a model's weights, from one process alone; see `save_backbone`."""
    if PartialState().is_main_process:
        save_backbone(model, path)


def accuracy(prediction: Any) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent."""
    scores, labels = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
    best = scores.topk(min(5, scores.shape[1])).indices == labels[:, None]
    return {"top1": 100 * best[:, 0].float().mean().item(), "top5": 100 * best.any(1).float().mean().item()}
