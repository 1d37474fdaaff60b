"""The causal convolution: values by hand, gradients, chunks, C++ against the reference."""

from __future__ import annotations

import pytest
import torch
from scan_cases import relative_rms
from torch import Tensor

from selective_scan import causal_conv1d, causal_conv1d_ref, causal_conv1d_step

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
