"""Rotary positions of patches, as Vim offers them (`if_rope`)."""

from __future__ import annotations

import torch
from torch import Tensor

from videomamba_depth.video_mamba.positions import Grid


def rotary_angles(grid: Grid, trained: Grid, dim: int, device: torch.device, theta: float = 1e4) -> Tensor:
    """Return the rotation angle of every channel pair of every patch, `[rows·columns, dim / 2]` float32.

    The first half of the pairs turns with the row, the second with the column, at frequencies θ^(−2k / (dim/2)); rows
    and columns of another grid are stretched to the trained one (Su et al., RoPE, arXiv 2104.09864; axial form of
    EVA-02, arXiv 2303.11331).

    Args:
        grid: of the patches at hand. trained: grid that the model was built for.
        dim: channels of a token, a multiple of 4.
    """
    half = dim // 2
    frequency = theta ** (-torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
    rows, columns = (
        torch.arange(size, dtype=torch.float32, device=device)[:, None] / size * full * frequency
        for size, full in zip(grid, trained, strict=True)
    )
    rows, columns = rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def rotate_patches(tokens: Tensor, angles: Tensor, cls_position: int | None) -> Tensor:
    """Rotate neighbouring channel pairs of the patch tokens; the CLS, wherever it stands, keeps still.

    Args:
        tokens: `[B, L, dim]`; L = n, or n + 1 with a CLS at `cls_position`.
        angles: `[n, dim / 2]`, see `rotary_angles`.
    """
    if cls_position is not None:  # an angle of 0 leaves a token alone
        still = angles.new_zeros(1, angles.shape[1])
        angles = torch.cat([angles[:cls_position], still, angles[cls_position:]])
    cos, sin = angles.cos().to(tokens.dtype), angles.sin().to(tokens.dtype)
    even, odd = tokens[..., 0::2], tokens[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
