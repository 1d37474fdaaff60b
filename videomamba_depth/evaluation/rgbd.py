"""Load folders of images and depth maps (TUM, ICL-NUIM, NYU, 7-Scenes, KITTI, ScanNet, … after renaming)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.frames import on_disk

from .clips import EvaluationClip

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
DEPTH_SUFFIXES = (".png", ".npy", ".tif", ".tiff")


class ImageFolder:
    """The images of a folder as uint8 [H,W,3] RGB, read when asked for; can be iterated again and again."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        path = self.paths[index]
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise UserError(f"cannot read image {path}: it is damaged or not an image")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))


def find_sequences(root: str | Path, rgb_dir: str = "rgb") -> list[Path]:
    """Return root itself where it is an RGB-D sequence, else the sequences directly inside it, sorted.

    Raises UserError when there is none.
    """
    root = Path(root)
    if (root / rgb_dir).is_dir():
        return [root]
    found = sorted(path for path in root.glob("*") if (path / rgb_dir).is_dir())
    if not found:
        raise UserError(f"'{root}' holds no RGB-D sequence: neither it nor a folder inside it has a folder '{rgb_dir}'")
    return found


def load_rgbd(
    root: str | Path,
    *,
    depth_scale: float,
    invalid_value: float = 0.0,
    max_depth_m: float = 10.0,
    intrinsics: np.ndarray | str | Path | None = None,
    poses: np.ndarray | str | Path | None = None,
    rgb_dir: str = "rgb",
    depth_dir: str = "depth",
    fps: float = 30.0,
    crop_px: int = 0,
    max_frames: int | None = None,
) -> EvaluationClip:
    """Load `root/rgb/*` with `root/depth/*` as a clip; images and depth pair up by file stem.

    Depth maps are read once and kept in temporary files, 5 bytes per pixel.

    Args:
        root: folder of one sequence.
        depth_scale: stored units per metre: 1000 for millimetres, 5000 TUM and ICL-NUIM, 256 KITTI.
        invalid_value: stored value that means "no depth".
        max_depth_m: ground truth beyond it does not count.
        intrinsics: [3,3] px at the depth maps' size; or a text file with that matrix; or the text "fx fy cx cy".
            A negative focal length (the y axis of ICL-NUIM) is kept.
        poses: [F,4,4] camera-to-world in metres; or a folder of 4×4 text files, one per frame by stem; or a
            file with a row "tx ty tz qx qy qz qw" per frame (an eighth value in front is taken for a time
            stamp). Files of intrinsics and poses are looked for as given, then inside root.
        rgb_dir, depth_dir: names of the folders inside root. fps: for the report.
        crop_px: a border of so many pixels counts as invalid (NYU has a white frame).
        max_frames: load no more than this.

    Raises UserError, naming the file, for whatever is missing, damaged or does not pair up.
    """
    root = Path(root)
    if depth_scale <= 0:
        raise UserError(f"depth_scale must be positive (stored units per metre); got {depth_scale}")
    images = _list(root / rgb_dir, IMAGE_SUFFIXES)
    depths = {path.stem: path for path in _list(root / depth_dir, DEPTH_SUFFIXES)}
    images = images[:max_frames]
    missing = [path.name for path in images if path.stem not in depths]
    if missing:
        raise UserError(f"{root / depth_dir} has no depth map for {len(missing)} images, first {missing[0]}")
    stems = [path.stem for path in images]
    paths = [depths[stem] for stem in stems]
    gt_depth_m, valid = on_disk(_depth_and_valid(paths, depth_scale, invalid_value, crop_px))
    return EvaluationClip(
        name=root.name,
        frames=ImageFolder(images),
        fps=fps,
        frame_ids=tuple(stems),
        gt_depth_m=gt_depth_m,
        valid=valid,
        max_depth_m=max_depth_m,
        intrinsics=_load_intrinsics(_inside(root, intrinsics)),
        camera_to_world=_load_poses(_inside(root, poses), stems),
    )


def pose_matrix(translation: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """Return [4,4] from a translation (m) and a quaternion (x, y, z, w), which is normalised first."""
    x, y, z, w = np.asarray(quaternion, dtype=np.float64) / np.linalg.norm(quaternion)
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = translation
    return pose


def _list(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist; name the right one with rgb_dir or depth_dir")
    found = [path for path in folder.iterdir() if path.suffix.lower() in suffixes]
    if not found:
        raise UserError(f"folder {folder} holds no file of type {', '.join(suffixes)}")
    return sorted(found, key=lambda path: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", path.stem)])


def _depth_and_valid(
    paths: list[Path], depth_scale: float, invalid_value: float, crop_px: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield z in metres, float32 [H,W], 0 where invalid, and where it is valid."""
    size: tuple[int, ...] | None = None
    for path in paths:
        stored = _read_depth(path)
        size = size or stored.shape
        if stored.shape != size:
            raise UserError(
                f"depth maps in {path.parent} differ in size: {path.name} has {stored.shape}, those before it {size}"
            )
        valid = np.isfinite(stored) & (stored != invalid_value) & (stored > 0)
        if crop_px > 0:
            inner = np.zeros(size, dtype=bool)
            inner[crop_px:-crop_px, crop_px:-crop_px] = True
            valid &= inner
        yield np.where(valid, stored / depth_scale, 0.0).astype(np.float32), valid


def _read_depth(path: Path) -> np.ndarray:
    is_array = path.suffix == ".npy"
    values = np.load(path, allow_pickle=False) if is_array else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 2:
        raise UserError(f"cannot read depth map {path}: it is damaged or not a single-channel image")
    return values.astype(np.float32)


def _inside(root: Path, given: np.ndarray | str | Path | None) -> np.ndarray | str | Path | None:
    """Return a path as it is where it exists, else the same below root where that does."""
    if given is None or isinstance(given, np.ndarray) or Path(given).exists():
        return given
    return root / given if (root / given).exists() else given


def _load_intrinsics(intrinsics: np.ndarray | str | Path | None) -> np.ndarray | None:
    if intrinsics is None or isinstance(intrinsics, np.ndarray):
        return intrinsics
    if len(numbers := str(intrinsics).replace(",", " ").split()) == 4:
        fx, fy, cx, cy = (_number(text, str(intrinsics)) for text in numbers)
        return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    matrix = _read_numbers(Path(intrinsics))
    if matrix.shape != (3, 3):
        raise UserError(f"intrinsics file {intrinsics} must hold a 3×3 matrix; it holds {matrix.shape}")
    return matrix


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"intrinsics must be a file or four numbers 'fx fy cx cy'; got '{whole}'") from error


def _load_poses(poses: np.ndarray | str | Path | None, stems: list[str]) -> np.ndarray | None:
    if poses is None:
        return None
    if isinstance(poses, np.ndarray):
        result = poses
    elif Path(poses).is_dir():
        result = np.stack([_read_numbers(Path(poses) / f"{stem}.txt") for stem in stems])
    else:
        rows = _read_numbers(Path(poses))
        if rows.shape[1] not in (7, 8):
            raise UserError(f"pose file {poses} must have rows 'tx ty tz qx qy qz qw'; found {rows.shape[1]} columns")
        result = np.stack([pose_matrix(row[-7:-4], row[-4:]) for row in rows])
    if result.shape[1:] != (4, 4) or len(result) < len(stems):
        raise UserError(f"poses must be one 4×4 matrix per frame ({len(stems)}); got {list(result.shape)}")
    return np.asarray(result[: len(stems)], dtype=np.float64)


def _read_numbers(path: Path) -> np.ndarray:
    try:
        return np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read numbers from {path}: {error}") from error
