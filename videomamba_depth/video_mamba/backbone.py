"""VideoMamba: the bidirectional backbone of the official image, video and masked-pretrained files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomamba_depth.layers.bidirectional_mixer import BidirectionalMixer, refuse_state
from videomamba_depth.video_mamba.backbone_block import (
    BackboneLayer,
    add_residual,
    check_classes,
    drop_path_rates,
    init_backbone_,
    make_norm,
)
from videomamba_depth.video_mamba.embedding import EmbedsFrames, Preprocessing
from videomamba_depth.video_mamba.masking import gather_tokens, visible_patches
from videomamba_depth.video_mamba.patch_embed import PatchEmbed, check_sizes
from videomamba_depth.video_mamba.positions import resize_spatial_table, resize_temporal_table
from videomamba_depth.video_mamba.ssm_config import mixer_arguments

_IMAGE_PREPROCESSING = Preprocessing(resize=256, crop=224, interpolation="bicubic")
_VIDEO_PREPROCESSING = Preprocessing(resize=224, crop=224, interpolation="bilinear")


class VideoMamba(EmbedsFrames):
    """Bidirectional VideoMamba for images or clips, with a classifier on its CLS token (Li et al., arXiv 2403.06977).

    A bidirectional model needs the whole clip: passing a state raises. Parameter names and shapes are those of the
    official files (see `load_backbone`).

    Args:
        img_size, patch_size, depth, embed_dim, channels, drop_path_rate, ssm_cfg, norm_epsilon, rms_norm,
            residual_in_fp32: as in `PretrainVideoMamba`.
        num_classes: outputs of the classifier; 0 leaves it out.
        num_frames: frames of a clip that the temporal table is made for; None: images.
        tubelet_size: frames per token, clips only.
        teacher_dim: channels of the teacher that a distilled student imitates: adds `distill_head`.
        pool_norm: add the norm of `pooled_features`, as video-text models have it.
        use_checkpoint: recompute the mixers in the backward pass.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        depth: int = 24,
        embed_dim: int = 192,
        channels: int = 3,
        num_classes: int = 1000,
        num_frames: int | None = None,
        tubelet_size: int = 1,
        teacher_dim: int | None = None,
        pool_norm: bool = False,
        drop_path_rate: float = 0.0,
        ssm_cfg: Mapping[str, Any] | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = True,
        residual_in_fp32: bool = True,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.is_video = num_frames is not None
        self.family = "videomamba_video" if self.is_video else "videomamba_image"
        self.preprocessing = _VIDEO_PREPROCESSING if self.is_video else _IMAGE_PREPROCESSING
        check_classes(num_classes)
        self.depth, self.embed_dim, self.num_classes = depth, embed_dim, num_classes
        self.residual_in_fp32, self.use_checkpoint = residual_in_fp32, use_checkpoint
        self.patch_embed = PatchEmbed(
            img_size, patch_size, channels, embed_dim, tubelet_size if self.is_video else None
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, embed_dim))
        if num_frames is not None:
            check_sizes(num_frames=num_frames)
            if num_frames < tubelet_size:
                raise ValueError(f"num_frames must hold a tubelet of {tubelet_size} frames; got {num_frames}")
            self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, num_frames // tubelet_size, embed_dim))
        mixer = mixer_arguments(ssm_cfg)
        self.layers = nn.ModuleList(
            BackboneLayer(
                BidirectionalMixer(embed_dim, **mixer),
                make_norm(embed_dim, norm_epsilon, rms_norm),
                rate,
                residual_in_fp32,
            )
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self._add_heads(num_classes, teacher_dim, norm_epsilon, rms_norm)
        if pool_norm:
            self.pool_norm = make_norm(embed_dim, 1e-5, rms=False)
        init_backbone_(self, self.layers)

    def _add_heads(self, num_classes: int, teacher_dim: int | None, eps: float, rms: bool) -> None:
        self.norm_f = make_norm(self.embed_dim, eps, rms)
        if num_classes > 0:
            self.head = nn.Linear(self.embed_dim, num_classes)
        if teacher_dim is not None:
            check_sizes(teacher_dim=teacher_dim)
            self.distill_head = nn.Sequential(
                make_norm(self.embed_dim, eps, rms), nn.Linear(self.embed_dim, teacher_dim)
            )

    def forward(self, x: Tensor, ssm_state: object = None) -> Tensor:
        """Return class scores `[B, num_classes]`.

        Args:
            x: normalized pixels, images `[B, 3, H, W]`, clips `[B, 3, T, H, W]`; sizes other than the built one are
                fine.
            ssm_state: must be None.

        Raises:
            ValueError: a state is given, or x breaks the contract.
        """
        if self.num_classes == 0:
            raise ValueError("the model was built with num_classes=0 and has no head; use forward_features or embed")
        return self._scores(self.forward_features(x, ssm_state=ssm_state))

    def _scores(self, tokens: Tensor) -> Tensor:
        """Return the class scores of the normed tokens."""
        return self.head(tokens[:, 0])

    def forward_features(self, x: Tensor, mask: Tensor | None = None, ssm_state: object = None) -> Tensor:
        """Return the tokens after the final norm, `[B, 1 + V, C]`, the CLS first.

        Args:
            mask: bool `[B, 1 + t·s]`, True = hidden, CLS visible; None shows all (V = t·s).
        """
        return self.norm_f(self._streams(x, mask, ssm_state, [self.depth])[0])

    def forward_distill(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return a distilled student's class scores, and its features for the teacher.

        The features are `[B, 1 + t·s, teacher_dim]`, each of length 1.
        """
        if not hasattr(self, "distill_head"):
            raise ValueError("the model was built without teacher_dim and has no distill_head")
        tokens = self.forward_features(x)
        return self.head(tokens[:, 0]), F.normalize(self.distill_head(tokens), dim=-1)

    def pooled_features(self, x: Tensor) -> Tensor:
        """Return the normed sum of the CLS and the mean patch token, `[B, C]`, that video-text models compare."""
        if not hasattr(self, "pool_norm"):
            raise ValueError("the model was built without pool_norm; set pool_norm=True")
        tokens = self.forward_features(x)
        return self.pool_norm(tokens[:, 0] + tokens[:, 1:].mean(1))

    def dense_features(self, x: Tensor, layers: Sequence[int]) -> tuple[Tensor, ...]:
        """Return feature maps after some layers, for DPT-like heads.

        Args:
            x: images or clips, see `forward`.
            layers: indices of layers, 0 to depth − 1, in rising order.

        Returns:
            Per layer the token stream after it (not normed), `[B, C, h, w]`; of clips `[B, C, t, h, w]`.
        """
        streams = self._streams(x, None, None, self._check_taps(layers))
        return self._as_maps([tokens[:, 1:] for tokens in streams], self.patch_embed.token_shape(x))

    def patch_features(self, x: Tensor) -> Tensor:
        """Return the patch tokens `[B, t·s, C]` that `embed` averages, without the CLS."""
        return self.forward_features(x)[:, 1:]

    def cls_features(self, x: Tensor) -> Tensor:
        """Return the CLS token `[B, C]` after the final norm."""
        return self.forward_features(x)[:, 0]

    def _streams(self, x: Tensor, mask: Tensor | None, state: object, after: Sequence[int]) -> list[Tensor]:
        """Return the token streams `[B, 1 + V, C]` after so many layers, 0 (the tokens) to depth, in rising order."""
        refuse_state(state, type(self).__name__)
        size = self.patch_embed.token_shape(x)
        tokens = self._embed(x, size)  # [B, 1 + t·s, C]
        if mask is not None:  # hidden tokens leave the sequence: the scan runs over the visible ones alone
            visible = visible_patches(mask, x.shape[0], tokens.shape[1] - 1, True, x.device)
            tokens = torch.cat([tokens[:, :1], gather_tokens(tokens[:, 1:], visible)], dim=1)
        residual, streams = None, []
        for passed in range(after[-1] + 1):
            if passed in after:
                streams.append(add_residual(tokens, residual, self.residual_in_fp32))
            if passed < after[-1]:
                recompute = self.use_checkpoint and self.training
                tokens, residual = self.layers[passed](tokens, residual, recompute)
        return streams

    def _embed(self, x: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Return the CLS and the patch tokens with their positions, `[B, 1 + t·s, C]`."""
        positions = resize_spatial_table(self.pos_embed[:, 1:], self.patch_embed.grid_size, size[1:])
        positions = positions.unsqueeze(1)  # [1, 1, s, C], with the temporal rows [1, t, s, C]
        if self.is_video:
            # A whole clip is stretched as a whole: there is no earlier chunk that it could disagree with.
            rows: Tensor = self.temporal_pos_embedding
            rows = rows[:, : size[0]] if size[0] <= rows.shape[1] else resize_temporal_table(rows, size[0])
            positions = positions + rows.unsqueeze(2)
        tokens = self.patch_embed(x)
        tokens = (tokens + positions.to(tokens.dtype)).flatten(1, 2)
        cls = (self.cls_token + self.pos_embed[:, :1]).to(tokens.dtype)
        return torch.cat([cls.expand(x.shape[0], -1, -1), tokens], dim=1)


class MaskedVideoMamba(VideoMamba):
    """VideoMamba as pretrained by imitating CLIP features of visible tokens (section 3.4 of the paper).

    Its last layer and final norm took no part in that training, so features are the token stream that *enters* the last
    layer, without a norm.

    Args:
        clip_dim: channels of the imitated features.
        backbone: keyword arguments of `VideoMamba`, without num_classes and teacher_dim.
    """

    def __init__(self, clip_dim: int = 512, num_frames: int = 8, **backbone: Any) -> None:
        self.clip_dim = clip_dim
        super().__init__(num_classes=0, num_frames=num_frames, **backbone)
        self.family = "videomamba_masked"

    def _add_heads(self, num_classes: int, teacher_dim: int | None, eps: float, rms: bool) -> None:
        self.norm = make_norm(self.embed_dim, eps, rms)  # never trained; kept so that the files load strictly
        self.clip_decoder = nn.ModuleList([ClipDecoder(self.embed_dim, self.clip_dim)])

    def forward(self, x: Tensor, mask: Tensor | None = None, ssm_state: object = None) -> Tensor:  # type: ignore[override]
        """Return the imitated features `[B, 1 + V, clip_dim]` of unit length of the visible tokens, the CLS first."""
        tokens = self.forward_features(x, mask, ssm_state)
        num_tokens = 1 + math.prod(self.patch_embed.token_shape(x))
        table = sinusoid_table(num_tokens, self.embed_dim, tokens.device).to(tokens.dtype)
        if mask is not None:
            visible = visible_patches(mask, x.shape[0], num_tokens - 1, True, x.device)
            table = torch.cat([table[:1].expand(x.shape[0], 1, -1), table[1:][visible]], dim=1)
        return self.clip_decoder[0]((tokens + table).to(self.cls_token.dtype))

    def forward_features(self, x: Tensor, mask: Tensor | None = None, ssm_state: object = None) -> Tensor:
        """Return the token stream that enters the last layer, `[B, 1 + V, C]`, the CLS first."""
        return self._streams(x, mask, ssm_state, [self.depth - 1])[0]


class ClipDecoder(nn.Module):
    """Linear map and layer norm to unit vectors in the imitated model's space."""

    def __init__(self, embed_dim: int, clip_dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(embed_dim, clip_dim)
        self.norm = nn.LayerNorm(clip_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, L, embed_dim]` to `[B, L, clip_dim]`, each of length 1."""
        return F.normalize(self.norm(self.head(x)), dim=-1)


def sinusoid_table(num_positions: int, dim: int, device: torch.device) -> Tensor:
    """Return the fixed position table `[num_positions, dim]` float32 (Vaswani et al., arXiv 1706.03762, sec. 3.5)."""
    channel = torch.arange(dim, device=device)
    angle = torch.arange(num_positions, dtype=torch.float64, device=device)[:, None] / 10000.0 ** (
        2 * (channel // 2) / dim
    )
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()
