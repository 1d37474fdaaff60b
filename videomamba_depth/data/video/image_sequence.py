"""Image folders and globs as videos; single images as videos of one frame, animated ones (WebP, PNG) of all theirs."""

from __future__ import annotations

import glob
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from videomamba_depth.data.video.info import VideoInfo, VideoReadError, warn_once
from videomamba_depth.data.video.structure import find_damage

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".png", ".apng", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
DEFAULT_FPS = 30.0
_ANIMATED = ("WEBP", "PNG")
_TIFF_MARKS = (b"II*\0", b"MM\0*")
_UNTIMED_MS = 100  # of a frame of an animated image that states no duration, as browsers show it


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
    path = Path(os.path.expanduser(path))
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
    return tuple(sorted(found, key=lambda image: (natural_key(image.name), image.name)))


def read_image(path: str | Path) -> np.ndarray:
    """Read one image as uint8 RGB [H,W,3]: gray is repeated, alpha is dropped, 16 bit is scaled to 8.

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
    if data[:4].tobytes() in _TIFF_MARKS and _num_pages(data.tobytes()) > 1:
        warn_once(f"{Path(path).parent} holds images of several pages: of these, only the first page is used")
    if _moves(data.tobytes()):
        warn_once(f"{Path(path).parent} holds animated images among others: of these, only the first frame is used")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def probe_images(path: str | Path, fps: float | None = None) -> VideoInfo:
    """Describe an image sequence, whose first image is decoded for its size, or an animated image, which is decoded.

    Args:
        path: folder, glob or image file.
        fps: frames per second of the sequence, default 30; frame i is at i / fps seconds, exactly. An animated image
            has times of its own.
    """
    paths = list_images(path)
    if len(paths) == 1 and not Path(path).is_dir() and _moves(_bytes_of(paths[0])):
        return _probe_animated(paths[0])
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


def iter_images(info: VideoInfo, indices: Iterable[int]) -> Iterator[np.ndarray]:
    """Yield the images of a sequence, or of an animated image, as uint8 RGB [H,W,3].

    Args:
        indices: ascending.

    Raises:
        VideoReadError: an image is broken or has another size than the first one.
    """
    if info.animated:
        wanted = set(indices)
        frames = islice(_animated_frames(Path(info.path)), max(wanted, default=-1) + 1)  # the rest may be cut off
        yield from (rgb for index, (rgb, _) in enumerate(frames) if index in wanted)
        return
    for index in indices:
        image = read_image(info.image_paths[index])
        if image.shape != (info.height, info.width, 3):
            raise VideoReadError(
                f"{info.image_paths[index]} is {image.shape[1]}x{image.shape[0]} but the sequence began with "
                f"{info.width}x{info.height}; frames of one video must share one size"
            )
        yield image


def _probe_animated(path: Path) -> VideoInfo:
    ends_ms, shape, damage = [0.0], (0, 0), find_damage(path)
    try:
        for rgb, duration_ms in _animated_frames(path):
            shape = rgb.shape[:2]
            ends_ms.append(ends_ms[-1] + (duration_ms or _UNTIMED_MS))
    except VideoReadError as error:
        damage = f"only {len(ends_ms) - 1} of its frames can be decoded"
        if len(ends_ms) == 1:
            raise
        log.warning("%s; these are used (%s)", error, damage)
    num_frames = len(ends_ms) - 1
    return VideoInfo(
        path=str(path),
        width=shape[1],
        height=shape[0],
        num_frames=num_frames,
        fps=1000 * num_frames / ends_ms[-1],
        time_base=Fraction(1, 1000),
        pts=np.maximum.accumulate(np.round(ends_ms[:-1]).astype(np.int64)),
        damage=damage,
        animated=True,
    )


def _animated_frames(path: Path) -> Iterator[tuple[np.ndarray, float]]:
    """Yield uint8 RGB [H,W,3] and the duration in ms of each frame.

    Raises:
        VideoReadError: after the last frame that can be decoded.
    """
    number = 0
    try:
        with Image.open(path, formats=_ANIMATED) as image:
            first = int(getattr(image, "default_image", False))  # a PNG's picture for programs without animation
            for number in range(first, image.n_frames):
                image.seek(number)
                rgb = np.array(image.convert("RGB"))
                yield rgb, float(image.info.get("duration", 0))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise VideoReadError(f"cannot read image {path} from frame {number} on: {error}") from error


def _num_pages(data: bytes) -> int:
    """Return the number of pictures in a TIFF file."""
    try:
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
            return int(getattr(image, "n_frames", 1))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 1  # OpenCV has read it all the same


def _moves(data: bytes) -> bool:
    """Tell whether a file is an animated PNG (`acTL` before the pixels) or WebP (a bit of `VP8X`)."""
    if data.startswith(b"\x89PNG"):
        return b"acTL" in data[: max(0, data.find(b"IDAT"))]
    return data[8:16] == b"WEBPVP8X" and bool(data[20] & 2)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise VideoReadError(f"cannot read image {path}: {error.strerror}") from error


def _is_glob(path: str | Path) -> bool:
    return any(mark in str(path) for mark in "*?[")
