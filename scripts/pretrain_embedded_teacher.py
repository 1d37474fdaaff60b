#!/usr/bin/env python
"""Train the small Depth Anything teacher that is shipped with the package, from scratch, on the synthetic world.

    python scripts/pretrain_embedded_teacher.py                                       # render, train, evaluate, save
    torchrun --nproc-per-node=2 scripts/pretrain_embedded_teacher.py --threads 1     # the same in two processes
    python scripts/pretrain_embedded_teacher.py --evaluate-only videomamba_depth/assets/embedded_teacher

Stills and checkpoints live in --work-dir; run again after an interruption, the job continues where it was.
"""

import argparse
import json
import logging
import math
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import unfold
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from videomamba_depth.data.synthetic import WorldConfig, iter_video
from videomamba_depth.data.synthetic.stills import FIRST_SEED, STILL_SIZE, Stills, render_stills
from videomamba_depth.losses.midas_se import midas_se_loss, target_spread
from videomamba_depth.models.encoder_da import EMBEDDED_TEACHER, DepthAnythingEncoder
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError, exit_on_user_error
from videomamba_depth.utils.logger import configure_logging
from videomamba_depth.utils.metrics_accuracy import accuracy

log = logging.getLogger("pretrain_embedded_teacher")

HELD_OUT_SEEDS = 5_000_000  # of the evaluation; training scenes begin at FIRST_SEED, far above
NATIVE_SIZE = 112  # short side in px
# Height, width of the batches in px, drawn anew for each step: small ones first, since they cost less, then all.
EARLY_RESOLUTIONS = ((70, 98), (84, 84), (84, 84), (84, 112))
LATE_RESOLUTIONS = ((84, 112), (98, 98), (98, 126), (112, 112), (112, 140))
DECAY_SHARE = 0.35  # of the steps, the last ones, in which the learning rate falls and LATE_RESOLUTIONS are drawn
MAX_DEPTH_M = {"rooms": 20.0, "courtyard": 30.0}  # beyond it lies nothing in a room and the sky in the courtyard
TARGET_MEAN = 3.0  # of the prediction over a frame; the head's last bias starts there, or its ReLU dies
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun
Batch = tuple[Tensor, Tensor]


def draw_batch(stills: Stills, step: int, args: argparse.Namespace) -> Batch:
    """Draw this process's share of a step's batch, a function of (seed, step, process): a resumed run sees the same.

    Returns rgb [b,3,h,w] in [0,1] and inverse depth [b,1,h,w] in 1/m.
    """
    count, per_epoch = len(stills.done), len(stills.done) // args.batch_size
    resolutions = LATE_RESOLUTIONS if step >= decay_start(args) else EARLY_RESOLUTIONS
    height, width = resolutions[np.random.default_rng([args.seed, step]).integers(len(resolutions))]
    order = np.random.default_rng([args.seed, 1, step // per_epoch]).permutation(count)
    chosen = order[(step % per_epoch) * args.batch_size :][: args.batch_size][RANK::WORLD_SIZE]
    rng = np.random.default_rng([args.seed, step, RANK])
    pairs = [augment(rng, stills.rgb[i], stills.inv_depth[i], height, width) for i in chosen]
    rgb, inv_depth = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    return torch.from_numpy(rgb).permute(0, 3, 1, 2), torch.from_numpy(inv_depth)[:, None]


def augment(
    rng: np.random.Generator, rgb: NDArray[np.uint8], inv_depth: NDArray[np.float16], height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Crop, resize, flip and recolour one still; return rgb [h,w,3] in [0,1] and inverse depth [h,w]."""
    full_h, full_w = rgb.shape[:2]
    fit = min(full_h / height, full_w / width) * rng.uniform(0.75, 1.0)
    crop_h, crop_w = int(height * fit), int(width * fit)
    top, left = rng.integers(full_h - crop_h + 1), rng.integers(full_w - crop_w + 1)
    window = np.s_[top : top + crop_h, left : left + crop_w]
    image = cv2.resize(rgb[window], (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
    target = cv2.resize(inv_depth[window].astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        image, target = image[:, ::-1], target[:, ::-1]
    if rng.random() < 0.1:
        image = image[..., rng.permutation(3)]
    if rng.random() < 0.05:
        image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    image = image ** np.float32(np.exp(rng.normal(0, 0.15))) * (1 + rng.normal(0, 0.05, 3).astype(np.float32))
    image = (image - 0.5) * np.float32(np.exp(rng.normal(0, 0.1))) + np.float32(0.5 + rng.normal(0, 0.03))
    if rng.random() < 0.1:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.2))
    image = image + rng.uniform(0, 0.015) * rng.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 1).astype(np.float32), np.ascontiguousarray(target)


def build_model() -> DepthAnythingForDepthEstimation:
    """Build a Depth Anything with 3.9 million parameters, relative, random weights."""
    backbone = Dinov2Config(
        hidden_size=192,
        num_hidden_layers=7,
        num_attention_heads=3,
        image_size=NATIVE_SIZE,
        patch_size=14,
        out_indices=[2, 4, 5, 7],
        reshape_hidden_states=False,
        apply_layernorm=True,
        layerscale_value=1.0,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=192,
        patch_size=14,
        neck_hidden_sizes=[24, 48, 96, 96],
        fusion_hidden_size=48,
        head_hidden_size=32,
        depth_estimation_type="relative",
        attn_implementation="eager",  # on a CPU its backward pass is the faster one
    )
    model = DepthAnythingForDepthEstimation(config)
    # With the library's start, a std of 0.02 for every convolution, the decoder's output varies by 6e-6. Here every
    # projection keeps the variance and every residual unit starts as the identity.
    for name, module in (*model.neck.named_modules(), ("conv1", model.head.conv1), ("conv2", model.head.conv2)):
        if name.endswith("convolution2"):
            torch.nn.init.zeros_(module.weight)
        elif isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            if "residual" in name or name.startswith("conv"):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            else:
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    torch.nn.init.constant_(model.head.conv3.bias, TARGET_MEAN)
    return model


@torch.no_grad()
def initialise_tokens(model: DepthAnythingForDepthEstimation, stills: Stills, args: argparse.Namespace) -> None:
    """Start the patch embedding as a whitening of real patches and the position embedding as sines of the position.

    Meant to spare a short training the search for these; its share in the result was not measured.
    """
    size, width = model.config.patch_size, model.config.backbone_config.hidden_size
    batches = [normalised(draw_batch(stills, step, args)[0]) for step in range(60)]
    patches = torch.cat([unfold(batch, size, stride=size).transpose(1, 2).flatten(0, 1) for batch in batches]).double()
    patches = patches - patches.mean(0)
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    variances, directions = variances[-width:], directions[:, -width:]
    filters = directions / (variances + 1e-3 * variances.max()).sqrt()
    model.backbone.embeddings.patch_embeddings.projection.weight.copy_(filters.T.reshape(width, 3, size, size))

    side = NATIVE_SIZE // size
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    rates = 1.2 * 50.0 ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.cat([axis.flatten()[:, None] * rates for axis in (x, y)], 1)
    model.backbone.embeddings.position_embeddings[0, 1:] = 0.5 * torch.cat([angles.sin(), angles.cos()], 1)


def normalised(rgb: Tensor) -> Tensor:
    """Return RGB [b,3,h,w] in [0,1] in units of ImageNet's mean and std."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (rgb - mean) / std


def predict(model: torch.nn.Module, rgb: Tensor) -> Tensor:
    """Return inverse depth [b,1,h,w] of rgb [b,3,h,w] in [0,1]."""
    pixels = normalised(rgb).contiguous(memory_format=torch.channels_last)
    return model(pixel_values=pixels).predicted_depth[:, None]


def teacher_loss(prediction: Tensor, inv_depth: Tensor) -> tuple[Tensor, Tensor]:
    """Return an absolute term with multi-scale gradients and a relative term, both scalars.

    The target y is the exact inverse depth scaled to the mean TARGET_MEAN in each frame, so nothing is left for an
    alignment to find. (With a fitted, detached scale and shift instead, most of the L1 term's gradient is a push on the
    level of the whole map, since least squares balances residuals and not their signs: training hardly moved.)
    The first term is mean |p − y| plus gradients, in units of the target's spread, but of no less than a fifth of its
    mean: a picture of one flat wall must not outweigh a batch. The second, mean |p − y| / (y + 0.1·ȳ), weighs far
    surfaces as AbsRel does. Source: ours.
    """
    y = inv_depth * (TARGET_MEAN / inv_depth.mean((1, 2, 3), keepdim=True))
    valid = torch.ones_like(y, dtype=torch.bool)[:, None]
    spread = target_spread(y[:, None], valid).clamp(min=0.2 * TARGET_MEAN)
    pinned = torch.ones(1), torch.zeros(1)
    absolute = midas_se_loss(
        prediction[:, None], y[:, None], valid, scale_shift=pinned, gradient_weight=0.2, spread=spread
    )
    relative = ((prediction - y).abs() / (y + 0.1 * TARGET_MEAN)).mean()
    return absolute, relative


def decay_start(args: argparse.Namespace) -> int:
    """Return the step at which the learning rate begins to fall."""
    return round(args.steps * (1 - DECAY_SHARE))


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, a plateau, then a half cosine down to 1 % of the peak.

    Until it falls, the rate does not depend on args.steps: a run may be resumed with fewer or more steps and ends as
    if it had been started with them.
    """
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    progress = max(0, step - decay_start(args)) / max(1, args.steps - decay_start(args))
    return args.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def average_gradients(model: torch.nn.Module) -> None:
    """Replace every gradient by its mean over the processes."""
    if WORLD_SIZE == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    parts = (flat / WORLD_SIZE).split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def train(stills: Stills, args: argparse.Namespace) -> tuple[DepthAnythingForDepthEstimation, float]:
    """Train, from the last checkpoint if there is one; return the averaged (EMA) model and the seconds it took."""
    torch.manual_seed(args.seed)
    model = build_model()
    initialise_tokens(model, stills, args)
    model = model.to(memory_format=torch.channels_last).train()
    average = build_model().requires_grad_(False)
    average.load_state_dict(model.state_dict())
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.99), fused=True)
    checkpoint, start, spent_s = args.work_dir / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        start, spent_s = saved["step"], saved["spent_s"]
        log.info("continue at step %d", start)
    started, sums, since = time.monotonic(), torch.zeros(3), time.monotonic()
    with ThreadPoolExecutor(1) as loader:
        upcoming = loader.submit(draw_batch, stills, start, args)
        for step in range(start, args.steps):
            rgb, inv_depth = upcoming.result()
            upcoming = loader.submit(draw_batch, stills, step + 1, args)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args)
            absolute, relative = teacher_loss(predict(model, rgb), inv_depth)
            (absolute + relative).backward()
            average_gradients(model)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()
            optimizer.zero_grad()
            decay = min(args.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
            sums += torch.stack([absolute.detach(), relative.detach(), norm])
            if (step + 1) % args.log_every == 0:
                seconds = (time.monotonic() - since) / args.log_every
                log.info(
                    "step %5d/%d  absolute %.4f  relative %.4f  grad %5.2f  lr %.1e  %4.0f ms/step  ETA %4.0f s",
                    step + 1, args.steps, *(sums / args.log_every).tolist(), learning_rate(step, args),
                    1e3 * seconds, seconds * (args.steps - step - 1),
                )  # fmt: skip
                sums, since = torch.zeros(3), time.monotonic()
            if RANK == 0 and ((step + 1) % args.save_every == 0 or step + 1 == args.steps):
                total_s = spent_s + time.monotonic() - started
                state = {"model": model.state_dict(), "average": average.state_dict(), "step": step + 1}
                torch.save({**state, "optimizer": optimizer.state_dict(), "spent_s": total_s}, f"{checkpoint}.tmp")
                os.replace(f"{checkpoint}.tmp", checkpoint)
            if RANK == 0 and args.evaluate_every and (step + 1) % args.evaluate_every == 0:
                save_teacher(average, args.work_dir / "latest")
                log.info("held out: %s", json.dumps(evaluate(args.work_dir / "latest", 32)))
                since = time.monotonic()
    return average, spent_s + time.monotonic() - started


def evaluate(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Judge a teacher on frames of scenes that it never saw, each aligned by itself (EVALUATION: per-frame alignment).

    One frame with the default camera defects from each of `count` scenes per family; frames of 112×140 px reach the
    network with the short side NATIVE_SIZE. Returns family → {"abs_rel", "delta1", "rmse" (m), "rmse_log"}.
    """
    teacher = DepthAnythingEncoder.from_pretrained(str(folder), input_size=NATIVE_SIZE)
    report = {}
    for family, max_depth_m in MAX_DEPTH_M.items():
        config = WorldConfig(num_frames=1, family=family)  # type: ignore[arg-type]
        frames = [next(iter_video(HELD_OUT_SEEDS + i, config)) for i in range(count)]
        rgb = torch.from_numpy(np.stack([f.rgb for f in frames])).permute(0, 3, 1, 2).float() / 255
        prediction = torch.cat([teacher.predict_depth(part) for part in rgb.split(16)])
        depth_m = np.stack([f.depth_m for f in frames])
        scores = accuracy(prediction, depth_m, depth_kind=DepthKind.RELATIVE, max_depth_m=max_depth_m)
        report[family] = {name: round(value, 4) for name, value in scores["per_frame"].items()}
    return report


def save_teacher(model: DepthAnythingForDepthEstimation, folder: Path) -> None:
    """Write weights in float16 and the preprocessing in the format of the published checkpoints."""
    half = build_model()
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # some versions leave it to the owner alone
    preprocessing = {
        "image_processor_type": "DPTImageProcessor",
        "do_resize": True,
        "size": {"height": NATIVE_SIZE, "width": NATIVE_SIZE},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 14,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "do_pad": False,
        "size_divisor": None,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n", encoding="utf-8")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.machine()


def write_model_card(
    folder: Path, report: dict[str, dict[str, float]], args: argparse.Namespace, seconds: float
) -> None:
    """Write README.md beside the weights: what they are, how they were made, what they score, what they cannot do."""
    template = Path(__file__).with_name("embedded_teacher_card.md").read_text(encoding="utf-8")
    rows = [
        f"| {family} | {'never' if family == 'courtyard' else 'other scenes'} | {MAX_DEPTH_M[family]:.0f} m "
        f"| {s['abs_rel']:.3f} | {s['delta1']:.3f} | {s['rmse']:.2f} m |"
        for family, s in report.items()
    ]
    weights = folder / "model.safetensors"
    card = template.format(
        results="\n".join(rows),
        parameters=f"{sum(p.numel() for p in build_model().parameters()) / 1e6:.2f}",
        megabytes=f"{weights.stat().st_size / 1e6:.2f}",
        minutes=round(seconds / 60),
        evaluation_frames=args.evaluation_frames,
        native_size=NATIVE_SIZE,
        still_size=f"{STILL_SIZE[0]}×{STILL_SIZE[1]}",
        held_out_seed=HELD_OUT_SEEDS,
        training_seed=FIRST_SEED,
        processes=WORLD_SIZE,
        hardware=f"{_processor()}, {WORLD_SIZE} process(es) of {args.threads} thread(s), float32",
        **{
            name: getattr(args, name)
            for name in ("num_stills", "steps", "batch_size", "lr", "warmup", "seed", "threads")
        },
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=EMBEDDED_TEACHER, help="folder of the finished teacher")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/embedded_teacher"), help="stills, checkpoints")
    parser.add_argument("--num-stills", type=int, default=8_000, help="training scenes, one still of each")
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--warmup", type=int, default=100, help="steps of linear warm-up")
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights, which are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the training")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that render")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--evaluate-every", type=int, default=500, help="0 for only at the end")
    parser.add_argument("--evaluation-frames", type=int, default=200, help="held-out scenes per family")
    parser.add_argument("--evaluate-only", type=Path, metavar="FOLDER", help="print the scores of a teacher and stop")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(argv)
    configure_logging()
    torch.set_num_threads(args.threads)
    if args.evaluate_only is not None:
        print(json.dumps(evaluate(args.evaluate_only, args.evaluation_frames), indent=2))
        return
    if args.num_stills < args.batch_size:
        raise UserError(f"--num-stills {args.num_stills} is less than a batch; give at least {args.batch_size}")
    if WORLD_SIZE > 1:
        torch.distributed.init_process_group("gloo")
    if RANK == 0:
        render_stills(args.work_dir / "stills", args.num_stills, args.workers)
    if WORLD_SIZE > 1:
        torch.distributed.barrier()
    average, seconds = train(Stills(args.work_dir / "stills", args.num_stills), args)
    if RANK != 0:
        return
    save_teacher(average, args.output)
    report = evaluate(args.output, args.evaluation_frames)
    write_model_card(args.output, report, args, seconds)
    log.info("saved %s; held out, per frame: %s", args.output, json.dumps(report))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
