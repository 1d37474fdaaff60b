#!/usr/bin/env python
"""Train the small Depth Anything teacher that is shipped with the package, from scratch, on the synthetic worlds.

    python scripts/pretrain_embedded_teacher.py                 # render, train, save, evaluate
    nice -n 19 python scripts/pretrain_embedded_teacher.py      # in the background of other work, for hours

Stills, checkpoints and the log lie in --work-dir. Rendering goes on in a process of its own while the training uses
the first stills. Stopped at any moment and run again, it continues where it was and ends with the same bits, on the
same machine.
"""

import argparse
import json
import logging
import math
import pickle
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videomamba_depth.data.still_augment import augment_still
from videomamba_depth.data.synthetic.stills import FAMILIES, FIRST_SEED, STILL_SIZE, Stills, rendering
from videomamba_depth.evaluation.teacher_skill import HELD_OUT_SEEDS, skill_on_worlds
from videomamba_depth.losses.still_depth import TARGET_MEAN, still_depth_losses
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.small_depth_anything import (
    NATIVE_SIZE,
    build_small_depth_anything,
    initialize_tokens,
    normalized,
    predict_inverse_depth,
    save_small_depth_anything,
)
from videomamba_depth.utils.arguments import path_argument, positive, whole
from videomamba_depth.utils.atomic import replacing
from videomamba_depth.utils.checkpoint import write_manifest
from videomamba_depth.utils.errors import UserError, exit_on_user_error
from videomamba_depth.utils.lock import exclusive
from videomamba_depth.utils.logger import configure_logging

log = logging.getLogger("pretrain_embedded_teacher")

# Height, width of the batches in patches, drawn anew for each step: small ones first, since they cost less; then the
# native size, wide, upright and larger ones.
EARLY_GRIDS = ((7, 9), (8, 8), (8, 10), (7, 12), (9, 7))
LATE_GRIDS = ((11, 14), (11, 14), (11, 15), (12, 12), (9, 18), (14, 10), (8, 24), (14, 18))
EARLY_STEPS = 6_000
DECAY_SHARE = 0.3  # of the steps, the last ones, in which the learning rate falls
WEIGHT_DECAY = 0.05
LOSS_WEIGHTS = {"relative": 1.0, "affine": 1.0, "gradient": 0.2, "edge": 0.3}
Batch = tuple[Tensor, Tensor]


def num_stills_at(step: int, args: argparse.Namespace) -> int:
    """Return how many stills a step draws from: a function of the step alone, so that a resumed run sees the same."""
    return int(min(args.num_stills, args.first_stills + args.stills_per_step * step))


def draw_batch(stills: Stills, step: int, args: argparse.Namespace) -> Batch:
    """Draw a step's batch, a function of (seed, step): rgb [b,3,h,w] in [0,1] and inverse depth [b,1,h,w] in 1/m."""
    rng = np.random.default_rng([args.seed, step])
    grids = EARLY_GRIDS if step < args.early_steps else LATE_GRIDS
    height, width = (args.patch_size * n for n in grids[rng.integers(len(grids))])
    chosen = rng.integers(num_stills_at(step, args), size=args.batch_size)
    pairs = [augment_still(rng, stills.rgb[i], stills.inv_depth[i], height, width) for i in chosen]
    rgb, inv_depth = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    return torch.from_numpy(rgb).permute(0, 3, 1, 2), torch.from_numpy(inv_depth)[:, None]


def rate_share(step: int, args: argparse.Namespace) -> float:
    """Return the rate's share of its peak: linear warm-up, a plateau, then a half cosine down to 1 %.

    Until it falls, the rate does not depend on args.steps: a run may be resumed with fewer or more steps and ends as
    if it had been started with them.
    """
    if step < args.warmup:
        return (step + 1) / args.warmup
    start = round(args.steps * (1 - DECAY_SHARE))
    progress = max(0, step - start) / max(1, args.steps - start)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the ViT's blocks and AdamW for the rest; the learning rate is set at every step.

    Muon makes each update of a matrix orthogonal (Jordan et al., 2024), here with AdamW's size of update (Liu et al.,
    "Muon is scalable for LLM training", 2025), so that one weight decay serves both.
    """
    if not hasattr(torch.optim, "Muon"):
        raise UserError(f"this training needs torch.optim.Muon, PyTorch 2.9 or newer; this is {torch.__version__}")
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "encoder.layer" in name]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(matrices, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)]


FREE_TO_CHANGE = {
    "output",
    "work_dir",
    "steps",
    "threads",
    "workers",
    "log_every",
    "save_every",
    "evaluate_every",
    "evaluation_frames",
}
"""Arguments that a resumed run may have others of; until the rate falls it does not depend on the steps."""


def decided(args: argparse.Namespace) -> dict[str, str]:
    """Return the arguments that decide the bits of a run."""
    return {name: str(value) for name, value in vars(args).items() if name not in FREE_TO_CHANGE}


class Run:
    """The state of a training: model, its averaged (EMA) copy, optimizers, number of steps done and seconds spent."""

    def __init__(self, first_batches: Callable[[], list[Tensor]], args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.arguments = decided(args)
        shape = {"patch_size": args.patch_size, "width": args.width, "num_layers": args.num_layers}
        self.model = build_small_depth_anything(**shape, mean_prediction=TARGET_MEAN)
        self.average = build_small_depth_anything(**shape).requires_grad_(False)
        self.optimizers = build_optimizers(self.model)
        self.path, self.step, self.spent_s = args.work_dir / "checkpoint.pt", 0, 0.0
        if self.path.exists():
            self._load(args)
        else:
            initialize_tokens(self.model, first_batches())
            self.average.load_state_dict(self.model.state_dict())
        self.model.to(memory_format=torch.channels_last).train()

    def _load(self, args: argparse.Namespace) -> None:
        try:
            saved = torch.load(self.path, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"'{self.path}' is damaged ({error}); delete it to begin again, the stills stay") from error
        before, now = saved.get("arguments", self.arguments), self.arguments
        if changed := [name for name in now if before.get(name) != now[name]]:
            options = ", ".join(f"--{name.replace('_', '-')} {before.get(name)}" for name in changed)
            raise UserError(
                f"the run in '{self.path.parent}' was started with {options}; set it back, or take another --work-dir"
            )
        if saved["step"] > args.steps:
            raise UserError(f"the run in '{self.path.parent}' has done {saved['step']} steps; --steps must be as many")
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.spent_s = saved["step"], saved["spent_s"]
        log.info("continue at step %d", self.step)

    def save(self) -> None:
        """Write the checkpoint atomically."""
        state = {"model": self.model.state_dict(), "average": self.average.state_dict(), "step": self.step}
        state["arguments"] = self.arguments
        with replacing(self.path) as partial:
            optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
            torch.save({**state, "optimizers": optimizers, "spent_s": self.spent_s}, partial)

    def update(self, batch: Batch, args: argparse.Namespace) -> dict[str, float]:
        """Do one step; return the terms of the loss and the norm of the gradient."""
        for optimizer, peak in zip(self.optimizers, (args.lr, args.adamw_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate_share(self.step, args)
        rgb, inv_depth = batch
        prediction = predict_inverse_depth(self.model, rgb, bfloat16=args.precision == "bfloat16")
        terms = still_depth_losses(prediction, inv_depth)
        torch.stack([LOSS_WEIGHTS[name] * term for name, term in terms.items()]).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, error_if_nonfinite=True)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        decay = min(args.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        return {**{name: term.item() for name, term in terms.items()}, "grad": norm.item()}


def train(stills: Stills, renderers: list[BaseProcess], args: argparse.Namespace) -> Run:
    """Train, from the last checkpoint if there is one, while the stills are being rendered."""

    def load(step: int) -> Batch:
        stills.wait_for(num_stills_at(step, args), renderers)
        return draw_batch(stills, step, args)

    run = Run(lambda: [normalized(load(step)[0]) for step in range(60)], args)
    sums: dict[str, float] = {}
    since = time.monotonic()
    with ThreadPoolExecutor(1) as loader:
        upcoming = loader.submit(load, run.step)
        while run.step < args.steps:
            batch = upcoming.result()
            upcoming = loader.submit(load, min(run.step + 1, args.steps - 1))
            for name, value in run.update(batch, args).items():
                sums[name] = sums.get(name, 0.0) + value
            last = run.step == args.steps
            if run.step % args.log_every == 0 or last:
                count = (run.step - 1) % args.log_every + 1
                seconds = time.monotonic() - since
                terms = "  ".join(f"{name} {value / count:.4f}" for name, value in sums.items())
                log.info(
                    "step %6d/%d  %s  lr %.1e  %d stills  %.0f ms/step",
                    run.step, args.steps, terms, args.lr * rate_share(run.step - 1, args),
                    num_stills_at(run.step, args), 1e3 * seconds / count,
                )  # fmt: skip
                sums, since, run.spent_s = {}, time.monotonic(), run.spent_s + seconds
            if run.step % args.save_every == 0 or last:
                run.save()
            if args.evaluate_every and run.step % args.evaluate_every == 0:
                save_small_depth_anything(run.average, args.work_dir / "latest")
                log.info("held out: %s", json.dumps(_evaluate(args.work_dir / "latest", 24)))
                since = time.monotonic()
    return run


def _evaluate(folder: Path, count: int) -> dict[str, dict[str, float]]:
    teacher = DepthAnythingEncoder.from_pretrained(str(folder), short_side=NATIVE_SIZE)
    return skill_on_worlds(teacher.predict_depth, count)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.machine()


def write_model_card(folder: Path, report: dict[str, dict[str, float]], args: argparse.Namespace, run: Run) -> None:
    """Write README.md beside the weights: what they are, how they were made, what they score, what they cannot do."""
    template = Path(__file__).with_name("embedded_teacher_card.md").read_text(encoding="utf-8")
    rows = [
        f"| {family} | {'other scenes' if family in FAMILIES else 'never'} | {s['abs_rel']:.3f} | {s['delta1']:.3f} "
        f"| {s['boundary_f1']:.3f} | {s['constant']:.3f} | {s['ramp']:.3f} |"
        for family, s in report.items()
    ]
    shown = (
        "num_stills",
        "steps",
        "batch_size",
        "lr",
        "adamw_lr",
        "warmup",
        "seed",
        "threads",
        "precision",
        "ema",
        "patch_size",
        "first_stills",
        "stills_per_step",
        "early_steps",
    )
    card = template.format(
        results="\n".join(rows),
        parameters=f"{sum(p.numel() for p in run.model.parameters()) / 1e6:.2f}",
        megabytes=f"{(folder / 'model.safetensors').stat().st_size / 1e6:.2f}",
        hours=f"{run.spent_s / 3600:.1f}",
        drawn_stills=num_stills_at(args.steps, args),
        native_size=NATIVE_SIZE,
        still_size=f"{STILL_SIZE[0]}×{STILL_SIZE[1]}",
        held_out_seed=HELD_OUT_SEEDS,
        training_seed=FIRST_SEED,
        hardware=f"{_processor()}, {args.threads} thread(s)",
        **{name: getattr(args, name) for name in (*shown, "width", "num_layers", "evaluation_frames")},
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    work_dir = Path("runs/embedded_teacher")
    parser.add_argument(
        "--output", type=path_argument, default=work_dir / "final", help="folder of the finished teacher"
    )
    parser.add_argument("--work-dir", type=path_argument, default=work_dir, help="stills, checkpoints, log")
    parser.add_argument("--num-stills", type=whole(1), default=60_000, help="training scenes, one still of each")
    parser.add_argument("--first-stills", type=whole(1), default=1_500, help="stills that the first step draws from")
    parser.add_argument("--stills-per-step", type=positive, default=1.5, help="stills by which that number grows")
    parser.add_argument("--steps", type=whole(1), default=28_000)
    parser.add_argument("--early-steps", type=whole(0), default=EARLY_STEPS, help="steps with small pictures")
    parser.add_argument("--batch-size", type=whole(1), default=16)
    parser.add_argument("--patch-size", type=whole(4, 32), default=10, help="in px")
    parser.add_argument("--width", type=whole(8, 4096), default=256, help="of the ViT, a multiple of 8")
    parser.add_argument("--num-layers", type=whole(4, 100), default=7, help="of the ViT")
    parser.add_argument("--lr", type=positive, default=1e-3, help="of Muon, for the matrices of the ViT's blocks")
    parser.add_argument("--adamw-lr", type=positive, default=2e-4, help="of AdamW, for everything else")
    parser.add_argument("--warmup", type=whole(0), default=200, help="steps of linear warm-up")
    parser.add_argument("--ema", type=positive, default=0.9995, help="decay of the averaged weights, which are kept")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16", help="of the forward pass")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--threads", type=whole(1), default=1, help="of the training")
    parser.add_argument("--workers", type=whole(1), default=1, help="processes that render")
    parser.add_argument("--log-every", type=whole(1), default=50)
    parser.add_argument("--save-every", type=whole(1), default=100)
    parser.add_argument("--evaluate-every", type=whole(0), default=2_500, help="0 for only at the end")
    parser.add_argument("--evaluation-frames", type=whole(1), default=200, help="held-out scenes per family")
    args = parser.parse_args(argv)
    if args.first_stills > args.num_stills:
        raise UserError(f"--first-stills must be at most --num-stills {args.num_stills}; got {args.first_stills}")
    if args.width % 8:
        raise UserError(f"--width must be a multiple of 8; got {args.width}")
    if args.ema >= 1:
        raise UserError(f"--ema must be below 1; got {args.ema}")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(argv)
    configure_logging()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    dated = logging.FileHandler(args.work_dir / "train.log")
    dated.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger().addHandler(dated)
    torch.set_num_threads(args.threads)
    with (
        exclusive(args.work_dir / "lock", f"run '{args.work_dir}'"),
        rendering(args.work_dir / "stills", args.num_stills, args.workers) as (stills, renderers),
    ):
        run = train(stills, renderers, args)
    save_small_depth_anything(run.average, args.output)
    write_manifest(args.output)
    report = _evaluate(args.output, args.evaluation_frames)
    write_model_card(args.output, report, args, run)
    log.info("saved %s; held out, per frame: %s", args.output, json.dumps(report))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
