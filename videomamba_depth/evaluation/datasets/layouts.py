"""Layouts of public data sets as they are unpacked: which files belong together, and what their numbers mean.

A layout is a function that lists the sequences at or below a folder, of `recorded_layouts` or `rendered_layouts`, and
an entry of `LAYOUTS`. Depth scale, invalid value, greatest depth, crop and intrinsics are those of the data set's own
documentation or of the protocol that is published on it; `RgbdFormat` overrides them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from videomamba_depth.evaluation.datasets import recorded_layouts as recorded
from videomamba_depth.evaluation.datasets import rendered_layouts as rendered
from videomamba_depth.evaluation.datasets.layout_tree import Found, Tree
from videomamba_depth.evaluation.datasets.vda_layout import vda
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """A layout: its title, what lists its sequences, and what a person must know of it."""

    title: str
    find: Callable[[Tree], Iterator[Found]]
    note: str = ""


_UNREGISTERED = "depth is not registered to color and is evaluated as it is"
LAYOUTS = {
    "vda": Layout("Video Depth Anything's lists", vda),
    "sintel": Layout("MPI Sintel, clean", rendered.sintel),
    "sintel_final": Layout("MPI Sintel, final", partial(rendered.sintel, images="final")),
    "bonn": Layout("Bonn RGB-D Dynamic", recorded.bonn),
    "tum": Layout("TUM RGB-D", recorded.tum),
    "kitti": Layout("KITTI raw with annotated depth", recorded.kitti, "frames without annotated depth are left out"),
    "kitti_selection": Layout("KITTI val_selection_cropped", recorded.kitti_selection),
    "scannet": Layout("ScanNet export", recorded.scannet),
    "nyu": Layout("NYU Depth v2", recorded.nyu),
    "7scenes": Layout("7-Scenes", recorded.seven_scenes, _UNREGISTERED),
    "icl": Layout("ICL-NUIM", rendered.icl),
    "tartanair": Layout("TartanAir", rendered.tartanair),
    "virtual_kitti": Layout("Virtual KITTI 2", rendered.virtual_kitti),
    "point_odyssey": Layout("PointOdyssey", rendered.point_odyssey),
    "dynamic_replica": Layout("DynamicReplica", rendered.dynamic_replica),
    "hypersim": Layout("Hypersim", rendered.hypersim),
    "eth3d": Layout("ETH3D", recorded.eth3d, "pictures are distorted: no intrinsics, no poses"),
}
"""Data sets by the name that `rgbd.layout` takes, in the order in which they are recognized."""


def find_layout(root: str | Path, layout: str | None = None, depth_root: str | Path | None = None) -> list[Found]:
    """Return the sequences at or below `root`, of one layout or of the first that has any; log which it is.

    Raises:
        UserError: `layout` is given and has no sequence there, or a folder does not exist.
    """
    for path in (root, depth_root or root):
        if not Path(path).exists():
            raise UserError(f"'{path}' does not exist")
    tree = Tree(Path(root), None if depth_root is None else Path(depth_root), named=layout is not None)
    for name in LAYOUTS if layout is None else [layout]:
        if name not in LAYOUTS:
            raise UserError(f"rgbd.layout={name}: choose from {', '.join(LAYOUTS)}")
        found = list(LAYOUTS[name].find(tree))
        if found:
            kind, note = LAYOUTS[name], f"; {LAYOUTS[name].note}" if LAYOUTS[name].note else ""
            log.info("'%s' is %s (rgbd.layout=%s), sequences: %d%s", root, kind.title, name, len(found), note)
            if layout is None:
                _name_other_data_sets(tree, name, found)
            return [sequence._replace(layout=name) for sequence in found]
    if layout is not None:
        wanted = (_function_of(LAYOUTS[layout]).__doc__ or "").splitlines()[0]
        raise UserError(f"'{root}' holds no sequence of rgbd.layout={layout}; it must have: {wanted}")
    return []


def _name_other_data_sets(tree: Tree, layout: str, found: Sequence[Found]) -> None:
    """Warn of sequences that other layouts would take, outside of those that are found."""
    names = {sequence.name for sequence in found}
    if tree.name(tree.root) in names:
        return
    tree = tree.without(names)
    for name, other in LAYOUTS.items():
        if _function_of(other) is _function_of(LAYOUTS[layout]):
            continue
        try:
            left = [sequence.name for sequence in other.find(tree) if sequence.name not in names]
        except UserError:
            continue
        if left:
            log.warning(
                "'%s' also holds %s (rgbd.layout=%s), left out, sequences: %d, first %s: give each data set its folder,"
                " input=[A,B]",
                tree.root, other.title, name, len(left), left[0],
            )  # fmt: skip


def _function_of(layout: Layout) -> Callable[..., Iterator[Found]]:
    return getattr(layout.find, "func", layout.find)
