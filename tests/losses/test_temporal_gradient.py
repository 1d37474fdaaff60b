"""Temporal gradient matching: sign, masks, strides and chunk borders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from videomamba_depth.losses import mean_of_sums, temporal_gradient_loss, temporal_gradient_sums
from videomamba_depth.losses.masked import HUBER_WIDTH


def ramp(slopes: list[float]) -> Tensor:
    """Return a clip [1,len+1,1,1,2] whose first pixel moves by `slopes` and whose second stays at 2."""
    values = torch.tensor([0.0, *slopes], dtype=torch.float64).cumsum(0)
    return torch.stack([values, torch.full_like(values, 2.0)], dim=-1).view(1, -1, 1, 1, 2)


def full(clip: Tensor, value: bool = True) -> Tensor:
    return torch.full_like(clip, value, dtype=torch.bool)


ROUNDED = HUBER_WIDTH / 2  # what a difference loses beyond the rounded-off part of the penalty
UNIT = {"scale_shift": (torch.ones(1), torch.zeros(1)), "spread": torch.ones(1)}


def test_hand_computed_value_and_strides() -> None:
    prediction, target = ramp([1.0, -1.0, 2.0]), ramp([1.0, 1.0, 0.0])
    # Stride 1: differences 0, −2, 2 at the first pixel and 0 at the second: 4/6. Stride 2: −2, 0: 2/4.
    assert temporal_gradient_loss(prediction, target, full(target), **UNIT).item() == pytest.approx(
        (4 - 2 * ROUNDED) / 6
    )
    both = temporal_gradient_loss(prediction, target, full(target), (1, 2), **UNIT)
    assert both.item() == pytest.approx(0.5 * (4 - 2 * ROUNDED) / 6 + 0.5 * (2 - ROUNDED) / 4)


def test_a_change_of_the_wrong_sign_is_seen() -> None:
    target = ramp([1.0, 1.0])
    wrong = ramp([-1.0, -1.0])  # |Δp| = |Δy| everywhere: the published absolute form scores this 0
    assert temporal_gradient_loss(wrong, target, full(target), **UNIT).item() == pytest.approx(1.0 - ROUNDED / 2)


def test_masked_pixels_do_not_matter_and_are_not_counted() -> None:
    prediction, target = ramp([1.0, -1.0, 2.0]), ramp([1.0, 1.0, 0.0])
    valid = full(target)
    valid[:, 1, ..., 1] = False
    poisoned = torch.where(valid, prediction, torch.nan).requires_grad_()
    loss = temporal_gradient_loss(poisoned, torch.where(valid, target, torch.inf), valid, **UNIT)
    loss.backward()
    assert loss.item() == pytest.approx((4 - 2 * ROUNDED) / 4)  # two of six pairs touch the masked pixel
    assert torch.isfinite(poisoned.grad).all()
    assert poisoned.grad[~valid].eq(0).all()


def test_a_pixel_counts_where_it_was_static_over_the_whole_stride() -> None:
    """Static at frames 1 and 3 but not at 2: of both pairs of stride 2, none; of the three of stride 1, two."""
    prediction, target = ramp([1.0, 1.0, 1.0]), ramp([5.0, 5.0, 5.0])
    static = full(target, False)
    static[:, (1, 3), ..., 0] = True
    sums = temporal_gradient_sums(prediction, target, full(target), (1, 2), static=static, **UNIT)
    assert sums.counts.tolist() == [2, 0]
    # The target's own change is not asked for there: the prediction should not change, and does so by 1 twice.
    assert sums.numerators.tolist() == pytest.approx([(2 - 2 * ROUNDED) / 2, 0])
    static[:, 2, ..., 0] = True
    sums = temporal_gradient_sums(prediction, target, full(target), (1, 2), static=static, **UNIT)
    assert sums.counts.tolist() == [3, 2]


def test_one_alignment_for_the_clip() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(1, 3, 1, 6, 6, generator=generator)
    flicker = target * torch.tensor([1.0, 1.2, 1.0]).view(1, 3, 1, 1, 1)
    assert temporal_gradient_loss(3 * target - 1, target, full(target)).item() < 1e-5
    assert temporal_gradient_loss(flicker, target, full(target)).item() > 0.05


@pytest.mark.parametrize("num_frames", [1, 2])
def test_nothing_to_compare_gives_zero_and_gradient_zero(num_frames: int) -> None:
    prediction = torch.full((1, num_frames, 1, 4, 4), float("nan"), requires_grad=True)
    valid = full(prediction, num_frames == 1)
    clean = prediction if num_frames == 2 else prediction.detach().nan_to_num(1.0).requires_grad_()
    loss = temporal_gradient_loss(clean, clean.detach(), valid, (1, 3))
    loss.backward()
    assert loss.item() == 0.0
    assert clean.grad.eq(0).all()


def test_chunks_with_the_last_frame_prepended_see_every_pair_once() -> None:
    generator = torch.Generator().manual_seed(1)
    prediction = torch.rand(1, 6, 1, 4, 4, generator=generator)
    target = torch.rand(1, 6, 1, 4, 4, generator=generator)
    whole = temporal_gradient_sums(prediction, target, full(target), **UNIT)
    chunks = [(0, 3), (2, 6)]
    parts = [
        temporal_gradient_sums(prediction[:, a:b], target[:, a:b], full(target)[:, a:b], **UNIT) for a, b in chunks
    ]
    count = sum(part.counts for part in parts)
    assert torch.equal(count, whole.counts)
    joined = sum(mean_of_sums(part.numerators, count) for part in parts)
    torch.testing.assert_close(joined, mean_of_sums(*whole))


def test_gradcheck_in_float64() -> None:
    generator = torch.Generator().manual_seed(2)
    prediction = torch.rand(1, 4, 1, 2, 3, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.rand(1, 4, 1, 2, 3, generator=generator, dtype=torch.float64)
    valid = target > 0.2

    def loss(p: Tensor) -> Tensor:
        return temporal_gradient_loss(p, target, valid, (1, 2), **UNIT)

    assert torch.autograd.gradcheck(loss, (prediction,))


def test_wrong_strides_are_refused() -> None:
    clip = ramp([1.0])
    with pytest.raises(ValueError, match="strides must be"):
        temporal_gradient_loss(clip, clip, full(clip), (0,))
