"""Constraints that the schemas of several commands share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import MISSING

DTYPES = ("float32", "bfloat16", "float16")


def check_values(config: Any, choices: Mapping[str, Sequence[str]], positive: Sequence[str]) -> None:
    """Check the values of a command's keys.

    Args:
        choices: what each key may be. positive: keys whose number must be above 0, where there is one.

    Raises:
        ValueError: a value is not allowed.
    """
    for name, allowed in choices.items():
        check_choice(name, getattr(config, name), allowed)
    for name in positive:
        check_positive(name, getattr(config, name))


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError for a value that is there and not one of `choices`."""
    if value != MISSING and value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got '{value}'")


def check_positive(name: str, value: float | None) -> None:
    """Raise ValueError for a number that is there and not above 0."""
    if value is not None and value != MISSING and value <= 0:
        raise ValueError(f"{name} must be positive; got {value}")


def check_share(name: str, value: float) -> None:
    """Raise ValueError for a number that is there and outside [0, 1]."""
    if value != MISSING and not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1]; got {value}")
