"""Measure the streaming backbone: time per frame and memory, in chunks of 1, 4 and 16 frames and over the whole clip.

Prints one Markdown table per precision. Modes take turns within a round, so that a noisy machine disturbs them alike,
and the best round counts. Times are CPU time of one thread (on one idle core: wall time); memory is measured in a
process per mode (Linux): what the resident set grows by at its peak, over the model and the clip.

    OMP_NUM_THREADS=1 python benchmarks/video_mamba.py --variants t s
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Iterator

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
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # JSON [variant, chunk, precision]: a child's task
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of:
        print(json.dumps(memory_mb(*json.loads(args.memory_of), args)))
        return
    for precision in args.precision:
        print(f"\n{precision}{' autocast' if precision != 'float32' else ''}, {args.size}x{args.size} px, one thread\n")
        print("| variant | frames per call | ms per frame | against the whole clip | state MB | working memory MB |")
        print("|---|---|---|---|---|---|")
        for variant in args.variants:
            for row in measure(variant, precision, args):
                print(row, flush=True)


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
        task = ["--memory-of", json.dumps([variant, chunk, precision]), "--size", str(args.size)]
        command = [sys.executable, __file__, *task, "--frames", str(args.frames)]
        state_mb, peak_mb = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        name = f"{chunk} (whole clip)" if chunk == args.frames else str(chunk)
        ratio = f"{best[chunk] / whole:.2f}x"
        yield f"| {variant} | {name} | {best[chunk]:.1f} | {ratio} | {state_mb:.2f} | {peak_mb:.0f} |"


def memory_mb(variant: str, chunk: int, precision: str, args: argparse.Namespace) -> tuple[float, float]:
    """Return (size of the state, growth of the resident set over the loaded model) in MB, of three chunks."""
    model = build(variant, args)
    frames = min(3 * chunk, args.frames)
    clip = torch.randn(1, 3, frames, args.size, args.size)
    state = allocate_state(model, 1)
    state_bytes = sum(t.numel() * t.element_size() for layer in state for t in layer)
    for _ in stream(model, clip[:, :, :1, :16, :16], 1, precision):
        pass  # loads the kernels
    ctypes.CDLL(None).malloc_trim(0)  # give back what building the model left behind
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    before = _status_mb("VmRSS")
    for _ in stream(model, clip, chunk, precision):
        pass
    return state_bytes / 2**20, _status_mb("VmHWM") - before


def _status_mb(field: str) -> float:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field + ":"))
    return int(line.split()[1]) / 1024  # the file counts in KiB


if __name__ == "__main__":
    main()
