"""Run a command of the repository as a user would."""

from __future__ import annotations

import importlib.util
import os
import runpy
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import huggingface_hub
from processes import finish, start

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


def load_script(name: str) -> ModuleType:
    """Return `scripts/NAME.py` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_command(folder: Path, script: str, *arguments: str, timeout_s: float = 120) -> Result:
    """Run `python SCRIPT ARGUMENTS` in `folder`, without network, and wait for it."""
    return finish_command(start_command(folder, script, *arguments), folder, timeout_s)


def start_command(folder: Path, script: str, *arguments: str, **environment: object) -> BaseProcess:
    """Start a command in `folder`, with further variables in its environment, and return its process."""
    folder.mkdir(parents=True, exist_ok=True)
    return start(_run, folder, script, arguments, {name: str(value) for name, value in environment.items()})


def finish_command(process: BaseProcess, folder: Path, timeout_s: float = 120) -> Result:
    """Wait for a started command and return what it has said."""
    status = finish(process, timeout_s)
    texts = [(folder / name).read_text() for name in ("stdout.txt", "stderr.txt")]
    return Result(-1 if status is None else status, *texts)


def start_ranks(count: int, folder: Path, script: str, *arguments: str) -> list[BaseProcess]:
    """Start the processes that `torchrun --nproc-per-node=COUNT` would, rank r in the folder `folder/r`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        start_command(
            folder / str(rank), script, *arguments,
            RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=count, MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        )
        for rank in range(count)
    ]  # fmt: skip


def run_ranks(count: int, folder: Path, script: str, *arguments: str) -> list[Result]:
    """Run a command on so many ranks and wait for all of them."""
    processes = start_ranks(count, folder, script, *arguments)
    return [finish_command(process, folder / str(rank), 400) for rank, process in enumerate(processes)]


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
