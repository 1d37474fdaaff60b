"""The size at which a model sees a frame, and its limits."""

from __future__ import annotations

import torch

from videomamba_depth.utils.errors import UserError

MAX_ASPECT_RATIO = 10
"""Long over short side of a frame that is brought to a given short side."""

MAX_PIXELS = 4096 * 2304
"""Most px of one frame inside a model (48,000 patches of 14 px): a 4K frame at its own size."""

PIXELS_PER_PASS = 1 << 18
"""Of frames that go through a model together, per thread of a CPU: a layer's output of more leaves the cache,
and each operation maps memory anew."""


def frames_per_pass(size: tuple[int, int], device: torch.device) -> int | None:
    """Return how many frames of `size` = (height, width) px to run at once; None: as many as there are.

    Frames do not depend on each other, so that it decides time alone: on a CPU fewer are faster.
    """
    if device.type != "cpu" or torch.compiler.is_compiling():
        return None
    return max(1, PIXELS_PER_PASS * torch.get_num_threads() // (size[0] * size[1]))


def model_input_size(height: int, width: int, short_side: int | None, patch_size: int) -> tuple[int, int]:
    """Return the (height, width) in px, multiples of the patch, that a frame is resized to.

    Attention grows with the square of the pixels, so that the size of a frame must not decide alone what it costs:
    every model asks here before anything is computed.

    Args:
        height, width: of the frame, px.
        short_side: px that its short side becomes, the aspect ratio kept; None: each side is rounded to the nearest
            multiple of the patch.
        patch_size: px.

    Raises:
        UserError: an aspect ratio beyond `MAX_ASPECT_RATIO` (with `short_side`), or more than `MAX_PIXELS`.
    """
    scale = 1.0 if short_side is None else short_side / min(height, width)
    rows, columns = (max(patch_size, round(side * scale / patch_size) * patch_size) for side in (height, width))
    if short_side is not None and max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise UserError(
            f"frames of {width}x{height} px are too narrow: with a short side of {short_side} px the model would see"
            f" {columns}x{rows} px; crop them to at most {MAX_ASPECT_RATIO}:1"
        )
    if rows * columns > MAX_PIXELS:
        raise UserError(
            f"frames of {width}x{height} px are too large: the model would see {columns}x{rows} px, at most"
            f" {MAX_PIXELS / 1e6:.1f} million are possible; set a smaller short_side (px)"
        )
    return rows, columns
