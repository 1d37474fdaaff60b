"""File formats of public depth data sets."""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
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
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror}") from error
    for line in lines:
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
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines() if path.is_file() else []:
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
        raise UserError(f"cannot read '{name}' of {path}: {error}; unpack or download it again") from error


def h5_numbers(path: Path, name: str, shape: tuple[int | None, ...], at: int | None = None) -> np.ndarray:
    """Return the numbers of an array of an HDF5 file, whole or its element `at`; None: any length of an axis.

    Raises:
        UserError: it is not there, damaged, or of another type or shape.
    """
    array = h5_array(path, name)
    wanted = shape if at is None else (None, *shape)
    found, dtype = getattr(array, "shape", ()), getattr(array, "dtype", np.dtype("O"))  # a group has neither
    if dtype.kind not in "fiu" or not _fits(found, wanted):
        expected = ", ".join("n" if length is None else str(length) for length in wanted)
        raise UserError(
            f"'{name}' of {path} must hold numbers [{expected}]; it holds {dtype} {list(found)}: unpack or download it"
            " again"
        )
    try:
        return np.asarray(array[:] if at is None else array[at])
    except (OSError, IndexError) as error:
        where = "" if at is None else f", entry {at}"
        raise UserError(f"cannot read '{name}' of {path}{where}: {error}; unpack or download it again") from error


def _fits(found: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(w in (None, f) for f, w in zip(found, wanted, strict=True))


def nyu_test_split(path: Path, num_pictures: int) -> list[int]:
    """Return the numbers, from 0 on, of the test pictures that NYU's splits.mat names.

    Raises:
        UserError: SciPy is not installed, the file is damaged, or it names no pictures or some that are not there.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(f"{path.name} needs SciPy: pip install 'videomamba-depth[datasets]'") from error
    try:
        numbers = np.ravel(loadmat(path)["testNdxs"])
    except Exception as error:  # its readers raise errors of many kinds
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"cannot read {path}: {reason}; download splits.mat again, or remove it to take all pictures"
        ) from error
    if numbers.dtype.kind not in "fiu" or not numbers.size:
        raise UserError(
            f"'testNdxs' of {path} must hold the numbers of pictures; it is {numbers.dtype} {numbers.shape}"
        )
    if wrong := [n for n in numbers.tolist() if n != int(n) or not 1 <= n <= num_pictures]:
        raise UserError(
            f"'testNdxs' of {path} names picture {wrong[0]:g}; beside it are those from 1 to {num_pictures}: both files"
            " must be of one release"
        )
    return [int(number) - 1 for number in numbers]


def read_ray_length(intrinsics: np.ndarray, path: Path) -> np.ndarray:
    """Return z [h,w] in m of an HDF5 file of distances to the camera's center (Hypersim)."""
    distance = h5_numbers(path, "dataset", (None, None)).astype(np.float32)
    y, x = np.indices(distance.shape, dtype=np.float32)
    x, y = (x - intrinsics[0, 2]) / intrinsics[0, 0], (y - intrinsics[1, 2]) / intrinsics[1, 1]
    return (distance / np.sqrt(x * x + y * y + 1.0)).astype(np.float32)


def hypersim_poses(detail: Path, camera: str, numbers: Sequence[int]) -> np.ndarray | None:
    """Return camera to world [F,4,4], m, y up and −z ahead, of the frames of these numbers; None without the files.

    Raises:
        UserError: one of the files is damaged or of another form.
    """
    folder, scene = detail / camera, detail / "metadata_scene.csv"
    if not (scene.is_file() and folder.is_dir()):
        return None
    shapes = {"positions": (None, 3), "orientations": (None, 3, 3), "frame_indices": (None,)}
    positions, turns, frames = (
        h5_numbers(folder / f"camera_keyframe_{name}.hdf5", "dataset", shape) for name, shape in shapes.items()
    )
    if not len(positions) == len(turns) == len(frames):
        raise UserError(
            f"{folder} must have a position, an orientation and a number for each key frame; it has {len(positions)},"
            f" {len(turns)} and {len(frames)}: unpack it again"
        )
    meters = _meters_per_unit(scene)
    places = {int(frame): i for i, frame in enumerate(frames)}
    poses = np.tile(np.eye(4), (len(numbers), 1, 1))
    for pose, number in zip(poses, numbers, strict=True):
        if (i := places.get(number)) is None:
            pose[:] = np.nan
        else:
            pose[:3, :3], pose[:3, 3] = turns[i], positions[i] * meters
    return poses


def _meters_per_unit(path: Path) -> float:
    """Return the length of a unit of a scene of Hypersim in m, of the rows "parameter_name,parameter_value"."""
    key = "meters_per_asset_unit"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            columns = [name.strip() for name in next(rows, [])]
            name, value = columns.index("parameter_name"), columns.index("parameter_value")
            found = [(rows.line_num, row) for row in rows if len(row) > name and row[name].strip() == key]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} must have the columns parameter_name and parameter_value: {error}") from error
    if not found:
        raise UserError(f"{path} has no row '{key},METERS'; copy the file from the data set again")
    line, row = found[-1]
    try:
        meters = float(row[value])
    except (ValueError, IndexError):
        meters = math.nan
    if not (math.isfinite(meters) and meters > 0):
        raise UserError(f"{path}, line {line}: {key} must be a length in m; got '{','.join(row)}'")
    return meters


@lru_cache(maxsize=2)
def _frame_annotations(path: Path) -> list[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            frames = json.load(file)
    except (OSError, ValueError, EOFError, zlib.error, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}; unpack or download it again") from error
    if not isinstance(frames, list):
        raise UserError(f"{path} must hold a list of frames, as JSON; it holds a {type(frames).__name__}")
    return frames


def read_frame_annotations(path: Path, sequence: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return {image file: (intrinsics [3,3] px, camera to world [4,4])} of a sequence of DynamicReplica.

    Its cameras follow PyTorch3D: x left, y up, X_camera = X_world · R + T for row vectors, focal lengths in units of
    half the shorter side.

    Raises:
        UserError: the file is damaged, or an entry is not of that form; the message names it.
    """
    cameras = {}
    for i, frame in enumerate(_frame_annotations(path)):
        try:
            file = Path(frame["image"]["path"])
            if file.parts[-3:-2] == (sequence,):
                cameras[file.name] = _replica_camera(frame)
        except (KeyError, TypeError, ValueError, np.linalg.LinAlgError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise UserError(
                f"{path}, entry {i}, must have image.path, image.size and a viewpoint with R, T, focal_length and"
                f" principal_point: {reason}"
            ) from error
    return cameras


def _replica_camera(frame: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return intrinsics [3,3] px and camera to world [4,4] of an entry."""
    flip = np.diag([-1.0, -1.0, 1.0])
    height, width = frame["image"]["size"]
    view, unit = frame["viewpoint"], min(height, width) / 2
    (fx, fy), (px, py) = view["focal_length"], view["principal_point"]
    matrix = np.array(
        [[fx * unit, 0, (width - 1) / 2 - px * unit], [0, fy * unit, (height - 1) / 2 - py * unit], [0, 0, 1]],
        dtype=np.float64,
    )
    if not (np.isfinite(matrix).all() and matrix[0, 0] and matrix[1, 1]):
        raise ValueError(f"the camera {matrix.tolist()} is none")
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3] = flip @ matrix_of(view["R"], (3, 3)).T
    world_to_camera[:3, 3] = flip @ matrix_of(view["T"], (3,))
    return matrix, np.linalg.inv(world_to_camera)


def matrix_of(numbers: Any, *shapes: tuple[int, ...]) -> np.ndarray:
    """Return nested lists of numbers as float64, of one of the shapes.

    Raises:
        ValueError, TypeError: they are none.
    """
    array = np.array(numbers, dtype=np.float64)
    if array.shape not in shapes:
        raise ValueError(f"expected {' or '.join(str(list(shape)) for shape in shapes)}, got {list(array.shape)}")
    return array


def read_vda_list(path: Path) -> dict[str, list[dict[str, list[dict[str, Any]]]]]:
    """Return {data set: [{sequence: [{image, gt_depth, factor, …}]}]}; nothing where the file has another form.

    Raises:
        UserError: an entry has these keys, and another lacks one or has other values; the message names the first.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            (f"'{name}', entry {i}", row)
            for group in content.values()
            for sequence in group
            for name, rows in sequence.items()
            for i, row in enumerate(rows)
        ]
    except (ValueError, AttributeError, TypeError, OSError, RecursionError):
        return {}
    if not any(isinstance(row, dict) and {"image", "gt_depth", "factor"} <= set(row) for _, row in rows):
        return {}
    if wrong := [where for where, row in rows if not _is_vda_entry(row)]:
        raise UserError(f"{path}, {wrong[0]}, must have image and gt_depth, paths, and factor, a positive number")
    return content


def _is_vda_entry(row: Any) -> bool:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("image", "gt_depth")):
        return False
    factor = row.get("factor")
    return isinstance(factor, int | float) and math.isfinite(factor) and factor > 0
