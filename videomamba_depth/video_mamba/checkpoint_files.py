"""Reading files of weights without running any code in them, and saying all that is wrong with one at once."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.hub_refusals import hub_refusal
from videomamba_depth.video_mamba.patch_embed import pair, patch_grid

_SUFFIXES = (".safetensors", ".pth", ".pt")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w./-]+)?")
WRAPPERS = ("model", "module", "state_dict")
"""Keys under which training scripts of the field put the state dict."""


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes of weights; narrower floats mean nothing without the scales that they were quantized by."""


class CheckpointError(UserError, ValueError):
    """A file of weights that cannot be used, in one message with every problem."""


class WeightFile(NamedTuple):
    """What a file holds."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]  # of safetensors files; for those of `transformers_models`, what their config.json says


def read_weights(path: str | Path, unwrap: bool) -> WeightFile:
    """Read a .safetensors file, or a PyTorch file with `weights_only=True`.

    Args:
        path: of the file, or a repository on the Hugging Face hub, see `hub_file`.
        unwrap: accept a state dict under one of `WRAPPERS`, and strip the "module." of distributed training and the
            "backbone." of `transformers_models`; False: only a plain state dict is accepted.

    Raises:
        CheckpointError: no such file, not a file of weights, a tensor without plain data (sparse, on device meta), or
            (unwrap=False) a wrapped one.
    """
    name, path = str(path), Path(os.path.expanduser(path))
    if not path.exists() and _HUB_ID.fullmatch(name) and (":" in name or not name.endswith(_SUFFIXES)):
        path = hub_file(name)
    if not path.is_file():
        wrong = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint '{path}' {wrong}; give the path of a .safetensors, .pt or .pth file")
    file = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path, unwrap)
    return _without_prefixes(file, path) if unwrap else file


def hub_file(name: str) -> Path:
    """Return a file of weights of a repository on the Hugging Face hub, from the local cache or after a download.

    Args:
        name: "organization/name:file", or "organization/name" where one .safetensors, .pth or .pt file can be meant:
            of several, the one that is not called fine-tuned ("_ft_").

    Raises:
        CheckpointError: no such repository or file, no network, or several files that can be meant.
    """
    from huggingface_hub import HfApi, hf_hub_download

    repository, _, file = name.partition(":")
    try:
        if file:
            return Path(hf_hub_download(repository, file))
        files = [path for path in HfApi().list_repo_files(repository) if path.endswith(_SUFFIXES)]
        plain = [path for path in files if "_ft_" not in path] if len(files) > 1 else files
        if len(plain) == 1:
            return Path(hf_hub_download(repository, plain[0]))
    except Exception as error:  # of the hub's client and of the network, of many kinds
        reason = hub_refusal(error, answers_are_json=True) or _first_line(error)
        raise CheckpointError(
            f"'{name}' is no file, and not to be had from the Hugging Face hub ({reason}); give the path of"
            " a .safetensors, .pt or .pth file, or 'organization/name:file' of one that is in the local cache"
        ) from error
    found = ", ".join(files) or "none"
    raise CheckpointError(f"'{repository}' has no one file of weights ({found}); say which, as '{repository}:file'")


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], source: str, hint: str = "") -> None:
    """Copy tensors into a model; every name and shape must fit.

    Raises:
        CheckpointError: lists every missing, unexpected and mis-shaped tensor, and those whose dtype is of another kind
            or whose numbers are not finite; the model is unchanged then.
    """
    wanted = model.state_dict()
    both = [(name, tensors[name], own) for name, own in wanted.items() if name in tensors]
    problems = [f"missing: {name} {tuple(wanted[name].shape)}" for name in wanted if name not in tensors]
    problems += [f"unexpected: {name} {tuple(tensors[name].shape)}" for name in tensors if name not in wanted]
    problems += [
        f"mis-shaped: {name} is {tuple(t.shape)}, the model has {tuple(own.shape)}"
        for name, t, own in both
        if t.shape != own.shape
    ]
    problems += [
        f"of another kind: {name} is {t.dtype}, the model has {own.dtype}"
        for name, t, own in both
        if (t.dtype in FLOATS) != (own.dtype in FLOATS)
    ]
    problems += [f"not finite: {name}" for name, t, own in both if t.dtype in FLOATS and not _is_finite(t, own.dtype)]
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise CheckpointError(f"{source} does not fit the model ({len(problems)} problems):{listed}{hint}")
    model.load_state_dict(dict(tensors), strict=True)


def _is_finite(tensor: Tensor, dtype: torch.dtype) -> bool:
    return bool(tensor.to(dtype).isfinite().all())


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="pt") as file:
            return WeightFile({name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' is no safetensors file ({_first_line(error)}); download it again") from error


def _read_pickle(path: Path, unwrap: bool) -> WeightFile:
    try:
        # Training scripts of the field keep their options beside the weights: names and values, no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        held = re.search(r"GLOBAL (\S+)", str(error))  # the rest of PyTorch's text tells how to allow it
        raise CheckpointError(
            f"'{path}' cannot be read as weights alone: it is no file of PyTorch, or it holds other objects"
            f"{f' ({held[1]})' if held else ''}, which could run code; save the state dict by itself"
        ) from error
    except Exception as error:  # of any kind, where a file breaks off
        raise CheckpointError(
            f"'{path}' cannot be read ({type(error).__name__}: {_first_line(error)}): it is damaged, incomplete or no"
            " file of PyTorch; download or save it again"
        ) from error
    return WeightFile(_state_dict(content, path, unwrap), {})


def _state_dict(content: Any, path: Path, unwrap: bool) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"'{path}' holds a {type(content).__name__}, not a state dict of tensors")
    content = dict(content)
    wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
    if wrapper is not None:
        if not unwrap:
            raise CheckpointError(
                f"'{path}' wraps its weights in ['{wrapper}'], and a plain state_dict checkpoint is wanted; save"
                f" checkpoint['{wrapper}'] by itself"
            )
        content = content[wrapper]
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"'{path}' is no plain state_dict checkpoint: {', '.join(others[:5])} are no tensors")
    odd = [str(name) for name, t in content.items() if t.layout is not torch.strided or t.is_meta or t.is_nested]
    if odd:
        raise CheckpointError(
            f"'{path}': {', '.join(odd[:5])} hold no plain numbers (sparse, nested or on device meta); save them dense"
        )
    return {str(name): tensor for name, tensor in content.items()}


def _without_prefixes(file: WeightFile, path: Path) -> WeightFile:
    """Return the file with its tensors' own names, and with what transformers wrote beside it of its family."""
    for prefix in ("module.", "backbone."):
        if file.tensors and all(name.startswith(prefix) for name in file.tensors):
            file = file._replace(tensors={name.removeprefix(prefix): t for name, t in file.tensors.items()})
            if prefix == "backbone.":
                file = file._replace(metadata={**_config_beside(path), **file.metadata})
    return file


def _config_beside(path: Path) -> dict[str, str]:
    """Return the family and the grid of the models of `transformers_models` that a config.json beside a file says."""
    config = path.with_name("config.json")
    if not config.is_file():
        return {}
    try:
        about = json.loads(config.read_text(encoding="utf-8"))
        family = {"vim": "vim", "videomamba": "videomamba_image"}.get(about.get("model_type"))
        if family is None:
            return {}
        if family == "videomamba_image" and about.get("num_frames") is not None:
            family = "videomamba_video"
        patch, stride = about["patch_size"], (about.get("model_options") or {}).get("stride")
        rows, columns = patch_grid(
            pair("image_size", about["image_size"]),
            pair("patch_size", patch),
            pair("stride", patch if stride is None else stride),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"'{config}' is damaged ({_first_line(error)}), and says of which family '{path.name}' is; save both again"
        ) from error
    return {"family": family, "grid": f"{rows}x{columns}"}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
