"""Names of the files that a stream writes."""

from __future__ import annotations

import shutil
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
