"""What an evaluation keeps on disk: folders of plain arrays and results, each under a digest of all that decides it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from videomamba_depth.evaluation.metrics.score import Score
from videomamba_depth.utils import atomic
from videomamba_depth.utils.atomic import disk_errors, rename_folder, to_json
from videomamba_depth.utils.checkpoint import verify_files, write_manifest
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)


def digest(*parts: object) -> str:
    """Return 16 hex digits of values that are plain JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def kept_arrays(folder: Path, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays of a folder by name, memory-mapped; make and write them where there are none.

    The folder is written atomically, with a manifest; a damaged one is removed with a warning and made again.

    Raises:
        UserError: the disk is full; nothing is left behind.
    """
    if (found := read_arrays(folder)) is not None:
        return found
    _write_folder(folder, make())
    return _load(folder)


def read_arrays(folder: Path) -> dict[str, np.ndarray] | None:
    """Return what `kept_arrays` wrote, memory-mapped; None where there is nothing.

    What is damaged, or no folder, is removed with a warning.

    Raises:
        UserError: it cannot be removed.
    """
    if not folder.exists():
        return None
    try:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder")
        verify_files(folder, required=True)
    except UserError as error:
        log.warning("%s: made again", str(error).split(";")[0])
        with disk_errors(folder):
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink(missing_ok=True)
        return None
    return _load(folder)


def _load(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path, mmap_mode="c", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}


def _write_folder(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
        try:
            for name, values in arrays.items():
                np.save(partial / f"{name}.npy", values, allow_pickle=False)
            write_manifest(partial)
            rename_folder(partial, folder, replace=False)  # what a faster process wrote is the same
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def keep_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON with its digest, atomically. Raises as `atomic.replacing`."""
    plain = to_jsonable(result)
    write_text(path, to_json({"sha256": digest(plain), "result": plain}) + "\n")


def read_result(path: Path) -> dict[str, Any] | None:
    """Return what `keep_result` wrote; None where there is nothing, or it is damaged."""
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["sha256"] != digest(kept["result"]):
            raise ValueError("other SHA-256")
        return dict(kept["result"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s is damaged (%s): made again", path, error)
        return None


def read_scores(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    """Return scores from JSON; null stands for NaN."""
    return {
        metric: Score(math.nan if s["value"] is None else s["value"], s["coverage"], s.get("reason", ""))
        for metric, s in plain.items()
    }


def to_jsonable(value: Any) -> Any:
    """Turn results into plain JSON types; a `Score` becomes {"value", "coverage", "reason"}, NaN becomes null."""
    if isinstance(value, Score):
        plain = {"value": value.value, "coverage": value.coverage}
        return to_jsonable(plain | ({"reason": value.reason} if value.reason else {}))
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def write_text(path: str | Path, text: str) -> Path:
    """Write text atomically, making the folder where needed; return the path. Raises as `atomic.replacing`."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, text)
    return path
