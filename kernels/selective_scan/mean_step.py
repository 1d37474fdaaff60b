"""One streamed step of a running weighted mean, fused: what an innovation block does between its two projections."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from selective_scan.backends import resolve_backend
from selective_scan.cpp_backend import mean_step_works
from selective_scan.operators import operator

_VECTOR = 16  # floats in a register of the machines that have the kernel


def mean_step_fits(
    state: Tensor, channels: int, heads: int, states: int, discretization: str, backend: str | None = None
) -> bool:
    """Tell whether `mean_step` runs: compiled for a CPU with AVX-512, zoh, float32 state, no gradients, whole vectors.

    Args:
        state: see `mean_step`.
        channels, heads, states: D, H and N.
        discretization, backend: of the block, as in `selective_scan`.
    """
    if torch.is_grad_enabled() or state.device.type != "cpu" or state.dtype != torch.float32:
        return False
    if discretization != "zoh" or states not in (4, 8, 16):
        return False
    if channels % _VECTOR or channels // heads * states % _VECTOR:
        return False
    return resolve_backend(backend, "cpu", "zoh", False) == "cpp" and mean_step_works()


def mean_step(state: Tensor, x: Tensor, controls: Tensor, rates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Advance T sequences by one step; `mean_step_fits` says where it may be called.

    With Δ = softplus(dt), a = exp(Δ rates), per head and state h = a h + Δ softplus(B) x and m = a m + Δ softplus(B);
    returned is sigmoid(gate) (Σ_n softplus(C_n) h_n / Σ_n softplus(C_n) m_n − x).

    Args:
        state: [T, D + H, N] float32: h of the D channels, then m of the H heads. Unchanged.
        x: [T, D] float32 or bfloat16.
        controls: [T, 2 H + 2 N]: dt and gate per head, B, C.
        rates: [H, N], < 0.

    Returns:
        innovation [T, D] in x's dtype, next state, and summary [T, N]: the mean over channels of h over the mean
        over heads of m.
    """
    innovation, next_state, summary = operator("cpp", "mean_step")(state, x, controls, rates)
    return innovation, next_state, summary


def mean_step_ref(state: Tensor, x: Tensor, controls: Tensor, rates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `mean_step` does, in plain PyTorch, in the state's dtype."""
    heads, states = rates.shape
    channels = x.shape[1]
    wide = controls.to(state.dtype)
    dt, gate, B, C = wide.split([heads, heads, states, states], dim=-1)
    delta, B, C = F.softplus(dt), F.softplus(B), F.softplus(C)
    decay = torch.exp(delta.unsqueeze(-1) * rates.to(state.dtype))  # [T, H, N]
    gain = delta.unsqueeze(-1) * B.unsqueeze(1)
    per_head = channels // heads
    values, mass = state[:, :channels], decay * state[:, channels:] + gain
    u = x.to(state.dtype)
    values = decay.repeat_interleave(per_head, 1) * values + gain.repeat_interleave(per_head, 1) * u.unsqueeze(-1)
    read = (mass * C.unsqueeze(1)).sum(-1).repeat_interleave(per_head, 1)
    mean = (values * C.unsqueeze(1)).sum(-1) / read
    innovation = gate.sigmoid().repeat_interleave(per_head, 1) * (mean - u)
    return innovation.to(x.dtype), torch.cat([values, mass], 1), values.mean(1) / mass.mean(1)
