"""Defects of a camera that change from frame to frame, added to the student's input only."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Perturbations:
    """Strength of each defect and the probability that a clip has it; every frame of that clip draws its own amount.

    exposure: std of the exposure's change, in stops (photographic powers of two).
    noise: largest std of Gaussian noise, in units of full scale; drawn per clip, the noise itself per frame.
    jpeg_quality: lowest JPEG quality, 1 to 100; drawn per frame from here to 95.
    blur: largest std of a Gaussian blur, px.
    A strength of 0 (jpeg_quality None) or a probability of 0 switches a defect off.
    """

    exposure: float = 0.15
    exposure_probability: float = 0.5
    noise: float = 0.03
    noise_probability: float = 0.5
    jpeg_quality: int | None = 40
    jpeg_probability: float = 0.3
    blur: float = 1.0
    blur_probability: float = 0.3

    def __post_init__(self) -> None:
        for name in ("exposure", "noise", "blur"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be ≥ 0; got {getattr(self, name)}")
        for name in ("exposure", "noise", "jpeg", "blur"):
            if not 0 <= getattr(self, f"{name}_probability") <= 1:
                raise ValueError(f"{name}_probability must be in [0, 1]; got {getattr(self, f'{name}_probability')}")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 95:
            raise ValueError(f"jpeg_quality must be None or in 1..95; got {self.jpeg_quality}")

    def __call__(self, clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a perturbed copy of `clip`, float32 RGB [N,H,W,3] in [0,1]; in the order of a camera: lens first."""
        probabilities = (
            self.blur_probability,
            self.exposure_probability,
            self.noise_probability,
            self.jpeg_probability,
        )
        # Five draws, of which the third is not used: a seed keeps the clips that it has always given.
        has_blur, has_exposure, has_noise, has_jpeg = np.delete(rng.random(5), 2) < probabilities
        sigma = rng.uniform(0, self.noise) if has_noise else 0.0
        out = np.empty_like(clip)
        for t, frame in enumerate(clip):
            if has_blur and self.blur > 0:
                frame = _blur(frame, rng.uniform(0, self.blur))
            if has_exposure and self.exposure > 0:
                frame = frame * np.float32(2.0 ** rng.normal(0, self.exposure))
            if sigma > 0:
                frame = frame + np.float32(sigma) * rng.standard_normal(frame.shape, np.float32)
            if has_jpeg and self.jpeg_quality is not None:
                frame = _jpeg(frame, int(rng.integers(self.jpeg_quality, 96)))
            out[t] = np.clip(frame, 0, 1)
        return out


def _blur(frame: np.ndarray, sigma: float) -> np.ndarray:
    if sigma < 0.1:  # narrower than a pixel can show
        return frame
    return cv2.GaussianBlur(frame, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)


def _jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    # The channel order does not matter to a round trip, apart from which chroma is subsampled: keep RGB as BGR.
    eight_bit = np.round(np.clip(frame[..., ::-1], 0, 1) * 255).astype(np.uint8)
    encoded = cv2.imencode(".jpg", eight_bit, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32) / np.float32(255)
