"""Image folders and globs as videos; single images as videos of one frame."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from videomamba_depth.data.video_info import VideoInfo, VideoReadError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
DEFAULT_FPS = 30.0


def natural_key(name: str | Path) -> list[tuple[int, int | str]]:
    """Sort key that orders embedded numbers by value: frame2 before frame10."""
    return [(0, int(part)) if part.isdigit() else (1, part.lower()) for part in re.split(r"(\d+)", str(name))]


def is_image(path: str | Path) -> bool:
    """Tell whether a path has the suffix of an image that we read; hidden files (macOS `._x.jpg`) do not count."""
    path = Path(path)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def is_image_sequence(path: str | Path) -> bool:
    """Tell whether `path` is read as images: a folder, an image file, or a glob that is no existing file."""
    return Path(path).is_dir() or is_image(path) or (_is_glob(path) and not Path(path).exists())


def list_images(path: str | Path) -> tuple[Path, ...]:
    """Return the images of a folder (not of its subfolders), a glob or a single file, in natural order.

    Raises:
        VideoReadError: nothing there, or no image in it.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = [child for child in path.iterdir() if is_image(child) and child.is_file()]
    elif path.exists():
        found = [path]
    elif _is_glob(path):
        found = [Path(name) for name in glob.glob(str(path)) if is_image(name)]
    else:
        raise VideoReadError(f"no such file or folder: {path}")
    if not found:
        raise VideoReadError(f"no images in {path}; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return tuple(sorted(found, key=lambda image: natural_key(image.name)))


def read_image(path: str | Path) -> np.ndarray:
    """Read one image as uint8 RGB [H,W,3]: grey is repeated, alpha is dropped, 16 bit is scaled to 8.

    EXIF orientation is applied, as a photo viewer does.

    Raises:
        VideoReadError: the file cannot be decoded.
    """
    try:
        # imdecode and not imread: the latter writes to stderr on its own and cannot open every unicode path.
        data = np.fromfile(path, dtype=np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error) as error:
        raise VideoReadError(f"cannot read image {path}: {error}") from error
    if image is None:
        raise VideoReadError(f"cannot read image {path}: it is empty, damaged or not an image; replace or remove it")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def probe_images(path: str | Path, fps: float | None = None) -> VideoInfo:
    """Describe an image sequence; the first image is decoded for its size.

    Args:
        path: folder, glob or image file.
        fps: frames per second of the sequence, default 30; frame i is at i / fps seconds, exactly.
    """
    paths = list_images(path)
    height, width = read_image(paths[0]).shape[:2]
    rate = Fraction(DEFAULT_FPS if fps is None else fps).limit_denominator(1001)
    if rate <= 0:
        raise VideoReadError(f"fps of an image sequence must be positive; got {fps}")
    return VideoInfo(
        path=str(path),
        width=width,
        height=height,
        num_frames=len(paths),
        fps=float(rate),
        time_base=1 / rate,
        pts=np.arange(len(paths)),
        keyframes=np.arange(len(paths)),
        image_paths=paths,
    )


def read_images(info: VideoInfo, indices: Sequence[int]) -> np.ndarray:
    """Read images of a sequence as uint8 RGB [K,H,W,3].

    Raises:
        VideoReadError: an image is broken or has another size than the first one.
    """
    out = np.empty((len(indices), info.height, info.width, 3), np.uint8)
    for k, index in enumerate(indices):
        image = read_image(info.image_paths[index])
        if image.shape != out.shape[1:]:
            raise VideoReadError(
                f"{info.image_paths[index]} is {image.shape[1]}x{image.shape[0]} but the sequence began with "
                f"{info.width}x{info.height}; frames of one video must share one size"
            )
        out[k] = image
    return out


def _is_glob(path: str | Path) -> bool:
    return any(mark in str(path) for mark in "*?[")
