"""Place a model for inference: device, memory layout, weights in the precision of autocast."""

from __future__ import annotations

import logging

import torch
from torch import nn

from videomamba_depth.utils.device import is_emulated

log = logging.getLogger(__name__)


def place(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Freeze `model` and move it to `device`, convolutions in channels-last order.

    Under autocast the matrix weights of the encoder and the decoder are converted once. Autocast would convert frozen
    weights anew at every frame; what it computes is the same to the bit. The temporal part keeps float32 weights, and
    so do the carried output and the learned trust, which are computed outside autocast, and a mixer's step sizes, whose
    bias is added in float32.
    """
    model.eval().requires_grad_(False)
    model.to(device)
    model.to(memory_format=torch.channels_last)
    if dtype in (torch.float32, torch.float64):
        return
    if device.type == "cpu" and is_emulated(dtype):
        log.warning("this CPU has no instructions for %s: float32 is faster here", dtype)
    for name, module in model.named_modules():
        keeps = name.startswith(("temporal.", "output.", "trust.")) or name.endswith((".dt_proj", ".dt_proj_b"))
        if not keeps and isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.to(dtype)
