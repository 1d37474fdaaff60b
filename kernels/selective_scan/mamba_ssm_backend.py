"""The published CUDA kernels, for parity and comparison: mamba-ssm's scan and the causal-conv1d package."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from selective_scan.contract import ConvInputs, ScanInputs, ScanOutput
from selective_scan.state import state_dtype


def selective_scan(inputs: ScanInputs) -> ScanOutput:
    """Run `mamba_ssm.ops.selective_scan_interface.selective_scan_fn` (no gradient flows through its final state).

    Raises:
        ValueError: the call needs what that kernel has not: an initial state, float64, or another method than zoh.
    """
    u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, discretization = inputs
    if initial_state is not None or discretization != "zoh" or u.dtype == torch.float64:
        raise ValueError("backend 'mamba_ssm' knows only zoh, no initial_state and no float64; use backend='triton'")
    interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    u_t, delta_t, B_t, C_t = (x.transpose(1, 2).contiguous() for x in (u, delta, B, C))
    y, final_state = interface.selective_scan_fn(
        u_t,
        delta_t,
        A.float(),
        B_t,
        C_t,
        None if D is None else D.float(),
        None if z is None else z.transpose(1, 2).contiguous(),
        None if delta_bias is None else delta_bias.float(),
        delta_softplus,
        True,
    )
    return ScanOutput(y.transpose(1, 2), final_state.float(), final_state.new_empty(0))


def conv_is_supported(x: Tensor, width: int) -> bool:
    """Tell whether the causal-conv1d package computes this call correctly.

    It wants CUDA tensors, no float64, a width of 2 to 4, D a multiple of 8 (for a state in channel-last layout) and
    fewer than 2^32 elements (its offsets have 32 bits). `torch.compile` cannot trace it.
    """
    if torch.compiler.is_compiling() or not _is_on_gpu(x):
        return False
    return 2 <= width <= 4 and x.shape[2] % 8 == 0 and x.numel() < 2**32 and x.dtype != torch.float64


def _is_on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def causal_conv1d(inputs: ConvInputs) -> tuple[Tensor, Tensor]:
    """Run `causal_conv1d.causal_conv1d_fn`; the final state is cut from the inputs here, so gradients flow through it.

    Raises:
        ValueError: see `conv_is_supported`.
    """
    x, weight, bias, initial_state, silu = inputs
    batch, _, channels = x.shape
    width = weight.shape[1]
    if not conv_is_supported(x, width):
        raise ValueError(
            "backend 'mamba_ssm' needs CUDA tensors, a width of 2 to 4, D a multiple of 8, fewer than 2^32 elements "
            f"and no float64; got x {tuple(x.shape)} {x.dtype} and width {width}"
        )
    if initial_state is None:
        initial_state = x.new_zeros(batch, channels, width, dtype=state_dtype(x.dtype))
    past = initial_state.transpose(1, 2)  # [T, K, D]
    package = importlib.import_module("causal_conv1d")
    y = package.causal_conv1d_fn(
        x.contiguous().transpose(1, 2),
        weight.to(x.dtype),
        None if bias is None else bias.to(x.dtype),
        initial_states=past[:, 1:].to(x.dtype).contiguous().transpose(1, 2),
        activation="silu" if silu else None,
    )
    history = torch.cat([past, x[:, -width:].to(past.dtype)], dim=1)[:, -width:]
    return y.transpose(1, 2), history.transpose(1, 2).contiguous()
