"""The causal convolution: values by hand, gradients, chunks, C++ against the reference."""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType

import pytest
import torch
from scan_cases import relative_rms
from torch import Tensor

from selective_scan import backends, causal_conv1d, causal_conv1d_ref, causal_conv1d_step, mamba_ssm_backend, zero_state
from selective_scan.contract import ConvInputs

DOUBLE = torch.float64


def make(batch: int, length: int, channels: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, length, channels), (channels, width), (channels,), (batch, channels, width))
    return tuple(  # type: ignore[return-value]
        torch.randn(*shape, generator=generator, dtype=DOUBLE).requires_grad_() for shape in shapes
    )


def results(tensors: tuple[Tensor, ...], activation: str | None, backend: str) -> list[Tensor]:
    """y, final state and every gradient of a loss on both."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    y, state = causal_conv1d(*leaves, activation, backend)  # type: ignore[arg-type]
    loss = (y * torch.arange(y.shape[-1])).sum() + state.sin().sum()
    return [y, state, *torch.autograd.grad(loss, leaves)]


def test_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1)
    y, state = causal_conv1d_ref(x, torch.tensor([[10.0, 1.0]]), torch.tensor([0.5]), activation=None)
    assert y.flatten().tolist() == [1.5, 12.5, 23.5]
    assert state.flatten().tolist() == [2.0, 3.0]
    y, state = causal_conv1d_ref(x, torch.tensor([[10.0, 1.0]]), None, torch.tensor([[[9.0, 7.0]]]), None)
    assert y.flatten().tolist() == [71.0, 12.0, 23.0]


def test_gradcheck_of_the_reference() -> None:
    for activation in ("silu", None):
        leaves = make(2, 5, 3, 4)
        assert torch.autograd.gradcheck(lambda *a, act=activation: causal_conv1d_ref(*a, act), leaves)


@pytest.mark.parametrize("shape", [(3, 1, 16, 4), (2, 5, 19, 3), (70, 2, 33, 2), (2, 9, 7, 5)], ids=str)
@pytest.mark.parametrize("activation", ["silu", None])
def test_cpp_agrees_with_the_reference(shape: tuple[int, int, int, int], activation: str | None) -> None:
    tensors = make(*shape)
    truth = results(tensors, activation, "reference")
    single = tuple(x.detach().float() for x in tensors)
    for got, expected in zip(results(single, activation, "cpp"), truth, strict=True):
        assert relative_rms(got, expected) < 1e-6  # worst seen 2.6e-7


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_chunks_equal_the_whole_with_gradients(backend: str) -> None:
    x, weight, bias, state = (t.detach().float().requires_grad_() for t in make(2, 7, 18, 4))
    whole = results((x, weight, bias, state), "silu", backend)
    parts, carried = [], state
    for part in x.split([1, 3, 1, 2], dim=1):
        y, carried = causal_conv1d(part, weight, bias, carried, backend=backend)
        parts.append(y)
    y = torch.cat(parts, 1)
    loss = (y * torch.arange(18)).sum() + carried.sin().sum()
    chunked = [y, carried, *torch.autograd.grad(loss, (x, weight, bias, state))]
    for got, expected in zip(chunked, whole, strict=True):
        assert relative_rms(got, expected) < 1e-6


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_step_in_place_and_out_of_place(backend: str) -> None:
    x, weight, bias, state = (t.detach().float() for t in make(3, 1, 20, 4))
    truth, final = causal_conv1d_ref(x, weight, bias, state)
    y, out_of_place = causal_conv1d_step(state, x[:, 0], weight, bias, backend=backend)
    assert relative_rms(y, truth[:, 0]) < 1e-6
    assert torch.equal(out_of_place, final)
    y_in_place, returned = causal_conv1d_step(state, x[:, 0], weight, bias, backend=backend, inplace=True)
    assert returned is state
    assert torch.equal(state, final)
    assert torch.equal(y_in_place, y)


def test_low_precision_input_keeps_a_float32_state() -> None:
    x, weight, bias, state = (t.detach() for t in make(2, 3, 17, 4))
    for backend in ("reference", "cpp"):
        y, final = causal_conv1d(x.bfloat16(), weight.float(), bias.float(), state.float(), backend=backend)
        assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
        truth, _ = causal_conv1d_ref(x.bfloat16().double(), weight, bias, state)
        assert relative_rms(y, truth) < 4e-3


def test_contract_violations_name_the_argument() -> None:
    x, weight, bias, state = make(2, 3, 4, 4)
    with pytest.raises(ValueError, match="initial_state must have shape"):
        causal_conv1d(x, weight, bias, state[..., 1:])
    with pytest.raises(ValueError, match="weight must have shape"):
        causal_conv1d(x, weight[:3], bias)
    with pytest.raises(ValueError, match="activation must be"):
        causal_conv1d(x, weight, bias, activation="relu")


class FakeCausalConv1d(ModuleType):
    """Stands for the causal-conv1d package: its layouts and contracts on CPU tensors, and a count of its calls."""

    def __init__(self) -> None:
        super().__init__("causal_conv1d")
        self.__spec__ = importlib.machinery.ModuleSpec("causal_conv1d", None)
        self.calls = 0

    def causal_conv1d_fn(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor, activation: str | None
    ) -> Tensor:
        """x [T, D, L] and initial_states [T, D, K - 1], both with D fastest."""
        assert x.stride(1) == initial_states.stride(1) == 1
        assert x.shape[1] % 8 == 0
        assert weight.dtype == initial_states.dtype == x.dtype
        self.calls += 1
        past = torch.nn.functional.pad(initial_states, (1, 0))
        return causal_conv1d_ref(x.transpose(1, 2), weight, bias, past, activation)[0].transpose(1, 2)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> FakeCausalConv1d:
    """The package is installed, and CPU tensors count as CUDA ones."""
    fake = FakeCausalConv1d()
    monkeypatch.setitem(sys.modules, "causal_conv1d", fake)
    monkeypatch.setattr(mamba_ssm_backend, "_is_on_gpu", lambda x: True)
    monkeypatch.setattr(backends, "_installed", lambda name: name == "causal_conv1d")
    return fake


def test_the_installed_package_runs_what_it_supports(package: FakeCausalConv1d) -> None:
    for width in (2, 3, 4):
        leaves = tuple(t.detach().float().requires_grad_() for t in make(2, 5, 16, width))
        truth = results(leaves, "silu", "reference")
        y, state = causal_conv1d(*leaves)
        loss = (y * torch.arange(16)).sum() + state.sin().sum()
        for got, expected in zip((y, state, *torch.autograd.grad(loss, leaves)), truth, strict=True):
            assert relative_rms(got, expected) < 1e-6
    assert package.calls == 3
    causal_conv1d(leaves[0].detach().bfloat16(), *leaves[1:3])
    assert package.calls == 4


@pytest.mark.parametrize("shape", [(2, 3, 12, 4), (2, 3, 16, 5), (2, 3, 16, 1)], ids=str)
def test_the_installed_package_is_left_alone_otherwise(
    package: FakeCausalConv1d, shape: tuple[int, int, int, int]
) -> None:
    tensors = make(*shape)
    single = tuple(t.detach().float() for t in tensors)
    assert not mamba_ssm_backend.conv_is_supported(tensors[0], 4)  # float64
    causal_conv1d(*single)
    assert package.calls == 0
    with pytest.raises(ValueError, match="needs CUDA tensors, a width of 2 to 4, D a multiple of 8"):
        mamba_ssm_backend.causal_conv1d(ConvInputs(*single, True))


def test_the_environment_overrules_the_installed_package(
    package: FakeCausalConv1d, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias, state = (t.detach().float() for t in make(2, 3, 16, 4))
    causal_conv1d(x, weight, bias, state, backend="cpp")
    for name, value in (
        ("VIM_USE_CUDA_KERNEL", "0"),
        ("VIDEOMAMBA_SCAN_BACKEND", "reference"),
        ("VIDEOMAMBA_DISABLE_FUSED", "1"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            causal_conv1d(x, weight, bias, state)
    assert package.calls == 0


def test_states_start_at_zero_in_any_size() -> None:
    for batch in (2, 3000):  # below and above the size from which huge pages are asked for
        state = zero_state((batch, 384, 4))
        assert state.shape == (batch, 384, 4)
        assert state.is_contiguous()
        assert not state.any()
    assert zero_state((2, 3, 4), torch.float64, "meta").device.type == "meta"
