"""Attention of frozen encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIN_TOKENS = 192  # with fewer, PyTorch's kernel is about as fast
BLOCK = 1 << 19  # weights at a time: 2 MB in float32


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """Return softmax(query · keyᵀ · scale) · value, as `torch.nn.functional.scaled_dot_product_attention`.

    In bfloat16 on a CPU, where no gradient is wanted, by two matrix products per head, which run in the CPU's bfloat16
    instructions; PyTorch's kernel does not. Logits are rounded to bfloat16 and the softmax is float32, as in
    transformers' eager attention.

    Args:
        query, key, value: `[B, heads, N, d]`.
        scale: None: 1 / sqrt(d).
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if not _by_products(query):
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    tokens = query.shape[2]
    rows = min(tokens, max(1, BLOCK // tokens))
    rounded, exact = query.new_empty(rows, tokens), query.new_empty(rows, tokens, dtype=torch.float32)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    heads = (x.flatten(0, 1) for x in (query, key.mT, value, out))  # [B·heads, …]
    for queries, keys, values, found in zip(*heads, strict=True):
        for part, destination in zip(queries.split(rows), found.split(rows), strict=True):
            weights, logits = (rounded, exact) if len(part) == rows else (rounded[: len(part)], exact[: len(part)])
            logits.copy_(torch.mm(part, keys, out=weights)).mul_(scale)
            weights.copy_(torch.softmax(logits, -1, out=logits))
            torch.mm(weights, values, out=destination)
    return out


def transformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return `attention` as transformers' models call it: `[B, N, heads, d]`, and no weights."""
    if attention_mask is None:
        out = attention(query, key, value, scaling)
    else:
        out = F.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def _by_products(query: Tensor) -> bool:
    return (
        query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and query.shape[2] >= MIN_TOKENS
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )
