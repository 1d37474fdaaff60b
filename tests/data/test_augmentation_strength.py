"""How strong augmentations are: each draw fills the range that its number promises, and stays in it."""

from __future__ import annotations

import numpy as np
import pytest

from videomamba_depth.data.perturbations import Perturbations
from videomamba_depth.data.transforms import draw_color_change

DRAWS = 200
GRAY = np.array([0.5, 0.5, 0.5, 1.0])


def jitter_matrices(**ranges: float) -> np.ndarray:
    """Return [200, 3, 4] draws of a jitter that has these ranges alone, about a mean of 0.25."""
    given = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, **ranges}
    rng = np.random.default_rng(0)
    return np.stack([draw_color_change(rng, 0.25, **given) for _ in range(DRAWS)])


def assert_fills(values: np.ndarray, low: float, high: float) -> None:
    """Values lie in [low, high] and come near to both ends; half of them lie in the lower half."""
    margin = 0.1 * (high - low)
    assert low - 1e-5 <= values.min() < low + margin
    assert high - margin < values.max() <= high + 1e-5
    assert 0.35 < (values < (low + high) / 2).mean() < 0.65


def test_hue_turns_colors_both_ways() -> None:
    red, across = np.array([1, -0.5, -0.5]), np.array([0, 1, -1]) * 3**0.5 / 2  # an orthogonal pair in the hue's plane
    turned = jitter_matrices(hue=0.1)[..., :3] @ red
    turns = np.arctan2(turned @ across, turned @ red) / (2 * np.pi)
    assert_fills(turns, -0.1, 0.1)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(red), rtol=1e-5)


def test_saturation_scales_the_distance_from_gray() -> None:
    color = np.array([0.9, 0.3, 0.3])
    changed = jitter_matrices(saturation=0.3)[..., :3] @ color
    np.testing.assert_allclose(changed.mean(-1), color.mean(), rtol=1e-5)
    assert_fills((changed - color.mean())[:, 0] / (color - color.mean())[0], 0.7, 1.3)


def test_brightness_scales_and_contrast_pivots_on_the_mean() -> None:
    assert_fills((jitter_matrices(brightness=0.2) @ GRAY)[:, 0] / 0.5, 0.8, 1.2)
    contrast = jitter_matrices(contrast=0.2)
    assert_fills((contrast @ GRAY)[:, 0], 0.25 + 0.25 * 0.8, 0.25 + 0.25 * 1.2)
    np.testing.assert_allclose(contrast @ np.array([0.25, 0.25, 0.25, 1]), 0.25, atol=1e-6)


def perturbed(frames: np.ndarray, name: str, value: float) -> list[np.ndarray]:
    """Return 60 copies of a clip under one defect."""
    made = Perturbations(1.0, **{**dict.fromkeys(("exposure", "noise", "jpeg", "blur"), 0), name: value})  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    return [made(frames, rng) for _ in range(60)]


def test_noise_reaches_its_largest_std_and_no_more() -> None:
    gray = np.full((1, 32, 32, 3), 0.5, np.float32)
    assert_fills(np.array([clip.std() for clip in perturbed(gray, "noise", 0.1)]), 0.0, 0.102)


def test_exposure_has_its_std_in_stops() -> None:
    dark = np.full((4, 4, 4, 3), 0.2, np.float32)
    stops = np.log2(np.array([clip[:, 0, 0, 0] for clip in perturbed(dark, "exposure", 0.3)]) / 0.2)
    assert stops.std() == pytest.approx(0.3, rel=0.15)
    assert abs(stops.mean()) < 0.06
    assert stops.std(axis=1).min() > 0  # every frame its own


def test_blur_is_narrower_than_its_limit() -> None:
    point = np.zeros((1, 33, 33, 3), np.float32)
    point[0, 16, 16] = 1
    distance = np.square(np.arange(33) - 16)
    variances = np.array([(clip[0, ..., 0].sum(0) * distance).sum() for clip in perturbed(point, "blur", 2.0)])
    assert_fills(np.sqrt(variances), 0.0, 2.0)


def test_a_lower_jpeg_quality_costs_more() -> None:
    texture = np.random.default_rng(1).random((1, 32, 32, 1), dtype=np.float32).repeat(3, -1)
    errors = [np.abs(np.stack(perturbed(texture, "jpeg", q)) - texture).mean() for q in (10, 90)]
    assert errors[0] > 1.5 * errors[1]
