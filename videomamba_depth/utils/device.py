"""Devices and compute dtypes by name."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext

import cv2
import torch

from videomamba_depth.utils.errors import UserError

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
        raise UserError(f"device '{name}' is not there ({torch.cuda.device_count()} CUDA devices); use cpu")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a name in `DTYPES`; "auto" is bfloat16 where the device computes in it, else float32."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.float32 if is_emulated(torch.bfloat16) else torch.bfloat16


def use_threads(threads: int | None) -> None:
    """Let PyTorch and OpenCV, whose flow runs beside it, use at most so many CPU threads each; None: as they are."""
    if threads is not None:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return the context to run a model in; float32 and float64 need none."""
    return nullcontext() if dtype in (torch.float32, torch.float64) else torch.autocast(device.type, dtype)


def is_emulated(dtype: torch.dtype) -> bool:
    """Tell whether an x86 CPU lacks matrix instructions for `dtype`; False where torch cannot say.

    An emulated bfloat16 is about two times slower than float32.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not hasattr(torch.cpu, "get_capabilities"):
        return False
    has = torch.cpu.get_capabilities()
    names = ("amx_bf16", "avx512_bf16") if dtype == torch.bfloat16 else ("amx_fp16", "avx512_fp16")
    return not any(has.get(name, False) for name in names)
