"""Small video files and image folders made by hand for the tests. Every frame carries its own number."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

_BITS = 8


def skip_with_old_pyav() -> None:
    """Skip a test that writes what PyAV 17.0 cannot: a rotation, or a cover picture."""
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip(f"PyAV {av.__version__} cannot write it")


def numbered_frame(number: int, width: int = 64, height: int = 48, seed: int = 0) -> np.ndarray:
    """uint8 RGB [height,width,3]: a moving color ramp, with `number` (0..255) as bars in the top third.

    The bars survive compression; `frame_number` reads them back.
    """
    rng = np.random.default_rng((seed, 7))
    y, x = np.mgrid[:height, :width]
    phase = rng.uniform(0, 2 * np.pi, 3)
    rgb = np.stack([127 + 90 * np.sin((x + 2 * number) / 9 + p + y / 13) for p in phase], -1)
    bits = (number >> np.arange(_BITS)) & 1
    columns = np.minimum(np.arange(width) * _BITS // width, _BITS - 1)
    rgb[: height // 3] = (bits[columns] * 255)[None, :, None]
    return rgb.astype(np.uint8)


def frame_number(rgb: np.ndarray) -> int:
    """Read the number back from a frame made by `numbered_frame`."""
    strip = rgb[1 : max(2, rgb.shape[0] // 3 - 2)].astype(float).mean((0, 2))
    width = len(strip)
    centers = ((np.arange(_BITS) + 0.5) * width / _BITS).astype(int)
    return int(sum(1 << bit for bit, c in enumerate(centers) if strip[c] > 127))


def write_video(
    path: Path,
    num_frames: int = 12,
    *,
    width: int = 64,
    height: int = 48,
    fps: int = 10,
    pts: list[int] | None = None,
    time_base: Fraction | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    mirrored: bool = False,
    seed: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode numbered frames; `pts` in units of `time_base` makes a variable frame rate."""
    time_base = time_base or Fraction(1, fps)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.time_base = stream.codec_context.time_base = time_base
        if rotation or mirrored:
            skip_with_old_pyav()
            stream.set_display_rotation(rotation, hflip=mirrored)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, width, height, seed), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = (number if pts is None else pts[number]), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_images(folder: Path, num_frames: int = 6, suffix: str = ".png", **size: int) -> Path:
    """Write numbered images img0, img1, ... (no leading zeros: natural order matters) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_frames):
        bgr = cv2.cvtColor(numbered_frame(number, **size), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / f"img{number}{suffix}"), bgr)
    return folder


def write_truncated(path: Path, fraction: float = 0.6, num_frames: int = 24) -> Path:
    """An mp4 with its index in front whose data is cut off after `fraction` of the bytes."""
    write_video(path, num_frames, container_options={"movflags": "faststart"}, options={"g": "4"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def write_headless(path: Path) -> Path:
    """An mp4 cut off before its index (which is at the end): cannot be opened at all."""
    write_video(path, 24, options={"crf": "10"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def write_empty(path: Path) -> Path:
    """A file of zero bytes."""
    path.write_bytes(b"")
    return path


def write_text(path: Path) -> Path:
    """A text file with a video's name."""
    path.write_text("this is not a video\n" * 50)
    return path


def flat_depth(rgb: Any) -> Any:
    """A stand-in teacher: depth [B,1,H,W] from rgb [B,3,H,W] in [0,1]; smooth, positive, depends on every frame."""
    return 1.0 + 10.0 * rgb.mean(1, keepdim=True)
