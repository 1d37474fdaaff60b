"""Pooled embeddings of images and clips, with the preprocessing that each family of weights was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomamba_depth.utils.errors import describe
from videomamba_depth.utils.images import IMAGENET_MEAN, IMAGENET_STD
from videomamba_depth.video_mamba.patch_embed import ClipSize, PatchEmbed


@dataclass(frozen=True)
class Preprocessing:
    """From RGB in [0, 1] to what a family of weights expects: resize, center crop, ImageNet mean and std.

    Attributes:
        resize: px that the short side becomes, for a model of `crop` px; the aspect ratio is kept.
        crop: px of the center crop's sides that `resize` refers to; other model sizes scale both.
        interpolation: of the resize, anti-aliased.
    """

    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic"]

    def __call__(self, frames: Tensor, size: tuple[int, int]) -> Tensor:
        """Return normalized pixels `[N, 3, *size]` of frames `[N, 3, H, W]`, uint8 or floats in [0, 1]."""
        frames = _as_unit_floats(frames)
        height, width = frames.shape[-2:]
        scale = max(side / full for side, full in zip(size, (height, width), strict=True)) * self.resize / self.crop
        resized = tuple(max(wanted, round(full * scale)) for wanted, full in zip(size, (height, width), strict=True))
        if resized != (height, width):
            frames = F.interpolate(frames, resized, mode=self.interpolation, antialias=True).clamp(0, 1)
        top, left = ((full - wanted) // 2 for full, wanted in zip(resized, size, strict=True))
        return normalize_imagenet(frames[..., top : top + size[0], left : left + size[1]])


def normalize_imagenet(frames: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its standard deviation; frames `[..., 3, H, W]` in [0, 1]."""
    mean = torch.tensor(IMAGENET_MEAN, dtype=frames.dtype, device=frames.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, dtype=frames.dtype, device=frames.device).view(3, 1, 1)
    return (frames - mean) / std


class EmbedsFrames(nn.Module):
    """A backbone that can turn images or clips into one vector each, and into maps of features."""

    family: str  # of files that the model loads, see `load_backbone`
    preprocessing: Preprocessing  # of the inputs that those weights were trained on
    patch_embed: PatchEmbed
    depth: int  # number of layers

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that weight decay must leave alone."""
        names = ("pos_embed", "cls_token", "cls_token_head", "cls_token_tail", "temporal_pos_embedding")
        return {name for name in names if hasattr(self, name)}

    def get_num_layers(self) -> int:
        """Return the number of layers."""
        return self.depth

    def cls_positions(self, num_patches: int) -> tuple[int, ...]:
        """Return where the CLS tokens stand among `num_patches` patches, and their rows in the position table."""
        return (0,)

    def patch_features(self, x: Tensor) -> Tensor:
        """Return the patch tokens `[B, n, C]` of normalized pixels, without CLS."""
        raise NotImplementedError

    def cls_features(self, x: Tensor) -> Tensor:
        """Return the CLS token `[B, C]` of normalized pixels."""
        raise NotImplementedError

    def preprocess(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Return normalized pixels of the size and dtype that the model was built for.

        Args:
            images: `[B, 3, H, W]`, or a sequence of `[3, H_i, W_i]`; clips for a video model: `[B, T, 3, H, W]`, or a
                sequence of `[T, 3, H_i, W_i]`. uint8, or floats in [0, 1].

        Returns:
            `[B, 3, H, W]`, for a video model `[B, 3, T, H, W]`.
        """
        size, is_video = self.patch_embed.img_size, self.patch_embed.is_video
        wanted = "[T, 3, H, W]" if is_video else "[3, H, W]"
        items = []
        for item in images:
            if not isinstance(item, Tensor) or item.ndim != (4 if is_video else 3) or item.shape[-3] != 3:
                raise ValueError(f"each item of images must have shape {wanted}; got {describe(item)}")
            if not item.numel():
                raise ValueError(f"each item of images must hold pixels; got {describe(item)}")
            items.append(self.preprocessing(item if is_video else item.unsqueeze(0), size))
        if not items:
            raise ValueError("images must hold at least one item; got none")
        batch = torch.stack([item.transpose(0, 1) if is_video else item.squeeze(0) for item in items])
        parameter = next(self.parameters())
        return batch.to(parameter.device, parameter.dtype)

    @torch.no_grad()
    def embed(self, images: Tensor | Sequence[Tensor], pool: Literal["mean", "cls"] = "mean") -> Tensor:
        """Return one vector per image or clip, `[B, C]` float32.

        Args:
            images: see `preprocess`.
            pool: "mean" over the patch tokens (the CLS is left out), or the "cls" token.
        """
        if pool not in ("mean", "cls"):
            raise ValueError(f"pool must be 'mean' or 'cls'; got {pool!r}")
        was_training = self.training
        self.eval()
        try:
            x = self.preprocess(images)
            return self.cls_features(x).float() if pool == "cls" else self.patch_features(x).float().mean(1)
        finally:
            self.train(was_training)

    def _check_taps(self, layers: Sequence[int]) -> list[int]:
        """Return how many layers a stream has passed after each of `layers`, which must be indices in rising order."""
        if list(layers) != sorted(set(layers)) or not layers or layers[0] < 0 or layers[-1] >= self.depth:
            raise ValueError(f"layers must rise, each in 0 to {self.depth - 1}; got {tuple(layers)}")
        return [index + 1 for index in layers]

    def _as_maps(self, streams: Sequence[Tensor], size: ClipSize) -> tuple[Tensor, ...]:
        """Return patch tokens `[B, t·s, C]` as maps `[B, C, h, w]`, of clips `[B, C, t, h, w]`."""
        shape = size if self.patch_embed.is_video else size[1:]
        return tuple(tokens.transpose(1, 2).unflatten(2, shape) for tokens in streams)


def _as_unit_floats(frames: Tensor) -> Tensor:
    if frames.dtype == torch.uint8:
        return frames.float() / 255
    if not frames.is_floating_point():
        raise TypeError(f"images must be uint8, or floats in [0, 1]; got {frames.dtype}")
    low, high = frames.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must lie in [0, 1]; got {low.item():.3g} to {high.item():.3g}; divide by 255?")
    return frames.to(torch.promote_types(frames.dtype, torch.float32))
