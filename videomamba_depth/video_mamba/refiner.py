"""A bidirectional refinement block: two layers, one per direction, and a gate between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from videomamba_depth.layers.bidirectional_mixer import STREAMING_STATEMENT
from videomamba_depth.layers.mamba_mixer import LayerState
from videomamba_depth.video_mamba.blocks import create_block


class BiMambaRefinerBlock(nn.Module):
    """`out_proj(g · fwd(x) + (1 − g) · bwd(x))`, g = sigmoid(W [fwd; bwd]).

    A direction is `mixer(norm(x))`, without a residual. The backward one runs over the frames in reverse, with the
    tokens of a frame in their order. It needs the whole clip: a state of a stream that has begun raises.

    Args:
        dim: channels of a token.
        ssm_cfg: options of the mixers, see `mixer_arguments`.
        options: the other arguments of `create_block`.
    """

    def __init__(self, dim: int, ssm_cfg: Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__()
        self.block_fwd, self.block_bwd = (create_block(dim, ssm_cfg, **options) for _ in range(2))
        self.fusion_gate = nn.Sequential(nn.Linear(2 * dim, dim), nn.Sigmoid())
        self.out_proj = nn.Linear(dim, dim)
        self.to(device=options.get("device"), dtype=options.get("dtype"))

    def allocate_state(
        self,
        batch_size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[LayerState, LayerState]:
        """Return the zero states of the two directions, see `Mamba.allocate_state`."""
        fwd, bwd = (block.mixer.allocate_state(batch_size, dtype, device) for block in (self.block_fwd, self.block_bwd))
        return fwd, bwd

    def forward(
        self,
        x: Tensor,
        state_fwd: LayerState | None = None,
        state_bwd_init: LayerState | None = None,
        use_checkpoint: bool = False,
    ) -> tuple[Tensor, LayerState]:
        """Refine the tokens of whole clips.

        Args:
            x: `[B, L, C]`, or `[B, T, N, C]` with N tokens per frame.
            state_fwd, state_bwd_init: None, or new (all zero) states.
            use_checkpoint: recompute the mixers in the backward pass.

        Returns:
            The refined tokens in the shape of x, and the forward direction's state after them.

        Raises:
            ValueError: wrong shape, or a state of a stream that has begun.
        """
        if x.ndim not in (3, 4):
            raise ValueError(f"x must have shape [B, L, C] or [B, T, N, C]; got {tuple(x.shape)}")
        for name, state in (("state_fwd", state_fwd), ("state_bwd_init", state_bwd_init)):
            if state is not None and any(bool((tensor != 0).any()) for tensor in state):
                raise ValueError(f"{name} must be None or new (all zero). {STREAMING_STATEMENT}")
        reverse = x.flip(1)
        tokens, reversed_tokens = (x.flatten(1, 2), reverse.flatten(1, 2)) if x.ndim == 4 else (x, reverse)
        fwd, _, next_state = self.block_fwd(tokens, None, None, use_checkpoint, state=state_fwd, return_state=True)
        bwd, _ = self.block_bwd(reversed_tokens, None, None, use_checkpoint, state=state_bwd_init)
        fwd, bwd = fwd.reshape(x.shape), bwd.reshape(x.shape).flip(1)
        gate = self.fusion_gate(torch.cat([fwd, bwd], dim=-1))
        return self.out_proj(gate * fwd + (1 - gate) * bwd), next_state
