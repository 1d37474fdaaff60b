"""Layouts of data sets that were rendered: Sintel, ICL-NUIM, TartanAir, Virtual KITTI, PointOdyssey and others."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from videomamba_depth.evaluation.datasets import formats
from videomamba_depth.evaluation.datasets.layout_parts import (
    UNKNOWN_POSE,
    by_number,
    intrinsics_at_size,
    inverse_pose,
    numbers_of,
    paired,
    poses_at,
    stacked_poses,
)
from videomamba_depth.evaluation.datasets.layout_tree import Found, Tree
from videomamba_depth.evaluation.datasets.recording import (
    IMAGE_SUFFIXES,
    Recording,
    listed,
    places_in_folder,
    pose_matrix,
    read_depth,
    read_numbers,
)
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.intrinsics import camera_matrix

NED_FROM_CAMERA = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
UPWARD_FROM_CAMERA = np.diag([1.0, -1.0, -1.0, 1.0])  # cameras that look along −z with y up
HYPERSIM_FOCAL_PX, HYPERSIM_WIDTH = 886.81, 1024


def sintel(tree: Tree, images: str = "clean") -> Iterator[Found]:
    """MPI Sintel: clean|final/SCENE/frame_0001.png, depth/SCENE/frame_0001.dpt, camdata_left/SCENE/frame_0001.cam."""
    depths = {path.name: path for folder in tree.depth.folders if folder.name == "depth" for path in folder.iterdir()}
    for folder in tree.folders:
        if folder.name == images:
            for scene in sorted(folder.iterdir()):
                if any(depths.get(scene.name, scene).glob("*.dpt")):
                    yield Found(f"{tree.name(folder)}/{scene.name}", partial(_sintel, scene, depths[scene.name]))


def _sintel(scene: Path, depths: Path) -> Recording:
    frames, left_out = paired(listed(scene, (".png",)), lambda image: depths / f"{image.stem}.dpt")
    cameras = [depths.parents[1] / "camdata_left" / scene.name / f"{frame.name}.cam" for frame in frames]
    known = [formats.read_cam(path) if path.is_file() else None for path in cameras]
    first = next((camera for camera in known if camera is not None), None)
    poses = stacked_poses(UNKNOWN_POSE if camera is None else inverse_pose(camera[1]) for camera in known)
    return Recording(
        folder=scene,
        frames=frames,
        left_out=left_out,
        max_depth_m=70.0,
        invalid_value=1e11,  # the sky
        fps=24.0,
        intrinsics=None if first is None else first[0],
        poses=None if first is None else poses,
        read_depth=formats.read_dpt,
    )


def icl(tree: Tree) -> Iterator[Found]:
    """ICL-NUIM, the PNG form: rgb/0.png, depth/0.png, *.gt.freiburg with rows "frame tx ty tz qx qy qz qw"."""
    for folder in tree.having("rgb", "depth", "*.gt.freiburg"):
        yield Found(tree.name(folder), partial(_icl, folder))


def _icl(folder: Path) -> Recording:
    frames, left_out = paired(
        listed(folder / "rgb", IMAGE_SUFFIXES), lambda image: folder / "depth" / f"{image.stem}.png"
    )
    return Recording(
        folder=folder,
        frames=frames,
        left_out=left_out,
        depth_scale=5000.0,
        intrinsics=intrinsics_at_size(camera_matrix((481.2, -480.0, 319.5, 239.5)), frames),
        poses=poses_at(min(folder.glob("*.gt.freiburg")), [float(n) for n in numbers_of(frames)]),
    )


def tartanair(tree: Tree) -> Iterator[Found]:
    """TartanAir: image_left, depth_left/*.npy, pose_left.txt; v2: image_lcam_front, depth_lcam_front/*.png."""
    for camera in ("left", "lcam_front"):
        for folder in tree.having(f"image_{camera}", f"depth_{camera}"):
            yield Found(tree.name(folder), partial(_tartanair, folder, camera))


def _tartanair(folder: Path, camera: str) -> Recording:
    suffix, center = (".npy", 240.0) if camera == "left" else (".png", 320.0)
    images = listed(folder / f"image_{camera}", IMAGE_SUFFIXES)
    frames, left_out = paired(images, lambda image: folder / f"depth_{camera}" / f"{image.stem}_depth{suffix}")
    poses, trajectory = None, folder / f"pose_{camera}.txt"
    if trajectory.is_file():
        rows = by_number(read_numbers(trajectory), frames, trajectory)
        if rows.shape[1] != 7:
            raise UserError(f"{trajectory} must have rows 'tx ty tz qx qy qz qw'; found {rows.shape[1]} columns")
        poses = stacked_poses(pose_matrix(row[:3], row[3:]) for row in rows) @ NED_FROM_CAMERA
    return Recording(
        folder=folder,
        frames=frames,
        left_out=left_out,
        max_depth_m=80.0,
        intrinsics=intrinsics_at_size(camera_matrix((320.0, 320.0, 320.0, center)), frames, (int(2 * center), 640)),
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
    frames, left_out = paired(images, lambda image: depths / f"{image.stem.replace('rgb', 'depth')}.png")
    matrix = poses = None
    if (folder / "intrinsic.txt").is_file() and (folder / "extrinsic.txt").is_file():
        numbers, cameras = (read_numbers(folder / f"{name}.txt", skip=1) for name in ("intrinsic", "extrinsic"))
        if numbers.shape[1] != 6 or cameras.shape[1] != 18:
            raise UserError(f"{folder}: intrinsic.txt and extrinsic.txt must have rows of 6 and 18 columns")
        matrix = camera_matrix(numbers[0, 2:].tolist())
        by_frame = {int(row[0]): row[2:].reshape(4, 4) for row in cameras if row[1] == 0}
        poses = stacked_poses(inverse_pose(by_frame.get(number, UNKNOWN_POSE)) for number in numbers_of(frames))
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
    frames, left_out = paired(images, lambda image: folder / "depths" / f"{image.stem.replace('rgb', 'depth')}.png")
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
        poses=stacked_poses(inverse_pose(matrix) for matrix in by_number(world_to_camera, frames, file)),
    )


def dynamic_replica(tree: Tree) -> Iterator[Found]:
    """DynamicReplica: SEQ_left/images, SEQ_left/depths/*.geometric.png, frame_annotations_SPLIT.jgz beside them."""
    for folder in tree.having("images", "depths/*.geometric.png"):
        if folder.resolve().name.endswith("_left"):
            yield Found(tree.name(folder), partial(_dynamic_replica, folder))


def _dynamic_replica(folder: Path) -> Recording:
    images = listed(folder / "images", IMAGE_SUFFIXES)
    frames, left_out = paired(
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
        poses=stacked_poses(UNKNOWN_POSE if camera is None else camera[1] for camera in known) if cameras else None,
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
    frames, left_out = paired(
        images, lambda image: _hypersim_geometry(preview) / f"{stem(image)}.depth_meters.hdf5", stem
    )
    detail = preview.parents[1] / "_detail"
    poses = formats.hypersim_poses(detail, camera, numbers_of(frames))
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
