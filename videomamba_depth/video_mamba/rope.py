"""Rotary positions of patches, as Vim offers them (`if_rope`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videomamba_depth.video_mamba.patch_embed import check_sizes
from videomamba_depth.video_mamba.positions import Grid


class RotaryPositions(nn.Module):
    """Cosines and sines by which neighboring channel pairs of a patch turn, `[n, dim]` in `freqs_cos`, `freqs_sin`.

    Args:
        grid: of the patches that the buffers are made for; others are computed when they come.
        trained: side in patches of the grid that positions are stretched to (`pt_hw_seq_len`).
        dim: channels of a token, a multiple of 4.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, grid: Grid, trained: int, dim: int) -> None:
        super().__init__()
        check_sizes(pt_hw_seq_len=trained)
        self.grid, self.trained, self.dim = grid, trained, dim
        angles = rotary_angles(grid, (trained, trained), dim, torch.device("cpu"))
        self.register_buffer("freqs_cos", angles.cos())
        self.register_buffer("freqs_sin", angles.sin())

    def forward(self, tokens: Tensor, grid: Grid, still: int | None) -> Tensor:
        """Rotate `tokens [B, L, dim]` of n patches on `grid`; L = n, or n + 1 with a token at `still` that keeps."""
        cos, sin = self.freqs_cos, self.freqs_sin
        if grid != self.grid:
            angles = rotary_angles(grid, (self.trained, self.trained), self.dim, tokens.device)
            cos, sin = angles.cos(), angles.sin()
        return rotate_patches(tokens, cos, sin, still)


def rotary_angles(grid: Grid, trained: Grid, dim: int, device: torch.device, theta: float = 1e4) -> Tensor:
    """Return the rotation angle of every channel of every patch, `[rows·columns, dim]` float32, equal within a pair.

    The first half of the pairs turns with the row, the second with the column, at frequencies θ^(−2k / (dim/2)); rows
    and columns of another grid are stretched to the trained one (Su et al., RoPE, arXiv 2104.09864; axial form of
    EVA-02, arXiv 2303.11331).

    Args:
        grid: of the patches at hand. trained: grid that positions are stretched to.
        dim: channels of a token, a multiple of 4.
    """
    half = dim // 2
    frequency = theta ** (-torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
    rows, columns = (
        torch.arange(size, dtype=torch.float32, device=device)[:, None] / size * full * frequency
        for size, full in zip(grid, trained, strict=True)
    )
    rows, columns = rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).repeat_interleave(2, -1)


def rotate_patches(tokens: Tensor, cos: Tensor, sin: Tensor, still: int | None) -> Tensor:
    """Rotate neighboring channel pairs of tokens `[B, L, dim]` by `cos, sin [n, dim]`; the one at `still` keeps."""
    if still is not None:  # an angle of 0 leaves a token alone
        row = cos.new_zeros(1, cos.shape[1])
        cos = torch.cat([cos[:still], row + 1, cos[still:]])
        sin = torch.cat([sin[:still], row, sin[still:]])
    pairs = tokens.unflatten(-1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return tokens * cos.to(tokens.dtype) + turned * sin.to(tokens.dtype)
