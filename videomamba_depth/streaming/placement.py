"""Place a model for inference: device, memory layout, weights in the precision of autocast, compilation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from videomamba_depth.utils.device import is_emulated

log = logging.getLogger(__name__)


def place(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Freeze `model` and move it to `device`, convolutions in channels-last order.

    Under autocast the matrix weights of the encoder and the decoder are converted once. Autocast would convert frozen
    weights anew at every frame; what it computes is the same to the bit. The temporal part keeps float32 weights, and
    so do the carried output, which is computed outside autocast, and a mixer's step sizes, whose bias is added in
    float32.
    """
    model.eval().requires_grad_(False)
    model.to(device)
    model.to(memory_format=torch.channels_last)
    if dtype == torch.float32:
        return
    if device.type == "cpu" and is_emulated(dtype):
        log.warning("this CPU has no instructions for %s: float32 is faster here", dtype)
    for name, module in model.named_modules():
        keeps = name.startswith(("temporal.", "output.")) or name.endswith((".dt_proj", ".dt_proj_b"))
        if not keeps and isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.to(dtype)


def compile_frames(model: Any, device: torch.device) -> None:
    """Compile what every frame runs through, encoder and decoder, in place.

    On CUDA as graphs that are replayed, which need frames of one size, as a stream has.
    """
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    for owner, name in ((model.encoder, "encode_pixels"), (model, "_decode")):
        setattr(owner, name, _detached_from_graph(torch.compile(getattr(owner, name), mode=mode, dynamic=False)))


def _detached_from_graph(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call` with its results copied: a replayed graph writes the next ones into the same memory."""

    def run(*args: Any) -> Any:
        result = call(*args)
        return result.clone() if isinstance(result, Tensor) else {name: t.clone() for name, t in result.items()}

    return run
