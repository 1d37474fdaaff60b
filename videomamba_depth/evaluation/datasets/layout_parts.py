"""What layouts are made of: pictures paired with their depth maps, and the poses and intrinsics that fit these."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from videomamba_depth.evaluation.clips import scale_intrinsics
from videomamba_depth.evaluation.datasets import formats
from videomamba_depth.evaluation.datasets.recording import RgbdFrame, last_number, pose_matrix, read_depth, read_numbers
from videomamba_depth.evaluation.datasets.timestamps import associate
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

NO_DEPTH = "have no depth map"
UNKNOWN_POSE = np.full((4, 4), np.nan)


def paired(
    images: Sequence[Path], depth_of: Callable[[Path], Path], name_of: Callable[[Path], str] = lambda path: path.stem
) -> tuple[list[RgbdFrame], dict[str, list[str]]]:
    """Return the images whose depth map is there, and the names of the others."""
    pairs = [(i, image, depth_of(image)) for i, image in enumerate(images)]
    alone = [image.name for _, image, depth in pairs if not depth.is_file()]
    frames = [RgbdFrame(image, depth, name_of(image), i) for i, image, depth in pairs if depth.is_file()]
    return frames, {NO_DEPTH: alone} if alone else {}


def numbers_of(frames: Sequence[RgbdFrame]) -> list[int]:
    """Return the frame number that each picture is called by."""
    numbers = [last_number(frame.name) for frame in frames]
    known = [number for number in numbers if number is not None]
    if len(known) < len(frames):
        unnamed = frames[numbers.index(None)].image
        raise UserError(f"{unnamed} must be called by its frame number, which its pose is found by")
    return known


def intrinsics_at_size(
    matrix: np.ndarray, frames: Sequence[RgbdFrame], published: tuple[int, int] = (480, 640)
) -> np.ndarray | None:
    """Return a data set's intrinsics, of depth maps of its published height and width, at the size of these.

    None, with a warning, where the aspect ratio is another: nobody knows how the pictures were cut.
    """
    path = frames[0].depth if frames else None
    if path is None:
        return matrix
    height, width = read_depth(path).shape if path.suffix == ".npy" else formats.image_size(path)
    if abs(height - width * published[0] / published[1]) >= 1:
        log.warning(
            "%s has %d×%d px, of another aspect ratio than the %d×%d px that the data set's intrinsics are of; without"
            " rgbd.intrinsics there are none",
            path, height, width, *published,
        )  # fmt: skip
        return None
    if (height, width) == published:
        return matrix
    return scale_intrinsics(matrix, np.array([width / published[1], height / published[0]]))


def poses_at(trajectory: Path, stamps: Sequence[float]) -> np.ndarray:
    """Return [F,4,4] from rows "stamp tx ty tz qx qy qz qw", the closest in time within 20 ms; NaN without one."""
    rows = read_numbers(trajectory)
    if rows.shape[1] != 8:
        raise UserError(f"{trajectory} must have rows 'stamp tx ty tz qx qy qz qw'; found {rows.shape[1]} columns")
    partners = associate(stamps, rows[:, 0].tolist())
    return stacked_poses(pose_matrix(rows[j, 1:4], rows[j, 4:]) if j >= 0 else UNKNOWN_POSE for j in partners)


def by_number(rows: np.ndarray, frames: Sequence[RgbdFrame], source: Path) -> np.ndarray:
    """Return the rows that the frames' numbers, from 0 on, stand for; `source`: the file that they come from."""
    numbers = numbers_of(frames)
    if numbers and max(numbers) >= len(rows):
        raise UserError(f"{source} has {len(rows)} poses; picture number {max(numbers)}, counted from 0, has none")
    return rows[numbers]


def read_poses(paths: Iterable[Path]) -> np.ndarray:
    """Return [F,4,4] from text files of 4×4 numbers, NaN where one is missing."""
    found = {path: read_numbers(path) if path.is_file() else UNKNOWN_POSE for path in paths}
    if broken := [path for path, matrix in found.items() if matrix.shape != (4, 4)]:
        raise UserError(f"{broken[0]} must hold a 4×4 matrix")
    return stacked_poses(found.values())


def inverse_pose(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse, NaN where there is none."""
    try:
        return np.linalg.inv(matrix) if np.isfinite(matrix).all() else UNKNOWN_POSE
    except np.linalg.LinAlgError:
        return UNKNOWN_POSE


def stacked_poses(poses: Iterable[np.ndarray]) -> np.ndarray:
    """Return [F,4,4], also of no pose."""
    return np.array(list(poses), dtype=np.float64).reshape(-1, 4, 4)
