"""Run a command of the repository as a user would, in a forked child that shares this process's imports."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

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


def run_command(folder: Path, script: str, *arguments: str, timeout_s: float = 120) -> Result:
    """Run `python SCRIPT ARGUMENTS` in `folder` and wait for it."""
    folder.mkdir(parents=True, exist_ok=True)

    def child() -> None:
        os.chdir(folder)
        os.setpgid(0, 0)
        for stream, name in ((1, "stdout.txt"), (2, "stderr.txt")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        # pytest's capture would swallow what is printed.
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = [script, *arguments]
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

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(timeout_s)
    if process.is_alive():
        process.kill()
        process.join()
    texts = [(folder / name).read_text() for name in ("stdout.txt", "stderr.txt")]
    return Result(process.exitcode if process.exitcode is not None else -1, *texts)
