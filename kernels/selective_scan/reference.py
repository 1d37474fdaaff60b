"""The definition of every operator, in plain PyTorch: a loop over time that reads like the formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from selective_scan.contract import ScanInputs, ScanOutput
from selective_scan.discretization import get_discretization
from selective_scan.state import pack_state, state_dtype, state_shape, unpack_state

# softplus(x) = x to rounding beyond this, in float64 too; PyTorch's default of 20 is off by 2e-9 there.
SOFTPLUS_THRESHOLD = 40.0


def selective_scan_ref(
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
    with_summary: bool = False,
) -> ScanOutput:
    """Run the selective scan step by step; arguments and results are those of `selective_scan`.

    This function is the truth that every backend is tested against: float64-capable and differentiable by PyTorch.
    """
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, discretization)
    return scan(inputs, with_summary)


def scan(inputs: ScanInputs, with_summary: bool) -> ScanOutput:
    """Run `selective_scan_ref` on arguments that are bundled already."""
    method = get_discretization(inputs.discretization)
    dtype = state_dtype(inputs.u.dtype)
    A = inputs.A.to(dtype)  # [D, N]
    u, delta, B, C = (x.to(dtype) for x in (inputs.u, inputs.delta, inputs.B, inputs.C))

    # Softplus keeps the step size Δ positive.
    if inputs.delta_bias is not None:
        delta = delta + inputs.delta_bias.to(dtype)
    if inputs.delta_softplus:
        delta = F.softplus(delta, threshold=SOFTPLUS_THRESHOLD)

    state = inputs.initial_state
    if state is None:
        state = u.new_zeros(state_shape(u.shape[0], A.shape[0], A.shape[1], inputs.discretization))
    h, u_prev, B_prev = unpack_state(state.to(dtype), method.taps)  # [T, D, N], [T, D], [T, N]

    ys, summaries = [], []
    for u_t, delta_t, B_t, C_t in zip(u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        a, c0, c1 = method.coefficients(delta_t.unsqueeze(-1), A)  # each [T, D, N] or [T, D, 1]
        h = a * h + c0 * u_t.unsqueeze(-1) * B_t.unsqueeze(1)  # [T, D, N]
        if c1 is not None and u_prev is not None and B_prev is not None:
            h = h + c1 * u_prev.unsqueeze(-1) * B_prev.unsqueeze(1)
            u_prev, B_prev = u_t, B_t
        ys.append((h * C_t.unsqueeze(1)).sum(-1))  # [T, D]
        if with_summary:
            summaries.append(h.mean(1))  # [T, N]
    y = torch.stack(ys, dim=1)

    if inputs.D is not None:
        y = y + inputs.D.to(dtype) * u
    if inputs.z is not None:
        y = y * F.silu(inputs.z.to(dtype))
    summary = torch.stack(summaries, dim=1) if with_summary else y.new_empty(0)
    return ScanOutput(y.to(inputs.u.dtype), pack_state(h, u_prev, B_prev), summary)


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    activation: str | None = "silu",
) -> tuple[Tensor, Tensor]:
    """Run the causal depthwise convolution; arguments and results are those of `causal_conv1d`."""
    dtype = state_dtype(x.dtype)
    batch, _, channels = x.shape
    width = weight.shape[1]
    if initial_state is None:
        initial_state = x.new_zeros(batch, channels, width, dtype=dtype)
    # [T, D, K + L]: the last K inputs of the past, then the new ones.
    history = torch.cat([initial_state.to(dtype), x.to(dtype).transpose(1, 2)], dim=2)
    bias = None if bias is None else bias.to(dtype)
    y = F.conv1d(history[:, :, 1:], weight.to(dtype).unsqueeze(1), bias, groups=channels)  # [T, D, L]
    if activation == "silu":
        y = F.silu(y)
    return y.transpose(1, 2).to(x.dtype), history[:, :, -width:].clone()
