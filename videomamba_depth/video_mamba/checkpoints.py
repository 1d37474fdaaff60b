"""Weights of the backbones: the official files, our own, and from images to video."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from videomamba_depth.utils.atomic import replacing
from videomamba_depth.video_mamba.backbone import VideoMamba
from videomamba_depth.video_mamba.checkpoint_files import (
    FLOATS,
    CheckpointError,
    WeightFile,
    load_strictly,
    read_weights,
)
from videomamba_depth.video_mamba.embedding import EmbedsFrames
from videomamba_depth.video_mamba.patch_embed import check_sizes, pair
from videomamba_depth.video_mamba.positions import (
    Grid,
    join_rows,
    resize_spatial_table,
    resize_temporal_table,
    split_rows,
)

Family = Literal["videomamba_image", "videomamba_video", "videomamba_masked", "videomamba_retrieval", "vim", "contract"]
"""Families of files. Image files of VideoMamba and files of Vim have the same names and shapes and mean different
things, so a file never says by itself which it is: the caller does, our own files do in their metadata, and those of
transformers (`save_pretrained`, Trainer) in the config.json beside them."""

_HEADS = ("head.", "distill_head.")
_VIDEO_SOURCES = ("videomamba_masked", "videomamba_retrieval")
_FORMAT = "videomamba-depth backbone 1"
_logger = logging.getLogger(__name__)


def load_backbone(
    model: EmbedsFrames, path: str | Path, family: Family, source_grid: Grid | None = None, keep_head: bool = True
) -> None:
    """Load a file of weights into a model of the same family, strictly.

    Wrappers (`["model"]`, `["module"]`, "module." prefixes) are taken off. Position tables of another size are resized:
    space bicubically, time linearly. Heads that the model was built without (`num_classes=0`, no `teacher_dim`) are
    left out. A `VideoMamba` for clips takes two more families:

    - "videomamba_masked", to fine-tune: the decoder and the final norm, which was never trained, are left out; the
      model keeps its own norm and classifier.
    - "videomamba_retrieval", video-text models: `vision_encoder.*` alone, with its final norm, and with its `pool_norm`
      where the model was built with one; the model keeps its own classifier.

    Args:
        model: a `VideoMamba`, `MaskedVideoMamba`, `Vim` or `PretrainVideoMamba`.
        path: .safetensors, .pt or .pth.
        family: what the file is.
        source_grid: (rows, columns) of patches that the file's position table was made for. None: what our own files
            say, and a square for foreign ones.
        keep_head: False leaves the model's heads as they are, for another number of classes or another teacher.

    Raises:
        CheckpointError: the family is wrong, or names or shapes do not fit; lists every problem.
    """
    file = read_weights(path, unwrap=True)
    _check_family(model, file, family, path)
    if family != model.family:
        file = file._replace(tensors=_as_video(model, file.tensors, family, path))
    tensors = _fit_tables(model, file, source_grid, path)
    if not keep_head:
        tensors = _with_own(model, tensors, _HEADS)
    load_strictly(model, _without_absent_heads(model, tensors), f"'{path}' ({family})", _hint(model, tensors))


def save_backbone(model: EmbedsFrames, path: str | Path) -> None:
    """Write a model's weights as safetensors, with its family and the grid of its position table in the metadata.

    Raises:
        UserError: the folder cannot be written, or the disk is full; the former file is unchanged then.
    """
    rows, columns = model.patch_embed.grid_size
    metadata = {"format": _FORMAT, "family": model.family, "grid": f"{rows}x{columns}"}
    tensors = {name: t.detach().contiguous().cpu() for name, t in model.state_dict().items()}
    with replacing(Path(path)) as partial:
        save_file(tensors, partial, metadata)


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
    if "temporal_pos_embedding" in tensors or (kernel is not None and kernel.ndim == 5):
        raise CheckpointError(f"'{path}' is a file of clips; inflation needs videomamba_image: use load_backbone")
    if kernel is not None and kernel.ndim == 4:
        tensors["patch_embed.proj.weight"] = inflate_kernel(kernel, model.patch_embed.tubelet_size)
    tensors["temporal_pos_embedding"] = torch.zeros_like(model.temporal_pos_embedding)
    tensors = _without_absent_heads(model, _with_own(model, tensors, _HEADS))
    load_strictly(model, tensors, f"'{path}' (videomamba_image, inflated)")


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
    check_sizes(ckpt_num_frame=ckpt_num_frame)
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
    check_sizes(num_frames=num_frames)
    built = model.get_parameter("temporal_pos_embedding").shape[1]
    if num_frames // model.patch_embed.tubelet_size != built:
        raise ValueError(f"num_frames={num_frames} does not fit a model whose temporal table has {built} rows")
    load_contract_weights(model, pretrained_path, ckpt_num_frame)


def _check_family(model: EmbedsFrames, file: WeightFile, family: str, path: str | Path) -> None:
    if family not in get_args(Family):
        raise CheckpointError(f"family must be one of {', '.join(get_args(Family))}; got {family!r}")
    written = file.metadata.get("family", family)
    if written != family:
        raise CheckpointError(f"'{path}' says that it is of family {written!r}, not {family!r}; state its own family")
    if family != model.family and (model.family != "videomamba_video" or family not in _VIDEO_SOURCES):
        raise CheckpointError(
            f"'{path}' of family {family!r} cannot be loaded into a model of family {model.family!r}: the two may have"
            " the same names and shapes and still mean different things; build the model of the file's family"
        )


def _fit_tables(model: EmbedsFrames, file: WeightFile, source_grid: Grid | None, path: str | Path) -> dict[str, Tensor]:
    """Return the tensors with both position tables in the model's sizes; other tensors as they are."""
    tensors, wanted = dict(file.tensors), model.state_dict()
    table = tensors.get("pos_embed")
    if table is not None and "pos_embed" in wanted and _is_table(table, wanted["pos_embed"]):
        tensors["pos_embed"] = _fit_spatial(model, table, wanted["pos_embed"], source_grid, file, path)
    table = tensors.get("temporal_pos_embedding")
    own = wanted.get("temporal_pos_embedding")
    if table is not None and own is not None and _is_table(table, own):
        tensors["temporal_pos_embedding"] = resize_temporal_table(table, own.shape[1])
    for name in ("rope.freqs_cos", "rope.freqs_sin"):  # of another grid: computed, not learned
        if name in tensors and name in wanted and tensors[name].shape != wanted[name].shape:
            tensors[name] = wanted[name]
    return tensors


def _is_table(table: Tensor, own: Tensor) -> bool:
    """Tell whether a table can be resized to the model's own; `load_strictly` refuses others."""
    alike = table.ndim == 3 and table.shape[1] > 0 and table.shape[::2] == own.shape[::2]
    return alike and table.dtype in FLOATS


def _fit_spatial(
    model: EmbedsFrames, table: Tensor, wanted: Tensor, grid: Grid | None, file: WeightFile, path: str | Path
) -> Tensor:
    built = model.patch_embed.grid_size
    num_built = built[0] * built[1]
    num_rows = table.shape[1] - (wanted.shape[1] - num_built)
    grid = None if grid is None else pair("source_grid", grid)
    if num_rows < 1:
        return table  # of CLS tokens alone
    if grid is None and "grid" in file.metadata:
        sides = re.fullmatch(r"(\d+)x(\d+)", file.metadata["grid"])
        if sides is None:
            raise CheckpointError(
                f"'{path}' says grid={file.metadata['grid']!r} where ROWSxCOLUMNS belongs; pass source_grid"
            )
        grid = int(sides[1]), int(sides[2])
    if grid is None and num_rows == num_built:
        return table
    if grid is None:
        side = math.isqrt(num_rows)
        grid = (side, side)
    if grid[0] * grid[1] != num_rows:
        raise CheckpointError(
            f"'{path}': pos_embed has {num_rows} rows of patches, which are no grid of {grid[0]}x{grid[1]}; pass"
            " source_grid"
        )
    # The rows of CLS tokens keep their places (in front, in the middle, at the end) and their values.
    patches, others = split_rows(table, model.cls_positions(num_rows))
    return join_rows(resize_spatial_table(patches, grid, built), others, model.cls_positions(num_built))


def _as_video(model: EmbedsFrames, tensors: Mapping[str, Tensor], family: str, path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a masked-pretrained or a video-text file by the names of a classifier of clips."""
    if family == "videomamba_retrieval":
        prefix = "vision_encoder."
        tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if not tensors:
            raise CheckpointError(f"'{path}' holds no {prefix}* and is no file of family {family!r}")
        tensors = {f"norm_f.{n.removeprefix('norm.')}" if n.startswith("norm.") else n: t for n, t in tensors.items()}
        own = ["head."] if hasattr(model, "pool_norm") else ["head.", "pool_norm."]
    else:
        own = ["head.", "norm.", "norm_f.", "pool_norm."]
    return _with_own(
        model, {name: t for name, t in tensors.items() if not name.startswith("clip_decoder.")}, tuple(own)
    )


def _with_own(model: nn.Module, tensors: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the tensors with those of the model in the place of those that start with a prefix."""
    own = {name: t for name, t in model.state_dict().items() if name.startswith(prefixes)}
    return {**{name: t for name, t in tensors.items() if not name.startswith(prefixes)}, **own}


def _without_absent_heads(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors but for those of heads that the model was built without."""
    absent = tuple(f"{head}." for head in ("head", "distill_head") if not hasattr(model, head))
    dropped = [name for name in tensors if absent and name.startswith(absent)]
    if dropped:
        _logger.info("left out, since the model has no such head: %s", ", ".join(dropped))
    return {name: t for name, t in tensors.items() if name not in dropped}


def _hint(model: EmbedsFrames, tensors: Mapping[str, Tensor]) -> str:
    if model.family == "contract" and any("_b." in name or name.endswith("_b_log") for name in tensors):
        return (
            "\nThe file holds the backward branch (*_b) of a bidirectional model. bimamba=True means this causal model"
            " here: bidirectional weights do not become causal by dropping that branch, they must be fine-tuned. Load"
            " them into VideoMamba."
        )
    return ""
