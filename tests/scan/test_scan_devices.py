"""Every backend of a device against the float64 reference on the CPU: outputs, final states and all gradients."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch
from devices import CUDA
from scan_cases import METHODS, Case, assert_close, make_case, relative_rms, run, split_run
from torch import Tensor

from selective_scan import causal_conv1d, selective_scan, selective_scan_ref, selective_scan_step
from selective_scan.backends import resolve_backend

BACKENDS = [
    ("cpu", "cpp"),
    pytest.param(*CUDA.values, "reference", marks=CUDA.marks),
    pytest.param(*CUDA.values, "triton", marks=CUDA.marks),
]
SHAPES = [(2, 1, 16, 16), (5, 3, 67, 4), (3, 63, 21, 17)]  # channels that fill no block, states beyond a power of two


@pytest.fixture(autouse=True)
def nan_in_empty_tensors() -> Iterator[None]:
    """As in the other tests of the scan, but what has no deterministic form on CUDA runs all the same."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def on(case: Case, device: str, dtype: torch.dtype = torch.float32) -> Case:
    """Return the case there; in float64 as it is on the CPU, which is the truth."""
    return Case(
        {name: x.to(device, dtype) for name, x in case.arguments.items()},
        tuple(x.to(device, dtype) for x in case.cotangents),  # type: ignore[arg-type]
        case.discretization,
    )


def on_cpu(results: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.cpu() for name, x in results.items()}


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_outputs_and_gradients_are_the_reference_s(device: str, backend: str, method: str) -> None:
    for shape in SHAPES:
        case = make_case(*shape, method)
        assert_close(on_cpu(run(on(case, device), backend)), run(case, "reference"), torch.float32)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("method", ["zoh", "tustin"])
def test_chunks_and_steps_equal_the_whole(device: str, backend: str, method: str) -> None:
    case = on(make_case(3, 5, 40, 4, method), device)
    whole = run(case, backend)
    for name, x in split_run(case, [1, 3, 1], backend).items():
        assert relative_rms(x, whole[name]) <= 1e-5, name
    arguments = dict(case.arguments)
    state = arguments.pop("initial_state").clone()
    over_time = {name: arguments.pop(name) for name in ("u", "delta", "B", "C", "z")}
    for t in range(5):
        frame = {name: x[:, t] for name, x in over_time.items()}
        y, returned = selective_scan_step(
            state, **frame, **arguments, discretization=method, backend=backend, inplace=True
        )
        assert returned is state
        assert relative_rms(y, whole["y"][:, t]) <= 1e-5
    assert relative_rms(state, whole["final_state"]) <= 1e-5


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_convolution(device: str, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    arguments = [torch.randn(*shape, generator=generator) for shape in ((3, 7, 40), (40, 4), (40,), (3, 40, 4))]
    results = []
    for place, dtype, chosen in (("cpu", torch.float64, "reference"), (device, torch.float32, backend)):
        leaves = [x.to(place, dtype).requires_grad_() for x in arguments]
        y, state = causal_conv1d(*leaves, backend=chosen)
        (y.square().sum() + state.square().sum()).backward()
        results.append([x.detach().cpu() for x in (y, state, *(leaf.grad for leaf in leaves))])  # type: ignore[union-attr]
    for truth, got in zip(*results, strict=True):
        assert relative_rms(got, truth) <= 1e-6  # measured 1.4e-7 on the CPU


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_fused_backend_runs_where_nobody_asks(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIDEOMAMBA_DISABLE_FUSED", "VIDEOMAMBA_SCAN_BACKEND", "VIM_USE_CUDA_KERNEL"):
        monkeypatch.delenv(name, raising=False)
    assert resolve_backend(None, device, "zoh", False) == {"cpu": "cpp", "cuda": "triton"}[device]


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.skipif(importlib.util.find_spec("mamba_ssm") is None, reason="mamba-ssm is not installed")
def test_the_published_kernel_agrees(device: str) -> None:
    case = make_case(5, 63, 64, 16, initial_state=False)
    leaves = {name: x.requires_grad_() for name, x in on(case, device).arguments.items()}
    y, state, _ = selective_scan(**leaves, backend="mamba_ssm")
    y.backward(case.cotangents[0].to(y))
    truth = {name: x.detach().clone().requires_grad_() for name, x in case.arguments.items()}
    expected, expected_state, _ = selective_scan_ref(**truth)
    expected.backward(case.cotangents[0])
    assert relative_rms(y.detach().cpu(), expected.detach()) <= 1e-5
    assert relative_rms(state.cpu(), expected_state.detach()) <= 1e-5
    for name, leaf in leaves.items():
        assert relative_rms(leaf.grad.cpu(), truth[name].grad) <= 1e-4, name  # type: ignore[union-attr, arg-type]
