"""PyTorch operators over the compiled backends: one set per backend, all with the same schemas.

selective_scan::<backend>_scan, _scan_backward, _scan_step_, _conv, _conv_backward, _conv_step_. Each has a fake kernel
(shapes and dtypes alone), the forward ones have autograd, and the steps update their state in place. Only inputs and
the initial state are saved for the backward; everything else is computed again there.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from selective_scan.contract import ConvInputs, ScanInputs
from selective_scan.state import state_dtype, state_shape

NAMESPACE = "selective_scan"
# Triton on CPU tensors is its interpreter, which the tests use.
DEVICES = {"cpp": ("cpu",), "triton": ("cuda", "cpu")}

_SCAN_TENSORS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state"
)
_SCAN_OPTIONS = "bool delta_softplus, str discretization"
_CONV_TENSORS = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state"


def _schemas() -> dict[str, str]:
    scan, conv = f"{_SCAN_TENSORS}, {_SCAN_OPTIONS}", f"{_CONV_TENSORS}, bool silu"
    nine, four = ", ".join(["Tensor"] * 9), ", ".join(["Tensor"] * 4)
    scan_step = scan.replace("Tensor? initial_state", "Tensor(a!) initial_state")
    conv_step = conv.replace("Tensor? initial_state", "Tensor(a!) initial_state")
    return {
        "scan": f"({scan}, bool with_summary) -> (Tensor, Tensor, Tensor)",
        "scan_backward": f"({scan}, Tensor grad_y, Tensor? grad_state, Tensor? grad_summary) -> ({nine})",
        "scan_step_": f"({scan_step}) -> Tensor",
        "conv": f"({conv}) -> (Tensor, Tensor)",
        "conv_backward": f"({conv}, Tensor grad_y, Tensor? grad_state) -> ({four})",
        "conv_step_": f"({conv_step}) -> Tensor",
    }


def register(backend: str) -> None:
    """Define and implement the operators of one backend; its module is imported when one of them first runs."""

    def module() -> ModuleType:
        return importlib.import_module(f"selective_scan.{backend}_backend")

    implementations: dict[str, Callable[..., Any]] = {
        "scan": lambda *a: tuple(module().scan_forward(ScanInputs(*a[:11]), with_summary=a[11])),
        "scan_backward": lambda *a: tuple(module().scan_backward(ScanInputs(*a[:11]), *a[11:])),
        "scan_step_": lambda *a: module().scan_forward(ScanInputs(*a), inplace=True)[0],
        "conv": lambda *a: module().conv_forward(ConvInputs(*a)),
        "conv_backward": lambda *a: tuple(module().conv_backward(ConvInputs(*a[:5]), *a[5:])),
        "conv_step_": lambda *a: module().conv_forward(ConvInputs(*a), inplace=True)[0],
    }
    fakes: dict[str, Callable[..., Any]] = {
        "scan": _fake_scan,
        "scan_backward": lambda *a: tuple(_fake_gradient(x, a[0]) for x in a[:9]),
        "scan_step_": lambda u, *_: torch.empty_like(u, memory_format=torch.contiguous_format),
        "conv": _fake_conv,
        "conv_backward": lambda *a: tuple(_fake_gradient(x, a[0]) for x in a[:4]),
        "conv_step_": lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
    }
    for name, schema in _schemas().items():
        qualified = f"{NAMESPACE}::{backend}_{name}"
        torch.library.define(qualified, schema)
        torch.library.impl(qualified, DEVICES[backend], implementations[name])
        torch.library.register_fake(qualified, fakes[name])
    # name, tensors, options that the backward needs, all options
    for name, num_tensors, num_saved, num_options in (("scan", 9, 2, 3), ("conv", 4, 1, 1)):
        backward = functools.partial(_backward, operator(backend, f"{name}_backward"), num_options)
        setup = _save(num_tensors, num_saved)
        torch.library.register_autograd(f"{NAMESPACE}::{backend}_{name}", backward, setup_context=setup)


def operator(backend: str, name: str) -> Any:
    """Return a registered operator, for example operator("cpp", "scan")."""
    return getattr(getattr(torch.ops, NAMESPACE), f"{backend}_{name}")


def _fake_scan(*a: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, with_summary = ScanInputs(*a[:11]), a[11]
    u, states, dtype = inputs.u, inputs.A.shape[1], state_dtype(inputs.u.dtype)
    batch, length, channels = u.shape
    return (
        u.new_empty(u.shape),
        u.new_empty(state_shape(batch, channels, states, inputs.discretization), dtype=dtype),
        u.new_empty((batch, length, states) if with_summary else (0,), dtype=dtype),
    )


def _fake_conv(x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    state = (x.shape[0], x.shape[2], weight.shape[1])
    return x.new_empty(x.shape), x.new_empty(state, dtype=state_dtype(x.dtype))


def _fake_gradient(x: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if x is None else x.new_empty(x.shape)


def _save(num_tensors: int, num_options: int) -> Callable[..., None]:
    """Return the function that keeps a call's tensors and options for its backward."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:num_tensors])
        ctx.options = inputs[num_tensors : num_tensors + num_options]

    return save


def _backward(run: Any, num_options: int, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Run the backward operator on what `_save` kept; options have no gradient."""
    tensors = ctx.saved_tensors
    grad_y, *others = grads
    # The summary is empty where it was not asked for.
    others = [None if g is not None and g.numel() == 0 and g.dim() == 1 else g for g in others]
    if grad_y is None:
        grad_y = torch.zeros_like(tensors[0])
    gradients = run(*tensors, *ctx.options, grad_y, *others)
    pairs = zip(tensors, gradients, ctx.needs_input_grad, strict=False)
    needed = [g if x is not None and wanted else None for x, g, wanted in pairs]
    return *needed, *[None] * num_options


def _register_mean_step() -> None:
    """Define the fused step of `mean_step.py`, which the CPU kernels alone have; it has no gradient."""

    def run(*a: Any) -> Any:
        return importlib.import_module("selective_scan.cpp_backend").mean_step(*a)

    def fake(state: Tensor, x: Tensor, controls: Tensor, rates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.new_empty(x.shape), state.new_empty(state.shape), state.new_empty(state.shape[0], state.shape[2])

    qualified = f"{NAMESPACE}::cpp_mean_step"
    torch.library.define(
        qualified, "(Tensor state, Tensor x, Tensor controls, Tensor rates) -> (Tensor, Tensor, Tensor)"
    )
    torch.library.impl(qualified, DEVICES["cpp"], run)
    torch.library.register_fake(qualified, fake)


for _backend in DEVICES:
    register(_backend)
_register_mean_step()
