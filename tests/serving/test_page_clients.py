"""The page on a real socket: names under which it is served, and clients that leave, never read, or send nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import anyio
import cv2
import numpy as np
import pytest
from commands import ROOT
from media import write_video
from processes import finish, start

pytest.importorskip("starlette", reason="the page needs the extra [serve]")
pytest.importorskip("uvicorn", reason="the page needs the extra [serve]")
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent))
from hostile import scans_video
from live_page import LivePage, StandIn, frame_bytes, live_page, status_of, wait_until

from videomamba_depth.commands import serve
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.serve_schema import ServeConfig
from videomamba_depth.serving import uploads
from videomamba_depth.serving.app import build_app
from videomamba_depth.serving.same_origin import SameOrigin, is_loopback
from videomamba_depth.serving.settings import ServeSettings
from videomamba_depth.utils.signals import on_stop

ABOUT = "GET /api/about HTTP/1.1\r\n"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 60, width=320, height=240).read_bytes()


def picture() -> bytes:
    return cv2.imencode(".jpg", np.full((240, 320, 3), 99, np.uint8))[1].tobytes()


HOSTS = [
    ("Host: 127.0.0.1", 200), ("Host: 127.0.0.1:8000", 200), ("Host: 127.9.9.9", 200), ("Host: localhost:1", 200),
    ("Host: LOCALHOST", 200), ("Host: [::1]", 200), ("Host: [::1]:80", 200), ("Host: [::ffff:127.0.0.1]", 200),
    ("Host: 127.evil.com", 403), ("Host: 127.0.0.1.evil.com:80", 403), ("Host: localhost.evil.com", 403),
    ("Host: localhost.", 403), ("Host: 127.0.0.1.", 403), ("Host: 2130706433", 403), ("Host: 0x7f.0.0.1", 403),
    ("Host: 0177.0.0.1", 403), ("Host: 127.1", 403), ("Host: 0.0.0.0", 403), ("Host: [::]", 403), ("Host: 127.", 403),
    ("Host: 10.0.0.1", 403), ("Host: [::ffff:10.0.0.1]", 403), ("Host: evil.com", 403),
    ("Host: [::1", 400), ("Host: ::1", 400), ("Host: []", 400), ("Host: [127.0.0.1]", 400), ("Host: [::1%lo]", 400),
    ("Host: 127.0.0.1:x", 400), ("Host: 127.0.0.1:99999", 400), ("Host: a@127.0.0.1", 400), ("Host: 127.0.0.1/", 400),
    ("Host: 127.0.0.1 evil.com", 400), ("Host:", 400), ("X: y", 400), ("Host: \xb9\xb2\xb7.0.0.1", 400),
    ("Host: 127.0.0.1\r\nHost: evil.com", 400), ("Host: evil.com\r\nHost: 127.0.0.1", 400),
]  # fmt: skip


@pytest.fixture(scope="module")
def page():
    with live_page() as page:
        page.gate.set()
        yield page


@pytest.mark.parametrize(("host", "status"), HOSTS)
def test_only_names_of_this_machine_are_served(page, host: str, status: int) -> None:
    assert page.status(ABOUT + host) == status
    upgrade = "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
    key = "\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
    assert page.status(f"GET /api/camera HTTP/1.1\r\n{host}{upgrade}{key}") == (101 if status == 200 else status)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:81", 200), ("HTTP://127.0.0.1:81", 200), ("http://127.0.0.1", 403), ("null", 403), ("", 403),
        ("http://127.evil.com:81", 403), ("http://127.0.0.1:81/x", 403), ("ftp://127.0.0.1:81", 403),
        ("http://a@127.0.0.1:81", 403), ("http://[::1", 403), ("http://127.0.0.1:81\r\nOrigin: http://evil.com", 403),
    ],
)  # fmt: skip
def test_only_the_page_itself_makes_requests(page, origin: str, status: int) -> None:
    assert page.status(f"{ABOUT}Host: 127.0.0.1:81\r\nOrigin: {origin}") == status


def test_a_default_port_may_be_left_out(page) -> None:
    assert page.status(ABOUT + "Host: 127.0.0.1\r\nOrigin: http://127.0.0.1:80") == 200
    assert page.status(ABOUT + "Host: 127.0.0.1:443\r\nOrigin: https://127.0.0.1") == 200


@pytest.mark.parametrize("target", ["http://evil.com/api/about", "http://127.0.0.1/api/about", "*", "evil.com:80"])
def test_targets_other_than_paths_are_refused(page, target: str) -> None:
    assert page.status(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1") == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [("mybox.lan:8000", 200), ("MyBox.lan", 200), ("10.0.0.5", 200), ("[fe80::1]", 200), ("localhost", 200),
     ("evil.com", 403), ("mybox.lan.evil.com", 403), ("10.evil.com", 403), ("[::1", 400)],
)  # fmt: skip
def test_names_on_other_addresses_are_served_if_listed(host: str, status: int) -> None:
    guard = SameOrigin(None, loopback=False, allowed_hosts=["0.0.0.0", "mybox.LAN"])
    refusal = guard._refusal("/", Headers({"host": host}))
    assert (200 if refusal is None else refusal[0]) == status


@pytest.mark.parametrize(
    ("framed_by", "policy"),
    [
        ((), "frame-ancestors 'none'"),
        (("https://a.org", "https://b.org:8"), "frame-ancestors https://a.org https://b.org:8"),
    ],
)
def test_frames_of_other_pages(framed_by: tuple[str, ...], policy: str) -> None:
    guard = SameOrigin(PlainTextResponse("page"), loopback=True, framed_by=framed_by)
    headers = TestClient(guard, base_url="http://127.0.0.1").get("/").headers
    assert headers["content-security-policy"].endswith(policy)


def test_loopback_is_an_address_or_localhost() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "localhost", "Localhost", "::1", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("127.evil.com", "127.", "0.0.0.0", "::", "", "10.0.0.1", "localhost.evil.com")))


def test_a_place_is_free_when_its_client_leaves_in_the_middle_of_a_step(clip: bytes) -> None:
    with live_page(max_streams=1, idle_s=60) as page:
        for leave in ("video", "camera", "video"):
            before = len(page.steps)
            client = page.post_video(clip) if leave == "video" else page.open_camera()
            if leave == "camera":
                client.sendall(frame_bytes(picture()))
            if before == 0:
                wait_until(lambda: len(page.steps) == 1)
            assert page.status(ABOUT + "Host: 127.0.0.1") == 200  # the page answers while the model works
            client.close()
            wait_until(lambda: page.server.config.app.state.page.slots.free == 1)
            assert len(page.steps) == 1  # however many come and go, one step runs
        with page.post_video(clip) as client:
            page.gate.set()
            assert status_of(client) == 200


def test_a_client_that_never_reads_is_let_go(clip: bytes) -> None:
    with live_page(max_streams=1, idle_s=0.5) as page:
        page.gate.set()
        slots = page.server.config.app.state.page.slots
        with page.post_video(clip, receive_buffer=4096):
            wait_until(lambda: slots.free == 0)
            wait_until(lambda: slots.free == 1)
            wait_until(lambda: not page.server.server_state.connections)
        with page.open_camera(receive_buffer=4096) as camera:
            wait_until(lambda: slots.free == 0)
            for _ in range(100):
                try:
                    camera.sendall(frame_bytes(picture()))
                except OSError:
                    break
                number = len(page.steps)
                wait_until(lambda: len(page.steps) > number or slots.free == 1)  # noqa: B023
                if slots.free:
                    break
            wait_until(lambda: slots.free == 1)


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list:
    """The processes that decode."""
    processes, open_process = [], anyio.open_process

    async def recorded(*arguments, **options):
        processes.append(await open_process(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(anyio, "open_process", recorded)
    return processes


def leave_in_the_middle(page: LivePage, upload: bytes, decoders: list) -> None:
    """Send what takes minutes to decode, and go while it is decoded."""
    client = page.post_video(upload)
    wait_until(lambda: len(decoders) > 0 and decoders[-1].returncode is None)
    client.close()
    wait_until(lambda: decoders[-1].returncode is not None)


@pytest.mark.parametrize("named", [False, True])
def test_a_decoder_whose_client_has_gone_is_ended(decoders: list, monkeypatch, tmp_path: Path, named: bool) -> None:
    video = scans_video(tmp_path / "scans.mkv", 20_000).read_bytes()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    if named:
        monkeypatch.setattr(uploads, "_OWN_INPUT", Path("/nowhere"))
    with live_page(max_streams=1, decode_s=300) as page:
        page.gate.set()
        leave_in_the_middle(page, video, decoders)
        wait_until(lambda: page.server.config.app.state.page.slots.free == 1)
        with page.post_video(video) as client:
            wait_until(lambda: len(decoders) == 2 and page.server.config.app.state.page.slots.free == 0)
            assert client
    assert [process.returncode for process in decoders] == [-signal.SIGKILL] * 2  # a stop ends them too
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_frame_that_takes_too_long_to_decode_ends_its_own_connection_alone(tmp_path: Path) -> None:
    video = scans_video(tmp_path / "scans.mkv", 20_000).read_bytes()
    with live_page(decode_s=1, max_streams=2) as page:
        page.gate.set()
        with page.post_video(video) as slow, page.open_camera() as other:
            other.sendall(frame_bytes(picture()))
            assert b'"model_ms"' in other.recv(65536)
            answer = b""
            while b"}" not in answer:
                answer += slow.recv(65536)
        assert answer.startswith(b"HTTP/1.1 415")
        assert b"a frame takes longer than 1 s to decode" in answer
        wait_until(lambda: page.server.config.app.state.page.slots.free == 2)


def test_what_a_stranger_sends_writes_nothing_on_the_console(page, capfd, recwarn) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\xff" * 20
    app1 = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    jpeg = picture()
    start = jpeg.index(b"\xff\xc0")
    bomb = jpeg[: start + 5] + struct.pack(">HH", 10_000, 10_000) + jpeg[start + 9 :]
    for data in (jpeg[:2] + app1 + jpeg[2:], bomb):
        with page.open_camera() as client:
            client.sendall(frame_bytes(data))
            assert client.recv(65536)
    assert capfd.readouterr() == ("", "")
    warnings = [str(warning.message) for warning in recwarn if "/websockets/" not in warning.filename]
    assert warnings == []


def _serve_a_step_that_never_ends(log: str) -> None:
    with open(log, "w") as console:
        os.dup2(console.fileno(), 1)
        os.dup2(console.fileno(), 2)
    config = load_config("serve", ServeConfig, ["checkpoint=a", "port=0"])
    stuck, steps = StandIn(threading.Event(), []), StandIn.step
    StandIn.step = lambda *arguments: print("a step begins", flush=True) or steps(*arguments)
    serve.build_page = lambda config: build_app(lambda: stuck, ServeSettings())
    logging.basicConfig(level=logging.INFO)
    with on_stop():
        serve.main(config)


def test_a_stop_does_not_wait_for_the_model(clip: bytes, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    process = start(_serve_a_step_that_never_ends, str(log))
    wait_until(lambda: "open http" in log.read_text(), 60)
    port = re.search(r"127\.0\.0\.1:(\d+)", log.read_text())
    assert port is not None
    with LivePage(None, int(port[1])).post_video(clip):
        wait_until(lambda: "a step begins" in log.read_text())
        process.terminate()
        assert finish(process, 30) == 130
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: 127", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET"])
def test_a_connection_without_a_request_is_cut(sent: bytes) -> None:
    with live_page(idle_s=0.2) as page, page.connect() as client:
        client.sendall(sent)
        while client.recv(65536):
            pass
        wait_until(lambda: not page.server.server_state.connections)


def test_a_stop_in_the_middle_leaves_no_traceback_and_no_file(clip: bytes, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with caplog.at_level(logging.WARNING), live_page(max_streams=3, idle_s=60) as page:
        clients = [page.post_video(clip), page.post_video(clip[:100]), page.open_camera()]
        clients.append(page.send("POST /api/video HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999", b"half"))
        clients[2].sendall(frame_bytes(picture()))
        wait_until(lambda: len(page.steps) == 1)
        assert list(tmp_path.iterdir()) == []  # an upload is in no folder even while it is used
    for client in clients:
        client.close()
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("request_line", ["GET /api/about", "POST /api/video", "GET /nothing", "POST /api/about"])
@pytest.mark.parametrize("wait_s", [0, 0.3])
def test_a_body_that_breaks_http_leaves_no_traceback(page, caplog, request_line: str, wait_s: float) -> None:
    head = f"{request_line} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked"
    with caplog.at_level(logging.WARNING), page.send(head, b"" if wait_s else b"zz\r\n\r\n") as client:
        if wait_s:
            time.sleep(wait_s)  # an answer may have begun
            client.sendall(b"zz\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            while client.recv(4096):
                pass
    assert [record for record in caplog.records if record.exc_info] == []


def test_text_that_is_no_utf_8_is_one_line(page, caplog) -> None:
    with caplog.at_level(logging.WARNING), page.open_camera() as client:
        client.sendall(frame_bytes(b"\xff\xfe", opcode=1))
        while client.recv(4096):
            pass
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_end_the_command_quietly(clip: bytes, tmp_path: Path, name: str) -> None:
    options = ["checkpoint=teacher:embedded", "port=0", "device=cpu", "threads=1"]
    (tmp_path / "temporary").mkdir()
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "serve.py"), *options],
            stderr=log,
            env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        )
    try:
        wait_until(lambda: "open http" in (tmp_path / "log").read_text(), 120)
        port = re.search(r"127\.0\.0\.1:(\d+)", (tmp_path / "log").read_text())
        assert port is not None
        client = LivePage(None, int(port[1])).post_video(clip)
        assert status_of(client) == 200
        server.send_signal(getattr(signal, name))
        assert server.wait(60) == 130
    finally:
        server.kill()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert "Cancel" not in (tmp_path / "log").read_text()
