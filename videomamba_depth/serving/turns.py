"""A worker thread whose callers may leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Turns:
    """A thread that takes calls in the order in which they come.

    A caller that is cancelled is gone at once: its call leaves the queue, or, if it runs already, ends by itself and
    its result is dropped. So there is never more than one call under way, however many callers come and go.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `function(*args, **kwargs)`, called on the thread."""
        return await asyncio.wrap_future(self._pool.submit(function, *args, **kwargs))

    def close(self) -> None:
        """Take no more calls; one that runs already is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
