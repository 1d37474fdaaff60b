"""Logging for the entry points; library code only asks for `logging.getLogger(__name__)`."""

from __future__ import annotations

import json
import logging
import math
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import transformers.utils.logging

from videomamba_depth.utils.atomic import disk_error, disk_errors, sync, to_json, write_text
from videomamba_depth.utils.environment import launch

log = logging.getLogger(__name__)


def configure_logging(level: int = logging.INFO) -> None:
    """Send one line per record to stderr; ranks other than 0 of a distributed run report warnings only."""
    rank = launch().rank
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level if rank == 0 else logging.WARNING)
    of_http = ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "aiobotocore", "botocore")
    for noisy in (*of_http, "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


class JsonLines:
    """An append-only file of one JSON object per line: a kill loses none, a power cut those since the last `sync`.

    Args:
        path: created if missing.
        keep_up_to_step: of the records already there, those of later steps are dropped, because the resumed run will
            write them again. None keeps all. Lines that cannot be read, such as one that a kill tore, are dropped with
            a warning.

    Raises:
        UserError: the disk is full or the file cannot be written; `write` and `sync` too.
    """

    def __init__(self, path: Path, keep_up_to_step: int | None = None) -> None:
        self.path = path
        if path.exists():
            with disk_errors(path):
                records, broken = _parse(path)
            if broken:
                log.warning("%s: %d unreadable lines are left out, first line %d", path, len(broken), broken[0])
            kept = [r for r in records if keep_up_to_step is None or _step(r) <= keep_up_to_step]
            write_text(path, "".join(to_json(_finite(record)) + "\n" for record in kept))
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise disk_error(path, error) from error

    def write(self, record: Mapping[str, object]) -> None:
        """Append one record; numbers that are not finite, as of a step that float16 scaling left out, become null."""
        try:
            rest = memoryview((to_json(_finite(record)) + "\n").encode())
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise disk_error(self.path, error) from error

    def sync(self) -> None:
        """Flush what is written to the disk."""
        try:
            sync(self.path)
        except OSError as error:
            raise disk_error(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_json_lines(path: Path) -> list[dict]:
    """Return the records of a JSON-lines file; lines that cannot be read, as one that a kill tore, are left out."""
    return _parse(path)[0]


def _parse(path: Path) -> tuple[list[dict], list[int]]:
    """Return the records, and the numbers of the lines, from 1, that are none."""
    records, broken = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            broken.append(number)
    return records, broken


def _step(record: Mapping[str, object]) -> float:
    step = record.get("step")
    return step if isinstance(step, int | float) else 0


def _finite(value: object) -> object:
    """Return a JSON value with null in place of every number that is not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
