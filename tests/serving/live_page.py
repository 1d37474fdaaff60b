"""The page on a real socket of this machine, with a model whose steps a test can hold."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from videomamba_depth.serving.app import build_app
from videomamba_depth.serving.server import PageServer, listen, server_config
from videomamba_depth.serving.settings import ServeSettings
from videomamba_depth.utils.depth_kind import DepthKind


class StandIn:
    """Stands in for `DepthStream`: noise as depth, and a gate that every step waits at."""

    depth_kind = DepthKind.RELATIVE
    reset_reasons = ("",)

    def __init__(self, gate: threading.Event, steps: list[int]) -> None:
        self._gate, self._steps = gate, steps

    def step(self, rgb: np.ndarray, _: float) -> np.ndarray:
        self._steps.append(len(self._steps))
        assert self._gate.wait(60)
        return np.random.default_rng(len(self._steps)).random(rgb.shape[:2], np.float32)

    def model_resolution(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def reset(self) -> None:
        """There is nothing to reset."""


class LivePage:
    """A page that is served, and clients of it that know no manners."""

    def __init__(self, server: Any, port: int) -> None:
        self.server, self.port = server, port
        self.gate, self.steps = threading.Event(), []

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(60)
        client.connect(("127.0.0.1", self.port))
        return client

    def send(self, head: str, body: bytes = b"", **kwargs: Any) -> socket.socket:
        """Send a request; `head` without the empty line."""
        client = self.connect(**kwargs)
        client.sendall(head.encode("latin-1") + b"\r\n\r\n" + body)
        return client

    def post_video(self, data: bytes, **kwargs: Any) -> socket.socket:
        head = f"POST /api/video HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}"
        return self.send(head, data, **kwargs)

    def status(self, head: str, body: bytes = b"") -> int:
        """Return the status of the answer to a request."""
        with self.send(head, body) as client:
            return status_of(client)

    def open_camera(self, **kwargs: Any) -> socket.socket:
        key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
        head = f"GET /api/camera HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{key}"
        client = self.send(head, **kwargs)
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += client.recv(1)
        assert answer.startswith(b"HTTP/1.1 101"), answer
        return client


def status_of(client: socket.socket) -> int:
    """Return the status that an HTTP answer begins with; 0 for none."""
    answer = b""
    with contextlib.suppress(OSError):
        while len(answer) < 12 and (data := client.recv(12 - len(answer))):
            answer += data
    return int(answer[9:12] or 0)


def frame_bytes(data: bytes, opcode: int = 2, fin: bool = True) -> bytes:
    """Return a WebSocket frame of a client."""
    mask = os.urandom(4)
    head = bytes([opcode | (128 if fin else 0)])
    if len(data) < 126:
        head += bytes([128 | len(data)])
    elif len(data) < 65536:
        head += bytes([128 | 126]) + struct.pack(">H", len(data))
    else:
        head += bytes([128 | 127]) + struct.pack(">Q", len(data))
    masked = np.frombuffer(data, np.uint8) ^ np.resize(np.frombuffer(mask, np.uint8), len(data))
    return head + mask + masked.tobytes()


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Look again and again."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


@contextlib.contextmanager
def live_page(new_stream: Callable[[], Any] | None = None, **limits: Any) -> Iterator[LivePage]:
    """Serve a page, by default with `StandIn` streams, in a thread; stops it at the end."""
    settings = ServeSettings(**limits)
    with listen("127.0.0.1", 0) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        page = LivePage(None, listener.getsockname()[1])
        app = build_app(new_stream or (lambda: StandIn(page.gate, page.steps)), settings)
        page.server = PageServer(server_config(app, settings))
        thread = threading.Thread(target=page.server.run, args=([listener],))
        thread.start()
        wait_until(lambda: page.server.started)
        try:
            yield page
        finally:
            page.server.should_exit = True
            thread.join(30)
            page.gate.set()
            assert not thread.is_alive()
