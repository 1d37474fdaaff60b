"""Run a command of the repository as a user would, in a child of a server that has imported what all of them need.

Not a child of the test's own process: that has threads by then, and a fork of it may wait forever for their locks.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

import huggingface_hub

ROOT = Path(__file__).resolve().parents[1]


class Result(NamedTuple):
    """Exit status, standard output and standard error."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Return the lines on stderr that report an error."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["videomamba_depth.training.trainer", "videomamba_depth.streaming.stream"])


def run_command(folder: Path, script: str, *arguments: str, timeout_s: float = 120) -> Result:
    """Run `python SCRIPT ARGUMENTS` in `folder`, without network, and wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    process = _SERVER.Process(target=_run, args=(folder, script, arguments, dict(os.environ)))
    process.start()
    process.join(timeout_s)
    if process.is_alive():
        process.kill()
        process.join()
    texts = [(folder / name).read_text() for name in ("stdout.txt", "stderr.txt")]
    return Result(process.exitcode if process.exitcode is not None else -1, *texts)


def _run(folder: Path, script: str, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.setpgid(0, 0)
    for stream, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.argv = [script, *arguments]
    os.environ.update(environment)
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    status = 0
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
