"""Folders that appear whole or not at all, and which of them to keep."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STEP_FOLDER = re.compile(r"step_(\d{8})$")


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
    """Yield an empty staging folder that becomes `final` when the block ends without an error.

    A kill at any moment leaves either the old `final` or the new one; leftovers are cleared next time.
    """
    staging = staging_folder(final)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    yield staging
    shutil.rmtree(final, ignore_errors=True)
    staging.rename(final)


def point_last(link: Path, target: Path) -> None:
    """Make the symbolic link `link` point to `target` (relative), replacing it atomically."""
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, link.parent))
    os.replace(temporary, link)


def prune_steps(parent: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints in `parent`, and what a kill left half-written."""
    for leftover in parent.glob(".step_*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    for step in list_steps(parent)[:-keep]:
        shutil.rmtree(step_folder(parent, step), ignore_errors=True)
