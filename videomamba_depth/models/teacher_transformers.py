"""Depth models of transformers that label frames: each with its own image processor, and the kind of its depth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForDepthEstimation
from transformers.image_processing_base import ImageProcessingMixin

from videomamba_depth.models.encoder_da import SCALES, Teacher
from videomamba_depth.models.head_depth import DepthHead
from videomamba_depth.models.teacher_files import (
    errors_alone,
    first_line,
    load_weights,
    loading_error,
    read_config,
    source_of,
)
from videomamba_depth.utils.depth_kind import MODEL_KINDS, DepthKind, all_kinds, can_convert, least_inverted
from videomamba_depth.utils.errors import UserError, is_out_of_memory

_LABELS, _DEPTH = SCALES[:2]
_MAX_SAMPLES = 1_000_000  # of a frame, to tell what is too near to be inverted

_NOT_USED = ("neck.fusion_stage.layers.0.residual_layer1.",)
"""What DPT's first fusion layer holds and never calls; published checkpoints have no weights for it."""


def _dpt_kind(config: dict[str, Any]) -> DepthKind | None:
    """Return relative for DPT as MiDaS trains it; None on a DINOv2 backbone, which is published trained on meters."""
    backbone = (config.get("backbone_config") or {}).get("model_type")
    return None if backbone in ("dinov2", "dinov2_with_registers") else DepthKind.RELATIVE


DEPTH_KINDS: dict[str, Callable[[dict[str, Any]], DepthKind | None]] = {
    "depth_pro": lambda config: DepthKind.METRIC if config.get("use_fov_model") else DepthKind.SCALED_DEPTH,
    "dpt": _dpt_kind,
    "glpn": lambda config: DepthKind.METRIC,
    "prompt_depth_anything": lambda config: DepthKind.AFFINE_DEPTH,  # without a prompt: from 0 to 1 in each picture
    "tipsv2_dpt": lambda config: DepthKind.METRIC,
    "zoedepth": lambda config: DepthKind.METRIC,
}
"""What the depth of a `model_type` means, by its config.json; None where that cannot be told."""

NO_DEPTH = {"chmv2": "the height of a canopy, seen from above"}
"""What a `model_type` estimates under the name of depth."""


class TransformersTeacher(Teacher):
    """A model of transformers' `AutoModelForDepthEstimation`: it labels, it does not encode.

    Frames go through the checkpoint's own image processor (size, padding, multiples, mean and standard deviation) and
    its depth through that processor's post-processing, back to the size of the frame: the depth is that of
    transformers' pipeline "depth-estimation".

    Args:
        model: loaded.
        processor: the checkpoint's image processor.
        about_processor: content of its preprocessor_config.json, which decides labels too.
        output_kind: of the model's depth. Meters stay meters; all else becomes `DepthKind.RELATIVE`, as 1/z where it is
            depth up to a scale.
        short_side: px that frames are resized to before; None: the processor is given the frames as they are.

    Raises:
        UserError: depth of that kind cannot be turned into inverse depth.
    """

    encodes = False

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        about_processor: dict[str, Any],
        model_id: str,
        output_kind: DepthKind,
        short_side: int | None = None,
    ) -> None:
        depth_kind = output_kind if output_kind in MODEL_KINDS else DepthKind.RELATIVE
        if not can_convert(output_kind, depth_kind):
            raise UserError(
                f"the depth of '{model_id}' is {output_kind.value}, which cannot be turned into {depth_kind.value}, as"
                " students have it: its shift is unknown. In train, precompute and evaluate,"
                " teacher.depth_kind=scale_invariant_depth takes it for 0"
            )
        super().__init__(model, (1,) * len(SCALES), (1,) * len(SCALES), 1, depth_kind, None, short_side)
        self.model_id, self.processor = model_id, processor
        self._about_processor = about_processor
        self.masks = self._inverts = output_kind.is_inverse is not depth_kind.is_inverse
        self.head = _DepthItself()
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        dtype: torch.dtype = torch.float32,
        short_side: int | None = None,
        depth_kind: DepthKind | None = None,
    ) -> TransformersTeacher:
        """Load a checkpoint of transformers (safetensors only) with its image processor.

        Args:
            name_or_path: hub id or local folder.
            dtype: of the weights: float32, bfloat16 or float16.
            short_side: see the class.
            depth_kind: of a checkpoint whose family does not say; None: as the family says.

        Raises:
            UserError: no such folder or id, no network, no depth or one of unknown kind, or broken files.
        """
        kind = _depth_kind(name_or_path, read_config(name_or_path), depth_kind)
        source = source_of(name_or_path)
        try:
            with errors_alone("transformers"):
                about, _ = ImageProcessingMixin.get_image_processor_dict(source)
                processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        except Exception as error:  # of as many kinds as for the weights
            raise loading_error(name_or_path, error, "preprocessor_config.json") from error
        model = load_weights(AutoModelForDepthEstimation, name_or_path, dtype, _NOT_USED)
        teacher = cls(model, processor, about, name_or_path, kind, short_side)
        if dtype == torch.float32:  # a CPU lacks some operations in 16 bits
            teacher.check_runs()
        return teacher

    def check_runs(self) -> None:
        """Label a small frame: what does not fit shows here, not at the first one.

        Raises:
            UserError: see `encode_pixels`.
        """
        self.encode_pixels(self.mean.new_full((1, 3, 52, 88), 0.5))  # not multiples of 32, as models like them

    def normalize(self, rgb: Tensor) -> Tensor:
        """Leave RGB as it is: the processor normalizes."""
        return rgb

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the depth in place of every map: `[B, 1, h, w]`, float32; where it is inverted, 1/z.

        Depth that is near 0 has no label, NaN in the first map; in the others 1/z is that of the nearest that has one.

        Args:
            pixels: RGB `[B, 3, h, w]` in [0, 1]; it is rounded to whole levels of 255, as processors take pictures.

        Raises:
            UserError: model and processor do not fit each other, or the frame.
        """
        try:
            depth = self._depth(pixels)
        except Exception as error:  # whatever models raise where a processor made other inputs than theirs
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"teacher '{self.model_id}' cannot label a frame of {pixels.shape[-1]}x{pixels.shape[-2]} px: its"
                f" preprocessor_config.json does not fit it ({first_line(error)}); restore the one that came with it"
            ) from error
        if not self._inverts:
            return dict.fromkeys(SCALES, depth)
        floor = least_inverted(depth, DepthKind.SCALED_DEPTH, _MAX_SAMPLES)  # a shift taken for 0 may put points there
        inverse = depth.maximum(floor).reciprocal()
        labels = torch.where(depth >= floor, inverse, torch.nan)
        return {**dict.fromkeys(SCALES, inverse), _LABELS: labels}  # streams look for cuts in the coarsest

    @torch.no_grad()
    def decode_labels(self, features: dict[str, Tensor], image_size: tuple[int, int]) -> Tensor:
        """Return `decode`, NaN where the depth is too near 0 to be inverted."""
        return self.head({_DEPTH: features[_LABELS]}, image_size)

    def _depth(self, pixels: Tensor) -> Tensor:
        levels = pixels.mul(255).round_().clamp_(0, 255).to(torch.uint8)
        inputs = self.processor(images=list(levels), input_data_format="channels_first", return_tensors="pt")
        outputs = self.backbone(pixel_values=inputs["pixel_values"].to(pixels.device, self.dtype))
        for name, value in outputs.items():
            if isinstance(value, Tensor):
                outputs[name] = value.float()
        sizes = [tuple(pixels.shape[-2:])] * len(pixels)  # ZoeDepth's processor takes them as those of the sources
        processed = self.processor.post_process_depth_estimation(outputs, sizes)
        return torch.stack([one["predicted_depth"].reshape(sizes[0]) for one in processed])[:, None]

    def cache_key(self) -> dict[str, str | int | None]:
        """Return what decides the labels, the processor's settings among it."""
        digest = hashlib.sha256(json.dumps(self._about_processor, sort_keys=True).encode()).hexdigest()
        steps = f"whole frames in whole levels, {self.backbone.config.model_type}'s processor {digest[:16]}"
        return {**super().cache_key(), "resize": steps + (", 1/z from a floor" if self._inverts else "")}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a copy that `from_pretrained`, ours and transformers', can load."""
        self.backbone.save_pretrained(folder)
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(self._about_processor, indent=2) + "\n")


class _DepthItself(DepthHead):
    """The head of a teacher whose maps are its depth."""

    def forward(self, features: dict[str, Tensor], image_size: tuple[int, int]) -> Tensor:
        """Return the map at `image_size` = (H, W), bilinearly."""
        depth = features[_DEPTH]
        if depth.shape[-2:] != tuple(image_size):
            depth = F.interpolate(depth.float(), image_size, mode="bilinear", align_corners=True)
        return depth


def _depth_kind(name: str, config: dict[str, Any], named: DepthKind | None) -> DepthKind:
    """Return the kind of a checkpoint's depth: the one that was named, or its family's.

    Raises:
        UserError: it is not known, or what the model estimates is no depth.
    """
    family = str(config.get("model_type"))
    if family in NO_DEPTH:
        raise UserError(f"'{name}' is a '{family}' model: it estimates {NO_DEPTH[family]}, not depth")
    known = DEPTH_KINDS[family](config) if family in DEPTH_KINDS else None
    if named is None and known is None:
        raise UserError(
            f"nothing says what the depth of '{name}' means, a '{family}' model; name it in train, precompute or"
            f" evaluate: teacher.depth_kind=KIND, one of {all_kinds()}"
        )
    return named or known  # type: ignore[return-value]
