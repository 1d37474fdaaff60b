"""Teacher caches at URLs: whatever fsspec knows (s3://, gs://, memory://, ...) and Zarr can write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from videomamba_depth.utils.errors import UserError

_EXTRAS = {"s3": "s3", "s3a": "s3"}
"""The extra of the distribution that brings what a protocol needs."""


def local_root(cache_root: str | Path) -> Path | None:
    """Return a cache's folder, `~` replaced; None for one at a URL. file:// is a folder, with its locks and flushes."""
    text = str(cache_root).removeprefix("file://")
    return None if "://" in text else Path(os.path.expanduser(text))


def has_content(url: str) -> bool:
    """Tell whether there is anything at a URL; this also finds out whether its server can be reached.

    Raises:
        UserError: it cannot, or what its protocol needs is not installed; the line says which, and names the extra.
    """
    with server_errors(url):
        system, path = _connect(url)
        return bool(system.exists(path))


def list_names(url: str) -> list[str]:
    """Return the names of the folders directly below a URL, sorted; raises as `has_content`."""
    with server_errors(url):
        system, path = _connect(url)
        try:
            found = system.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "directory")


@contextmanager
def server_errors(cache_root: str | Path) -> Iterator[None]:
    """Turn what a server or its client library raises, in classes of its own, into a `UserError`.

    Errors of a cache in a folder come through as they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if local_root(cache_root) is not None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = "see to the address, the server and its credentials, and run again"
        if isinstance(error, ImportError):
            extra = _EXTRAS.get(str(cache_root).partition("://")[0])
            remedy = f"pip install 'videomamba-depth[{extra}]'" if extra else "install it"
        raise UserError(f"teacher cache {cache_root}: {reason}; {remedy}") from error


def _connect(url: str) -> tuple[Any, str]:
    system, path = url_to_fs(url)
    system.invalidate_cache()  # Zarr writes through another instance, whose listings are its own
    return system, path
