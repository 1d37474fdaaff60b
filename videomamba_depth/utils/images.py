"""Frames as tensors: how they are made smaller."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def shrinks(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Tell whether a side becomes smaller from size `old` to `new`, both (H, W)."""
    return new[0] < old[0] or new[1] < old[1]


def shrink_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images at `size` = (H, W) where a side shrinks, else as they are.

    Cubic (Keys' kernel, a = −0.5) with antialiasing, as Pillow, torchvision and transformers' image processors resize:
    what the smaller grid cannot hold is averaged away. Skipping pixels instead makes detail flicker as it moves.

    Args:
        images: `[B, C, H, W]`, floats in [0, 1] or uint8.
    """
    if not shrinks((images.shape[-2], images.shape[-1]), size):
        return images
    if images.dtype == torch.uint8:
        return F.interpolate(images, size, mode="bicubic", antialias=True)
    # Rows, then columns; the kernel overshoots at edges, and on uint8 each pass cuts that off.
    narrow = F.interpolate(images, (images.shape[-2], size[1]), mode="bicubic", antialias=True).clamp_(0, 1)
    return F.interpolate(narrow, size, mode="bicubic", antialias=True).clamp_(0, 1)
