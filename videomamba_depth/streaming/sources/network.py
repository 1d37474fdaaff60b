"""Network cameras: connections that break are opened again."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from urllib.parse import urlparse

import cv2

from videomamba_depth.data.video.decode import without_password
from videomamba_depth.data.video.reader import Frame, VideoReadError, iter_stream
from videomamba_depth.streaming.sources.files import name_of
from videomamba_depth.streaming.sources.live import ARRIVAL_CLOCK

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 2.0  # between attempts to connect; doubles


class NetworkCamera:
    """A live stream at a URL that FFmpeg opens; a connection that ends or falls silent is opened anew.

    Frames are stamped with the time of their arrival, as those of a camera: many a network camera sends no timestamps,
    or starts them again with every connection. Frames of another size than the first one's are scaled to it.

    Args:
        reconnect_s: give up when no frame has come for that long; 0: end with the first connection.
        silence_s: a connection that delivers nothing for that long counts as lost.

    Raises:
        UserError: the first connection fails, or holds no frame.
    """

    num_frames: int | None = None
    time_base = ARRIVAL_CLOCK
    fps = 30.0

    def __init__(
        self, url: str, max_frames: int | None = None, *, reconnect_s: float = 60.0, silence_s: float = 5.0
    ) -> None:
        self._url, self._max_frames = url, max_frames
        self._reconnect_s, self._silence_s = reconnect_s, silence_s
        self._shown = without_password(url)
        self.name = name_of(urlparse(url).path) or "stream"
        self._connection = self._connect()

    def __iter__(self) -> Iterator[Frame]:
        return itertools.islice(self._all_frames(), self._max_frames)

    def _all_frames(self) -> Iterator[Frame]:
        connection: Iterator[Frame] | None = self._connection
        index, last_pts, outage_s, size = 0, -1, 0.0, (0, 0)
        start_s = now_s = time.monotonic()
        while connection is not None:
            for frame in connection:
                now_s = time.monotonic()
                last_pts = max(last_pts + 1, round((now_s - start_s) / ARRIVAL_CLOCK))
                size = size if index else frame.rgb.shape[1::-1]
                rgb = frame.rgb if frame.rgb.shape[1::-1] == size else cv2.resize(frame.rgb, size)
                yield Frame(index, last_pts, ARRIVAL_CLOCK, rgb, outage_s=outage_s)
                index, outage_s = index + 1, 0.0
            connection = self._reconnect(now_s)
            outage_s = time.monotonic() - now_s

    def _connect(self) -> Iterator[Frame]:
        """Open the stream and wait for its first frame."""
        options = {"rtsp_transport": "tcp"} if self._url.startswith("rtsp") else {}
        frames = iter_stream(self._url, options=options, timeout_s=self._silence_s)
        return itertools.chain([next(frames)], frames)

    def _reconnect(self, last_s: float) -> Iterator[Frame] | None:
        """Return a new connection; None where none is wanted.

        Raises:
            VideoReadError: none came about in time.
        """
        if self._reconnect_s == 0:
            return None
        log.warning("%s: the connection is lost; trying again for %g s", self._shown, self._reconnect_s)
        pause_s = _FIRST_PAUSE_S
        while time.monotonic() - last_s < self._reconnect_s:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            try:
                connection = self._connect()
            except VideoReadError as error:
                log.debug("%s", error)
                continue
            log.info("%s: back after %.1f s", self._shown, time.monotonic() - last_s)
            return connection
        raise VideoReadError(f"{self._shown} has not come back for {self._reconnect_s:g} s (reconnect_s)")
