"""Crops, flips and strong recoloring of single pictures with depth, for training a depth model."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def augment_still(
    rng: np.random.Generator, rgb: NDArray[np.uint8], inv_depth: NDArray[np.float16], height: int, width: int
) -> tuple[Array, Array]:
    """Crop, flip, resize and recolor one still of any size; return rgb [height,width,3] in [0,1] and inverse depth."""
    image, target = _crop(rng, rgb, inv_depth, height, width)
    image = _degrade(rng, _recolor(rng, image))
    return np.clip(image, 0, 1).astype(np.float32), target


def _crop(
    rng: np.random.Generator, rgb: NDArray[np.uint8], inv_depth: NDArray[np.float16], height: int, width: int
) -> tuple[Array, Array]:
    """Crop, resize and flip; the depth of a pixel is that of the point in its middle, never a mean of two surfaces."""
    full_h, full_w = rgb.shape[:2]
    fit = min(full_h / height, full_w / width) * rng.uniform(0.55, 1.0)
    crop_h, crop_w = max(1, int(height * fit)), max(1, int(width * fit))
    top, left = rng.integers(full_h - crop_h + 1), rng.integers(full_w - crop_w + 1)
    window = np.s_[top : top + crop_h, left : left + crop_w]
    shrink = cv2.INTER_AREA if fit > 1 else cv2.INTER_LINEAR
    image = cv2.resize(rgb[window], (width, height), interpolation=shrink).astype(np.float32) / 255
    target = cv2.resize(inv_depth[window].astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    if rng.random() < 0.5:
        image, target = image[:, ::-1], target[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(target)


def _recolor(rng: np.random.Generator, image: Array) -> Array:
    """Change hue, saturation, gain of each channel, gamma, contrast; at times lose, swap or invert colors."""
    if rng.random() < 0.1:
        image = image[..., rng.permutation(3)]
    if rng.random() < 0.03:
        image = 1 - image
    if rng.random() < 0.4:
        angle, spread = rng.normal(0, 0.5), np.exp(rng.normal(0, 0.35))
        image = image @ _hue_matrix(angle, spread)
    if rng.random() < 0.12:
        image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    image = np.maximum(image, 0) ** np.float32(np.exp(rng.normal(0, 0.25)))
    image = image * np.exp(rng.normal(0, 0.08, 3)).astype(np.float32)
    contrast, level = np.float32(np.exp(rng.normal(0, 0.2))), image.mean()
    image = (image - level) * contrast + level + np.float32(rng.normal(0, 0.06))
    if rng.random() < 0.15:  # a random monotone curve for each channel
        knots = np.sort(rng.uniform(0, 1, (3, 5)), axis=1)
        knots[:, 0], knots[:, -1] = 0, 1
        line = np.linspace(0, 1, 5)
        image = np.stack([np.interp(image[..., c], line, knots[c]) for c in range(3)], -1).astype(np.float32)
    return image


def _hue_matrix(angle: float, saturation: float) -> Array:
    """Return the matrix [3,3] that turns colors about the gray axis and scales their distance from it."""
    c, s, third = np.cos(angle), np.sin(angle) / np.sqrt(3), 1 / 3
    turn = c * np.eye(3) + (1 - c) * third + s * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    gray = np.full((3, 3), third)
    return (gray + saturation * (turn - gray)).astype(np.float32)


def _degrade(rng: np.random.Generator, image: Array) -> Array:
    """Blur, coarsen, compress, add grain, and at times cover a patch with noise."""
    height, width = image.shape[:2]
    if rng.random() < 0.15:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.5))
    if rng.random() < 0.1:
        share = rng.uniform(0.4, 0.9)
        small = cv2.resize(
            image, (max(8, int(width * share)), max(8, int(height * share))), interpolation=cv2.INTER_AREA
        )
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.15:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))]
        pixels = np.clip(image * 255, 0, 255).astype(np.uint8)
        image = cv2.imdecode(cv2.imencode(".jpg", pixels, quality)[1], cv2.IMREAD_COLOR).astype(np.float32) / 255
    if rng.random() < 0.5:
        image = image + np.float32(rng.uniform(0, 0.04)) * rng.standard_normal(image.shape, np.float32)
    if rng.random() < 0.1:
        h, w = int(height * rng.uniform(0.1, 0.35)), int(width * rng.uniform(0.1, 0.35))
        y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
        image[y : y + h, x : x + w] = rng.random(3, np.float32)
    return image
