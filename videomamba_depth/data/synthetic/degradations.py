"""What a camera does to a clean image: motion blur, changing exposure, noise, compression. RGB only, seeded apart."""

import cv2
import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.config import WorldConfig
from videomamba_depth.data.synthetic.geometry import Array

_TAG = 99  # keeps the camera's random numbers apart from the scene's
_BLUR_TAPS = 7
_MIN_BLUR_PX = 0.5


def to_display(linear: Array, exposure: float) -> Array:
    """Map linear RGB to display values in [0,1] with the gamma 1/2.2."""
    return np.clip(linear * np.float32(exposure), 0, 1) ** np.float32(1 / 2.2)


def degrade(clean: NDArray[np.uint8], flow: Array, seed: int, index: int, config: WorldConfig) -> NDArray[np.uint8]:
    """Return what the camera records of a clean frame.

    clean: RGB [h,w,3]; flow: to the next frame [h,w,2] in px; index: number of the frame. The result is a function of
    the arguments alone. With every strength at 0 (and no JPEG) the frame comes back as it is.
    """
    rng = np.random.default_rng([seed, _TAG, index])
    image = clean
    if config.motion_blur > 0 and float(np.abs(flow).max()) * config.motion_blur > _MIN_BLUR_PX:
        image = _motion_blur(image, flow * np.float32(config.motion_blur))
    if config.exposure_flicker > 0 or config.noise > 0:
        values = image.astype(np.float32) / np.float32(255)
        values *= np.float32(2.0 ** (_exposure_stops(seed, index, config, rng) / 2.2))
        if config.noise > 0:
            # Shot noise has a variance that grows with the signal; a third of the variance is read noise.
            sigma = np.float32(config.noise) * np.sqrt(np.float32(0.33) + np.float32(1.34) * np.minimum(values, 1))
            values += sigma * rng.standard_normal(values.shape, np.float32)
        image = np.clip(values * 255 + np.float32(0.5), 0, 255).astype(np.uint8)
    if config.jpeg_quality is not None:
        encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality])[1]
        image = np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])
    return image


def _exposure_stops(seed: int, index: int, config: WorldConfig, rng: np.random.Generator) -> float:
    """Return the exposure's deviation in stops: a slow wander and a fast flicker, half of the variance each."""
    slow = np.random.default_rng([seed, _TAG])
    rates, phases = slow.uniform(0.8, 3.0, 2), slow.uniform(0, 2 * np.pi, 2)
    wander = np.sin(rates * index / config.fps + phases).sum() / np.sqrt(2)
    return config.exposure_flicker * float(wander + np.clip(rng.standard_normal(), -2.5, 2.5) * np.sqrt(0.5))


def _motion_blur(image: NDArray[np.uint8], path: Array) -> NDArray[np.uint8]:
    """Average the image along each pixel's own path [h,w,2] in px: cheap, and exact for a locally constant flow."""
    height, width = path.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    total = np.zeros(image.shape, np.float32)
    for share in np.linspace(-0.5, 0.5, _BLUR_TAPS, dtype=np.float32):
        shifted_x, shifted_y = x + share * path[..., 0], y + share * path[..., 1]
        total += cv2.remap(image, shifted_x, shifted_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return (total / _BLUR_TAPS + np.float32(0.5)).astype(np.uint8)
