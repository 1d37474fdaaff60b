"""The public functions: checks, choice of backend, dispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from selective_scan import mamba_ssm_backend, operators, reference
from selective_scan.backends import resolve_backend
from selective_scan.contract import ConvInputs, ScanInputs, ScanOutput, check_conv, check_scan
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
    with_summary: bool = False,
) -> ScanOutput:
    """Scan T sequences of L steps.

    h_t = a h_{t−1} + c0 B_t u_t + c1 B_{t−1} u_{t−1} and y_t = (C_t·h_t + D u_t) silu(z_t); a, c0 and c1 follow from
    Δ_t = softplus(delta_t + delta_bias), A and `discretization` (see `DISCRETIZATIONS`). Splitting a sequence and
    handing the final state of one part to the next gives the same y, state and gradients.

    Args:
        u: [T, L, D] input, T ≥ 0 sequences of L ≥ 1 steps of D channels; any strides, last one fastest is best.
        delta: [T, L, D] step size Δ before bias and softplus (Δ itself, > 0, with delta_softplus=False).
        A: [D, N] diagonal state matrix, < 0.
        B: [T, L, N] input weights.
        C: [T, L, N] output weights.
        D: [D] skip weight; None: no skip.
        z: [T, L, D] gate; None: no gate.
        delta_bias: [D] added to delta; None: 0.
        delta_softplus: take softplus of delta + delta_bias.
        initial_state: shape `state_shape(T, D, N, discretization)`; None: zeros, the start of a sequence. Unchanged.
        discretization: a name in `DISCRETIZATIONS`.
        backend: "reference", "cpp", "triton" or "mamba_ssm"; None: see `resolve_backend`.
        with_summary: also compute the summary, which costs the CPU scan a sixth to two thirds more time.

    Returns:
        `(y, state, summary)`, see `ScanOutput`. The state is always a new tensor; arithmetic is in its dtype, under
        autocast too. Gradients flow through all three: a loss on the summary shapes the state without ever holding
        [T, L, D, N].

    Raises:
        ValueError, TypeError: a shape, dtype, device or name breaks the contract.

    Source: Gu & Dao, "Mamba", algorithm 2; carried states, layouts, summary and table of discretizations are additions.
    """
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, discretization)
    check_scan(inputs)
    chosen = resolve_backend(backend, u.device.type, discretization, u.dtype == torch.float64)
    if chosen == "reference":
        return reference.scan(inputs, with_summary)
    if chosen == "mamba_ssm":
        if with_summary:
            raise ValueError("backend 'mamba_ssm' gives no summary; use backend='triton'")
        return mamba_ssm_backend.selective_scan(inputs)
    return ScanOutput(*operators.operator(chosen, "scan")(*inputs, with_summary))


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

    Source: modeled on `selective_state_update` of mamba-ssm.
    """
    u, delta, B, C = (x.unsqueeze(1) for x in (u, delta, B, C))
    z = None if z is None else z.unsqueeze(1)
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, state, delta_softplus, discretization)
    if inplace:
        check_scan(inputs)
        _check_inplace(state, u, (state, u, delta, A, B, C))
        chosen = resolve_backend(backend, u.device.type, discretization, u.dtype == torch.float64)
        if chosen in operators.DEVICES:
            return operators.operator(chosen, "scan_step_")(*inputs).squeeze(1), state
    y, next_state, _ = selective_scan(**inputs._asdict(), backend=backend)
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
        y [T, L, D] in x's dtype, and the final state [T, D, K], a new tensor, float64 for float64 x and float32 for
        any other. Gradients flow through both.

    Raises:
        ValueError, TypeError: a shape, dtype, device or name breaks the contract.

    Source: Gu & Dao, "Mamba", section 3.4; K columns of state, not K − 1, as mamba-ssm's `step` publishes it.
    """
    inputs = ConvInputs(x, weight, bias, initial_state, activation == "silu")
    check_conv(inputs, activation)
    preferred = "mamba_ssm" if mamba_ssm_backend.conv_is_supported(x, weight.shape[1]) else None
    chosen = resolve_backend(backend, x.device.type, "conv", x.dtype == torch.float64, preferred)
    if chosen == "reference":
        return reference.causal_conv1d_ref(x, weight, bias, initial_state, activation)
    if chosen == "mamba_ssm":
        return mamba_ssm_backend.causal_conv1d(inputs)
    y, final_state = operators.operator(chosen, "conv")(*inputs)
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

    `inplace` overwrites `state` instead of allocating; inference only (RuntimeError while gradients are recorded).
    """
    x = x.unsqueeze(1)
    if inplace:
        inputs = ConvInputs(x, weight, bias, state, activation == "silu")
        check_conv(inputs, activation)
        _check_inplace(state, x, (state, x, weight))
        chosen = resolve_backend(backend, x.device.type, "conv", x.dtype == torch.float64)
        if chosen in operators.DEVICES:
            return operators.operator(chosen, "conv_step_")(*inputs).squeeze(1), state
    y, next_state = causal_conv1d(x, weight, bias, state, activation, backend)
    return y.squeeze(1), state.copy_(next_state) if inplace else next_state


def _check_inplace(state: Tensor, x: Tensor, tensors: tuple[Tensor, ...]) -> None:
    """Refuse an in-place update that autograd would have to see, or that would have to change the state's dtype."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise RuntimeError("state cannot be updated in place while gradients are recorded; pass inplace=False")
    if state.dtype != state_dtype(x.dtype):
        raise TypeError(f"state must be {state_dtype(x.dtype)} to be updated in place; got {state.dtype}")
    if not state.is_contiguous():
        raise ValueError(f"state must be contiguous to be updated in place; got strides {state.stride()}")
