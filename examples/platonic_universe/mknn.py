"""How alike two representations of the same things are: the share of nearest neighbors that they have in common."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mknn(a: Tensor, b: Tensor, k: int = 10) -> float:
    """Return the mean share of the k nearest neighbors by cosine that are the same in both spaces.

    Source: Huh et al., "The Platonic Representation Hypothesis", arXiv 2405.07987.

    Args:
        a, b: `[n, C_a]`, `[n, C_b]`, row i of both of the same thing; n > k. A row is no neighbor of itself.
        k: ≥ 1.

    Returns:
        0 to 1; about k / (n − 1) for representations that have nothing in common.
    """
    if len(a) != len(b) or not 1 <= k < len(a):
        raise ValueError(f"a and b must have as many rows, more than k ≥ 1; got {len(a)}, {len(b)} and k = {k}")
    shared = _neighbors(a, k).unsqueeze(2) == _neighbors(b, k).unsqueeze(1)  # [n, k, k]
    return shared.any(2).double().mean().item()


def _neighbors(x: Tensor, k: int) -> Tensor:
    """Return the indices `[n, k]` of each row's nearest others."""
    unit = F.normalize(x.double(), dim=1)
    similarity = unit @ unit.T  # [n, n]
    return similarity.fill_diagonal_(-torch.inf).topk(k, dim=1).indices
