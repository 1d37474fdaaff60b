"""Load folders of images and depth maps (TUM, Bonn, ICL-NUIM, NYU, 7-Scenes, KITTI, ScanNet, … after renaming)."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from videomamba_depth.evaluation.clips import EvaluationClip
from videomamba_depth.evaluation.datasets.timestamps import MAX_DIFFERENCE_S, associate, frame_numbers, frame_stamps
from videomamba_depth.evaluation.metrics.accuracy import valid_ground_truth
from videomamba_depth.evaluation.metrics.geometry import usable_poses
from videomamba_depth.evaluation.metrics.percentiles import percentiles
from videomamba_depth.flow.frame_view import Frames, mapped, on_disk
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.intrinsics import camera_matrix
from videomamba_depth.utils.settings import path as path_to
from videomamba_depth.utils.settings import ranged

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
DEPTH_SUFFIXES = (".png", ".npy", ".tif", ".tiff")


class _Pair(NamedTuple):
    """An image with its depth map, its place among all images, and when it was taken (s), where that is known."""

    place: int
    image: Path
    depth: Path
    stamp: float | None


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


@dataclass(frozen=True, kw_only=True)
class RgbdFormat:
    """How depth images beside color images are read: arguments of `load_rgbd`."""

    depth_scale: float | None = ranged(0, 1e9, None, open="low")
    invalid: float = ranged(-1e9, 1e9, 0.0)
    intrinsics: str | None = path_to(None)
    poses: str | None = path_to(None)
    max_depth_m: float = ranged(0, 1e6, 10.0, open="low")
    crop_px: int = ranged(0, 4096, 0)


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
    """Load `root/rgb/*` with `root/depth/*` as a clip; images and depth pair up by file stem, or by time stamp.

    By time stamp, where files are called by their stamps or lists rgb.txt and depth.txt lie in root: each image with
    the depth map that is closest in time, within 20 ms; images without one are left out, and counted in the log.
    Depth maps are read once and kept in temporary files, 5 bytes per pixel.

    Args:
        root: folder of one sequence.
        depth_scale: stored units per meter: 1000 for millimeters, 5000 TUM and ICL-NUIM, 256 KITTI.
        invalid_value: stored value that means "no depth".
        max_depth_m: ground truth beyond it does not count; how much that is goes to the log.
        intrinsics: [3,3] px at the depth maps' size; or what else `camera_matrix` takes.
            A negative focal length (the y axis of ICL-NUIM) is kept.
        poses: [F,4,4] camera-to-world in meters; or a folder of 4×4 text files, one per frame by stem; or a
            file with a row "tx ty tz qx qy qz qw" per frame; or one with rows "stamp tx ty tz qx qy qz qw", of which
            each frame gets the closest in time, within 20 ms. Frames without one, or with one that is not finite,
            have a pose of NaN, and what needs poses skips them. Files of intrinsics and poses are looked for as given,
            then inside root.
        rgb_dir, depth_dir: names of the folders inside root. fps: for the report.
        crop_px: a border of so many pixels counts as invalid (NYU has a white frame).
        max_frames: load no more than this.

    Raises UserError, naming the file, for whatever is missing, damaged or does not pair up, for a number that is not
    finite, and where more than half of the ground truth lies beyond `max_depth_m`.
    """
    root = Path(root)
    for name, value in (("depth_scale", depth_scale), ("max_depth_m", max_depth_m)):
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} must be positive and finite; got {value}")
    pairs, num_images = _pair(root, rgb_dir, depth_dir)
    pairs = pairs[:max_frames]
    found = _inside(root, intrinsics)
    matrix = None if found is None else camera_matrix(found)
    camera_to_world = _load_poses(_inside(root, poses), pairs, num_images)
    depths = [pair.depth for pair in pairs]
    gt_depth_m, valid = on_disk(_depth_and_valid(depths, depth_scale, invalid_value, crop_px))
    _check_range(root.name, gt_depth_m, valid, max_depth_m)
    return EvaluationClip(
        name=root.name,
        frames=ImageFolder([pair.image for pair in pairs]),
        fps=fps,
        frame_ids=tuple(pair.image.stem for pair in pairs),
        gt_depth_m=gt_depth_m,
        valid=valid,
        max_depth_m=max_depth_m,
        intrinsics=matrix,
        camera_to_world=camera_to_world,
    )


def pose_matrix(translation: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """Return [4,4] from a translation (m) and a quaternion (x, y, z, w), normalized first; NaN for (0, 0, 0, 0)."""
    with np.errstate(invalid="ignore"):
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


def _pair(root: Path, rgb_dir: str, depth_dir: str) -> tuple[list[_Pair], int]:
    """Return the images that have a depth map, in order, and how many images there are."""
    images, depths = _list(root / rgb_dir, IMAGE_SUFFIXES), _list(root / depth_dir, DEPTH_SUFFIXES)
    stamps, times = (
        frame_stamps(paths, root / f"{folder}.txt") for paths, folder in ((images, rgb_dir), (depths, depth_dir))
    )
    if stamps is not None:
        stamps, images = map(list, zip(*sorted(zip(stamps, images, strict=True)), strict=True))
    if stamps is not None and times is not None:
        partners = [depths[j] if j >= 0 else None for j in associate(stamps, times)]
    else:
        by_stem = {path.stem: path for path in depths}
        partners = [by_stem.get(path.stem) for path in images]
        if missing := [path.name for path in images if path.stem not in by_stem]:
            raise UserError(f"{root / depth_dir} has no depth map for {len(missing)} images, first {missing[0]}")
    pairs = [
        _Pair(i, image, depth, None if stamps is None else stamps[i])
        for i, (image, depth) in enumerate(zip(images, partners, strict=True))
        if depth is not None
    ]
    if stamps and times and not pairs:
        raise UserError(
            f"{root}: no image has a depth map within {1000 * MAX_DIFFERENCE_S:.0f} ms; {rgb_dir} goes from"
            f" {min(stamps)} to {max(stamps)} s, {depth_dir} from {min(times)} to {max(times)} s"
        )
    if left_out := len(images) - len(pairs):
        log.warning("%s: %d of %d images have no depth map in time, left out", root.name, left_out, len(images))
    return pairs, len(images)


def _check_range(name: str, gt_depth_m: Frames, valid: Frames, max_depth_m: float) -> None:
    """Say how much of the ground truth lies beyond `max_depth_m`; refuse if that is most of it."""
    known = sum(int(mask.sum()) for mask in valid)
    kept = sum(int(mask.sum()) for mask in valid_ground_truth(gt_depth_m, valid, max_depth_m))
    if kept == known:
        return
    share = 100.0 * (known - kept) / known
    if 2 * kept < known:
        (far,) = percentiles(mapped(lambda depth_m, mask: depth_m[mask], gt_depth_m, valid), [99])
        enough = 10.0 * 2.0 ** math.ceil(math.log2(max(far, 1e-3) / 10.0))
        raise UserError(
            f"{name}: {share:.0f} % of the ground truth lies beyond max_depth_m={max_depth_m:g} and would not count;"
            f" set rgbd.max_depth_m={enough:g}, or another rgbd.depth_scale if depths up to {far:.3g} m cannot be right"
        )
    log.info("%s: %.1f %% of the ground truth lies beyond max_depth_m=%g and does not count", name, share, max_depth_m)


def _depth_and_valid(
    paths: list[Path], depth_scale: float, invalid_value: float, crop_px: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield z in meters, float32 [H,W], 0 where invalid, and where it is valid."""
    size: tuple[int, ...] | None = None
    for path in paths:
        stored = _read_depth(path)
        if 2 * crop_px >= min(stored.shape):
            raise UserError(f"crop_px={crop_px} leaves nothing of depth maps of {stored.shape} px in {path.parent}")
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
    try:
        is_array = path.suffix.lower() == ".npy"
        values = np.load(path, allow_pickle=False) if is_array else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except (OSError, ValueError, EOFError, cv2.error):
        values = None
    if values is None or values.ndim != 2 or values.dtype.kind not in "fui":
        raise UserError(f"cannot read depth map {path}: it is damaged or not a single-channel image")
    return values.astype(np.float32)


def _inside(root: Path, given: np.ndarray | str | Path | None) -> np.ndarray | str | Path | None:
    """Return a path as it is where it exists, else the same below root where that does."""
    if given is None or isinstance(given, np.ndarray) or Path(given).exists():
        return given
    return root / given if (root / given).exists() else given


def _load_poses(poses: np.ndarray | str | Path | None, pairs: Sequence[_Pair], num_images: int) -> np.ndarray | None:
    """Return [F,4,4], see `load_rgbd`."""
    if poses is None:
        return None
    if isinstance(poses, np.ndarray):
        result = poses[: len(pairs)]
    elif Path(poses).is_dir():
        result = _stack([_read_numbers(Path(poses) / f"{pair.image.stem}.txt") for pair in pairs], poses)
    else:
        rows = _pose_rows(Path(poses), pairs, num_images)
        result = np.stack([pose_matrix(row[:3], row[3:]) for row in rows])
    if result.shape != (len(pairs), 4, 4):
        raise UserError(f"poses must be one 4×4 matrix per frame ({len(pairs)}); got {list(result.shape)}")
    if broken := int((~usable_poses(result)).sum()):
        if broken == len(pairs):
            raise UserError(f"poses: none of {broken} frames has one that is finite; leave rgbd.poses out")
        log.warning("%d of %d frames have no finite pose; what needs poses skips them", broken, len(pairs))
    return np.asarray(result, dtype=np.float64)


def _pose_rows(path: Path, pairs: Sequence[_Pair], num_images: int) -> np.ndarray:
    """Return "tx ty tz qx qy qz qw" of every frame [F,7], by time where rows begin with a stamp; NaN without one."""
    rows = _read_numbers(path)
    if rows.shape[1] == 7:
        if len(rows) != num_images:
            raise UserError(
                f"pose file {path} has {len(rows)} rows for {num_images} images; it must have one for each, or a time"
                " stamp in front of every row"
            )
        return rows[[pair.place for pair in pairs]]
    if rows.shape[1] != 8:
        raise UserError(
            f"pose file {path} must have rows 'tx ty tz qx qy qz qw', or the same after a time stamp; found"
            f" {rows.shape[1]} columns"
        )
    times = rows[:, 0]
    stamps = [pair.stamp for pair in pairs]
    if None in stamps and bool((times == np.round(times)).all()):
        stamps = frame_numbers([pair.image for pair in pairs])  # rows that count frames, as ICL-NUIM's
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) < len(pairs):
        raise UserError(
            f"pose file {path} has time stamps, but when the images were taken is not known: call them by their stamps,"
            " add a list rgb.txt with rows 'stamp filename', or give a row 'tx ty tz qx qy qz qw' for each image"
        )
    partners = np.array(associate(known, times.tolist()))
    if not (partners >= 0).any():
        raise UserError(
            f"pose file {path} has no pose within {1000 * MAX_DIFFERENCE_S:.0f} ms of any image; it goes from"
            f" {np.nanmin(times)} to {np.nanmax(times)} s, the images from {min(known)} to {max(known)} s"
        )
    return np.where((partners >= 0)[:, None], rows[partners, 1:], np.nan)


def _stack(matrices: Iterable[np.ndarray], folder: object) -> np.ndarray:
    try:
        return np.stack(list(matrices))
    except ValueError as error:
        raise UserError(f"the pose files in {folder} must all hold a 4×4 matrix") from error


def _read_numbers(path: Path) -> np.ndarray:
    try:
        return np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read numbers from {path}: {error}") from error
