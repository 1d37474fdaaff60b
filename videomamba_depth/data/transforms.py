"""Clip transforms: one random draw for all frames and all maps of a clip; every map moves with its pixels.

Resizing: RGB is resized with cubic interpolation, antialiased where it shrinks, as the encoders do. Teacher depth is
bilinear; true inverse depth and flow take the nearest sample, since a mean across an edge is the depth of nothing; a
pixel stays `valid` with its nearest sample and `static` only if everything under it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from videomamba_depth.data.perturbations import Perturbations
from videomamba_depth.utils.images import shrink_images, shrinks
from videomamba_depth.utils.settings import check_settings, derived, ranged

PATCH_PX = 14
"""Sides are multiples of an encoder's patch where nothing else fixes them."""
_SMOOTH = ("teacher_depth", "stabilized_depth")
_NEAREST = ("inv_depth",)
_FLOW = "flow_bwd"
_NEAREST_MASKS = ("valid",)
_STRICT_MASKS = ("static",)
# Below this scale bilinear interpolation skips source pixels.
_AREA_BELOW = 0.5
# A strict mask averages 0/1 in float32: everything under the pixel is set.
_ALL = 0.999


@dataclass(frozen=True)
class Geometry:
    """One draw of resize, crop and flip; sizes are (height, width) px."""

    resized: tuple[int, int]
    top: int
    left: int
    size: tuple[int, int]
    flip: bool = False

    def crop(self, maps: np.ndarray) -> np.ndarray:
        """Cut the crop out of resized maps [N,H,W,...] and mirror it; flow components are not touched here."""
        height, width = self.size
        maps = maps[:, self.top : self.top + height, self.left : self.left + width]
        return maps[:, :, ::-1] if self.flip else maps

    def crop_tensor(self, maps: Tensor) -> Tensor:
        """Cut the crop out of maps [..., *resized] and mirror it, on their device."""
        height, width = self.size
        maps = maps[..., self.top : self.top + height, self.left : self.left + width]
        return maps.flip(-1) if self.flip else maps.contiguous()


@dataclass(frozen=True)
class ClipTransform:
    """Resize, crop, flip and recolor a clip; the same draw for all frames and maps.

    The settings of `data`, but for `random_crop`.

    Attributes:
        short_side: px of the result's, the aspect being kept and both sides rounded to `PATCH_PX`; None keeps each
            video's own size, rounded alike.
        crop: (height, width) px of the result, in place of `short_side`.
        flip: mirror half of the clips.
        color_jitter: strength of a color change shared by all frames, seen by teacher and student alike: brightness,
            contrast and saturation are multiplied by factors in 1 ± it, and the hue turns by ±0.15 of it, in turns.
        perturb: per-frame defects of the student's input `rgb`; `rgb_clean` stays free of them.
        random_crop: crop at a random place; otherwise at the center.
        whole: instead of cutting off what `short_side`'s rounding leaves over, resize to the rounded sides, as encoders
            do with frames of a stream.
    """

    short_side: int | None = ranged(14, 8192, None)
    crop: tuple[int, int] | None = ranged(14, 8192, None, length=2)
    flip: bool = False
    color_jitter: float = ranged(0, 1, 0.0)
    perturb: Perturbations = Perturbations(probability=0.0)
    random_crop: bool = derived(True)
    whole: bool = derived(False)

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(
        self, clip: Mapping[str, np.ndarray], rng: np.random.Generator, geometry: Geometry | None = None
    ) -> dict[str, Tensor]:
        """Transform a clip; a pure function of its arguments and the generator's state.

        Args:
            clip: "rgb" uint8 [N,H,W,3]; optional maps, each at its own resolution but covering the same view:
                "teacher_depth", "stabilized_depth", "inv_depth" float32 [N,h,w]; "valid", "static" bool [N,h,w];
                "flow_bwd" float32 [N,h,w,2] in px of its own grid.
            rng: source of all randomness.
            geometry: a draw made before, where frames were resized to `geometry.resized` as they were decoded.

        Returns:
            tensors: "rgb" (perturbed) and "rgb_clean" float32 [N,3,H,W] in [0,1]; depths float32 [N,1,H,W]; masks bool
            [N,1,H,W]; flows float32 [N,2,H,W] in px of the result.

        Raises:
            ValueError: an unknown map.
        """
        if geometry is None:
            height, width = clip["rgb"].shape[1:3]
            geometry = self.draw_geometry(height, width, rng)
        clean = geometry.crop(resize_images(clip["rgb"], geometry.resized)).astype(np.float32) / np.float32(255)
        if self.color_jitter > 0:
            x = self.color_jitter
            change = draw_color_change(rng, float(clean.mean()), brightness=x, contrast=x, saturation=x, hue=0.15 * x)
            clean = _recolor(clean, change)
        perturbed = self.perturb(clean, rng) if self.perturb.probability > 0 else clean
        maps = {name: transform_map(name, clip[name], geometry) for name in clip if name != "rgb"}
        return {"rgb": _channels_first(perturbed), "rgb_clean": _channels_first(clean), **maps}

    def draw_geometry(self, height: int, width: int, rng: np.random.Generator) -> Geometry:
        """Draw resize, crop and flip for frames of the given size in px."""
        rng.random()  # of a draw that is no longer made: a seed keeps the clips that it has always given
        size, resized = cover_size(height, width, self.crop or self.short_side)
        if self.whole:
            resized = size
        if self.random_crop:
            top, left = int(rng.integers(resized[0] - size[0] + 1)), int(rng.integers(resized[1] - size[1] + 1))
        else:
            top, left = (resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2
        return Geometry(resized, top, left, size, bool(rng.random() < 0.5 * self.flip))


def cover_size(
    height: int, width: int, image_size: tuple[int, int] | int | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size of a crop, and the size that a frame is resized to so that it covers it, both (height, width) px.

    image_size: (height, width) px of the crop, or what its short side is to be, see `fit_size`.
    """
    size = image_size if isinstance(image_size, tuple) else fit_size(height, width, image_size)
    ratio = max(size[0] / height, size[1] / width)
    return size, (max(size[0], round(height * ratio)), max(size[1], round(width * ratio)))


def fit_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Return (height, width) with the given short side and the aspect kept, both rounded to `PATCH_PX` (never to 0).

    `short_side` None keeps the size apart from the rounding.
    """
    scale = 1.0 if short_side is None else short_side / min(height, width)
    height, width = (max(1, round(side * scale / PATCH_PX)) * PATCH_PX for side in (height, width))
    return height, width


def resize_images(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 RGB [N,H,W,3] to `size` (height, width): cubic, antialiased where it shrinks (`shrink_images`)."""
    if shrinks(images.shape[1:3], size):
        channels_first = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        return np.ascontiguousarray(shrink_images(channels_first, size).permute(0, 2, 3, 1).numpy())
    return _resize(images, size, cv2.INTER_CUBIC)


def resize_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a teacher's depth, float32 [N,H,W], to `size` (height, width): bilinear, or area below half."""
    below_half = min(size[0] / depth.shape[1], size[1] / depth.shape[2]) < _AREA_BELOW
    return _resize(depth, size, cv2.INTER_AREA if below_half else cv2.INTER_LINEAR)


def draw_color_change(
    rng: np.random.Generator, mean: float, *, brightness: float, contrast: float, saturation: float, hue: float
) -> np.ndarray:
    """Draw a change of colors as an affine map of RGB, float32 [3,4].

    Args:
        mean: of the clip, in [0, 1], on which contrast pivots.
        brightness, contrast, saturation: factors are drawn from [1 - x, 1 + x]; each in [0, 1].
        hue: rotation of colors about the gray axis, drawn from ±x turns; in [0, 0.5].
    """
    bright, steep, colorful = (1 + rng.uniform(-x, x) for x in (brightness, contrast, saturation))
    angle = 2 * np.pi * rng.uniform(-hue, hue)
    gray = np.full((3, 3), 1 / 3)
    # Rodrigues' rotation about (1,1,1)/√3; its cross-product matrix has entries ±1/√3.
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    rotation = gray + np.cos(angle) * (np.eye(3) - gray) + np.sin(angle) * cross
    color = gray + colorful * (rotation - gray)
    matrix = bright * steep * color
    offset = np.full((3, 1), bright * (1 - steep) * mean)
    return np.concatenate([matrix, offset], axis=1).astype(np.float32)


def transform_map(name: str, maps: np.ndarray, geometry: Geometry) -> Tensor:
    """Resize, crop and flip one kind of map by its name; see `ClipTransform.__call__` for shapes."""
    if name == _FLOW:
        scale = np.array([geometry.resized[1] / maps.shape[2], geometry.resized[0] / maps.shape[1]], np.float32)
        flow = geometry.crop(_resize(maps, geometry.resized, cv2.INTER_NEAREST_EXACT)) * scale
        return _channels_first(flow * np.array([-1, 1], np.float32) if geometry.flip else flow)
    if name in _SMOOTH:
        resized = resize_depth(maps.astype(np.float32), geometry.resized)
    elif name in _NEAREST:
        resized = _resize(maps.astype(np.float32), geometry.resized, cv2.INTER_NEAREST_EXACT)
    elif name in _NEAREST_MASKS:
        resized = _resize(maps.astype(np.uint8), geometry.resized, cv2.INTER_NEAREST_EXACT) > 0
    elif name in _STRICT_MASKS:
        smaller = geometry.resized[0] < maps.shape[1] or geometry.resized[1] < maps.shape[2]
        method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        resized = _resize(maps.astype(np.float32), geometry.resized, method) > _ALL
    else:
        known = ("rgb", *_SMOOTH, *_NEAREST, *_NEAREST_MASKS, *_STRICT_MASKS, _FLOW)
        raise ValueError(f"clip holds the unknown map {name!r}; known are {', '.join(known)}")
    return _channels_first(geometry.crop(resized)[..., None])


def _resize(maps: np.ndarray, size: tuple[int, int], method: int) -> np.ndarray:
    if maps.shape[1:3] == size:
        return maps
    return np.stack([cv2.resize(image, (size[1], size[0]), interpolation=method) for image in maps])


def _recolor(images: np.ndarray, change: np.ndarray) -> np.ndarray:
    return np.stack([np.clip(cv2.transform(np.ascontiguousarray(image), change), 0, 1) for image in images])


def _channels_first(maps: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(maps, -1, 1)))
