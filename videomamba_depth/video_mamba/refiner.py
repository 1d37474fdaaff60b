"""A bidirectional refinement block: two one-way layers and a gate between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from videomamba_depth.layers.bidirectional_mixer import STREAMING_STATEMENT
from videomamba_depth.layers.mamba_mixer import LayerState, MambaMixer
from videomamba_depth.video_mamba.backbone_block import BackboneLayer, make_norm
from videomamba_depth.video_mamba.ssm_config import mixer_arguments


class BiMambaRefinerBlock(nn.Module):
    """`out_proj(g · fwd(x) + (1 − g) · bwd(x))`, g = sigmoid(W [fwd; bwd]): each way is `mixer(norm(x))`, no residual.

    The backward way runs over the frames in reverse, with the tokens of a frame in their order. It needs the whole
    clip: a state of a stream that has begun raises.

    Args:
        dim: channels of a token.
        ssm_cfg: keyword arguments of the mixers, see `mixer_arguments`.
        norm_epsilon, rms_norm, residual_in_fp32: as in `PretrainVideoMamba`.
    """

    def __init__(
        self,
        dim: int,
        ssm_cfg: Mapping[str, Any] | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = True,
        residual_in_fp32: bool = True,
    ) -> None:
        super().__init__()
        mixer = mixer_arguments(ssm_cfg)
        self.block_fwd, self.block_bwd = (
            BackboneLayer(MambaMixer(dim, **mixer), make_norm(dim, norm_epsilon, rms_norm), 0.0, residual_in_fp32)
            for _ in range(2)
        )
        self.fusion_gate = nn.Sequential(nn.Linear(2 * dim, dim), nn.Sigmoid())
        self.out_proj = nn.Linear(dim, dim)

    def allocate_state(
        self,
        batch_size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[LayerState, LayerState]:
        """Return the zero states of the two ways."""
        weight = self.out_proj.weight
        dtype = dtype if dtype is not None else torch.promote_types(weight.dtype, torch.float32)
        where = device if device is not None else weight.device
        fwd, bwd = (block.mixer.init_state(batch_size, dtype, where) for block in (self.block_fwd, self.block_bwd))
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
            state_fwd, state_bwd_init: None, or fresh (all zero) states.
            use_checkpoint: recompute the mixers in the backward pass.

        Returns:
            The refined tokens in the shape of x, and the forward way's state after them.

        Raises:
            ValueError: wrong shape, or a state of a stream that has begun.
        """
        if x.ndim not in (3, 4):
            raise ValueError(f"x must have shape [B, L, C] or [B, T, N, C]; got {tuple(x.shape)}")
        for name, state in (("state_fwd", state_fwd), ("state_bwd_init", state_bwd_init)):
            if state is not None and any(bool((tensor != 0).any()) for tensor in state):
                raise ValueError(f"{name} must be None or fresh (all zero). {STREAMING_STATEMENT}")
        reverse = x.flip(1)
        tokens, reversed_tokens = (x.flatten(1, 2), reverse.flatten(1, 2)) if x.ndim == 4 else (x, reverse)
        fwd, _, next_state = self.block_fwd(tokens, None, state_fwd, use_checkpoint)
        bwd, _, _ = self.block_bwd(reversed_tokens, None, state_bwd_init, use_checkpoint)
        fwd, bwd = fwd.reshape(x.shape), bwd.reshape(x.shape).flip(1)
        gate = self.fusion_gate(torch.cat([fwd, bwd], dim=-1))
        return self.out_proj(gate * fwd + (1 - gate) * bwd), next_state
