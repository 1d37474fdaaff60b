"""Atomic and durable writes of files and folders.

What is written goes to a hidden name beside the target, is flushed to the disk, renamed, and the folder's entry is
flushed too. A kill or a power cut at any moment leaves the old content or the new one.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from videomamba_depth.utils.errors import DISK_FULL, UserError


def to_json(value: object, indent: int | None = None) -> str:
    """Return strict JSON text.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not know.
    """
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically; raises as `to_json` and `replacing`.

    Names of files that are not UTF-8 (surrogates in Python) become JSON escapes, so that they come back as they were.
    """
    write_bytes(path, (to_json(value, indent=1) + "\n").encode("utf-8", "backslashreplace"))


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically; raises as `replacing`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a small file atomically; raises as `replacing`."""
    with replacing(path, durable) as partial:
        partial.write_bytes(data)


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a hidden path beside `path`; what the block writes there becomes `path` when it ends without an error.

    Args:
        durable: flush to the disk before and after renaming. False for one of many files that are flushed together
            later (`sync_tree`): it survives a kill, but maybe not a power cut.

    Raises:
        UserError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with disk_errors(path):
            yield partial
            if durable:
                put_in_place(partial, path)
            else:
                os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def put_in_place(partial: Path, path: Path) -> None:
    """Flush a file to the disk, let it take the place of `path`, and flush the folder's entry."""
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot do it for folders
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush everything below a folder, and the folder itself, to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def flush_folder(folder: Path) -> None:
    """Flush what was written into a folder without `durable`.

    Raises:
        UserError: the disk refuses.
    """
    with disk_errors(folder):
        sync_tree(folder)


def rename_folder(staging: Path, final: Path, replace: bool = True) -> None:
    """Flush a staging folder to the disk and let it take the place of `final`, which may exist.

    replace: without it, a folder that another process put there first stays, and so does the staging folder.
    """
    sync_tree(staging)
    if replace and final.exists():
        shutil.rmtree(final)
    try:
        staging.rename(final)
    except OSError:
        if replace or not final.is_dir():
            raise
    sync(final.parent)


@contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Turn an error of the disk while `path` is written into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error
    except SafetensorError as error:  # an I/O error of its own kind
        raise UserError(f"cannot write {path}: {error}; free some space and run again") from error


def disk_error(path: Path | str, error: Any) -> UserError:
    """Return what to tell a person when `path` cannot be written; `error` is an `OSError`, or one of FFmpeg's."""
    remedy = "free some space and run again" if error.errno in DISK_FULL else "see to the folder and run again"
    return UserError(f"cannot write {path}: {error.strerror or error}; {remedy}")
