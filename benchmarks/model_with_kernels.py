"""What the fused kernels change in the depth model: one streamed frame and one training step, with and without them.

    OMP_NUM_THREADS=1 python benchmarks/model_with_kernels.py
    OMP_NUM_THREADS=1 python benchmarks/model_with_kernels.py --form plain

A student of Small size with random weights does both in one process, once with VIDEOMAMBA_DISABLE_FUSED=1 (the plain
PyTorch reference of scan and convolution) and once without, in turn. A training step is what the trainer does between
two chunks: encode, forward, loss, backward through time, AdamW. The table shows the fastest and the median round.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from random_models import build_encoder, build_student
from torch import Tensor

from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.device import autocast

_SWITCH = "VIDEOMAMBA_DISABLE_FUSED"
Call = Callable[[], object]


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=266, help="side of a frame in px, a multiple of 14")
    parser.add_argument("--form", default="innovation", choices=["innovation", "plain"], help="of the temporal stacks")
    parser.add_argument("--chunk", type=int, default=4, help="frames of a training step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    # A stream freezes its model, so the one that trains is another.
    student, learner = (build(args.form).to(args.device) for _ in range(2))
    student.encoder.short_side = learner.encoder.short_side = args.size
    print(f"{platform.machine()}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}")
    print(f"{args.form} form, {args.size}x{args.size} px, {args.dtype}, training on chunks of {args.chunk} frames\n")
    print("| call | plain PyTorch, ms: best (median) | fused | ratio of the best |")
    print("|---|---|---|---|")
    calls: dict[str, Call] = {
        "one streamed frame": frame_call(student, args.size, args.dtype),
        "its temporal part alone": temporal_call(student, args.size, args.dtype),
        "one training step": training_call(learner, args.size, args.chunk, args.dtype),
    }
    for name, call in calls.items():
        plain, fused = measure(call, args.rounds if "training" in name else 3 * args.rounds)
        print(f"| {name} | {cell(plain)} | {cell(fused)} | {min(plain) / min(fused):.2f} |", flush=True)


def build(form: str) -> VideoMambaDepth:
    """Return a student of Small size with the temporal stacks of configs/model/plain_stack.yaml or plain.yaml."""
    spec = TemporalSpec()
    if form == "plain":
        fine = ScaleSpec(1, "plain", d_state=8)
        coarse = ScaleSpec(2, "plain", d_state=16, expand=2)
        spec = TemporalSpec(fine, fine, coarse, coarse)
    return build_student(build_encoder("small"), spec, moves=False, refines=False, train_head=True)


def frame_call(student: VideoMambaDepth, size: int, dtype: str) -> Call:
    """Return one step of a stream in mid-flight."""
    stream = DepthStream(student, device=str(student.device), precision=dtype, resolution="model")
    frame = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8).numpy()
    return lambda: stream.step(frame)


def temporal_call(student: VideoMambaDepth, size: int, dtype: str) -> Call:
    """Return the temporal stacks alone on one frame's features."""
    clip = torch.rand(1, 1, 3, size, size, device=student.device)
    precision = getattr(torch, dtype)

    @torch.inference_mode()
    def call() -> object:
        with autocast(student.device, precision):
            return [
                scale(features[name], states.frame_index, states.layers[name], None, states.memory)
                for name, scale in student.temporal.items()
            ]

    with torch.inference_mode(), autocast(student.device, precision):
        features = student.encode(clip)
        states = student(clip, features=features).states
    return call


def training_call(student: VideoMambaDepth, size: int, chunk: int, dtype: str) -> Call:
    """Return one optimizer step on a chunk that continues another, with a plain loss."""
    student.train()
    trainable = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-6)
    clip = torch.rand(1, chunk, 3, size, size, device=student.device)
    target = torch.rand(1, chunk, size, size, device=student.device)
    precision = getattr(torch, dtype)
    with torch.no_grad(), autocast(student.device, precision):
        states = student(clip[:, :1]).states

    def call() -> Tensor:
        with autocast(student.device, precision):
            depth = student(clip, states).depth
        loss = (depth.float().reshape(target.shape) - target).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def measure(call: Call, rounds: int) -> tuple[list[float], list[float]]:
    """Return milliseconds without and with fused kernels, the two in turn, after one call of each to warm up."""
    times: dict[str, list[float]] = {"1": [], "0": []}
    for index in range(-1, rounds):
        for switch, values in times.items():
            os.environ[_SWITCH] = switch
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if index >= 0:
                values.append((time.perf_counter() - start) * 1e3)
    del os.environ[_SWITCH]
    return times["1"], times["0"]


def cell(times_ms: list[float]) -> str:
    """Return best (median)."""
    return f"{min(times_ms):.0f} ({statistics.median(times_ms):.0f})"


if __name__ == "__main__":
    main()
