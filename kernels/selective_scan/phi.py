"""The φ functions of exponential integrators, accurate to rounding for every argument."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# |z| ≤ 1 uses a Taylor polynomial of this degree for the top φ: its remainder, 1/(degree+1+order)!, is below
# float64's rounding, so this branch is the closed form evaluated another way and not an approximation of it.
_TAYLOR_DEGREE = 16


def phi_functions(z: Tensor, order: int) -> list[Tensor]:
    """Return [φ0(z), …, φ_order(z)], φ0 = e^z and φ_{k+1}(z) = (φ_k(z) − 1/k!) / z, with φ_k(0) = 1/k!.

    The textbook quotient cancels near 0 (φ3 in float32 has no correct digit at z = −1e-3), so |z| ≤ 1
    evaluates the highest φ by its series and goes *down*, φ_k = z φ_{k+1} + 1/k!, and |z| > 1 goes *up*. Each
    branch sees only arguments that it is meant for, so that neither value nor gradient of the branch not
    taken can be NaN.

    Args:
        z: any shape, any real value.
        order: the highest index, ≥ 0.

    Source: Hochbruck & Ostermann, "Exponential integrators", eq. 2.10, without the split.
    """
    exponential = torch.exp(z)
    if order == 0:
        return [exponential]
    is_small = z.abs() <= 1
    small = torch.where(is_small, z, torch.zeros_like(z))
    large = torch.where(is_small, torch.full_like(z, -2.0), z)

    downward = torch.full_like(z, 1 / math.factorial(order + _TAYLOR_DEGREE))
    for k in range(_TAYLOR_DEGREE - 1, -1, -1):
        downward = downward * small + 1 / math.factorial(order + k)
    down = {order: downward}
    for k in range(order - 1, 0, -1):
        down[k] = small * down[k + 1] + 1 / math.factorial(k)

    upward = torch.expm1(large) / large
    result = [exponential, torch.where(is_small, down[1], upward)]
    for k in range(1, order):
        upward = (upward - 1 / math.factorial(k)) / large
        result.append(torch.where(is_small, down[k + 1], upward))
    return result
