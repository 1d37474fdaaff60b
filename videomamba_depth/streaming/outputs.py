"""Names of the files that a stream writes, and how small files are written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from videomamba_depth.utils.errors import UserError


@dataclass(frozen=True)
class OutputPaths:
    """Everything a stream called `name` may write into `folder`."""

    folder: Path
    name: str

    @property
    def video(self) -> Path:
        """The video to look at."""
        return self.folder / f"{self.name}.mp4"

    @property
    def depth(self) -> Path:
        """The folder of raw depth."""
        return self.folder / f"{self.name}_depth"

    @property
    def zarr(self) -> Path:
        """The Zarr group of raw depth."""
        return self.folder / f"{self.name}_depth.zarr"

    @property
    def points(self) -> Path:
        """The folder of point clouds."""
        return self.folder / f"{self.name}_points"

    @property
    def about(self) -> Path:
        """What was done, as JSON."""
        return self.folder / f"{self.name}.json"

    @property
    def frames(self) -> Path:
        """One JSON line per frame."""
        return self.folder / f"{self.name}.frames.jsonl"

    def all(self) -> tuple[Path, ...]:
        """Return every path."""
        return self.video, self.depth, self.zarr, self.points, self.about, self.frames

    def prepare(self, overwrite: bool) -> None:
        """Make the folder, and see to what an earlier run of that name has left.

        Raises:
            UserError: something is there and `overwrite` is off, or the folder cannot be written.
        """
        left = [path for path in self.all() if path.exists()]
        if left and not overwrite:
            raise UserError(f"{left[0]} exists already; give another output folder, or overwrite=true to replace it")
        try:
            for path in left:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to the output folder '{self.folder}': {error.strerror}") from error


def write_json(path: Path, record: Mapping[str, object]) -> None:
    """Write a JSON file that is whole at every moment."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all.

    Raises:
        UserError: the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> UserError:
    """Return what to tell a person when `path` cannot be written."""
    return UserError(f"cannot write {path}: {error.strerror or error}")
