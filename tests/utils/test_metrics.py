"""Alignment by scale and shift: every form against `lstsq`, far from zero, masked, and where nothing determines it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from videomamba_depth.flow.frame_view import mapped
from videomamba_depth.utils.metrics import (
    CLIP_DIMS,
    clip_scale_and_shift,
    robust_scale_and_shift,
    scale_and_shift,
)


def random_clip(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype) + 0.5


def by_lstsq(pred: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    center = float(pred.mean())  # lstsq squares the condition of what is far from zero
    system = np.stack([pred.astype(np.float64) - center, np.ones(pred.size)], 1)
    scale, shift = np.linalg.lstsq(system, target, rcond=None)[0]
    return scale, shift - center * scale


@pytest.mark.parametrize(
    ("shape", "dims", "pairs"),
    [
        ((2, 3, 1, 5, 7), (-2, -1), (2, 3, 1, 1, 1)),
        ((2, 3, 1, 5, 7), CLIP_DIMS, (2, 1, 1, 1, 1)),
        ((2, 5, 7), (-2, -1), (2, 1, 1)),
        ((5, 7), (-2, -1), (1, 1)),
    ],
)
def test_recovers_the_affine_map_of_every_element_of_the_batch(
    shape: tuple[int, ...], dims: tuple[int, ...], pairs: tuple[int, ...]
) -> None:
    pred = random_clip(*shape)
    scale, shift = scale_and_shift(pred, 2.5 * pred - 4.0, dims=dims)
    assert scale.dtype == torch.float32
    # Measured 1e-6; the fit is centered, so the offset costs no digits.
    torch.testing.assert_close(scale, torch.full(pairs, 2.5), rtol=3e-6, atol=0)
    torch.testing.assert_close(shift, torch.full(pairs, -4.0), rtol=3e-6, atol=0)


def test_equals_lstsq_under_a_mask_and_never_reads_beyond_it() -> None:
    pred = random_clip(1, 2, 1, 6, 6, dtype=torch.float64)
    target = pred.flip(-1) * 3 + pred.square()
    mask = random_clip(1, 2, 1, 6, 6).flip(1) > 0.9
    expected = by_lstsq(pred[mask].numpy(), target[mask].numpy())
    poisoned = torch.where(mask, pred, torch.nan)
    scale, shift = scale_and_shift(poisoned, torch.where(mask, target, torch.inf), mask, CLIP_DIMS)
    assert scale.dtype == torch.float64
    assert (scale.item(), shift.item()) == pytest.approx(expected, rel=1e-10)
    assert clip_scale_and_shift(poisoned[:, :, 0][0], target[:, :, 0][0], mask[:, :, 0][0]) == pytest.approx(
        expected, rel=1e-10
    )


def test_keeps_its_digits_far_from_zero() -> None:
    pred = random_clip(1, 1, 1, 16, 16) + 100.0
    scale, _ = scale_and_shift(pred, 2 * (pred - 100.0))
    torch.testing.assert_close(scale.flatten(), torch.tensor([2.0]), rtol=1e-4, atol=0)


def test_nothing_to_fit() -> None:
    pred = torch.stack([torch.full((4, 4), 2.0), random_clip(4, 4)])
    target = random_clip(2, 4, 4).flip(-1)
    mask = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]).bool()
    scale, shift = scale_and_shift(pred, target, mask)
    assert scale.flatten().tolist() == [0.0, 1.0]  # flat; no pixel
    assert shift.flatten().tolist() == [pytest.approx(target[0].mean().item()), 0.0]


def test_a_clip_is_fitted_in_float64_frame_by_frame() -> None:
    rng = np.random.default_rng(5)
    p = (rng.normal(size=(3, 5, 5)) * 1e-3 + 1000.0).astype(np.float32)
    y, mask = rng.normal(size=(3, 5, 5)), rng.random((3, 5, 5)) > 0.3
    found = clip_scale_and_shift(torch.from_numpy(p), y, mask)
    assert found == pytest.approx(by_lstsq(p[mask], y[mask]), rel=1e-8)
    assert found == clip_scale_and_shift(mapped(np.array, p), mapped(np.array, y), mapped(np.array, mask))
    assert math.isnan(clip_scale_and_shift(p, y, np.zeros_like(mask))[0])
    assert clip_scale_and_shift(np.ones_like(y[0]), y[0], mask[0]) == (0.0, pytest.approx(y[0][mask[0]].mean()))


def test_the_robust_fit_ignores_outliers() -> None:
    rng = np.random.default_rng(0)
    pred = rng.random(2000) * 5 + 1
    target = 1.2 * pred - 0.3 + 0.01 * rng.normal(size=2000)
    target[:400] += 3.0
    assert robust_scale_and_shift(pred, target) == pytest.approx((1.2, -0.3), abs=0.02)
    assert robust_scale_and_shift(pred, 0.8 * pred, with_shift=False) == pytest.approx((0.8, 0.0), abs=1e-7)
    for flat in (np.full(9, 2.0), np.zeros(9), np.array([]), np.full(9, np.nan)):
        assert math.isnan(robust_scale_and_shift(flat, np.ones_like(flat))[0])
