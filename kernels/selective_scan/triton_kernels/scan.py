"""Forward and backward scan. One program walks through time with the state in registers.

The state is a tuple of N vectors of BLOCK channels, never a [BLOCK, N] tile: no layout is converted, and the forward
loop holds neither shuffles nor barriers (but for the optional summary, which sums over channels).
"""

# mypy: ignore-errors
# (The arguments of Triton kernels have no Python types.)

from __future__ import annotations

import triton
import triton.language as tl

from selective_scan.triton_kernels.discretizations import (
    coefficient_gradients,
    coefficients,
    core,
    sigmoid,
    softplus,
)


@triton.jit
def load_or(pointer, offsets, mask, otherwise, dtype, GIVEN: tl.constexpr):
    """Load what was given, or a constant."""
    if GIVEN:
        result = tl.load(pointer + offsets, mask=mask, other=0.0).to(dtype)
    else:
        result = tl.zeros_like(offsets).to(dtype) + otherwise
    return result


@triton.jit
def load_columns(pointer, offsets, mask, dtype, N: tl.constexpr, GIVEN: tl.constexpr):
    """Return the N columns of rows that start at `offsets`, as a tuple."""
    columns = ()
    for n in tl.static_range(N):
        columns = columns + (load_or(pointer, offsets + n, mask, 0.0, dtype, GIVEN),)  # noqa: RUF005
    return columns


@triton.jit
def read_delta(pointer, offsets, mask, bias, dtype, SOFTPLUS: tl.constexpr):
    """Return (Δ, dΔ/draw)."""
    raw = tl.load(pointer + offsets, mask=mask, other=0.0).to(dtype) + bias
    if SOFTPLUS:
        delta = softplus(raw)
        slope = sigmoid(raw)
    else:
        delta = raw
        slope = tl.zeros_like(raw) + 1.0
    return delta, slope


@triton.jit
def scan_forward(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, h0_ptr, B_old_ptr,
    y_ptr, hT_ptr, summary_ptr,
    T, L, D,
    u_t, u_l, delta_t, delta_l, z_t, z_l, B_t, B_l, C_t, C_l, B_old_t, B_old_l,
    METHOD: tl.constexpr, TWO_TAPS: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_H0: tl.constexpr,
    SUMMARY: tl.constexpr,
):  # fmt: skip
    """Grid [T, D / BLOCK]. hT may be h0 itself. summary is [D / BLOCK, T, L, N], sums over the block.

    B_old [T, L, N], for two taps: the B of the step before each step.
    """
    dtype = hT_ptr.dtype.element_ty
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = d < D
    row: tl.constexpr = N + 1 if TWO_TAPS else N
    rows = D + 1 if TWO_TAPS else D
    state = t * rows * row + d * row

    A = load_columns(A_ptr, d * N, mask, dtype, N, True)
    h = load_columns(h0_ptr, state, mask, dtype, N, HAS_H0)
    bias = load_or(bias_ptr, d, mask, 0.0, dtype, HAS_BIAS)
    skip = load_or(D_ptr, d, mask, 0.0, dtype, HAS_D)
    u_old = tl.zeros_like(bias)
    if TWO_TAPS:
        u_old = load_or(h0_ptr, state + N, mask, 0.0, dtype, HAS_H0)

    for step in range(L):
        l = t * 0 + step  # noqa: E741 (int64; the letter of the formulas)
        delta, _ = read_delta(delta_ptr, t * delta_t + l * delta_l + d, mask, bias, dtype, SOFTPLUS)
        u = tl.load(u_ptr + t * u_t + l * u_l + d, mask=mask, other=0.0).to(dtype)
        y = skip * u
        new = ()
        for n in tl.static_range(N):
            e = core(delta, A[n], METHOD)
            a, c0, c1 = coefficients(delta, A[n], e, METHOD, False)
            h_n = a * h[n] + (c0 * u) * tl.load(B_ptr + t * B_t + l * B_l + n).to(dtype)
            if TWO_TAPS:
                B_old = tl.load(B_old_ptr + t * B_old_t + l * B_old_l + n).to(dtype)
                h_n += (c1 * u_old) * B_old
            y += h_n * tl.load(C_ptr + t * C_t + l * C_l + n).to(dtype)
            new = new + (h_n,)  # noqa: RUF005
            if SUMMARY:
                total = tl.sum(tl.where(mask, h_n, 0.0), 0)
                tl.store(summary_ptr + ((tl.program_id(1) * T + t) * L + l) * N + n, total)
        h = new
        if HAS_Z:
            z = tl.load(z_ptr + t * z_t + l * z_l + d, mask=mask, other=0.0).to(dtype)
            y *= z * sigmoid(z)
        tl.store(y_ptr + (t * L + l) * D + d, y.to(y_ptr.dtype.element_ty), mask=mask)
        u_old = u

    for n in tl.static_range(N):
        tl.store(hT_ptr + state + n, h[n], mask=mask)
    if TWO_TAPS:
        tl.store(hT_ptr + state + N, u_old, mask=mask)


@triton.jit
def scan_backward(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, h0_ptr, B_old_ptr,
    dy_ptr, dhT_ptr, dsummary_ptr,
    du_ptr, ddelta_ptr, dz_ptr, dh0_ptr, dweights_ptr, dA_ptr, dD_ptr, dbias_ptr, history_ptr,
    T, L, D, programs,
    u_t, u_l, delta_t, delta_l, z_t, z_l, B_t, B_l, C_t, C_l, B_old_t, B_old_l, dy_t, dy_l,
    METHOD: tl.constexpr, TWO_TAPS: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_H0: tl.constexpr,
    HAS_DHT: tl.constexpr, HAS_DSUMMARY: tl.constexpr,
):  # fmt: skip
    """Grid [P, D / BLOCK], P = programs: a program owns a block of channels and every P-th sequence.

    Gradients of parameters stay in registers over its sequences and are written once per program ([P, D, N] and
    [P, D]); those of the weights are written per block, `dweights` [D / BLOCK, T, L, 2 or 3, N]: dB, dC and, with two
    taps, the gradients of the B of the step before. No atomics, so the bits do not depend on scheduling.
    `history` [P, D / BLOCK, L + 1, N, BLOCK] holds the states of the sequence at hand; each thread reads only what it
    wrote itself.

    Registers are scarce, and what is needed once per sequence would be kept in them from before the first one, or be
    spilled. So one pointer serves all weights, P is an argument, and `nothing` makes addresses depend on the sequence.
    """
    dtype = history_ptr.dtype.element_ty
    first, block = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    own_d = block * BLOCK + lane
    d = own_d
    mask = d < D
    row: tl.constexpr = N + 1 if TWO_TAPS else N
    rows = D + 1 if TWO_TAPS else D
    kinds: tl.constexpr = 3 if TWO_TAPS else 2
    history = history_ptr + (first.to(tl.int64) * tl.num_programs(1) + block) * (L + 1) * N * BLOCK + lane

    A = load_columns(A_ptr, d * N, mask, dtype, N, True)
    bias = load_or(bias_ptr, d, mask, 0.0, dtype, HAS_BIAS)
    skip = load_or(D_ptr, d, mask, 0.0, dtype, HAS_D)
    dA = load_columns(A_ptr, d * N, mask, dtype, N, False)
    dD = tl.zeros_like(bias)
    dbias = tl.zeros_like(bias)

    zero64 = first.to(tl.int64) * 0
    newest = first
    for token in range(first, T, programs):
        newest = token
        t = zero64 + token
        nothing = tl.minimum(token, 0)  # 0, but the compiler does not know it
        d = own_d + nothing
        last = L - 1 + nothing
        state = t * rows * row + d * row
        h = load_columns(h0_ptr, state, mask, dtype, N, HAS_H0)
        u_first = tl.zeros_like(bias)
        if TWO_TAPS:
            u_first = load_or(h0_ptr, state + N, mask, 0.0, dtype, HAS_H0)
        u_old = u_first
        for n in tl.static_range(N):
            tl.store(history + n * BLOCK, h[n])

        for step in range(L):
            l = t * 0 + step  # noqa: E741
            delta, _ = read_delta(delta_ptr, t * delta_t + l * delta_l + d, mask, bias, dtype, SOFTPLUS)
            u = tl.load(u_ptr + t * u_t + l * u_l + d, mask=mask, other=0.0).to(dtype)
            new = ()
            for n in tl.static_range(N):
                e = core(delta, A[n], METHOD)
                a, c0, c1 = coefficients(delta, A[n], e, METHOD, False)
                h_n = a * h[n] + (c0 * u) * tl.load(B_ptr + t * B_t + l * B_l + n).to(dtype)
                if TWO_TAPS:
                    B_old = tl.load(B_old_ptr + t * B_old_t + l * B_old_l + n).to(dtype)
                    h_n += (c1 * u_old) * B_old
                tl.store(history + ((l + 1) * N + n) * BLOCK, h_n)
                new = new + (h_n,)  # noqa: RUF005
            h = new
            u_old = u

        # From here on u_old is the input of the step at hand: what the step after it called the old one.
        g = load_columns(dhT_ptr, state, mask, dtype, N, HAS_DHT)
        du_next = tl.zeros_like(bias)  # what the step after this one owes to this step's input
        if TWO_TAPS:
            du_next = load_or(dhT_ptr, state + N, mask, 0.0, dtype, HAS_DHT)

        for back in range(L):
            l = t * 0 + (last - back)  # noqa: E741
            at = t * L + l
            dweights = dweights_ptr + ((block.to(tl.int64) * T + t) * L + l) * kinds * N
            delta, slope = read_delta(delta_ptr, t * delta_t + l * delta_l + d, mask, bias, dtype, SOFTPLUS)
            u = u_old
            u_old = tl.load(u_ptr + t * u_t + (l - 1) * u_l + d, mask=d < tl.where(l > 0, D, 0), other=0.0).to(dtype)
            if TWO_TAPS:
                u_old = tl.where(l > 0, u_old, u_first)
            dy_out = tl.load(dy_ptr + t * dy_t + l * dy_l + d, mask=mask, other=0.0).to(dtype)
            dy = dy_out
            if HAS_Z:
                z = tl.load(z_ptr + t * z_t + l * z_l + d, mask=mask, other=0.0).to(dtype)
                gate = sigmoid(z)
                dy = dy_out * z * gate
            y = skip * u
            du = du_next + skip * dy
            du_old = tl.zeros_like(bias)
            ddelta = tl.zeros_like(bias)
            new_g = ()
            new_dA = ()
            for n in tl.static_range(N):
                e = core(delta, A[n], METHOD)
                a, c0, c1 = coefficients(delta, A[n], e, METHOD, True)
                by = coefficient_gradients(delta, A[n], e, METHOD)
                B = tl.load(B_ptr + t * B_t + l * B_l + n).to(dtype)
                C = tl.load(C_ptr + t * C_t + l * C_l + n).to(dtype)
                h_n = tl.load(history + ((l + 1) * N + n) * BLOCK)
                h_old = tl.load(history + (l * N + n) * BLOCK)
                grad = g[n] + dy * C
                if HAS_DSUMMARY:
                    grad += tl.load(dsummary_ptr + at * N + n).to(dtype)
                y += h_n * C
                grad_a = grad * h_old
                grad_c0 = grad * B * u
                ddelta += grad_a * by[0] + grad_c0 * by[2]
                dA_n = dA[n] + grad_a * by[1] + grad_c0 * by[3]
                du += grad * B * c0
                dB = tl.sum(tl.where(mask, grad * c0 * u, 0.0), 0)
                dC = tl.sum(tl.where(mask, dy * h_n, 0.0), 0)
                if TWO_TAPS:
                    B_old = tl.load(B_old_ptr + t * B_old_t + l * B_old_l + n).to(dtype)
                    grad_c1 = grad * B_old * u_old
                    ddelta += grad_c1 * by[4]
                    dA_n += grad_c1 * by[5]
                    du_old += grad * B_old * c1
                    tl.store(dweights + 2 * N + n, tl.sum(tl.where(mask, grad * c1 * u_old, 0.0), 0))
                tl.store(dweights + n, dB)
                tl.store(dweights + N + n, dC)
                new_g = new_g + (grad * a,)  # noqa: RUF005
                new_dA = new_dA + (dA_n,)  # noqa: RUF005
            g = new_g
            dA = new_dA
            du_next = du_old
            ddelta *= slope
            dbias += ddelta
            dD += dy * u
            tl.store(du_ptr + at * D + d, du.to(du_ptr.dtype.element_ty), mask=mask)
            tl.store(ddelta_ptr + at * D + d, ddelta.to(ddelta_ptr.dtype.element_ty), mask=mask)
            if HAS_Z:
                dz = dy_out * y * gate * (1.0 + z * (1.0 - gate))
                tl.store(dz_ptr + at * D + d, dz.to(dz_ptr.dtype.element_ty), mask=mask)

        if HAS_H0:
            for n in tl.static_range(N):
                tl.store(dh0_ptr + state + n, g[n], mask=mask)
            if TWO_TAPS:
                tl.store(dh0_ptr + state + N, du_next, mask=mask)

    own = (newest % programs).to(tl.int64) * D + own_d  # the remainder is `first`, kept no longer than needed
    for n in tl.static_range(N):
        tl.store(dA_ptr + own * N + n, dA[n], mask=mask)
    tl.store(dD_ptr + own, dD, mask=mask)
    tl.store(dbias_ptr + own, dbias, mask=mask)
