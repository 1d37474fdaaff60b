"""Logging for the entry points; library code only asks for `logging.getLogger(__name__)`."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import transformers.utils.logging


def configure_logging(level: int = logging.INFO) -> None:
    """Send one line per record to stderr; ranks other than 0 of a distributed run report warnings only."""
    rank = int(os.environ.get("RANK", "0"))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level if rank == 0 else logging.WARNING)
    for noisy in ("httpx", "httpcore", "urllib3", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


class JsonLines:
    """An append-only file of one JSON object per line, flushed line by line so that a kill loses none.

    Args:
        path: created if missing.
        keep_up_to_step: of the records already there, those of later steps are dropped, because the resumed run will
            write them again; and so is a last line that a kill tore. None keeps all whole lines.
    """

    def __init__(self, path: Path, keep_up_to_step: int | None = None) -> None:
        self.path = path
        if path.exists():
            _rewrite(
                path,
                [r for r in read_json_lines(path) if keep_up_to_step is None or r["step"] <= keep_up_to_step],
            )
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, object]) -> None:
        """Append one record."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_json_lines(path: Path) -> list[dict]:
    """Return the records of a JSON-lines file; a last line that was torn by a kill is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _rewrite(path: Path, records: list[dict]) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    os.replace(temporary, path)
