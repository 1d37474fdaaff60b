"""A network camera for the tests: multipart MJPEG over HTTP, frames numbered by the clock, that can be cut off."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from contextlib import suppress
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
from media import numbered_frame


class MjpegServer:
    """Serve `http://127.0.0.1:PORT/camera.mjpg`; frame n comes n / `fps` seconds after the server was made.

    Args:
        size: (width, height) px.
        cycle: number of different pictures.
    """

    def __init__(self, fps: float = 50.0, size: tuple[int, int] = (64, 48), cycle: int = 256) -> None:
        self.fps, self._size, self._cycle, self._start_s = fps, size, cycle, time.monotonic()
        self._server: ThreadingHTTPServer | None = None
        self._connections: set[socket.socket] = set()
        self.port = 0
        self.num_connections = 0
        self.start()
        self.url = f"http://127.0.0.1:{self.port}/camera.mjpg"

    def start(self) -> None:
        """Listen, at the same port as before."""
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera._connections.add(self.connection)
                camera.num_connections += 1
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                try:
                    camera._deliver(self.wfile)
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *_: object) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def cut(self) -> None:
        """Drop every connection and accept none."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            with suppress(OSError):  # the other side was faster
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def _deliver(self, file: Any) -> None:
        for number in itertools.count(round((time.monotonic() - self._start_s) * self.fps)):
            time.sleep(max(0.0, self._start_s + number / self.fps - time.monotonic()))
            data = _jpeg(number % self._cycle, *self._size)
            file.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data))
            file.write(data + b"\r\n")


@lru_cache(256)
def _jpeg(number: int, width: int, height: int) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(numbered_frame(number, width, height), cv2.COLOR_RGB2BGR))[1].tobytes()
