"""Layout of the carried state: one tensor whatever the discretization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from selective_scan.discretization import get_discretization


def state_shape(batch: int, channels: int, states: int, discretization: str = "zoh") -> tuple[int, int, int]:
    """Return the shape of the carried state of `batch` sequences with `channels` channels and `states` states
    each.

    One-tap methods carry h alone, [T, D, N]. Two-tap methods also carry the last input, u [T, D], and the
    last input weights, B [T, N], in one more column and one more row, [T, D+1, N+1]:

        state[:, :D, :N] = h      state[:, :D, N] = u      state[:, D, :N] = B      state[:, D, N] = 0
    """
    extra = get_discretization(discretization).taps - 1
    return batch, channels + extra, states + extra


def state_dtype(input_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the state and of all arithmetic: float64 for float64 inputs, float32 for all
    others."""
    return torch.float64 if input_dtype == torch.float64 else torch.float32


def unpack_state(state: Tensor, taps: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Split a carried state into (h [T, D, N], previous u [T, D] or None, previous B [T, N] or None)."""
    if taps == 1:
        return state, None, None
    return state[:, :-1, :-1], state[:, :-1, -1], state[:, -1, :-1]


def pack_state(h: Tensor, u_prev: Tensor | None, B_prev: Tensor | None) -> Tensor:
    """Join what `unpack_state` split; differentiable, and always a new tensor for two taps."""
    if u_prev is None or B_prev is None:
        return h
    upper = torch.cat([h, u_prev.unsqueeze(-1)], dim=2)
    lower = F.pad(B_prev, (0, 1)).unsqueeze(1)
    return torch.cat([upper, lower], dim=1)
