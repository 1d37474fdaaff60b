"""The part of `benchmarks/gpu.py` that compares a GPU with the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gpu_bench import Bench
from torch import Tensor

from selective_scan import selective_scan, selective_scan_ref, selective_scan_step, state_shape
from videomamba_depth.data.labels.stabilize import stabilize_clip
from videomamba_depth.data.synthetic import WorldConfig, iter_video
from videomamba_depth.flow.estimators import FlowEstimator, InverseSearchFlow, both_ways
from videomamba_depth.losses import midas_se_loss, temporal_gradient_loss
from videomamba_depth.models.checkpoint import load_student
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.device import autocast

SEED = 9_610_000_001  # of worlds that nothing is trained on
STATES = 16
OVER_SEQUENCES = ("u", "delta", "B", "C", "z", "initial_state")


def scan_inputs(
    shape: tuple[int, int, int], method: str, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return random inputs [T, L, D] of a trained model's ranges; parameters and state in float32 at least."""
    generator = torch.Generator().manual_seed(0)
    sequences, length, channels = shape
    exact = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*size: int, to: torch.dtype = exact) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, to)

    return {
        "u": normal(*shape, to=dtype),
        "delta": (normal(*shape) * 0.5 - 3).to(dtype),
        "A": -torch.arange(1, STATES + 1.0, device=device, dtype=exact).repeat(channels, 1),
        "B": normal(sequences, length, STATES, to=dtype),
        "C": normal(sequences, length, STATES, to=dtype),
        "D": normal(channels),
        "z": normal(*shape, to=dtype),
        "delta_bias": normal(channels) * 0.1,
        "initial_state": normal(*state_shape(sequences, channels, STATES, method)),
    }


def check_scan(bench: Bench) -> None:
    """Outputs, final states and all gradients of every discretization; a large batch; steps in place; bfloat16."""
    backend, large = scan_backend(bench), bench.sizes.scan_large
    with _nan_in_empty_tensors():
        for method in bench.sizes.methods:
            for shape in bench.sizes.scan_checked:
                error = _scan_error(bench, shape, method, backend)
                bench.check(f"scan {method} {'x'.join(map(str, shape))}, gradients too", error, 1e-5)
        error = _scan_error(bench, large, "zoh", backend, every=max(1, large[0] // 40))
        bench.check(f"scan zoh {'x'.join(map(str, large))}, gradients too", error, 1e-5)
        error = _scan_error(bench, bench.sizes.scan_checked[-1], "zoh", backend, dtype=torch.bfloat16)
        bench.check("scan zoh in bfloat16, gradients too", error, 1e-2)
        for method in bench.sizes.methods:
            bench.check(f"steps in place {method}", _step_error(bench, method, backend), 1e-5)


def scan_backend(bench: Bench) -> str:
    """Return the backend that is looked at: the GPU's kernels."""
    return "triton" if bench.device.type == "cuda" else "reference"


def _scan_error(
    bench: Bench,
    shape: tuple[int, int, int],
    method: str,
    backend: str,
    every: int = 1,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Return the largest relative error (RMS) of outputs, state and gradients; `every`: of so many sequences one."""
    inputs = scan_inputs(shape, method, bench.device, dtype)
    got = _scan_results(inputs, method, lambda **kw: selective_scan(**kw, backend=backend))
    part = {name: x[::every] if name in OVER_SEQUENCES else x for name, x in inputs.items()}
    exact = {name: x.to("cpu", torch.float64) for name, x in part.items()}
    truth = _scan_results(exact, method, selective_scan_ref)
    errors = []
    for name, expected in truth.items():
        sliced = name.removeprefix("gradient of ") in (*OVER_SEQUENCES, "y", "state")
        if sliced or every == 1:
            errors.append(relative_rms(got[name][::every] if sliced else got[name], expected))
    return max(errors)


def _scan_results(inputs: dict[str, Tensor], method: str, run: Callable[..., Any]) -> dict[str, Tensor]:
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    y, state, _ = run(**leaves, discretization=method)
    weights = torch.linspace(-1, 1, y.shape[-1], device=y.device, dtype=y.dtype)
    gradients = torch.autograd.grad((y * weights).sum() + state.square().sum(), list(leaves.values()))
    named = {f"gradient of {name}": x for name, x in zip(inputs, gradients, strict=True)}
    return {"y": y.detach(), "state": state.detach(), **named}


@torch.no_grad()
def _step_error(bench: Bench, method: str, backend: str) -> float:
    inputs = scan_inputs(bench.sizes.scan_checked[0], method, bench.device, torch.float32)
    exact = {name: x.to("cpu", torch.float64) for name, x in inputs.items()}
    y, state, _ = selective_scan_ref(**exact, discretization=method)
    carried = inputs.pop("initial_state").clone()
    steps = []
    for t in range(y.shape[1]):
        now = {name: x[:, t] if name in OVER_SEQUENCES else x for name, x in inputs.items()}
        steps.append(selective_scan_step(carried, **now, discretization=method, backend=backend, inplace=True)[0])
    return max(relative_rms(torch.stack(steps, 1), y), relative_rms(carried, state))


def check_flow(bench: Bench) -> None:
    """Flow of rendered worlds is that of the CPU, but where rounding decides, and as near to the truth."""
    flow, px = InverseSearchFlow(compiled=False), bench.sizes.world_px
    apart, errors = [], []
    for index in range(bench.sizes.worlds):
        frames = list(iter_video(SEED + index, WorldConfig(px, px * 5 // 4, 2)))
        before, now = (to_clip([frame.rgb], "cpu") for frame in frames)
        truth, seen = torch.from_numpy(frames[1].flow_bwd).permute(2, 0, 1)[None], frames[1].visible_bwd
        found = [both_ways(flow, now.to(place), before.to(place))[0].cpu() for place in ("cpu", bench.device)]
        apart.append((found[0] - found[1]).norm(dim=1).flatten())
        errors.append([float((x - truth).norm(dim=1)[0][torch.from_numpy(seen)].mean()) for x in found])
    on_cpu, on_device = np.mean(errors, axis=0)
    bench.check("flow: 95 % of the pixels differ from the CPU's by px", quantile(torch.cat(apart), 0.95), 0.01)
    bench.check(
        f"flow: end-point error beyond the CPU's {on_cpu:.3f} px, share", max(0.0, on_device / on_cpu - 1), 0.02
    )


def check_streams(bench: Bench) -> None:
    """Depth of a video is that of the CPU: the shipped student as it is, with geometry, and in bfloat16."""
    frames, device = world_frames(bench), str(bench.device)
    for name, geometry, mean, most in (("stream", False, 1e-4, 1e-3), ("stream with geometry", True, 1e-3, 1e-2)):
        apart = _apart(stream_depth(device, frames, geometry), stream_depth("cpu", frames, geometry))
        bench.check(f"{name}: mean difference from the CPU, share of the range", float(apart.mean()), mean)
        bench.check(f"{name}: 99 % of the pixels differ by", quantile(apart, 0.99), most)
    apart = _apart(stream_depth(device, frames, False, "bfloat16"), stream_depth(device, frames, False))
    bench.check("stream in bfloat16: mean difference from float32", float(apart.mean()), 2e-2)


def _apart(depth: Tensor, expected: Tensor) -> Tensor:
    return (depth - expected).abs().flatten() / (expected.max() - expected.min())


def stream_depth(device: str, frames: list[np.ndarray], geometry: bool, precision: str = "float32") -> Tensor:
    """Return the depth `[N, H, W]` of frames by the shipped student, with one flow for all devices."""
    student = load_student("embedded", min(frames[0].shape[:2]), geometry=geometry)
    assert student.motion is not None
    student.motion.flow = InverseSearchFlow(compiled=False)
    if student.geometry is not None:
        student.geometry.flow = student.motion.flow
    stream = DepthStream(student, device=device, precision=precision, resets=ResetPolicy())
    return torch.from_numpy(np.stack(list(stream(frames))))


def check_training(bench: Bench) -> None:
    """Loss and gradients of a training step of the shipped student are those of the CPU."""
    results = []
    for place in ("cpu", str(bench.device)):
        student = load_student("embedded", bench.sizes.clip_px).to(place).train()
        clip = to_clip(world_frames(bench), place)[None]
        loss = training_loss(student, clip, InverseSearchFlow(compiled=False), torch.float32)
        loss.backward()
        gradients = [p.grad.flatten().cpu() for p in student.parameters() if p.grad is not None]
        results.append((float(loss.detach()), torch.cat(gradients)))
    (expected, wanted), (loss, gradient) = results
    bench.check("training step: loss beside the CPU's", abs(loss / expected - 1), 2e-3)
    bench.check("training step: gradient beside the CPU's", relative_rms(gradient, wanted), 3e-2)


def training_loss(student: VideoMambaDepth, clip: Tensor, flow: FlowEstimator, precision: torch.dtype) -> Tensor:
    """Return the loss of a clip `[1, N, 3, H, W]` against the student's own teacher, smoothed over time."""
    features, target = training_labels(student, clip, flow, precision)
    return distillation_loss(student, clip, features, target, precision)


@torch.no_grad()
def training_labels(
    student: VideoMambaDepth, clip: Tensor, flow: FlowEstimator, precision: torch.dtype
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the encoder's features of a clip and the smoothed depth of the teacher `[1, N, 1, H, W]`."""
    with autocast(clip.device, precision):
        features = student.encode(clip)
        flat = {name: x.flatten(0, 1) for name, x in features.items()}
        depth = student.encoder.decode(flat, (clip.shape[-2], clip.shape[-1])).float()  # type: ignore[operator]
    return features, stabilize_clip(depth, clip[0], flow)[None]


def distillation_loss(
    student: VideoMambaDepth, clip: Tensor, features: dict[str, Tensor], target: Tensor, precision: torch.dtype
) -> Tensor:
    """Return the student's loss of a clip, in depth and in its change over time."""
    with autocast(clip.device, precision):
        depth = student(clip, features=features).depth.float()
    valid = torch.isfinite(target)
    return midas_se_loss(depth, target, valid) + temporal_gradient_loss(depth, target, valid)


def world_frames(bench: Bench) -> list[np.ndarray]:
    """Return frames, uint8 `[H, W, 3]`, of a rendered world."""
    px = bench.sizes.clip_px
    return [frame.rgb for frame in iter_video(SEED, WorldConfig(px, px * 5 // 4, bench.sizes.clip_frames))]


def to_clip(frames: list[np.ndarray], device: str | torch.device) -> Tensor:
    """Return frames as `[N, 3, H, W]` in [0, 1] on a device."""
    return torch.from_numpy(np.stack(frames)).to(device).permute(0, 3, 1, 2).float() / 255


def relative_rms(x: Tensor, truth: Tensor) -> float:
    """Return the root mean square of the difference over that of the truth."""
    difference = x.detach().cpu().double() - truth.detach().cpu().double()
    return float(difference.square().mean().sqrt() / truth.double().square().mean().sqrt().clamp_min(1e-30))


def quantile(values: Tensor, share: float) -> float:
    """Return a quantile; of any number of values."""
    return float(np.quantile(values.numpy(), share))


@contextmanager
def _nan_in_empty_tensors() -> Iterator[None]:
    """Fill memory that nothing has written with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


CHECKS: dict[str, Callable[[Bench], None]] = {
    "the scan": check_scan,
    "flow": check_flow,
    "streams": check_streams,
    "training": check_training,
}
