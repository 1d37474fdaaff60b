"""The `cpp` backend: hands tensors to the compiled CPU kernels. Called by `operators.py` alone."""

from __future__ import annotations

import ctypes
import functools
import os

import torch
from torch import Tensor

from selective_scan.build import BuildError, load_library
from selective_scan.contract import ConvInputs, ScanInputs, dense, gradients_like, last_axis_contiguous
from selective_scan.discretization import get_discretization
from selective_scan.memory import empty
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


def _rows_tensor(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return x [T, L, *] as the kernels read it: arithmetic dtype or bfloat16, last axis contiguous."""
    if x is None:
        return None
    if x.dtype != dtype and not (dtype == torch.float32 and x.dtype == torch.bfloat16):
        x = x.to(dtype)
    return last_axis_contiguous(x)


def _rows(x: Tensor | None) -> _Rows:
    if x is None:
        return _Rows(None, 0, 0, 0)
    return _Rows(x.data_ptr(), x.stride(0), x.stride(1), int(x.dtype == torch.bfloat16))


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _like(x: Tensor | None) -> Tensor | None:
    """Return memory for the gradient of a converted argument; None for one that is None."""
    return None if x is None else empty(x.shape, x.dtype)


class _Scan:
    """Arguments of one call, converted; keeps the converted tensors alive while the kernel runs."""

    def __init__(self, inputs: ScanInputs) -> None:
        u, A, initial_state = inputs.u, inputs.A, inputs.initial_state
        self.dtype = dtype = state_dtype(u.dtype)
        self.library = scan_library(inputs.discretization, dtype)
        self.over_time = [_rows_tensor(x, dtype) for x in (u, inputs.delta, inputs.z, inputs.B, inputs.C)]
        self.parameters = [dense(x, dtype) for x in (A, inputs.D, inputs.delta_bias, initial_state)]
        batch, length, channels = u.shape
        states = A.shape[1]
        self.summary_shape = (batch, length, states)
        self.state_shape = state_shape(batch, channels, states, inputs.discretization)
        threads = _threads(batch * length * channels * states)
        self.integers = (batch, length, channels, states, int(inputs.delta_softplus), threads)

    def arguments(self, y: Tensor | None, final_state: Tensor | None, summary: Tensor | None) -> _ScanArguments:
        rows = [_rows(x) for x in (*self.over_time, y)]
        pointers = [_pointer(x) for x in (*self.parameters, final_state, summary)]
        return _ScanArguments(*self.integers, *rows, *pointers)


def scan_forward(inputs: ScanInputs, with_summary: bool = False, inplace: bool = False) -> tuple[Tensor, ...]:
    """Run the scan; returns `ScanOutput`'s three tensors.

    inplace: the final state overwrites the initial one.
    """
    scan = _Scan(inputs)
    y = _like(scan.over_time[0])
    assert y is not None
    final_state = inputs.initial_state if inplace else empty(scan.state_shape, scan.dtype)
    assert final_state is not None
    summary = torch.empty(scan.summary_shape if with_summary else (0,), dtype=scan.dtype)
    arguments = scan.arguments(y, final_state, summary if with_summary else None)
    scan.library.selective_scan_forward(ctypes.byref(arguments))
    return y.to(inputs.u.dtype), final_state, summary


def scan_backward(
    inputs: ScanInputs, grad_y: Tensor, grad_state: Tensor | None, grad_summary: Tensor | None
) -> list[Tensor]:
    """Return the gradients of the nine tensors of `inputs`; an empty tensor for one that is None."""
    scan = _Scan(inputs)
    incoming = [dense(grad_state, scan.dtype), dense(grad_summary, scan.dtype)]
    du, ddelta, dz = (_like(x) for x in scan.over_time[:3])
    # The kernel sums over channels in the dtype of the arithmetic, whatever dtype B and C have.
    dB, dC = (empty(scan.summary_shape, scan.dtype) for _ in range(2))
    dA, dD, dbias, dstate = (_like(x) for x in scan.parameters)
    dy = _rows_tensor(grad_y, scan.dtype)
    rows = [_rows(x) for x in (dy, du, ddelta, dz)]
    pointers = [_pointer(x) for x in (*incoming, dstate, dA, dB, dC, dD, dbias)]
    gradients = _ScanGradients(*rows, *pointers)
    scan.library.selective_scan_backward(ctypes.byref(scan.arguments(None, None, None)), ctypes.byref(gradients))
    return gradients_like(inputs, (du, ddelta, dA, dB, dC, dD, dz, dbias, dstate))


class _Conv:
    """Arguments of one call, converted; keeps the converted tensors alive while the kernel runs."""

    def __init__(self, inputs: ConvInputs) -> None:
        self.dtype = dtype = state_dtype(inputs.x.dtype)
        self.library = conv_library(dtype)
        self.x = _rows_tensor(inputs.x, dtype)
        self.parameters = [dense(p, dtype) for p in (inputs.weight, inputs.bias, inputs.initial_state)]
        batch, length, channels = inputs.x.shape
        width = inputs.weight.shape[1]
        self.state_shape = (batch, channels, width)
        threads = _threads(batch * length * channels * 4)
        self.integers = (batch, length, channels, width, int(inputs.silu), threads)

    def arguments(self, y: Tensor | None, final_state: Tensor | None) -> _ConvArguments:
        pointers = [_pointer(p) for p in (*self.parameters, final_state)]
        return _ConvArguments(*self.integers, _rows(self.x), _rows(y), *pointers)


def conv_forward(inputs: ConvInputs, inplace: bool = False) -> tuple[Tensor, Tensor]:
    """Run the convolution; returns (y, final state). `inplace` as in `scan_forward`."""
    conv = _Conv(inputs)
    y = _like(conv.x)
    assert y is not None
    final_state = inputs.initial_state if inplace else empty(conv.state_shape, conv.dtype)
    assert final_state is not None
    conv.library.causal_conv1d_forward(ctypes.byref(conv.arguments(y, final_state)))
    return y.to(inputs.x.dtype), final_state


def conv_backward(inputs: ConvInputs, grad_y: Tensor, grad_state: Tensor | None) -> list[Tensor]:
    """Return the gradients of the four tensors of `inputs`; an empty tensor for one that is None."""
    conv = _Conv(inputs)
    dy, incoming = _rows_tensor(grad_y, conv.dtype), dense(grad_state, conv.dtype)
    dx, dweight, dbias, dstate = (_like(x) for x in (conv.x, *conv.parameters))
    pointers = [_pointer(p) for p in (incoming, dweight, dbias, dstate)]
    gradients = _ConvGradients(_rows(dy), _rows(dx), *pointers)
    conv.library.causal_conv1d_backward(ctypes.byref(conv.arguments(None, None)), ctypes.byref(gradients))
    return gradients_like(inputs, (dx, dweight, dbias, dstate))


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
    rows = [_rows_tensor(t.unsqueeze(1), dtype) for t in (x, controls)]
    state, rates = state.contiguous(), rates.to(dtype).contiguous()
    y, next_state = _like(rows[0]), empty(state.shape, dtype)
    assert y is not None
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
