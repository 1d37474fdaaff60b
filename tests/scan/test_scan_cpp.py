"""The compiled CPU backend against the float64 reference."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import torch
from processes import finish, start
from scan_cases import (
    FORWARD_TOLERANCE,
    METHODS,
    Case,
    assert_close,
    make_case,
    relative_rms,
    run,
    split_run,
)

from selective_scan import selective_scan, selective_scan_ref, selective_scan_step, state_shape

SINGLE, DOUBLE = torch.float32, torch.float64

# batch, length, channels, states: lengths 1, 2, 3, 63, 100; channels around a vector's 16; states around a pass's 4
# and a vector's 16; a length beyond one segment of 64 steps; more sequences than the 64 groups of sums.
SHAPES = [(5, 3, 17, 4), (3, 1, 16, 16), (2, 100, 21, 17), (70, 2, 40, 8), (2, 130, 5, 1), (2, 63, 33, 16)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[3]], ids=str)
def test_every_method_and_gradient(method: str, shape: tuple[int, int, int, int]) -> None:
    case = make_case(*shape, method)
    assert_close(run(case.to(SINGLE), "cpp"), run(case, "reference"), SINGLE)


@pytest.mark.parametrize("method", ["zoh", "foh_exact"])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[4], SHAPES[5]], ids=str)
def test_more_shapes(method: str, shape: tuple[int, int, int, int]) -> None:
    case = make_case(*shape, method)
    assert_close(run(case.to(SINGLE), "cpp"), run(case, "reference"), SINGLE)


@pytest.mark.parametrize("method", ["zoh", pytest.param("foh_exact", marks=pytest.mark.slow)])
def test_float64(method: str) -> None:
    case = make_case(3, 70, 9, 5, method)
    assert_close(run(case, "cpp"), run(case, "reference"), DOUBLE)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_full_product(method: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    case = make_case(*shape, method)
    assert_close(run(case.to(dtype), "cpp"), run(case, "reference"), dtype)


@pytest.mark.parametrize("method", ["zoh", "tustin"])
def test_bare_call_without_any_option(method: str) -> None:
    case = make_case(3, 5, 18, 3, method, gate=False, initial_state=False)
    for name in ("D", "delta_bias"):
        del case.arguments[name]
    case.arguments["delta"] = case.arguments["delta"].exp()
    results = []
    for backend, dtype in (("reference", DOUBLE), ("cpp", SINGLE)):
        leaves = {name: x.detach().to(dtype).requires_grad_() for name, x in case.arguments.items()}
        y, state, _ = selective_scan(**leaves, delta_softplus=False, discretization=method, backend=backend)  # type: ignore[arg-type]
        torch.autograd.backward(y, case.cotangents[0].to(dtype))  # nothing arrives through the state
        results.append([y, state, *(x.grad for x in leaves.values())])
    for truth, got in zip(*results, strict=True):
        assert relative_rms(got, truth) < 2e-6


def test_gradient_through_the_state_alone() -> None:
    case = make_case(2, 4, 17, 3)
    grads = []
    for backend in ("reference", "cpp"):
        leaves = {name: x.detach().clone().requires_grad_() for name, x in case.arguments.items()}
        _, state, _ = selective_scan(**leaves, backend=backend)  # type: ignore[arg-type]
        state.backward(case.cotangents[1])
        grads.append([leaves[name].grad for name in ("u", "delta", "A", "B", "initial_state")])
    for truth, got in zip(*grads, strict=True):
        assert relative_rms(got, truth) < 1e-14


def test_strided_and_expanded_inputs() -> None:
    case = make_case(3, 6, 20, 4).to(SINGLE)
    plain = dict(case.arguments)
    strided = {
        "u": plain["u"].transpose(0, 1).contiguous().transpose(0, 1),  # time first
        "delta": plain["delta"].transpose(1, 2).contiguous().transpose(1, 2),  # channels not contiguous
        "z": torch.cat([plain["z"], plain["z"]], -1)[..., 20:],  # a slice of a wider tensor
        "B": torch.cat([plain["B"], plain["C"]], -1)[..., :4],
        "C": torch.cat([plain["B"], plain["C"]], -1)[..., 4:],
        "A": plain["A"].t().contiguous().t(),
        "initial_state": plain["initial_state"].transpose(1, 2).contiguous().transpose(1, 2),
    }
    y, state, _ = selective_scan(**plain, backend="cpp")  # type: ignore[arg-type]
    y_strided, state_strided, _ = selective_scan(**plain | strided, backend="cpp")  # type: ignore[arg-type]
    assert torch.equal(y, y_strided)
    assert torch.equal(state, state_strided)

    expanded = plain | {"u": plain["u"][:1, :1, :1].expand(3, 6, 20), "B": plain["B"][:1].expand(3, 6, 4)}
    for name in ("u", "B"):
        expanded[name] = expanded[name].detach().requires_grad_()
    dense = {name: x.detach().contiguous().requires_grad_(x.requires_grad) for name, x in expanded.items()}
    for backend, arguments in (("cpp", expanded), ("reference", dense)):
        y, _, _ = selective_scan(**arguments, backend=backend)  # type: ignore[arg-type]
        y.backward(case.cotangents[0])
    for name in ("u", "B"):
        assert relative_rms(expanded[name].grad, dense[name].grad) < 2e-6  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_low_precision_inputs_keep_a_float32_state(dtype: torch.dtype, tolerance: float) -> None:
    case = make_case(3, 5, 35, 4)
    low = dict(case.to(dtype).arguments)
    for name in ("A", "D", "delta_bias", "initial_state"):
        low[name] = case.arguments[name].float()
    leaves = {name: x.detach().requires_grad_() for name, x in low.items()}
    y, state, _ = selective_scan(**leaves, backend="cpp")  # type: ignore[arg-type]
    truth, state_truth, _ = selective_scan_ref(**{name: x.double() for name, x in low.items()})
    assert (y.dtype, state.dtype) == (dtype, SINGLE)
    assert relative_rms(y, truth) < tolerance  # y is rounded once
    assert relative_rms(state, state_truth) < 1e-6
    (y.float().sum() + state.sum()).backward()
    reference = {name: x.detach().double().requires_grad_() for name, x in low.items()}
    y, state, _ = selective_scan_ref(**reference)
    (y.sum() + state.sum()).backward()
    for name, x in leaves.items():
        assert x.grad is not None
        assert x.grad.dtype == x.dtype
        assert relative_rms(x.grad, reference[name].grad) < 2 * tolerance, name  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_chunks_equal_the_whole(method: str) -> None:
    case = make_case(3, 9, 32, 4, method).to(SINGLE)
    whole = run(case, "cpp")
    for lengths in ([1] * 9, [4, 1, 3, 1]):
        for name, x in split_run(case, lengths, "cpp").items():
            assert relative_rms(x, whole[name]) <= 1e-5, name


def test_chunks_equal_the_whole_in_float64() -> None:
    case = make_case(2, 9, 9, 5)
    whole = run(case, "cpp")
    for name, x in split_run(case, [1, 5, 2, 1], "cpp").items():
        assert relative_rms(x, whole[name]) <= 1e-10, name


@pytest.mark.parametrize("method", ["zoh", "zoh_exact", "tustin"])
@pytest.mark.parametrize("step_size", [1e-5, 8.0], ids=["decays near 1", "decays near 0"])
def test_long_sequences_at_extreme_decays(method: str, step_size: float) -> None:
    case = make_case(2, 1024, 16, 4, method)
    case.arguments["delta"] = torch.full_like(case.arguments["delta"], step_size).expm1().log()
    case.arguments["delta_bias"] = torch.zeros(16, dtype=DOUBLE)
    truth, got = run(case, "reference"), run(case.to(SINGLE), "cpp")
    for name, x in got.items():
        assert relative_rms(x, truth[name]) < 2e-5, name


@pytest.mark.parametrize("method", ["zoh", "trapezoid"])
def test_any_number_of_threads_gives_the_same_bits(method: str) -> None:
    case = make_case(130, 4, 48, 8, method).to(SINGLE)
    one = run(case, "cpp")
    torch.set_num_threads(2)
    try:
        two = run(case, "cpp")
    finally:
        torch.set_num_threads(1)
    for name, x in one.items():
        assert torch.equal(x, two[name]), name


def test_large_states_that_are_written_around_the_cache() -> None:
    case = make_case(1400, 2, 96, 16).to(SINGLE)  # 8.6 MB of state
    y, state, _ = selective_scan(**case.arguments, backend="cpp")  # type: ignore[arg-type]
    truth, state_truth, _ = selective_scan_ref(**case.arguments)
    assert relative_rms(y, truth) < FORWARD_TOLERANCE[SINGLE]
    assert relative_rms(state, state_truth) < FORWARD_TOLERANCE[SINGLE]


@pytest.mark.parametrize(("method", "states"), [("zoh", n) for n in (1, 2, 3, 4, 8, 16, 17)])
@pytest.mark.parametrize("channels", [32, 39])
def test_step(method: str, states: int, channels: int) -> None:
    check_step(method, states, channels)


@pytest.mark.parametrize("method", METHODS)
def test_step_of_every_method(method: str) -> None:
    check_step(method, 16, 32)


def check_step(method: str, states: int, channels: int) -> None:
    case = make_case(3, 1, channels, states, method).to(SINGLE)
    truth, state_truth, _ = selective_scan_ref(**case.to(DOUBLE).arguments, discretization=method)
    arguments = dict(case.arguments)
    state = arguments.pop("initial_state")
    flat = {name: x.squeeze(1) if x.dim() == 3 else x for name, x in arguments.items()}
    y, out_of_place = selective_scan_step(state, **flat, discretization=method, backend="cpp")  # type: ignore[arg-type]
    assert torch.equal(state, case.arguments["initial_state"])
    assert relative_rms(y, truth.squeeze(1)) < FORWARD_TOLERANCE[SINGLE]
    assert relative_rms(out_of_place, state_truth) < FORWARD_TOLERANCE[SINGLE]
    state = state.clone()
    y_in_place, returned = selective_scan_step(
        state,
        **flat,  # type: ignore[arg-type]
        discretization=method,
        backend="cpp",
        inplace=True,
    )
    assert returned is state
    assert torch.equal(y_in_place, y)
    assert torch.equal(state, out_of_place)


def test_step_from_no_state_equals_step_from_zeros() -> None:
    case = make_case(2, 1, 32, 8, initial_state=False).to(SINGLE)
    zeros = torch.zeros(state_shape(2, 32, 8))
    y, state, _ = selective_scan(**case.arguments, backend="cpp")  # type: ignore[arg-type]
    y_zeros, state_zeros, _ = selective_scan(**case.arguments, initial_state=zeros, backend="cpp")  # type: ignore[arg-type]
    assert torch.equal(y, y_zeros)
    assert torch.equal(state, state_zeros)


def test_in_place_is_refused_where_it_would_be_wrong() -> None:
    case = make_case(2, 1, 4, 2).to(SINGLE)
    flat = {name: x.squeeze(1) if x.dim() == 3 else x for name, x in case.arguments.items()}
    state = flat.pop("initial_state").reshape(2, 4, 2)
    with pytest.raises(RuntimeError, match="while gradients are recorded"):
        selective_scan_step(state, **flat | {"u": flat["u"].requires_grad_()}, inplace=True)  # type: ignore[arg-type]
    flat["u"] = flat["u"].detach()
    with pytest.raises(TypeError, match="float32 to be updated in place"):
        selective_scan_step(state.double(), **flat, inplace=True)  # type: ignore[arg-type]
    strided = state.transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(ValueError, match="contiguous"):
        selective_scan_step(strided, **flat, inplace=True)  # type: ignore[arg-type]


def test_results_are_new_tensors_and_inputs_unchanged() -> None:
    case = make_case(2, 3, 16, 4).to(SINGLE)
    before = {name: x.clone() for name, x in case.arguments.items()}
    _, state, _ = selective_scan(**case.arguments, backend="cpp")  # type: ignore[arg-type]
    state.zero_()
    for name, x in case.arguments.items():
        assert torch.equal(x, before[name]), name


def test_empty_batch() -> None:
    case = make_case(2, 3, 16, 4).to(SINGLE)
    over_batch = ("u", "delta", "B", "C", "z", "initial_state")
    empty = {name: x[:0] if name in over_batch else x for name, x in case.arguments.items()}
    leaves = {name: x.detach().requires_grad_() for name, x in empty.items()}
    y, state, _ = selective_scan(**leaves, backend="cpp")  # type: ignore[arg-type]
    assert y.shape == (0, 3, 16)
    assert state.shape == (0, 16, 4)
    (y.sum() + state.sum()).backward()
    assert leaves["A"].grad is not None
    assert (leaves["A"].grad == 0).all()


def test_works_in_a_forked_process_after_threads_ran() -> None:
    assert finish(start(_scan_here_and_in_a_fork)) == 0


def _scan_here_and_in_a_fork() -> None:
    case = make_case(130, 4, 48, 8).to(SINGLE)
    torch.set_num_threads(2)
    expected, _, _ = selective_scan(**case.arguments, backend="cpp")  # type: ignore[arg-type]
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    process = fork.Process(target=_scan_sum, args=(case, queue))
    process.start()
    assert finish(process, timeout_s=30) == 0
    assert queue.get() == expected.double().numpy().sum() != 0


def _scan_sum(case: Case, queue: Any) -> None:
    torch.use_deterministic_algorithms(False)  # PyTorch's own threads, that fill empty tensors, are gone
    y, _, _ = selective_scan(**case.arguments, backend="cpp")  # type: ignore[arg-type]
    queue.put(y.double().numpy().sum())
