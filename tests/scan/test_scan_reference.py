"""The reference is the definition: hand-computed values, gradients, order of accuracy, chunks, contracts."""

from __future__ import annotations

import decimal
import math

import pytest
import torch
from scan_cases import METHODS, make_case, relative_rms, run, split_run, without_padding
from torch import Tensor

from selective_scan import DISCRETIZATIONS, selective_scan, selective_scan_ref, state_shape, unpack_state
from selective_scan.phi import phi_functions

DOUBLE = torch.float64
LONG = ("zoh", "bilinear", "tustin")  # the others take seconds each


def two_steps(method: str, delta: float, A: float, **options: Tensor) -> list[float]:
    """h_1 and h_2 of a scalar system from h_0 = 0, with u = (1, 2) and B = (1, 3)."""
    column = torch.tensor([1.0, 2.0], dtype=DOUBLE).view(1, 2, 1)
    B = torch.tensor([1.0, 3.0], dtype=DOUBLE).view(1, 2, 1)
    ones = torch.ones(1, 2, 1, dtype=DOUBLE)
    y, _, _ = selective_scan_ref(
        column,
        delta * ones,
        torch.tensor([[A]], dtype=DOUBLE),
        B,
        ones,
        delta_softplus=False,
        discretization=method,
        **options,
    )
    return y.flatten().tolist()


@pytest.mark.parametrize(
    ("method", "delta", "A", "expected"),
    [
        ("zoh", math.log(2), -1.0, [math.log(2), 6.5 * math.log(2)]),
        ("zoh_exact", math.log(2), -1.0, [0.5, 3.25]),
        ("bilinear", 1.0, -2.0, [0.5, 3.0]),
        ("tustin", 1.0, -2.0, [0.25, 0.25 + 1.5]),
        ("rk4", 1.0, -1.0, [0.625, 0.625 / math.e + 3.75]),
        ("trapezoid", math.log(2), -1.0, [0.5 * math.log(2), 3.5 * math.log(2)]),
        # φ2(−1) = 1/e and φ1(−1) = 1 − 1/e, φ3(−1) = 1/2 − 1/e
        ("foh", 1.0, -1.0, [1 / math.e, math.exp(-2) + 6 / math.e]),
        ("poly", 1.0, -1.0, [1 - 0.5 / math.e, (1 - 0.5 / math.e) * (1 / math.e + 6)]),
        ("highorder", 1.0, -1.0, [1.25 - 0.5 / math.e, (1.25 - 0.5 / math.e) * (1 / math.e + 6)]),
        ("foh_exact", 1.0, -1.0, [1 / math.e, math.exp(-2) + 6 / math.e + (1 - 2 / math.e)]),
    ],
)
def test_two_steps_by_hand(method: str, delta: float, A: float, expected: list[float]) -> None:
    assert two_steps(method, delta, A) == pytest.approx(expected, rel=1e-14)


def test_fused_parts_by_hand() -> None:
    one = torch.ones(1, 1, 1, dtype=DOUBLE)
    # Δ = softplus(−1 + 1) = log 2, h = 3 log 2, y = (2·3 log 2 + 5·3)·silu(1)
    y, state, _ = selective_scan_ref(
        3 * one, -one, -one[0], one, 2 * one, 5 * one[0, 0], one, one[0, 0], discretization="zoh"
    )
    assert state.item() == pytest.approx(3 * math.log(2), rel=1e-14)
    assert y.item() == pytest.approx((6 * math.log(2) + 15) / (1 + math.exp(-1)), rel=1e-14)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_phi_against_fifty_digits(order: int) -> None:
    decimal.getcontext().prec = 60
    z = torch.cat([torch.tensor([0.0, 0.5, 1.0, 3.0]).double(), -torch.logspace(-8, 2, 81, dtype=DOUBLE)])
    got = phi_functions(z, order)[order]
    for x, value in zip(z.tolist(), got.tolist(), strict=True):
        exact, argument = decimal.Decimal(1) / math.factorial(order), decimal.Decimal(x)
        if x != 0:
            exact = argument.exp()
            for k in range(order):
                exact = (exact - decimal.Decimal(1) / math.factorial(k)) / argument
        assert value == pytest.approx(float(exact), rel=2e-15)  # worst seen 6e-16


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck_from_tiny_to_large_steps(method: str) -> None:
    """Δ from 1e-7 to 3 and A to −16: z on both sides of where formulas change branch."""
    generator = torch.Generator().manual_seed(1)
    A = torch.tensor([[-16.0, -1.1], [-0.3, -2.7]], dtype=DOUBLE)
    step_sizes = torch.tensor([[[1e-7, 3.0], [0.3, 1e-4], [1.0, 0.02]]], dtype=DOUBLE)
    case = make_case(1, 3, 2, 2, method)
    bias = torch.randn(2, generator=generator, dtype=DOUBLE)
    arguments = case.arguments | {
        "A": A,
        "delta": step_sizes.expm1().log() - bias,
        "delta_bias": bias,
    }
    _gradcheck(arguments, method, delta_softplus=True)
    # Without softplus the tiny step's own derivative is not hidden behind a factor of 1e-7.
    _gradcheck(arguments | {"delta": step_sizes, "delta_bias": torch.zeros(2).double()}, method, False)


@pytest.mark.parametrize(
    "method",
    [name if name in LONG else pytest.param(name, marks=pytest.mark.slow) for name in METHODS],
)
def test_gradcheck_long_with_decays_near_one_and_zero(method: str) -> None:
    case = make_case(1, 256, 2, 1, method)
    step_sizes = torch.tensor([1e-5, 4.0], dtype=DOUBLE).expand(1, 256, 2).clone()
    arguments = case.arguments | {
        "A": torch.tensor([[-1.0], [-9.0]], dtype=DOUBLE),
        "delta": step_sizes,
        "delta_bias": torch.zeros(2).double(),
    }
    _gradcheck(arguments, method, False, fast_mode=True)


def _gradcheck(arguments: dict[str, Tensor], method: str, delta_softplus: bool, fast_mode: bool = False) -> None:
    names = list(arguments)
    leaves = tuple(arguments[name].clone().requires_grad_() for name in names)

    def scan(*values: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(names, values, strict=True))
        options = {"delta_softplus": delta_softplus, "discretization": method}
        y, state, summary = selective_scan_ref(**named, **options, with_summary=not fast_mode)  # type: ignore[arg-type]
        return (y, state) if fast_mode else (y, state, summary)  # long: fewer passes

    assert torch.autograd.gradcheck(
        scan, leaves, eps=1e-6, atol=2e-6, rtol=1e-4, fast_mode=fast_mode, check_undefined_grad=False
    )


def driven_decay_error(method: str, steps: int) -> float:
    """Error at t = 1 of h' = −2 h + (1 + t) cos 3t, h(0) = 1, where B = 1 + t and u = cos 3t."""
    t = torch.linspace(0, 1, steps + 1, dtype=DOUBLE)
    u, B = torch.cos(3 * t).view(1, -1, 1), (1 + t).view(1, -1, 1)
    state = without_padding(torch.zeros(*state_shape(1, 1, 1, method), dtype=DOUBLE), method)
    state[:, 0, 0] = 1
    if DISCRETIZATIONS[method].taps == 2:
        state[:, 0, 1], state[:, 1, 0] = u[0, 0, 0], B[0, 0, 0]
    ones = torch.ones(1, steps, 1, dtype=DOUBLE)
    _, final, _ = selective_scan_ref(
        u[:, 1:],
        ones / steps,
        torch.tensor([[-2.0]], dtype=DOUBLE),
        B[:, 1:],
        ones,
        delta_softplus=False,
        initial_state=state,
        discretization=method,
    )
    h, _, _ = unpack_state(final, DISCRETIZATIONS[method].taps)
    return abs(h.item() - exact_driven_decay())


def exact_driven_decay() -> float:
    """e^{−2} + ∫_0^1 e^{−2(1−s)} (1 + s) cos 3s ds, by the antiderivative of e^{(2+3i)s}(1 + s)."""
    rate = complex(2, 3)

    def antiderivative(s: float) -> complex:
        e = complex(math.cos(3 * s), math.sin(3 * s)) * math.exp(2 * s)
        return e * ((1 + s) / rate - 1 / rate**2)

    return math.exp(-2) * (1 + (antiderivative(1) - antiderivative(0)).real)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_accuracy_is_the_tables(method: str) -> None:
    order = math.log2(driven_decay_error(method, 256) / driven_decay_error(method, 512))
    assert order == pytest.approx(DISCRETIZATIONS[method].order, abs=0.05)


def test_rk4_is_continuous_and_never_changes_sign() -> None:
    z = -torch.linspace(0.5, 40, 4000, dtype=DOUBLE).view(-1, 1)
    _, c0, _ = DISCRETIZATIONS["rk4"].coefficients(torch.ones(4000, 1).double(), z)
    assert (c0 > 0).all()
    assert c0.diff(dim=0).abs().max() < 0.01
    at_switch = torch.tensor([[-1 - 1e-12], [-1 + 1e-12]], dtype=DOUBLE)
    _, c0, _ = DISCRETIZATIONS["rk4"].coefficients(torch.ones(2, 1).double(), at_switch)
    assert c0.diff(dim=0).abs().item() < 1e-11


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (DOUBLE, 1e-10)])
def test_chunks_equal_the_whole(method: str, dtype: torch.dtype, tolerance: float) -> None:
    case = make_case(2, 7, 3, 2, method).to(dtype)
    whole = run(case, "reference")
    for name, x in split_run(case, [1, 3, 2, 1], "reference").items():
        assert relative_rms(x, whole[name]) <= tolerance, name


def test_contract_violations_name_the_argument() -> None:
    good = make_case(2, 3, 4, 2).arguments
    for name, bad, message in [
        ("u", good["u"][:, :0], "L ≥ 1"),
        ("delta", good["delta"][:, :2], "delta must have shape"),
        ("B", good["B"][..., :1], "B must have shape"),
        ("A", good["A"][:3], "A must have shape"),
        ("initial_state", good["initial_state"][:1], "initial_state must have shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            selective_scan(**good | {name: bad})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="C must be"):
        selective_scan(**good | {"C": good["C"].long()})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="discretization must be one of zoh"):
        selective_scan(**good, discretization="euler")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="initial_state must have shape"):
        selective_scan(**good, discretization="tustin")  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_the_summary_is_empty_unless_asked_for_and_changes_nothing_else(backend: str) -> None:
    case = make_case(3, 4, 18, 4).to(torch.float32)
    plain = selective_scan(**case.arguments, backend=backend)  # type: ignore[arg-type]
    asked = selective_scan(**case.arguments, backend=backend, with_summary=True)  # type: ignore[arg-type]
    assert torch.equal(plain.y, asked.y)
    assert torch.equal(plain.state, asked.state)
    assert (plain.summary.shape, asked.summary.shape) == ((0,), (3, 4, 4))
