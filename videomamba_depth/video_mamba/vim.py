"""Vim: the bidirectional image backbone with its CLS token in the middle, and its published variations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from videomamba_depth.layers.bidirectional_mixer import BidirectionalMixer, refuse_state
from videomamba_depth.layers.mamba_mixer import MambaMixer
from videomamba_depth.video_mamba.backbone_block import (
    BackboneLayer,
    add_residual,
    drop_path_rates,
    init_backbone_,
    make_norm,
)
from videomamba_depth.video_mamba.embedding import EmbedsFrames, Preprocessing
from videomamba_depth.video_mamba.patch_embed import PatchEmbed
from videomamba_depth.video_mamba.positions import resize_spatial_table
from videomamba_depth.video_mamba.rope import rotary_angles, rotate_patches
from videomamba_depth.video_mamba.ssm_config import mixer_arguments

_FINAL_POOL_TYPES = ("none", "mean", "max", "all")


class Vim(EmbedsFrames):
    """Vision Mamba (Zhu et al., arXiv 2401.09417); the defaults are those of the released files.

    The CLS token stands in the middle of the patches (98 of 196 come before it), row n // 2 of `pos_embed` is its own,
    and the two directions of a mixer are averaged. Names of the options are those of the field's configs.

    Args:
        img_size, patch_size, depth, embed_dim, channels, drop_path_rate, ssm_cfg, norm_epsilon, rms_norm,
            residual_in_fp32: as in `PretrainVideoMamba`.
        stride: px between patches; None: the patch size.
        num_classes: outputs of the classifier; 0 leaves it out.
        discretization_method: a name in `selective_scan.DISCRETIZATIONS`; released files were trained with "zoh".
        bimamba_type: "v2": each layer scans in both directions; "none": forward alone.
        if_bidirectional: layers work in pairs, the second on the flipped sequence, and their results are averaged;
            needs bimamba_type="none" and an even depth.
        if_cls_token: classify by a CLS token; False: by `final_pool_type`.
        use_middle_cls_token: the CLS stands in the middle; False: in front.
        if_abs_pos_embed: add a learnt position table.
        if_rope: rotate the tokens before every layer by their row and column; unlike the released code, which takes the
            first token for the CLS, the CLS keeps still wherever it stands.
        if_rope_residual: rotate the residual stream too; needs if_rope.
        if_divide_out: average the two directions; False: sum.
        final_pool_type: without a CLS: scores of the last token ("none"), of the "mean" token, "max" over the tokens'
            scores, or the scores of "all" tokens. With a CLS it says nothing and must be "mean", as in the released
            configs.
        use_cuda_kernel: True: the compiled kernels on a GPU; False: plain PyTorch; None: choose.
    """

    family = "vim"
    preprocessing = Preprocessing(resize=256, crop=224, interpolation="bicubic")

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        stride: int | None = None,
        depth: int = 24,
        embed_dim: int = 192,
        channels: int = 3,
        num_classes: int = 1000,
        discretization_method: str = "zoh",
        bimamba_type: str = "v2",
        if_bidirectional: bool = False,
        if_cls_token: bool = True,
        use_middle_cls_token: bool = True,
        if_abs_pos_embed: bool = True,
        if_rope: bool = False,
        if_rope_residual: bool = False,
        if_divide_out: bool = True,
        final_pool_type: str = "mean",
        use_cuda_kernel: bool | None = None,
        drop_path_rate: float = 0.0,
        ssm_cfg: Mapping[str, Any] | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = True,
        residual_in_fp32: bool = True,
    ) -> None:
        super().__init__()
        _check_layers(bimamba_type, if_bidirectional, depth)
        _check_tokens(if_cls_token, use_middle_cls_token, final_pool_type, if_rope, if_rope_residual, embed_dim)
        mixer = _mixer_options(ssm_cfg, discretization_method, use_cuda_kernel)
        self.depth, self.embed_dim, self.num_classes = depth, embed_dim, num_classes
        self.if_bidirectional, self.if_rope, self.if_rope_residual = if_bidirectional, if_rope, if_rope_residual
        self.if_cls_token, self.use_middle_cls_token = if_cls_token, use_middle_cls_token
        self.final_pool_type, self.residual_in_fp32 = final_pool_type, residual_in_fp32
        self.patch_embed = PatchEmbed(img_size, patch_size, channels, embed_dim, stride=stride)
        if if_cls_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        if if_abs_pos_embed:
            rows = self.patch_embed.num_patches + int(if_cls_token)
            self.pos_embed: nn.Parameter | None = nn.Parameter(torch.zeros(1, rows, embed_dim))
        else:
            self.pos_embed = None
        self.layers = nn.ModuleList(
            BackboneLayer(
                BidirectionalMixer(embed_dim, halve=if_divide_out, **mixer)
                if bimamba_type == "v2"
                else MambaMixer(embed_dim, **mixer),
                make_norm(embed_dim, norm_epsilon, rms_norm),
                rate,
                residual_in_fp32,
            )
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm_f = make_norm(embed_dim, norm_epsilon, rms_norm)
        if num_classes > 0:
            self.head = nn.Linear(embed_dim, num_classes)
        init_backbone_(self, self.layers)

    def forward(self, x: Tensor, ssm_state: object = None) -> Tensor:
        """Return class scores `[B, num_classes]` (`[B, n, num_classes]` for final_pool_type="all").

        Args:
            x: normalised pixels `[B, 3, H, W]`; sizes other than the built one are fine.
            ssm_state: must be None.

        Raises:
            ValueError: a state is given, or x breaks the contract.
        """
        if self.num_classes == 0:
            raise ValueError("the model was built with num_classes=0 and has no head; use forward_features or embed")
        tokens = self.forward_features(x, ssm_state)
        if self.if_cls_token:
            return self.head(tokens[:, self.cls_position(tokens.shape[1] - 1)])
        if self.final_pool_type in ("none", "mean"):
            return self.head(tokens[:, -1] if self.final_pool_type == "none" else tokens.mean(1))
        scores = self.head(tokens)
        return scores.amax(1) if self.final_pool_type == "max" else scores

    def forward_features(self, x: Tensor, ssm_state: object = None) -> Tensor:
        """Return the tokens after the final norm, `[B, n, C]`, or `[B, n + 1, C]` with the CLS at `cls_position(n)`."""
        refuse_state(ssm_state, "Vim")
        return self.norm_f(self._streams(x, [self.depth])[0])

    def dense_features(self, x: Tensor, layers: Sequence[int]) -> tuple[Tensor, ...]:
        """Return feature maps `[B, C, h, w]` after some layers, not normed, for DPT-like heads.

        Args:
            layers: indices of layers, 0 to depth − 1, in rising order; with if_bidirectional each the second of its
                pair (1, 3, ...).
        """
        after = self._check_taps(layers)
        if self.if_bidirectional and any(passed % 2 for passed in after):
            raise ValueError(f"if_bidirectional runs layers in pairs: take the odd ones; got {tuple(layers)}")
        streams = [self._without_cls(tokens) for tokens in self._streams(x, after)]
        return self._as_maps(streams, self.patch_embed.token_shape(x))

    def _streams(self, x: Tensor, after: Sequence[int]) -> list[Tensor]:
        """Return the token streams after so many layers, 0 (the tokens) to depth, in rising order."""
        _, *grid = self.patch_embed.token_shape(x)
        tokens, residual, streams = self._embed(x, (grid[0], grid[1])), None, []
        angles = None
        if self.if_rope:
            angles = rotary_angles((grid[0], grid[1]), self.patch_embed.grid_size, self.embed_dim, x.device)
        step = 2 if self.if_bidirectional else 1
        for index in range(0, after[-1] + 1, step):
            if index in after:
                streams.append(add_residual(tokens, residual, self.residual_in_fp32))
            if index == after[-1]:
                break
            tokens, residual = self._rotate(tokens, residual, angles)
            if self.if_bidirectional:
                tokens, residual = self._run_pair(index, tokens, residual)
            else:
                tokens, residual, _ = self.layers[index](tokens, residual)
        return streams

    def patch_features(self, x: Tensor) -> Tensor:
        """Return the patch tokens `[B, n, C]` after the final norm, without the CLS."""
        return self._without_cls(self.forward_features(x))

    def cls_features(self, x: Tensor) -> Tensor:
        """Return the CLS token `[B, C]` after the final norm."""
        if not self.if_cls_token:
            raise ValueError("the model was built with if_cls_token=False; use pool='mean'")
        tokens = self.forward_features(x)
        return tokens[:, self.cls_position(tokens.shape[1] - 1)]

    def cls_position(self, num_patches: int) -> int:
        """Return where the CLS stands among `num_patches` patches."""
        return num_patches // 2 if self.use_middle_cls_token else 0

    def _without_cls(self, tokens: Tensor) -> Tensor:
        if not self.if_cls_token:
            return tokens
        position = self.cls_position(tokens.shape[1] - 1)
        return torch.cat([tokens[:, :position], tokens[:, position + 1 :]], dim=1)

    def _embed(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = self.patch_embed(x).squeeze(1)
        if not self.if_cls_token:
            if self.pos_embed is None:
                return tokens
            return tokens + resize_spatial_table(self.pos_embed, self.patch_embed.grid_size, grid).to(tokens.dtype)
        cls: Tensor = self.cls_token
        if self.pos_embed is not None:
            row = self.cls_position(self.patch_embed.num_patches)
            cls = cls + self.pos_embed[:, row : row + 1]
            table = torch.cat([self.pos_embed[:, :row], self.pos_embed[:, row + 1 :]], dim=1)
            tokens = tokens + resize_spatial_table(table, self.patch_embed.grid_size, grid).to(tokens.dtype)
        position = self.cls_position(tokens.shape[1])
        cls = cls.to(tokens.dtype).expand(x.shape[0], -1, -1)
        return torch.cat([tokens[:, :position], cls, tokens[:, position:]], dim=1)

    def _rotate(self, tokens: Tensor, residual: Tensor | None, angles: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if angles is None:
            return tokens, residual
        position = self.cls_position(angles.shape[0]) if self.if_cls_token else None
        if residual is not None and self.if_rope_residual:
            residual = rotate_patches(residual, angles, position)
        return rotate_patches(tokens, angles, position), residual

    def _run_pair(self, index: int, tokens: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        ahead = self.layers[index](tokens, residual)
        flipped = None if residual is None else residual.flip(1)
        back = self.layers[index + 1](tokens.flip(1), flipped)
        return (ahead.branch + back.branch.flip(1)) / 2, (ahead.residual + back.residual.flip(1)) / 2


def _check_layers(bimamba_type: str, if_bidirectional: bool, depth: int) -> None:
    if bimamba_type not in ("v2", "none"):
        raise ValueError(f"bimamba_type must be 'v2' or 'none'; got {bimamba_type!r}")
    if if_bidirectional and bimamba_type == "v2":
        raise ValueError(
            "if_bidirectional=True with bimamba_type='v2' would scan every sequence in both directions twice; set"
            " bimamba_type='none' for pairs of one-way layers, or leave if_bidirectional off"
        )
    if if_bidirectional and depth % 2:
        raise ValueError(f"if_bidirectional=True runs layers in pairs and needs an even depth; got {depth}")


def _check_tokens(
    if_cls_token: bool, middle: bool, final_pool_type: str, if_rope: bool, if_rope_residual: bool, embed_dim: int
) -> None:
    if middle and not if_cls_token:
        raise ValueError("use_middle_cls_token=True needs if_cls_token=True: there is no CLS token to place")
    if final_pool_type not in _FINAL_POOL_TYPES:
        raise ValueError(f"final_pool_type must be one of {', '.join(_FINAL_POOL_TYPES)}; got {final_pool_type!r}")
    if if_cls_token and final_pool_type != "mean":
        raise ValueError(
            f"final_pool_type={final_pool_type!r} has no effect with a CLS token, which the head reads instead; leave"
            " 'mean', or set if_cls_token=False and use_middle_cls_token=False"
        )
    if if_rope_residual and not if_rope:
        raise ValueError("if_rope_residual=True needs if_rope=True: there is no rotation to apply")
    if if_rope and embed_dim % 4:
        raise ValueError(
            f"if_rope=True splits channels into row and column pairs and needs embed_dim % 4 == 0; got {embed_dim}"
        )


def _mixer_options(
    ssm_cfg: Mapping[str, Any] | None, discretization_method: str, use_cuda_kernel: bool | None
) -> dict[str, Any]:
    config = dict(ssm_cfg or {})
    if config.get("discretization", discretization_method) != discretization_method:
        raise ValueError(
            f"ssm_cfg says discretization={config['discretization']!r} and discretization_method is"
            f" {discretization_method!r}; give it once"
        )
    if use_cuda_kernel is not None and "backend" in config:
        raise ValueError("ssm_cfg['backend'] and use_cuda_kernel both choose the kernels; give one of them")
    if use_cuda_kernel and not torch.cuda.is_available():
        raise ValueError(
            "use_cuda_kernel=True needs a CUDA device and there is none; use None, which chooses by itself"
        )
    if use_cuda_kernel is not None:
        config["backend"] = "triton" if use_cuda_kernel else "reference"
    return mixer_arguments({**config, "discretization": discretization_method})
