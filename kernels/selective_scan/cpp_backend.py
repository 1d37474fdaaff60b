"""The `cpp` backend: hands tensors to the compiled CPU kernels. Called by `operators.py` alone."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from selective_scan.build import BuildError, load_library
from selective_scan.discretization import get_discretization
from selective_scan.memory import fresh
from selective_scan.state import state_dtype, state_shape

_IMPORT_PROCESS = os.getpid()
# Fewer state updates than this are done before a second thread has woken up.
_ELEMENTS_PER_THREAD = 1 << 15


class _Rows(ctypes.Structure):
    """`Rows` of cpp/arguments.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("time_stride", ctypes.c_int64),
        ("dtype", ctypes.c_int64),
    )


def _fields(integers: str, rows: str, pointers: str) -> tuple[tuple[str, type], ...]:
    return (
        *((name, ctypes.c_int64) for name in integers.split()),
        *((name, _Rows) for name in rows.split()),
        *((name, ctypes.c_void_p) for name in pointers.split()),
    )


class _ScanArguments(ctypes.Structure):
    _fields_ = _fields(
        "batch length channels states softplus threads",
        "u delta z B C y",
        "A D delta_bias initial_state final_state summary",
    )


class _ScanGradients(ctypes.Structure):
    _fields_ = _fields(
        "",
        "y u delta z",
        "final_state summary initial_state A B C D delta_bias",
    )


class _ConvArguments(ctypes.Structure):
    _fields_ = _fields(
        "batch length channels width silu threads",
        "x y",
        "weight bias initial_state final_state",
    )


class _ConvGradients(ctypes.Structure):
    _fields_ = _fields("", "y x", "final_state weight bias initial_state")


class _MeanStepArguments(ctypes.Structure):
    _fields_ = _fields("batch channels heads states threads", "x controls y", "rates initial_state final_state summary")


def scan_library(discretization: str, dtype: torch.dtype) -> ctypes.CDLL:
    """Return the scan compiled for one discretization and one dtype of arithmetic; raise BuildError."""
    defines = (f"METHOD={get_discretization(discretization).index}",)
    return load_library("scan.cpp", defines + _scalar_define(dtype))


def conv_library(dtype: torch.dtype) -> ctypes.CDLL:
    """Return the convolution compiled for one dtype of arithmetic; raise BuildError."""
    return load_library("conv.cpp", _scalar_define(dtype))


def _scalar_define(dtype: torch.dtype) -> tuple[str, ...]:
    return ("SCALAR_IS_DOUBLE",) if dtype == torch.float64 else ()


def _threads(elements: int) -> int:
    """Return how many threads to use. A forked process has lost the threads of the OpenMP runtime it inherits."""
    if os.getpid() != _IMPORT_PROCESS:
        return 1
    return max(1, min(torch.get_num_threads(), elements // _ELEMENTS_PER_THREAD))


def _as_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x [T, L, *] as the kernels read it: arithmetic dtype or bfloat16, last dimension contiguous."""
    if x.dtype != dtype and not (dtype == torch.float32 and x.dtype == torch.bfloat16):
        x = x.to(dtype)
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _rows(x: Tensor | None) -> _Rows:
    if x is None:
        return _Rows(None, 0, 0, 0)
    return _Rows(x.data_ptr(), x.stride(0), x.stride(1), int(x.dtype == torch.bfloat16))


def _dense(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype).contiguous()


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


class _Scan:
    """Arguments of one call, converted; keeps the converted tensors alive while the kernel runs."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        initial_state: Tensor | None,
        delta_softplus: bool,
        discretization: str,
    ) -> None:
        self.dtype = dtype = state_dtype(u.dtype)
        self.library = scan_library(discretization, dtype)
        self.u, self.delta = _as_rows(u, dtype), _as_rows(delta, dtype)
        self.z = None if z is None else _as_rows(z, dtype)
        self.B, self.C = _as_rows(B, dtype), _as_rows(C, dtype)
        parameters = (A, D, delta_bias, initial_state)
        self.parameters = [_dense(x, dtype) for x in parameters]
        batch, length, channels = u.shape
        states = A.shape[1]
        self.shape = (batch, length, channels, states)
        self.state_shape = state_shape(batch, channels, states, discretization)
        threads = _threads(batch * length * channels * states)
        integers = (*self.shape, int(delta_softplus), threads)
        self.rows = (self.u, self.delta, self.z, self.B, self.C)
        self.integers = integers

    def arguments(self, y: Tensor | None, final_state: Tensor | None, summary: Tensor | None) -> _ScanArguments:
        rows = [_rows(x) for x in (*self.rows, y)]
        pointers = [_pointer(x) for x in (*self.parameters, final_state, summary)]
        return _ScanArguments(*self.integers, *rows, *pointers)


def scan_forward(*args: object, with_summary: bool = False, state: Tensor | None = None) -> tuple[Tensor, ...]:
    """Run the scan; `state`, when given, is both the initial state and the memory of the final one.

    Args are those of `_Scan`, in order. Returns (y, final state, summary), the last one empty unless asked for.
    """
    scan = _Scan(*args)  # type: ignore[arg-type]
    u = args[0]
    assert isinstance(u, Tensor)
    batch, length, _, states = scan.shape
    y = fresh(scan.u.shape, scan.u.dtype)
    if state is None:
        final_state = fresh(scan.state_shape, scan.dtype)
    else:
        scan.parameters[-1] = final_state = state
    summary = torch.empty((batch, length, states) if with_summary else (0,), dtype=scan.dtype)
    arguments = scan.arguments(y, final_state, summary if with_summary else None)
    scan.library.selective_scan_forward(ctypes.byref(arguments))
    return y.to(u.dtype), final_state, summary


def scan_backward(
    args: Sequence[object], grad_y: Tensor, grad_final_state: Tensor | None, grad_summary: Tensor | None
) -> list[Tensor]:
    """Return the gradients of the nine tensor arguments of `_Scan`; an empty tensor for one that is None."""
    scan = _Scan(*args)  # type: ignore[arg-type]
    dtype, (batch, length, channels, states) = scan.dtype, scan.shape
    grad_y = _as_rows(grad_y, dtype)
    incoming = [_dense(grad_final_state, dtype), _dense(grad_summary, dtype)]

    def like(x: Tensor | None, *shape: int) -> Tensor | None:
        return None if x is None else fresh(shape, dtype)

    _, D, delta_bias, initial_state = scan.parameters
    full = (batch, length, channels)
    du, ddelta = fresh(full, scan.u.dtype), fresh(full, scan.delta.dtype)
    dz = None if scan.z is None else fresh(full, scan.z.dtype)
    dA = torch.empty(channels, states, dtype=dtype)
    dB, dC = (fresh((batch, length, states), dtype) for _ in range(2))
    dD, dbias = (like(x, channels) for x in (D, delta_bias))
    dstate = like(initial_state, *scan.state_shape)
    rows = [_rows(x) for x in (grad_y, du, ddelta, dz)]
    pointers = [_pointer(x) for x in (*incoming, dstate, dA, dB, dC, dD, dbias)]
    gradients = _ScanGradients(*rows, *pointers)
    scan.library.selective_scan_backward(ctypes.byref(scan.arguments(None, None, None)), ctypes.byref(gradients))
    return _like_inputs(args, (du, ddelta, dA, dB, dC, dD, dz, dbias, dstate))


def _like_inputs(inputs: Sequence[object], gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """Give every gradient the dtype of its input, and stand in an empty tensor for those that do not exist."""
    result: list[Tensor] = []
    first = inputs[0]
    assert isinstance(first, Tensor)
    for x, gradient in zip(inputs, gradients, strict=False):
        if gradient is None or not isinstance(x, Tensor):
            result.append(first.new_empty(0))
        else:
            result.append(gradient.to(x.dtype))
    return result


class _Conv:
    """Arguments of one call, converted; keeps the converted tensors alive while the kernel runs."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool
    ) -> None:
        self.dtype = dtype = state_dtype(x.dtype)
        self.library = conv_library(dtype)
        self.x = _as_rows(x, dtype)
        self.parameters = [_dense(p, dtype) for p in (weight, bias, initial_state)]
        batch, length, channels = x.shape
        self.state_shape = (batch, channels, weight.shape[1])
        self.integers = (*x.shape, weight.shape[1], int(silu), _threads(batch * length * channels * 4))

    def arguments(self, y: Tensor | None, final_state: Tensor | None) -> _ConvArguments:
        pointers = [_pointer(p) for p in (*self.parameters, final_state)]
        return _ConvArguments(*self.integers, _rows(self.x), _rows(y), *pointers)


def conv_forward(*args: object, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Run the convolution; `state` as in `scan_forward`. Args are those of `_Conv`. Returns (y, final state)."""
    conv = _Conv(*args)  # type: ignore[arg-type]
    x = args[0]
    assert isinstance(x, Tensor)
    y = fresh(conv.x.shape, conv.x.dtype)
    if state is None:
        final_state = fresh(conv.state_shape, conv.dtype)
    else:
        conv.parameters[-1] = final_state = state
    conv.library.causal_conv1d_forward(ctypes.byref(conv.arguments(y, final_state)))
    return y.to(x.dtype), final_state


@functools.cache
def mean_step_works() -> bool:
    """Tell whether the fused step is there: it needs AVX-512, and GCC."""
    try:
        return bool(load_library("mean_step.cpp").mean_step_works())
    except BuildError:
        return False


def mean_step(state: Tensor, x: Tensor, controls: Tensor, rates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run the fused step; see `mean_step.mean_step`."""
    dtype, (batch, channels) = torch.float32, x.shape
    heads, states = rates.shape
    rows = [_as_rows(t.unsqueeze(1), dtype) for t in (x, controls)]
    state, rates = state.contiguous(), rates.to(dtype).contiguous()
    y, next_state = fresh(rows[0].shape, rows[0].dtype), fresh(state.shape, dtype)
    summary = torch.empty(batch, states, dtype=dtype)
    arguments = _MeanStepArguments(
        batch,
        channels,
        heads,
        states,
        _threads(batch * channels * states),
        *(_rows(t) for t in (*rows, y)),
        *(_pointer(t) for t in (rates, state, next_state, summary)),
    )
    run = load_library("mean_step.cpp").mean_step_forward
    run.restype = ctypes.c_int64
    if run(ctypes.byref(arguments)):
        raise ValueError(f"mean_step does not run on {channels} channels in {heads} heads of {states} states here")
    return y.squeeze(1).to(x.dtype), next_state, summary


def conv_backward(args: Sequence[object], grad_y: Tensor, grad_final_state: Tensor | None) -> list[Tensor]:
    """Return the gradients of the four tensor arguments of `_Conv`; an empty tensor for one that is None."""
    conv = _Conv(*args)  # type: ignore[arg-type]
    grad_y, incoming = _as_rows(grad_y, conv.dtype), _dense(grad_final_state, conv.dtype)
    weight, bias, initial_state = conv.parameters
    assert weight is not None
    dx = fresh(conv.x.shape, conv.x.dtype)
    dweight = torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    dstate = None if initial_state is None else torch.empty_like(initial_state)
    pointers = [_pointer(p) for p in (incoming, dweight, dbias, dstate)]
    gradients = _ConvGradients(_rows(grad_y), _rows(dx), *pointers)
    conv.library.causal_conv1d_backward(ctypes.byref(conv.arguments(None, None)), ctypes.byref(gradients))
    return _like_inputs(args, (dx, dweight, dbias, dstate))
