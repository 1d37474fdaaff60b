"""The loss on single pictures: what each term is blind to and what it sees."""

import pytest
import torch
from torch import Tensor

from videomamba_depth.losses.still_depth import TARGET_MEAN, still_depth_losses


def target(height: int = 12, width: int = 16) -> Tensor:
    """Return a ramp with a box in front of it, inverse depth in 1/m [1,1,h,w]."""
    values = torch.linspace(0.1, 1.0, height, dtype=torch.float64)[:, None].repeat(1, width)
    values[3:9, 5:10] = 1.5
    return values[None, None]


def scaled(y: Tensor) -> Tensor:
    return y * (TARGET_MEAN / y.mean())


def test_nothing_is_lost_on_the_truth_of_whatever_unit() -> None:
    y = target()
    for unit in (1.0, 0.02, 50.0):
        assert all(term < 1e-12 for term in still_depth_losses(scaled(y), unit * y).values())


def test_scale_and_shift_cost_in_the_relative_term_alone() -> None:
    y = target()
    terms = still_depth_losses(0.5 * scaled(y) + 2.0, y)
    assert terms["relative"] > 0.2
    assert terms["affine"] < 1e-12
    assert terms["gradient"] < 1e-12


def test_the_relative_term_by_hand() -> None:
    y = torch.tensor([[[[1.0, 5.0], [1.0, 5.0]]]], dtype=torch.float64)  # already of mean 3
    terms = still_depth_losses(y + torch.tensor([0.5, -1.0], dtype=torch.float64), y)
    assert terms["relative"].item() == pytest.approx((0.5 / 1.3 + 1.0 / 5.3) / 2)


def test_a_blurred_edge_costs_more_than_the_same_error_on_a_slope() -> None:
    y = target()
    p = scaled(y)
    blurred, tilted = p.clone(), p.clone()
    blurred[..., 3:9, 4] = 0.5 * (p[..., 3:9, 4] + p[..., 3:9, 5])
    change = (blurred - p).abs().sum() / 6
    tilted[..., 3:9, 14] += change
    edge, slope = still_depth_losses(blurred, y)["edge"], still_depth_losses(tilted, y)["edge"]
    assert edge > 1.2 * slope


def test_a_flat_wall_gives_no_more_than_a_bounded_loss_and_gradient() -> None:
    y = torch.full((2, 1, 8, 8), 0.3) + 1e-4 * torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    p = torch.full_like(y, TARGET_MEAN).requires_grad_()
    total = sum(still_depth_losses(p, y).values())
    total.backward()
    assert total < 1e-2
    assert p.grad is not None
    assert torch.isfinite(p.grad).all()


def test_pictures_do_not_mix() -> None:
    a, b = target(), target().flip(-2) + 0.2
    pa, pb = scaled(a) * 1.3, scaled(b) + 0.4
    together = still_depth_losses(torch.cat([pa, pb]), torch.cat([a, b]))
    alone = [still_depth_losses(pa, a), still_depth_losses(pb, b)]
    for name, value in together.items():
        torch.testing.assert_close(value, 0.5 * (alone[0][name] + alone[1][name]), rtol=1e-9, atol=0)
