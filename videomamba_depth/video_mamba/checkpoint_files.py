"""Reading files of weights without running any code in them, and saying all that is wrong with one at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from videomamba_depth.utils.errors import UserError

_SUFFIXES = (".safetensors", ".pth", ".pt")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w./-]+)?")
WRAPPERS = ("model", "module", "state_dict")
"""Keys under which training scripts of the field put the state dict."""


class CheckpointError(UserError, ValueError):
    """A file of weights that cannot be used, in one message with every problem."""


class WeightFile(NamedTuple):
    """What a file holds."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]  # of safetensors files; empty for others


def read_weights(path: str | Path, unwrap: bool) -> WeightFile:
    """Read a .safetensors file, or a PyTorch file with `weights_only=True`.

    Args:
        path: of the file, or a repository on the Hugging Face hub, see `hub_file`.
        unwrap: accept a state dict under one of `WRAPPERS`, and strip the "module." of distributed training and the
            "backbone." of `transformers_models`; False: only a plain state dict is accepted.

    Raises:
        CheckpointError: no such file, not a file of weights, or (unwrap=False) a wrapped one.
    """
    name, path = str(path), Path(os.path.expanduser(path))
    if not path.exists() and _HUB_ID.fullmatch(name) and (":" in name or not name.endswith(_SUFFIXES)):
        path = hub_file(name)
    if not path.is_file():
        raise CheckpointError(f"checkpoint '{path}' does not exist; give the path of a .safetensors, .pt or .pth file")
    if path.suffix == ".safetensors":
        file = _read_safetensors(path)
        return file._replace(tensors=_without_prefixes(file.tensors)) if unwrap else file
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises errors of any kind on files of other kinds
        raise CheckpointError(
            f"'{path}' cannot be read as weights alone ({_first_line(error)}); files that hold other objects could run"
            " code and are refused: save the state dict by itself"
        ) from error
    return WeightFile(_state_dict(content, path, unwrap), {})


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
        raise CheckpointError(
            f"'{name}' is no file, and not to be had from the Hugging Face hub ({_first_line(error)}); give the path of"
            " a .safetensors, .pt or .pth file, or 'organization/name:file' of one that is in the local cache"
        ) from error
    found = ", ".join(files) or "none"
    raise CheckpointError(f"'{repository}' has no one file of weights ({found}); say which, as '{repository}:file'")


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], source: str, hint: str = "") -> None:
    """Copy tensors into a model; every name and shape must fit.

    Raises:
        CheckpointError: lists every missing, unexpected and mis-shaped tensor; the model is unchanged then.
    """
    wanted = model.state_dict()
    problems = [f"missing: {name} {tuple(wanted[name].shape)}" for name in wanted if name not in tensors]
    problems += [f"unexpected: {name} {tuple(tensors[name].shape)}" for name in tensors if name not in wanted]
    problems += [
        f"mis-shaped: {name} is {tuple(tensors[name].shape)}, the model has {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise CheckpointError(f"{source} does not fit the model ({len(problems)} problems):{listed}{hint}")
    model.load_state_dict(dict(tensors), strict=True)


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="pt") as file:
            return WeightFile({name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' is no safetensors file ({_first_line(error)}); download it again") from error


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
    tensors = {str(name): tensor for name, tensor in content.items()}
    return _without_prefixes(tensors) if unwrap else tensors


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in ("module.", "backbone."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
