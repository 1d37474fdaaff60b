"""The part of `benchmarks/gpu.py` that takes times."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from gpu_bench import Bench, wall_s
from gpu_checks import distillation_loss, scan_backend, scan_inputs, training_labels
from random_models import build_encoder, build_student, build_variants

from selective_scan import selective_scan, selective_scan_step
from videomamba_depth.flow.estimators import InverseSearchFlow, both_ways
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.device import DTYPES

STATES = 16


def measure_ceilings(bench: Bench) -> None:
    """What this GPU can do at best: bytes of a copy, read and written, and a matrix product on random numbers."""
    source = torch.ones(bench.sizes.copied // 4, device=bench.device)
    target, n = torch.empty_like(source), bench.sizes.product
    gb_per_s = 2e-3 * bench.sizes.copied / bench.call_us(lambda: target.copy_(source), 10)
    a = torch.randn(n, n, device=bench.device).bfloat16()
    tflop_per_s = 2e-6 * n**3 / bench.call_us(lambda: a @ a, 10)
    bench.add("ceilings", copy_GB_per_s=gb_per_s, bfloat16_TFLOP_per_s=tflop_per_s)


def time_scan(bench: Bench) -> None:
    """Forward, step in place and backward in bfloat16, over the time that their bytes take at the speed of a copy."""
    backend, bandwidth = scan_backend(bench), bench.found["ceilings"][0]["copy_GB_per_s"]
    for shape in bench.sizes.scan_timed:
        sequences, length, channels = shape
        inputs = scan_inputs(shape, "zoh", bench.device, torch.bfloat16)
        state, weights = 2 * 4 * sequences * channels * STATES, 2 * 2 * sequences * length * STATES
        rows = 2 * sequences * length * channels
        run = partial(selective_scan, discretization="zoh", backend=backend)
        calls: dict[str, tuple[Callable[[], Any], int]] = {}
        with torch.no_grad():
            calls["forward"] = (partial(run, **inputs), state + weights + 4 * rows)
            if length == 1:
                now = {name: x[:, 0] if x.dim() == 3 else x for name, x in inputs.items() if name != "initial_state"}
                step = partial(
                    selective_scan_step, inputs["initial_state"].clone(), **now,
                    discretization="zoh", backend=backend, inplace=True,
                )  # fmt: skip
                calls["step"] = (step, state + weights + 4 * rows)
            times = {name: bench.call_us(call) for name, (call, _) in calls.items()}
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        y, final, _ = run(**leaves)
        outputs, given = (y, final), (torch.randn_like(y), torch.randn_like(final))
        backward = partial(torch.autograd.grad, outputs, list(leaves.values()), given, retain_graph=True)
        # in: h0, dhT, u, delta, z, dy, B, C; out: dh0, du, ddelta, dz, dB, dC
        calls["backward"] = (backward, state * 3 // 2 + 2 * weights + 7 * rows)
        times["backward"] = bench.call_us(backward)
        for name, us in times.items():
            floor_us = calls[name][1] / bandwidth / 1e3
            bench.add(
                "scan", call=name, T=sequences, L=length, D=channels, us=us, floor_us=floor_us, over=us / floor_us
            )


@torch.inference_mode()
def time_flow(bench: Bench) -> None:
    """One pair both ways, as it is called and replayed as a graph."""
    flow = InverseSearchFlow(compiled=False)
    for size in bench.sizes.flow_px:
        pair = [torch.rand(1, 3, *size, device=bench.device) for _ in range(2)]
        call = partial(both_ways, flow, *pair)
        graph = bench.replayed(call)
        seen = bench.activity(call)
        called_us = 1e6 * median(_finished_s(bench, call) for _ in range(bench.sizes.rounds))
        row = {"called_us": called_us, "graph_us": bench.call_us(graph), "launches": seen["launches"]}
        bench.add("flow", size=f"{size[1]}x{size[0]}", **row)


def time_streams(bench: Bench, encoder: str, size: tuple[int, int], precision: str, batch: int = 1) -> None:
    """Whole frames, pixels to depth on the CPU, of teacher and students in turn; `batch` videos at once."""
    models = build_variants(build_encoder(encoder, str(bench.device)))
    streams = {name: _stream(bench, model, size, precision, batch) for name, model in models.items()}
    seconds = _in_turn(bench, streams, size, batch)
    for name, stream in streams.items():
        bench.peak_mb()
        step = partial(stream.step, _frames(size, batch)[0])
        seen, times = bench.activity(step), seconds[name]
        peak_mb = bench.peak_mb()
        ratios = quantiles([x / y for x, y in zip(times, seconds["teacher"], strict=True)], n=4)
        row = {"ms": 1e3 * median(times), "frames_per_s": batch / median(times), "over_teacher": ratios}
        row |= {"busy": 1e-6 * seen.pop("busy_us") / median(times), "peak_mb": peak_mb, **seen}
        about = {"encoder": encoder, "size": f"{size[1]}x{size[0]}", "precision": precision, "videos": batch}
        bench.add("streams", **about, model=name, **row)


def time_graph(bench: Bench) -> None:
    """The recipe as one graph per frame, beside the same frame by frame: equal depth, and how much faster."""
    encoder, size, precision = bench.sizes.encoders[0], bench.sizes.frames_px[-2:][0], bench.sizes.precision
    student = build_student(build_encoder(encoder, str(bench.device)))
    streams = {
        name: _stream(bench, student, size, precision, 1, is_graph)
        for name, is_graph in (("called", False), ("graph", True))
    }
    depths = [[stream.step(frame) for stream in streams.values()] for frame in _frames(size, 1)]  # compiles
    apart = max(float(np.abs(a - b).mean() / np.ptp(a).clip(1e-9)) for a, b in depths)
    bench.check(
        "one graph per frame: mean difference from the same, called", apart, 1e-4 if precision == "float32" else 2e-2
    )
    seconds = _in_turn(bench, streams, size, 1)
    for name, stream in streams.items():
        seen = bench.activity(partial(stream.step, _frames(size, 1)[0]))
        ratio = quantiles([x / y for x, y in zip(seconds[name], seconds["called"], strict=True)], n=4)
        ms = 1e3 * median(seconds[name])
        bench.add("graph", encoder=encoder, size=f"{size[1]}x{size[0]}", model=name, ms=ms, over_called=ratio, **seen)


def time_training(bench: Bench) -> None:
    """A training step of a clip: labels, forward, backward and optimizer, and memory."""
    encoder, (height, width) = build_encoder(bench.sizes.encoders[0], str(bench.device)), bench.sizes.train_px
    student, precision = build_student(encoder).train(), bench.sizes.precision
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-6)
    clip = torch.rand(1, bench.sizes.train_frames, 3, height, width, device=bench.device)
    flow, dtype = InverseSearchFlow(), DTYPES[precision]
    student.encoder.short_side = height
    times: dict[str, list[float]] = {"labels": [], "forward": [], "backward": [], "optimizer": []}
    kept: dict[str, Any] = {}

    def label() -> None:
        kept["labels"] = training_labels(student, clip, flow, dtype)

    def forward() -> None:
        kept["loss"] = distillation_loss(student, clip, *kept["labels"], dtype)

    bench.peak_mb()
    for index in range(-bench.sizes.warm_up, bench.sizes.rounds):
        for name, call in (
            ("labels", label),
            ("forward", forward),
            ("backward", lambda: kept["loss"].backward()),
            ("optimizer", optimizer.step),
        ):
            seconds = _finished_s(bench, call)
            if index >= 0:
                times[name].append(seconds)
        optimizer.zero_grad(set_to_none=True)
    row = {f"{name}_ms": 1e3 * median(values) for name, values in times.items()}
    about = {"encoder": bench.sizes.encoders[0], "size": f"{width}x{height}", "frames": bench.sizes.train_frames}
    bench.add("training", **about, precision=precision, **row, step_ms=sum(row.values()), peak_mb=bench.peak_mb())


def _stream(
    bench: Bench, model: VideoMambaDepth, size: tuple[int, int], precision: str, batch: int, compiled: bool = False
) -> DepthStream:
    model.encoder.short_side = size[0]
    options = {"device": str(bench.device), "precision": precision, "resolution": "model", "resets": ResetPolicy()}
    return DepthStream(model, batch_size=batch, compile=compiled, **options)  # type: ignore[arg-type]


def _in_turn(
    bench: Bench, streams: dict[str, DepthStream], size: tuple[int, int], batch: int
) -> dict[str, list[float]]:
    """Return seconds per frame of each stream, one frame of each after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in streams}
    frames = _frames(size, batch)
    for index in range(-bench.sizes.warm_up, bench.sizes.frames):
        for name, stream in streams.items():
            taken = wall_s(partial(stream.step, frames[index % len(frames)]))  # depth is on the CPU when it returns
            if index >= 0:
                seconds[name].append(taken)
    return seconds


def _frames(size: tuple[int, int], batch: int) -> list[np.ndarray]:
    """Return four frames of noise that moves, uint8 `[H, W, 3]`, or `[B, H, W, 3]` of several videos."""
    noise = np.random.default_rng(0).integers(0, 256, (batch, *size, 3), np.uint8)
    frames = [np.roll(noise, 2 * index, axis=2) for index in range(4)]
    return frames if batch > 1 else [frame[0] for frame in frames]


def _finished_s(bench: Bench, call: Callable[[], Any]) -> float:
    """Return the seconds of a call until the device has done it."""
    bench.wait()
    return wall_s(lambda: (call(), bench.wait()))
