"""The public functions: checks, choice of backend, dispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from selective_scan import mamba_ssm_backend, operators, reference
from selective_scan.backends import resolve_backend
from selective_scan.checks import check_conv, check_scan
from selective_scan.state import state_dtype


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    initial_state: Tensor | None = None,
    discretization: str = "zoh",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan T sequences of L steps: h_t = a h_{t−1} + c0 B_t u_t + c1 B_{t−1} u_{t−1}, y_t = (C_t·h_t + D u_t)
    silu(z_t).

    a, c0 and c1 come from Δ_t = softplus(delta_t + delta_bias), A and `discretization` (see
    `DISCRETIZATIONS`). Splitting a sequence and handing the final state of one part to the next gives the
    same y, state and gradients.

    Args:
        u: [T, L, D] input, T ≥ 0 sequences of L ≥ 1 steps of D channels; any strides, last one fastest is
            best.
        delta: [T, L, D] step size Δ before bias and softplus (Δ itself, > 0, with delta_softplus=False).
        A: [D, N] diagonal state matrix, < 0.
        B: [T, L, N] input weights.
        C: [T, L, N] output weights.
        D: [D] skip weight; None: no skip.
        z: [T, L, D] gate; None: no gate.
        delta_bias: [D] added to delta; None: 0.
        delta_softplus: take softplus of delta + delta_bias.
        initial_state: shape `state_shape(T, D, N, discretization)`; None: zeros, the start of a sequence.
            Unchanged.
        discretization: a name in `DISCRETIZATIONS`.
        backend: "reference", "cpp", "triton" or "mamba_ssm"; None: see `resolve_backend`.

    Returns:
        y [T, L, D] in u's dtype and the final state, always a fresh tensor, float64 for float64 u and float32
        for any other (arithmetic is in the state's dtype too, also under autocast). Gradients flow through
        both.

    Raises:
        ValueError, TypeError: a shape, dtype, device or name breaks the contract.

    Source: Gu & Dao, "Mamba", algorithm 2; carried states, layouts and the table of discretizations are ours.
    """
    y, final_state, _ = _scan(
        u,
        delta,
        A,
        B,
        C,
        D,
        z,
        delta_bias,
        delta_softplus,
        initial_state,
        discretization,
        backend,
        with_summary=False,
    )
    return y, final_state


def selective_scan_with_summary(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    initial_state: Tensor | None = None,
    discretization: str = "zoh",
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `selective_scan` does and also return summary [T, L, N], the mean over channels of every h_t.

    The summary is in the state's dtype and differentiable; a loss on it shapes the state without ever holding
    [T, L, D, N]. Source: ours.
    """
    return _scan(
        u,
        delta,
        A,
        B,
        C,
        D,
        z,
        delta_bias,
        delta_softplus,
        initial_state,
        discretization,
        backend,
        with_summary=True,
    )


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    discretization: str,
    backend: str | None,
    *,
    with_summary: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Check, choose a backend and run it; the summary is empty unless asked for."""
    check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, discretization)
    chosen = resolve_backend(backend, u.device.type, discretization, u.dtype == torch.float64)
    if chosen == "reference":
        return reference.selective_scan_with_summary_ref(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, discretization
        )
    if chosen == "mamba_ssm":
        if with_summary:
            raise ValueError("backend 'mamba_ssm' gives no summary; use backend='triton'")
        y, final_state = mamba_ssm_backend.selective_scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, discretization
        )
        return y, final_state, final_state.new_empty(0)
    run = operators.operator(chosen, "scan")
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    y, final_state, summary = run(*tensors, delta_softplus, discretization, with_summary)
    return y, final_state, summary


def selective_scan_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    discretization: str = "zoh",
    backend: str | None = None,
    *,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Advance T sequences by one step: `selective_scan` with L = 1 and no time axis, for streaming.

    Args:
        state: as `initial_state` of `selective_scan`; start a sequence with zeros of `state_shape(...)`.
        u, delta, z: [T, D]. B, C: [T, N]. The rest as in `selective_scan`.
        inplace: overwrite `state` instead of allocating; inference only.

    Returns:
        y [T, D] in u's dtype and the next state (`state` itself when inplace).

    Raises:
        ValueError, TypeError: as `selective_scan`. RuntimeError: inplace while gradients are being recorded.

    Source: ours; `selective_state_update` of mamba-ssm is the model.
    """
    args = (u.unsqueeze(1), delta.unsqueeze(1), A, B.unsqueeze(1), C.unsqueeze(1), D)
    gate = None if z is None else z.unsqueeze(1)
    if inplace:
        check_scan(*args, gate, delta_bias, state, discretization)
        _check_inplace("state", state, u, (state, u, delta, A, B, C))
        chosen = resolve_backend(backend, u.device.type, discretization, u.dtype == torch.float64)
        if chosen in operators.DEVICES:
            run = operators.operator(chosen, "scan_step_")
            options = (delta_softplus, discretization)
            return run(*args, gate, delta_bias, state, *options).squeeze(1), state
    y, next_state = selective_scan(
        *args,
        gate,
        delta_bias,
        delta_softplus,
        state,
        discretization,
        backend,
    )
    return y.squeeze(1), state.copy_(next_state) if inplace else next_state


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    activation: str | None = "silu",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own causal filter: y_t = silu(bias + Σ_k weight[:, k] x_{t−K+1+k}).

    Args:
        x: [T, L, D] input, L ≥ 1, any strides.
        weight: [D, K] filter, newest input last; K ≥ 1 (2 to 4 are the fast ones).
        bias: [D]; None: 0.
        initial_state: [T, D, K] the last K inputs before x, oldest first; None: zeros. Unchanged.
        activation: "silu" or None.
        backend: as in `selective_scan`; None: the causal-conv1d package first, where it is installed and knows the
            call (`mamba_ssm_backend.conv_is_supported`).

    Returns:
        y [T, L, D] in x's dtype, and the final state [T, D, K], a fresh tensor, float64 for float64 x and
        float32 for any other. Gradients flow through both.

    Raises:
        ValueError, TypeError: a shape, dtype, device or name breaks the contract.

    Source: Gu & Dao, "Mamba", section 3.4; K columns of state, not K − 1, as mamba-ssm's `step` publishes it.
    """
    check_conv(x, weight, bias, initial_state, activation)
    preferred = "mamba_ssm" if mamba_ssm_backend.conv_is_supported(x, weight.shape[1]) else None
    chosen = resolve_backend(backend, x.device.type, "conv", x.dtype == torch.float64, preferred)
    if chosen == "reference":
        return reference.causal_conv1d_ref(x, weight, bias, initial_state, activation)
    if chosen == "mamba_ssm":
        return mamba_ssm_backend.causal_conv1d(x, weight, bias, initial_state, activation)
    y, final_state = operators.operator(chosen, "conv")(x, weight, bias, initial_state, activation == "silu")
    return y, final_state


def causal_conv1d_step(
    state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = "silu",
    backend: str | None = None,
    *,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Advance `causal_conv1d` by one step: x [T, D], state [T, D, K] → (y [T, D], next state).

    `inplace` overwrites `state` instead of allocating; inference only (RuntimeError while gradients are
    recorded).
    """
    if inplace:
        check_conv(x.unsqueeze(1), weight, bias, state, activation)
        _check_inplace("state", state, x, (state, x, weight))
        chosen = resolve_backend(backend, x.device.type, "conv", x.dtype == torch.float64)
        if chosen in operators.DEVICES:
            run = operators.operator(chosen, "conv_step_")
            return run(x.unsqueeze(1), weight, bias, state, activation == "silu").squeeze(1), state
    y, next_state = causal_conv1d(x.unsqueeze(1), weight, bias, state, activation, backend)
    return y.squeeze(1), state.copy_(next_state) if inplace else next_state


def _check_inplace(name: str, state: Tensor, x: Tensor, tensors: tuple[Tensor, ...]) -> None:
    """Refuse an in-place update that autograd would have to see, or that would have to change the state's
    dtype."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise RuntimeError(f"{name} cannot be updated in place while gradients are recorded; pass inplace=False")
    if state.dtype != state_dtype(x.dtype):
        raise TypeError(f"{name} must be {state_dtype(x.dtype)} to be updated in place; got {state.dtype}")
    if not state.is_contiguous():
        raise ValueError(f"{name} must be contiguous to be updated in place; got strides {state.stride()}")
