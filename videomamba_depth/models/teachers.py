"""Teachers by name: whichever of the models that are known here a checkpoint holds."""

from __future__ import annotations

import math

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES

from videomamba_depth.models.encoder_da import DepthAnythingEncoder, Teacher
from videomamba_depth.models.encoder_da3 import DepthAnything3Encoder, is_depth_anything_3
from videomamba_depth.models.teacher_files import read_config
from videomamba_depth.models.teacher_transformers import NO_DEPTH, TransformersTeacher
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError


def open_teacher(
    name_or_path: str,
    dtype: torch.dtype = torch.float32,
    short_side: int | None = None,
    *,
    depth_kind: DepthKind | None = None,
    horizontal_fov_deg: float | None = None,
    min_confidence: float = 1.0,
) -> Teacher:
    """Load a teacher: Depth Anything V1, V2 or 3, or any other depth model of transformers, which then only labels.

    Args:
        name_or_path: hub id, local folder, or "embedded" for the small teacher that is shipped.
        dtype: of the weights: float32, bfloat16 or float16.
        short_side: short side in px that frames are resized to; None: each at its own size.
        depth_kind: what its depth means, where the checkpoint does not say; None: what the checkpoint says.
        horizontal_fov_deg, min_confidence: of Depth Anything 3, see `DepthAnything3Encoder`.

    Raises:
        UserError: no such folder or id, no network, no model of depth, broken weights, or options that it cannot have.
    """
    if horizontal_fov_deg is not None and not 0 < horizontal_fov_deg <= 179:
        raise UserError(f"teacher.horizontal_fov_deg must be above 0 and at most 179; got {horizontal_fov_deg}")
    if not 1 <= min_confidence < math.inf:
        raise UserError(f"teacher.min_confidence must be a number, 1 or more; got {min_confidence}")
    config = read_config(name_or_path)
    family = config.get("model_type")
    is_da3 = is_depth_anything_3(config)
    given = {"horizontal_fov_deg": horizontal_fov_deg is not None, "min_confidence": min_confidence > 1}
    if not is_da3 and any(given.values()):
        key = next(key for key, is_given in given.items() if is_given)
        raise UserError(f"teacher.{key} is for Depth Anything 3; '{name_or_path}' is a '{family}' model")
    if is_da3 or family == "depth_anything":
        teacher: Teacher
        if is_da3:
            teacher = DepthAnything3Encoder.from_pretrained(
                name_or_path, dtype, short_side, horizontal_fov_deg, min_confidence
            )
        else:
            teacher = DepthAnythingEncoder.from_pretrained(name_or_path, dtype, short_side)
        if depth_kind not in (None, teacher.depth_kind):
            raise UserError(
                f"teacher.depth_kind={depth_kind.value}: the depth of '{name_or_path}' is {teacher.depth_kind.value};"
                " leave the key out"
            )
        return teacher
    if family not in MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES and family not in NO_DEPTH:
        known = ", ".join(sorted(MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES))
        raise UserError(
            f"'{name_or_path}' is a '{family}' model, not one of depth that the installed transformers knows ({known})"
        )
    return TransformersTeacher.from_pretrained(name_or_path, dtype, short_side, depth_kind)


def open_encoder(
    name_or_path: str,
    dtype: torch.dtype = torch.float32,
    short_side: int | None = None,
    *,
    horizontal_fov_deg: float | None = None,
) -> Teacher:
    """Load a teacher that can be a student's encoder, see `open_teacher`.

    Raises:
        UserError: as `open_teacher`, or it only labels.
    """
    family = read_config(name_or_path).get("model_type")
    if family != "depth_anything" and family in MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES:
        raise UserError(
            f"'{name_or_path}' is a '{family}' model: it labels, but cannot be a student's encoder; use a Depth"
            " Anything such as depth-anything/Depth-Anything-V2-Small-hf"
        )
    return open_teacher(name_or_path, dtype, short_side, horizontal_fov_deg=horizontal_fov_deg)
