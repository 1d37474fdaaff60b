"""The operators as PyTorch sees them: opcheck, torch.compile, torch.export."""

from __future__ import annotations

import pytest
import torch
from scan_cases import make_case, relative_rms

from selective_scan import causal_conv1d, selective_scan, selective_scan_step, state_shape
from selective_scan.operators import operator

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


@pytest.fixture(autouse=True)
def ordinary_empty_tensors(nan_in_empty_tensors: None) -> None:
    """opcheck compares runs, with NaN in both where a test poisons memory."""
    torch.use_deterministic_algorithms(False)


def operator_arguments(method: str, length: int = 3) -> list[torch.Tensor | None]:
    case = make_case(2, length, 17, 3, method).to(torch.float32)
    return [case.arguments.get(name) for name in NAMES]


@pytest.mark.parametrize("method", ["zoh", "trapezoid"])
@pytest.mark.parametrize("summary", [False, True])
def test_opcheck_of_the_scan(method: str, summary: bool) -> None:
    leaves = [None if x is None else x.requires_grad_() for x in operator_arguments(method)]
    torch.library.opcheck(operator("cpp", "scan"), (*leaves, True, method, summary))


def test_opcheck_of_the_backward_and_the_steps() -> None:
    arguments = operator_arguments("zoh", length=1)
    torch.library.opcheck(operator("cpp", "scan_step_"), (*arguments, True, "zoh"))
    grads = (torch.ones(2, 1, 17), torch.ones(2, 17, 3), None)
    torch.library.opcheck(operator("cpp", "scan_backward"), (*arguments, True, "zoh", *grads))
    x, weight, state = torch.randn(2, 1, 9), torch.randn(9, 4), torch.randn(2, 9, 4)
    torch.library.opcheck(operator("cpp", "conv_step_"), (x, weight, None, state, True))
    torch.library.opcheck(operator("cpp", "conv_backward"), (x, weight, None, state, True, x, None))
    leaves = (x.requires_grad_(), weight.requires_grad_(), None, state.requires_grad_())
    torch.library.opcheck(operator("cpp", "conv"), (*leaves, True))


class Mixer(torch.nn.Module):
    """Convolution, then scan, as in a mixer; returns both states."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(16, 4))
        self.A_log = torch.nn.Parameter(torch.zeros(16, 4))

    def forward(
        self, u: torch.Tensor, weights: torch.Tensor, conv_state: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        u, conv_state = causal_conv1d(u, self.weight, None, conv_state)
        y, state, _ = selective_scan(
            u, u, -self.A_log.exp(), weights, weights, z=u, initial_state=state, discretization="zoh"
        )
        return y, conv_state, state


def mixer_inputs(batch: int = 2) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    shapes = ((batch, 3, 16), (batch, 3, 4), (batch, 16, 4), state_shape(batch, 16, 4))
    return tuple(torch.randn(*shape) for shape in shapes)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_graph_breaks_and_differentiates(backend: str) -> None:
    mixer, inputs = Mixer(), mixer_inputs()
    compiled = torch.compile(mixer, fullgraph=True, backend=backend)
    grads = []
    for run in (mixer, compiled):
        results = run(*inputs)
        loss = sum(x.square().sum() for x in results)
        grads.append([*results, *torch.autograd.grad(loss, list(mixer.parameters()))])
    for eager, got in zip(*grads, strict=True):
        assert relative_rms(got, eager) < 1e-6


def test_compiles_the_step_in_place() -> None:
    case = make_case(2, 1, 16, 4).to(torch.float32)
    flat = {name: x.squeeze(1) if x.dim() == 3 else x for name, x in case.arguments.items()}
    state = case.arguments["initial_state"]
    flat.pop("initial_state")

    def step(state: torch.Tensor) -> torch.Tensor:
        y, _ = selective_scan_step(state, **flat, inplace=True)  # type: ignore[arg-type]
        return y * 2

    eager_state, compiled_state = state.clone(), state.clone()
    eager = step(eager_state)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(compiled_state)
    assert torch.equal(eager, compiled)
    assert torch.equal(eager_state, compiled_state)


def test_exports_with_a_dynamic_batch() -> None:
    mixer = Mixer()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(mixer, mixer_inputs(), dynamic_shapes=[{0: batch}] * 4)
    for got, expected in zip(program.module()(*mixer_inputs(5)), mixer(*mixer_inputs(5)), strict=True):
        assert torch.equal(got, expected)


def test_autocast_leaves_the_arithmetic_in_float32() -> None:
    case = make_case(2, 3, 16, 4).to(torch.float32)
    y, state, _ = selective_scan(**case.arguments)  # type: ignore[arg-type]
    mixed = case.arguments | {"u": case.arguments["u"].bfloat16(), "B": case.arguments["B"].bfloat16()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_autocast, state_autocast, _ = selective_scan(**case.arguments)  # type: ignore[arg-type]
        y_mixed, state_mixed, _ = selective_scan(**mixed)  # type: ignore[arg-type]
    assert torch.equal(y, y_autocast)
    assert torch.equal(state, state_autocast)
    assert (y_mixed.dtype, state_mixed.dtype) == (torch.bfloat16, torch.float32)
