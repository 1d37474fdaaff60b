"""The causal VideoMamba that streams: the class of the streaming contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from videomamba_depth.layers.mamba_mixer import LayerState
from videomamba_depth.video_mamba.backbone_block import add_residual, drop_path_rates, init_backbone_, make_norm
from videomamba_depth.video_mamba.blocks import create_block
from videomamba_depth.video_mamba.embedding import EmbedsFrames, Preprocessing
from videomamba_depth.video_mamba.masking import gather_tokens, visible_patches
from videomamba_depth.video_mamba.patch_embed import ClipSize, PatchEmbed, check_sizes
from videomamba_depth.video_mamba.pooling import POOL_TYPES, check_slices, pool_tokens
from videomamba_depth.video_mamba.positions import TemporalPolicy, check_offset, resize_spatial_table
from videomamba_depth.video_mamba.streaming import (
    STREAMING_CONTRACT_VERSION,
    ForwardReturnSemantics,
    StateShape,
    StreamingState,
    expected_state_shapes,
    forward_return_semantics,
    has_begun,
    pack_layers,
    state_layers,
    validate_state,
)


class PretrainVideoMamba(EmbedsFrames):
    """Causal VideoMamba backbone over clips, with carried state.

    A causal model streams: outputs in chunks equal outputs in one go, whatever the split. Tokens run frame by frame and
    row by row within a frame, after one CLS token at the start of the stream. The CLS comes first and so sees nothing
    but itself: for a summary of the clip pool with "avg".

    Args:
        img_size: (H, W) in px, or one number, that the position table is made for; other sizes may be fed.
        patch_size: side of a patch in px.
        depth: number of layers.
        embed_dim: channels of a token (C).
        channels: color channels.
        drop_path_rate: largest rate of stochastic depth, in [0, 1).
        ssm_cfg: keyword arguments of the mixer, see `mixer_arguments`; unknown keys raise.
        norm_epsilon: eps of the norms.
        fused_add_norm: accepted for compatibility; the add and the norm give the same numbers with and without.
        rms_norm: RMS norm; False: layer norm.
        residual_in_fp32: keep the residual stream in float32 at least.
        bimamba: True, for compatibility, and means this causal model all the same; files with the weights of a backward
            branch (`*_b`) are refused. False raises NotImplementedError.
        pool_type: a name in `POOL_TYPES`.
        kernel_size: frames per token (tubelet).
        num_frames: frames that the temporal table is made for.
        use_checkpoint, checkpoint_num: recompute the first `checkpoint_num` layers' mixers in the backward pass.
        add_pool_norm: also pool the tokens; see `forward`.
        temporal_policy: what happens beyond the temporal table, see `TemporalPolicy`.
        initializer_cfg: None; accepted for compatibility.
        device, dtype: of the parameters; None: PyTorch's defaults.
    """

    family = "contract"
    preprocessing = Preprocessing(resize=224, crop=224, interpolation="bilinear")
    streaming_contract_version = STREAMING_CONTRACT_VERSION

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        depth: int = 24,
        embed_dim: int = 192,
        channels: int = 3,
        drop_path_rate: float = 0.0,
        ssm_cfg: Mapping[str, Any] | None = None,
        norm_epsilon: float = 1e-5,
        fused_add_norm: bool = True,
        rms_norm: bool = True,
        residual_in_fp32: bool = True,
        bimamba: bool = True,
        pool_type: str = "cls+avg",
        kernel_size: int = 1,
        num_frames: int = 8,
        use_checkpoint: bool = False,
        checkpoint_num: int = 0,
        add_pool_norm: bool = True,
        temporal_policy: str | TemporalPolicy = "clamp",
        initializer_cfg: None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_options(bimamba, pool_type, num_frames, kernel_size)
        self.depth, self.embed_dim, self.pool_type = depth, embed_dim, pool_type
        self.fused_add_norm, self.residual_in_fp32 = fused_add_norm, residual_in_fp32
        self.checkpoint_num = checkpoint_num if use_checkpoint else 0
        self.add_pool_norm = add_pool_norm
        self.temporal_policy = TemporalPolicy.parse(temporal_policy)
        self.patch_embed = PatchEmbed(img_size, patch_size, channels, embed_dim, tubelet_size=kernel_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, embed_dim))
        self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, num_frames // kernel_size, embed_dim))
        self.layers = nn.ModuleList(
            create_block(embed_dim, ssm_cfg, norm_epsilon, rate, rms_norm, residual_in_fp32, layer_idx=index)
            for index, rate in enumerate(drop_path_rates(drop_path_rate, depth))
        )
        self.norm = make_norm(embed_dim, norm_epsilon, rms_norm)
        if add_pool_norm:
            self.pool_norm = make_norm(embed_dim, 1e-5, rms=False)
        init_backbone_(self, self.layers)
        self.to(device=device, dtype=dtype)

    def forward_return_semantics(self) -> ForwardReturnSemantics:
        """Return what `forward` returns, in words."""
        return forward_return_semantics(self.add_pool_norm)

    def expected_state_shapes(self, batch_size: int) -> dict[int, StateShape]:
        """Return the shapes of every layer's state for `batch_size` streams."""
        return expected_state_shapes(self, batch_size)

    def allocate_state(
        self,
        batch_size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        as_dict: bool = False,
    ) -> StreamingState:
        """Return the zero state of `batch_size` new streams: per layer `(conv_state, ssm_state)`.

        Args:
            dtype: of the conv states; None: float32 (float64 in a float64 model), which loses nothing. SSM states are
                float32 at least whatever is asked for: in bfloat16 they drift.
            device: None: the model's.
            as_dict: return a dict by layer index instead of a list.
        """
        wide = torch.promote_types(self.cls_token.dtype, torch.float32)
        dtype = dtype if dtype is not None else wide
        if not dtype.is_floating_point:
            raise TypeError(f"dtype of a state must be floating point; got {dtype}")
        where = device if device is not None else self.cls_token.device
        layers = {
            index: (
                torch.zeros(shape.conv_state, dtype=dtype, device=where),
                torch.zeros(shape.ssm_state, dtype=torch.promote_types(dtype, wide), device=where),
            )
            for index, shape in expected_state_shapes(self, batch_size).items()
        }
        return layers if as_dict else list(layers.values())

    init_state = allocate_state

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        use_image: bool = False,
        keep_temporal: bool = False,
        ssm_state: StreamingState | None = None,
        temporal_pos_offset: int = 0,
    ) -> Any:
        """Return tokens (and their pooled vectors) of a clip, or of the next chunk of a stream.

        With t = T / tubelet and s = (H // p)(W // p):

        Args:
            x: `[B, C, T, H, W]` normalized pixels (`preprocess` makes them).
            mask: bool `[B, 1 + t·s]`, True = hidden; column 0 is the CLS. None shows all.
            use_image: accepted for compatibility; an image is a clip of one frame and treated as one.
            keep_temporal: pool per frame and not over the clip.
            ssm_state: what the previous chunk returned, or `allocate_state(B)`; None: a clip by itself. Never written
                to.
            temporal_pos_offset: row of the temporal table (frame / tubelet) that the chunk starts at. With a state, 0
                begins the stream, with a CLS token; a larger one continues it, without, whatever the state holds.

        Returns:
            With pool norm `(x_vis, x_pool)` or `(x_vis, x_pool, next_state)`: x_vis `[B, t·s, C]` without the CLS;
            x_pool `[B, 1, C]`, with keep_temporal `[B, t, C]`, one row more in front for "cls_cat_avg".
            Without: `x_vis` or `(x_vis, next_state)`; x_vis `[B, 1 + t·s, C]`, or `[B, t·s, C]` when the chunk
            continues a stream. The state comes back in the container type that came in.

        Raises:
            ValueError, TypeError: an argument breaks the contract; nothing has been computed then.
        """
        size, begins, visible = self._prepare(x, mask, ssm_state, temporal_pos_offset)
        if self.add_pool_norm:
            self._check_pooling(begins, visible, size, keep_temporal)
        (stream,), layers = self._streams(x, size, begins, visible, ssm_state, temporal_pos_offset, [self.depth])
        tokens = self.norm(stream)  # [B, 1 + V, C], in a continuation [B, V, C]
        outputs: tuple[Any, ...] = (tokens,)
        if self.add_pool_norm:
            cls, patches = (tokens[:, :1], tokens[:, 1:]) if begins else (None, tokens)
            slices = _slices(visible, size, x) if keep_temporal else None
            outputs = (patches, self.pool_norm(pool_tokens(cls, patches, self.pool_type, slices)))
        if ssm_state is not None:
            outputs = (*outputs, pack_layers(layers, like=ssm_state))
        return outputs[0] if len(outputs) == 1 else outputs

    def forward_features(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        use_image: bool = False,
        ssm_state: StreamingState | None = None,
        temporal_pos_offset: int = 0,
    ) -> Any:
        """Return the tokens after the final norm, `[B, 1 + t·s, C]` with the CLS first (none in a continuation chunk).

        Arguments and errors are those of `forward`; with a state `(tokens, next_state)`.
        """
        size, begins, visible = self._prepare(x, mask, ssm_state, temporal_pos_offset)
        (stream,), layers = self._streams(x, size, begins, visible, ssm_state, temporal_pos_offset, [self.depth])
        tokens = self.norm(stream)
        return tokens if ssm_state is None else (tokens, pack_layers(layers, like=ssm_state))

    def dense_features(
        self, x: Tensor, layers: Sequence[int], ssm_state: StreamingState | None = None, temporal_pos_offset: int = 0
    ) -> Any:
        """Return feature maps `[B, C, t, h, w]` after some layers, not normed, for DPT-like heads.

        Args:
            layers: indices of layers, 0 to depth − 1, in rising order.

        Returns:
            A tuple of maps; with a state `(maps, next_state)`. The other arguments and errors are those of `forward`.
        """
        after = self._check_taps(layers)
        size, begins, _ = self._prepare(x, None, ssm_state, temporal_pos_offset)
        streams, states = self._streams(x, size, begins, None, ssm_state, temporal_pos_offset, after)
        maps = self._as_maps([tokens[:, int(begins) :] for tokens in streams], size)
        return maps if ssm_state is None else (maps, pack_layers(states, like=ssm_state))

    def patch_features(self, x: Tensor) -> Tensor:
        """Return the patch tokens `[B, t·s, C]` of whole clips `x [B, C, T, H, W]`, without the CLS."""
        return self.forward_features(x)[:, 1:]

    def cls_features(self, x: Tensor) -> Tensor:
        """Refuse: the CLS of a causal model has seen no frame."""
        raise ValueError("the CLS token of a causal model stands before all frames and sees none; use pool='mean'")

    def _prepare(
        self, x: Tensor, mask: Tensor | None, state: StreamingState | None, offset: int
    ) -> tuple[ClipSize, bool, Tensor | None]:
        """Check what comes in.

        Returns:
            The shape of the tokens, whether the chunk starts with the CLS token, and the indices `[B, V]` of the
            visible patch tokens, None for all.
        """
        size = self.patch_embed.token_shape(x)
        check_offset(offset)
        if state is not None:
            validate_state(self, state, x.shape[0])
            if offset == 0 and has_begun(state_layers(state, self.depth)):
                raise ValueError(
                    "the state belongs to a stream that has begun, but temporal_pos_offset is 0; pass the number of"
                    " temporal rows (frames / tubelet) seen so far, or a new state from allocate_state"
                )
        begins = state is None or offset == 0
        if mask is None:
            return size, begins, None
        visible = visible_patches(mask, x.shape[0], size[0] * size[1] * size[2], begins, x.device)
        if visible.shape[1] == 0 and not begins:
            raise ValueError("mask must keep at least one patch token visible in a chunk that has no CLS token")
        return size, begins, visible

    def _check_pooling(self, begins: bool, visible: Tensor | None, size: ClipSize, keep_temporal: bool) -> None:
        """Raise before anything is computed when the clip cannot be pooled as asked."""
        if not begins and self.pool_type != "avg":
            raise ValueError(
                f"pool_type={self.pool_type!r} requires a CLS token, and a chunk that continues a stream has none;"
                " build the model with pool_type='avg' to stream"
            )
        if visible is None or self.pool_type == "cls":
            return
        if visible.shape[1] == 0:
            raise ValueError(f"mask must keep at least one patch token visible for pool_type={self.pool_type!r}")
        if keep_temporal:
            check_slices(visible // (size[1] * size[2]), size[0])

    def _streams(
        self,
        x: Tensor,
        size: ClipSize,
        begins: bool,
        visible: Tensor | None,
        state: StreamingState | None,
        offset: int,
        after: Sequence[int],
    ) -> tuple[list[Tensor], list[LayerState]]:
        """Return the token streams after so many layers, in rising order, and the layers' next states.

        A stream is `[B, 1 + V, C]`, in a continuation `[B, V, C]`. Layers that none of them passed are run only when
        there is a state to bring forward.
        """
        tokens = gather_tokens(self._embed(x, size, offset), visible)  # [B, V, C]
        if begins:  # the CLS stands before all frames, so that it can be there for every split of the clip
            cls = (self.cls_token + self.pos_embed[:, :1]).to(tokens.dtype)
            tokens = torch.cat([cls.expand(x.shape[0], -1, -1), tokens], dim=1)
        states: list[Any] = [None] * self.depth if state is None else state_layers(state, self.depth)
        residual, streams, next_states = None, [], []
        for index, layer in enumerate(list(self.layers)[: None if state is not None else after[-1]]):
            recompute = self.training and index < self.checkpoint_num
            tokens, residual, layer_state = layer(
                tokens, residual, use_checkpoint=recompute, state=states[index], return_state=True
            )
            next_states.append(_like(layer_state, states[index]))
            if index + 1 in after:  # `tokens` is a branch, not yet added to the residual stream
                streams.append(add_residual(tokens, residual, self.residual_in_fp32))
        return streams, next_states

    def _embed(self, x: Tensor, size: ClipSize, offset: int) -> Tensor:
        """Return the patch tokens `[B, t·s, C]` with their positions."""
        # The temporal rows first: they may raise, and nothing should have been computed then.
        temporal = self.temporal_policy.rows(self.temporal_pos_embedding, offset, size[0])
        spatial = resize_spatial_table(self.pos_embed[:, 1:], self.patch_embed.grid_size, size[1:])  # [1, s, C]
        tokens = self.patch_embed(x)  # [B, t, s, C]
        return (tokens + (spatial.unsqueeze(1) + temporal.unsqueeze(2)).to(tokens.dtype)).flatten(1, 2)


def _check_options(bimamba: bool, pool_type: str, num_frames: int, kernel_size: int) -> None:
    if not bimamba:
        raise NotImplementedError("only bimamba=True is supported; it means this causal model, see PretrainVideoMamba")
    if pool_type not in POOL_TYPES:
        raise ValueError(f"pool_type must be one of {', '.join(POOL_TYPES)}; got {pool_type!r}")
    check_sizes(num_frames=num_frames, kernel_size=kernel_size)
    if num_frames < kernel_size:
        raise ValueError(
            f"num_frames must hold at least one tubelet of kernel_size ≥ 1 frames; got {num_frames} and {kernel_size}"
        )


def _slices(visible: Tensor | None, size: ClipSize, x: Tensor) -> tuple[Tensor, int]:
    """Return the frame of each visible token `[B, V]`, and the number of frames."""
    t, s = size[0], size[1] * size[2]
    if visible is None:
        visible = torch.arange(t * s, device=x.device).expand(x.shape[0], -1)
    return visible // s, t


def _like(state: LayerState, given: LayerState | None) -> LayerState:
    """Return the state in the dtypes of the one that came in, so that a stream keeps one layout throughout."""
    if given is None:
        return state
    return state[0].to(given[0].dtype), state[1].to(given[1].dtype)
