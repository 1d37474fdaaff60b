"""The arguments and results of the public functions, and their checks, made once, at the entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from selective_scan.state import state_shape

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class ScanInputs(NamedTuple):
    """What a backend is given for a scan, in the order of its operator; see `selective_scan`."""

    u: Tensor  # [T, L, D]
    delta: Tensor  # [T, L, D]
    A: Tensor  # [D, N]
    B: Tensor  # [T, L, N]
    C: Tensor  # [T, L, N]
    D: Tensor | None  # [D]
    z: Tensor | None  # [T, L, D]
    delta_bias: Tensor | None  # [D]
    initial_state: Tensor | None  # state_shape(T, D, N, discretization)
    delta_softplus: bool
    discretization: str


class ScanOutput(NamedTuple):
    """What a scan returns."""

    y: Tensor  # [T, L, D], in u's dtype
    state: Tensor  # after the last step; float64 for float64 u, else float32
    summary: Tensor  # [T, L, N] mean over channels of h after every step, in the state's dtype; [0] unless asked for


class ConvInputs(NamedTuple):
    """What a backend is given for a convolution, in the order of its operator; see `causal_conv1d`."""

    x: Tensor  # [T, L, D]
    weight: Tensor  # [D, K]
    bias: Tensor | None  # [D]
    initial_state: Tensor | None  # [T, D, K]
    silu: bool


def check_scan(inputs: ScanInputs) -> None:
    """Raise ValueError or TypeError when an argument of `selective_scan` breaks its contract."""
    u, A = inputs.u, inputs.A
    if u.dim() != 3:
        raise ValueError(f"u must have shape [T, L, D]; got {tuple(u.shape)}")
    batch, length, channels = u.shape
    if length == 0:
        raise ValueError("u must hold at least one time step (L ≥ 1); got L = 0")
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] == 0:
        raise ValueError(f"A must have shape [D = {channels}, N ≥ 1]; got {tuple(A.shape)}")
    states = A.shape[1]
    over_channels, over_states = (batch, length, channels), (batch, length, states)
    _check_tensors(
        inputs,
        {
            "u": over_channels,
            "A": (channels, states),
            "delta": over_channels,
            "B": over_states,
            "C": over_states,
            "D": (channels,),
            "z": over_channels,
            "delta_bias": (channels,),
            "initial_state": state_shape(batch, channels, states, inputs.discretization),
        },
    )


def check_conv(inputs: ConvInputs, activation: str | None) -> None:
    """Raise ValueError or TypeError when an argument of `causal_conv1d` breaks its contract."""
    x, weight = inputs.x, inputs.weight
    if x.dim() != 3 or x.shape[1] == 0:
        raise ValueError(f"x must have shape [T, L ≥ 1, D]; got {tuple(x.shape)}")
    batch, length, channels = x.shape
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] == 0:
        raise ValueError(f"weight must have shape [D = {channels}, K ≥ 1]; got {tuple(weight.shape)}")
    width = weight.shape[1]
    _check_tensors(
        inputs,
        {
            "x": (batch, length, channels),
            "weight": (channels, width),
            "bias": (channels,),
            "initial_state": (batch, channels, width),
        },
    )
    if activation not in ("silu", None):
        raise ValueError(f"activation must be 'silu' or None; got {activation!r}")


def _check_tensors(inputs: ScanInputs | ConvInputs, shapes: dict[str, tuple[int, ...]]) -> None:
    device = inputs[0].device
    for name, shape in shapes.items():
        tensor = getattr(inputs, name)
        if tensor is None:
            continue
        if tensor.dtype not in FLOAT_DTYPES:
            raise TypeError(f"{name} must be float64, float32, bfloat16 or float16; got {tensor.dtype}")
        if tensor.device != device:
            raise ValueError(f"{name} must be on {device} like the first argument; got {tensor.device}")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}; got {tuple(tensor.shape)}")


def dense(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return x contiguous and in the dtype of the arithmetic, as the kernels read parameters and states."""
    return None if x is None else x.to(dtype).contiguous()


def last_axis_contiguous(x: Tensor) -> Tensor:
    """Return x [T, L, *] with neighboring channels side by side; the other strides may be any."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def gradients_like(inputs: ScanInputs | ConvInputs, gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """Give every gradient the dtype and layout that its operator declares; an empty tensor for one that is None."""
    return [
        g.to(x.dtype).contiguous() if isinstance(x, Tensor) and g is not None else inputs[0].new_empty(0)
        for x, g in zip(inputs, gradients, strict=False)
    ]
