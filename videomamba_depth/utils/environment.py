"""What a launcher such as torchrun says of this process, in variables of the environment."""

from __future__ import annotations

import os
from typing import NamedTuple

from videomamba_depth.utils.errors import UserError


class Launch(NamedTuple):
    """Which process of how many this is; `local_rank` counts those of this machine."""

    rank: int
    local_rank: int
    world_size: int


def launch() -> Launch:
    """Return what RANK, LOCAL_RANK and WORLD_SIZE say; one process where they are not set.

    Raises:
        UserError: no whole numbers, or numbers that do not fit each other.
    """
    rank, local_rank, world_size = _number("RANK", 0), _number("LOCAL_RANK", 0), _number("WORLD_SIZE", 1)
    if not (0 <= local_rank <= rank < world_size):
        raise UserError(
            f"the environment says RANK={rank}, LOCAL_RANK={local_rank}, WORLD_SIZE={world_size}: ranks must be below"
            " the number of processes; start them with torchrun, or unset these"
        )
    return Launch(rank, local_rank, world_size)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if text and not (text.isascii() and text.isdigit()):
        raise UserError(f"the environment variable {name} must be a whole number; got {text!r} (torchrun sets it)")
    return int(text or default)
