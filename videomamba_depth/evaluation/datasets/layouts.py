"""Layouts of public data sets as they are unpacked: which files belong together, and what their numbers mean.

A layout is a function that lists the sequences at or below a folder, and an entry of `LAYOUTS`. Depth scale, invalid
value, greatest depth, crop and intrinsics are those of the data set's own documentation or of the protocol that is
published on it; `RgbdFormat` overrides them.
"""

from __future__ import annotations

import logging
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from videomamba_depth.evaluation.clips import scale_intrinsics
from videomamba_depth.evaluation.datasets import formats
from videomamba_depth.evaluation.datasets.recording import (
    IMAGE_SUFFIXES,
    Recording,
    RgbdFrame,
    last_number,
    listed,
    places_in_folder,
    pose_matrix,
    read_depth,
    read_numbers,
)
from videomamba_depth.evaluation.datasets.timestamps import associate
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.intrinsics import camera_matrix

log = logging.getLogger(__name__)

LEVELS = 7  # of folders below the input
NO_DEPTH = "have no depth map"
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
NYU_CAMERA = (518.8579, 519.4696, 325.5824, 253.7362)
NYU_CROP = (45, 9, 41, 39)  # leaves rows 45:471 and columns 41:601, where the projected depth is
NED_FROM_CAMERA = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
UPWARD_FROM_CAMERA = np.diag([1.0, -1.0, -1.0, 1.0])  # cameras that look along −z with y up
UNKNOWN = np.full((4, 4), np.nan)  # a pose
HYPERSIM_FOCAL_PX, HYPERSIM_WIDTH = 886.81, 1024


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


def sintel(tree: Tree, images: str = "clean") -> Iterator[Found]:
    """MPI Sintel: clean|final/SCENE/frame_0001.png, depth/SCENE/frame_0001.dpt, camdata_left/SCENE/frame_0001.cam."""
    depths = {path.name: path for folder in tree.depth.folders if folder.name == "depth" for path in folder.iterdir()}
    for folder in tree.folders:
        if folder.name == images:
            for scene in sorted(folder.iterdir()):
                if any(depths.get(scene.name, scene).glob("*.dpt")):
                    yield Found(f"{tree.name(folder)}/{scene.name}", partial(_sintel, scene, depths[scene.name]))


def _sintel(scene: Path, depths: Path) -> Recording:
    frames, left_out = _paired(listed(scene, (".png",)), lambda image: depths / f"{image.stem}.dpt")
    cameras = [depths.parents[1] / "camdata_left" / scene.name / f"{frame.name}.cam" for frame in frames]
    known = [formats.read_cam(path) if path.is_file() else None for path in cameras]
    first = next((camera for camera in known if camera is not None), None)
    return Recording(
        folder=scene,
        frames=frames,
        left_out=left_out,
        max_depth_m=70.0,
        invalid_value=1e11,  # the sky
        fps=24.0,
        intrinsics=None if first is None else first[0],
        poses=None if first is None else _stacked(UNKNOWN if one is None else _inverse(one[1]) for one in known),
        read_depth=formats.read_dpt,
    )


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
        poses = _posed(trajectory, [frame.stamp or 0.0 for frame in frames])
        if world is not None and camera is not None:
            poses = np.linalg.inv(world) @ poses @ world @ camera
    return Recording(
        folder=folder,
        frames=frames,
        left_out={reason: names for reason, names in left_out.items() if names},
        depth_scale=5000.0,
        intrinsics=_at_size(matrix, frames) if calibrated_at_vga else matrix,
        poses=poses,
        num_files=len(places) or None,
    )


def _places_in_folder(images: Sequence[formats.ListedFile]) -> dict[Path, int]:
    """Return the places of all files of the folder that the pictures lie in; nothing where they lie in several."""
    folders = {image.path.parent for image in images}
    if len(folders) > 1 or not all(image.path.suffix.lower() in IMAGE_SUFFIXES for image in images):
        return {}
    return places_in_folder(folders.pop())


def icl(tree: Tree) -> Iterator[Found]:
    """ICL-NUIM, the PNG form: rgb/0.png, depth/0.png, *.gt.freiburg with rows "frame tx ty tz qx qy qz qw"."""
    for folder in tree.having("rgb", "depth", "*.gt.freiburg"):
        yield Found(tree.name(folder), partial(_icl, folder))


def _icl(folder: Path) -> Recording:
    frames, left_out = _paired(
        listed(folder / "rgb", IMAGE_SUFFIXES), lambda image: folder / "depth" / f"{image.stem}.png"
    )
    return Recording(
        folder=folder,
        frames=frames,
        left_out=left_out,
        depth_scale=5000.0,
        intrinsics=_at_size(camera_matrix((481.2, -480.0, 319.5, 239.5)), frames),
        poses=_posed(min(folder.glob("*.gt.freiburg")), [float(n) for n in _numbers(frames)]),
    )


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
    frames, left_out = _paired(listed(images, IMAGE_SUFFIXES), lambda image: depths / f"{image.stem}.png")
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


KITTI: dict[str, Any] = {"depth_scale": 256.0, "max_depth_m": 80.0, "fps": 10.0}


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

    frames, left_out = _paired(images, depth_of)
    matrix = camera_matrix(folder / "intrinsics" / f"{images[0].stem}.txt")
    return Recording(folder=folder, frames=frames, left_out=left_out, intrinsics=matrix, **KITTI)


def scannet(tree: Tree) -> Iterator[Found]:
    """ScanNet as its exporter writes it: color/0.jpg, depth/0.png, pose/0.txt, intrinsic/intrinsic_depth.txt."""
    for folder in tree.having("color", "depth", "intrinsic/intrinsic_depth.txt"):
        yield Found(tree.name(folder), partial(_scannet, folder))


def _scannet(scene: Path) -> Recording:
    frames, left_out = _paired(
        listed(scene / "color", IMAGE_SUFFIXES), lambda image: scene / "depth" / f"{image.stem}.png"
    )
    return Recording(
        folder=scene,
        frames=frames,
        left_out=left_out,
        depth_scale=1000.0,
        intrinsics=_intrinsics_of(scene / "intrinsic" / "intrinsic_depth.txt"),
        poses=_matrices(scene / "pose" / f"{frame.name}.txt" for frame in frames),
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
    frames, left_out = _paired(images, lambda image: folder / f"{stem(image)}.depth.png", stem)
    return Recording(
        folder=folder,
        frames=frames,
        left_out=left_out,
        depth_scale=1000.0,
        invalid_value=65535.0,
        intrinsics=_at_size(camera_matrix((585.0, 585.0, 320.0, 240.0)), frames),
        poses=_matrices(folder / f"{frame.name}.pose.txt" for frame in frames),
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
    frames, left_out = _paired(images, lambda image: folder / f"sync_depth_{image.stem.removeprefix('rgb_')}.png")
    return Recording(
        folder=folder,
        frames=frames,
        left_out=left_out,
        depth_scale=1000.0,
        intrinsics=_at_size(camera_matrix(NYU_CAMERA), frames),
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


def tartanair(tree: Tree) -> Iterator[Found]:
    """TartanAir: image_left, depth_left/*.npy, pose_left.txt; v2: image_lcam_front, depth_lcam_front/*.png."""
    for camera in ("left", "lcam_front"):
        for folder in tree.having(f"image_{camera}", f"depth_{camera}"):
            yield Found(tree.name(folder), partial(_tartanair, folder, camera))


def _tartanair(folder: Path, camera: str) -> Recording:
    suffix, center = (".npy", 240.0) if camera == "left" else (".png", 320.0)
    images = listed(folder / f"image_{camera}", IMAGE_SUFFIXES)
    frames, left_out = _paired(images, lambda image: folder / f"depth_{camera}" / f"{image.stem}_depth{suffix}")
    poses, trajectory = None, folder / f"pose_{camera}.txt"
    if trajectory.is_file():
        rows = _by_number(read_numbers(trajectory), frames, trajectory)
        if rows.shape[1] != 7:
            raise UserError(f"{trajectory} must have rows 'tx ty tz qx qy qz qw'; found {rows.shape[1]} columns")
        poses = _stacked(pose_matrix(row[:3], row[3:]) for row in rows) @ NED_FROM_CAMERA
    return Recording(
        folder=folder,
        frames=frames,
        left_out=left_out,
        max_depth_m=80.0,
        intrinsics=_at_size(camera_matrix((320.0, 320.0, 320.0, center)), frames, (int(2 * center), 640)),
        poses=poses,
        read_depth=read_depth if camera == "left" else formats.read_float_png,
    )


def virtual_kitti(tree: Tree) -> Iterator[Found]:
    """Virtual KITTI 2: frames/rgb/Camera_0/rgb_00000.jpg, frames/depth/…/depth_00000.png, extrinsic.txt."""
    for folder in tree.having("frames/rgb/Camera_0"):
        depths = tree.depth.root / folder.relative_to(tree.root) / "frames/depth/Camera_0"
        if depths.is_dir():
            yield Found(tree.name(folder), partial(_virtual_kitti, folder, depths))


def _virtual_kitti(folder: Path, depths: Path) -> Recording:
    images = listed(folder / "frames/rgb/Camera_0", IMAGE_SUFFIXES)
    frames, left_out = _paired(images, lambda image: depths / f"{image.stem.replace('rgb', 'depth')}.png")
    matrix = poses = None
    if (folder / "intrinsic.txt").is_file() and (folder / "extrinsic.txt").is_file():
        numbers, cameras = (read_numbers(folder / f"{name}.txt", skip=1) for name in ("intrinsic", "extrinsic"))
        if numbers.shape[1] != 6 or cameras.shape[1] != 18:
            raise UserError(f"{folder}: intrinsic.txt and extrinsic.txt must have rows of 6 and 18 columns")
        matrix = camera_matrix(numbers[0, 2:].tolist())
        by_frame = {int(row[0]): row[2:].reshape(4, 4) for row in cameras if row[1] == 0}
        poses = _stacked(_inverse(by_frame.get(number, UNKNOWN)) for number in _numbers(frames))
    return Recording(
        folder=folder,
        frames=frames,
        left_out=left_out,
        depth_scale=100.0,
        invalid_value=65535.0,  # the sky
        max_depth_m=80.0,
        fps=10.0,
        intrinsics=matrix,
        poses=poses,
    )


def point_odyssey(tree: Tree) -> Iterator[Found]:
    """PointOdyssey: rgbs/rgb_00000.jpg, depths/depth_00000.png, anno.npz with cameras."""
    for folder in tree.having("rgbs", "depths", "anno.npz"):
        yield Found(tree.name(folder), partial(_point_odyssey, folder))


def _point_odyssey(folder: Path) -> Recording:
    images = listed(folder / "rgbs", IMAGE_SUFFIXES)
    frames, left_out = _paired(images, lambda image: folder / "depths" / f"{image.stem.replace('rgb', 'depth')}.png")
    file = folder / "anno.npz"
    try:
        with np.load(file, allow_pickle=False) as annotations:
            intrinsics, world_to_camera = annotations["intrinsics"], annotations["extrinsics"]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"cannot read intrinsics and extrinsics of {file}: {error}; unpack it again") from error
    if intrinsics.shape[1:] != (3, 3) or not len(intrinsics) or world_to_camera.shape[1:] != (4, 4):
        raise UserError(
            f"{file} must hold intrinsics [n,3,3] and extrinsics [n,4,4]; they are {list(intrinsics.shape)} and"
            f" {list(world_to_camera.shape)}: unpack it again"
        )
    return Recording(
        folder=folder,
        frames=frames,
        left_out=left_out,
        depth_scale=65.535,  # 65535 stands for 1000 m
        invalid_value=65535.0,
        max_depth_m=80.0,
        intrinsics=camera_matrix(np.asarray(intrinsics[0], dtype=np.float64)),
        poses=_stacked(_inverse(matrix) for matrix in _by_number(world_to_camera, frames, file)),
    )


def dynamic_replica(tree: Tree) -> Iterator[Found]:
    """DynamicReplica: SEQ_left/images, SEQ_left/depths/*.geometric.png, frame_annotations_SPLIT.jgz beside them."""
    for folder in tree.having("images", "depths/*.geometric.png"):
        if folder.resolve().name.endswith("_left"):
            yield Found(tree.name(folder), partial(_dynamic_replica, folder))


def _dynamic_replica(folder: Path) -> Recording:
    images = listed(folder / "images", IMAGE_SUFFIXES)
    frames, left_out = _paired(
        images, lambda image: folder / "depths" / f"{'_'.join(image.stem.rsplit('-', 1))}.geometric.png"
    )
    cameras: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for file in sorted(folder.parent.glob("frame_annotations_*.jgz")):
        cameras |= formats.read_frame_annotations(file, folder.name)
    known = [cameras.get(image.image.name) for image in frames]
    return Recording(
        folder=folder,
        frames=frames,
        left_out=left_out,
        max_depth_m=80.0,
        intrinsics=next((camera[0] for camera in known if camera is not None), None),
        poses=_stacked(UNKNOWN if camera is None else camera[1] for camera in known) if cameras else None,
        read_depth=formats.read_half_png,
    )


def hypersim(tree: Tree) -> Iterator[Found]:
    """Hypersim: images/scene_cam_00_final_preview/frame.0000.*.jpg, …_geometry_hdf5/frame.0000.depth_meters.hdf5."""
    for folder in tree.folders:
        match = re.fullmatch(r"scene_(cam_\d+)_final_preview", folder.name)
        if match and any(_hypersim_geometry(folder).glob("*.depth_meters.hdf5")):
            yield Found(f"{tree.name(folder.parents[1])}/{match[1]}", partial(_hypersim, folder, match[1]))


def _hypersim_geometry(preview: Path) -> Path:
    return preview.with_name(preview.name.replace("final_preview", "geometry_hdf5"))


def _hypersim(preview: Path, camera: str) -> Recording:
    def stem(image: Path) -> str:
        return ".".join(image.name.split(".")[:2])

    every = listed(preview, IMAGE_SUFFIXES)
    images = [path for path in every if ".tonemap." in path.name] or [path for path in every if ".color." in path.name]
    frames, left_out = _paired(
        images, lambda image: _hypersim_geometry(preview) / f"{stem(image)}.depth_meters.hdf5", stem
    )
    detail = preview.parents[1] / "_detail"
    poses = formats.hypersim_poses(detail, camera, _numbers(frames))
    height, width = (
        formats.h5_numbers(frames[0].depth, "dataset", (None, None)).shape if frames else (768, HYPERSIM_WIDTH)
    )
    focal = HYPERSIM_FOCAL_PX * width / HYPERSIM_WIDTH
    matrix = camera_matrix((focal, focal, (width - 1) / 2, (height - 1) / 2))
    return Recording(
        folder=preview.parents[1],
        frames=frames,
        left_out=left_out,
        intrinsics=matrix,
        poses=None if poses is None else poses @ UPWARD_FROM_CAMERA,
        max_depth_m=20.0,
        read_depth=partial(formats.read_ray_length, matrix),
        num_files=len(places_in_folder(preview)),
    )


def eth3d(tree: Tree) -> Iterator[Found]:
    """ETH3D: images/dslr_images/*.JPG with ground_truth_depth/dslr_images, files of the same names."""
    for folder in tree.having("images/dslr_images"):
        depths = tree.depth.root / folder.relative_to(tree.root) / "ground_truth_depth/dslr_images"
        if depths.is_dir():
            yield Found(tree.name(folder), partial(_eth3d, folder, depths))


def _eth3d(folder: Path, depths: Path) -> Recording:
    images = listed(folder / "images/dslr_images", IMAGE_SUFFIXES)
    frames, left_out = _paired(images, lambda image: depths / image.name)
    sized = [frame._replace(depth=(frame.depth, frame.image)) for frame in frames]
    return Recording(
        folder=folder,
        frames=sized,
        left_out=left_out,
        max_depth_m=80.0,
        read_depth=lambda both: formats.read_raw_depth(both[0], formats.image_size(both[1])),
    )


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
        poses=_stacked(poses) if poses else None,
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


@dataclass(frozen=True)
class Layout:
    """A layout: its title, what lists its sequences, and what a person must know of it."""

    title: str
    find: Callable[[Tree], Iterator[Found]]
    note: str = ""


_UNREGISTERED = "depth is not registered to color and is evaluated as it is"
LAYOUTS = {
    "vda": Layout("Video Depth Anything's lists", vda),
    "sintel": Layout("MPI Sintel, clean", sintel),
    "sintel_final": Layout("MPI Sintel, final", partial(sintel, images="final")),
    "bonn": Layout("Bonn RGB-D Dynamic", bonn),
    "tum": Layout("TUM RGB-D", tum),
    "kitti": Layout("KITTI raw with annotated depth", kitti, "frames without annotated depth are left out"),
    "kitti_selection": Layout("KITTI val_selection_cropped", kitti_selection),
    "scannet": Layout("ScanNet export", scannet),
    "nyu": Layout("NYU Depth v2", nyu),
    "7scenes": Layout("7-Scenes", seven_scenes, _UNREGISTERED),
    "icl": Layout("ICL-NUIM", icl),
    "tartanair": Layout("TartanAir", tartanair),
    "virtual_kitti": Layout("Virtual KITTI 2", virtual_kitti),
    "point_odyssey": Layout("PointOdyssey", point_odyssey),
    "dynamic_replica": Layout("DynamicReplica", dynamic_replica),
    "hypersim": Layout("Hypersim", hypersim),
    "eth3d": Layout("ETH3D", eth3d, "pictures are distorted: no intrinsics, no poses"),
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


def _paired(
    images: Sequence[Path], depth_of: Callable[[Path], Path], name_of: Callable[[Path], str] = lambda path: path.stem
) -> tuple[list[RgbdFrame], dict[str, list[str]]]:
    """Return the images whose depth map is there, and the names of the others."""
    pairs = [(i, image, depth_of(image)) for i, image in enumerate(images)]
    alone = [image.name for _, image, depth in pairs if not depth.is_file()]
    frames = [RgbdFrame(image, depth, name_of(image), i) for i, image, depth in pairs if depth.is_file()]
    return frames, {NO_DEPTH: alone} if alone else {}


def _posed(trajectory: Path, stamps: Sequence[float]) -> np.ndarray:
    """Return [F,4,4] from rows "stamp tx ty tz qx qy qz qw", the closest in time within 20 ms; NaN without one."""
    rows = read_numbers(trajectory)
    if rows.shape[1] != 8:
        raise UserError(f"{trajectory} must have rows 'stamp tx ty tz qx qy qz qw'; found {rows.shape[1]} columns")
    partners = associate(stamps, rows[:, 0].tolist())
    return _stacked(pose_matrix(rows[j, 1:4], rows[j, 4:]) if j >= 0 else UNKNOWN for j in partners)


def _at_size(
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


def _numbers(frames: Sequence[RgbdFrame]) -> list[int]:
    """Return the frame number that each picture is called by."""
    numbers = [last_number(frame.name) for frame in frames]
    known = [number for number in numbers if number is not None]
    if len(known) < len(frames):
        unnamed = frames[numbers.index(None)].image
        raise UserError(f"{unnamed} must be called by its frame number, which its pose is found by")
    return known


def _by_number(rows: np.ndarray, frames: Sequence[RgbdFrame], source: Path) -> np.ndarray:
    """Return the rows that the frames' numbers, from 0 on, stand for; `source`: the file that they come from."""
    numbers = _numbers(frames)
    if numbers and max(numbers) >= len(rows):
        raise UserError(f"{source} has {len(rows)} poses; picture number {max(numbers)}, counted from 0, has none")
    return rows[numbers]


def _matrices(paths: Iterable[Path]) -> np.ndarray:
    """Return [F,4,4] from text files of 4×4 numbers, NaN where one is missing."""
    found = {path: read_numbers(path) if path.is_file() else UNKNOWN for path in paths}
    if broken := [path for path, matrix in found.items() if matrix.shape != (4, 4)]:
        raise UserError(f"{broken[0]} must hold a 4×4 matrix")
    return _stacked(found.values())


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse, NaN where there is none."""
    try:
        return np.linalg.inv(matrix) if np.isfinite(matrix).all() else UNKNOWN
    except np.linalg.LinAlgError:
        return UNKNOWN


def _stacked(poses: Iterable[np.ndarray]) -> np.ndarray:
    """Return [F,4,4], also of no pose."""
    return np.array(list(poses), dtype=np.float64).reshape(-1, 4, 4)
