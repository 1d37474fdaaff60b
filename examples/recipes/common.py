"""What the recipes share: their options, layer-wise learning rates, sizes, and a Trainer that resumes."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from transformers import AutoConfig, Trainer, TrainingArguments

from videomamba_depth.utils.errors import UserError, building, exit_on_user_error
from videomamba_depth.video_mamba.checkpoints import Family, save_backbone
from videomamba_depth.video_mamba.embedding import EmbedsFrames
from videomamba_depth.video_mamba.variants import VARIANTS


def is_first_process() -> bool:
    """Return whether this process is the one that writes and prints; torchrun and accelerate number them."""
    return os.environ.get("RANK", "0") == "0"


def parser(description: str | None, epochs: int, lr: float, families: Sequence[Family]) -> argparse.ArgumentParser:
    """The options that every recipe has; defaults are those of a published fine-tuning, and the first of `families`."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True, help="checkpoints, log, and the model; run again to resume")
    options.add_argument("--variant", default="t", help=f"{', '.join(VARIANTS)}, or 'layers,channels'")
    options.add_argument("--size", type=number(16, kind=int), default=224, help="px, side of the frames, at least 16")
    options.add_argument("--pretrained", help="file of weights, or a repository on the Hugging Face hub")
    about = "of --pretrained, see docs/video_mamba.md; default: %(default)s"
    options.add_argument("--family", choices=families, default=families[0], help=about)
    options.add_argument("--epochs", type=number(0), default=epochs, help="0: only write the first weights")
    options.add_argument("--batch", type=number(1, kind=int), default=32, help="per device")
    options.add_argument("--lr", type=number(0), default=lr)
    decay = "factor of the learning rate per layer down"
    options.add_argument("--layer-decay", type=number(0, 1), default=0.75, help=decay)
    options.add_argument("--weight-decay", type=number(0), default=0.05)
    options.add_argument("--workers", type=number(0, kind=int), default=4)
    options.add_argument("--bf16", action="store_true")
    options.add_argument("--cpu", action="store_true")
    return options


def number(low: float, high: float = math.inf, kind: type = float) -> Callable[[str], Any]:
    """Return what reads an option: a finite number from low to high."""

    def number(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high or value == math.inf:
            raise argparse.ArgumentTypeError(f"must be a finite number of {low} to {high}; got {text}")
        return value

    return number


def size_of(variant: str) -> dict[str, int]:
    """Return depth and width under transformers' names."""
    if not (variant in VARIANTS or re.fullmatch("[1-9][0-9]*,[1-9][0-9]*", variant)):
        raise UserError(f"--variant must be {', '.join(VARIANTS)} or 'layers,channels' such as 4,96; got {variant!r}")
    depth, width = VARIANTS[variant] if variant in VARIANTS else map(int, variant.split(","))
    return {"num_hidden_layers": depth, "hidden_size": width}


def labels(classes: Sequence[str]) -> dict[str, dict]:
    """Return the names of the classes as transformers' configs keep them."""
    return {"id2label": dict(enumerate(classes)), "label2id": {name: index for index, name in enumerate(classes)}}


def run(main: Callable[[], Any]) -> None:
    """Print what main returns, once; what a person can mend is one line, from the loader's processes too."""
    with exit_on_user_error():
        try:
            if (metrics := main()) and is_first_process():
                print(metrics)
        except (UserError, OSError) as error:
            if "Original Traceback" not in str(error):
                raise
            last = str(error).strip().splitlines()[-1]  # the process's own error, "module.Name: what is wrong"
            raise UserError(last.partition(": ")[2] or last) from error


def published(option: str, name: str, **kinds: Any) -> Any:
    """Return a model of transformers, a hub id or a folder, by the class of its model_type; others are refused.

    So are files that lack tensors: transformers would make up random ones.
    """
    with building(f"{option} {name}"):
        kind = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
        if kind not in kinds:
            raise UserError(f"it is a {kind!r} model; give one of {', '.join(kinds)}")
        model, about = kinds[kind].from_pretrained(name, output_loading_info=True)
        if lacking := sorted(about["missing_keys"]):
            raise UserError(f"it lacks {len(lacking)} tensors, first {lacking[0]}")
    return model


def gathered(vectors: Tensor) -> Tensor:
    """Return the vectors `[B, C]` of all processes, in their order, with gradients: a loss over the whole batch."""
    if not torch.distributed.is_initialized():
        return vectors
    return torch.cat(all_gather(vectors))


def parameter_groups(model: nn.Module, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Group parameters by layer and by weight decay: the top learns with lr, layer i with lr · decay^(depth − i)."""
    (backbone,) = [module for module in model.modules() if hasattr(module, "no_weight_decay")][:1]
    spared, depth = backbone.no_weight_decay(), backbone.get_num_layers()
    groups: dict[tuple[int, bool], dict[str, Any]] = {}  # as many whatever the options: checkpoints hold them
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
        group = groups.setdefault((level, plain), {"params": [], "lr": args.lr * scale, "weight_decay": decay})
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

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Go on with the learning rates and the weight decay of the options, not with those of the checkpoint."""
        if checkpoint is None:
            return
        names = ("initial_lr", "weight_decay")
        own = [{name: group[name] for name in names} for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        schedule = self.lr_scheduler
        schedule.base_lrs = [group["initial_lr"] for group in own]
        for group, values, factor in zip(self.optimizer.param_groups, own, schedule.lr_lambdas, strict=True):
            group.update(values, lr=values["initial_lr"] * factor(schedule.last_epoch))
        schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]  # what is logged

    def training_step(self, *parts: Any, **others: Any) -> Tensor:
        """Stop before the step where the loss is not finite: nothing is written over what was learned until then."""
        loss = super().training_step(*parts, **others)
        if not loss.isfinite().all():
            raise UserError(
                f"the loss is {loss.item()} after {self.state.global_step} steps; lower --lr and run again: it goes on"
                " from the last checkpoint"
            )
        return loss


def last_checkpoint(out: Path, model: nn.Module) -> str | None:
    """Return the last checkpoint that is complete, None if there is none; weights of another shape are refused.

    The Trainer writes trainer_state.json last: a folder without it was being written when a run was killed.
    """
    found = {int(path.name[11:]): path for path in out.glob("checkpoint-*") if path.name[11:].isdigit()}
    for _, folder in sorted(found.items(), reverse=True):
        held, weights = None, folder / "model.safetensors"
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            for part in folder.glob("*.pt*"):  # of the optimizer, the schedule and the random numbers
                if not zipfile.is_zipfile(part) or zipfile.ZipFile(part).testzip():
                    raise ValueError(f"{part.name} is damaged")
            if weights.is_file():  # FSDP and DeepSpeed write others
                with safe_open(weights, framework="pt") as file:
                    if not any(folder.glob("optimizer*")):
                        raise ValueError("it has no optimizer.pt")
                    held = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
            print(f"{folder} is not complete and left out: {error}")
            continue
        own = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        if held is not None and (wrong := [n for n in {**own, **held} if own.get(n) != held.get(n)]):
            raise UserError(
                f"{folder} is of another model: {wrong[0]} is {held.get(wrong[0])}, not {own.get(wrong[0])}; run again"
                " with the options of its run, or with another --out"
            )
        return str(folder)
    return None


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
        average_tokens_across_devices=False,  # that would multiply the mean loss by the number of processes
        bf16=args.bf16,
        use_cpu=args.cpu,
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, args))
    trainer = MixingTrainer(model, arguments, optimizers=(optimizer, None), **parts)
    trainer.train(resume_from_checkpoint=last_checkpoint(args.out, model))
    trainer.save_model()
    return trainer.evaluate() if parts.get("eval_dataset") is not None else {}


def save(model: EmbedsFrames, path: Path) -> None:
    """Write a model's weights, from one process alone; see `save_backbone`."""
    if is_first_process():
        save_backbone(model, path)


def accuracy(prediction: Any) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent."""
    scores, labels = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
    best = scores.topk(min(5, scores.shape[1])).indices == labels[:, None]
    return {"top1": 100 * best[:, 0].float().mean().item(), "top5": 100 * best.any(1).float().mean().item()}
