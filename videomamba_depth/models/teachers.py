"""Teachers by name: whichever of the models that are known here a checkpoint holds."""

from __future__ import annotations

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES

from videomamba_depth.models.encoder_da import DepthAnythingEncoder, Teacher
from videomamba_depth.models.teacher_files import read_config
from videomamba_depth.models.teacher_transformers import TransformersTeacher
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError


def open_teacher(
    name_or_path: str,
    dtype: torch.dtype = torch.float32,
    short_side: int | None = None,
    *,
    depth_kind: DepthKind | None = None,
) -> Teacher:
    """Load a teacher: Depth Anything V1/V2, or any other depth model of transformers, which then only labels.

    Args:
        name_or_path: hub id, local folder, or "embedded" for the small teacher that is shipped.
        dtype: of the weights: float32, bfloat16 or float16.
        short_side: short side in px that frames are resized to; None: each at its own size.
        depth_kind: what its depth means, where the checkpoint does not say; None: what the checkpoint says.

    Raises:
        UserError: no such folder or id, no network, no model of depth, or broken weights.
    """
    family = read_config(name_or_path).get("model_type")
    if family == "depth_anything":
        teacher = DepthAnythingEncoder.from_pretrained(name_or_path, dtype, short_side)
        if depth_kind not in (None, teacher.depth_kind):
            raise UserError(
                f"teacher.depth_kind={depth_kind.value}: '{name_or_path}' says that its depth is"
                f" {teacher.depth_kind.value}; leave the key out"
            )
        return teacher
    if family not in MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES:
        known = ", ".join(sorted(MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES))
        raise UserError(
            f"'{name_or_path}' is a '{family}' model, not one of depth that the installed transformers knows ({known})"
        )
    return TransformersTeacher.from_pretrained(name_or_path, dtype, short_side, depth_kind)


def open_encoder(name_or_path: str, dtype: torch.dtype = torch.float32, short_side: int | None = None) -> Teacher:
    """Load a teacher that can be a student's encoder.

    Raises:
        UserError: as `open_teacher`, or it only labels.
    """
    family = read_config(name_or_path).get("model_type")
    if family != "depth_anything" and family in MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES:
        raise UserError(
            f"'{name_or_path}' is a '{family}' model: it labels, but cannot be a student's encoder; use a Depth"
            " Anything such as depth-anything/Depth-Anything-V2-Small-hf"
        )
    return open_teacher(name_or_path, dtype, short_side)
