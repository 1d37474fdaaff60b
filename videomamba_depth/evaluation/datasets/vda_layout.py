"""The layout of Video Depth Anything's extraction: JSON lists of pictures, depth maps and cameras."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from videomamba_depth.evaluation.datasets import formats
from videomamba_depth.evaluation.datasets.layout_parts import stacked_poses
from videomamba_depth.evaluation.datasets.layout_tree import Found, Tree
from videomamba_depth.evaluation.datasets.recording import Recording, RgbdFrame, read_depth
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.intrinsics import camera_matrix

VDA_CUTS = {  # rows and columns of the depth maps that its evaluation reads
    "scannet": (slice(8, -8), slice(11, -11)),
    "nyuv2": (slice(45, 471), slice(41, 601)),
    "kitti": (slice(374), slice(1242)),
}
VDA_FAR_M = {"kitti": 80.0, "sintel": 70.0}


def vda(tree: Tree) -> Iterator[Found]:
    """The extraction of DepthCrafter and Video Depth Anything: JSON lists of {image, gt_depth, factor[, K, pose]}."""
    files = [tree.root] if tree.root.suffix == ".json" else sorted(tree.root.glob("*.json"))
    for file in files:
        for dataset, sequences in formats.read_vda_list(file).items():
            for sequence in sequences:
                for name, rows in sequence.items():
                    called = f"{file.stem}/{name}" if len(files) > 1 else name
                    yield Found(called, partial(_vda, file, dataset, name, rows), file.stem)


def _vda(file: Path, dataset: str, name: str, rows: Sequence[dict[str, Any]]) -> Recording:
    root = file.parent
    whole = any("color_origin" in row["image"] for row in rows)  # of the list for TAE: pictures are not cut either
    cut = (slice(None), slice(None)) if whole else VDA_CUTS.get(dataset, (slice(None), slice(None)))
    frames = [
        RgbdFrame(root / row["image"], root / row["gt_depth"], Path(row["image"]).stem, i) for i, row in enumerate(rows)
    ]
    factors = {float(row["factor"]) for row in rows}
    if len(factors) != 1:
        raise UserError(f"{file}: the factors of '{name}' differ: {sorted(factors)[:3]}; a sequence must have one")
    cameras, poses = _vda_matrices(file, name, rows, "K"), _vda_matrices(file, name, rows, "pose")
    matrix = None
    if cameras:
        matrix = camera_matrix(cameras[0][:3, :3])
        matrix[:2, 2] -= [cut[1].start or 0, cut[0].start or 0]
    return Recording(
        folder=root,
        frames=frames,
        depth_scale=factors.pop(),
        max_depth_m=VDA_FAR_M.get(dataset, 10.0),
        intrinsics=matrix,
        poses=stacked_poses(poses) if poses else None,
        read_depth=lambda path: read_depth(path)[cut],
    )


def _vda_matrices(file: Path, name: str, rows: Sequence[dict[str, Any]], key: str) -> list[np.ndarray]:
    """Return what the entries of a sequence have under `key`, "K" or "pose"; nothing unless all have it."""
    shapes = [(4, 4), (3, 3)] if key == "K" else [(4, 4)]
    found = []
    for i, row in enumerate(rows) if all(key in row for row in rows) else ():
        try:
            found.append(formats.matrix_of(row[key], *shapes))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{file}, '{name}', entry {i}: {key} must be a matrix of numbers: {error}; correct it, or remove {key}"
                " from all entries"
            ) from error
    return found
