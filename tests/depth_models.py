"""Tiny random checkpoints of depth models, written as published ones are: of transformers, and Depth Anything 3."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tiny import enliven
from torch import nn
from transformers import Dinov2Config

from videomamba_depth.models.dinov2_multi_view import MultiViewDinov2
from videomamba_depth.models.encoder_da3 import Da3Head, Reassemble, block_plan, published_name

Built = tuple[Any, Any]  # model and image processor

_DINO: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 14}


def _dpt() -> Built:
    config = transformers.DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16,
    )  # fmt: skip
    model = transformers.DPTForDepthEstimation(config)
    model.head.head[-2].bias.data.fill_(3.0)  # away from the dead side of the ReLU
    return model, transformers.DPTImageProcessor(size={"height": 64, "width": 64})


def _dpt_dinov2() -> Built:
    backbone = Dinov2Config(**_DINO, image_size=56, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)
    config = transformers.DPTConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, use_auxiliary_head=False
    )
    model = transformers.DPTForDepthEstimation(config)
    model.head.head[-2].bias.data.fill_(3.0)
    return model, transformers.DPTImageProcessor(
        size={"height": 56, "width": 56}, do_pad=True, size_divisor=14, do_resize=False
    )


def _depth_pro(use_fov_model: bool = True) -> Built:
    dino = Dinov2Config(**{**_DINO, "patch_size": 4}, image_size=16)
    config = transformers.DepthProConfig(
        patch_size=16, fusion_hidden_size=16, intermediate_hook_ids=[1, 0], intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.25, 0.5, 1.0], scaled_images_overlap_ratios=[0.0, 0.5, 0.25],
        scaled_images_feature_dims=[16, 16, 8], use_fov_model=use_fov_model, num_fov_head_layers=0,
        image_model_config=dino, patch_model_config=dino, fov_model_config=dino,
    )  # fmt: skip
    model = transformers.DepthProForDepthEstimation(config)
    model.head.layers[-2].bias.data.fill_(1.0)
    if use_fov_model:
        model.fov_model.head.layers[-1].bias.data.fill_(60.0)
    return model, transformers.DepthProImageProcessor(size={"height": 64, "width": 64})


def _zoedepth() -> Built:
    backbone = transformers.BeitConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16,
        use_relative_position_bias=True, reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.ZoeDepthConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, bottleneck_features=16,
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0}], num_relative_features=8,
        bin_embedding_dim=16,
    )  # fmt: skip
    return transformers.ZoeDepthForDepthEstimation(config), transformers.ZoeDepthImageProcessor(
        size={"height": 64, "width": 96}, ensure_multiple_of=32
    )


def _glpn() -> Built:
    config = transformers.GLPNConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8
    )
    return transformers.GLPNForDepthEstimation(config), transformers.GLPNImageProcessor()


def _prompt_depth_anything() -> Built:
    backbone = Dinov2Config(**_DINO, image_size=56, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)
    config = transformers.PromptDepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=32, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16,
        head_hidden_size=8, depth_estimation_type="metric",
    )  # fmt: skip
    return transformers.PromptDepthAnythingForDepthEstimation(config), transformers.PromptDepthAnythingImageProcessor(
        size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14
    )


def _tipsv2_dpt() -> Built:
    backbone = transformers.Tipsv2VisionConfig(
        **_DINO, image_size=56, out_indices=[1, 2, 3, 4], reshape_hidden_states=False
    )
    config = transformers.Tipsv2DptConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, num_depth_bins=16
    )
    return transformers.Tipsv2DptForDepthEstimation(config), transformers.Tipsv2DptImageProcessor(
        size={"height": 56, "width": 56}
    )


BUILDERS: dict[str, Callable[[], Built]] = {
    "dpt": _dpt,
    "dpt_dinov2": _dpt_dinov2,
    "depth_pro": _depth_pro,
    "depth_pro_without_fov": lambda: _depth_pro(use_fov_model=False),
    "zoedepth": _zoedepth,
    "glpn": _glpn,
    "prompt_depth_anything": _prompt_depth_anything,
    **({"tipsv2_dpt": _tipsv2_dpt} if hasattr(transformers, "Tipsv2DptConfig") else {}),
}


def save_depth_model(family: str, folder: Path) -> str:
    """Write a tiny checkpoint of a family; return the folder as text."""
    torch.manual_seed(0)
    model, processor = BUILDERS[family]()
    biases = {name: p.clone() for name, p in model.named_parameters() if p.ndim == 1}
    enliven(model)
    assert isinstance(model, nn.Module)
    model.load_state_dict(biases, strict=False)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


_MONOCULAR = {"alt_start": -1, "qknorm_start": -1, "rope_start": -1, "cat_token": False}
_ANY_VIEW = {"alt_start": 2, "qknorm_start": 2, "rope_start": 2, "cat_token": True}
DA3_NETS: dict[str, dict[str, Any]] = {
    "da3mono-large": {"out_layers": [1, 3, 4, 5], **_MONOCULAR},
    "da3metric-large": {"out_layers": [1, 3, 4, 5], **_MONOCULAR},
    "da3-small": {"out_layers": [2, 3, 4, 5], **_ANY_VIEW},
    "da3-giant": {"out_layers": [2, 3, 4, 5], **_ANY_VIEW},
}
"""What the config.json of a published checkpoint says of the blocks; here there are six."""
DA3_WIDTH, DA3_GRID, DA3_FUSION, DA3_CHANNELS = 128, 5, 16, (8, 16, 16, 24)


def depth_anything_3_weights(name: str) -> dict[str, torch.Tensor]:
    """Return weights by their published names, the same on every machine: each is drawn from its name."""
    any_view, plan = not name.startswith(("da3mono", "da3metric")), block_plan(DA3_NETS[name], 6)
    tokens = DA3_WIDTH * (2 if plan.cat_token else 1)
    parts = {
        "backbone": MultiViewDinov2(DA3_WIDTH, 6, DA3_GRID, 14, plan, swiglu=name == "da3-giant"),
        "reassemble_stage": Reassemble(tokens, DA3_CHANNELS, any_view),
        "head": Da3Head(DA3_CHANNELS, DA3_FUSION, 2 if any_view else 1, 14, any_view, not any_view, None),
    }
    weights = {"model.cam_dec.fc_t.weight": torch.zeros(3, 4)}  # a part that is not used
    for part, module in parts.items():
        for own, tensor in module.state_dict().items():
            published = published_name(f"{part}.{own}")
            drawn = np.random.RandomState(zlib.crc32(published.encode())).standard_normal(tuple(tensor.shape))
            is_matrix = tensor.ndim > 1 and "token" not in own and own != "pos_embed"
            scale = tensor[0].numel() ** -0.5 if is_matrix else 0.5 if tensor.ndim > 1 else 0.1
            shift = 1.0 if tensor.ndim == 1 and ("norm" in own or "gamma" in own) and "bias" not in own else 0.0
            weights[published] = torch.from_numpy(shift + scale * drawn).float()
    if not any_view:
        weights["model.head.scratch.sky_output_conv2.2.bias"] += 0.3  # some is sky, some is not
    return weights


def save_depth_anything_3(name: str, folder: Path) -> str:
    """Write a tiny checkpoint of Depth Anything 3; return the folder as text."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(depth_anything_3_weights(name), folder / "model.safetensors")
    about = {"model_name": name, "config": {"net": DA3_NETS[name], "head": {}}}
    (folder / "config.json").write_text(json.dumps(about))
    return str(folder)
