"""Vim: the bidirectional image backbone with its CLS token in the middle, and its published variations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from videomamba_depth.layers.bidirectional_mixer import refuse_state
from videomamba_depth.video_mamba.backbone_block import (
    BackboneLayer,
    add_residual,
    check_classes,
    drop_path_rates,
    init_backbone_,
    make_norm,
)
from videomamba_depth.video_mamba.embedding import EmbedsFrames, Preprocessing
from videomamba_depth.video_mamba.patch_embed import PatchEmbed
from videomamba_depth.video_mamba.positions import Grid, join_rows, resize_spatial_table, split_rows
from videomamba_depth.video_mamba.rope import RotaryPositions
from videomamba_depth.video_mamba.ssm_config import check_discretization, mixer_arguments
from videomamba_depth.video_mamba.vim_mixer import NON_CAUSAL, VimMixer

_CLS_NAMES = {"both": ("cls_token_head", "cls_token_tail"), "none": ()}
_FINAL_POOL_TYPES = ("none", "mean", "max", "all")


class Vim(EmbedsFrames):
    """Vision Mamba (Zhu et al., arXiv 2401.09417); the defaults are those of the released files.

    The CLS token stands in the middle of the patches (98 of 196 come before it), row n // 2 of `pos_embed` is its own,
    and the two directions of a mixer are averaged. Names of the options are those of the field's configs.

    Args:
        img_size, patch_size, depth, embed_dim, channels, drop_path_rate, ssm_cfg, norm_epsilon, rms_norm,
            residual_in_fp32, fused_add_norm, initializer_cfg, device, dtype: as in `PretrainVideoMamba`.
        stride: px between patches; None: the patch size.
        d_state: states per channel.
        num_classes: outputs of the classifier; 0 leaves it out.
        drop_rate: dropout on the tokens with their positions.
        discretization_method: a name in `selective_scan.DISCRETIZATIONS`, or "poly_noncausal" (`vim_mixer.NON_CAUSAL`);
            released files were trained with "zoh".
        bimamba_type: how a layer reads the sequence, "v2", "v1" or "none", see `VimMixer`; if_bimamba=True means "v1".
        if_bidirectional: layers work in pairs, the second on the flipped sequence, and their results are summed; needs
            an even depth.
        if_cls_token: classify by a CLS token; False: by `final_pool_type`.
        use_middle_cls_token: the CLS stands in the middle; False: in front. The two after it come before this one.
        use_tail_cls_token: the CLS stands at the end.
        use_double_cls_token: one CLS stands in front and one at the end; their mean is classified.
        if_abs_pos_embed: add a learned position table.
        if_rope: rotate the tokens before every layer by their row and column.
        if_rope_residual: rotate the residual stream too; needs if_rope.
        pt_hw_seq_len: side in patches of the grid that rotary positions are stretched to.
        rope_still: which token if_rope leaves alone when there is a CLS: the "first", as in the released code wherever
            the CLS stands, or the "cls" itself.
        flip_img_sequences_ratio: share of the training steps in which the whole sequence is reversed; ≤ 0: none.
        if_divide_out: average the two directions; False: sum. None: `if_devide_out`, its older spelling, else True.
        init_layer_scale: start of a learned factor per channel on each mixer's output; None: without.
        final_pool_type: without a CLS: scores of the last token ("none"), of the "mean" token, "max" over the tokens'
            scores, or the scores of "all" tokens. With a CLS it says nothing and must be "mean" or "none".
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
        d_state: int | None = None,
        channels: int = 3,
        num_classes: int = 1000,
        ssm_cfg: Mapping[str, Any] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = True,
        initializer_cfg: None = None,
        fused_add_norm: bool = True,
        residual_in_fp32: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        discretization_method: str = "zoh",
        bimamba_type: str = "v2",
        if_bimamba: bool = False,
        if_bidirectional: bool = False,
        if_cls_token: bool = True,
        use_middle_cls_token: bool = True,
        use_tail_cls_token: bool = False,
        use_double_cls_token: bool = False,
        if_abs_pos_embed: bool = True,
        if_rope: bool = False,
        if_rope_residual: bool = False,
        pt_hw_seq_len: int = 14,
        rope_still: str = "first",
        flip_img_sequences_ratio: float = -1.0,
        if_divide_out: bool | None = None,
        init_layer_scale: float | None = None,
        final_pool_type: str = "mean",
        use_cuda_kernel: bool | None = None,
        if_devide_out: bool | None = None,
    ) -> None:
        super().__init__()
        if if_divide_out is not None and if_devide_out not in (None, if_divide_out):
            raise ValueError("if_divide_out and if_devide_out are two spellings of one option; give one of them")
        halve = next((value for value in (if_divide_out, if_devide_out) if value is not None), True)
        bimamba_type = "v1" if if_bimamba else bimamba_type
        mixer = _mixer_options(ssm_cfg, d_state, discretization_method, use_cuda_kernel)
        self.cls_place = _cls_place(if_cls_token, use_middle_cls_token, use_tail_cls_token, use_double_cls_token)
        _check_layers(bimamba_type, if_bidirectional, depth, mixer["discretization"])
        check_classes(num_classes)
        _check_numbers(flip_img_sequences_ratio, init_layer_scale, drop_rate)
        _check_tokens(self.cls_place, final_pool_type, if_rope, if_rope_residual, rope_still, embed_dim)
        self.depth, self.embed_dim, self.num_classes = depth, embed_dim, num_classes
        self.if_bidirectional, self.if_rope_residual = if_bidirectional, if_rope_residual
        self.rope_still, self.flip_ratio = rope_still, flip_img_sequences_ratio
        self.final_pool_type, self.residual_in_fp32 = final_pool_type, residual_in_fp32
        self.patch_embed = PatchEmbed(img_size, patch_size, channels, embed_dim, stride=stride)
        self.cls_names = _CLS_NAMES.get(self.cls_place, ("cls_token",))
        for name in self.cls_names:
            self.register_parameter(name, nn.Parameter(torch.zeros(1, 1, embed_dim)))
        rows = self.patch_embed.num_patches + len(self.cls_names)
        table = nn.Parameter(torch.zeros(1, rows, embed_dim)) if if_abs_pos_embed else None
        self.register_parameter("pos_embed", table)
        self.pos_drop = nn.Dropout(drop_rate)
        self.rope = RotaryPositions(self.patch_embed.grid_size, pt_hw_seq_len, embed_dim) if if_rope else None
        self.layers = nn.ModuleList(
            BackboneLayer(
                VimMixer(embed_dim, bimamba_type, halve, init_layer_scale, **mixer),
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
        self.to(device=device, dtype=dtype)

    def forward(self, x: Tensor, ssm_state: object = None, return_features: bool = False) -> Tensor:
        """Return class scores `[B, num_classes]` (`[B, n, num_classes]` for final_pool_type="all").

        Args:
            x: normalized pixels `[B, 3, H, W]`; sizes other than the built one are fine.
            ssm_state: must be None.
            return_features: return what the head would read instead: `[B, C]`, for final_pool_type "max" and "all"
                `[B, n, C]`.

        Raises:
            ValueError: a state is given, or x breaks the contract.
        """
        if self.num_classes == 0 and not return_features:
            raise ValueError("the model was built with num_classes=0 and has no head; use forward_features or embed")
        tokens = self.forward_features(x, ssm_state)
        return self._pooled(tokens) if return_features else self._scores(tokens)

    def forward_features(self, x: Tensor, ssm_state: object = None) -> Tensor:
        """Return the tokens after the final norm, `[B, n + k, C]`, with k CLS tokens at `cls_positions(n)`."""
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
        return self._as_maps(
            [self._split(tokens)[0] for tokens in self._streams(x, after)], self.patch_embed.token_shape(x)
        )

    def patch_features(self, x: Tensor) -> Tensor:
        """Return the patch tokens `[B, n, C]` after the final norm, without the CLS."""
        return self._split(self.forward_features(x))[0]

    def cls_features(self, x: Tensor) -> Tensor:
        """Return the CLS token `[B, C]` after the final norm; of two, their mean."""
        if not self.cls_names:
            raise ValueError("the model was built with if_cls_token=False; use pool='mean'")
        return self._split(self.forward_features(x))[1].mean(1)

    def cls_positions(self, num_patches: int) -> tuple[int, ...]:
        """Return where the CLS tokens stand among `num_patches` patches."""
        places = {"middle": (num_patches // 2,), "front": (0,), "tail": (num_patches,), "both": (0, num_patches + 1)}
        return places.get(self.cls_place, ())

    def _scores(self, tokens: Tensor) -> Tensor:
        """Return the class scores of the normed tokens."""
        scores = self.head(self._pooled(tokens))
        return scores.amax(1) if self.final_pool_type == "max" else scores

    def _pooled(self, tokens: Tensor) -> Tensor:
        """Return what the head reads of the normed tokens."""
        if self.cls_names:
            return self._split(tokens)[1].mean(1)
        if self.final_pool_type in ("none", "mean"):
            return tokens[:, -1] if self.final_pool_type == "none" else tokens.mean(1)
        return tokens

    def _split(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patches `[B, n, C]` and the CLS tokens `[B, k, C]`."""
        return split_rows(tokens, self.cls_positions(tokens.shape[1] - len(self.cls_names)))

    def _streams(self, x: Tensor, after: Sequence[int]) -> list[Tensor]:
        """Return the token streams after so many layers, 0 (the tokens) to depth, in rising order."""
        grid = self.patch_embed.token_shape(x)[1:]
        tokens, residual, streams = self._embed(x, grid), None, []  # [B, n + k, C]
        flipped = self.training and self.flip_ratio > 0 and torch.rand(()).item() < self.flip_ratio
        if flipped:
            tokens = tokens.flip(1)
        step = 2 if self.if_bidirectional else 1
        for index in range(0, after[-1] + 1, step):
            if index in after:
                stream = add_residual(tokens, residual, self.residual_in_fp32)
                streams.append(stream.flip(1) if flipped else stream)
            if index == after[-1]:
                break
            tokens = self._rotate(tokens, grid, flipped)
            if residual is not None and self.if_rope_residual:
                residual = self._rotate(residual, grid, flipped)
            if self.if_bidirectional:
                tokens, residual = self._run_pair(index, tokens, residual)
            else:
                tokens, residual = self.layers[index](tokens, residual)
        return streams

    def _embed(self, x: Tensor, grid: Grid) -> Tensor:
        """Return the patches and the CLS tokens with their positions, `[B, n + k, C]`."""
        tokens = self.patch_embed(x).squeeze(1)
        cls = torch.cat([tokens.new_empty(1, 0, self.embed_dim), *map(self.get_parameter, self.cls_names)], dim=1)
        if isinstance(self.pos_embed, Tensor):
            built = self.patch_embed.grid_size
            table, rows = split_rows(self.pos_embed, self.cls_positions(built[0] * built[1]))
            tokens = tokens + resize_spatial_table(table, built, grid).to(tokens.dtype)
            cls = cls + rows
        cls = cls.to(tokens.dtype).expand(x.shape[0], -1, -1)
        return self.pos_drop(join_rows(tokens, cls, self.cls_positions(tokens.shape[1])))

    def _rotate(self, tokens: Tensor, grid: Grid, flipped: bool) -> Tensor:
        if self.rope is None:
            return tokens
        still = None
        if self.cls_names:
            still = 0 if self.rope_still == "first" else self.cls_positions(grid[0] * grid[1])[0]
        turned = self.rope(tokens.flip(1) if flipped else tokens, grid, still)
        return turned.flip(1) if flipped else turned

    def _run_pair(self, index: int, tokens: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        branch, stream = self.layers[index](tokens, residual)
        back, back_stream = self.layers[index + 1](tokens.flip(1), None if residual is None else residual.flip(1))
        return branch + back.flip(1), stream + back_stream.flip(1)


VisionMamba = Vim
"""The name of the released code."""


def _cls_place(if_cls_token: bool, middle: bool, tail: bool, double: bool) -> str:
    """Return where the CLS stands: "middle", "front", "tail", "both" ends, or "none"."""
    if not if_cls_token:
        if tail or double:
            raise ValueError(
                "use_tail_cls_token and use_double_cls_token need if_cls_token=True: there is no CLS token to place"
            )
        return "none"
    if tail and double:
        raise ValueError("use_tail_cls_token and use_double_cls_token both place the CLS; give one of them")
    return "both" if double else "tail" if tail else "middle" if middle else "front"


def _check_layers(bimamba_type: str, if_bidirectional: bool, depth: int, discretization: str) -> None:
    if bimamba_type not in ("v1", "v2", "none"):
        raise ValueError(f"bimamba_type must be 'v1', 'v2' or 'none'; got {bimamba_type!r}")
    if bimamba_type == "v1" and discretization == NON_CAUSAL:
        raise ValueError(
            f"{NON_CAUSAL!r} reads both directions with one A and bimamba_type='v1' with two; give one of them"
        )
    if if_bidirectional and depth % 2:
        raise ValueError(f"if_bidirectional=True runs layers in pairs and needs an even depth; got {depth}")


def _check_numbers(flip_ratio: float, layer_scale: float | None, drop_rate: float) -> None:
    if not flip_ratio <= 1:
        raise ValueError(f"flip_img_sequences_ratio is a share, at most 1 (0 or less: none); got {flip_ratio}")
    if layer_scale is not None and not math.isfinite(layer_scale):
        raise ValueError(f"init_layer_scale must be None or a finite number; got {layer_scale}")
    if not 0 <= drop_rate <= 1:
        raise ValueError(f"drop_rate must be in [0, 1]; got {drop_rate}")


def _check_tokens(
    cls_place: str, final_pool_type: str, if_rope: bool, if_rope_residual: bool, rope_still: str, embed_dim: int
) -> None:
    if final_pool_type not in _FINAL_POOL_TYPES:
        raise ValueError(f"final_pool_type must be one of {', '.join(_FINAL_POOL_TYPES)}; got {final_pool_type!r}")
    if cls_place != "none" and final_pool_type not in ("mean", "none"):
        raise ValueError(
            f"final_pool_type={final_pool_type!r} has no effect with a CLS token, which the head reads instead; leave"
            " 'mean', or set if_cls_token=False and use_middle_cls_token=False"
        )
    if rope_still not in ("first", "cls"):
        raise ValueError(f"rope_still must be 'first' or 'cls'; got {rope_still!r}")
    if if_rope_residual and not if_rope:
        raise ValueError("if_rope_residual=True needs if_rope=True: there is no rotation to apply")
    if if_rope and cls_place == "both":
        raise ValueError("if_rope=True leaves one token alone and use_double_cls_token=True has two; give one of them")
    if if_rope and embed_dim % 4:
        raise ValueError(
            f"if_rope=True splits channels into row and column pairs and needs embed_dim % 4 == 0; got {embed_dim}"
        )


def _mixer_options(
    ssm_cfg: Mapping[str, Any] | None, d_state: int | None, discretization_method: str, use_cuda_kernel: bool | None
) -> dict[str, Any]:
    """Return the keyword arguments of `VimMixer`; what is said twice must agree."""
    config = dict(ssm_cfg or {})
    for key, name, value in (
        ("discretization", "discretization_method", discretization_method),
        ("d_state", "d_state", d_state),
    ):
        if value is not None and config.setdefault(key, value) != value:
            raise ValueError(f"ssm_cfg says {key}={config[key]!r} and {name} is {value!r}; give it once")
    if use_cuda_kernel is not None and "backend" in config:
        raise ValueError("ssm_cfg['backend'] and use_cuda_kernel both choose the kernels; give one of them")
    if use_cuda_kernel and not torch.cuda.is_available():
        raise ValueError(
            "use_cuda_kernel=True needs a CUDA device and there is none; use None, which chooses by itself"
        )
    if use_cuda_kernel is not None:
        config["backend"] = "triton" if use_cuda_kernel else "reference"
    discretization = config.pop("discretization")
    if discretization != NON_CAUSAL:
        check_discretization(discretization)
    return {**mixer_arguments(config), "discretization": discretization}
