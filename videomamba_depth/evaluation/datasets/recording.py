"""A recorded sequence: pictures with their depth maps, how their numbers are to be read, and the clip it becomes."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from videomamba_depth.data.video.image_sequence import list_images, natural_key
from videomamba_depth.evaluation.clips import EvaluationClip
from videomamba_depth.evaluation.metrics.accuracy import valid_ground_truth
from videomamba_depth.evaluation.metrics.percentiles import percentiles
from videomamba_depth.flow.frame_view import Frames, mapped, on_disk
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
NAMED = 5  # of the frames that are left out
NEAR_M = 0.1  # a median depth below it is more likely a wrong scale


class RgbdFrame(NamedTuple):
    """A picture with its depth map, mostly two paths, and what is known of both.

    name: in reports. place: among all pictures, also those without depth, and those that a list names and that are
    missing. stamp: when it was taken (s). file: its place among the files of the folder that it lies in, where a list
    names the pictures.
    """

    image: Any
    depth: Any
    name: str
    place: int
    stamp: float | None = None
    file: int | None = None


def read_image(path: Path) -> np.ndarray:
    """Return an image as uint8 [H,W,3] RGB."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"cannot read image {path}: it is damaged or not an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_depth(path: Path) -> np.ndarray:
    """Return a depth map as float32 [H,W], in the units that it is stored in."""
    try:
        is_array = path.suffix.lower() == ".npy"
        values = np.load(path, allow_pickle=False) if is_array else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except (OSError, ValueError, EOFError, cv2.error):
        values = None
    if values is None or values.ndim != 2 or values.dtype.kind not in "fui":
        raise UserError(f"cannot read depth map {path}: it is damaged or not a single-channel image")
    return values.astype(np.float32)


@dataclass(frozen=True)
class FramePick:
    """Which frames of a recording are taken, of those that have depth.

    start, stride, count: the first, every how many-th, and how many at most (None: all). numbers: of these alone, by
    the whole number that their names hold.
    """

    start: int = 0
    stride: int = 1
    count: int | None = None
    numbers: frozenset[int] | None = None

    def places(self, frames: Sequence[RgbdFrame]) -> list[int]:
        """Return which of the frames are taken.

        Raises:
            UserError: none is.
        """
        known = [i for i, frame in enumerate(frames) if self.numbers is None or last_number(frame.name) in self.numbers]
        kept = known[self.start :: self.stride][: self.count]
        if frames and not kept:
            chosen = "" if self.numbers is None else f", of which {len(known)} are listed"
            raise UserError(f"it has {len(frames)} frames with depth{chosen}; rgbd.start={self.start} leaves none")
        return kept


ALL_FRAMES = FramePick()


def last_number(name: str) -> int | None:
    """Return the last whole number that stands in a name; None without one."""
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else None


class Pictures:
    """The pictures of a recording as uint8 [H,W,3] RGB, read when asked for; can be iterated again and again."""

    def __init__(self, images: Sequence[Any], read: Callable[[Any], np.ndarray] = read_image) -> None:
        self.images, self._read = images, read

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._read(self.images[index])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One sequence on disk, and how its numbers are to be read.

    folder: where files of intrinsics and poses are looked for. depth_scale: stored units per meter. invalid_value:
    stored value without depth, as are 0, negative and non-finite ones. max_depth_m: ground truth beyond does not count.
    crop: (top, bottom, left, right) px of the depth maps that do not count. region: (top, bottom, left, right) as
    shares of height and width, within which ground truth counts, rounded down to whole px. intrinsics: [3,3] px at the
    depth maps' size. poses: [F,4,4] camera to world, m; not finite where unknown. left_out: reason → names of pictures.
    num_files: in the folder of pictures, or pictures in the file, where these hold others too.
    read_image, read_depth: take what the frames hold, and return uint8 [H,W,3] RGB and float [h,w].
    """

    folder: Path
    frames: Sequence[RgbdFrame]
    depth_scale: float = 1.0
    invalid_value: float = 0.0
    max_depth_m: float = 10.0
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    region: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 1.0)
    fps: float = 30.0
    intrinsics: np.ndarray | None = None
    poses: np.ndarray | None = None
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    num_files: int | None = None
    read_image: Callable[[Any], np.ndarray] = read_image
    read_depth: Callable[[Any], np.ndarray] = read_depth

    @property
    def num_images(self) -> int:
        """Number of pictures, also of those that are left out."""
        return len(self.frames) + sum(map(len, self.left_out.values()))


def content_digest(recording: Recording, num_images: int) -> str:
    """Return a digest of what `recording_clip` would return: of the files, and of the numbers beside them.

    Depth and pictures that a layout reads in a way of its own count by what comes out of that.

    Raises UserError, naming the file, where one is missing or damaged.
    """
    digest = hashlib.sha256()
    readers = ((recording.read_image, read_image), (recording.read_depth, read_depth))
    for frame in recording.frames:
        for item, (read, plain) in zip((frame.image, frame.depth), readers, strict=True):
            try:
                known = hashlib.sha256(item.read_bytes()).hexdigest() if read is plain else array_digest(read(item))
            except OSError as error:
                raise UserError(f"cannot read {item}: {error.strerror}") from error
            digest.update(f"{frame.name}\0{known}\0".encode())
    r = recording
    places = [(frame.place, frame.file) for frame in r.frames]
    about = (r.depth_scale, r.invalid_value, r.max_depth_m, r.crop, r.region, r.fps, places, num_images, r.num_files)
    cameras = [None if array is None else array_digest(array) for array in (r.intrinsics, r.poses)]
    digest.update(repr((about, cameras)).encode())
    return digest.hexdigest()


def array_digest(array: np.ndarray) -> str:
    """Return a digest of an array's numbers, type and shape."""
    plain = np.ascontiguousarray(array)
    return hashlib.sha256(f"{plain.dtype} {plain.shape} ".encode() + plain.tobytes()).hexdigest()


def recording_clip(name: str, recording: Recording, num_images: int, *, refuse_far: bool = True) -> EvaluationClip:
    """Read the depth of a recording, once, into temporary files (5 bytes per pixel), and return it as a clip.

    What does not count is logged: pictures that are left out, ground truth beyond the range.

    Args:
        num_images: pictures of the whole recording, of which it may hold the first alone.
        refuse_far: raise UserError where more than half of the ground truth lies beyond `max_depth_m`, else only warn.
    """
    for reason, names in recording.left_out.items():
        more = ", …" if len(names) > NAMED else ""
        log.warning(
            "%s: %d of %d images %s, left out: %s%s",
            name, len(names), num_images, reason, ", ".join(names[:NAMED]), more,
        )  # fmt: skip
    frames = recording.frames
    gt_depth_m, valid = on_disk(_depth_and_valid(recording)) if frames else (None, None)
    if gt_depth_m is None or valid is None:
        raise UserError(f"{name}: no image has a depth map")
    _check_range(name, gt_depth_m, valid, recording.max_depth_m, refuse_far)
    return EvaluationClip(
        name=name,
        frames=Pictures([frame.image for frame in frames], recording.read_image),
        fps=recording.fps,
        frame_ids=tuple(frame.name for frame in frames),
        frame_places=tuple(frame.place for frame in frames),
        source_frames=num_images,
        file_places=_file_places(frames),
        num_files=recording.num_files,
        gt_depth_m=gt_depth_m,
        valid=valid,
        max_depth_m=recording.max_depth_m,
        intrinsics=recording.intrinsics,
        camera_to_world=recording.poses,
    )


def _file_places(frames: Sequence[RgbdFrame]) -> tuple[int, ...] | None:
    places = [frame.file for frame in frames if frame.file is not None]
    return tuple(places) if len(places) == len(frames) else None


def _check_range(name: str, gt_depth_m: Frames, valid: Frames, max_depth_m: float, refuse_far: bool) -> None:
    """Log how much of the ground truth lies beyond `max_depth_m`; refuse if that is most of it."""
    known = sum(int(mask.sum()) for mask in valid)
    kept = sum(int(mask.sum()) for mask in valid_ground_truth(gt_depth_m, valid, max_depth_m))
    first = gt_depth_m[0][valid[0]]
    if first.size and float(np.median(first)) < NEAR_M:
        log.warning(
            "%s: the first frame has a median depth of %.2g m; rgbd.depth_scale may be wrong", name, np.median(first)
        )
    if kept == known:
        return
    share = 100.0 * (known - kept) / known
    if 2 * kept < known and refuse_far:
        (far,) = percentiles(mapped(lambda depth_m, mask: depth_m[mask], gt_depth_m, valid), [99])
        enough = 10.0 * 2.0 ** math.ceil(math.log2(max(far, 1e-3) / 10.0))
        raise UserError(
            f"{name}: {share:.0f} % of the ground truth lies beyond max_depth_m={max_depth_m:g} and would not count;"
            f" set rgbd.max_depth_m={enough:g}, or another rgbd.depth_scale if depths up to {far:.3g} m cannot be right"
        )
    log.info("%s: %.1f %% of the ground truth lies beyond max_depth_m=%g and does not count", name, share, max_depth_m)


def _depth_and_valid(recording: Recording) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield z in meters, float32 [h,w], 0 where invalid, and where it is valid."""
    size: tuple[int, ...] | None = None
    top, bottom, left, right = recording.crop
    for frame in recording.frames:
        stored = recording.read_depth(frame.depth)
        size = size or stored.shape
        if stored.shape != size:
            raise UserError(
                f"depth maps in {recording.folder} differ in size: {frame.name} has {stored.shape}, those before it"
                f" {size}"
            )
        inner, (h, w) = np.zeros(size, dtype=bool), size
        y0, y1, x0, x1 = (int(share * side) for share, side in zip(recording.region, (h, h, w, w), strict=True))
        inner[max(top, y0) : min(h - bottom, y1), max(left, x0) : min(w - right, x1)] = True
        if not inner.any():
            raise UserError(
                f"crop={list(recording.crop)} leaves nothing of region={list(recording.region)} of depth maps of {size}"
                f" px in {recording.folder}"
            )
        valid = np.isfinite(stored) & (stored != recording.invalid_value) & (stored > 0) & inner
        yield np.where(valid, stored / recording.depth_scale, 0.0).astype(np.float32), valid


def listed(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files of a folder, numbers in their names as numbers, in the same order on every file system."""
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist; name the right one with rgb_dir or depth_dir")
    found = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    if not found:
        raise UserError(f"folder {folder} holds no file of type {', '.join(suffixes)}")
    return sorted(found, key=lambda path: (natural_key(path.name), path.name))


def places_in_folder(folder: Path) -> dict[Path, int]:
    """Return the places of all images of a folder, as a stream of it counts them."""
    return {path: i for i, path in enumerate(list_images(folder))}


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


def read_numbers(path: Path, skip: int = 0) -> np.ndarray:
    """Return the numbers of a text file [rows, columns], without its first `skip` lines."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file
            numbers = np.loadtxt(path, ndmin=2, skiprows=skip, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read numbers from {path}: {error}") from error
    if not numbers.size:
        raise UserError(f"cannot read numbers from {path}: it holds none")
    return numbers
