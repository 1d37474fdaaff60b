"""Time the selective scan on this CPU: every backend side by side, in one run, beside a copy of the same bytes.

    python benchmarks/scan.py                      # the default shapes, zoh; a table, scan.json and scan.png
    python benchmarks/scan.py --methods all --quick
    python benchmarks/scan.py --quick --second-threads 2   # also `cpp` on two threads, in turn with one

Times are interleaved (one call of each contender per round, so that a busy machine hurts all alike); the table shows
the fastest round and the median. One element is one state of one channel at one step: T·L·D·N of them per call.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
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
    zero_state,
)

SHAPES = ((1369, 384), (21904, 96))
STATES = 16
Call = Callable[[], Any]


def own_state(source: Tensor) -> Tensor:
    """Copy a state into memory as the package itself gives to states."""
    return zero_state(source.shape).copy_(source)


def make_inputs(batch: int, length: int, channels: int, method: str) -> dict[str, Any]:
    """Random inputs of a trained model's ranges: Δ about 0.05, A = −1 … −N as Mamba initializes it."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels) * 0.5 - 3,
        "A": -torch.arange(1, STATES + 1.0).repeat(channels, 1),
        "B": normal(batch, length, STATES),
        "C": normal(batch, length, STATES),
        "D": normal(channels),
        "z": normal(batch, length, channels),
        "delta_bias": normal(channels) * 0.1,
        "initial_state": own_state(normal(*state_shape(batch, channels, STATES, method))),
        "discretization": method,
    }


def on_threads(threads: int, call: Call) -> Call:
    """Return the call on another number of threads."""

    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        call()
        torch.set_num_threads(before)

    return run


def forward_calls(inputs: dict[str, Any], with_compile: bool) -> dict[str, Call]:
    """The forward pass without gradients."""
    source = inputs["initial_state"]
    target = own_state(source)
    calls: dict[str, Call] = {
        "copy of the state": lambda: target.copy_(source),
        "reference": lambda: selective_scan_ref(**inputs),
        "cpp": lambda: selective_scan(**inputs, backend="cpp"),
    }
    if with_compile:
        compiled = torch.compile(selective_scan_ref, dynamic=False)
        calls["torch.compile"] = lambda: compiled(**inputs)
    return calls


def step_calls(inputs: dict[str, Any]) -> dict[str, Call]:
    """One step, the state updated in place."""
    flat = {
        name: x[:, 0].contiguous() if isinstance(x, Tensor) and x.dim() == 3 else x
        for name, x in inputs.items()
        if name != "initial_state"
    }
    source = own_state(inputs["initial_state"])
    target, states = own_state(source), {name: own_state(source) for name in ("reference", "cpp")}

    def step(backend: str) -> Call:
        return lambda: selective_scan_step(states[backend], **flat, backend=backend, inplace=True)

    return {
        "copy of the state": lambda: target.copy_(source),
        "reference": step("reference"),
        "cpp": step("cpp"),
    }


def training_calls(inputs: dict[str, Any]) -> dict[str, Call]:
    """Forward and backward, gradients of every input, arriving through y and the final state."""
    leaves = {name: x.requires_grad_() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    grads = (torch.randn_like(inputs["u"]), torch.randn_like(inputs["initial_state"]))
    tensors = [x for x in leaves.values() if isinstance(x, Tensor)]

    def train(backend: str) -> Call:
        return lambda: torch.autograd.grad(selective_scan(**leaves, backend=backend)[:2], tensors, grads)

    return {"reference": train("reference"), "cpp": train("cpp")}


def interleaved(calls: dict[str, Call], rounds: dict[str, int]) -> dict[str, list[float]]:
    """Seconds of each call of each contender; a contender with fewer rounds sits out the later ones."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for index in range(max(rounds.get(name, rounds[""]) for name in calls)):
        for name, call in calls.items():
            if index < rounds.get(name, rounds[""]):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return times


def measure(what: str, batch: int, channels: int, length: int, method: str, args: argparse.Namespace) -> list:
    """Time one kind of call at one shape; return one record per contender."""
    inputs = make_inputs(batch, length, channels, method)
    slow = 2 if args.quick else 4
    training = what == "forward+backward"
    with torch.set_grad_enabled(training):
        if training:
            calls = training_calls(inputs)
        else:
            calls = step_calls(inputs) if what == "step" else forward_calls(inputs, args.compile and method == "zoh")
        if args.second_threads:
            calls[f"cpp, {args.second_threads} threads"] = on_threads(args.second_threads, calls["cpp"])
        rounds = {"": 3 * slow if training else 8 * slow, "reference": slow, "torch.compile": 2 * slow}
        times = interleaved(calls, rounds)
    elements = batch * length * channels * STATES
    reference = min(times["reference"])
    # Bytes that a perfect kernel moves: the state in and out, u, delta, z and y.
    floor = 4 * (2 * batch * channels * STATES + 4 * batch * length * channels)
    copy = min(times["copy of the state"]) / (8 * batch * channels * STATES) if what != "forward+backward" else None
    return [
        {
            "call": what,
            "method": method,
            "T": batch,
            "D": channels,
            "N": STATES,
            "L": length,
            "contender": name,
            "best_ms": min(values) * 1e3,
            "median_ms": statistics.median(values) * 1e3,
            "ns_per_element": min(values) * 1e9 / elements,
            "times_faster_than_reference": reference / min(values),
            "share_of_copy_bandwidth": None if copy is None else copy * floor / min(values),
        }
        for name, values in times.items()
    ]


def show(record: dict[str, Any]) -> None:
    share = record["share_of_copy_bandwidth"]
    sys.stdout.write(
        f"{record['call']:<17}{record['method']:<11}{record['T']:>6}x{record['D']:<4} L={record['L']:<3}"
        f"{record['contender']:<19}{record['best_ms']:>10.2f}{record['median_ms']:>10.2f} ms"
        f"{record['ns_per_element']:>9.3f} ns/element{record['times_faster_than_reference']:>8.1f}x"
        f"{'' if share is None else f'{share:>8.0%} of copy'}\n"
    )
    sys.stdout.flush()


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Bars of ns per element, one group per call and shape."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [r for r in records if r["contender"] != "copy of the state"]
    labels = [f"{r['call']} {r['method']} {r['T']}x{r['D']} L={r['L']} {r['contender']}" for r in shown]
    figure, axes = plt.subplots(figsize=(9, 0.25 * len(shown) + 1))
    axes.barh(labels, [r["ns_per_element"] for r in shown])
    axes.set(xscale="log", xlabel="ns per token·channel·state·step, one call")
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["zoh"], help="names, or all")
    parser.add_argument("--calls", nargs="+", default=["forward", "step", "forward+backward"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--second-threads", type=int, help="also cpp on this many, in turn with --threads")
    parser.add_argument("--compile", action="store_true", help="also torch.compile of the reference (zoh)")
    parser.add_argument("--quick", action="store_true", help="half the rounds, and the first shape alone")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for scan.json and scan.png")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    methods = list(DISCRETIZATIONS) if args.methods == ["all"] else args.methods
    records = []
    for batch, channels in SHAPES[:1] if args.quick else SHAPES:
        for method in methods:
            for what in args.calls:
                for length in [1] if what == "step" else args.lengths:
                    for record in measure(what, batch, channels, length, method, args):
                        show(record)
                        records.append(record)
    machine = {"cpu": platform.processor() or platform.machine(), "threads": args.threads}
    args.out.mkdir(parents=True, exist_ok=True)
    report = {"torch": torch.__version__, **machine, "records": records}
    (args.out / "scan.json").write_text(json.dumps(report, indent=1))
    plot(records, args.out / "scan.png")


if __name__ == "__main__":
    main()
