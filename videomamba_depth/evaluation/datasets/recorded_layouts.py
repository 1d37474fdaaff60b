"""Layouts of data sets that were recorded: TUM, ETH3D, Bonn, KITTI, ScanNet, 7-Scenes and NYU."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from videomamba_depth.evaluation.datasets import formats
from videomamba_depth.evaluation.datasets.layout_parts import intrinsics_at_size, paired, poses_at, read_poses
from videomamba_depth.evaluation.datasets.layout_tree import Found, Tree
from videomamba_depth.evaluation.datasets.recording import (
    IMAGE_SUFFIXES,
    Recording,
    RgbdFrame,
    listed,
    places_in_folder,
    read_numbers,
)
from videomamba_depth.evaluation.datasets.timestamps import associate
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.intrinsics import camera_matrix

log = logging.getLogger(__name__)

TUM_CAMERAS = {  # the benchmark's own calibration; its default where the name tells no camera
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
    "": (525.0, 525.0, 319.5, 239.5),
}
BONN_CAMERA = (542.822841, 542.576870, 315.593520, 237.756098)
BONN_ROS = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
BONN_MARKERS = np.array(  # from the camera to the markers that were tracked, depth in the sensor's scale
    [[1.0157, 0.1828, -0.2389, 0.0113], [0.0009, -0.8431, -0.6413, -0.0098], [-0.3009, 0.6147, -0.8085, 0.0111],
     [0, 0, 0, 1]]
)  # fmt: skip
KITTI: dict[str, Any] = {"depth_scale": 256.0, "max_depth_m": 80.0, "fps": 10.0}
NYU_CAMERA = (518.8579, 519.4696, 325.5824, 253.7362)
NYU_CROP = (45, 9, 41, 39)  # leaves rows 45:471 and columns 41:601, where the projected depth is


def tum(tree: Tree) -> Iterator[Found]:
    """TUM RGB-D and what is like it (ETH3D SLAM): rgb.txt, depth.txt with rows "stamp file", groundtruth.txt."""
    for folder in tree.having("rgb.txt", "depth.txt"):
        if "rgbd_bonn" not in folder.resolve().name:
            known = next(numbers for key, numbers in TUM_CAMERAS.items() if key in folder.resolve().name)
            own = folder / "calibration.txt"  # of ETH3D SLAM: fx fy cx cy
            matrix, published = camera_matrix(own if own.is_file() else known), not own.is_file()
            yield Found(tree.name(folder), partial(_by_stamps, folder, matrix, calibrated_at_vga=published))


def bonn(tree: Tree) -> Iterator[Found]:
    """Bonn RGB-D Dynamic: as TUM in folders rgbd_bonn_*; groundtruth.txt is of the tracked markers."""
    for folder in tree.having("rgb.txt", "depth.txt"):
        if tree.named or "rgbd_bonn" in folder.resolve().name:
            matrix = camera_matrix(BONN_CAMERA)
            yield Found(tree.name(folder), partial(_by_stamps, folder, matrix, BONN_ROS, BONN_MARKERS))


def _by_stamps(
    folder: Path,
    matrix: np.ndarray,
    world: np.ndarray | None = None,
    camera: np.ndarray | None = None,
    *,
    calibrated_at_vga: bool = True,
) -> Recording:
    """Associate three lists by time; poses P become world⁻¹ · P · world · camera."""
    images, missing = formats.read_list(folder / "rgb.txt")
    depths, _ = formats.read_list(folder / "depth.txt")
    partners = associate([image.stamp for image in images], [depth.stamp for depth in depths])
    places = _places_in_folder(images)
    frames = [
        RgbdFrame(image.path, depths[j].path, image.path.stem, image.row, image.stamp, places.get(image.path))
        for image, j in zip(images, partners, strict=True)
        if j >= 0
    ]
    alone = [image.path.name for image, j in zip(images, partners, strict=True) if j < 0]
    left_out = {"have no depth map within 20 ms": alone, "are listed in rgb.txt and missing": missing}
    poses, trajectory = None, folder / "groundtruth.txt"
    if trajectory.is_file():
        poses = poses_at(trajectory, [frame.stamp or 0.0 for frame in frames])
        if world is not None and camera is not None:
            poses = np.linalg.inv(world) @ poses @ world @ camera
    return Recording(
        folder=folder,
        frames=frames,
        left_out={reason: names for reason, names in left_out.items() if names},
        depth_scale=5000.0,
        intrinsics=intrinsics_at_size(matrix, frames) if calibrated_at_vga else matrix,
        poses=poses,
        num_files=len(places) or None,
    )


def _places_in_folder(images: Sequence[formats.ListedFile]) -> dict[Path, int]:
    """Return the places of all files of the folder that the pictures lie in; nothing where they lie in several."""
    folders = {image.path.parent for image in images}
    if len(folders) > 1 or not all(image.path.suffix.lower() in IMAGE_SUFFIXES for image in images):
        return {}
    return places_in_folder(folders.pop())


def kitti(tree: Tree) -> Iterator[Found]:
    """KITTI raw with annotated depth: DRIVE/image_02/data/N.png, DRIVE/proj_depth/groundtruth/image_02/N.png."""
    depths = {
        (folder.parents[2].name, folder.name): folder
        for folder in tree.depth.folders
        if folder.parts[-3:-1] == ("proj_depth", "groundtruth")
    }
    for folder in tree.folders:
        drive, camera = folder.parents[1] if len(folder.parts) > 2 else folder, folder.parent.name
        if folder.name == "data" and (drive.name, camera) in depths:
            yield Found(f"{drive.name}/{camera}", partial(_kitti, drive, folder, depths[drive.name, camera]))


def _kitti(drive: Path, images: Path, depths: Path) -> Recording:
    frames, left_out = paired(listed(images, IMAGE_SUFFIXES), lambda image: depths / f"{image.stem}.png")
    calibration, key = drive.parent / "calib_cam_to_cam.txt", f"P_rect_{images.parent.name[-2:]}"
    projection = formats.read_fields(calibration).get(key)
    if projection is None and calibration.is_file():
        log.warning("%s has no row '%s: NUMBERS'; without rgbd.intrinsics there are none", calibration, key)
    if projection is not None and len(projection) != 12:
        raise UserError(f"{key} of {calibration} must have 12 numbers; found {len(projection)}")
    return Recording(
        folder=drive,
        frames=frames,
        left_out=left_out,
        intrinsics=None if projection is None else np.reshape(projection, (3, 4))[:, :3],
        **KITTI,
    )


def kitti_selection(tree: Tree) -> Iterator[Found]:
    """KITTI's val_selection_cropped: image, groundtruth_depth and intrinsics, one sequence per drive and camera."""
    for folder in tree.having("image", "groundtruth_depth", "intrinsics"):
        drives: dict[tuple[str, ...], list[Path]] = {}
        for image in listed(folder / "image", IMAGE_SUFFIXES):
            if match := re.fullmatch(r"(.+)_image_\d+_(image_0\d)", image.stem):
                drives.setdefault(match.groups(), []).append(image)
        for (drive, camera), images in sorted(drives.items()):
            yield Found(f"{drive}/{camera}", partial(_kitti_selection, folder, images))


def _kitti_selection(folder: Path, images: Sequence[Path]) -> Recording:
    def depth_of(image: Path) -> Path:
        return folder / "groundtruth_depth" / re.sub(r"_image_(\d+)_", r"_groundtruth_depth_\1_", image.name)

    frames, left_out = paired(images, depth_of)
    matrix = camera_matrix(folder / "intrinsics" / f"{images[0].stem}.txt")
    return Recording(folder=folder, frames=frames, left_out=left_out, intrinsics=matrix, **KITTI)


def scannet(tree: Tree) -> Iterator[Found]:
    """ScanNet as its exporter writes it: color/0.jpg, depth/0.png, pose/0.txt, intrinsic/intrinsic_depth.txt."""
    for folder in tree.having("color", "depth", "intrinsic/intrinsic_depth.txt"):
        yield Found(tree.name(folder), partial(_scannet, folder))


def _scannet(scene: Path) -> Recording:
    frames, left_out = paired(
        listed(scene / "color", IMAGE_SUFFIXES), lambda image: scene / "depth" / f"{image.stem}.png"
    )
    return Recording(
        folder=scene,
        frames=frames,
        left_out=left_out,
        depth_scale=1000.0,
        intrinsics=_intrinsics_of(scene / "intrinsic" / "intrinsic_depth.txt"),
        poses=read_poses(scene / "pose" / f"{frame.name}.txt" for frame in frames),
    )


def _intrinsics_of(path: Path) -> np.ndarray:
    matrix = read_numbers(path)
    if matrix.shape not in ((4, 4), (3, 3)):
        raise UserError(f"{path} must hold a 4×4 or a 3×3 matrix; it has {matrix.size} numbers: export it again")
    try:
        return camera_matrix(matrix[:3, :3])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def seven_scenes(tree: Tree) -> Iterator[Found]:
    """7-Scenes: seq-01/frame-000000.color.png, .depth.png (not registered to color), .pose.txt."""
    for folder in tree.having("frame-*.color.*", "frame-*.depth.png"):
        yield Found(tree.name(folder), partial(_seven_scenes, folder))


def _seven_scenes(folder: Path) -> Recording:
    def stem(image: Path) -> str:
        return image.name.partition(".")[0]

    images = [path for path in listed(folder, IMAGE_SUFFIXES) if ".color." in path.name]
    frames, left_out = paired(images, lambda image: folder / f"{stem(image)}.depth.png", stem)
    return Recording(
        folder=folder,
        frames=frames,
        left_out=left_out,
        depth_scale=1000.0,
        invalid_value=65535.0,
        intrinsics=intrinsics_at_size(camera_matrix((585.0, 585.0, 320.0, 240.0)), frames),
        poses=read_poses(folder / f"{frame.name}.pose.txt" for frame in frames),
        num_files=len(places_in_folder(folder)),
    )


def nyu(tree: Tree) -> Iterator[Found]:
    """NYU Depth v2: nyu_depth_v2_labeled.mat (with splits.mat: its test split); folders rgb_N.jpg, sync_depth_N.png."""
    files = [tree.root] if tree.root.name == "nyu_depth_v2_labeled.mat" else tree.root.glob("nyu_depth_v2_labeled.mat")
    for file in files:
        yield Found(file.stem, partial(_nyu_labeled, file))
    for folder in tree.having("rgb_*.jpg", "sync_depth_*.png"):
        yield Found(tree.name(folder), partial(_nyu_folder, folder))


def _nyu_folder(folder: Path) -> Recording:
    images = [path for path in listed(folder, IMAGE_SUFFIXES) if path.name.startswith("rgb_")]
    frames, left_out = paired(images, lambda image: folder / f"sync_depth_{image.stem.removeprefix('rgb_')}.png")
    return Recording(
        folder=folder,
        frames=frames,
        left_out=left_out,
        depth_scale=1000.0,
        intrinsics=intrinsics_at_size(camera_matrix(NYU_CAMERA), frames),
        crop=NYU_CROP,
        num_files=len(places_in_folder(folder)),
    )


def _nyu_labeled(file: Path) -> Recording:
    total = len(formats.h5_array(file, "images"))
    split = file.parent / "splits.mat"
    if not split.is_file():
        log.warning(
            "%s: all %d pictures, those for training too; its test split needs splits.mat beside it", file, total
        )
    chosen: Iterable[int] = formats.nyu_test_split(split, total) if split.is_file() else range(total)
    return Recording(
        folder=file.parent,
        frames=[RgbdFrame(i, i, f"{i + 1:04d}", i, file=i) for i in chosen],
        read_image=partial(_nyu_image, file),
        read_depth=partial(_nyu_depth, file),
        intrinsics=camera_matrix(NYU_CAMERA),
        crop=NYU_CROP,
        num_files=total,
    )


def _nyu_image(file: Path, number: int) -> np.ndarray:
    stored = formats.h5_numbers(file, "images", (3, None, None), number)  # [3, W, H]
    return np.ascontiguousarray(stored.transpose(2, 1, 0))


def _nyu_depth(file: Path, number: int) -> np.ndarray:
    return np.ascontiguousarray(formats.h5_numbers(file, "depths", (None, None), number).T, dtype=np.float32)


def eth3d(tree: Tree) -> Iterator[Found]:
    """ETH3D: images/dslr_images/*.JPG with ground_truth_depth/dslr_images, files of the same names."""
    for folder in tree.having("images/dslr_images"):
        depths = tree.depth.root / folder.relative_to(tree.root) / "ground_truth_depth/dslr_images"
        if depths.is_dir():
            yield Found(tree.name(folder), partial(_eth3d, folder, depths))


def _eth3d(folder: Path, depths: Path) -> Recording:
    images = listed(folder / "images/dslr_images", IMAGE_SUFFIXES)
    frames, left_out = paired(images, lambda image: depths / image.name)
    sized = [frame._replace(depth=(frame.depth, frame.image)) for frame in frames]
    return Recording(
        folder=folder,
        frames=sized,
        left_out=left_out,
        max_depth_m=80.0,
        read_depth=lambda both: formats.read_raw_depth(both[0], formats.image_size(both[1])),
    )
