"""Constraints that the schemas of several commands share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")
COLOUR_MAPS = ("inferno", "magma", "turbo", "viridis", "grey")


def check_values(config: Any, choices: Mapping[str, Sequence[str]], positive: Sequence[str]) -> None:
    """Check the values of a command's keys.

    Args:
        choices: what each key may be. positive: keys whose number must be above 0, where there is one.

    Raises:
        ValueError: a value is not allowed.
    """
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got '{getattr(config, name)}'")
    for name in positive:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive; got {value}")
