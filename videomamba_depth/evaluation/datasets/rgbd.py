"""Load folders of images and depth maps, `rgb` and `depth`, and recordings of any layout."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from videomamba_depth.evaluation.clips import EvaluationClip
from videomamba_depth.evaluation.datasets.layouts import LAYOUTS
from videomamba_depth.evaluation.datasets.recording import (
    ALL_FRAMES,
    IMAGE_SUFFIXES,
    FramePick,
    Recording,
    RgbdFrame,
    content_digest,
    listed,
    places_in_folder,
    pose_matrix,
    read_numbers,
    recording_clip,
)
from videomamba_depth.evaluation.datasets.timestamps import MAX_DIFFERENCE_S, associate, frame_numbers, frame_stamps
from videomamba_depth.evaluation.metrics.geometry import usable_poses
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.intrinsics import camera_matrix
from videomamba_depth.utils.settings import Range, ranged, text
from videomamba_depth.utils.settings import path as path_to

log = logging.getLogger(__name__)

DEPTH_SUFFIXES = (".png", ".npy", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class RgbdFormat:
    """How depth maps beside pictures are read; what is None, the layout says (`Recording`), or `load_rgbd` does.

    layout: of `LAYOUTS`, recognized where None. depth_root: where depth lies in a tree of its own. crop_px: a border
    that does not count; crop: the same as (top, bottom, left, right). region: see `Recording`. scenes: patterns of the
    sequences that are taken; lists: names of a protocol's frame lists. start, stride: see `FramePick`.
    """

    layout: str | None = text(default=None)
    depth_root: str | None = path_to(None)
    depth_scale: float | None = ranged(0, 1e9, None, open="low")
    invalid: float | None = ranged(-1e9, 1e9, None)
    intrinsics: str | list[float] | None = path_to(None, numbers=Range(-1e9, 1e9, length=(4, 4)))
    poses: str | None = path_to(None)
    max_depth_m: float | None = ranged(0, 1e6, None, open="low")
    crop_px: int | None = ranged(0, 4096, None)
    crop: tuple[int, ...] | None = ranged(0, 8192, None, length=4)
    region: tuple[float, ...] | None = ranged(0, 1, None, length=4)
    scenes: list[str] | None = text(default=None)
    lists: list[str] | None = text(default=None)
    start: int | None = ranged(0, 10**9, None)
    stride: int | None = ranged(1, 10**6, None)

    def __post_init__(self) -> None:
        if self.layout not in (None, *LAYOUTS):
            raise UserError(f"rgbd.layout={self.layout}: choose from {', '.join(LAYOUTS)}")
        if self.crop is not None and self.crop_px is not None:
            raise UserError("rgbd.crop and rgbd.crop_px say the same: set one of them")

    def clip(self, name: str, recording: Recording, frames: FramePick = ALL_FRAMES) -> EvaluationClip:
        """Return the frames of a recording as a clip, with what is set here in place of what its layout says.

        Raises UserError as `load_rgbd` does; ground truth beyond the layout's own range is no reason.
        """
        own_range = self.depth_scale is None and self.max_depth_m is None
        recording, frames = self._over(recording, frames)
        return read_recording(name, recording, self.intrinsics, self.poses, frames, refuse_far=not own_range)

    def content(self, recording: Recording, frames: FramePick = ALL_FRAMES) -> str:
        """Return a digest of all that `clip` returns for a recording; what cannot be read raises as there."""
        recording, frames = self._over(recording, frames)
        return content_digest(picked(recording, self.intrinsics, self.poses, frames), recording.num_images)

    def _over(self, recording: Recording, frames: FramePick) -> tuple[Recording, FramePick]:
        border = None if self.crop_px is None else (self.crop_px,) * 4
        given = {
            "depth_scale": self.depth_scale,
            "invalid_value": self.invalid,
            "max_depth_m": self.max_depth_m,
            "crop": border if self.crop is None else self.crop,
            "region": self.region,
        }
        recording = replace(recording, **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
        if self.start is not None:
            frames = replace(frames, start=self.start)
        if self.stride is not None:
            frames = replace(frames, stride=self.stride)
        return recording, frames


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
    intrinsics: np.ndarray | Sequence[float] | str | Path | None = None,
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
        poses: [F,4,4] camera-to-world in meters, of all images or of the frames that are taken; or a folder of 4×4
            text files, one per frame by stem; or a file with a row "tx ty tz qx qy qz qw" per image; or one with rows
            "stamp tx ty tz qx qy qz qw", of which each frame gets the closest in time, within 20 ms. Frames without
            one, or with one that is not finite, have a pose of NaN, and what needs poses skips them. Files of
            intrinsics and poses are looked for as given, then inside root.
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
    recording = replace(
        folder_recording(root, rgb_dir, depth_dir),
        depth_scale=depth_scale,
        invalid_value=invalid_value,
        max_depth_m=max_depth_m,
        crop=(crop_px,) * 4,
        fps=fps,
    )
    return read_recording(root.name, recording, intrinsics, poses, FramePick(count=max_frames))


def folder_recording(root: Path, rgb_dir: str = "rgb", depth_dir: str = "depth") -> Recording:
    """Return what `load_rgbd` pairs up, without units."""
    frames, alone = _pair(root, rgb_dir, depth_dir)
    left_out = {"have no depth map in time": alone} if alone else {}
    return Recording(folder=root, frames=frames, left_out=left_out, num_files=len(places_in_folder(root / rgb_dir)))


def read_recording(
    name: str,
    recording: Recording,
    intrinsics: np.ndarray | Sequence[float] | str | Path | None = None,
    poses: np.ndarray | str | Path | None = None,
    pick: FramePick = ALL_FRAMES,
    *,
    refuse_far: bool = True,
) -> EvaluationClip:
    """Return frames of a recording as a clip; intrinsics and poses as `load_rgbd`, None: its own."""
    recording, num_images = picked(recording, intrinsics, poses, pick), recording.num_images
    return recording_clip(name, recording, num_images, refuse_far=refuse_far)


def picked(
    recording: Recording,
    intrinsics: np.ndarray | Sequence[float] | str | Path | None = None,
    poses: np.ndarray | str | Path | None = None,
    pick: FramePick = ALL_FRAMES,
) -> Recording:
    """Return frames of a recording; intrinsics and poses as `load_rgbd`, None: its own."""
    num_images, places = recording.num_images, pick.places(recording.frames)
    frames = [recording.frames[i] for i in places]
    camera_to_world = None if recording.poses is None else _checked(recording.poses[places], len(frames))
    if poses is not None:
        camera_to_world = _load_poses(_inside(recording.folder, poses), frames, num_images)
    found = _inside(recording.folder, intrinsics) if isinstance(intrinsics, str | Path) else intrinsics
    matrix = recording.intrinsics if found is None else camera_matrix(found)
    fps = recording.fps / pick.stride
    return replace(recording, frames=frames, fps=fps, intrinsics=matrix, poses=camera_to_world)


def _pair(root: Path, rgb_dir: str, depth_dir: str) -> tuple[list[RgbdFrame], list[str]]:
    """Return the images that have a depth map, in order, and the names of the others."""
    images, depths = listed(root / rgb_dir, IMAGE_SUFFIXES), listed(root / depth_dir, DEPTH_SUFFIXES)
    stamps, times = (
        frame_stamps(paths, root / f"{folder}.txt") for paths, folder in ((images, rgb_dir), (depths, depth_dir))
    )
    files = places_in_folder(root / rgb_dir)
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
        RgbdFrame(image, depth, image.stem, i, None if stamps is None else stamps[i], files.get(image))
        for i, (image, depth) in enumerate(zip(images, partners, strict=True))
        if depth is not None
    ]
    if stamps and times and not pairs:
        raise UserError(
            f"{root}: no image has a depth map within {1000 * MAX_DIFFERENCE_S:.0f} ms; {rgb_dir} goes from"
            f" {min(stamps)} to {max(stamps)} s, {depth_dir} from {min(times)} to {max(times)} s"
        )
    return pairs, [image.name for image, depth in zip(images, partners, strict=True) if depth is None]


def _inside(root: Path, given: np.ndarray | str | Path | None) -> np.ndarray | str | Path | None:
    """Return a path as it is where it exists, else the same below root where that does."""
    if given is None or isinstance(given, np.ndarray) or Path(given).exists():
        return given
    return root / given if (root / given).exists() else given


def _load_poses(poses: np.ndarray | str | Path | None, pairs: Sequence[RgbdFrame], num_images: int) -> np.ndarray:
    """Return [F,4,4], see `load_rgbd`."""
    assert poses is not None
    if isinstance(poses, np.ndarray):
        if len(poses) not in (num_images, len(pairs)):
            raise UserError(
                f"poses must have one matrix per image ({num_images}) or per frame that is taken ({len(pairs)}); got"
                f" {len(poses)}"
            )
        result = poses[[pair.place for pair in pairs]] if len(poses) == num_images else poses
    elif Path(poses).is_dir():
        result = _stack([read_numbers(Path(poses) / f"{pair.name}.txt") for pair in pairs], poses)
    else:
        rows = _pose_rows(Path(poses), pairs, num_images)
        result = np.stack([pose_matrix(row[:3], row[3:]) for row in rows])
    if result.shape == (len(pairs), 4, 4) and not usable_poses(result).any():
        raise UserError(f"poses: none of {len(pairs)} frames has one that is finite; leave rgbd.poses out")
    return _checked(result, len(pairs))


def _checked(poses: np.ndarray, num_frames: int) -> np.ndarray:
    """Return poses as float64 [F,4,4], and log how many are of no use."""
    if poses.shape != (num_frames, 4, 4):
        raise UserError(f"poses must be one 4×4 matrix per frame ({num_frames}); got {list(poses.shape)}")
    if broken := int((~usable_poses(poses)).sum()):
        log.warning("%d of %d frames have no finite pose; what needs poses skips them", broken, num_frames)
    return np.asarray(poses, dtype=np.float64)


def _pose_rows(path: Path, pairs: Sequence[RgbdFrame], num_images: int) -> np.ndarray:
    """Return "tx ty tz qx qy qz qw" of every frame [F,7], by time where rows begin with a stamp; NaN without one."""
    rows = read_numbers(path)
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
