"""One video or camera on the page: frames in, messages with pictures out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import cv2
import numpy as np

from videomamba_depth.serving.decoder import Picture
from videomamba_depth.serving.messages import message
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.color import ColorSettings, DepthColors
from videomamba_depth.utils.errors import UserError

_JPEG_QUALITY = 85

P = ParamSpec("P")
T = TypeVar("T")


class Turns:
    """A thread that takes calls in the order in which they come.

    A caller that is cancelled is gone at once: its call leaves the queue, or, if it runs already, ends by itself and
    its result is dropped. So there is never more than one call under way, however many callers come and go.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `function(*args, **kwargs)`, called on the thread."""
        return await asyncio.wrap_future(self._pool.submit(function, *args, **kwargs))

    def close(self) -> None:
        """Take no more calls; one that runs already is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class DepthView:
    """The stream, the colors and the frame count of one connection.

    Args:
        stream: used by nobody else; its model may be shared.
        turns: where the model works; streams that share a model take turns.
    """

    def __init__(self, stream: DepthStream, turns: Turns, colors: ColorSettings) -> None:
        self._stream, self._turns = stream, turns
        self._colors = DepthColors(stream.depth_kind, colors)
        self._size: tuple[int, ...] = ()
        self.num_frames = 0

    async def show(self, picture: Picture, timestamp_s: float, *, with_frame: bool) -> bytes:
        """Return the `message` of the next frame; one of another size resets the stream.

        Args:
            with_frame: put the frame itself after the depth, for a page that has not got it.

        Raises:
            UserError: the model would see too many pixels, see `model_input_size`.
        """
        return await self._turns.run(self._show, picture, timestamp_s, with_frame, time.perf_counter())

    def _show(self, picture: Picture, timestamp_s: float, with_frame: bool, start_s: float) -> bytes:
        rgb = picture.rgb
        self._check_size(picture)
        if self._size not in ((), rgb.shape):
            self._stream.reset()
        self._size = rgb.shape
        turn_s = time.perf_counter()
        depth = self._stream.step(rgb, timestamp_s)
        done_s = time.perf_counter()
        reset = self._stream.reset_reasons[0]
        pictures = [_jpeg(self._colors(depth, timestamp_s, reset=bool(reset)))] + ([_jpeg(rgb)] if with_frame else [])
        low, high = self._colors.bounds
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

    def _check_size(self, picture: Picture) -> None:
        try:
            self._stream.model_resolution(*picture.rgb.shape[:2])
        except UserError:
            self._stream.model_resolution(*picture.sent_size)  # names the size that the client knows
            raise


def _jpeg(rgb: np.ndarray) -> bytes:
    picture = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
