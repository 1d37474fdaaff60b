"""The residual layer that all backbones stack: add, norm, mix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from videomamba_depth.layers.mamba_mixer import MambaMixer
from videomamba_depth.utils.errors import describe
from videomamba_depth.video_mamba.patch_embed import check_sizes
from videomamba_depth.video_mamba.positions import is_integer


class RMSNorm(nn.RMSNorm):
    """RMS norm computed in float32 at least; the result has the dtype of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axis."""
        wide = torch.promote_types(x.dtype, torch.float32)
        y = F.rms_norm(x.to(wide), self.normalized_shape, self.weight.to(wide), self.eps)
        return y.to(self.weight.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in float32 at least; the result has the dtype of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axis."""
        wide = torch.promote_types(x.dtype, torch.float32)
        y = F.layer_norm(x.to(wide), self.normalized_shape, self.weight.to(wide), self.bias.to(wide), self.eps)
        return y.to(self.weight.dtype)


class BackboneLayer(nn.Module):
    """Pre-norm layer: `residual += x; x = mixer(norm(residual))`; the sum is left to the next layer, as published.

    Args:
        mixer: of tokens `[B, L, C]`.
        norm: norm over channels.
        drop_path: rate of stochastic depth on the branch that comes in.
        residual_in_fp32: keep the residual in float32 at least.
    """

    def __init__(self, mixer: MambaMixer, norm: nn.Module, drop_path: float, residual_in_fp32: bool) -> None:
        super().__init__()
        self.mixer: Any = mixer
        self.norm = norm
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.residual_in_fp32 = residual_in_fp32

    def forward(self, x: Tensor, residual: Tensor | None = None, use_checkpoint: bool = False) -> tuple[Tensor, Tensor]:
        """Run one bidirectional layer; returns its branch, not yet added, and the stream that entered its norm.

        Args:
            x: `[B, L, C]` branch of the layer before, or the tokens.
            residual: `[B, L, C]` stream of the layer before; None in the first layer.
            use_checkpoint: recompute the mixer in the backward pass instead of storing it.
        """
        residual = self.add(x, residual)  # [B, L, C]
        normed = self.norm(residual)
        return recompute(self.mixer.mix, normed) if use_checkpoint else self.mixer.mix(normed), residual

    def add(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Return the stream that enters the norm."""
        return add_residual(x if residual is None else self.drop_path(x), residual, self.residual_in_fp32)


def recompute(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function whose activations are computed again in the backward pass instead of stored."""
    return checkpoint(function, *args, use_reentrant=False)


def add_residual(x: Tensor, residual: Tensor | None, in_fp32: bool) -> Tensor:
    """Return `residual + x`, in float32 at least when asked for."""
    if in_fp32:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x if residual is None else residual + x


def make_norm(dim: int, eps: float, rms: bool) -> nn.Module:
    """Return the norm that a config names; ValueError where eps is no finite number of at least 0."""
    if not 0 <= eps < float("inf"):
        raise ValueError(f"norm_epsilon must be a finite number of at least 0; got {eps}")
    return RMSNorm(dim, eps) if rms else LayerNorm(dim, eps)


def check_classes(num_classes: int) -> None:
    """Raise ValueError where a number of classes is no integer from 0 on; 0 leaves the classifier out."""
    if not is_integer(num_classes) or num_classes < 0:
        raise ValueError(f"num_classes must be 0 (no classifier) or a positive integer; got {describe(num_classes)}")


def drop_path_rates(rate: float, num_layers: int) -> list[float]:
    """Return the rates per layer: they rise linearly, and a rate acts on the branch of the layer before (published).

    Raises:
        ValueError: the rate is outside [0, 1), or there is no layer.
    """
    check_sizes(depth=num_layers)
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate must be in [0, 1); got {rate}")
    ramp = torch.linspace(0, rate, num_layers, device="cpu").tolist()
    return [0.0, *ramp][:num_layers]


@torch.no_grad()
def init_backbone_(model: nn.Module, layers: Iterable[Any]) -> None:
    """Initialize as published: truncated normal (0.02) projections and tables, output projections by 1/√layers.

    The step-size projections keep Mamba's own initialization, which the official backbones overwrite.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "dt_proj" not in name:
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    layers = list(layers)
    for layer in layers:
        weight = layer.mixer.out_proj.weight
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        weight.div_(math.sqrt(len(layers)))
    for name in ("cls_token", "pos_embed"):
        table = getattr(model, name, None)
        if table is not None:
            nn.init.trunc_normal_(table, std=0.02)
