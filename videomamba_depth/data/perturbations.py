"""Defects of a camera that change from frame to frame, added to the student's input only."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from videomamba_depth.utils.settings import check_settings, ranged


@dataclass(frozen=True)
class Perturbations:
    """Strength of each defect; the settings of `data.perturb`. Every frame of a clip that has one draws its own amount.

    probability: that a clip has a defect, of each by itself.
    exposure: std of the exposure's change, in stops (photographic powers of two).
    noise: largest std of Gaussian noise, in units of full scale; drawn per clip, the noise itself per frame.
    jpeg: lowest JPEG quality, 1 to 95; drawn per frame from here to 95.
    blur: largest std of a Gaussian blur, px.
    A strength of 0 switches a defect off.
    """

    probability: float = ranged(0, 1, 0.5)
    exposure: float = ranged(0, 8, 0.15)
    noise: float = ranged(0, 1, 0.03)
    jpeg: int = ranged(0, 95, 40)
    blur: float = ranged(0, 100, 0.7)

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self, clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a perturbed copy of `clip`, float32 RGB [N,H,W,3] in [0,1]; in the order of a camera: lens first."""
        # Five draws, of which the third is not used: a seed keeps the clips that it has always given.
        has_blur, has_exposure, has_noise, has_jpeg = np.delete(rng.random(5), 2) < self.probability
        sigma = rng.uniform(0, self.noise) if has_noise else 0.0
        out = np.empty_like(clip)
        for t, frame in enumerate(clip):
            if has_blur and self.blur > 0:
                frame = _blur(frame, rng.uniform(0, self.blur))
            if has_exposure and self.exposure > 0:
                frame = frame * np.float32(2.0 ** rng.normal(0, self.exposure))
            if sigma > 0:
                frame = frame + np.float32(sigma) * rng.standard_normal(frame.shape, np.float32)
            if has_jpeg and self.jpeg > 0:
                frame = _jpeg(frame, int(rng.integers(self.jpeg, 96)))
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
