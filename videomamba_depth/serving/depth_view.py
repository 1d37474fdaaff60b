"""One video or camera on the page: frames in, messages with pictures out."""

from __future__ import annotations

import json
import struct
import time
from typing import Any

import cv2
import numpy as np

from videomamba_depth.serving.turns import Turns
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.color import Colouriser, ColourRange, nearness

_JPEG_QUALITY = 85


class DepthView:
    """The stream, the colour range and the frame count of one connection.

    Args:
        stream: used by nobody else; its model may be shared.
        turns: where the model works; streams that share a model take turns.
        longest_px: frames are scaled down to this long side.
    """

    def __init__(self, stream: DepthStream, turns: Turns, colour_map: str, longest_px: int) -> None:
        self._stream, self._turns, self._longest_px = stream, turns, longest_px
        self._range, self._colouriser = ColourRange(), Colouriser(colour_map)
        self._size: tuple[int, ...] = ()
        self.num_frames = 0

    async def show(self, rgb: np.ndarray, timestamp_s: float, *, with_frame: bool) -> bytes:
        """Return the `message` of the next frame, uint8 `[H, W, 3]`; one of another size starts afresh.

        Args:
            with_frame: put the frame itself behind the depth, for a page that has not got it.

        Raises:
            UserError: the model would see too many pixels, see `model_input_size`.
        """
        return await self._turns.run(self._show, rgb, timestamp_s, with_frame, time.perf_counter())

    def _show(self, rgb: np.ndarray, timestamp_s: float, with_frame: bool, start_s: float) -> bytes:
        rgb = _fit(rgb, self._longest_px)
        if self._size not in ((), rgb.shape):
            self._stream.reset()
        self._size = rgb.shape
        turn_s = time.perf_counter()
        depth = self._stream.step(rgb, timestamp_s)
        done_s = time.perf_counter()
        reset = self._stream.reset_reasons[0]
        near = nearness(depth, self._stream.depth_kind)
        if reset:
            self._range.reset()
        low, high = self._range.update(near, timestamp_s)
        pictures = [_jpeg(self._colouriser(near, (low, high)))] + ([_jpeg(rgb)] if with_frame else [])
        about = {
            "frame": self.num_frames,
            "time_s": round(timestamp_s, 4),
            "size": [rgb.shape[1], rgb.shape[0]],
            "reset": reset,
            "near": [float(f"{low:.4g}"), float(f"{high:.4g}")],
            "model_ms": round(1000 * (done_s - turn_s), 1),
            "server_ms": round(1000 * (time.perf_counter() - start_s), 1),
        }
        self.num_frames += 1
        return message(about, *pictures)


def message(about: dict[str, Any], *pictures: bytes) -> bytes:
    """Return bytes: length of the JSON (uint32, little-endian), JSON with the lengths of the pictures, the pictures."""
    head = json.dumps({**about, "pictures": [len(p) for p in pictures]}).encode()
    return b"".join([struct.pack("<I", len(head)), head, *pictures])


def _fit(rgb: np.ndarray, longest_px: int) -> np.ndarray:
    height, width = rgb.shape[:2]
    scale = longest_px / max(height, width)
    if scale >= 1:
        return rgb
    return cv2.resize(rgb, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)


def _jpeg(rgb: np.ndarray) -> bytes:
    picture = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
