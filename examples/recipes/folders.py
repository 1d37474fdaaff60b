"""Folders of classes, and lists: the classes of the training data number those of all data, and faults are named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.datasets import ImageFolder

from videomamba_depth.utils.errors import UserError

Classes = Sequence[str] | None
"""Those of the training data, by which all other data are numbered; None: data to train on."""


def files_in(folder: Path) -> list[Path]:
    """Return what is in a folder but hidden names, sorted; a folder that is missing or empty is refused."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; see --help for what --data must hold")
    if not (found := sorted(path for path in folder.iterdir() if not path.name.startswith("."))):
        raise UserError(f"{folder} is empty; see --help for what --data must hold")
    return found


def class_names(folder: Path, known: Classes = None) -> list[str]:
    """Return the classes that a folder of folders is numbered by: `known` ones, else its own; others are refused."""
    if not (own := [path.name for path in files_in(folder) if path.is_dir()]):
        raise UserError(f"{folder} holds no folders of classes; see --help for what --data must hold")
    if known is None:
        return own
    if unknown := [name for name in own if name not in known]:
        raise UserError(f"{folder} has classes that the training folder lacks: {', '.join(unknown[:10])}; remove them")
    return list(known)


def read_picture(path: str | Path) -> Image.Image:
    """Return a picture, read to its end; a damaged one is refused by name."""
    try:
        picture = Image.open(path)
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"the picture {path} cannot be read ({error}); replace or remove it") from error
    return picture


class Images(ImageFolder):
    """Pictures in folders of classes, see `class_names`."""

    def __init__(self, folder: Path, transform: Any, known: Classes = None) -> None:
        self.names = class_names(folder, known)
        super().__init__(folder, transform, loader=read_picture, allow_empty=True)
        held = {self.names[label] for label in self.targets}
        if lacking := [name for name in self.names if name not in held and (known is None or not held)]:
            raise UserError(f"{folder} holds no pictures of {', '.join(lacking[:10])}; add some, or remove the folders")

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        return self.names, {name: label for label, name in enumerate(self.names)}


def read_lines(path: Path) -> list[tuple[str, str]]:
    """Return the lines of a list that hold something, each with where it stands; a byte-order mark is left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list {path} cannot be read: {getattr(error, 'strerror', 'it is no UTF-8')}") from error
    if not (found := [(f"{path}, line {n}", line.strip()) for n, line in enumerate(lines, 1) if line.strip()]):
        raise UserError(f"the list {path} names nothing; see --help for its lines")
    return found


def read_labels(path: Path, known: Classes = None) -> list[tuple[str, int]]:
    """Return what a list of "path label" says, with a space or a comma between; labels count from 0."""
    pairs = []
    for place, line in read_lines(path):
        match = re.fullmatch(r"(.*[^\s,])[\s,]+([0-9]+)", line)
        if not match:
            raise UserError(f"{place}: expected a path and the number of its class, from 0; got {line!r}")
        if len(match[2]) > 6:
            raise UserError(f"{place}: class {match[2]} is no number of a class; they count from 0 without gaps")
        if known and int(match[2]) >= len(known):
            raise UserError(f"{place}: class {match[2]} is not in the training data, whose last is {len(known) - 1}")
        pairs.append((match[1], int(match[2])))
    return pairs


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Return the paths and descriptions of a list, with a tab between."""
    pairs = []
    for place, line in read_lines(path):
        video, _, text = map(str.strip, line.partition("\t"))
        if not text:
            raise UserError(f"{place}: expected a path, a tab and a description; got {line!r}")
        pairs.append((video, text))
    return pairs
