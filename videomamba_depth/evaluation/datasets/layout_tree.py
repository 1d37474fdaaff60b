"""Sequences of a data set, and the tree of folders that they are looked for in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from videomamba_depth.evaluation.datasets.recording import Recording

LEVELS = 7  # of folders below the input


class Found(NamedTuple):
    """A sequence: its name, from the input on, and what reads its lists; the list it stands in, and its layout."""

    name: str
    open: Callable[[], Recording]
    listed_in: str = ""
    layout: str = ""


class Tree:
    """The folders at and below one, at most `LEVELS` deep; depth may lie in a tree of its own.

    named: the layout was named by the user, so that what folders are called need not tell it.
    """

    def __init__(self, root: Path, depth_root: Path | None = None, *, named: bool = False) -> None:
        self.named = named
        self.root = root.resolve() if root.is_dir() else root  # "." has no name, and no parents
        self.depth = self if depth_root is None else Tree(depth_root)

    @cached_property
    def folders(self) -> list[Path]:
        """All folders, sorted, each before those inside it, once; hidden ones are left out."""
        return [] if self.root.is_file() else list(self._below(self.root, LEVELS, set()))

    def _below(self, folder: Path, levels: int, seen: set[Path]) -> Iterator[Path]:
        if (real := folder.resolve()) in seen:  # a link
            return
        seen.add(real)
        yield folder
        if levels:
            inside = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir()]
            for path in sorted(inside):
                yield from self._below(path, levels - 1, seen)

    def without(self, names: Collection[str]) -> Tree:
        """Return the same tree without the folders of these names, and those inside them."""
        taken = {self.root / name for name in names}
        rest = Tree(self.root)
        rest.depth = rest if self.depth is self else self.depth
        rest.folders = [folder for folder in self.folders if not taken & {folder, *folder.parents}]
        return rest

    def having(self, *marks: str) -> Iterator[Path]:
        """Yield the folders in which every mark is there: a path, or a pattern of paths."""
        for folder in self.folders:
            if all(any(folder.glob(m)) if "*" in m else (folder / m).exists() for m in marks):
                yield folder

    def name(self, folder: Path) -> str:
        """Return the path from the input on; of the input itself, what it is called."""
        inside = folder.relative_to(self.root).as_posix()
        return folder.resolve().name if inside == "." else inside
