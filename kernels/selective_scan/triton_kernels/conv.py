"""Causal depthwise convolution with silu and carried state: the window is a tuple of K vectors of BLOCK channels."""

# mypy: ignore-errors
# (The arguments of Triton kernels have no Python types.)

from __future__ import annotations

import triton
import triton.language as tl

from selective_scan.triton_kernels.discretizations import sigmoid
from selective_scan.triton_kernels.scan import load_columns, load_or


@triton.jit
def filtered(window, weight, bias, K: tl.constexpr):
    """bias + Σ_k weight_k window_k"""
    y = bias
    for k in tl.static_range(K):
        y += weight[k] * window[k]
    return y


@triton.jit
def shifted(window, newest, K: tl.constexpr):
    """Drop the oldest of K vectors and append one."""
    result = ()
    for k in tl.static_range(1, K):
        result = result + (window[k],)  # noqa: RUF005
    return result + (newest,)  # noqa: RUF005


@triton.jit
def conv_forward(
    x_ptr, weight_ptr, bias_ptr, state_ptr, y_ptr, final_ptr,
    L, D, x_t, x_l,
    K: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """Grid [T, D / BLOCK]. final may be state itself."""
    dtype = final_ptr.dtype.element_ty
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = d < D
    weight = load_columns(weight_ptr, d * K, mask, dtype, K, True)
    bias = load_or(bias_ptr, d, mask, 0.0, dtype, HAS_BIAS)
    window = load_columns(state_ptr, (t * D + d) * K, mask, dtype, K, HAS_STATE)
    for step in range(L):
        l = t * 0 + step  # noqa: E741
        window = shifted(window, tl.load(x_ptr + t * x_t + l * x_l + d, mask=mask, other=0.0).to(dtype), K)
        y = filtered(window, weight, bias, K)
        if SILU:
            y *= sigmoid(y)
        tl.store(y_ptr + (t * L + l) * D + d, y.to(y_ptr.dtype.element_ty), mask=mask)
    for k in tl.static_range(K):
        tl.store(final_ptr + (t * D + d) * K + k, window[k], mask=mask)


@triton.jit
def conv_backward(
    x_ptr, weight_ptr, bias_ptr, state_ptr, dy_ptr, dhistory_ptr, dweight_ptr, dbias_ptr,
    T, L, D, x_t, x_l, dy_t, dy_l,
    K: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """Grid [P, D / BLOCK], programs as in `scan_backward`.

    dhistory [T, K + L, D] receives the gradient of the K inputs of the state and the L new ones; row 0 lies outside
    every window and stays 0.
    """
    dtype = dhistory_ptr.dtype.element_ty
    first, programs = tl.program_id(0), tl.num_programs(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = d < D
    weight = load_columns(weight_ptr, d * K, mask, dtype, K, True)
    bias = load_or(bias_ptr, d, mask, 0.0, dtype, HAS_BIAS)
    dweight = load_columns(weight_ptr, d * K, mask, dtype, K, False)
    zero = tl.zeros_like(bias)
    dbias = zero
    zero64 = first.to(tl.int64) * 0
    for token in range(first, T, programs):
        t = zero64 + token
        window = load_columns(state_ptr, (t * D + d) * K, mask, dtype, K, HAS_STATE)
        grads = load_columns(weight_ptr, d * K, mask, dtype, K, False)
        dhistory = dhistory_ptr + t * (K + L) * D + d
        tl.store(dhistory, zero, mask=mask)
        for step in range(L):
            l = t * 0 + step  # noqa: E741
            window = shifted(window, tl.load(x_ptr + t * x_t + l * x_l + d, mask=mask, other=0.0).to(dtype), K)
            g = tl.load(dy_ptr + t * dy_t + l * dy_l + d, mask=mask, other=0.0).to(dtype)
            if SILU:
                y = filtered(window, weight, bias, K)
                gate = sigmoid(y)
                g *= gate * (1.0 + y * (1.0 - gate))
            dbias += g
            grads = shifted(grads, zero, K)
            new_grads = ()
            new_dweight = ()
            for k in tl.static_range(K):
                new_grads = new_grads + (grads[k] + g * weight[k],)  # noqa: RUF005
                new_dweight = new_dweight + (dweight[k] + g * window[k],)  # noqa: RUF005
            grads = new_grads
            dweight = new_dweight
            tl.store(dhistory + (l + 1) * D, grads[0], mask=mask)
        for k in tl.static_range(1, K):
            tl.store(dhistory + (L + k) * D, grads[k], mask=mask)
    own = first.to(tl.int64) * D + d
    for k in tl.static_range(K):
        tl.store(dweight_ptr + own * K + k, dweight[k], mask=mask)
    tl.store(dbias_ptr + own, dbias, mask=mask)
