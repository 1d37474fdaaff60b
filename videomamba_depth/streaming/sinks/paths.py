"""Names of the files that a stream writes, and what they may replace."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videomamba_depth.utils.atomic import disk_error
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.lock import exclusive

_LONGEST_NAME = 200  # bytes; file systems allow 255 with suffixes, temporary ones included
_WRITTEN = re.compile(  # what the sinks put into folders
    r"\.?(depth_\d{6,}\.npz|\d{6,}\.(png|exr|ply)|(scale|about|zarr)\.json|\d+)(\.\w+)*"
)


@dataclass(frozen=True)
class OutputPaths:
    """Everything a stream called `name` may write into `folder`; a name too long for a file is cut."""

    folder: Path
    name: str

    def __post_init__(self) -> None:
        encoded = os.fsencode(self.name)
        if len(encoded) > _LONGEST_NAME:
            digest = hashlib.sha256(encoded).hexdigest()[:8]
            shorter = encoded[: _LONGEST_NAME - 9].decode(errors="ignore")
            object.__setattr__(self, "name", f"{shorter}-{digest}")

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

    def locked(self) -> AbstractContextManager[None]:
        """Hold the outputs of that name in that folder for this process, see `exclusive`."""
        return exclusive(self.folder / f".{self.name}.lock", f"output '{self.folder / self.name}'")

    def written_by(self, config: Mapping[str, Any]) -> list[Path]:
        """Return what a stream with these values of `video`, `raw` and `intrinsics` writes."""
        paths = [self.video] if config["video"] != "none" else []
        if config["raw"] != "none":
            paths.append(self.zarr if config["raw"] == "zarr" else self.depth)
        paths += [self.points] if config["intrinsics"] is not None else []
        return [*paths, self.about, self.frames]


class Outputs:
    """The outputs of one stream: they replace nothing but what an earlier stream of that name has written.

    Earlier streams are known by their record, the JSON file, which lists what was written with the size of each file.

    Args:
        config: values of `video`, `raw` and `intrinsics`.
        inputs: files and folders that are read; no output may be, or hold, one of them.
        overwrite: replace what an earlier stream wrote.
    """

    def __init__(
        self, paths: OutputPaths, config: Mapping[str, Any], inputs: Iterable[Path] = (), overwrite: bool = False
    ) -> None:
        self.paths, self._overwrite, self._inputs = paths, overwrite, list(inputs)
        self._wanted = paths.written_by(config)
        self._earlier = _read_record(paths)

    def prepare(self) -> None:
        """Make the folder and look at what is there; nothing is replaced yet.

        Raises:
            UserError: an output is an input, or is there and may not be replaced, or the folder cannot be written.
        """
        self._check(self._wanted)
        try:
            self.paths.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to the output folder '{self.paths.folder}': {error.strerror}") from error

    def replace(self) -> None:
        """Remove what an earlier stream wrote, except its record; called when the first frame has come.

        Raises:
            UserError: as `prepare`.
        """
        there = [path for path in self._wanted if path != self.paths.about and os.path.lexists(path)]
        self._check(there)  # once more: the model may have taken a while to come
        for path in there:
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError as error:
                raise disk_error(path, error) from error

    def record(self, finished: bool) -> dict[str, int | None]:
        """Return {name: size in bytes} of all that streams of that name have written or will write, for the record.

        None stands for folders, and for files that still grow.
        """
        earlier = {name: size for name, size in (self._earlier or {}).items() if (self.paths.folder / name).exists()}
        return earlier | {path.name: _size(path) if finished else None for path in self._wanted}

    def written(self) -> list[Path]:
        """Return what is there of what this stream writes."""
        return [path for path in self._wanted if path.exists()]

    def _check(self, wanted: Sequence[Path]) -> None:
        there = [path for path in wanted if os.path.lexists(path)]
        for path in there:
            held = next((name for name in self._inputs if _is_or_holds(path, name)), None)
            if held is not None:
                raise UserError(f"the output {path} is, or holds, the input {held}; give another output folder")
        for path in there:
            problem = self._not_ours(path)
            if problem:
                raise UserError(f"{path} exists already and {problem}; give another output folder, or move it away")
        if there and not self._overwrite:
            raise UserError(f"{there[0]} exists already; give another output folder, or overwrite=true to replace it")

    def _not_ours(self, path: Path) -> str:
        """Return why a path may not be replaced, or nothing."""
        recorded = self._earlier is not None and (path == self.paths.about or path.name in self._earlier)
        if self._earlier is None or not recorded or path.is_symlink():
            return "no earlier stream is known to have written it"
        if path == self.paths.about:
            return ""
        if path.is_dir():
            files = (file for file in path.rglob("*") if not file.is_dir() or file.is_symlink())
            other = next((file for file in files if file.is_symlink() or not _WRITTEN.fullmatch(file.name)), None)
            return f"holds {other.relative_to(path)}, which no stream wrote" if other else ""
        size = self._earlier.get(path.name)
        return "has changed since a stream wrote it" if size not in (None, path.stat().st_size) else ""


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _read_record(paths: OutputPaths) -> dict[str, int | None] | None:
    """Return what the record of an earlier stream lists; None where there is no such record."""
    try:
        record = json.loads(paths.about.read_bytes())
        if "videomamba_depth" not in record["versions"] or "status" not in record:
            return None
        if "outputs" in record:
            return {str(name): None if size is None else int(size) for name, size in record["outputs"].items()}
        return {path.name: None for path in paths.written_by(record["config"])}  # of version 0.1.0
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_or_holds(output: Path, given: Path) -> bool:
    """Tell whether an output is a file or folder that is read, or holds it, through links of either kind too."""
    target = given.resolve()
    if output.resolve() in (target, *target.parents):
        return True
    read = _identities([target, *target.iterdir()] if target.is_dir() else [target])
    return bool(read & _identities([output, *output.rglob("*")] if output.is_dir() else [output]))


def _identities(files: Iterable[Path]) -> set[tuple[int, int]]:
    """Return device and number of the files: the same for all names of a file."""
    return {(found.st_dev, found.st_ino) for found in (file.stat() for file in files if file.exists())}
