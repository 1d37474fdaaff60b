"""Frozen teachers, and Depth Anything V1/V2 as one: multi-scale features and depth from one pass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, DepthAnythingForDepthEstimation

from videomamba_depth.models.attention import transformers_attention
from videomamba_depth.models.head_depth import DepthHead, DPTHead
from videomamba_depth.models.input_size import model_input_size
from videomamba_depth.models.teacher_files import (
    FORMER_NAMES,
    HAS_FORMER_NAMES,
    former_name,
    load_depth_anything,
    loading_error,
)
from videomamba_depth.utils.checkpoint import hash_tensors
from videomamba_depth.utils.depth_kind import DepthKind, require_model_kind
from videomamba_depth.utils.images import IMAGENET_MEAN, IMAGENET_STD, check_rgb, shrink_images, shrinks, unit_images

SCALES = ("s0", "s1", "s2", "s3")
"""Names of the four feature maps, fine to coarse: strides patch/4, patch/2, patch, 2·patch."""

_ATTENTION = "videomamba_depth"  # among transformers' implementations
AttentionInterface.register(_ATTENTION, transformers_attention)


class FrameEncoder(nn.Module):
    """From a frame to four feature maps: what the student needs from its encoder.

    Preprocessing (as transformers' image processor of Depth Anything: cubic resize, antialiased where it shrinks, sides
    rounded to multiples of the patch, ImageNet mean and std): the short side becomes `short_side`, the aspect ratio is
    kept; with `short_side=None` each side is rounded to the nearest multiple of the patch.

    Attributes:
        frozen: True: never trained, and stored once, beside the student's weights; False: a part of them.
        backbone: what the features are taken from.
        channels: C_i of s0..s3.
        factors: cells of s0..s3 per patch and axis; halves are rounded up.
        patch_size: side of a patch in px.
        depth_kind: what the depth means, see `DepthKind`.
        max_depth_m: upper bound of metric depth in meters; None for relative depth.
        short_side: px, see above; may be changed.
    """

    frozen: bool
    backbone: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        channels: tuple[int, ...],
        factors: tuple[float, ...],
        patch_size: int,
        depth_kind: DepthKind,
        max_depth_m: float | None,
        short_side: int | None,
    ) -> None:
        super().__init__()
        if len(channels) != len(SCALES):
            raise ValueError(f"neck_hidden_sizes must hold {len(SCALES)} numbers; got {list(channels)}")
        self.backbone = backbone
        self.channels, self.factors, self.patch_size = channels, factors, patch_size
        self.depth_kind = require_model_kind(depth_kind, type(self).__name__)
        self.max_depth_m, self.short_side = max_depth_m, short_side
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.backbone.parameters()).dtype

    def input_resolution(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in px that a frame of that size is resized to, see `model_input_size`."""
        return model_input_size(height, width, self.short_side, self.patch_size)

    def feature_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        """Return the (height, width) of s0..s3 for a frame of that size, without running anything."""
        rows, columns = (side // self.patch_size for side in self.input_resolution(height, width))
        factors = zip(SCALES, self.factors, strict=True)
        return {name: (math.ceil(rows * factor), math.ceil(columns * factor)) for name, factor in factors}

    def fitted_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in px of what `fit` makes of a frame of that size."""
        size = self.input_resolution(height, width)
        return size if shrinks((height, width), size) else (height, width)

    def fit(self, rgb: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return frames `[B, 3, H, W]` in [0, 1] no larger than the model sees them; what fits is returned as it is.

        Args:
            rgb: in [0, 1], or uint8.
            size: (H, W) px that the model sees them at; None: `input_resolution`.
        """
        size = size or self.input_resolution(rgb.shape[-2], rgb.shape[-1])
        if rgb.dtype == torch.uint8:
            return unit_images(rgb, size).to(self.mean.dtype)
        return shrink_images(rgb.to(self.mean.dtype), size)

    def encode_frame(
        self, rgb: Tensor, *, checked: bool = False, size: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """Return the feature maps s0..s3, each `[B, C_i, H_i, W_i]`.

        Args:
            rgb: `[B, 3, H, W]` in [0, 1], any size.
            checked: they are known to be such: to look at them would wait for their device.
            size: as in `fit`; frames that were fitted need it, since rounding to patches twice may give another one.

        Raises:
            ValueError: see `check_rgb`.
        """
        if not checked:
            check_rgb(rgb)
        size = size or self.input_resolution(rgb.shape[-2], rgb.shape[-1])
        pixels = self.normalize(self.fit(rgb, size))
        if size != pixels.shape[-2:]:  # a side grows
            pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False)
        return self.encode_pixels(pixels)  # [B, 3, *size], about -2 to 2.6

    def normalize(self, rgb: Tensor) -> Tensor:
        """Return RGB `[B, 3, h, w]` in [0, 1] in units of ImageNet's mean and standard deviation."""
        return (rgb - self.mean) / self.std

    def encode_pixels(self, pixels: Tensor) -> dict[str, Tensor]:
        """Do the part of `encode_frame` that is worth compiling.

        Args:
            pixels: `[B, 3, H, W]` normalized, sides multiples of the patch.
        """
        raise NotImplementedError


class Teacher(FrameEncoder):
    """A frozen model that labels frames, and may be a student's encoder too; it stays in eval mode.

    Attributes:
        encodes: whether it can be a student's encoder: False where its maps are the depth itself.
        masks: whether some labels are NaN, for none; all others are finite.
        head: from the maps of `encode_frame` to depth.
        model_id: hub id, folder or "embedded", for people.
    """

    frozen = True
    encodes: bool = True
    masks: bool = False
    head: DepthHead
    model_id: str

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode: the teacher is frozen."""
        return super().train(False)

    @torch.no_grad()
    def decode(self, features: dict[str, Tensor], image_size: tuple[int, int]) -> Tensor:
        """Return the teacher's depth `[B, 1, H, W]` from its features, at `image_size` = (H, W)."""
        return self.head(features, image_size)

    def predict_depth(self, rgb: Tensor) -> Tensor:
        """Return the depth `[B, 1, H, W]` of frames `[B, 3, H, W]` in [0, 1]; its unit is `depth_kind`."""
        return self.decode(self.encode_frame(rgb), (rgb.shape[-2], rgb.shape[-1]))

    def decode_labels(self, features: dict[str, Tensor], image_size: tuple[int, int]) -> Tensor:
        """Return `decode` as labels: NaN where the model itself says that its depth means nothing."""
        return self.decode(features, image_size)

    def predict_labels(self, rgb: Tensor) -> Tensor:
        """Return the depth as labels, see `predict_depth` and `decode_labels`."""
        return self.decode_labels(self.encode_frame(rgb), (rgb.shape[-2], rgb.shape[-1]))

    def options(self) -> dict[str, Any]:
        """Return the arguments that the model was loaded with and that its depth depends on, as JSON values."""
        return {}

    def check_runs(self) -> None:
        """Run one frame of 2 × 2 patches: what does not fit in a config shows here, not at the first step.

        Raises:
            ValueError: the depth has another shape. Other errors as the parts of the model raise them.
        """
        side = 2 * self.patch_size
        depth = self.decode(self.encode_pixels(self.mean.new_zeros(1, 3, side, side)), (side, side))
        if depth.shape != (1, 1, side, side):
            raise ValueError(f"its depth of a frame of {side} × {side} px has shape {list(depth.shape)}")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a copy that can be loaded in place of the original."""
        raise NotImplementedError

    def weights_sha256(self) -> str:
        """Return a digest of all weights, independent of where and in which dtype they are stored in memory."""
        return hash_tensors(self.state_dict().items())

    def has_weights(self, sha256: str) -> bool:
        """Tell whether the digest is that of these weights, under the names of any version of transformers."""
        return sha256 == self.weights_sha256() or sha256 == hash_tensors(
            (former_name(name), t) for name, t in self.state_dict().items()
        )

    def cache_key(self) -> dict[str, str | int | None]:
        """Return what decides the labels that this teacher gives to a frame."""
        return {
            "model_id": self.model_id,
            "weights_sha256": self.weights_sha256(),
            "input_size": self.short_side,
            "dtype": str(self.dtype).removeprefix("torch."),
            "depth_kind": self.depth_kind.value,
        }


class DepthAnythingEncoder(Teacher):
    """A frozen Depth Anything V1/V2 checkpoint, split where the temporal model goes in.

    `encode_frame` ends after the DPT *reassemble* stage; `decode` runs the rest (fusion and head). Every parameter is
    frozen and the module stays in eval mode.

    Depth comes back at the size of the input, bilinearly (corners aligned, as the official code).
    """

    head: DPTHead

    def __init__(self, model: DepthAnythingForDepthEstimation, model_id: str, short_side: int | None = None) -> None:
        config = model.config
        max_depth = _max_depth(config.max_depth)
        metric = config.depth_estimation_type == "metric"
        super().__init__(
            model.backbone,
            tuple(config.neck_hidden_sizes),
            tuple(config.reassemble_factors),  # below 1: 3x3 convolutions of that stride and padding 1, which round up
            config.patch_size,
            DepthKind.METRIC if metric else DepthKind.RELATIVE,
            max_depth if metric else None,
            short_side,
        )
        if model.backbone.config._attn_implementation == "sdpa":  # the default; others were asked for
            model.backbone.set_attn_implementation(_ATTENTION)
        self.model_id, self.hf_config = model_id, config
        self.reassemble_stage = model.neck.reassemble_stage
        self.head = DPTHead.from_transformers(model)
        self.requires_grad_(False)
        self.eval()
        if HAS_FORMER_NAMES:
            self.register_state_dict_post_hook(_use_current_names)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, dtype: torch.dtype = torch.float32, short_side: int | None = None
    ) -> DepthAnythingEncoder:
        """Load a checkpoint of transformers (safetensors only).

        Args:
            name_or_path: hub id, local folder, or "embedded" for the small teacher that is shipped.
            dtype: of the weights: float32, bfloat16 or float16.
            short_side: see the class.

        Raises:
            UserError: no such folder or id, no network, not a Depth Anything model, or broken weights.
        """
        model = load_depth_anything(name_or_path, dtype)
        try:
            encoder = cls(model, name_or_path, short_side)
            encoder.check_runs()
            return encoder
        except Exception as error:  # a config.json that makes no sense
            raise loading_error(name_or_path, error) from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a copy that `from_pretrained`, ours and transformers', can load."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.hf_config.save_pretrained(folder)
        weights = {_hf_name(name): t.contiguous().cpu() for name, t in self.state_dict().items()}
        save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> dict[str, Tensor]:
        """Run the ViT and the *reassemble* stage, see `FrameEncoder.encode_pixels`."""
        height, width = pixels.shape[-2:]
        hidden = self.backbone.forward_with_filtered_kwargs(pixels.to(self.dtype)).feature_maps  # 4 × [B, 1 + n, D]
        maps = self.reassemble_stage(hidden, height // self.patch_size, width // self.patch_size)
        return dict(zip(SCALES, maps, strict=True))


def _hf_name(name: str) -> str:
    """Return transformers' name of a tensor of `DepthAnythingEncoder`."""
    for ours, theirs in (
        ("head.head.", "head."),
        ("head.", "neck."),
        ("reassemble_stage.", "neck.reassemble_stage."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _use_current_names(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Make digests and files independent of the version of transformers."""
    for name in [name for name in state if name.startswith(prefix)]:
        current = name
        for now, former in FORMER_NAMES.items():
            current = current.replace(former, now)
        state[current] = state.pop(name)


def _max_depth(value: object) -> float:
    """Check the factor of the depth: meters in a metric checkpoint, without a unit (usually 1) in a relative one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"max_depth must be a positive number (meters in a metric checkpoint); got {value}")
    return float(value)
