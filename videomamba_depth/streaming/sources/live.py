"""Sources that do not wait: cameras, and the newest frame of whatever runs ahead of the model."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any, BinaryIO

import cv2
import numpy as np

from videomamba_depth.data.video.reader import Frame, VideoReadError
from videomamba_depth.streaming.depth_frame import LiveLosses
from videomamba_depth.streaming.sources.files import FrameSource

ARRIVAL_CLOCK = Fraction(1, 90_000)
"""Seconds per unit of the pts that live sources stamp frames with."""


class CameraSource:
    """A camera by its number; frames are stamped with the time of their arrival, the first with 0.

    Raises:
        UserError: no such camera, or it gives no frame.
    """

    name = "camera"
    num_frames: int | None = None
    time_base = ARRIVAL_CLOCK

    def __init__(self, number: int, max_frames: int | None = None) -> None:
        self._camera = open_camera(number)
        self._number, self._max_frames = number, max_frames
        self.name = f"camera{number}"
        self.num_frames = max_frames
        self.fps = float(self._camera.get(cv2.CAP_PROP_FPS)) or 30.0

    def __iter__(self) -> Iterator[Frame]:
        start_s, last_pts = None, -1
        try:
            for index in itertools.islice(itertools.count(), self._max_frames):
                is_read, bgr = self._camera.read()
                if not is_read:
                    raise VideoReadError(f"camera {self._number} stopped delivering after {index} frames")
                now_s = time.monotonic()
                start_s = now_s if start_s is None else start_s
                last_pts = max(last_pts + 1, round((now_s - start_s) / ARRIVAL_CLOCK))
                yield Frame(index, last_pts, ARRIVAL_CLOCK, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
        finally:
            self._camera.release()


class RawFrameSource:
    """Raw RGB frames (8 bit, row by row, nothing between them) from a pipe: `ffmpeg … -f rawvideo -pix_fmt rgb24 -`.

    Args:
        file: usually `sys.stdin.buffer`.
        size: (width, height) px.
        fps: frames per second; default 30.
    """

    def __init__(
        self, file: BinaryIO, size: tuple[int, int], fps: float | None = None, max_frames: int | None = None
    ) -> None:
        self._file, self._size, self._max_frames = file, size, max_frames
        self.name, self.num_frames = "stdin", max_frames
        self.fps = 30.0 if fps is None else fps
        self.time_base = 1 / Fraction(self.fps).limit_denominator(1001)

    def __iter__(self) -> Iterator[Frame]:
        width, height = self._size
        for index in itertools.islice(itertools.count(), self._max_frames):
            data = self._file.read(width * height * 3)
            if len(data) < width * height * 3:
                if data or index == 0:
                    raise VideoReadError(
                        f"the raw input ended within frame {index}: {len(data)} of {width * height * 3} bytes;"
                        " is raw_input_size right?"
                    )
                return
            yield Frame(index, index, self.time_base, np.frombuffer(data, np.uint8).reshape(height, width, 3))


class LatestFrames:
    """The newest frame of a source, whenever one is asked for; those in between are dropped and counted.

    A thread reads the source as fast as it delivers and keeps one frame: there is never a backlog, whatever the
    speed of the reader. What the source raises is raised after its last frame.
    """

    def __init__(self, source: FrameSource) -> None:
        self._source = source
        self.name, self.num_frames = source.name, source.num_frames
        self.fps, self.time_base = source.fps, source.time_base
        self.num_dropped = 0
        self._lost = LiveLosses()  # since the frame that was taken last
        self._news = threading.Condition()
        self._frame: Frame | None = None
        self._error: BaseException | None = None
        self._ended = self._left = False

    def __iter__(self) -> Iterator[Frame]:
        reader = threading.Thread(target=self._read, daemon=True, name="live reader")
        reader.start()
        try:
            while (frame := self._take()) is not None:
                yield frame
        finally:
            with self._news:
                self._left = True
        if self._error is not None:
            raise self._error

    def _take(self) -> Frame | None:
        with self._news:
            self._news.wait_for(lambda: self._frame is not None or self._ended)
            frame, self._frame = self._frame, None
            lost, self._lost = self._lost, LiveLosses()
            return None if frame is None else replace(frame, dropped=lost.dropped_frames, outage_s=lost.outage_s)

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for frame in self._source:
                with self._news:
                    if self._left:
                        break
                    self._lost.add(frame)
                    if self._frame is not None:
                        self._lost.dropped_frames += 1
                        self.num_dropped += 1
                    self._frame = frame
                    self._news.notify()
        except BaseException as caught:
            error = caught
        with self._news:
            self._error, self._ended = error, True
            self._news.notify()


def open_camera(number: int) -> Any:
    """Return an opened `cv2.VideoCapture`.

    Raises:
        UserError: no such camera.
    """
    level = opencv_log().getLogLevel()
    opencv_log().setLogLevel(0)  # silent: OpenCV writes a line per backend that it tries
    try:
        camera = cv2.VideoCapture(number)
        if not camera.isOpened() or not camera.read()[0]:
            raise VideoReadError(
                f"cannot open camera {number}; list the cameras of this machine and give another number"
            )
    finally:
        opencv_log().setLogLevel(level)
    return camera


def opencv_log() -> Any:
    """Return what holds OpenCV's `getLogLevel` and `setLogLevel`: cv2 itself before version 5."""
    return cv2 if hasattr(cv2, "getLogLevel") else cv2.utils.logging
