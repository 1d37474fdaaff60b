"""Token masks: checks, and which patches stay."""

from __future__ import annotations

import torch
from torch import Tensor


def visible_patches(mask: Tensor, batch_size: int, num_patches: int, has_cls: bool, device: torch.device) -> Tensor:
    """Return the indices `[B, V]` (int64, ascending) of the patch tokens that a mask leaves visible.

    Args:
        mask: bool `[B, 1 + num_patches]`, True = hidden; column 0 is the CLS and must be visible. A continuation chunk
            has no CLS and may leave column 0 out.
        num_patches: patch tokens of the chunk, over all its frames.
        has_cls: the chunk starts with the CLS.

    Raises:
        ValueError, TypeError: the mask breaks the contract.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor, True = hidden; got {got}")
    if mask.ndim != 2:
        raise ValueError(f"mask must be 2-D, [B, 1 + tokens]; got shape {tuple(mask.shape)}")
    if mask.shape[0] != batch_size:
        raise ValueError(f"mask batch size mismatch: expected {batch_size}, got {mask.shape[0]}")
    mask = mask.to(device)
    if mask.shape[1] == num_patches + 1:
        if mask[:, 0].any():
            raise ValueError("mask must keep the CLS token visible (mask[:, 0] must be False)")
        mask = mask[:, 1:]
    elif has_cls or mask.shape[1] != num_patches:
        raise ValueError(f"mask token length mismatch: expected {num_patches + 1}, got {mask.shape[1]}")
    counts = (~mask).sum(1)
    if (counts != counts[0]).any():
        raise ValueError(
            f"mask must keep the same number of visible tokens in every sample; got {counts.tolist()} patches"
        )
    return (~mask).nonzero()[:, 1].view(batch_size, int(counts[0]))


def gather_tokens(tokens: Tensor, index: Tensor | None) -> Tensor:
    """Return the tokens `[B, V, C]` at `index [B, V]` of `tokens [B, L, C]`; all of them when it is None."""
    if index is None:
        return tokens
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
