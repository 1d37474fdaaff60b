"""File formats of public depth data sets."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from videomamba_depth.utils.errors import UserError

SINTEL_TAG = np.float32(202021.25)


def read_dpt(path: Path) -> np.ndarray:
    """Return MPI Sintel's depth [h,w] in m: a tag, width and height (int32), then float32."""
    content = path.read_bytes()
    width, height = np.frombuffer(content, "<i4", 2, 4) if len(content) > 12 else (0, 0)
    if len(content) != 12 + 4 * int(width) * int(height) or np.frombuffer(content, "<f4", 1)[0] != SINTEL_TAG:
        raise UserError(f"cannot read depth map {path}: it is damaged or no file of Sintel's form")
    return np.frombuffer(content, "<f4", offset=12).reshape(height, width)


def read_cam(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return MPI Sintel's intrinsics [3,3] px and world-to-camera [4,4]: a tag, then 9 and 12 float64."""
    content = path.read_bytes()
    if len(content) != 4 + 21 * 8 or np.frombuffer(content, "<f4", 1)[0] != SINTEL_TAG:
        raise UserError(f"cannot read camera {path}: it is damaged or no file of Sintel's form")
    numbers = np.frombuffer(content, "<f8", offset=4)
    return numbers[:9].reshape(3, 3), np.vstack([numbers[9:].reshape(3, 4), [0, 0, 0, 1]])


class ListedFile(NamedTuple):
    """A row "stamp file": when (s), where, and the how many-th row it is, from 0 on."""

    stamp: float
    path: Path
    row: int


def read_list(path: Path) -> tuple[list[ListedFile], list[str]]:
    """Return the rows "stamp file" of a list in order of time, and the names of the files that are missing."""
    found, missing = list[ListedFile](), list[str]()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        cells = line.replace(",", " ").split()
        if not cells or cells[0].startswith("#"):
            continue
        try:
            stamp, name = float(cells[0]), cells[1]
        except (ValueError, IndexError):
            raise UserError(f"{path} must have rows 'stamp filename'; got '{line.strip()}'") from None
        if math.isfinite(stamp) and (path.parent / name).is_file():
            found.append(ListedFile(stamp, path.parent / name, len(found) + len(missing)))
        else:
            missing.append(Path(name).name)
    if not found:
        raise UserError(f"{path} lists no file that is there")
    return sorted(found), missing


def read_fields(path: Path) -> dict[str, list[float]]:
    """Return the numbers of rows "name: numbers", as KITTI's calibration has them; nothing without the file."""
    fields = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        name, _, numbers = line.partition(":")
        try:
            fields[name] = [float(number) for number in numbers.split()]
        except ValueError:
            continue  # a date
    return fields


def read_float_png(path: Path) -> np.ndarray:
    """Return depth [h,w] in m of a PNG whose four bytes per pixel are one float32 (TartanAir v2)."""
    packed = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if packed is None or packed.dtype != np.uint8 or packed.ndim != 3 or packed.shape[2] != 4:
        raise UserError(f"cannot read depth map {path}: it is damaged or not an image of four channels")
    return np.ascontiguousarray(packed).view("<f4")[..., 0]


def read_half_png(path: Path) -> np.ndarray:
    """Return depth [h,w] in m of a 16-bit PNG whose bits are a float16 (DynamicReplica)."""
    bits = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if bits is None or bits.dtype != np.uint16 or bits.ndim != 2:
        raise UserError(f"cannot read depth map {path}: it is damaged or not a 16-bit image")
    return bits.view(np.float16).astype(np.float32)


def read_raw_depth(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return depth [h,w] in m of a file of float32 without a header (ETH3D), infinite where unknown."""
    numbers = np.fromfile(path, "<f4")
    if numbers.size != size[0] * size[1]:
        raise UserError(f"cannot read depth map {path}: it has {numbers.size} numbers for a picture of {size} px")
    return numbers.reshape(size)


@lru_cache(maxsize=4096)
def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image in px."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        raise UserError(f"cannot read image {path}: it is damaged or not an image") from error


def h5_array(path: Path, name: str) -> Any:
    """Return an array of an HDF5 file, open, read when indexed."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path.name} needs h5py: pip install 'videomamba-depth[datasets]'") from error
    try:
        return h5py.File(path, "r")[name]
    except (OSError, KeyError) as error:
        raise UserError(f"cannot read '{name}' of {path}: {error}") from error


def nyu_test_split(path: Path) -> list[int]:
    """Return the numbers, from 0 on, of the test pictures that NYU's splits.mat names."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(f"{path.name} needs SciPy: pip install 'videomamba-depth[datasets]'") from error
    return [int(number) - 1 for number in np.ravel(loadmat(path)["testNdxs"])]


def read_ray_length(intrinsics: np.ndarray, path: Path) -> np.ndarray:
    """Return z [h,w] in m of an HDF5 file of distances to the camera's center (Hypersim)."""
    distance = np.asarray(h5_array(path, "dataset")[:], dtype=np.float32)
    y, x = np.indices(distance.shape, dtype=np.float32)
    x, y = (x - intrinsics[0, 2]) / intrinsics[0, 0], (y - intrinsics[1, 2]) / intrinsics[1, 1]
    return (distance / np.sqrt(x * x + y * y + 1.0)).astype(np.float32)


def hypersim_poses(detail: Path, camera: str, numbers: Sequence[int]) -> np.ndarray | None:
    """Return camera to world [F,4,4], m, y up and −z ahead, of the frames of these numbers; None without the files."""
    folder, scene = detail / camera, detail / "metadata_scene.csv"
    if not (scene.is_file() and folder.is_dir()):
        return None
    positions, turns, frames = (
        np.asarray(h5_array(folder / f"camera_keyframe_{name}.hdf5", "dataset")[:])
        for name in ("positions", "orientations", "frame_indices")
    )
    with scene.open(encoding="utf-8", newline="") as file:
        values = {line["parameter_name"].strip(): line["parameter_value"] for line in csv.DictReader(file)}
    meters = float(values["meters_per_asset_unit"])
    places = {int(frame): i for i, frame in enumerate(frames)}
    poses = np.tile(np.eye(4), (len(numbers), 1, 1))
    for pose, number in zip(poses, numbers, strict=True):
        if (i := places.get(number)) is None:
            pose[:] = np.nan
        else:
            pose[:3, :3], pose[:3, 3] = turns[i], positions[i] * meters
    return poses


@lru_cache(maxsize=2)
def _frame_annotations(path: Path) -> list[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return list(json.load(file))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def read_frame_annotations(path: Path, sequence: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return {image file: (intrinsics [3,3] px, camera to world [4,4])} of a sequence of DynamicReplica.

    Its cameras follow PyTorch3D: x left, y up, X_camera = X_world · R + T for row vectors, focal lengths in units of
    half the shorter side.
    """
    flip = np.diag([-1.0, -1.0, 1.0])
    cameras = {}
    for frame in _frame_annotations(path):
        file = Path(frame["image"]["path"])
        if file.parts[-3:-2] != (sequence,):
            continue
        height, width = frame["image"]["size"]
        view, unit = frame["viewpoint"], min(height, width) / 2
        (fx, fy), (px, py) = view["focal_length"], view["principal_point"]
        matrix = np.array(
            [[fx * unit, 0, (width - 1) / 2 - px * unit], [0, fy * unit, (height - 1) / 2 - py * unit], [0, 0, 1]]
        )
        world_to_camera = np.eye(4)
        world_to_camera[:3, :3] = flip @ np.array(view["R"]).T
        world_to_camera[:3, 3] = flip @ np.array(view["T"])
        cameras[file.name] = (matrix, np.linalg.inv(world_to_camera))
    return cameras


def read_vda_list(path: Path) -> dict[str, list[dict[str, list[dict[str, Any]]]]]:
    """Return {data set: [{sequence: [{image, gt_depth, factor, …}]}]}; nothing where the file has another form."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for group in content.values() for sequence in group for rows in sequence.values() for row in rows]
    except (ValueError, AttributeError, TypeError, OSError):
        return {}
    keys = {"image", "gt_depth", "factor"}
    return content if rows and all(isinstance(row, dict) and keys <= set(row) for row in rows) else {}
