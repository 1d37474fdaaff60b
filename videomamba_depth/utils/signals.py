"""How a process is asked to stop: Ctrl-C, SIGTERM, and the terminal that closes (SIGHUP)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPED_STATUS = 130
"""Exit status of a command that a signal stopped: what shells report for Ctrl-C."""

_STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def on_stop(handle: Callable[[int, FrameType | None], Any] = signal.default_int_handler) -> Iterator[None]:
    """Within, every request to stop calls `handle`; the default raises KeyboardInterrupt.

    A signal that is ignored, as SIGHUP is under nohup, stays so. Outside the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    chosen = [number for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in chosen}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
