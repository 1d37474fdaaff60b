"""How alike two representations of the same things are: the share of nearest neighbors that they have in common."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mknn(a: Tensor, b: Tensor, k: int = 10) -> float:
    """Return the mean share of the k nearest neighbors by cosine that are the same in both spaces.

    Source: Huh et al., "The Platonic Representation Hypothesis", arXiv 2405.07987.

    Args:
        a, b: tensors or arrays `[n, C_a]`, `[n, C_b]`, row i of both of the same thing; n > k, finite, no row all
            zeros. A row is no neighbor of itself.
        k: ≥ 1.

    Returns:
        0 to 1; about k / (n − 1) for representations that have nothing in common. Of neighbors that are equally near,
        any may be taken: where many rows point the same way the share says nothing.

    Raises:
        ValueError: a or b has another shape; the numbers of rows do not fit k or each other; a row is not finite or all
            zeros.
    """
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    for name, x in (("a", a), ("b", b)):
        if x.ndim != 2 or not x.shape[1] or x.is_complex():
            raise ValueError(f"{name} must be real, of shape [n, C]; got {x.dtype} {list(x.shape)}")
    if len(a) != len(b) or not 1 <= k < len(a):
        raise ValueError(f"a and b must have as many rows, more than k ≥ 1; got {len(a)}, {len(b)} and k = {k}")
    shared = _neighbors(a, "a", k).unsqueeze(2) == _neighbors(b, "b", k).unsqueeze(1)  # [n, k, k]
    return shared.any(2).double().mean().item()


def _neighbors(x: Tensor, name: str, k: int) -> Tensor:
    """Return the indices `[n, k]` of each row's nearest others."""
    x = x.double()
    largest = x.abs().amax(1, keepdim=True)  # [n, 1]; nan where a row has one
    for wrong, what in ((~largest.isfinite(), "is not finite"), (largest == 0, "is all zeros")):
        if wrong.any():
            raise ValueError(f"row {int(wrong.flatten().nonzero()[0])} of {name} {what}; leave it out of a and b")
    unit = F.normalize(x / largest, dim=1)  # squares of tiny or huge numbers would not be exact
    similarity = unit @ unit.T  # [n, n]
    return similarity.fill_diagonal_(-torch.inf).topk(k, dim=1).indices
