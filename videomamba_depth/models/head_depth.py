"""The DPT decoder: from multi-scale features to depth."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation


class DepthHead(nn.Module):
    """From the maps s0..s3 of an encoder to depth: `head(features, (H, W))` is `[B, 1, H, W]`."""

    def freeze_unused(self) -> None:
        """Freeze what is never called: DDP waits for a gradient of what can have one."""


class DPTHead(DepthHead):
    """Fusion stage and depth head of a Depth Anything checkpoint (Ranftl et al., DPT, arXiv 2103.13413).

    Takes the reassembled features s0..s3 (fine to coarse) and returns depth. The parts are transformers' own modules,
    so that the output equals transformers' to the bit for the same features.
    """

    def __init__(self, convs: nn.ModuleList, fusion_stage: nn.Module, head: nn.Module, patch_scale: int) -> None:
        super().__init__()
        self.convs, self.fusion_stage, self.head = convs, fusion_stage, head
        self.patch_scale = patch_scale  # index of the scale whose stride is the patch

    @classmethod
    def from_transformers(cls, model: DepthAnythingForDepthEstimation) -> DPTHead:
        """Copy the decoder of `model`; its weights are not shared."""
        parts = (model.neck.convs, model.neck.fusion_stage, model.head)
        return cls(*copy.deepcopy(parts), patch_scale=list(model.config.reassemble_factors).index(1))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DPTHead:
        """Return the decoder of a Depth Anything config in plain values, with undefined weights: load some."""
        with torch.device("meta"):
            model = DepthAnythingForDepthEstimation(DepthAnythingConfig.from_dict(config))
        return cls.from_transformers(model).to_empty(device="cpu")

    def freeze_unused(self) -> None:
        """Freeze what DPT's first fusion layer holds but never calls, see `DepthHead`."""
        first: nn.Module = next(self.fusion_stage.layers.children())  # type: ignore[union-attr]
        first.get_submodule("residual_layer1").requires_grad_(False)

    def forward(self, features: dict[str, Tensor], image_size: tuple[int, int]) -> Tensor:
        """Return depth `[B, 1, H, W]` at `image_size` = (H, W) from features `{name: [B, C_i, H_i, W_i]}`."""
        maps = list(features.values())
        rows, columns = maps[self.patch_scale].shape[-2:]  # patches
        projected = [conv(x) for conv, x in zip(self.convs, maps, strict=True)]  # [B, F, H_i, W_i]: one width F
        fused = self.fusion_stage(projected)  # coarse to fine, each twice as large as its map
        # The parts of transformers' head, one by one: its own forward rounds sizes by int(), which an export pins.
        head: Any = self.head
        x = head.conv1(fused[head.head_in_index])  # [B, F/2, 8·rows, 8·columns]
        size = (rows * head.patch_size, columns * head.patch_size)
        x = F.interpolate(x, size, mode="bilinear", align_corners=True)
        x = head.conv3(head.activation1(head.conv2(x)))  # [B, 1, *size]
        depth = head.activation2(x) * head.max_depth  # ≥ 0; metric: a sigmoid, so at most max_depth
        depth = depth.squeeze(1).unsqueeze(1)  # in plain strides, as transformers returns it: resized to the same bits
        if depth.shape[-2:] != tuple(image_size):
            depth = F.interpolate(depth.float(), image_size, mode="bilinear", align_corners=True)
        return depth
