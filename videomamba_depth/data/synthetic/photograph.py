"""What a camera does to a clean still: focus, exposure, white balance, tone, vignette, glare, shake, grain, JPEG."""

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_FOCUS_SIGMAS = (0.0, 0.8, 1.6, 3.2)  # px of the copies that a defocused picture is mixed from


def photograph(rgb: NDArray[np.uint8], depth_m: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a still [h,w,3] as a random camera would have taken it; about every third is nearly clean."""
    if rng.random() < 0.3:
        return _jpeg(rgb, rng)
    image = (rgb.astype(np.float32) / 255) ** np.float32(2.2)  # linear light
    if rng.random() < 0.25:
        image = _defocus(image, depth_m, rng)
    if rng.random() < 0.12:
        image = _shake(image, rng)
    if rng.random() < 0.2:
        bright = np.maximum(image - 0.7, 0)
        image = image + rng.uniform(0.2, 1.0) * cv2.GaussianBlur(bright, (0, 0), rng.uniform(2, 9))
    stops = rng.normal(0, 0.5)
    balance = np.exp(rng.normal(0, 0.12) * np.array([1, 0, -1]) + rng.normal(0, 0.04, 3))
    image = image * (2.0**stops * balance).astype(np.float32)
    if rng.random() < 0.3:
        image = image * _vignette(image.shape[:2], rng)
    values = np.clip(image, 0, 1) ** np.float32(1 / rng.normal(2.2, 0.2))
    values = _tone(values, rng)
    sigma = rng.exponential(0.012)
    grain = rng.standard_normal(values.shape, np.float32)
    if rng.random() < 0.3:
        grain = 1.6 * cv2.GaussianBlur(grain, (0, 0), 0.7)  # as after a camera's own denoising
    values = values + np.float32(sigma) * np.sqrt(0.33 + 1.34 * values) * grain
    return _jpeg(np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8), rng)


def _defocus(image: Array, depth_m: Array, rng: np.random.Generator) -> Array:
    """Blur by the circle of confusion, which grows with the distance from the focus in inverse depth."""
    inverse = 1 / depth_m
    focus = inverse[rng.integers(inverse.shape[0]), rng.integers(inverse.shape[1])]
    spread = np.percentile(inverse, 98) - np.percentile(inverse, 2) + 1e-6
    sigma = np.abs(inverse - focus) / spread * rng.uniform(0.5, 3.5)
    place = np.clip(np.interp(sigma, _FOCUS_SIGMAS, range(len(_FOCUS_SIGMAS))), 0, len(_FOCUS_SIGMAS) - 1.001)
    copies = np.stack([image if s == 0 else cv2.GaussianBlur(image, (0, 0), s) for s in _FOCUS_SIGMAS])
    low = place.astype(int)
    blend = (place - low)[..., None].astype(np.float32)
    y, x = np.indices(low.shape)
    return copies[low, y, x] * (1 - blend) + copies[low + 1, y, x] * blend


def _shake(image: Array, rng: np.random.Generator) -> Array:
    """Blur along one direction, as by a hand."""
    reach, angle = rng.uniform(0.5, 2.5), rng.uniform(0, np.pi)
    kernel = np.zeros((7, 7), np.float32)
    dx, dy = reach * np.cos(angle), reach * np.sin(angle)
    cv2.line(kernel, (round(3 - dx), round(3 - dy)), (round(3 + dx), round(3 + dy)), 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def _vignette(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    return (1 - np.float32(rng.uniform(0.1, 0.6)) * (x * x + y * y) / 2)[..., None]


def _tone(values: Array, rng: np.random.Generator) -> Array:
    """Change contrast, saturation and the black point of display values."""
    gray = values.mean(-1, keepdims=True)
    values = gray + np.float32(np.exp(rng.normal(0, 0.25))) * (values - gray)
    s_curve = np.float32(rng.uniform(-0.25, 0.45))
    values = np.clip(values, 0, 1)
    values = values + s_curve * (values * values * (3 - 2 * values) - values)
    return np.float32(rng.exponential(0.02)) + values * np.float32(rng.uniform(0.85, 1.0))


def _jpeg(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    if rng.random() < 0.4:
        return image
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 96))]
    encoded = cv2.imencode(".jpg", image[..., ::-1], quality)[1]
    return np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])
