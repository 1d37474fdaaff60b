"""Frames as tensors: what a model accepts, and how they are made smaller."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.utils.errors import describe

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB in [0, 1], per channel: what pretrained encoders are normalized by."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in luma (Rec. 601)."""

_SLACK = 0.01  # beyond [0, 1]: rounding of whoever made the frame


def check_axes(name: str, value: object, axes: str) -> None:
    """Refuse what is no dense tensor of these axes.

    Args:
        name: of the argument.
        axes: of the tensor, such as "B 3 H W": a letter stands for any length from 1.

    Raises:
        ValueError: naming what is expected and what was given.
    """
    wanted = axes.split()
    if not (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.ndim == len(wanted)
        and all(n != 0 if axis.isalpha() else n == int(axis) for axis, n in zip(wanted, value.shape, strict=True))
    ):
        raise ValueError(f"{name} must be a tensor [{', '.join(wanted)}], no axis of length 0; got {describe(value)}")


def check_rgb(rgb: Tensor) -> None:
    """Refuse what is no picture in [0, 1]: other numbers would give some depth, a wrong one.

    While a model is traced or compiled, values are not looked at.

    Args:
        rgb: `[B, 3, H, W]`.

    Raises:
        ValueError: another shape, whole numbers, or values that are not finite or not in [0, 1].
    """
    check_axes("rgb", rgb, "B 3 H W")
    if not rgb.is_floating_point():
        raise ValueError(f"rgb must be floats in [0, 1]; got {rgb.dtype}: use rgb.float() / 255")
    if torch.compiler.is_compiling():
        return
    low, high = (float(value) for value in rgb.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int((~torch.isfinite(rgb)).sum())
        raise ValueError(f"rgb must be finite; got {bad} values that are NaN or infinite")
    if low < -_SLACK or high > 1 + _SLACK:
        raise ValueError(
            f"rgb must be in [0, 1]; got {low:g} to {high:g}: pixels of 0 to 255 need rgb / 255, and mean and standard"
            " deviation are the model's own business"
        )


def luma(frames: Tensor) -> Tensor:
    """Return the luma `[B, 1, H, W]` float32 of frames `[B, 3, H, W]`; no constant is copied to the device."""
    red, green, blue = frames.float().split(1, 1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return central differences along x and y [K,C,h,w], the border continued."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    middle, across = padded[..., 1:-1, :], padded[..., 1:-1]
    return 0.5 * (middle[..., 2:] - middle[..., :-2]), 0.5 * (across[..., 2:, :] - across[..., :-2, :])


def shrinks(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Tell whether a side becomes smaller from size `old` to `new`, both (H, W)."""
    return new[0] < old[0] or new[1] < old[1]


def shrink_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images at `size` = (H, W) where a side shrinks, else as they are.

    Cubic (Keys' kernel, a = −0.5) with antialiasing, as Pillow, torchvision and transformers' image processors resize
    pictures: what the smaller grid cannot hold is averaged away. Skipping pixels instead makes detail flicker as it
    moves. Like theirs, the pass over rows gives whole levels of 255; the pass over columns is not rounded here unless
    the images are bytes.

    Args:
        images: `[B, C, H, W]`, floats in [0, 1] or uint8.
    """
    if not shrinks((images.shape[-2], images.shape[-1]), size):
        return images
    if images.dtype == torch.uint8:
        return _shrink_levels(images, size).round_().to(torch.uint8)
    return (_shrink_levels(images.float().mul(255).round_(), size) / 255).to(images.dtype)


def unit_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return uint8 images `[B, C, H, W]` as float32 in [0, 1], at `size` where a side shrinks.

    The same to the bit as `shrink_images(images / 255, size)`; large images are never floats.
    """
    if not shrinks((images.shape[-2], images.shape[-1]), size):
        return images.float().div_(255)
    return _shrink_levels(images, size).div_(255)


def _shrink_levels(levels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return whole levels from 0 to 255, of any type, at `size` as float32."""
    rows = _shrink_rows(levels.to(torch.uint8) if levels.device.type == "cpu" else levels.float(), size[1]).float()
    return F.interpolate(rows, size, mode="bicubic", antialias=True).clamp_(0, 255)


def _shrink_rows(levels: Tensor, width: int) -> Tensor:
    """Return whole levels of `width`; uint8 has a faster kernel, on CPUs alone."""
    rows = F.interpolate(levels, (levels.shape[-2], width), mode="bicubic", antialias=True)
    return rows.round_().clamp_(0, 255) if rows.is_floating_point() else rows
