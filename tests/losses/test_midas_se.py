"""The scale-and-shift-invariant loss: hand-computed values, and every fault known from published versions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from videomamba_depth.losses import mean_of_sums, midas_se_loss, midas_se_sums, target_spread
from videomamba_depth.losses.masked import HUBER_WIDTH
from videomamba_depth.utils.metrics import CLIP_DIMS, scale_and_shift

GENERATOR_SEED = 5


def random_clip(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) + 0.5


def full(clip: Tensor, value: bool = True) -> Tensor:
    return torch.full_like(clip, value, dtype=torch.bool)


def identity(clip: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones(1, dtype=clip.dtype), torch.zeros(1, dtype=clip.dtype)


def test_hand_computed_value() -> None:
    # One row of four pixels; pinned alignment; spread of the target 0,0,4,4 is 2. R = .5, 0, 0, 1.
    target = torch.tensor([0.0, 0.0, 4.0, 4.0]).view(1, 1, 1, 1, 4)
    prediction = torch.tensor([1.0, 0.0, 4.0, 6.0]).view(1, 1, 1, 1, 4)
    assert target_spread(target, full(target)).item() == 2.0
    data = midas_se_loss(prediction, target, full(target), scale_shift=identity(target), gradient_weight=0.0)
    both = midas_se_loss(prediction, target, full(target), scale_shift=identity(target), gradient_weight=0.5)
    rounded = HUBER_WIDTH / 2  # what |r| loses beyond the rounded-off part
    assert data.item() == pytest.approx((0.5 + 1 - 2 * rounded) / 4)
    # |∂x R| = .5, 0, 1 over three pairs, half of them counted; every second pixel: .5 over one pair; then no pair.
    gradient = (0.5 + 1 - 2 * rounded) / 1.5 + (0.5 - rounded) / 0.5
    assert both.item() == pytest.approx(data.item() + 0.5 * gradient)


@pytest.mark.parametrize("vertical", [False, True])
def test_gradients_need_both_pixels_of_a_pair(vertical: bool) -> None:
    """R = 0, 1, hole, 3, 5: of the four pairs two touch the hole; of every second pixel's two, both do."""
    shape = (1, 1, 1, 5, 1) if vertical else (1, 1, 1, 1, 5)
    prediction, target = (torch.tensor(x).view(shape) for x in ([0.0, 1.0, 9.0, 3.0, 5.0], [0.0] * 5))
    valid = torch.tensor([True, True, False, True, True]).view(shape)
    spread = torch.ones(1, 1, 1, 1, 1)
    sums = midas_se_sums(prediction, target, valid, scale_shift=identity(target), gradient_weight=1.0, spread=spread)
    assert sums.counts.tolist() == [4, 1, 0, 0.5, 0]  # pixels, then half the pairs at distance 1, 2, 4, 8
    rounded = HUBER_WIDTH / 2
    assert sums.numerators.tolist() == pytest.approx([9 - 3 * rounded, 3 - 2 * rounded, 0, 5 - rounded, 0])


def test_rounding_does_not_pull_a_student_that_equals_its_teacher() -> None:
    target = random_clip(1, 2, 1, 16, 16)
    prediction = (target * (1 + 2e-7)).requires_grad_()
    midas_se_loss(prediction, target, full(target), gradient_weight=0.0).backward()
    # Under |r| every pixel would pull with 1 / (spread · count): together 1 / spread.
    assert prediction.grad.abs().sum() < 0.01 / target_spread(target, full(target)).item()


def test_affine_prediction_costs_nothing_and_units_do_not_matter() -> None:
    target = random_clip(2, 3, 1, 8, 8)
    prediction = target.roll(1, dims=-1)
    valid = full(target)
    assert midas_se_loss(0.3 * target + 7, target, valid).item() < 3e-5  # measured 6e-6
    plain = midas_se_loss(prediction, target, valid)
    scaled = midas_se_loss(prediction, 50 * target + 3, valid)
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=0)
    assert plain.item() > 0.1


def test_one_pair_per_clip_sees_scale_flicker_and_one_per_frame_does_not() -> None:
    target = random_clip(1, 4, 1, 8, 8)
    flicker = target * torch.tensor([1.0, 1.1, 0.9, 1.0]).view(1, 4, 1, 1, 1)
    assert midas_se_loss(flicker, target, full(target)).item() < 1e-4
    per_clip = scale_and_shift(flicker, target, dims=CLIP_DIMS)
    assert midas_se_loss(flicker, target, full(target), scale_shift=per_clip).item() > 0.05


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_masked_pixels_do_not_matter(poison: float) -> None:
    clean = random_clip(1, 2, 1, 6, 6)
    target, valid = clean.flip(-1), clean < 1.2
    expected_input = clean.clone().requires_grad_()
    expected = midas_se_loss(expected_input, target, valid)
    expected.backward()
    prediction = torch.where(valid, clean, torch.tensor(poison)).requires_grad_()
    loss = midas_se_loss(prediction, torch.where(valid, target, torch.tensor(poison)), valid)
    loss.backward()
    assert loss.item() == expected.item()
    assert torch.equal(prediction.grad, expected_input.grad)
    assert prediction.grad[~valid].eq(0).all()


def test_inputs_stay_unchanged() -> None:
    prediction, target = random_clip(1, 2, 1, 4, 4), random_clip(1, 2, 1, 4, 4).flip(-1)
    valid = prediction > 0.8
    before = [t.clone() for t in (prediction, target, valid)]
    midas_se_loss(prediction, target, valid)
    assert all(torch.equal(a, b) for a, b in zip(before, (prediction, target, valid), strict=True))


def test_no_valid_pixel_gives_zero_and_gradient_zero() -> None:
    prediction = torch.full((1, 2, 1, 4, 4), float("nan"), requires_grad=True)
    loss = midas_se_loss(prediction, prediction.detach(), full(prediction, False))
    loss.backward()
    assert loss.item() == 0.0
    assert prediction.grad.eq(0).all()


def test_an_invalid_frame_leaves_the_others_alone() -> None:
    prediction, target = random_clip(1, 3, 1, 6, 6), random_clip(1, 3, 1, 6, 6).flip(-1)
    valid = full(prediction)
    valid[:, 1] = False
    without = midas_se_loss(prediction[:, [0, 2]], target[:, [0, 2]], valid[:, [0, 2]])
    torch.testing.assert_close(midas_se_loss(prediction, target, valid), without)


@pytest.mark.parametrize("level", [0.0, 3.0, 1e-20])
@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-4])
def test_flat_prediction_has_finite_bounded_gradients(level: float, noise: float) -> None:
    target = random_clip(1, 2, 1, 16, 16)
    prediction = (level + noise * random_clip(1, 2, 1, 16, 16).flip(-1)).requires_grad_()
    loss = midas_se_loss(prediction, target, full(target))
    loss.backward()
    assert torch.isfinite(loss)
    # Bounded by the floor of the fit: a gain of at most std(target)/(MIN_STD·spread) ≈ 1.2e4 over 512 pixels.
    assert prediction.grad.abs().sum() < 5e4
    assert prediction.grad.abs().max() < 500


def test_flat_target_is_finite() -> None:
    prediction = random_clip(1, 1, 1, 8, 8).requires_grad_()
    loss = midas_se_loss(prediction, torch.full_like(prediction, 2.0), full(prediction))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-3)
    assert torch.isfinite(prediction.grad).all()


def test_alignment_carries_no_gradient() -> None:
    prediction = random_clip(1, 2, 1, 6, 6).requires_grad_()
    target = random_clip(1, 2, 1, 6, 6).flip(-1)
    pair = scale_and_shift(prediction, target, full(target))
    assert not any(value.requires_grad for value in pair)
    solved = torch.autograd.grad(midas_se_loss(prediction, target, full(target)), prediction)[0]
    given = torch.autograd.grad(midas_se_loss(prediction, target, full(target), scale_shift=pair), prediction)[0]
    torch.testing.assert_close(solved, given, rtol=0, atol=0)


def test_gradcheck_in_float64() -> None:
    prediction = random_clip(1, 2, 1, 3, 4, dtype=torch.float64).requires_grad_()
    target = random_clip(1, 2, 1, 3, 4, dtype=torch.float64).flip(-1)
    valid = target > 0.7
    pair = (torch.full((1,), 1.3, dtype=torch.float64), torch.full((1,), 0.2, dtype=torch.float64))

    def loss(p: Tensor) -> Tensor:
        return midas_se_loss(p, target, valid, scale_shift=pair)

    assert torch.autograd.gradcheck(loss, (prediction,))


def test_full_precision_inside_autocast() -> None:
    prediction = (random_clip(1, 2, 1, 8, 8)).bfloat16()
    target = random_clip(1, 2, 1, 8, 8).flip(-1)
    outside = midas_se_loss(prediction.float(), target, full(target))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = midas_se_loss(prediction, target, full(target))
        scale, _ = scale_and_shift(prediction, target, full(target))
    assert inside.dtype == scale.dtype == torch.float32
    assert inside.item() == outside.item()


def test_sums_of_two_halves_with_a_global_count_equal_the_whole() -> None:
    prediction, target = random_clip(2, 2, 1, 6, 6), random_clip(2, 2, 1, 6, 6).flip(-1)
    valid = random_clip(2, 2, 1, 6, 6).roll(1, -1) > 0.9
    spread = torch.ones(1)
    whole = midas_se_loss(prediction, target, valid, spread=spread)
    halves = [
        midas_se_sums(prediction[i : i + 1], target[i : i + 1], valid[i : i + 1], spread=spread) for i in range(2)
    ]
    count = halves[0].counts + halves[1].counts
    joined = mean_of_sums(halves[0].numerators, count) + mean_of_sums(halves[1].numerators, count)
    torch.testing.assert_close(joined, whole)


def test_wrong_arguments_are_refused() -> None:
    clip = random_clip(1, 2, 1, 4, 4)
    with pytest.raises(ValueError, match="target must have the prediction's shape"):
        midas_se_loss(clip, clip[:, :1], full(clip))
    with pytest.raises(TypeError, match="valid must be a bool mask"):
        midas_se_loss(clip, clip, clip)
