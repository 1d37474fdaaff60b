"""Child processes of a server that has imported what most tests need.

Not children of the test's own process: that has threads by then, and a fork of it may wait forever for their locks.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "pytest",
        "videomamba_depth.commands.precompute",
        "videomamba_depth.commands.stream",
        "videomamba_depth.commands.train",
        "videomamba_depth.configuration.build_evaluate",  # its command sets the environment when it is imported
    ]
)


def start(target: Callable[..., object], *arguments: Any) -> BaseProcess:
    """Start `target(*arguments)`, a function of a module, in the environment of this moment; all that can be pickled.

    The server still has the environment of the test that happened to start it.
    """
    process = SERVER.Process(target=_run, args=(dict(os.environ), target, *arguments))
    process.start()
    return process


def _run(environment: dict[str, str], target: Callable[..., object], *arguments: Any) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    gc.freeze()  # what the server has imported stays
    target(*arguments)


def finish(process: BaseProcess, timeout_s: float = 120) -> int | None:
    """Wait for a process, kill it when that takes too long, and return its exit code."""
    process.join(timeout_s)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def make_event() -> Any:
    """Return an event that a started process and this one share."""
    return SERVER.Event()
