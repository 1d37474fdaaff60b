"""Contracts of the public functions, checked once, at the entry."""

from __future__ import annotations

import torch
from torch import Tensor

from selective_scan.state import state_shape

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    discretization: str,
) -> None:
    """Raise ValueError or TypeError when an argument of `selective_scan` breaks its contract."""
    if u.dim() != 3:
        raise ValueError(f"u must have shape [T, L, D]; got {tuple(u.shape)}")
    batch, length, channels = u.shape
    if length == 0:
        raise ValueError("u must hold at least one time step (L ≥ 1); got L = 0")
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] == 0:
        raise ValueError(f"A must have shape [D = {channels}, N ≥ 1]; got {tuple(A.shape)}")
    states = A.shape[1]
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "delta": (delta, (batch, length, channels)),
        "B": (B, (batch, length, states)),
        "C": (C, (batch, length, states)),
        "D": (D, (channels,)),
        "z": (z, (batch, length, channels)),
        "delta_bias": (delta_bias, (channels,)),
        "initial_state": (initial_state, state_shape(batch, channels, states, discretization)),
    }
    _check_tensor("u", u, u.device)
    _check_tensor("A", A, u.device)
    for name, (tensor, shape) in expected.items():
        if tensor is not None:
            _check_tensor(name, tensor, u.device)
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}; got {tuple(tensor.shape)}")


def check_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, activation: str | None
) -> None:
    """Raise ValueError or TypeError when an argument of `causal_conv1d` breaks its contract."""
    if x.dim() != 3 or x.shape[1] == 0:
        raise ValueError(f"x must have shape [T, L ≥ 1, D]; got {tuple(x.shape)}")
    batch, _, channels = x.shape
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] == 0:
        raise ValueError(f"weight must have shape [D = {channels}, K ≥ 1]; got {tuple(weight.shape)}")
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "weight": (weight, tuple(weight.shape)),
        "bias": (bias, (channels,)),
        "initial_state": (initial_state, (batch, channels, weight.shape[1])),
    }
    _check_tensor("x", x, x.device)
    for name, (tensor, shape) in expected.items():
        if tensor is not None:
            _check_tensor(name, tensor, x.device)
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}; got {tuple(tensor.shape)}")
    if activation not in ("silu", None):
        raise ValueError(f"activation must be 'silu' or None; got {activation!r}")


def _check_tensor(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16; got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device} like the first argument; got {tensor.device}")
