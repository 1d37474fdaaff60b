"""Measure the discretizations and draw the figures of docs/discretization.md.

    python scripts/plot_discretizations.py [--out docs/figures]

Writes discretization_order.png (error against step size), discretization_coefficients.png (decay and input gain
against z = A·Δ) and prints the table of measured orders, of float32 errors and of costs.
"""

from __future__ import annotations

import argparse
import cmath
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selective_scan import DISCRETIZATIONS, selective_scan, selective_scan_ref, state_shape, unpack_state

DOUBLE = torch.float64
STEP_COUNTS = [2**k for k in range(2, 10)]


def exact_solution() -> float:
    """h(1) of h' = −2 h + (1 + t) cos 3t, h(0) = 1, from the antiderivative of e^{(2+3i)s} (1 + s)."""
    rate = complex(2, 3)

    def antiderivative(s: float) -> complex:
        return cmath.exp(rate * s) * ((1 + s) / rate - 1 / rate**2)

    return math.exp(-2) * (1 + (antiderivative(1) - antiderivative(0)).real)


def error_at_end(method: str, steps: int) -> float:
    """Error of the state at t = 1, with B = 1 + t and u = cos 3t sampled at the end of each step."""
    t = torch.linspace(0, 1, steps + 1, dtype=DOUBLE)
    u, B = torch.cos(3 * t).view(1, -1, 1), (1 + t).view(1, -1, 1)
    taps = DISCRETIZATIONS[method].taps
    state = torch.zeros(*state_shape(1, 1, 1, method), dtype=DOUBLE)
    state[0, 0, 0] = 1
    if taps == 2:
        state[0, 0, 1], state[0, 1, 0] = u[0, 0, 0], B[0, 0, 0]
    ones = torch.ones(1, steps, 1, dtype=DOUBLE)
    _, final, _ = selective_scan_ref(
        u[:, 1:],
        ones / steps,
        torch.tensor([[-2.0]], dtype=DOUBLE),
        B[:, 1:],
        ones,
        delta_softplus=False,
        initial_state=state,
        discretization=method,
    )
    return abs(unpack_state(final, taps)[0].item() - exact_solution())


def coefficients(method: str, z: Tensor) -> tuple[Tensor, Tensor]:
    """Decay a and total input gain c0 + c1 at Δ = 1, for z [K, 1]."""
    a, c0, c1 = DISCRETIZATIONS[method].coefficients(torch.ones_like(z), z)
    gain = c0 if c1 is None else c0 + c1
    return a.expand_as(z).flatten(), gain.expand_as(z).flatten()


def float32_error(method: str) -> float:
    """Largest relative error of c0 in float32 for z from −100 to −1e-8."""
    z = -torch.logspace(-8, 2, 2001, dtype=torch.float32).view(-1, 1)
    c0 = DISCRETIZATIONS[method].coefficients(torch.ones_like(z), z)[1].double()
    exact = DISCRETIZATIONS[method].coefficients(torch.ones_like(z).double(), z.double())[1]
    return ((c0 - exact).abs() / exact.abs()).max().item()


def costs(inputs: dict[str, Tensor], train: bool) -> dict[str, float]:
    """Fastest call of every method relative to zoh's, on the fastest backend here; the methods take turns."""
    best = dict.fromkeys(DISCRETIZATIONS, math.inf)
    for _ in range(12):
        for method in DISCRETIZATIONS:
            leaves = {name: x.detach().requires_grad_(train) for name, x in inputs.items()}
            start = time.perf_counter()
            y, _, _ = selective_scan(**leaves, discretization=method)  # type: ignore[arg-type]
            if train:
                y.backward(inputs["u"])
            best[method] = min(best[method], time.perf_counter() - start)
    return {method: value / best["zoh"] for method, value in best.items()}


def draw(out: Path, errors: dict[str, list[float]]) -> None:
    """Write both figures."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4.2))
    steps = [1 / count for count in STEP_COUNTS]
    for method, values in errors.items():
        style: dict[str, Any] = {"linestyle": "-" if DISCRETIZATIONS[method].taps == 1 else "--"}
        axes.loglog(steps, values, label=method, **style)
    axes.set(xlabel="step size Δ", ylabel="error of the state at t = 1", title="Order of accuracy")
    axes.legend(fontsize=7, ncol=2)
    figure.tight_layout()
    figure.savefig(out / "discretization_order.png", dpi=120)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    z = -torch.logspace(-2, 2, 400, dtype=DOUBLE).view(-1, 1)
    for method in DISCRETIZATIONS:
        a, gain = coefficients(method, z)
        left.semilogx(-z.flatten(), a, label=method)
        right.loglog(-z.flatten(), gain.abs(), label=method)
    left.set(xlabel="−z = −A·Δ", ylabel="decay a", title="Decay: negative means oscillation")
    right.set(xlabel="−z = −A·Δ", ylabel="c0 + c1 at Δ = 1", title="Gain of the input")
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out / "discretization_coefficients.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    errors = {name: [error_at_end(name, count) for count in STEP_COUNTS] for name in DISCRETIZATIONS}
    draw(args.out, errors)

    generator = torch.Generator().manual_seed(0)
    shapes = {"u": (100, 16, 96), "delta": (100, 16, 96), "B": (100, 16, 16), "C": (100, 16, 16)}
    inputs = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    inputs["A"] = -torch.arange(1, 17.0).repeat(96, 1)
    forward, training = costs(inputs, False), costs(inputs, True)
    sys.stdout.write("| name | order measured | error at Δ = 1/64 | float32 error of c0 | forward | with backward |\n")
    sys.stdout.write("|---|---|---|---|---|---|\n")
    for name, values in errors.items():
        order = math.log2(values[-2] / values[-1])
        cost = f"{forward[name]:.1f} | {training[name]:.1f}"
        row = f"{order:.2f} | {values[4]:.1e} | {float32_error(name):.0e} | {cost}"
        sys.stdout.write(f"| `{name}` | {row} |\n")


if __name__ == "__main__":
    main()
