"""Atomic checkpoint folders with a digest of every file, and which of them to keep."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from videomamba_depth.utils.atomic import disk_errors, rename_folder, replacing, sync, write_json
from videomamba_depth.utils.errors import UserError

MANIFEST = "manifest.json"
STEP = "step"  # key of the step of training among the metadata of a safetensors file
_DIGEST = "sha256"  # key of the digest among the metadata of a safetensors file
_MANIFEST_FORMAT = "videomamba-depth manifest 1"
_REMEDY = "; restore it from a copy, or use another checkpoint"
Layout = tuple[tuple[int, ...], torch.dtype]
"""(shape, dtype) of a tensor."""
_STEP_FOLDER = re.compile(r"step_(\d{8,})$")


def step_folder(parent: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return parent / f"step_{step:08d}"


def list_steps(parent: Path) -> list[int]:
    """Return the steps of all complete checkpoints in `parent`, ascending."""
    if not parent.is_dir():
        return []
    found = (_STEP_FOLDER.match(entry.name) for entry in parent.iterdir())
    return sorted(int(match.group(1)) for match in found if match)


def staging_folder(final: Path) -> Path:
    """Return where the files of `final` are written before it appears."""
    return final.with_name(f".{final.name}.partial")


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield an empty staging folder that becomes `final`, with a manifest, when the block ends without an error.

    A kill at any moment leaves `final` as it was or as it will be (or, while an old one is replaced, none); leftovers
    are cleared next time.

    Raises:
        UserError: the disk is full or the folder cannot be written; the staging folder is removed.
    """
    staging = staging_folder(final)
    try:
        with disk_errors(final):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            yield staging
            write_manifest(staging)
            rename_folder(staging, final)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def write_manifest(folder: Path) -> None:
    """Write `manifest.json`: the size and SHA-256 of every other file of a folder but for notes (`.md`)."""
    kept = (path for path in folder.iterdir() if path.is_file() and path.suffix != ".md" and path.name != MANIFEST)
    names = sorted(path.name for path in kept)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names}
    write_json(folder / MANIFEST, {"format": _MANIFEST_FORMAT, "files": files})


def verify_files(folder: Path, names: Iterable[str] | None = None, required: bool = False) -> None:
    """Compare files of a folder with its manifest; a folder without one, of version 0.1.0, passes.

    Args:
        names: which; None: every file of the manifest.
        required: refuse a folder without a manifest.

    Raises:
        UserError: a file is missing or not what was written, naming it.
    """
    path = folder / MANIFEST
    if not path.is_file() and not required:
        return
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != _MANIFEST_FORMAT:
            raise ValueError(f"its format is {manifest['format']}, not {_MANIFEST_FORMAT}")
        files = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is damaged ({error!r}){_REMEDY}") from error
    for name in files if names is None else names:
        file = folder / name
        if name not in files:
            raise UserError(f"'{file}' is not in the folder's {MANIFEST}: it is not what was written there{_REMEDY}")
        if not file.is_file():
            raise UserError(f"'{file}' is missing{_REMEDY}")
        if is_lfs_pointer(file):
            raise UserError(f"'{file}' is a Git LFS pointer, not the file; run git lfs pull")
        if (file.stat().st_size, _sha256(file)) != files[name]:
            raise UserError(f"'{file}' is damaged: it is not what was written (other SHA-256){_REMEDY}")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file of finite numbers, with a digest of tensors and metadata in its metadata; atomically.

    Raises:
        UserError: a tensor holds NaN or infinity, naming it, or the disk is full.
    """
    check_finite(tensors, f"not written to '{path}'")
    tensors, metadata = _apart(tensors), metadata or {}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={**metadata, _DIGEST: _digest(tensors, metadata)})


def load_tensors(
    path: Path, device: torch.device | str = "cpu", sealed: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file of finite numbers: (tensors, metadata).

    Args:
        sealed: refuse a file without a digest, as is done beside a manifest; version 0.1.0 wrote neither.

    Raises:
        UserError: missing, or damaged (not what its digest says), or a tensor holds NaN or infinity.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        reason = "a Git LFS pointer, not the file: run git lfs pull" if is_lfs_pointer(path) else error
        raise UserError(f"cannot read '{path}' ({reason}){_REMEDY}") from error
    digest = metadata.pop(_DIGEST, None)
    if digest is None and (sealed or (path.parent / MANIFEST).is_file()):
        raise UserError(f"'{path}' has no digest: it is of another version, or damaged; write it again or use another")
    if digest is not None and digest != _digest(tensors, metadata):
        raise UserError(f"'{path}' is damaged: it is not what was written (other SHA-256){_REMEDY}")
    check_finite(tensors, f"'{path}' cannot be used")
    return tensors, metadata


def check_step(metadata: Mapping[str, str], step: Any, path: Path) -> None:
    """Refuse a file whose metadata say that it was written at another step; those of version 0.1.0 do not say.

    Raises:
        UserError: naming both steps.
    """
    stored = metadata.get(STEP, str(step))
    if stored != str(step):
        raise UserError(f"'{path}' is of step {stored}, not {step}: it is not what was written there{_REMEDY}")


def check_finite(tensors: Mapping[str, Tensor], consequence: str) -> None:
    """Refuse tensors that hold NaN or infinity.

    Raises:
        UserError: naming the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"tensor {name} holds numbers that are not finite (NaN or infinity): {consequence}")


def check_tensors(what: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Layout]) -> None:
    """Refuse tensors that are not those expected: names, shapes and dtypes.

    Args:
        what: they are, for the message.
        expected: by name.

    Raises:
        ValueError: naming the first tensor that is missing, unknown or another one.
    """
    for name in sorted(tensors.keys() | expected.keys()):
        if name not in expected:
            raise ValueError(f"unknown tensor {name} ({what})")
        shape, dtype = expected[name]
        if name not in tensors:
            raise ValueError(f"no tensor {name} ({what})")
        if tuple(tensors[name].shape) != tuple(shape) or tensors[name].dtype != dtype:
            raise ValueError(
                f"tensor {name} ({what}) must be {tuple(shape)} {dtype}; got {tuple(tensors[name].shape)}"
                f" {tensors[name].dtype}"
            )


def point_last(link: Path, target: Path) -> None:
    """Make the symbolic link `link` point to `target` (relative), replacing it atomically."""
    temporary = link.with_name(f".{link.name}.partial")
    with disk_errors(link):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(target, link.parent))
        os.replace(temporary, link)
        sync(link.parent)


def prune_steps(parent: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints in `parent`, and what a kill left half-written."""
    for leftover in parent.glob(".step_*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    for step in list_steps(parent)[:-keep]:
        shutil.rmtree(step_folder(parent, step), ignore_errors=True)


def is_lfs_pointer(path: Path) -> bool:
    """Tell whether a file holds where Git Large File Storage keeps it, in place of its content."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(24) == b"version https://git-lfs."


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU, contiguous, each with memory of its own, as safetensors wants them."""
    apart: dict[str, Tensor] = {}
    taken = set[int]()
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous().cpu()
        address = own.untyped_storage().data_ptr()
        apart[name] = own.clone() if address in taken else own
        taken.add(address)
    return apart


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bits of tensors, and of texts."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 of names, shapes and float32 values, in order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()
