"""The `triton` backend: launches the GPU kernels. Called by `operators.py` alone."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor

from selective_scan.contract import ConvInputs, ScanInputs, dense, gradients_like, last_axis_contiguous
from selective_scan.discretization import get_discretization
from selective_scan.state import state_dtype, state_shape
from selective_scan.triton_kernels import conv, scan

# Channels per program and warps per program: two channels per thread keep N = 16 states of each in registers.
FORWARD_BLOCK, FORWARD_WARPS = 64, 1
# The backward also sums over channels, which one warp does without a barrier; one channel per thread fits.
BACKWARD_BLOCK, BACKWARD_WARPS = 32, 1
# Programs of the backward per channel block: enough to fill any GPU, few enough that their states stay in its cache.
BACKWARD_PROGRAMS = 1024


def _block(channels: int, most: int) -> int:
    return min(most, triton.next_power_of_2(channels))


def _device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _rows_tensor(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x [T, L, *] with the last axis contiguous, and in float64 where the arithmetic is."""
    return last_axis_contiguous(x.to(dtype) if dtype == torch.float64 else x)


def _previous_weights(B: Tensor, initial_state: Tensor | None) -> Tensor:
    """Return the B of the step before each step, [T, L, N]: at the first step the state's, without a state 0."""
    first = torch.zeros_like(B[:, :1]) if initial_state is None else initial_state[:, -1:, :-1]
    return first if B.shape[1] == 1 else torch.cat([first, B[:, :-1]], 1)


class _Scan:
    """Arguments of one call as the kernels take them."""

    def __init__(self, inputs: ScanInputs) -> None:
        u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, discretization = inputs
        self.dtype = dtype = state_dtype(u.dtype)
        self.u, self.delta, self.B, self.C = (_rows_tensor(x, dtype) for x in (u, delta, B, C))
        self.z = None if z is None else _rows_tensor(z, dtype)
        self.A = A.to(dtype).contiguous()
        self.D, self.bias, self.h0 = (dense(x, dtype) for x in (D, delta_bias, initial_state))
        self.shape = (*u.shape, A.shape[1])
        self.state_shape = state_shape(u.shape[0], u.shape[2], A.shape[1], discretization)
        method = get_discretization(discretization)
        self.B_old = _previous_weights(self.B, self.h0) if method.taps == 2 else None
        self.options = {
            "METHOD": method.index,
            "TWO_TAPS": method.taps == 2,
            "N": A.shape[1],
            "SOFTPLUS": delta_softplus,
            "HAS_D": D is not None,
            "HAS_Z": z is not None,
            "HAS_BIAS": delta_bias is not None,
            "HAS_H0": initial_state is not None,
        }

    def inputs(self) -> tuple[Tensor | None, ...]:
        parameters = (self.D, self.z, self.bias, self.h0, self.B_old)
        return self.u, self.delta, self.A, self.B, self.C, *parameters

    def strides(self) -> list[int]:
        z = self.u if self.z is None else self.z
        B_old = self.B if self.B_old is None else self.B_old
        return [s for x in (self.u, self.delta, z, self.B, self.C, B_old) for s in x.stride()[:2]]


def scan_forward(inputs: ScanInputs, with_summary: bool = False, inplace: bool = False) -> tuple[Tensor, ...]:
    """Run the scan; arguments and results as `cpp_backend.scan_forward`."""
    s = _Scan(inputs)
    batch, length, channels, states = s.shape
    y = torch.empty(s.u.shape, dtype=s.u.dtype, device=s.u.device)
    final_state = s.h0 if inplace else torch.empty(s.state_shape, dtype=s.dtype, device=s.u.device)
    assert final_state is not None
    block = _block(channels, FORWARD_BLOCK)
    blocks = triton.cdiv(channels, block)
    partial = final_state.new_empty((blocks, batch, length, states) if with_summary else (0,))
    if batch:
        with _device(s.u):
            scan.scan_forward[(batch, blocks)](
                *s.inputs(),
                y,
                final_state,
                partial,
                batch,
                length,
                channels,
                *s.strides(),
                **s.options,
                BLOCK=block,
                SUMMARY=with_summary,
                num_warps=FORWARD_WARPS,
            )
        if s.options["TWO_TAPS"]:
            final_state[:, -1, :-1] = s.B[:, -1]
            final_state[:, -1, -1] = 0
    return y, final_state, partial.sum(0) / channels if with_summary else partial


def scan_backward(
    inputs: ScanInputs, grad_y: Tensor, grad_state: Tensor | None, grad_summary: Tensor | None
) -> list[Tensor]:
    """Return gradients; arguments and results as `cpp_backend.scan_backward`."""
    s = _Scan(inputs)
    batch, length, channels, states = s.shape
    two_taps = bool(s.options["TWO_TAPS"])
    block = _block(channels, BACKWARD_BLOCK)
    blocks, programs = triton.cdiv(channels, block), max(1, min(batch, BACKWARD_PROGRAMS))
    dy = _rows_tensor(grad_y, s.dtype)
    dhT = dense(grad_state, s.dtype)
    dsummary = dense(None if grad_summary is None else grad_summary / channels, s.dtype)

    def empty(*shape: int, dtype: torch.dtype = s.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=s.u.device)

    full = (batch, length, channels)
    du, ddelta = empty(*full, dtype=s.u.dtype), empty(*full, dtype=s.delta.dtype)
    dz = None if s.z is None else empty(*full, dtype=s.z.dtype)
    dh0 = None if s.h0 is None else empty(*s.state_shape)
    dweights = empty(blocks, batch, length, 2 + two_taps, states)
    dA = empty(programs, channels, states)
    dD, dbias = (empty(programs, channels) for _ in range(2))
    history = empty(programs, blocks, length + 1, states, block)
    with _device(s.u):
        scan.scan_backward[(programs, blocks)](
            *s.inputs(),
            dy,
            dhT,
            dsummary,
            *(du, ddelta, dz, dh0, dweights, dA, dD, dbias, history),
            batch,
            length,
            channels,
            programs,
            *s.strides(),
            *dy.stride()[:2],
            **s.options,
            BLOCK=block,
            HAS_DHT=dhT is not None,
            HAS_DSUMMARY=dsummary is not None,
            num_warps=BACKWARD_WARPS,
        )
    dB, dC, *before = dweights.sum(0).unbind(2)
    if two_taps:  # row l of `before` belongs to step l − 1, row 0 to the B that the state carries
        dB[:, :-1] += before[0][:, 1:]
        if dhT is not None:
            dB[:, -1] += dhT[:, -1, :-1]
        if dh0 is not None:
            dh0[:, -1, :-1] = before[0][:, 0]
            dh0[:, -1, -1] = 0
    gradients = (du, ddelta, dA.sum(0), dB, dC, dD.sum(0), dz, dbias.sum(0), dh0)
    return gradients_like(inputs, gradients)


def _conv_arguments(inputs: ConvInputs) -> tuple[list[Tensor | None], dict[str, Any]]:
    x, weight, bias, initial_state, silu = inputs
    dtype = state_dtype(x.dtype)
    tensors = [_rows_tensor(x, dtype), *(dense(p, dtype) for p in (weight, bias, initial_state))]
    options = {
        "K": weight.shape[1],
        "SILU": silu,
        "HAS_BIAS": bias is not None,
        "HAS_STATE": initial_state is not None,
        "BLOCK": _block(x.shape[2], FORWARD_BLOCK),
        "num_warps": FORWARD_WARPS,
    }
    return tensors, options


def conv_forward(inputs: ConvInputs, inplace: bool = False) -> tuple[Tensor, Tensor]:
    """Run the convolution; arguments and results as `cpp_backend.conv_forward`."""
    x, weight = inputs.x, inputs.weight
    batch, length, channels = x.shape
    tensors, options = _conv_arguments(inputs)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    shape = (batch, channels, weight.shape[1])
    final_state = tensors[-1] if inplace else torch.empty(shape, dtype=state_dtype(x.dtype), device=x.device)
    x_rows = tensors[0]
    assert x_rows is not None
    assert final_state is not None
    if batch:
        with _device(x):
            conv.conv_forward[(batch, triton.cdiv(channels, options["BLOCK"]))](
                *tensors, y, final_state, length, channels, *x_rows.stride()[:2], **options
            )
    return y, final_state


def conv_backward(inputs: ConvInputs, grad_y: Tensor, grad_state: Tensor | None) -> list[Tensor]:
    """Return gradients; arguments and results as `cpp_backend.conv_backward`."""
    x, weight, bias, initial_state, _ = inputs
    batch, length, channels = x.shape
    width, dtype = weight.shape[1], state_dtype(x.dtype)
    tensors, options = _conv_arguments(inputs)
    dy, programs = _rows_tensor(grad_y, dtype), max(1, min(batch, BACKWARD_PROGRAMS))
    dhistory = torch.empty((batch, width + length, channels), dtype=dtype, device=x.device)
    dweight = dhistory.new_empty(programs, channels, width)
    dbias = dhistory.new_empty(programs, channels)
    x_rows = tensors[0]
    assert x_rows is not None
    with _device(x):
        conv.conv_backward[(programs, triton.cdiv(channels, options["BLOCK"]))](
            *(*tensors, dy, dhistory, dweight, dbias),
            *(batch, length, channels),
            *x_rows.stride()[:2],
            *dy.stride()[:2],
            **options,
        )
    if grad_state is not None:  # the final state is the last K inputs
        dhistory[:, length:] += grad_state.transpose(1, 2)
    dstate = None if initial_state is None else dhistory[:, :width].transpose(1, 2)
    dbias_total = None if bias is None else dbias.sum(0)
    return gradients_like(inputs, (dhistory[:, width:], dweight.sum(0), dbias_total, dstate))
