"""The definition of every operator, in plain PyTorch: a loop over time that reads like the formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
) -> tuple[Tensor, Tensor]:
    """Run the selective scan step by step; arguments and results are those of `selective_scan`.

    This function is the truth that every backend is tested against: float64-capable and differentiable by
        PyTorch.
    """
    y, final_state, _ = selective_scan_with_summary_ref(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, discretization
    )
    return y, final_state


def selective_scan_with_summary_ref(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan and also return summary [T, L, N], the mean over channels of h_t, in the state's dtype."""
    method = get_discretization(discretization)
    dtype = state_dtype(u.dtype)
    channels, states = A.shape
    y_dtype = u.dtype
    u, delta, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))

    # Softplus keeps the step size Δ positive.
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)
    if delta_softplus:
        delta = F.softplus(delta, threshold=SOFTPLUS_THRESHOLD)

    if initial_state is None:
        initial_state = u.new_zeros(state_shape(u.shape[0], channels, states, discretization))
    h, u_prev, B_prev = unpack_state(initial_state.to(dtype), method.taps)

    ys, summaries = [], []
    for u_t, delta_t, B_t, C_t in zip(u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        a, c0, c1 = method.coefficients(delta_t.unsqueeze(-1), A)  # each [T, D, N] or [T, D, 1]
        h = a * h + c0 * u_t.unsqueeze(-1) * B_t.unsqueeze(1)
        if c1 is not None and u_prev is not None and B_prev is not None:
            h = h + c1 * u_prev.unsqueeze(-1) * B_prev.unsqueeze(1)
            u_prev, B_prev = u_t, B_t
        ys.append((h * C_t.unsqueeze(1)).sum(-1))
        summaries.append(h.mean(1))
    y = torch.stack(ys, dim=1)

    if D is not None:
        y = y + D.to(dtype) * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(y_dtype), pack_state(h, u_prev, B_prev), torch.stack(summaries, dim=1)


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
    y = F.conv1d(
        history[:, :, 1:],
        weight.to(dtype).unsqueeze(1),
        None if bias is None else bias.to(dtype),
        groups=channels,
    )
    if activation == "silu":
        y = F.silu(y)
    return y.transpose(1, 2).to(x.dtype), history[:, :, -width:].clone()
