"""The discretizations of ../discretization.py in Triton: coefficients, and their derivatives.

To add one: a branch in `core`, in `coefficients` and in `coefficient_gradients`, under the index of its method.
"""

# mypy: ignore-errors
# (The arguments of Triton kernels have no Python types.)

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
ZOH: tl.constexpr = tl.constexpr(0)
FOH: tl.constexpr = tl.constexpr(1)
BILINEAR: tl.constexpr = tl.constexpr(2)
POLY: tl.constexpr = tl.constexpr(3)
HIGHORDER: tl.constexpr = tl.constexpr(4)
RK4: tl.constexpr = tl.constexpr(5)
ZOH_EXACT: tl.constexpr = tl.constexpr(6)
FOH_EXACT: tl.constexpr = tl.constexpr(7)
TUSTIN: tl.constexpr = tl.constexpr(8)
TRAPEZOID: tl.constexpr = tl.constexpr(9)
RK4_SCALE: tl.constexpr = tl.constexpr(1.0193556856721417)  # 3e/8, see _rk4 in ../discretization.py


@triton.jit
def exp(x):
    return tl.exp2(x * LOG2E)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + exp(-x))


@triton.jit
def softplus(x):
    """max(x, 0) + log(1 + e), e = exp(-|x|), the logarithm as 2 artanh(e / (2 + e)): exact for tiny e too."""
    e = exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    terms: tl.constexpr = 17 if x.dtype == tl.float64 else 8
    p = tl.zeros_like(x)
    for k in tl.static_range(terms):
        p = p * q + 1.0 / (2 * (terms - k) - 1)
    return tl.maximum(x, 0.0) + 2.0 * s * p


@triton.jit
def phi_functions(z, e, ORDER: tl.constexpr):
    """Return (φ1, φ2, φ3, φ4), those beyond ORDER being φ_ORDER; see ../phi.py for the method."""
    wide: tl.constexpr = z.dtype == tl.float64
    degree: tl.constexpr = 16 if wide else (10 if ORDER == 4 else 8)
    limit: tl.constexpr = 2.0 if (ORDER == 4 and not wide) else 1.0
    is_small = tl.abs(z) <= limit
    small = tl.where(is_small, z, 0.0)
    large = tl.where(is_small, 1.0, z)

    # φ_ORDER = Σ z^k / (k + ORDER)!, by Horner with 1 / (k + ORDER) taken out step by step, as constants: division
    # takes many instructions.
    top = tl.zeros_like(z) + 1.0
    for k in tl.static_range(degree):
        top = 1.0 + top * (small * (1.0 / (degree - k + ORDER)))
    if ORDER == 1:
        down1 = top
        down2 = top
        down3 = top
        down4 = top
    elif ORDER == 2:
        down2 = top * 0.5
        down1 = small * down2 + 1.0
        down3 = down2
        down4 = down2
    elif ORDER == 3:
        down3 = top * (1.0 / 6.0)
        down2 = small * down3 + 0.5
        down1 = small * down2 + 1.0
        down4 = down3
    else:
        down4 = top * (1.0 / 24.0)
        down3 = small * down4 + (1.0 / 6.0)
        down2 = small * down3 + 0.5
        down1 = small * down2 + 1.0
    inverse = 1.0 / large
    up1 = (e - 1.0) * inverse
    up2 = (up1 - 1.0) * inverse
    up3 = (up2 - 0.5) * inverse
    up4 = (up3 - 1.0 / 6.0) * inverse
    return (
        tl.where(is_small, down1, up1),
        tl.where(is_small, down2, up2),
        tl.where(is_small, down3, up3),
        tl.where(is_small, down4, up4),
    )


@triton.jit
def core(delta, A, METHOD: tl.constexpr):
    """The expensive part: e^z, or 1 / (1 − z/2)."""
    if METHOD == BILINEAR or METHOD == TUSTIN:  # noqa: SIM108, SIM109 (Triton knows neither)
        result = 1.0 / (1.0 - 0.5 * delta * A)
    else:
        result = exp(delta * A)
    return result


@triton.jit
def coefficients(delta, A, e, METHOD: tl.constexpr, SHARED: tl.constexpr):
    """Return (a, c0, c1) from delta, A and their `core`.

    SHARED: `coefficient_gradients` follows, so take the φ functions that it needs; the compiler merges the two.
    """
    z = delta * A
    more: tl.constexpr = 1 if SHARED else 0
    a = e
    c0 = delta
    c1 = tl.zeros_like(delta)
    if METHOD == BILINEAR:
        a = 1.0 + z * e
        c0 = delta * e
    elif METHOD == TUSTIN:
        a = 1.0 + z * e
        c0 = 0.5 * delta * e
        c1 = c0
    elif METHOD == FOH:
        _, phi2, _, _ = phi_functions(z, e, 2 + more)
        c0 = delta * delta * phi2
    elif METHOD == POLY:
        phi1, phi2, _, _ = phi_functions(z, e, 2 + more)
        c0 = delta * (phi1 + 0.5 * delta * phi2)
    elif METHOD == HIGHORDER:
        phi1, phi2, phi3, _ = phi_functions(z, e, 3 + more)
        c0 = delta * (phi1 + delta * (phi2 + 0.5 * delta * phi3))
    elif METHOD == RK4:
        is_small = z >= -1.0
        polynomial = 1.0 + z * (0.5 + z * (1.0 / 6.0 + z * (1.0 / 24.0)))
        beyond = (RK4_SCALE * e - 1.0) / tl.where(is_small, -1.0, z)
        c0 = delta * tl.where(is_small, polynomial, beyond)
    elif METHOD == ZOH_EXACT:
        phi1, _, _, _ = phi_functions(z, e, 1 + more)
        c0 = delta * phi1
    elif METHOD == FOH_EXACT:
        phi1, phi2, _, _ = phi_functions(z, e, 2 + more)
        c0 = delta * phi2
        c1 = delta * (phi1 - phi2)
    elif METHOD == TRAPEZOID:
        c0 = 0.5 * delta
        c1 = c0 * e
    return a, c0, c1


@triton.jit
def coefficient_gradients(delta, A, e, METHOD: tl.constexpr):
    """Return derivatives of a, c0 and c1 by delta and by A, in this order."""
    z = delta * A
    d2 = delta * delta
    a_delta = A * e
    a_A = delta * e
    c0_delta = tl.zeros_like(delta) + 1.0
    c0_A = tl.zeros_like(delta)
    c1_delta = tl.zeros_like(delta)
    c1_A = tl.zeros_like(delta)
    if METHOD == BILINEAR or METHOD == TUSTIN:  # noqa: SIM109
        r2 = e * e
        a_delta = A * r2
        a_A = delta * r2
        if METHOD == BILINEAR:
            c0_delta = r2
            c0_A = 0.5 * d2 * r2
        else:
            c0_delta = 0.5 * r2
            c0_A = 0.25 * d2 * r2
            c1_delta = c0_delta
            c1_A = c0_A
    elif METHOD == FOH:
        phi1, phi2, phi3, _ = phi_functions(z, e, 3)
        c0_delta = delta * phi1
        c0_A = d2 * delta * (phi2 - 2.0 * phi3)
    elif METHOD == POLY:
        phi1, phi2, phi3, _ = phi_functions(z, e, 3)
        c0_delta = e + 0.5 * delta * phi1
        c0_A = d2 * (phi1 - phi2 + 0.5 * delta * (phi2 - 2.0 * phi3))
    elif METHOD == HIGHORDER:
        phi1, phi2, phi3, phi4 = phi_functions(z, e, 4)
        c0_delta = e + delta * (phi1 + 0.5 * delta * phi2)
        c0_A = d2 * (phi1 - phi2 + delta * (phi2 - 2.0 * phi3 + 0.5 * delta * (phi3 - 3.0 * phi4)))
    elif METHOD == RK4:
        is_small = z >= -1.0
        large = tl.where(is_small, -1.0, z)
        scaled = RK4_SCALE * e
        polynomial = 1.0 + z * (0.5 + z * (1.0 / 6.0 + z * (1.0 / 24.0)))
        slope = 0.5 + z * (1.0 / 3.0 + z * 0.125)
        beyond = (scaled - 1.0) / large
        c0_delta = tl.where(is_small, polynomial + z * slope, scaled)
        c0_A = d2 * tl.where(is_small, slope, (scaled - beyond) / large)
    elif METHOD == ZOH_EXACT:
        phi1, phi2, _, _ = phi_functions(z, e, 2)
        c0_delta = e
        c0_A = d2 * (phi1 - phi2)
    elif METHOD == FOH_EXACT:
        phi1, phi2, phi3, _ = phi_functions(z, e, 3)
        difference = phi1 - phi2
        slope = phi2 - 2.0 * phi3
        c0_delta = difference
        c0_A = d2 * slope
        c1_delta = e - difference
        c1_A = d2 * (difference - slope)
    elif METHOD == TRAPEZOID:
        old = 0.5 * e
        c0_delta = c0_delta * 0.5
        c1_delta = old * (1.0 + z)
        c1_A = old * d2
    return a_delta, a_A, c0_delta, c0_A, c1_delta, c1_A
