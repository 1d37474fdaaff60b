"""Weights of the backbones: the official files, our own, and from images to video."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from videomamba_depth.video_mamba.backbone import VideoMamba
from videomamba_depth.video_mamba.checkpoint_files import (
    CheckpointError,
    WeightFile,
    load_strictly,
    read_weights,
)
from videomamba_depth.video_mamba.embedding import EmbedsFrames
from videomamba_depth.video_mamba.positions import Grid, resize_spatial_table, resize_temporal_table

Family = Literal["videomamba_image", "videomamba_video", "videomamba_masked", "vim", "contract"]
"""Families of files. Image files of VideoMamba and files of Vim have the same names and shapes and mean different
things, so a file never says by itself which it is: the caller does, and our own files do in their metadata."""

_FORMAT = "videomamba-depth backbone 1"
_logger = logging.getLogger(__name__)


def load_backbone(
    model: EmbedsFrames, path: str | Path, family: Family, source_grid: Grid | None = None, keep_head: bool = True
) -> None:
    """Load a file of weights into a model of the same family, strictly.

    Wrappers (`["model"]`, `["module"]`, "module." prefixes) are taken off. Position tables of another size are resized:
    space bicubically, time linearly.

    Args:
        model: a `VideoMamba`, `MaskedVideoMamba`, `Vim` or `PretrainVideoMamba`.
        path: .safetensors, .pt or .pth.
        family: what the file is.
        source_grid: (rows, columns) of patches that the file's position table was made for. None: what our own files
            say, and a square for foreign ones.
        keep_head: False leaves the model's classifier as it is, for another number of classes.

    Raises:
        CheckpointError: the family is wrong, or names or shapes do not fit; lists every problem.
    """
    file = read_weights(path, unwrap=True)
    _check_family(model, file, family, path)
    tensors = _fit_tables(model, file, source_grid, path)
    if not keep_head:
        tensors = _with_own_head(model, tensors)
    load_strictly(model, tensors, f"'{path}' ({family})", _hint(model, tensors))


def save_backbone(model: EmbedsFrames, path: str | Path) -> None:
    """Write a model's weights as safetensors, with its family and the grid of its position table in the metadata."""
    rows, columns = model.patch_embed.grid_size
    metadata = {"format": _FORMAT, "family": model.family, "grid": f"{rows}x{columns}"}
    save_file({name: t.detach().contiguous().cpu() for name, t in model.state_dict().items()}, path, metadata)


def inflate_image_weights(model: VideoMamba, path: str | Path, source_grid: Grid | None = None) -> None:
    """Load an image file of VideoMamba into a video model.

    The 2-D patch kernel goes to the middle time slice of the 3-D one, the other slices and the temporal table become
    zero. The classifier is left as it is: its classes are others.

    Raises:
        CheckpointError: as `load_backbone`.
    """
    if not isinstance(model, VideoMamba) or model.family != "videomamba_video":
        raise CheckpointError(f"inflation needs a VideoMamba built with num_frames; got {type(model).__name__}")
    file = read_weights(path, unwrap=True)
    if file.metadata.get("family", "videomamba_image") != "videomamba_image":
        raise CheckpointError(
            f"'{path}' is a file of family {file.metadata['family']}; inflation needs videomamba_image"
        )
    tensors = _fit_tables(model, file, source_grid, path)
    kernel = tensors.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 4:
        tensors["patch_embed.proj.weight"] = inflate_kernel(kernel, model.patch_embed.tubelet_size)
    tensors.setdefault("temporal_pos_embedding", torch.zeros_like(model.temporal_pos_embedding))
    load_strictly(model, _with_own_head(model, tensors), f"'{path}' (videomamba_image, inflated)")


def inflate_kernel(kernel: Tensor, tubelet_size: int) -> Tensor:
    """Return the kernel `[d, 3, tubelet, p, p]` that does to a tubelet's middle frame what `[d, 3, p, p]` does."""
    inflated = kernel.new_zeros(*kernel.shape[:2], tubelet_size, *kernel.shape[2:])
    inflated[:, :, tubelet_size // 2] = kernel
    return inflated


def load_contract_weights(model: EmbedsFrames, path: str | Path, ckpt_num_frame: int) -> None:
    """Load a plain state dict into a `PretrainVideoMamba`, strictly; wrapped files are refused.

    Args:
        path: .safetensors, .pt or .pth.
        ckpt_num_frame: frames that the file was trained with, ≥ 1. The temporal table is resized from the length stored
            in it, whatever this says; a number that does not fit it is reported.

    Raises:
        CheckpointError: the file is wrapped, or names or shapes do not fit; lists every problem.
        ValueError: ckpt_num_frame is no positive integer.
    """
    if not isinstance(ckpt_num_frame, int) or ckpt_num_frame < 1:
        raise ValueError(f"ckpt_num_frame must be a positive integer; got {ckpt_num_frame!r}")
    file = read_weights(path, unwrap=False)
    _check_family(model, file, "contract", path)
    table = file.tensors.get("temporal_pos_embedding")
    tubelet = model.patch_embed.tubelet_size
    if table is not None and table.ndim == 3 and table.shape[1] != ckpt_num_frame // tubelet:
        _logger.warning(
            "'%s': ckpt_num_frame=%d means %d temporal rows, but the file holds %d; these are used",
            path,
            ckpt_num_frame,
            ckpt_num_frame // tubelet,
            table.shape[1],
        )
    tensors = _fit_tables(model, file, None, path)
    load_strictly(model, tensors, f"'{path}'", _hint(model, tensors))


def load_state_dict(pretrained_path: str | Path, model: EmbedsFrames, ckpt_num_frame: int, num_frames: int) -> None:
    """Call `load_contract_weights` by the name and the arguments of the field's VideoMamba code.

    Args:
        num_frames: frames that the model was built for; a number that does not fit the model is refused.
    """
    built = model.get_parameter("temporal_pos_embedding").shape[1]
    if num_frames // model.patch_embed.tubelet_size != built:
        raise ValueError(f"num_frames={num_frames} does not fit a model whose temporal table has {built} rows")
    load_contract_weights(model, pretrained_path, ckpt_num_frame)


def _check_family(model: EmbedsFrames, file: WeightFile, family: str, path: str | Path) -> None:
    written = file.metadata.get("family", family)
    if written != family:
        raise CheckpointError(f"'{path}' says that it is of family {written!r}, not {family!r}; state its own family")
    if family != model.family:
        raise CheckpointError(
            f"'{path}' of family {family!r} cannot be loaded into a model of family {model.family!r}: the two may have"
            " the same names and shapes and still mean different things; build the model of the file's family"
        )


def _fit_tables(model: EmbedsFrames, file: WeightFile, source_grid: Grid | None, path: str | Path) -> dict[str, Tensor]:
    """Return the tensors with both position tables in the model's sizes; other tensors as they are."""
    tensors, wanted = dict(file.tensors), model.state_dict()
    table = tensors.get("pos_embed")
    if table is not None and "pos_embed" in wanted and table.ndim == 3:
        tensors["pos_embed"] = _fit_spatial(model, table, wanted["pos_embed"], source_grid, file, path)
    table = tensors.get("temporal_pos_embedding")
    if table is not None and "temporal_pos_embedding" in wanted and table.ndim == 3 and table.shape[1] > 0:
        tensors["temporal_pos_embedding"] = resize_temporal_table(table, wanted["temporal_pos_embedding"].shape[1])
    return tensors


def _fit_spatial(
    model: EmbedsFrames, table: Tensor, wanted: Tensor, grid: Grid | None, file: WeightFile, path: str | Path
) -> Tensor:
    built = model.patch_embed.grid_size
    has_cls = wanted.shape[1] == built[0] * built[1] + 1
    num_rows = table.shape[1] - int(has_cls)
    if grid is None and "grid" in file.metadata:
        rows, columns = file.metadata["grid"].split("x")
        grid = int(rows), int(columns)
    if grid is None and num_rows == built[0] * built[1]:
        return table
    if grid is None:
        side = math.isqrt(max(num_rows, 0))
        grid = (side, side)
    if grid[0] * grid[1] != num_rows:
        raise CheckpointError(
            f"'{path}': pos_embed has {num_rows} rows of patches, which are no grid of {grid[0]}x{grid[1]}; pass"
            " source_grid"
        )
    # The CLS row stands first, or in the middle of Vim's table, and keeps its place and its values.
    find = getattr(model, "cls_position", lambda _: 0)
    cut, paste = find(num_rows), find(built[0] * built[1])
    if not has_cls:
        return resize_spatial_table(table, grid, built)
    patches = resize_spatial_table(torch.cat([table[:, :cut], table[:, cut + 1 :]], dim=1), grid, built)
    return torch.cat([patches[:, :paste], table[:, cut : cut + 1], patches[:, paste:]], dim=1)


def _with_own_head(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = {name: t for name, t in model.state_dict().items() if name.startswith("head.")}
    return {**{name: t for name, t in tensors.items() if not name.startswith("head.")}, **own}


def _hint(model: EmbedsFrames, tensors: Mapping[str, Tensor]) -> str:
    if model.family == "contract" and any("_b." in name or name.endswith("_b_log") for name in tensors):
        return (
            "\nThe file holds the backward branch (*_b) of a bidirectional model. bimamba=True means this causal model"
            " here: bidirectional weights do not become causal by dropping that branch, they must be fine-tuned. Load"
            " them into VideoMamba."
        )
    return ""
