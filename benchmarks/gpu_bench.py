"""What `benchmarks/gpu.py` runs with: sizes, timing, counting, and one record of all that was found."""

from __future__ import annotations

import gc
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import torch
import transformers

from selective_scan import DISCRETIZATIONS
from videomamba_depth import __version__

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")


class Sizes:
    """What is run: the sizes of a GPU, or those of a dry run."""

    def __init__(self, dry: bool) -> None:
        self.scan_checked = [(3, 5, 20)] if dry else [(7, 5, 67), (64, 16, 384)]
        self.scan_timed = (
            [(7, 4, 16)] if dry else [(t, n, d) for t, d in ((1369, 384), (21904, 96)) for n in (1, 4, 16)]
        )
        self.scan_large = (40, 4, 16) if dry else (100_000, 4, 96)
        self.methods = ["zoh", "tustin"] if dry else list(DISCRETIZATIONS)
        self.worlds, self.world_px = (1, 48) if dry else (4, 224)
        self.clip_frames, self.clip_px = (2, 56) if dry else (16, 112)
        self.flow_px = [(48, 64)] if dry else [(112, 140), (224, 392), (518, 924)]
        self.frames_px = [(42, 70)] if dry else [(266, 476), (518, 924), (1148, 2044)]  # 14 px patches, about 16:9
        self.encoders = ["tiny"] if dry else ["small", "base", "large"]
        self.precision = "float32" if dry else "bfloat16"
        self.frames, self.warm_up, self.rounds = (2, 0, 2) if dry else (30, 5, 30)
        self.videos = 2 if dry else 8
        self.train_px, self.train_frames = ((42, 56), 3) if dry else ((252, 336), 4)
        self.copied = 1 << 12 if dry else 1 << 30  # bytes
        self.product = 64 if dry else 8192


class Bench:
    """Runs the parts, keeps what they find, and prints it.

    Args:
        dry: on the CPU, at tiny sizes. minutes: for all parts. output: JSON file, written after each part.
    """

    def __init__(self, dry: bool, minutes: float, output: Path | None) -> None:
        self.dry, self.output, self.sizes = dry, output, Sizes(dry)
        self.device = torch.device("cpu" if dry else "cuda")
        self._end = time.perf_counter() + 60 * minutes
        self.found: dict[str, Any] = {
            "about": _about(self.device),
            "checks": [],
            "failed": {},
            "left_out": [],
            "seconds": {},
        }

    def run(self, name: str, needs_s: float, part: Callable[[], None]) -> None:
        """Run a part that takes about `needs_s`; an error is kept, and where too little time is left it is left out."""
        begin = time.perf_counter()
        if begin + needs_s > self._end:
            self.found["left_out"].append(name)
            print(f"{name}: left out, {max(0.0, self._end - begin):.0f} s of the time are left")
            return
        try:
            # A dry run leaves out what compilers do: minutes, and no line of ours.
            with torch.compiler.set_stance("force_eager") if self.dry else nullcontext():
                part()
        except Exception as error:  # the parts after it are worth having
            self.found["failed"][name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            print(f"{name}: {self.found['failed'][name]}")
            traceback.print_exc(limit=-4)
        self.found["seconds"][name] = round(time.perf_counter() - begin, 1)
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
        if self.output:
            self.output.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    def check(self, what: str, error: float, most: float) -> None:
        """Note an error and whether it is small enough; NaN never is."""
        ok = bool(error <= most)
        self.found["checks"].append({"what": what, "error": error, "most": most, "ok": ok})
        print(f"{'ok  ' if ok else 'FAIL'} {what}: {error:.1e} (at most {most:.0e})", flush=True)

    def add(self, part: str, **row: Any) -> None:
        """Keep and print a measurement."""
        self.found.setdefault(part, []).append(row)
        print(f"{part}: " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
        sys.stdout.flush()

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def call_us(self, call: Callable[[], Any], rounds: int | None = None) -> float:
        """Return the median time of a call on the device in µs; launches are hidden by a queue that is full."""
        rounds = rounds or self.sizes.rounds
        for _ in range(3):
            call()
        if self.device.type != "cuda":
            return 1e6 * median(wall_s(call) for _ in range(rounds))
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
        torch.cuda._sleep(20_000_000)
        for start, end in events:
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return 1e3 * median(start.elapsed_time(end) for start, end in events)

    def activity(self, call: Callable[[], Any]) -> dict[str, float]:
        """Return what a call does to the device: launches, waits, copies each way, µs that kernels run."""
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if self.device.type == "cuda" else []
        call()
        self.wait()
        with torch.profiler.profile(activities=kinds) as profile:
            call()
        counts = {event.key: event.count for event in profile.key_averages()}
        busy = [e for e in profile.events() if e.device_type != torch.autograd.DeviceType.CPU]
        return {
            "launches": sum(n for key, n in counts.items() if key.startswith(LAUNCHES)),
            "waits": sum(n for key, n in counts.items() if key in WAITS),
            "to_device": sum(n for key, n in counts.items() if key.startswith("Memcpy HtoD")),
            "to_host": sum(n for key, n in counts.items() if key.startswith("Memcpy DtoH")),
            "busy_us": float(sum(e.time_range.elapsed_us() for e in busy)),
        }

    def peak_mb(self) -> float:
        """Return the most memory that tensors have taken since the last call, and begin anew."""
        if self.device.type != "cuda":
            return 0.0
        peak = torch.cuda.max_memory_allocated() / 1e6
        torch.cuda.reset_peak_memory_stats()
        return peak

    def replayed(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Return a call that replays a CUDA graph of this one; on a CPU the call itself."""
        if self.device.type != "cuda":
            return call
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay


def wall_s(call: Callable[[], Any]) -> float:
    """Return the wall time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _about(device: torch.device) -> dict[str, str]:
    """Return machine, date and versions."""
    about = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU (dry run)",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "videomamba_depth": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "opencv": cv2.__version__,
    }
    if device.type == "cuda":
        import triton

        about |= {"triton": triton.__version__, "cuda": str(torch.version.cuda)}
    return about
