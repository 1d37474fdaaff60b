"""The vision transformer of Depth Anything 3, for one view: DINOv2 whose later blocks were trained on many views."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomamba_depth.models.attention import attention

_HEAD_WIDTH = 64  # of every published size
_ROPE_BASE = 100.0


@dataclass(frozen=True)
class BlockPlan:
    """Which blocks do what, counted from 0; -1 for none (`config.net` of a published checkpoint).

    Attributes:
        out_layers: the blocks whose tokens are returned.
        alt_start: the first of the blocks that alternate between one view and all of them; there the class token gives
            way to the camera token.
        qknorm_start, rope_start: the first that normalizes queries and keys, and that rotates them by their position.
        cat_token: return the tokens of the last block that saw one view beside those of each block in `out_layers`.
    """

    out_layers: tuple[int, int, int, int]
    alt_start: int = -1
    qknorm_start: int = -1
    rope_start: int = -1
    cat_token: bool = True

    def is_global(self, index: int) -> bool:
        """Return whether a block attends to all views at once."""
        return 0 <= self.alt_start <= index and index % 2 == 1


class MultiViewDinov2(nn.Module):
    """DINOv2 (Oquab et al., arXiv 2304.07193) as Depth Anything 3 changes it (Lin et al., arXiv 2511.10647, sec. 3.2).

    With one view, blocks over all views differ from the others only in positions: all patches share one. Tensors have
    the names of published checkpoints under `backbone.pretrained`.

    Args:
        width: of the tokens, a multiple of 64. depth: number of blocks. grid: patches per side of the position table.
        patch_size: px. swiglu: gated MLPs, as the giant size has.
    """

    def __init__(self, width: int, depth: int, grid: int, patch_size: int, plan: BlockPlan, swiglu: bool) -> None:
        super().__init__()
        self.plan, self.grid = plan, grid
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch_size, patch_size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if plan.alt_start >= 0:
            self.camera_token = nn.Parameter(torch.zeros(1, 2, width))  # of the reference view, and of the others
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.blocks = nn.ModuleList(
            _Block(width, normalizes=0 <= plan.qknorm_start <= index, swiglu=swiglu) for index in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the tokens of the four `out_layers`, each `[B, h·w, D]`; D is twice the width with `cat_token`.

        Args:
            pixels: `[B, 3, H, W]` normalized, sides multiples of the patch.
        """
        patches = self.patch_embed["proj"](pixels)  # [B, D, h, w]
        rows, columns = patches.shape[-2:]
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches.flatten(2).mT], 1)
        x = x + self._positions(rows, columns)
        angles = {shared: _angles(rows, columns, shared, x) for shared in (False, True)}
        plan, local, taken = self.plan, x, []
        for index, block in enumerate(self.blocks):
            if index == plan.alt_start:
                x = torch.cat([self.camera_token[:, :1].expand(len(x), -1, -1), x[:, 1:]], 1)
            rotates = 0 <= plan.rope_start <= index
            x = block(x, angles[plan.is_global(index)] if rotates else None)
            if not plan.is_global(index):
                local = x
            if index in plan.out_layers:
                tokens = self.norm(x)
                taken.append((torch.cat([local, tokens], -1) if plan.cat_token else tokens)[:, 1:])
        return taken

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the position table for that many patches; between its own it is cubic."""
        if rows == columns == self.grid:
            return self.pos_embed
        table = self.pos_embed[:, 1:].float().unflatten(1, (self.grid, self.grid)).movedim(-1, 1)
        # As DINOv2 was trained: sizes are given as factors, moved off by a tenth of a patch.
        factors = [(count + 0.1) / self.grid for count in (rows, columns)]
        table = F.interpolate(table, scale_factor=factors, mode="bicubic")
        positions = torch.cat([self.pos_embed[:, :1].float(), table.flatten(2).mT], 1)
        return positions.to(self.pos_embed.dtype)


class _Block(nn.Module):
    def __init__(self, width: int, normalizes: bool, swiglu: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, normalizes)
        self.mlp = _GatedMlp(width) if swiglu else _Mlp(width)
        self.ls1, self.ls2 = _LayerScale(width), _LayerScale(width)

    def forward(self, x: Tensor, angles: Tensor | None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), angles))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Attention(nn.Module):
    def __init__(self, width: int, normalizes: bool) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = (nn.LayerNorm(_HEAD_WIDTH) if normalizes else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, angles: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, _HEAD_WIDTH)).permute(2, 0, 3, 1, 4)  # each [B, heads, 1 + n, 64]
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = _rotated(q, angles), _rotated(k, angles)
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _GatedMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-(8 * width // 3) // 8) * 8  # as many weights as `_Mlp` has, in multiples of 8
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


def _angles(rows: int, columns: int, shared: bool, like: Tensor) -> Tensor:
    """Return the angles of rotary embedding in two axes, float32 `[1 + rows·columns, 2, 16]`: y, then x.

    Patch (y, x) is at (y + 1, x + 1), or all patches at (1, 1) where they share a position; the first token is at 0.
    """
    y, x = torch.meshgrid(
        torch.arange(rows, device=like.device), torch.arange(columns, device=like.device), indexing="ij"
    )
    places = torch.stack([y.flatten(), x.flatten()], -1)
    places = F.pad((torch.zeros_like(places) if shared else places) + 1, (0, 0, 1, 0)).float()  # [1 + n, 2]
    count = _HEAD_WIDTH // 4
    rates = _ROPE_BASE ** -(torch.arange(count, device=like.device).float() / count)
    return places[..., None] * rates


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate `[B, heads, n, 64]`: 32 numbers by y and 32 by x, in each the first half against the second."""
    first, second = x.unflatten(-1, (2, 2, -1)).unbind(-2)  # each [B, heads, n, 2, 16]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], -2).flatten(-3)
