"""Reading checkpoints of transformers: what is wrong with one becomes one line with the remedy."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import DepthAnythingForDepthEstimation, PretrainedConfig
from transformers.models.dinov2 import modeling_dinov2
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils import logging as transformers_logging

from videomamba_depth.utils.checkpoint import check_finite, is_lfs_pointer, verify_files
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.hub_refusals import causes, hub_refusal

EMBEDDED_TEACHER = Path(__file__).resolve().parents[1] / "assets" / "embedded_teacher"
"""The small teacher that is shipped with the package."""

FORMER_NAMES = {
    "attention.q_proj.": "attention.attention.query.",
    "attention.k_proj.": "attention.attention.key.",
    "attention.v_proj.": "attention.attention.value.",
    "attention.o_proj.": "attention.output.dense.",
}
"""How transformers before 5.18 names weights of DINOv2 in memory; any version reads them under these names."""
HAS_FORMER_NAMES = hasattr(modeling_dinov2, "Dinov2SelfAttention")
"""Whether the version of transformers that is installed is one of those."""

_MAY_LACK: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_connection_errors": False,
}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_PICKLED = (".pth", ".pt", ".ckpt", ".bin")  # suffixes of files that would have to be unpickled


def load_depth_anything(name_or_path: str, dtype: torch.dtype) -> DepthAnythingForDepthEstimation:
    """Load a Depth Anything V1/V2 checkpoint, see `load_weights`.

    Raises:
        UserError: no such folder or id, no network, not a Depth Anything model, or broken weights.
    """
    kind = read_config(name_or_path).get("model_type")
    if kind != "depth_anything":
        raise UserError(
            f"'{name_or_path}' is a '{kind}' model, not Depth Anything; use a checkpoint such as"
            " depth-anything/Depth-Anything-V2-Small-hf"
        )
    return load_weights(DepthAnythingForDepthEstimation, name_or_path, dtype)


def source_of(name_or_path: str) -> str:
    """Return where a teacher is: a hub id or a folder."""
    return str(EMBEDDED_TEACHER) if name_or_path == "embedded" else name_or_path


def load_weights(model_class: Any, name_or_path: str, dtype: torch.dtype, not_used: tuple[str, ...] = ()) -> Any:
    """Load a checkpoint of transformers (safetensors only) with weights of `dtype`.

    Args:
        model_class: that reads it.
        name_or_path: hub id, local folder, or "embedded".
        not_used: how names of tensors begin that the model holds and never looks at: 0 where the checkpoint has none.

    Raises:
        UserError: broken weights, or others than those of the config.
    """
    source = source_of(name_or_path)
    if Path(source).is_dir():
        verify_files(Path(source))
    try:
        with _no_bar() if Path(source).is_dir() else nullcontext(), errors_alone("transformers"):
            _check_dtypes(name_or_path, source)
            model, report = model_class.from_pretrained(
                source,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,  # or it asks on the terminal
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below, in one line
                key_mapping=FORMER_NAMES if HAS_FORMER_NAMES else None,  # unescaped: it is turned round to save
            )
    except UserError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, RuntimeError and SafetensorError here
        raise loading_error(name_or_path, error) from error
    unused = {name for name in report["missing_keys"] if name.startswith(not_used)}
    for name in unused:  # or each load draws them anew, and the digest of the weights with them
        model.state_dict()[name].zero_()
    missing = sorted(set(report["missing_keys"]) - unused)
    missing += [f"{name} {list(is_)} for {list(wanted)}" for name, is_, wanted in sorted(report["mismatched_keys"])]
    if missing:
        raise UserError(
            f"the weights of '{name_or_path}' do not fit its config: {len(missing)} tensors missing or of another"
            f" shape, first {missing[0]}; restore the config.json that came with them, or download them again"
        )
    left = _left_out(report["unexpected_keys"], model.state_dict())
    if left:
        raise UserError(
            f"the config of '{name_or_path}' does not fit its weights: it leaves {len(left)} tensors unused, first"
            f" {left[0]}; restore the config.json that came with them, or download them again"
        )
    check_finite(dict(model.named_parameters()), f"'{name_or_path}' cannot be used")
    return model


def _check_dtypes(name_or_path: str, source: str) -> None:
    """Refuse weights and biases of integers: quantized ones would be taken as they are."""
    index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, **_MAY_LACK)
    names = {SAFE_WEIGHTS_NAME}
    if index is not None:
        names = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    for name in names:
        path = cached_file(source, name, **_MAY_LACK)
        if path is None:
            continue  # loading says what is missing
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                dtype = file.get_slice(key).get_dtype()
                if key.endswith((".weight", ".bias")) and not dtype.startswith(("F", "BF")):
                    raise UserError(
                        f"'{name_or_path}' cannot be used: its tensor {key} is of type {dtype}, not of floating-point"
                        " numbers; use a checkpoint that is not quantized"
                    )


def _left_out(unexpected: Iterable[str], own: Iterable[str]) -> list[str]:
    """Return those names in a file that the model lacks for its config alone: of one more layer, or a layer's bias."""
    own = set(own)
    alike = {_NUMBER.sub("#", name) for name in own}
    return sorted(
        name
        for name in unexpected
        if _NUMBER.sub("#", name) in alike or (name.endswith(".bias") and name.removesuffix("bias") + "weight" in own)
    )


def _converted(name_or_path: str) -> str:
    """Return the id of the converted checkpoint for the name of an original PyTorch file."""
    name = name_or_path.lower()
    size = next((word for mark, word in (("vitl", "Large"), ("vitb", "Base")) if mark in name), "Small")
    scene = {"hypersim": "-Metric-Indoor", "vkitti": "-Metric-Outdoor"}
    metric = next((text for mark, text in scene.items() if mark in name), "")
    if "v2" in name or metric:
        return f"depth-anything/Depth-Anything-V2{metric}-{size}-hf"
    return f"LiheYoung/depth-anything-{size.lower()}-hf"


def read_config(name_or_path: str) -> dict[str, Any]:
    """Return the content of a teacher's config.json.

    Args:
        name_or_path: hub id, local folder, or "embedded".

    Raises:
        UserError: no such folder or id, no network, or files that are no checkpoint of transformers.
    """
    name_or_path = source_of(name_or_path)
    folder = Path(name_or_path)
    original = [folder] if folder.suffix in _PICKLED else []
    if folder.is_dir() and not (folder / "config.json").is_file():
        original = sorted(file for file in folder.iterdir() if file.suffix in _PICKLED)
    if original:
        raise UserError(
            f"'{original[0]}' is a PyTorch file of the original code, which is not read; use the converted checkpoint:"
            f" teacher.name={_converted(original[0].name)}"
        )
    if folder.is_file():
        raise UserError(f"'{folder}' is a file; give the folder that holds config.json and model.safetensors")
    for name in ("config.json", "model.safetensors"):
        if is_lfs_pointer(folder / name):
            raise UserError(f"'{folder / name}' is a Git LFS pointer, not the file; run git lfs pull in '{folder}'")
    is_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if is_local and not Path(name_or_path).is_dir():
        raise UserError(f"folder '{name_or_path}' does not exist; give a folder with config.json or a hub id")
    try:
        with errors_alone("huggingface_hub"):
            config, _ = PretrainedConfig.get_config_dict(name_or_path)
    except Exception as error:  # OSError of many kinds, HTTP errors, broken JSON
        raise loading_error(name_or_path, error) from error
    if not config:
        raise loading_error(name_or_path, FileNotFoundError("no config.json"))
    if not isinstance(config, dict):
        raise loading_error(name_or_path, TypeError(f"its config.json is a {type(config).__name__}"))
    for key, kind in (("model_type", str), ("model_name", str), ("backbone_config", dict)):
        if not isinstance(config.get(key), kind | None):
            raise loading_error(name_or_path, TypeError(f"its config.json has {key}={config[key]!r}"))
    return config


@contextmanager
def errors_alone(library: str) -> Iterator[None]:
    """Silence a library's line per retry and its reports of many lines: a failure becomes one clear line of ours."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _no_bar() -> Iterator[None]:
    """Show no progress of what takes a moment, as reading a folder does; a download keeps its bars."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def loading_error(name_or_path: str, error: Exception, *also: str) -> UserError:
    """Return what to say where loading a checkpoint failed with `error`.

    Args:
        also: files that it needs beside config.json and the weights.
    """
    if Path(name_or_path).is_dir():
        return UserError(
            f"cannot load a depth model from folder '{name_or_path}' ({first_line(error)}); it must hold"
            f" {', '.join(('config.json', *also))} and model.safetensors as written by save_pretrained"
        )
    if refusal := hub_refusal(error):
        return UserError(f"teacher '{name_or_path}' is no folder here, and cannot be had from the hub: {refusal}")
    reason = " ".join(type(cause).__name__ + " " + str(cause) for cause in causes(error))
    if any(
        word in reason for word in ("ConnectError", "ConnectionError", "couldn't connect", "OfflineMode", "Timeout")
    ):
        return UserError(
            f"no network to download teacher '{name_or_path}' and it is not in the local cache; connect once, or set"
            " teacher.name to a local folder (teacher=embedded needs no download)"
        )
    return UserError(
        f"teacher '{name_or_path}' is neither a local folder nor a model id that the hub knows ({first_line(error)});"
        " check the spelling, e.g. depth-anything/Depth-Anything-V2-Small-hf, or set HF_TOKEN where it is private"
    )


def first_line(error: Exception) -> str:
    """Return what an error says first, for a message of one line."""
    message = f"there is no {error}" if isinstance(error, KeyError) else str(error).strip()
    return (message or type(error).__name__).splitlines()[0][:160]


def former_name(name: str) -> str:
    """Return the name that a weight had before transformers 5.18."""
    for now, former in FORMER_NAMES.items():
        name = name.replace(now, former)
    return name
