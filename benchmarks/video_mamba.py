"""Measure the streaming backbone: time per frame and memory, in chunks of 1, 4 and 16 frames and over the whole clip.

Prints one Markdown table per precision. Modes take turns within a round, so that a noisy machine disturbs them alike,
and the best round counts. Times are CPU time of one thread (on one idle core: wall time). Working memory is the most
that tensors hold at once, over the model and the clip.

    OMP_NUM_THREADS=1 python benchmarks/video_mamba.py --variants t s
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from videomamba_depth.video_mamba import PretrainVideoMamba, allocate_state
from videomamba_depth.video_mamba.variants import VARIANTS


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["t", "s"], choices=tuple(VARIANTS))
    parser.add_argument("--chunks", nargs="+", type=int, default=[1, 4, 16], help="frames per call")
    parser.add_argument("--frames", type=int, default=32, help="frames of the whole clip")
    parser.add_argument("--size", type=int, default=224, help="side of a frame in px")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", nargs="+", default=["float32"], choices=("float32", "bfloat16"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, PyTorch {torch.__version__.split('+')[0]}")
    for precision in args.precision:
        name = precision if precision == "float32" else f"{precision} autocast"
        print(f"\n{name}, {args.size}x{args.size} px, one thread, whole clip: {args.frames} frames\n")
        print("| variant | frames per call | ms per frame | against the whole clip | state MB | working memory MB |")
        print("|---|---|---|---|---|---|")
        for variant in args.variants:
            for row in measure(variant, precision, args):
                print(row, flush=True)


def processor() -> str:
    """Return the name of the CPU, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def build(variant: str, args: argparse.Namespace) -> PretrainVideoMamba:
    """Return the model in eval mode; its weights do not matter for speed."""
    torch.manual_seed(0)
    size = VARIANTS[variant]._asdict()
    return PretrainVideoMamba(**size, img_size=args.size, pool_type="avg", temporal_policy="clamp").eval()


@torch.inference_mode()
def stream(model: PretrainVideoMamba, clip: Tensor, chunk: int, precision: str) -> Iterator[None]:
    """Run a clip in chunks, yielding after each."""
    state = allocate_state(model, 1)
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()
    for start in range(0, clip.shape[2], chunk):
        with autocast:
            part = clip[:, :, start : start + chunk]
            _, _, state = model(part, ssm_state=state, temporal_pos_offset=start)
        yield


def measure(variant: str, precision: str, args: argparse.Namespace) -> Iterator[str]:
    """Yield one table row per mode; the last is the whole clip."""
    model = build(variant, args)
    clip = torch.randn(1, 3, args.frames, args.size, args.size)
    modes = [*args.chunks, args.frames]
    best = dict.fromkeys(modes, float("inf"))
    for _ in stream(model, clip[:, :, :1], 1, precision):
        pass  # compiles the kernels
    for _ in range(args.rounds):
        for chunk in modes:
            start = time.process_time()
            for _ in stream(model, clip, chunk, precision):
                pass
            best[chunk] = min(best[chunk], (time.process_time() - start) * 1e3 / args.frames)
    whole = best[args.frames]
    for chunk in modes:
        peak = peak_mb(model, clip, chunk, precision)
        name = f"{chunk} (whole clip)" if chunk == args.frames else str(chunk)
        ratio = f"{best[chunk] / whole:.2f}x"
        yield f"| {variant} | {name} | {best[chunk]:.1f} | {ratio} | {state_mb(model):.2f} | {peak:.0f} |"


def state_mb(model: PretrainVideoMamba) -> float:
    """Return the size of one stream's state in MB."""
    state = allocate_state(model, 1)
    return sum(t.numel() * t.element_size() for layer in state for t in layer) / 2**20


def peak_mb(model: PretrainVideoMamba, clip: Tensor, chunk: int, precision: str) -> float:
    """Return the most that tensors ever held at once while streaming two chunks, over model and clip, in MB."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in stream(model, clip[:, :, : 2 * chunk], chunk, precision):
            pass
    held, peak = 0, 0
    events = profile.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


if __name__ == "__main__":
    main()
