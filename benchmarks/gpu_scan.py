"""Check and time the selective scan on a CUDA GPU: correctness first, then times, registers, and one table at the end.

    python benchmarks/gpu_scan.py --out docs/gpu_scan.json

Stops with exit status 1 when a kernel disagrees with the reference, before anything is timed. Floors are bytes moved
over the copy bandwidth that is measured in the same run. Where mamba-ssm is
installed, its kernel is timed too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selective_scan import (
    DISCRETIZATIONS,
    selective_scan,
    selective_scan_ref,
    selective_scan_step,
    state_shape,
)

STATES = 16
SHAPES = ((1369, 384), (21904, 96), (100_000, 96))


def make_inputs(batch: int, length: int, channels: int, method: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random inputs on the GPU; parameters and state in float32."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda").to(dtype)

    return {
        "u": normal(batch, length, channels, dtype=dtype),
        "delta": (normal(batch, length, channels) * 0.5 - 3).to(dtype),
        "A": -torch.arange(1, STATES + 1.0, device="cuda").repeat(channels, 1),
        "B": normal(batch, length, STATES, dtype=dtype),
        "C": normal(batch, length, STATES, dtype=dtype),
        "D": normal(channels),
        "z": normal(batch, length, channels, dtype=dtype),
        "delta_bias": normal(channels) * 0.1,
        "initial_state": normal(*state_shape(batch, channels, STATES, method)),
    }


def relative_rms(x: Tensor, truth: Tensor) -> float:
    x, truth = x.double(), truth.double()
    return ((x - truth).square().mean().sqrt() / truth.square().mean().sqrt().clamp_min(1e-30)).item()


def results(inputs: dict[str, Tensor], method: str, run: Callable[..., Any]) -> list[Tensor]:
    """y, final state and the gradient of every input."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    y, state, _ = run(**leaves, discretization=method)
    loss = (y.float() * torch.linspace(-1, 1, y.shape[-1], device="cuda")).sum() + state.square().sum()
    return [y.detach(), state.detach(), *torch.autograd.grad(loss, list(leaves.values()))]


def check(batch: int, length: int, channels: int, method: str, dtype: torch.dtype) -> float:
    """Return the worst relative RMS error of y, state and gradients against the float32 reference on the GPU."""
    inputs = make_inputs(batch, length, channels, method, dtype)
    # The reference keeps every step for its backward: compare large batches on every 37th sequence.
    got = results(inputs, method, lambda **kw: selective_scan(**kw, backend="triton"))
    stride = 37 if batch > 5000 else 1
    over_batch = ("u", "delta", "B", "C", "z", "initial_state")
    part = {name: x[::stride] if name in over_batch else x for name, x in inputs.items()}
    truth = results(part, method, selective_scan_ref)
    errors = []
    for index, name in enumerate(["y", "final_state", *inputs]):
        if name in ("y", "final_state", *over_batch):
            errors.append(relative_rms(got[index][::stride], truth[index]))
        elif stride == 1:
            errors.append(relative_rms(got[index], truth[index]))
    return max(errors)


def microseconds(call: Callable[[], Any], rounds: int = 30) -> float:
    """Median time of one call on the GPU, the host's launches hidden by a queue that is full."""
    for _ in range(5):
        call()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    torch.cuda._sleep(20_000_000)
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in events)[rounds // 2] * 1e3


def copy_bandwidth() -> float:
    """Bytes read and written per microsecond by a large copy."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / microseconds(lambda: target.copy_(source), 10)


def time_shape(batch: int, length: int, channels: int, method: str, bandwidth: float) -> list[dict[str, Any]]:
    """Times of forward, forward+backward, step and mamba-ssm, each with its floor in bytes."""
    inputs = make_inputs(batch, length, channels, method, torch.bfloat16)
    plain = {name: x for name, x in inputs.items() if name != "initial_state"}
    state, weights = 2 * 4 * batch * channels * STATES, 2 * 2 * batch * length * STATES
    rows = 2 * batch * length * channels
    records = []

    def record(call: str, time: float, floor_bytes: int) -> None:
        floor = floor_bytes / bandwidth
        shape = {"T": batch, "D": channels, "L": length, "method": method}
        records.append({"call": call, **shape, "us": time, "floor_us": floor, "over_floor": time / floor})

    with torch.no_grad():
        run = microseconds(lambda: selective_scan(**inputs, discretization=method, backend="triton"))
        record("forward", run, state + weights + 4 * rows)
        if length == 1:
            flat = {name: x[:, 0] if x.dim() == 3 else x for name, x in plain.items()}
            carried = inputs["initial_state"].clone()
            step = lambda: selective_scan_step(  # noqa: E731
                carried, **flat, discretization=method, backend="triton", inplace=True
            )
            record("step", microseconds(step), state + weights + 4 * rows)
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    y, final, _ = selective_scan(**leaves, discretization=method, backend="triton")
    grads = (torch.randn_like(y), torch.randn_like(final))
    backward = lambda: torch.autograd.grad(  # noqa: E731
        (y, final), list(leaves.values()), grads, retain_graph=True
    )
    # in: h0, dhT, u, delta, z, dy, B, C; out: dh0, du, ddelta, dz, dB, dC
    record("backward", microseconds(backward), state * 3 // 2 + 2 * weights + 7 * rows)
    if method == "zoh":
        try:
            import mamba_ssm  # noqa: F401
        except ImportError:
            return records
        with torch.no_grad():
            published = lambda: selective_scan(**plain, backend="mamba_ssm")  # noqa: E731
            record("mamba_ssm forward", microseconds(published), state // 2 + weights + 4 * rows)
    return records


def compiled_usage() -> list[dict[str, Any]]:
    """Registers and spills of every kernel on this GPU."""
    from selective_scan.triton_kernels.offline import kernel_usage

    major, minor = torch.cuda.get_device_capability()
    found = []
    for kernel in ("scan_forward", "scan_backward"):
        for method in DISCRETIZATIONS:
            usage = kernel_usage(kernel, method, capability=10 * major + minor, dtype="bf16")
            found.append({"kernel": kernel, "method": method, **vars(usage)})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_scan.json"))
    parser.add_argument("--methods", nargs="+", default=["zoh"], help="methods to time; all are checked")
    parser.add_argument("--skip-usage", action="store_true", help="do not compile again to count registers")
    args = parser.parse_args()
    write = sys.stdout.write
    if not torch.cuda.is_available():
        sys.stderr.write("error: no CUDA GPU; the tests run the same kernels in Triton's interpreter\n")
        return 2

    failed = False
    cases = [(7, 5, 67, name, torch.float32, 1e-5) for name in DISCRETIZATIONS]
    cases += [(1369, 16, 384, "zoh", torch.float32, 1e-5), (21904, 16, 96, "zoh", torch.float32, 1e-5)]
    cases += [(100_000, 4, 96, "zoh", torch.float32, 1e-5), (1369, 16, 384, "zoh", torch.bfloat16, 1e-2)]
    for batch, length, channels, method, dtype, tolerance in cases:
        error = check(batch, length, channels, method, dtype)
        good = error <= tolerance  # NaN is not good
        failed |= not good
        write(f"{'ok  ' if good else 'FAIL'} {method} {batch}x{length}x{channels} {dtype}: {error:.1e}\n")
    if failed:
        return 1

    bandwidth = copy_bandwidth()
    records = []
    for method in args.methods:
        for batch, channels in SHAPES:
            for length in (1, 4, 16):
                records += time_shape(batch, length, channels, method, bandwidth)
    usage = [] if args.skip_usage else compiled_usage()
    import triton

    report = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_GB_per_s": bandwidth / 1e3,
        "times": records,
        "usage": usage,
    }
    args.out.write_text(json.dumps(report, indent=1))
    for row in usage:
        write(
            f"{row['kernel']:<15}{row['method']:<11}{row['registers']:>4} registers {row['spill_bytes']:>4} B spilled\n"
        )
    write(f"{report['gpu']}, torch {report['torch']}, copy {bandwidth / 1e3:.0f} GB/s\n")
    for row in records:
        shape = f"{row['T']}x{row['D']} L={row['L']}"
        write(
            f"{row['call']:<19}{row['method']:<11}{shape:<18}{row['us']:>9.0f} us  "
            f"byte floor {row['floor_us']:>7.0f} us  {row['over_floor']:>6.2f}x\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
