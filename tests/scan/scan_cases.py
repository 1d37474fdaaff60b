"""Random scans, gradients of all their arguments, and errors between two backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selective_scan import DISCRETIZATIONS, selective_scan, state_shape

METHODS = list(DISCRETIZATIONS)

# Relative RMS errors against the float64 reference; the worst seen are in the comments.
FORWARD_TOLERANCE = {torch.float32: 1e-6, torch.float64: 3e-15}  # 2.5e-7, 7e-16
GRADIENT_TOLERANCE = {torch.float32: 8e-6, torch.float64: 2e-14}  # 2.5e-6 (bias: a sum that cancels), 4e-15


@dataclass
class Case:
    """Arguments of a scan, and the gradients that arrive at its three results."""

    arguments: dict[str, Tensor]
    cotangents: tuple[Tensor, Tensor, Tensor]
    discretization: str

    def to(self, dtype: torch.dtype) -> Case:
        return Case(
            {name: x.to(dtype) for name, x in self.arguments.items()},
            tuple(x.to(dtype) for x in self.cotangents),  # type: ignore[arg-type]
            self.discretization,
        )


def make_case(
    batch: int,
    length: int,
    channels: int,
    states: int,
    discretization: str = "zoh",
    *,
    gate: bool = True,
    initial_state: bool = True,
    seed: int = 0,
) -> Case:
    """Return a random case in float64; Δ covers 1e-3 to 5 and A −0.05 to −20."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    arguments = {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels) * 2 - 1,
        "A": -torch.exp(normal(channels, states)),
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": normal(channels),
        "delta_bias": normal(channels),
    }
    if gate:
        arguments["z"] = normal(batch, length, channels)
    shape = state_shape(batch, channels, states, discretization)
    if initial_state:
        arguments["initial_state"] = without_padding(normal(*shape), discretization)
    cotangents = (
        normal(batch, length, channels),
        without_padding(normal(*shape), discretization),
        normal(batch, length, states),
    )
    return Case(arguments, cotangents, discretization)


def without_padding(state: Tensor, discretization: str) -> Tensor:
    """Zero the one element of a two-tap state that means nothing."""
    if DISCRETIZATIONS[discretization].taps == 2:
        state[:, -1, -1] = 0
    return state


def run(case: Case, backend: str) -> dict[str, Tensor]:
    """Return y, final_state and summary, and the gradient of every argument as grad_<name>."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in case.arguments.items()}
    results = selective_scan(**leaves, discretization=case.discretization, backend=backend, with_summary=True)  # type: ignore[arg-type]
    torch.autograd.backward(results, case.cotangents)
    named: dict[str, Any] = dict(zip(("y", "final_state", "summary"), results, strict=True))
    named.update({f"grad_{name}": x.grad for name, x in leaves.items()})
    return {name: x.detach() for name, x in named.items()}


def relative_rms(x: Tensor, truth: Tensor) -> float:
    """Return the RMS error of x over the RMS of truth; NaN stays NaN."""
    x, truth = x.double(), truth.double()
    return ((x - truth).square().mean().sqrt() / truth.square().mean().sqrt().clamp_min(1e-30)).item()


def assert_close(got: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Compare every result and every gradient of two runs."""
    assert got.keys() == truth.keys()
    for name, x in got.items():
        tolerance = (GRADIENT_TOLERANCE if name.startswith("grad_") else FORWARD_TOLERANCE)[dtype]
        assert relative_rms(x, truth[name]) <= tolerance, name


def split_run(case: Case, lengths: list[int], backend: str) -> dict[str, Tensor]:
    """Do what `run` does, in chunks of `lengths` steps that hand the state on without detaching it."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in case.arguments.items()}
    over_time = ("u", "delta", "B", "C", "z")
    whole = {name: x for name, x in leaves.items() if name not in over_time and name != "initial_state"}
    state, start, ys, summaries = leaves.get("initial_state"), 0, [], []
    for length in lengths:
        part = {name: leaves[name][:, start : start + length] for name in over_time if name in leaves}
        y, state, summary = selective_scan(
            **part,
            **whole,
            initial_state=state,
            discretization=case.discretization,
            backend=backend,
            with_summary=True,
        )
        ys.append(y)
        summaries.append(summary)
        start += length
    assert state is not None
    results = (torch.cat(ys, 1), state, torch.cat(summaries, 1))
    torch.autograd.backward(results, case.cotangents)
    named: dict[str, Any] = dict(zip(("y", "final_state", "summary"), results, strict=True))
    named.update({f"grad_{name}": x.grad for name, x in leaves.items()})
    return {name: x.detach() for name, x in named.items()}
