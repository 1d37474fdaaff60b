"""The layer and its mixer with the signatures that the field's VideoMamba code calls them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from videomamba_depth.layers.bidirectional_mixer import BidirectionalMixer
from videomamba_depth.layers.mamba_mixer import LayerState, MambaMixer
from videomamba_depth.video_mamba.backbone_block import BackboneLayer, make_norm, recompute
from videomamba_depth.video_mamba.ssm_config import mixer_arguments


class Mamba(MambaMixer):
    """`MambaMixer` with the published signature: tensors go in and come out, a state only where it is asked for.

    Args:
        d_model: channels of a token.
        d_state to use_fast_path: in the published order, see `mixer_arguments`.
        layer_idx, bimamba: accepted for compatibility; the mixer is causal either way.
        device, dtype: of the parameters; None: PyTorch's defaults.
        ssm_cfg: further options, see `mixer_arguments`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bimamba: bool = True,
        **ssm_cfg: Any,
    ) -> None:
        sizes = {"d_state": d_state, "d_conv": d_conv, "expand": expand, "dt_rank": dt_rank}
        steps = {"dt_min": dt_min, "dt_max": dt_max, "dt_init": dt_init, "dt_scale": dt_scale}
        switches = {"conv_bias": conv_bias, "bias": bias, "use_fast_path": use_fast_path}
        options = {**sizes, **steps, "dt_init_floor": dt_init_floor, **switches, **ssm_cfg}
        super().__init__(d_model, **mixer_arguments(options))
        self.layer_idx = layer_idx
        self.to(device=device, dtype=dtype)

    scan = staticmethod(BidirectionalMixer.scan)  # nothing reads the summary here either

    def allocate_state(
        self, batch_size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> LayerState:
        """Return the zero state `(conv_state [B, d_inner, d_conv], ssm_state [B, d_inner, d_state])` of new sequences.

        Args:
            dtype: float32 at least is used whatever is asked for; None: of the parameters. device: None: theirs.
        """
        weight = self.out_proj.weight
        return self.init_state(batch_size, dtype or weight.dtype, device if device is not None else weight.device)

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        inference_params: None = None,
        ssm_state: None = None,
        state: LayerState | None = None,
        return_state: bool = False,
    ) -> Any:
        """Mix `hidden_states [B, L, d_model]`; returns the same shape, with return_state `(mixed, next state)`.

        Args:
            inference_params, ssm_state: must be None: a cache that is updated in place, or a state without the
                convolution's, cannot continue a sequence exactly.
            state: of the sequences so far; None: new ones. Never written to.

        Raises:
            ValueError: inference_params or ssm_state is given.
        """
        if inference_params is not None or ssm_state is not None:
            raise ValueError(
                "a layer takes its whole state: pass state=(conv_state, ssm_state), from mixer.allocate_state or from"
                " return_state=True, in place of inference_params or ssm_state"
            )
        out = super().forward(hidden_states, state)
        return (out.y, out.state) if return_state else out.y


class Block(BackboneLayer):
    """`BackboneLayer` with the published signature, on a `Mamba` mixer; see `create_block`."""

    layer_idx: int | None

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        inference_params: None = None,
        use_checkpoint: bool = False,
        ssm_state: None = None,
        state: LayerState | None = None,
        return_state: bool = False,
    ) -> tuple[Any, ...]:
        """Run one layer; returns `(hidden_states, residual)`, with return_state `(hidden_states, residual, state)`.

        Args:
            hidden_states: `[B, L, C]` branch of the layer before, or the tokens.
            residual: `[B, L, C]` stream of the layer before; None in the first layer.
            use_checkpoint: recompute the mixer in the backward pass instead of storing it.
            inference_params, ssm_state, state: see `Mamba.forward`.
        """
        residual = self.add(hidden_states, residual)
        arguments = (self.norm(residual), inference_params, ssm_state, state, True)
        mixed, next_state = recompute(self.mixer, *arguments) if use_checkpoint else self.mixer(*arguments)
        return (mixed, residual, next_state) if return_state else (mixed, residual)


def create_block(
    d_model: int,
    ssm_cfg: Mapping[str, Any] | None = None,
    norm_epsilon: float = 1e-5,
    drop_path: float = 0.0,
    rms_norm: bool = True,
    residual_in_fp32: bool = True,
    fused_add_norm: bool = True,
    layer_idx: int | None = None,
    bimamba: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Block:
    """Build one causal layer: add, norm, `Mamba`.

    Args:
        d_model: channels of a token.
        ssm_cfg: options of the mixer, see `mixer_arguments`.
        drop_path: rate of stochastic depth on the branch that comes in, in [0, 1).
        norm_epsilon, rms_norm, residual_in_fp32, fused_add_norm, bimamba: see `PretrainVideoMamba`; bimamba=False means
            the same causal layer.
        layer_idx: kept as an attribute.
        device, dtype: of the parameters; None: PyTorch's defaults.
    """
    mixer = Mamba(d_model, layer_idx=layer_idx, bimamba=bimamba, **dict(ssm_cfg or {}))
    norm: nn.Module = make_norm(d_model, norm_epsilon, rms_norm)
    block = Block(mixer, norm, drop_path, residual_in_fp32)
    block.layer_idx = layer_idx
    return block.to(device=device, dtype=dtype)
