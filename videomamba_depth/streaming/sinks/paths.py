"""Names of the files that a stream writes, and what they may replace."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from videomamba_depth.streaming.pipeline import FileSink
from videomamba_depth.streaming.sinks.open import Opening, SinkEntry
from videomamba_depth.utils.atomic import disk_error
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.lock import exclusive

_LONGEST_NAME = 200  # bytes; file systems allow 255 with suffixes, temporary ones included

Stamp = dict[str, int | str]
"""How many files a stream has left under a name, and the SHA-256 of their names, sizes and times of change."""


class Outputs:
    """The outputs of one stream: they replace nothing but what an earlier stream of that name has written.

    Earlier streams are known by their record, the JSON file. When a stream ends, its sinks name the files that they
    wrote, and the record gets a stamp of them: what bears another stamp since then holds something else and stays. A
    stream that is killed leaves no stamps: which files are its own is not known.

    Args:
        folder: of all of them; their names begin with `name`, cut where it is too long for a file.
        entries: what is written.
        inputs: files and folders that are read; no output may be, or hold, one of them.
        overwrite: replace what an earlier stream wrote.

    Attributes:
        record_path: what was done, as JSON.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        entries: Sequence[SinkEntry],
        inputs: Iterable[Path] = (),
        overwrite: bool = False,
    ) -> None:
        self.folder, self._name = folder, _file_name(name)
        self._entries, self._inputs, self._overwrite = entries, list(inputs), overwrite
        self.record_path = self._path(".json")
        self._wanted = [*(self._path(entry.suffix) for entry in entries), self.record_path]
        self._earlier: dict[str, Stamp | None] | None = None
        self._sinks: dict[Path, FileSink] = {}  # what writes them, once they are open

    def locked(self) -> AbstractContextManager[None]:
        """Hold the outputs of that name in that folder for this process, see `exclusive`."""
        return exclusive(self._path(".lock", "."), f"output '{self._path('')}'")

    def prepare(self) -> None:
        """Make the folder and check what is in it; nothing is replaced yet.

        Raises:
            UserError: an output is an input, or is there and may not be replaced, or the folder cannot be written.
        """
        self._earlier = self._read_record()
        self._check(self._wanted)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to the output folder '{self.folder}': {error.strerror}") from error

    def open(self, opening: Opening) -> Sequence[FileSink]:
        """Remove what an earlier stream wrote, except its record, and open the sinks; called by the first frame.

        Raises:
            UserError: as `prepare`.
        """
        found = [path for path in self._wanted if path != self.record_path and os.path.lexists(path)]
        self._check(found)  # once more: the model may have taken a while to come
        for path in found:
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError as error:
                raise disk_error(path, error) from error
        for entry in self._entries:
            path = self._path(entry.suffix)
            self._sinks[path] = entry.open(path, opening)
        return list(self._sinks.values())

    def record(self, finished: bool) -> dict[str, Stamp | None]:
        """Return {name: stamp} of all that streams of that name have written or will write, for the record.

        None stands for what still grows, and for the record itself. An earlier stamp of what is replaced fits no more.
        """
        earlier = {name: stamp for name, stamp in (self._earlier or {}).items() if (self.folder / name).exists()}
        ended = {path.name: _stamp(path, sink.files()) for path, sink in self._sinks.items()} if finished else {}
        return {path.name: None for path in self._wanted} | earlier | ended

    def written(self) -> list[Path]:
        """Return what is there of what this stream writes."""
        return [path for path in self._wanted if path.exists()]

    def _check(self, wanted: Sequence[Path]) -> None:
        found = [path for path in wanted if os.path.lexists(path)]
        for path in found:
            held = next((name for name in self._inputs if _is_or_holds(path, name)), None)
            if held is not None:
                raise UserError(f"the output {path} is, or holds, the input {held}; give another output folder")
        problems = {path: problem for path in found if (problem := self._not_ours(path))}
        if problems:
            named = "; ".join(f"{path} exists already and {problem}" for path, problem in problems.items())
            raise UserError(f"{named}; give another output folder, or move that away")
        if found and not self._overwrite:
            raise UserError(f"{found[0]} exists already; give another output folder, or overwrite=true to replace it")

    def _not_ours(self, path: Path) -> str:
        """Return why a path may not be replaced, or nothing."""
        recorded = self._earlier is not None and (path == self.record_path or path.name in self._earlier)
        if self._earlier is None or not recorded or path.is_symlink():
            return "no earlier stream is known to have written it"
        if path == self.record_path:
            return ""
        stamp = self._earlier[path.name]
        if stamp is None:
            return "the stream that wrote it was killed, or of an earlier version: what it wrote is not known"
        try:
            now = _stamp(path, _entries(path))
        except OSError as error:
            return f"cannot be searched ({error.strerror})"
        counts = f" (then files: {stamp.get('files')}, now: {now['files']})" if path.is_dir() else ""
        return "" if now == stamp else f"has changed since a stream wrote it{counts}"

    def _path(self, suffix: str, prefix: str = "") -> Path:
        return self.folder / f"{prefix}{self._name}{suffix}"

    def _read_record(self) -> dict[str, Stamp | None] | None:
        """Return what the record of an earlier stream lists; None where there is no such record."""
        try:
            record = json.loads(self.record_path.read_bytes())
            if "videomamba_depth" not in record["versions"] or "status" not in record:
                return None
            outputs = record.get("outputs") or {path.name: None for path in self._wanted}  # version 0.1.0 lists none
            return {name: stamp if isinstance(stamp, dict) else None for name, stamp in outputs.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


def _file_name(name: str) -> str:
    """Return a name, cut where it is too long for a file."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_NAME:
        return name
    return f"{encoded[: _LONGEST_NAME - 9].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:8]}"


def _entries(path: Path) -> list[Path]:
    """Return a file, or all that is in a folder and is no folder with something in it."""
    if not path.is_dir():
        return [path]
    return [p for p in path.rglob("*") if p.is_symlink() or not p.is_dir() or not any(p.iterdir())]


def _stamp(path: Path, files: Iterable[Path]) -> Stamp:
    """Return the stamp of those of the files, at or below `path`, that exist."""
    found = {os.fsencode(file.relative_to(path)): file.lstat() for file in files if os.path.lexists(file)}
    lines = [name + f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode() for name, stat in sorted(found.items())]
    return {"files": len(found), "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}


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
