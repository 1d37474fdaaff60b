"""The page under hostile clients: seeded sessions against the command itself, and a good client in between.

    pytest -m slow tests/campaigns/test_page_sessions.py -s        # prints the table

No session may stop the page from serving the next good client, keep a place, leave a file, a descriptor or a thread, or
put a traceback into the log. VIDEOMAMBA_CAMPAIGN_SEED chooses other sessions.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import ROOT
from media import write_truncated, write_video

sys.path.insert(0, str(ROOT / "tests" / "serving"))
pytest.importorskip("uvicorn", reason="the page needs the extra [serve]")
from hostile import scans_jpeg, scans_video
from live_page import LivePage, frame_bytes, status_of

pytestmark = pytest.mark.slow

SESSIONS, AT_ONCE, PLACES, IDLE_S = 300, 6, 3, 2.0
SEED = int(os.environ.get("VIDEOMAMBA_CAMPAIGN_SEED", "0"))
HEAD = "Host: 127.0.0.1\r\n"
UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
)


class Files:
    """Videos and pictures, good ones and others."""

    def __init__(self, folder: Path) -> None:
        self.good = write_video(folder / "good.mp4", 6, width=96, height=64).read_bytes()
        self.long = write_video(folder / "long.mp4", 150, width=160, height=120).read_bytes()
        narrow = write_video(folder / "narrow.mkv", 3, width=2000, height=4, codec="ffv1").read_bytes()
        tall = write_video(folder / "tall.mkv", 3, width=16, height=1600, codec="ffv1").read_bytes()
        large = write_video(folder / "large.mkv", 1, width=4096, height=3072, codec="mjpeg", pix_fmt="yuvj420p")
        cut = write_truncated(folder / "cut.mp4").read_bytes()
        gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + bytes(6)
        gif += b"," + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\x02\x02\x44\x01\0;"
        png = cv2.imencode(".png", np.zeros((8000, 8000), np.uint8))[1].tobytes()
        scans = scans_video(folder / "scans.mkv", 5000).read_bytes()
        self.videos = [
            scans,
            narrow,
            tall,
            large.read_bytes(),
            cut,
            gif,
            png,
            b"",
            b"RIFF" + bytes(64),
            self.good[:200],
        ]
        ok = self.picture(96, 64)
        start = ok.index(b"\xff\xc0")
        bomb = ok[: start + 5] + struct.pack(">HH", 60000, 60000) + ok[start + 9 :]
        self.ok = ok
        self.pictures = [
            scans_jpeg(101),
            scans_jpeg(100),
            self.picture(2000, 4),
            self.picture(1, 900),
            bomb,
            ok[: len(ok) // 2],
            png,
            b"",
            b"\0" * 5000,
        ]

    @staticmethod
    def picture(width: int, height: int) -> bytes:
        rgb = np.random.default_rng(width).integers(0, 255, (height, width, 3), np.uint8)
        return cv2.imencode(".jpg", rgb)[1].tobytes()


class Attack:
    """One session; returns what came of it in a word."""

    def __init__(self, page: LivePage, files: Files, seed: int) -> None:
        self.page, self.files, self.rng = page, files, random.Random(seed)

    def run(self, kind: str) -> str:
        try:
            outcome = getattr(self, kind)()
        except OSError as error:
            return type(error).__name__
        return str(outcome)

    def linger(self) -> None:
        time.sleep(self.rng.uniform(0, 0.5))

    def leave(self, client: socket.socket) -> None:
        """Go politely, or with a reset."""
        if self.rng.random() < 0.5:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()

    def foreign_host(self) -> int:
        parts = [
            "127",
            "localhost",
            "[",
            "::1",
            "]",
            ".",
            ":",
            "evil.com",
            "80",
            "0x7f",
            " ",
            "@",
            "%",
            "\xe9",
            "/",
            "\t",
        ]
        host = "".join(self.rng.choices(parts, k=self.rng.randint(1, 5)))
        if re.fullmatch(r"(localhost|\[::1\])(:(80)*)?", host):
            host += ".evil.com"
        line = self.rng.choice([f"Host: {host}", f"Host: 127.0.0.1\r\nHost: {host}", "X: y"])
        target = self.rng.choice(["GET / HTTP/1.1\r\n", "GET /api/about HTTP/1.1\r\n", "POST /api/video HTTP/1.1\r\n"])
        status = self.page.status(target + line + self.rng.choice(["", "\r\n" + UPGRADE]))
        assert 400 <= status < 500, (line, status)
        return status

    def foreign_origin(self) -> int:
        origin = self.rng.choice(["http://evil.com", "null", "", "http://[::1", "https://127.0.0.1:1", "\xff"])
        line = f"{HEAD}Origin: {origin}"
        target, more = self.rng.choice([("POST /api/video", ""), ("GET /api/camera", "\r\n" + UPGRADE), ("GET /", "")])
        status = self.page.status(f"{target} HTTP/1.1\r\n{line}{more}")
        assert status in (400, 403), (origin, status)
        return status

    def junk(self) -> int:
        with self.page.connect() as client:
            client.settimeout(3 * IDLE_S)
            start = self.rng.choice(
                [b"", b"GET / HTTP/1.1\r\n", b"POST /api/video HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"\x16\x03"]
            )
            client.sendall(start + self.rng.randbytes(self.rng.randint(1, 3000)))
            return status_of(client)

    def strange_request(self) -> int:
        head = self.rng.choice(
            [
                f"POST /api/video HTTP/1.1\r\n{HEAD}Content-Length: -5",
                f"POST /api/video HTTP/1.1\r\n{HEAD}Content-Length: 9" + "9" * 30,
                f"POST /api/video HTTP/1.1\r\n{HEAD}Content-Length: 5\r\nContent-Length: 6",
                f"POST /api/video HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\n\r\nzz",
                f"GET /static/../app.py HTTP/1.1\r\n{HEAD}",
                f"GET /static/%2e%2e%2fapp.py HTTP/1.1\r\n{HEAD}",
                f"GET /static/%00 HTTP/1.1\r\n{HEAD}",
                f"HEAD / HTTP/1.1\r\n{HEAD}",
                f"DELETE /api/video HTTP/1.1\r\n{HEAD}",
                f"GET /api/camera HTTP/1.1\r\n{HEAD}",
                f"OPTIONS * HTTP/1.1\r\n{HEAD}",
                f"GET / HTTP/1.1\r\n{HEAD}X: {'a' * 70000}",
                f"GET /{'a' * 9000} HTTP/1.1\r\n{HEAD}",
                f"GET / HTTP/9.9\r\n{HEAD}",
                f"GET /api/about HTTP/1.1\r\n{HEAD}Upgrade: h2c\r\nConnection: Upgrade",
                f"GET // HTTP/1.1\r\n{HEAD}",
                f"GET /api/about/ HTTP/1.1\r\n{HEAD}",
                f"GET /static HTTP/1.1\r\n{HEAD}",
            ]
        )
        with self.page.send(head) as client:
            client.settimeout(3 * IDLE_S)
            status = status_of(client)
        assert status != 500, head
        return status

    def stalled_upload(self) -> int:
        head = f"POST /api/video HTTP/1.1\r\n{HEAD}Content-Length: {len(self.files.good) + 1000}"
        with self.page.send(head, self.files.good[: self.rng.randint(0, 1000)]) as client:
            if self.rng.random() < 0.7:
                self.linger()
                self.leave(client)
                return 0
            client.settimeout(20)
            return status_of(client)

    def early_leaver(self) -> str:
        client = self.page.post_video(self.files.long, receive_buffer=4096)
        self.linger()
        with contextlib.suppress(OSError):
            client.settimeout(1)
            for _ in range(self.rng.randint(0, 3)):
                client.recv(2000)
        self.leave(client)
        return "left"

    def never_reads(self) -> str:
        with self.page.post_video(self.files.long, receive_buffer=4096) as client:
            time.sleep(self.rng.uniform(0, 2 * IDLE_S))
            self.leave(client)
        return "left"

    def hostile_video(self) -> int:
        data = bytearray(self.rng.choice([*self.files.videos, self.files.good, self.files.good]))
        for _ in range(self.rng.randint(0, 30) if len(data) else 0):
            data[self.rng.randrange(len(data))] = self.rng.randrange(256)
        with self.page.post_video(bytes(data)) as client:
            status = status_of(client)
            assert status in (200, 400, 413, 415, 503), status
            with contextlib.suppress(OSError):
                while client.recv(65536):
                    pass
        return status

    def camera(self) -> socket.socket:
        client = self.page.open_camera()
        client.settimeout(4 * IDLE_S)
        return client

    def hostile_camera(self) -> int:
        with self.camera() as client:
            for _ in range(self.rng.randint(0, 2)):
                client.sendall(frame_bytes(self.files.ok))
                client.recv(65536)
            client.sendall(frame_bytes(self.rng.choice(self.files.pictures)))
            return len(client.recv(65536))

    def camera_junk(self) -> str:
        ok, rng = self.files.ok, self.rng
        frames: list[bytes] = [
            frame_bytes(b"hello", 1),
            frame_bytes(b"\xff\xfe", 1),
            frame_bytes(b"", 0),
            frame_bytes(b"x", 3),
            frame_bytes(b"x", 11),
            frame_bytes(ok[:50], fin=False) + frame_bytes(b"{}", 1),
            bytes([130, 5]) + b"naked",
            bytes([130, 255]) + b"\xff" * 12,
            bytes([0xC2, 0x85]) + rng.randbytes(9),
            frame_bytes(b"", 9) * 300,
            frame_bytes(b"a" * 200, 9),
            frame_bytes(b"\x03", 8),
            frame_bytes(struct.pack(">H", 5000), 8),
            frame_bytes(ok) * 20,
            rng.randbytes(500),
            frame_bytes(ok, fin=False) * 50,
        ]
        with self.camera() as client:
            client.sendall(rng.choice(frames))
            client.recv(65536)
            self.linger()
            self.leave(client)
        return "sent"

    def camera_leaver(self) -> str:
        client = self.camera()
        for _ in range(self.rng.randint(0, 4)):
            client.sendall(frame_bytes(self.files.ok))
        if self.rng.random() < 0.5:
            self.linger()
        self.leave(client)
        return "left"

    def silent(self) -> str:
        with self.camera() if self.rng.random() < 0.5 else self.page.connect() as client:
            client.settimeout(4 * IDLE_S)
            while client.recv(4096):
                pass
        return "cut off"

    def many_at_once(self) -> str:
        clients = [self.page.connect() for _ in range(self.rng.randint(2, 8))]
        for client in clients:
            client.sendall(f"GET /api/about HTTP/1.1\r\n{HEAD}\r\n".encode() * self.rng.randint(1, 20))
        for client in clients:
            self.leave(client)
        return "left"


KINDS = [
    "foreign_host",
    "foreign_host",
    "foreign_origin",
    "junk",
    "strange_request",
    "strange_request",
    "stalled_upload",
    "early_leaver",
    "early_leaver",
    "never_reads",
    "hostile_video",
    "hostile_video",
    "hostile_camera",
    "camera_junk",
    "camera_junk",
    "camera_leaver",
    "silent",
    "many_at_once",
]


def retry(ask: Callable[[], bool], timeout_s: float = 60) -> bool:
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError):
            if ask():
                return True
        time.sleep(0.2)
    return False


def good_video(page: LivePage, files: Files) -> bool:
    """Tell whether a file comes back whole; False while all places are taken."""
    with page.post_video(files.good) as client:
        if status_of(client) != 200:
            return False
        body = b""
        while not body.endswith(b"0\r\n\r\n") and (data := client.recv(65536)):
            body += data
    return b'"end": true, "frames": 6' in body


def all_places_are_free(page: LivePage, files: Files) -> bool:
    with contextlib.ExitStack() as stack:
        cameras = [stack.enter_context(page.open_camera()) for _ in range(PLACES)]
        for camera in cameras:
            camera.sendall(frame_bytes(files.ok))
        return all(b'"model_ms"' in camera.recv(65536) for camera in cameras)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LivePage, subprocess.Popen, Path, Path]]:
    folder = tmp_path_factory.mktemp("served")
    log, temporary = folder / "log", folder / "temporary"
    temporary.mkdir()
    options = [
        "checkpoint=teacher:embedded",
        "port=0",
        "device=cpu",
        "threads=1",
        "input_size=56",
        "longest_px=160",
        "upload_s=5",
        "decode_s=2",
        "max_upload_mb=4",
        f"idle_s={IDLE_S}",
        f"max_streams={PLACES}",
    ]
    with log.open("w") as stderr:
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "serve.py"), *options],
            stderr=stderr,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
    try:
        assert retry(lambda: "open http" in log.read_text(), 120), log.read_text()
        port = re.search(r"open http://127\.0\.0\.1:(\d+)", log.read_text())
        assert port is not None
        yield LivePage(None, int(port[1])), server, log, temporary
    finally:
        server.kill()
        server.wait()


def test_the_page_outlives_hostile_sessions(served, tmp_path: Path) -> None:
    page, server, log, temporary = served
    files = Files(tmp_path)
    assert retry(lambda: all_places_are_free(page, files))
    before = descriptors(server.pid)
    rng = random.Random(SEED)
    plan = [(rng.choice(KINDS), rng.randrange(2**32)) for _ in range(SESSIONS)]
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    lock, started_s, served_between = threading.Lock(), time.monotonic(), 0

    def session(job: tuple[str, int]) -> None:
        outcome = Attack(page, files, job[1]).run(job[0])
        with lock:
            outcomes[job[0]][outcome] += 1

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for first in range(0, SESSIONS, 30):
            list(pool.map(session, plan[first : first + 30], timeout=300))
            assert server.poll() is None
            assert retry(lambda: good_video(page, files)), f"after session {first + 30}: {log.read_text()[-3000:]}"
            served_between += 1
    passed_s = time.monotonic() - started_s
    print(f"\n{SESSIONS} sessions, seed {SEED}, {passed_s:.0f} s, {served_between} good clients in between")
    for kind in sorted(outcomes):
        counts = ", ".join(f"{word} {count}" for word, count in outcomes[kind].most_common())
        print(f"  {kind:16} {sum(outcomes[kind].values()):4}  {counts}")
    assert retry(lambda: all_places_are_free(page, files)), log.read_text()[-3000:]
    assert retry(lambda: descriptors(server.pid) <= before + 2), (before, descriptors(server.pid))
    assert list(temporary.iterdir()) == []
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 130
    text = log.read_text()
    assert "Traceback" not in text, text[-6000:]
    assert "Exception" not in text, text[-6000:]
    lines = collections.Counter(re.sub(r"^\S+ ", "", line) for line in text.splitlines())
    print("  log: " + "; ".join(f"{count} x {line}" for line, count in lines.most_common(8)))
