"""Values of options are refused with the option's name."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from videomamba_depth.utils.arguments import named_path, path_argument, positive, whole


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "", "nan", "101", "1e2"])
def test_whole(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"must be a whole number in \[1, 100\]"):
        whole(1, 100)(text)
    assert whole(1, 100)("100") == 100


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "nan", "inf"])
def test_positive(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be a number above 0"):
        positive(text)
    assert positive("1e-4") == 1e-4


def test_paths() -> None:
    assert path_argument("~/x") == Path.home() / "x"
    assert named_path("teacher:~/x") == f"teacher:{Path.home()}/x"
    assert named_path("~/x") == f"{Path.home()}/x"
    assert named_path("runs/a:b") == "runs/a:b"
    with pytest.raises(argparse.ArgumentTypeError, match="not empty"):
        path_argument("")
