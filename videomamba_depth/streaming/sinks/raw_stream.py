"""Depth as raw numbers down a pipe."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from videomamba_depth.streaming.depth_frame import DepthFrame, to_storage
from videomamba_depth.utils.atomic import disk_error
from videomamba_depth.utils.errors import UserError


class RawStreamSink:
    """Frames `[h, w]` one after the other, row by row, little-endian, nothing between them.

    Args:
        file: usually stdout, unbuffered (a buffer would be flushed once more at exit, into a pipe that may be gone);
            not closed.
        dtype: "float16" or "float32".
    """

    def __init__(self, file: BinaryIO, dtype: str = "float32") -> None:
        self._file, self._dtype, self._num_frames = file, np.dtype(dtype).newbyteorder("<"), 0

    def write(self, frame: DepthFrame) -> None:
        """Send one frame.

        Raises:
            UserError: the reader has gone, or the disk that it writes to is full.
        """
        try:
            rest = memoryview(to_storage(frame.depth, self._dtype).tobytes())
            while rest:
                rest = rest[self._file.write(rest) :]
            self._file.flush()
        except BrokenPipeError as error:
            raise UserError(f"whoever read the depth stopped reading after {self._num_frames} frames") from error
        except OSError as error:
            raise disk_error("the depth to its pipe or file", error) from error
        self._num_frames += 1

    def close(self) -> None:
        """Nothing is left to write."""
