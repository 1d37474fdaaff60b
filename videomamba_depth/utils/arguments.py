"""Kinds of command-line arguments for argparse: a value that is not allowed is refused with the option's name."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path


def whole(low: int, high: int = 10**9) -> Callable[[str], int]:
    """Return a parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number in [{low}, {high}]; got '{text}'")
        return value

    return parse


def positive(text: str) -> float:
    """Return a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0; got '{text}'")
    return value


def path_argument(text: str) -> Path:
    """Return a path, a leading `~` replaced by the home folder."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path, not empty")
    return Path(os.path.expanduser(text))


def named_path(text: str) -> str:
    """Return a folder's path, or `teacher:PATH`, as text; a leading `~` is the home folder."""
    kind, colon, rest = text.partition(":") if text.startswith("teacher:") else ("", "", text)
    return f"{kind}{colon}{os.path.expanduser(rest)}"


def called_program() -> str:
    """Return how this program was called: `python FILE`, or the name of an installed command."""
    name = sys.argv[0]
    return f"python {name}" if name.endswith(".py") else name


def called_command() -> str:
    """Return the whole command line, for records."""
    return " ".join([called_program(), *sys.argv[1:]])
