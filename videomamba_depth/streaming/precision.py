"""Place a model for inference: device, memory layout, and weights in the precision that autocast computes in."""

from __future__ import annotations

import logging
import platform
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Compute dtypes by name."""


def resolve_device(name: str) -> torch.device:
    """Return the device for "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", …

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device '{name}'; use auto, cpu or cuda") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device '{name}' is not there ({torch.cuda.device_count()} CUDA devices); use device=cpu")
    return device


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return the context to run the model in; float32 needs none."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def place(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Freeze `model` and move it to `device`, convolutions in channels-last order.

    Under autocast the matrix weights of the encoder and the decoder are converted once. Autocast would convert frozen
    weights anew at every frame; what it computes is the same to the bit. The temporal part keeps float32 weights.
    """
    model.eval().requires_grad_(False)
    model.to(device)
    model.to(memory_format=torch.channels_last)
    if dtype == torch.float32:
        return
    if device.type == "cpu" and _is_emulated(dtype):
        log.warning("this CPU has no instructions for %s: float32 is faster here", dtype)
    for name, module in model.named_modules():
        if not name.startswith("temporal.") and isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.to(dtype)


def _is_emulated(dtype: torch.dtype) -> bool:
    """Tell whether an x86 CPU lacks matrix instructions for `dtype`; False where torch cannot say."""
    if platform.machine() not in ("x86_64", "AMD64") or not hasattr(torch.cpu, "get_capabilities"):
        return False
    has = torch.cpu.get_capabilities()
    names = ("amx_bf16", "avx512_bf16") if dtype == torch.bfloat16 else ("amx_fp16", "avx512_fp16")
    return not any(has.get(name, False) for name in names)
