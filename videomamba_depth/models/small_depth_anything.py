"""A small Depth Anything with random weights, started so that a short training gets far."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import unfold
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from videomamba_depth.utils.images import IMAGENET_MEAN, IMAGENET_STD

NATIVE_SIZE = 110  # short side in px


def build_small_depth_anything(
    *,
    patch_size: int = 10,
    width: int = 256,
    num_layers: int = 7,
    num_heads: int = 4,
    neck: tuple[int, int, int, int] = (24, 48, 96, 128),
    fusion: int = 32,
    head: int = 16,
    mean_prediction: float = 3.0,
) -> DepthAnythingForDepthEstimation:
    """Build a relative Depth Anything: DINOv2-style ViT and DPT decoder, random weights.

    patch_size: in px; width, num_layers, num_heads: of the ViT; neck, fusion, head: channels of the decoder;
    mean_prediction: what the head gives at first, or its last ReLU dies.
    """
    backbone = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        image_size=NATIVE_SIZE // patch_size * patch_size,
        patch_size=patch_size,
        out_indices=[max(1, round(num_layers * share)) for share in (0.3, 0.55, 0.78, 1.0)],
        reshape_hidden_states=False,
        apply_layernorm=True,
        layerscale_value=1.0,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=width,
        patch_size=patch_size,
        neck_hidden_sizes=list(neck),
        fusion_hidden_size=fusion,
        head_hidden_size=head,
        depth_estimation_type="relative",
        attn_implementation="eager",  # on a CPU its backward pass is the faster one
    )
    model = DepthAnythingForDepthEstimation(config)
    # With the library's start, a std of 0.02 for every convolution, the decoder's output varies by 6e-6. Here every
    # projection keeps the variance and every residual unit starts as the identity.
    for name, module in (*model.neck.named_modules(), ("conv1", model.head.conv1), ("conv2", model.head.conv2)):
        if name.endswith("convolution2"):
            torch.nn.init.zeros_(module.weight)
        elif isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            rectified = "residual" in name or name.startswith("conv")
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if rectified else "linear")
    torch.nn.init.constant_(model.head.conv3.bias, mean_prediction)
    return model


@torch.no_grad()
def initialize_tokens(model: DepthAnythingForDepthEstimation, pictures: list[Tensor]) -> None:
    """Start the patch embedding as a whitening of real patches and the position embedding as sines of the position.

    pictures: normalized batches [b,3,h,w], sides multiples of the patch; at least as many patches as a patch has
    values. Meant to spare a short training the search for these; its share in the result was not measured.
    """
    config = model.config.backbone_config
    size, width = config.patch_size, config.hidden_size
    patches = torch.cat([unfold(batch, size, stride=size).transpose(1, 2).flatten(0, 1) for batch in pictures]).double()
    patches = patches - patches.mean(0)
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    count = min(width, len(variances))
    variances, directions = variances[-count:], directions[:, -count:]
    filters = directions / (variances + 1e-3 * variances.max()).sqrt()
    projection = model.backbone.embeddings.patch_embeddings.projection
    projection.weight[:count] = filters.T.reshape(count, 3, size, size).to(projection.weight)

    side = config.image_size // size
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    rates = 1.2 * 50.0 ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.cat([axis.flatten()[:, None] * rates for axis in (x, y)], 1)
    model.backbone.embeddings.position_embeddings[0, 1:] = 0.5 * torch.cat([angles.sin(), angles.cos()], 1)


def normalized(rgb: Tensor) -> Tensor:
    """Return RGB [b,3,h,w] in [0,1] in units of ImageNet's mean and std."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (rgb - mean) / std


def predict_inverse_depth(model: DepthAnythingForDepthEstimation, rgb: Tensor, *, bfloat16: bool) -> Tensor:
    """Return inverse depth [b,1,h,w] in float32 of rgb [b,3,h,w] in [0,1], sides multiples of the patch.

    bfloat16: compute in it, all but the head, which would round inverse depth to steps of 0.5 %: as much as a slope
    changes from pixel to pixel.
    """
    pixels = normalized(rgb).contiguous(memory_format=torch.channels_last)
    rows, columns = (side // model.config.patch_size for side in rgb.shape[-2:])
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        features = model.backbone.forward_with_filtered_kwargs(pixels).feature_maps
        fused = model.neck(features, rows, columns)
    return model.head([features.float() for features in fused], rows, columns)[:, None]


def save_small_depth_anything(model: DepthAnythingForDepthEstimation, folder: Path) -> None:
    """Write weights in float16 and the preprocessing in the format of the published checkpoints."""
    half = DepthAnythingForDepthEstimation(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # some versions leave it to the owner alone
    preprocessing = {
        "image_processor_type": "DPTImageProcessor",
        "do_resize": True,
        "size": {"height": NATIVE_SIZE, "width": NATIVE_SIZE},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": model.config.patch_size,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "do_pad": False,
        "size_divisor": None,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n", encoding="utf-8")
