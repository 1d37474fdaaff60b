"""State smoothing: static cells only, no gain from shrinking the state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from videomamba_depth.losses import mean_of_sums, state_smoothness_loss, state_smoothness_sums, static_cells


def random_summary(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def all_static(num_frames: int, size: int = 8) -> Tensor:
    static = torch.ones(1, num_frames, 1, size, size, dtype=torch.bool)
    static[:, 0] = False
    return static


def test_hand_computed_value() -> None:
    # One channel, two cells: ±10 in frame 0, then +1 on both. Spatial variance 100; change²/variance = 1/100.
    summary = torch.tensor([[-10.0, 10.0], [-9.0, 11.0]], dtype=torch.float64).view(1, 2, 1, 1, 2)
    loss = state_smoothness_loss([summary], all_static(2))
    assert loss.item() == pytest.approx(0.01, rel=2e-3)  # the documented floor adds 0.1 %
    half = torch.ones(1, 2, 1, 8, 8, dtype=torch.bool)
    half[..., :4] = False
    moved = summary.clone()
    moved[:, 1, :, :, 0] += 100.0
    variance = 0.5 * (100 + (moved[0, 1] - moved[0, 1].mean()).square().mean().item())
    assert state_smoothness_loss([moved], half).item() == pytest.approx(1 / variance, rel=1e-2)


def test_a_cell_is_static_only_when_all_its_pixels_are() -> None:
    static = torch.ones(1, 1, 1, 6, 6, dtype=torch.bool)
    static[0, 0, 0, 5, 0] = False
    cells = static_cells(static, 2, 2)
    assert cells.flatten().tolist() == [True, True, False, True]
    assert static_cells(static, 4, 4).sum() == 15  # sizes that do not divide: windows overlap, none is skipped


def test_neither_scaling_nor_offset_pays() -> None:
    summary = random_summary(1, 4, 3, 4, 4)
    static = all_static(4)
    plain = state_smoothness_loss([summary], static).item()
    assert state_smoothness_loss([0.1 * summary], static).item() == pytest.approx(plain, rel=1e-3)
    gain = torch.ones((), dtype=torch.float64, requires_grad=True)
    state_smoothness_loss([gain * summary], static).backward()
    assert abs(gain.grad.item()) < 1e-3 * plain
    assert state_smoothness_loss([summary + 1.0], static).item() == pytest.approx(plain, rel=3e-3)


def test_moving_cells_get_no_penalty_for_changing() -> None:
    summary = random_summary(1, 3, 2, 2, 2).requires_grad_()
    static = all_static(3)
    static[..., :4, :4] = False
    sums = state_smoothness_sums([summary], static)
    assert sums.counts.tolist() == [2 * 2 * 3]
    frozen = summary.detach()[:, :1].expand(-1, 3, -1, -1, -1).clone()
    frozen[:, 1:, :, 0, 0] += 1.0
    assert state_smoothness_loss([frozen], static).item() == 0.0


def test_nothing_static_or_one_frame_gives_zero_and_gradient_zero() -> None:
    for num_frames, static in ((3, torch.zeros(1, 3, 1, 8, 8, dtype=torch.bool)), (1, all_static(1))):
        summary = random_summary(1, num_frames, 2, 4, 4).requires_grad_()
        loss = state_smoothness_loss([summary, summary * 2], static)
        loss.backward()
        assert loss.item() == 0.0
        assert summary.grad.eq(0).all()


def test_zero_and_constant_states_have_finite_gradients() -> None:
    for value in (0.0, 3.0):
        summary = torch.full((1, 3, 2, 4, 4), value, requires_grad=True)
        loss = state_smoothness_loss([summary], all_static(3))
        loss.backward()
        assert loss.item() == 0.0
        assert torch.isfinite(summary.grad).all()


def test_single_cell_map_is_finite() -> None:
    summary = random_summary(1, 3, 2, 1, 1).requires_grad_()
    loss = state_smoothness_loss([summary], all_static(3))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(summary.grad).all()


def test_scales_weigh_the_same_whatever_their_size() -> None:
    fine, coarse = random_summary(1, 3, 2, 8, 8), random_summary(1, 3, 2, 2, 2)
    static = all_static(3)
    joint = state_smoothness_loss([fine, coarse], static)
    alone = [state_smoothness_loss([s], static) for s in (fine, coarse)]
    torch.testing.assert_close(joint, (alone[0] + alone[1]) / 2)


def test_gradcheck_and_precision() -> None:
    summary = random_summary(1, 3, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: state_smoothness_loss([s], all_static(3)), (summary,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = state_smoothness_loss([summary.detach().bfloat16()], all_static(3))
    assert loss.dtype == torch.float32
    assert mean_of_sums(torch.zeros(2), torch.zeros(2)).item() == 0.0


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"summaries\[0\] must be"):
        state_smoothness_loss([random_summary(1, 2, 2, 4, 4)], all_static(3))
    with pytest.raises(ValueError, match="per scale; got none"):
        state_smoothness_loss([], all_static(3))
