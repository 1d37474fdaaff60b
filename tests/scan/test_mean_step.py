"""The fused step of an innovation block against its definition, and against the two scans that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selective_scan.cpp_backend import mean_step_works
from selective_scan.mean_step import mean_step, mean_step_fits, mean_step_ref
from videomamba_depth.layers.innovation_mixer import InnovationMixer

needs_kernel = pytest.mark.skipif(not mean_step_works(), reason="the fused step needs AVX-512 and GCC")

# sequences, channels, heads, states: a head of less than a vector, of whole ones, more heads, every number of states
SHAPES = [(1, 48, 4, 4), (7, 96, 4, 4), (70, 192, 8, 8), (3, 32, 2, 16), (0, 48, 4, 4), (3000, 48, 4, 4)]


def arguments(batch: int, channels: int, heads: int, states: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return state, x, controls and rates; the weights' sums in the state are positive."""
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(batch, channels + heads, states, generator=generator)
    state[:, channels:].abs_().add_(0.1)
    x = torch.randn(batch, channels, generator=generator)
    controls = 2 * torch.randn(batch, 2 * heads + 2 * states, generator=generator)
    return state, x, controls, -torch.exp(torch.randn(heads, states, generator=generator))


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_its_definition(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    state, x, controls, rates = arguments(*shape)
    before, x = state.clone(), x.to(dtype)
    got = mean_step(state, x, controls, rates)
    expected = mean_step_ref(state.double(), x.double(), controls.double(), rates.double())
    assert torch.equal(state, before)
    assert [t.dtype for t in got] == [dtype, torch.float32, torch.float32]
    # measured 9e-7 (float32) and 4e-3 (bfloat16's own rounding), of values around 1
    for one, other in zip(got, expected, strict=True):
        tolerance = 3e-6 if one.dtype == torch.float32 else 1e-2
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


@needs_kernel
def test_threads_do_not_change_a_bit() -> None:
    inputs = arguments(3000, 48, 4, 4)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = mean_step(*inputs)
        torch.set_num_threads(2)
        two = mean_step(*inputs)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@needs_kernel
@pytest.mark.parametrize(("expand", "memory"), [(1, 1.0), (2, 1.0), (1, 3.0)])
def test_a_mixer_streams_as_it_scans(expand: int, memory: float) -> None:
    torch.manual_seed(0)
    mixer = InnovationMixer(48, expand=expand, initial_gain=0.5, backend="cpp")
    x, control = torch.randn(50, 6, 48), torch.randn(50, 6, mixer.d_control)
    with torch.no_grad():
        whole = mixer(x, control, memory=memory)
        state, parts = mixer.init_state(50, torch.float32, "cpu"), []
        assert mixer._fuses(x[:, :1], state[1])
        for t in range(6):
            branch, state, summary = mixer(x[:, t : t + 1], control[:, t : t + 1], state, memory)
            parts.append((branch, summary))
    # the law of the scan: 1e-5; measured 7e-7
    torch.testing.assert_close(torch.cat([p[0] for p in parts], 1), whole[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([p[1] for p in parts], 1), whole[2], rtol=1e-5, atol=1e-5)
    for got, expected in zip(state, whole[1], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_fits_only_where_it_can_run() -> None:
    state = torch.zeros(2, 52, 4)
    with torch.no_grad():
        assert mean_step_fits(state, 48, 4, 4, "zoh", "cpp") is mean_step_works()
        assert not mean_step_fits(state, 48, 4, 4, "foh", "cpp")
        assert not mean_step_fits(state, 48, 4, 4, "zoh", "reference")
        assert not mean_step_fits(state.double(), 48, 4, 4, "zoh", "cpp")
        assert not mean_step_fits(state[:, :24], 20, 4, 4, "zoh", "cpp")
    assert not mean_step_fits(state, 48, 4, 4, "zoh", "cpp")  # gradients are recorded


@needs_kernel
def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="does not run"):
        mean_step(*arguments(2, 20, 4, 4))
