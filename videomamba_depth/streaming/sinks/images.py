"""Depth as one picture file per frame: 16-bit PNG or EXR."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from videomamba_depth.streaming.depth_frame import DepthFrame, to_storage
from videomamba_depth.utils.atomic import flush_folder, write_bytes, write_json
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError

_HEADROOM = 2.0  # how far above the first frame's largest value relative depth may go before the scale changes


class NumberedFiles:
    """One file per frame in a folder, called by the frame's number: `000000.png`."""

    suffix = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written = array("q")  # frames
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, index: int, data: bytes) -> None:
        """Write the file of a frame."""
        write_bytes(self._path(index), data, durable=False)
        self._written.append(index)

    def close(self) -> None:
        """Flush the files to the disk."""
        flush_folder(self.folder)

    def files(self) -> Iterable[Path]:
        """Return the files that were written."""
        return map(self._path, self._written)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}{self.suffix}"


class Png16Sink(NumberedFiles):
    """One 16-bit gray PNG per frame, `000000.png`, and `scale.json`: depth = value · scale.

    The scale is one number for the stream: the largest depth of metric checkpoints over 65535; for relative depth,
    twice the first frame's largest value over 65535. A frame that goes beyond doubles it, for itself and all that
    follow. `scale.json` lists each scale with the first frame that it holds for.

    Args:
        max_depth_m: largest depth that a metric checkpoint gives.
    """

    suffix = ".png"

    def __init__(self, folder: Path, kind: DepthKind, max_depth_m: float | None = None) -> None:
        super().__init__(folder)
        self._kind = kind
        self._scales: list[tuple[int, float]] = []
        self._scale = 0.0 if max_depth_m is None else max_depth_m / 65535

    def write(self, frame: DepthFrame) -> None:
        """Write one picture."""
        depth = np.nan_to_num(frame.depth, nan=0.0, posinf=0.0, neginf=0.0)
        self._fit_scale(float(depth.max()), frame.index)
        value = np.clip(np.rint(depth / np.float32(self._scale)), 0, 65535).astype(np.uint16)
        _, data = cv2.imencode(".png", value, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        self.save(frame.index, data.tobytes())

    def files(self) -> Iterable[Path]:
        """Return the files that were written."""
        return [self.folder / "scale.json", *super().files()]

    def _fit_scale(self, largest: float, index: int) -> None:
        scale = self._scale
        if scale == 0.0 and largest > 0.0:
            scale = _HEADROOM * largest / 65535
        while largest > 65535 * scale > 0:
            scale *= 2
        scale = scale or 1.0 / 65535  # an all-zero first frame
        if not self._scales or scale != self._scales[-1][1]:
            self._scales.append((index, scale))
            formula = "depth = value * scale"
            entries = [{"first_frame": first, "scale": value} for first, value in self._scales]
            about = {"depth_kind": self._kind.value, "formula": formula, "scales": entries}
            write_json(self.folder / "scale.json", about)
        self._scale = scale


def require_exr() -> None:
    """Raise UserError where this build of PyAV cannot write EXR."""
    if "exr" not in av.codecs_available:
        raise UserError("this build of PyAV cannot write EXR; install the wheel (pip install av) or use raw=npz")


class ExrSink(NumberedFiles):
    """One EXR per frame, `000000.exr`: a single channel `Y` of depth in the unit of its kind, ZIP-compressed.

    Args:
        dtype: "float16" (EXR half) or "float32".

    Raises:
        UserError: this build of PyAV cannot write EXR.
    """

    suffix = ".exr"

    def __init__(self, folder: Path, kind: DepthKind, dtype: str = "float32") -> None:
        require_exr()
        super().__init__(folder)
        self._half = dtype == "float16"
        self._encoder: Any = None
        write_json(folder / "about.json", {"depth_kind": kind.value, "channel": "Y"})

    def write(self, frame: DepthFrame) -> None:
        """Write one picture."""
        encoder = self._open(frame.depth) if self._encoder is None else self._encoder
        # FFmpeg truncates to half; what is rounded already stays as it is.
        depth = to_storage(frame.depth, np.dtype(np.float16)).astype(np.float32) if self._half else frame.depth
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(depth), format="grayf32le")
        picture.pts, picture.time_base = frame.index, encoder.time_base
        self.save(frame.index, b"".join(bytes(p) for p in encoder.encode(picture)))

    def files(self) -> Iterable[Path]:
        """Return the files that were written."""
        return [self.folder / "about.json", *super().files()]

    def _open(self, depth: np.ndarray) -> Any:
        encoder: Any = av.CodecContext.create("exr", "w")
        encoder.height, encoder.width = depth.shape
        encoder.pix_fmt, encoder.time_base = "grayf32le", Fraction(1, 30)
        encoder.options = {"compression": "zip16", "format": "half" if self._half else "float"}
        self._encoder = encoder
        return encoder
