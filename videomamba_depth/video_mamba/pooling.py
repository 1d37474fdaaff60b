"""From tokens to pooled vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

POOL_TYPES = ("cls", "avg", "cls+avg", "cls_cat_avg")
"""Poolings of a clip's tokens to its vectors."""


def pool_tokens(cls: Tensor | None, patches: Tensor, pool_type: str, slices: tuple[Tensor, int] | None) -> Tensor:
    """Pool the tokens of a clip.

    Args:
        cls: `[B, 1, C]`; None in a continuation chunk, which has no CLS.
        patches: `[B, V, C]` visible patch tokens.
        pool_type: a name in `POOL_TYPES`.
        slices: `(frame of each token [B, V] int64, number of frames t)` to average per frame; None averages all.

    Returns:
        cls: `[B, 1, C]`; avg, cls+avg: `[B, 1 or t, C]`; cls_cat_avg: `[B, 1 + (1 or t), C]`.
    """
    if pool_type == "cls":
        return _present(cls)
    mean = patches.mean(1, keepdim=True) if slices is None else mean_per_slice(patches, *slices)
    if pool_type == "avg":
        return mean
    return _present(cls) + mean if pool_type == "cls+avg" else torch.cat([_present(cls), mean], dim=1)


def mean_per_slice(patches: Tensor, frame: Tensor, num_frames: int) -> Tensor:
    """Return the mean `[B, t, C]` of the tokens `[B, V, C]` of each frame, `frame [B, V]` being theirs."""
    member = F.one_hot(frame, num_frames).to(patches.dtype).transpose(1, 2)  # [B, t, V]
    return member @ patches / member.sum(-1, keepdim=True)


def check_slices(frame: Tensor, num_frames: int) -> None:
    """Raise ValueError when one of the frames has none of the tokens, `frame [B, V]` being theirs."""
    if (F.one_hot(frame, num_frames).sum(1) == 0).any():
        raise ValueError("keep_temporal needs at least one visible patch token for each temporal slice; unmask some")


def _present(cls: Tensor | None) -> Tensor:
    if cls is None:
        raise ValueError("this pool_type requires a CLS token and the chunk has none")
    return cls
