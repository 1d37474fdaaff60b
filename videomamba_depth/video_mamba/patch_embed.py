"""From pixels to patch tokens, with the checks of what comes in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from videomamba_depth.utils.errors import describe
from videomamba_depth.video_mamba.positions import Grid, is_integer

ClipSize = tuple[int, int, int]
"""(rows in time, rows, columns) of tokens."""


class PatchEmbed(nn.Module):
    """Cut frames into patches (tubelets, for clips) and project each to a token.

    Args:
        img_size: (H, W) in px, or one number, that the position table is made for; other sizes may be fed.
        patch_size: (height, width) of a patch in px, or one number.
        channels: color channels.
        embed_dim: channels of a token.
        tubelet_size: frames per token, for clips; None embeds images with a 2-D kernel.
        stride: px between patches, images only; None: the patch size.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        channels: int,
        embed_dim: int,
        tubelet_size: int | None = None,
        stride: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, embed_dim=embed_dim)
        self.img_size, self.patch_size = pair("img_size", img_size), pair("patch_size", patch_size)
        self.stride = self.patch_size if stride is None else pair("stride", stride)
        self.channels = channels
        self.grid_size = self.grid(*self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.is_video = tubelet_size is not None
        self.tubelet_size = tubelet_size if tubelet_size is not None else 1
        check_sizes(tubelet_size=self.tubelet_size)
        self.proj: nn.Conv2d | nn.Conv3d
        if self.is_video:
            kernel, step = (self.tubelet_size, *self.patch_size), (self.tubelet_size, *self.stride)
            self.proj = nn.Conv3d(channels, embed_dim, kernel_size=kernel, stride=step)
        else:
            self.proj = nn.Conv2d(channels, embed_dim, kernel_size=self.patch_size, stride=self.stride)

    def grid(self, height: int, width: int) -> Grid:
        """Return the grid of patches of a frame, see `patch_grid`."""
        return patch_grid((height, width), self.patch_size, self.stride)

    def token_shape(self, x: Tensor) -> ClipSize:
        """Check `x [B, C, T, H, W]` (images: `[B, C, H, W]`) and return the shape of its tokens.

        Raises:
            ValueError, TypeError: the input breaks the contract.
        """
        wanted = "[B, C, T, H, W]" if self.is_video else "[B, C, H, W]"
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor {wanted}; got {describe(x)}")
        if x.ndim != (5 if self.is_video else 4):
            raise ValueError(f"x must have shape {wanted}; got {tuple(x.shape)}")
        if x.shape[1] != self.channels:
            raise ValueError(f"x must have shape {wanted} with C = {self.channels}; got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point (normalized pixels); got {x.dtype}; use x.float()")
        num_frames = x.shape[2] if self.is_video else 1
        if num_frames == 0:
            raise ValueError("x must hold at least one frame; got T = 0")
        if num_frames % self.tubelet_size:
            raise ValueError(
                f"frame count {num_frames} must be divisible by tubelet size {self.tubelet_size}; drop or repeat frames"
            )
        return (num_frames // self.tubelet_size, *self.grid(x.shape[-2], x.shape[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens `[B, t, h·w, C]`, row-major, of pixels in the shape that `token_shape` accepts."""
        tokens = self.proj(x.to(self.proj.weight.dtype))
        if not self.is_video:
            tokens = tokens.unsqueeze(2)
        return tokens.flatten(3).permute(0, 2, 3, 1)


def patch_grid(size: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int]) -> Grid:
    """Return the grid of patches of a frame of `size` px; px that fill no whole patch are left out.

    Raises:
        ValueError: the frame is smaller than one patch.
    """
    (height, width), (p, q), (s, t) = size, patch, stride
    if height < p or width < q:
        raise ValueError(f"frame of {height}x{width} px is smaller than one patch of {p}x{q} px; feed larger frames")
    return (height - p) // s + 1, (width - q) // t + 1


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width), integers ≥ 1, of a pair, or of one number for both.

    Raises:
        ValueError: it is neither; says the name.
    """
    sides = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(sides) != 2 or not all(is_integer(side) and side >= 1 for side in sides):
        raise ValueError(f"{name} must be a positive integer, or two (height, width); got {describe(value)}")
    return int(sides[0]), int(sides[1])


def check_sizes(**sizes: object) -> None:
    """Raise ValueError where a size is no integer from 1 on; says its name."""
    for name, size in sizes.items():
        if not is_integer(size) or size < 1:  # type: ignore[operator]
            raise ValueError(f"{name} must be a positive integer; got {describe(size)}")
