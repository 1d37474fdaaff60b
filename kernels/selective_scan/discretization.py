"""The table of discretizations: how h' = A h + B u becomes h_t = a h_{t−1} + c0 B_t u_t + c1 B_{t−1} u_{t−1}.

Every entry is closed form, for A < 0 and Δ > 0, with z = A Δ. To add one: write its `coefficients` here and a
line in `DISCRETIZATIONS`, a struct in `cpp/discretizations.h`, and a branch in
`triton_kernels/discretizations.py`; the tests pick it up from the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from selective_scan.phi import phi_functions

Coefficients = tuple[Tensor, Tensor, Tensor | None]
"""(a, c0, c1), each broadcastable to [..., D, N]; c1 is None for a method with one tap."""


@dataclass(frozen=True)
class Discretization:
    """One method of the table.

    Attributes:
        name: the name users select it by.
        index: the number the compiled backends know it by; never reused.
        taps: 1 when the input enters through B_t u_t alone, 2 when B_{t−1} u_{t−1} enters too and is carried.
        order: order of accuracy of the state for a smooth input, measured in the tests (0: does not
            converge).
        published: in the Vision Mamba discretization study (arXiv 2604.20606).
        coefficients: (delta [..., D, 1], A [D, N]) → (a, c0, c1).
        formula: a, c0 and c1 in words, for the docs and the logs.
    """

    name: str
    index: int
    taps: int
    order: int
    published: bool
    coefficients: Callable[[Tensor, Tensor], Coefficients]
    formula: str


def _zoh(delta: Tensor, A: Tensor) -> Coefficients:
    return torch.exp(delta * A), delta, None


def _foh(delta: Tensor, A: Tensor) -> Coefficients:
    e, _, phi2 = phi_functions(delta * A, 2)
    return e, delta**2 * phi2, None


def _bilinear(delta: Tensor, A: Tensor) -> Coefficients:
    z = delta * A
    return (1 + z / 2) / (1 - z / 2), delta / (1 - z / 2), None


def _poly(delta: Tensor, A: Tensor) -> Coefficients:
    e, phi1, phi2 = phi_functions(delta * A, 2)
    return e, delta * phi1 + delta**2 * phi2 / 2, None


def _highorder(delta: Tensor, A: Tensor) -> Coefficients:
    e, phi1, phi2, phi3 = phi_functions(delta * A, 3)
    return e, delta * phi1 + delta**2 * phi2 + delta**3 * phi3 / 2, None


def _rk4(delta: Tensor, A: Tensor) -> Coefficients:
    # The polynomial changes sign at z = −2.785, so it may be used for |z| ≤ 1 alone. Beyond, the sub-step in
    # which z reaches −1 takes it and the rest of the step is exact: e^{z+1}(5/8)/|z| + (1 − e^{z+1})/|z|,
    # continuous at −1.
    z = delta * A
    e = torch.exp(z)
    is_small = z >= -1
    small = torch.where(is_small, z, torch.zeros_like(z))
    large = torch.where(is_small, torch.full_like(z, -2.0), z)
    polynomial = 1 + small / 2 + small**2 / 6 + small**3 / 24
    beyond = (0.375 * math.e * torch.exp(large) - 1) / large
    return e, delta * torch.where(is_small, polynomial, beyond), None


def _zoh_exact(delta: Tensor, A: Tensor) -> Coefficients:
    e, phi1 = phi_functions(delta * A, 1)
    return e, delta * phi1, None


def _foh_exact(delta: Tensor, A: Tensor) -> Coefficients:
    e, phi1, phi2 = phi_functions(delta * A, 2)
    return e, delta * phi2, delta * (phi1 - phi2)


def _tustin(delta: Tensor, A: Tensor) -> Coefficients:
    z = delta * A
    half = 0.5 * delta / (1 - z / 2)
    return (1 + z / 2) / (1 - z / 2), half, half


def _trapezoid(delta: Tensor, A: Tensor) -> Coefficients:
    e = torch.exp(delta * A)
    return e, 0.5 * delta, 0.5 * delta * e


_METHODS = (
    Discretization("zoh", 0, 1, 1, True, _zoh, "e^z, Δ"),
    Discretization("foh", 1, 1, 0, True, _foh, "e^z, Δ²φ2"),
    Discretization("bilinear", 2, 1, 1, True, _bilinear, "(1+z/2)/(1−z/2), Δ/(1−z/2)"),
    Discretization("poly", 3, 1, 1, True, _poly, "e^z, Δφ1 + ½Δ²φ2"),
    Discretization("highorder", 4, 1, 1, True, _highorder, "e^z, Δφ1 + Δ²φ2 + ½Δ³φ3"),
    Discretization("rk4", 5, 1, 1, True, _rk4, "e^z, Δ(1+z/2+z²/6+z³/24) for |z| ≤ 1, exact hold beyond"),
    Discretization("zoh_exact", 6, 1, 1, False, _zoh_exact, "e^z, Δφ1"),
    Discretization("foh_exact", 7, 2, 2, False, _foh_exact, "e^z, Δφ2, Δ(φ1−φ2)"),
    Discretization("tustin", 8, 2, 2, False, _tustin, "(1+z/2)/(1−z/2), ½Δ/(1−z/2), ½Δ/(1−z/2)"),
    Discretization("trapezoid", 9, 2, 2, False, _trapezoid, "e^z, ½Δ, ½Δe^z"),
)

DISCRETIZATIONS: dict[str, Discretization] = {method.name: method for method in _METHODS}
"""Every discretization by name. `zoh` is Mamba's own and the one that published weights fit."""


def get_discretization(name: str) -> Discretization:
    """Return the method called `name`; raise ValueError with the known names otherwise."""
    if name not in DISCRETIZATIONS:
        raise ValueError(f"discretization must be one of {', '.join(DISCRETIZATIONS)}; got {name!r}")
    return DISCRETIZATIONS[name]
