"""The process that `decoder` starts: pictures from the standard input, or a video, to frames on the standard output.

python -m videomamba_depth.serving.decoder_process MAX_PIXELS LONGEST_PX DECODE_S PATH      # PATH "": pictures
"""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from videomamba_depth.serving.messages import LENGTH, message
from videomamba_depth.serving.uploads import read_picture, upload_frames
from videomamba_depth.utils.errors import UserError

Watch = Callable[[], AbstractContextManager[None]]


def main(max_pixels: int, longest_px: int, decode_s: float, path: str) -> None:
    """Write a message per frame, and one that ends them or says what is wrong."""
    watch = partial(_end_after, decode_s)
    frames = _video(Path(path), max_pixels, watch) if path else _camera(max_pixels, watch)
    try:
        for rgb, time_s in frames:
            fitted = _fit(rgb, longest_px)
            about = {"shape": fitted.shape, "sent_size": rgb.shape[:2], "time_s": time_s}
            _write(message(about, fitted.tobytes()))
        _write(message({}))
    except UserError as error:
        _write(message({"error": str(error)}))


@contextmanager
def _end_after(decode_s: float) -> Iterator[None]:
    """End the process if what is inside takes longer, wherever it is, also in C."""
    faulthandler.dump_traceback_later(decode_s, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def _camera(max_pixels: int, watch: Watch) -> Iterator[tuple[np.ndarray, float]]:
    while head := sys.stdin.buffer.read(LENGTH.size):
        data = sys.stdin.buffer.read(LENGTH.unpack(head)[0])
        with watch():
            rgb = read_picture(data, max_pixels)
        yield rgb, 0.0


def _video(path: Path, max_pixels: int, watch: Watch) -> Iterator[tuple[np.ndarray, float]]:
    frames = upload_frames(path, max_pixels)
    while True:
        with watch():
            frame = next(frames, None)
        if frame is None:
            return
        yield frame.rgb, frame.timestamp_s


def _fit(rgb: np.ndarray, longest_px: int) -> np.ndarray:
    height, width = rgb.shape[:2]
    scale = longest_px / max(height, width)
    if scale >= 1:
        return rgb
    return cv2.resize(rgb, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
