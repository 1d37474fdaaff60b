"""Clips shared by processes that write to one cache, as torchrun starts them: whoever claims a clip evaluates it.

There is no process group. A claim is a locked file, which the kernel frees when its process ends, however it ends; what
has been found of a clip lies in the cache, under the keys that a single process uses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from videomamba_depth.evaluation.clips import ClipSource
from videomamba_depth.evaluation.engine import ClipResult
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.lock import exclusive

POLL_S = 0.2
Evaluate = Callable[[ClipSource], ClipResult | UserError]
"""Evaluates a clip, or reads what is kept of it; see `Evaluator.attempt`."""


def evaluate_unclaimed(sources: Iterable[ClipSource], evaluate: Evaluate, claims: Path) -> None:
    """Evaluate every clip, in order, that no other process is at.

    claims: folder of the claims, the same for all processes that share these clips.
    """
    for number, source in enumerate(sources):
        with ExitStack() as claim:
            if _claim(claim, claims, number):
                evaluate(source)


def collect_all(
    sources: Iterable[ClipSource], evaluate: Evaluate, claims: Path
) -> Iterator[tuple[str, ClipResult | UserError]]:
    """Yield name and result of every clip in order, each as soon as no other process is at it.

    A clip whose process has died on the way is evaluated here.
    """
    for number, source in enumerate(sources):
        with ExitStack() as claim:
            while not _claim(claim, claims, number):
                time.sleep(POLL_S)
            yield source.name, evaluate(source)


def _claim(stack: ExitStack, claims: Path, number: int) -> bool:
    """Hold the claim on a clip for as long as `stack`; return False where another process holds it."""
    try:
        stack.enter_context(exclusive(claims / f"{number}.lock", f"clip {number}"))
    except UserError as error:
        if not isinstance(error.__cause__, BlockingIOError):  # no lock can be made there
            raise
        return False
    return True
