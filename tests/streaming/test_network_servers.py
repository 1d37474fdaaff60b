"""The command against servers of other makers: FFmpeg over HTTP, GStreamer over RTSP; each is away for five seconds."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from videomamba_depth.utils.logger import read_json_lines

_ROOT = Path(__file__).parents[2]
_RTSP_SERVER = Path(__file__).with_name("rtsp_server.py")
_AWAY_S = 5.0

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def system_python() -> str:
    """Return an interpreter that has the bindings of GStreamer's RTSP server; skip where there is none."""
    reasons = []
    for python in ("/usr/bin/python3", shutil.which("python3") or "", sys.executable):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            done = subprocess.run([python, str(_RTSP_SERVER)], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return python
            reasons.append((done.stderr.strip().splitlines() or ["?"])[-1])
    pytest.skip(f"no RTSP server here (Debian: gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-ugly): {reasons}")


def serve_rtsp(port: int) -> subprocess.Popen:
    server = subprocess.Popen([system_python(), str(_RTSP_SERVER), str(port), "25"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return server


def serve_http(port: int) -> subprocess.Popen:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("no ffmpeg command here (Debian: ffmpeg)")
    picture = ["-re", "-f", "lavfi", "-i", "testsrc=size=160x120:rate=25"]
    coding = ["-c:v", "mpeg2video", "-g", "10", "-f", "mpegts", "-listen", "1"]
    url = f"http://127.0.0.1:{port}/camera.ts"
    return subprocess.Popen([ffmpeg, "-loglevel", "error", *picture, *coding, url], stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def streaming(checkpoint: Path, url: str, out: Path) -> Iterator[subprocess.Popen]:
    """Run the command on a live URL until the end of the `with`, then stop it as Ctrl-C does."""
    command = [sys.executable, str(_ROOT / "inference_streaming.py"), f"checkpoint={checkpoint}", f"input={url}"]
    options = [f"output={out}", "live=true", "threads=1", "device=cpu", "max_gap_s=2"]
    with (out.parent / "stderr.txt").open("w") as stderr, subprocess.Popen([*command, *options], stderr=stderr) as run:
        try:
            yield run
        finally:
            run.terminate()
            run.wait(30)


def wait_for_lines(path: Path, count: int, run: subprocess.Popen, timeout_s: float = 60) -> list[dict]:
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s and run.poll() is None:
        lines = read_json_lines(path) if path.exists() else []
        if len(lines) >= count:
            return lines
        time.sleep(0.1)
    raise AssertionError(f"{path} did not reach {count} lines: {(path.parents[1] / 'stderr.txt').read_text()}")


@pytest.mark.parametrize(
    ("serve", "address"), [(serve_http, "http://127.0.0.1:{}/camera.ts"), (serve_rtsp, "rtsp://127.0.0.1:{}/camera")]
)
def test_five_seconds_without_the_server(
    tmp_path: Path, checkpoint: Path, serve: Callable[[int], subprocess.Popen], address: str
) -> None:
    port = free_port()
    server = serve(port)
    lines_path = tmp_path / "out" / "camera.frames.jsonl"
    time.sleep(1.0)  # ffmpeg does not say when it listens
    try:
        with streaming(checkpoint, address.format(port), tmp_path / "out") as run:
            before = wait_for_lines(lines_path, 20, run)
            server.kill()
            server.wait()
            time.sleep(_AWAY_S)
            assert run.poll() is None
            server = serve(port)
            after = wait_for_lines(lines_path, len(before) + 30, run)
    finally:
        server.kill()
        server.wait()
    assert run.returncode == 130
    outages = [line for line in after if "outage_s" in line]
    assert len(outages) == 1
    assert outages[0]["outage_s"] >= _AWAY_S - 1  # what was buffered still came
    assert outages[0]["reset"] == "gap"
    message = (tmp_path / "stderr.txt").read_text()
    assert "; 1 outages of" in message
    print(
        f"\n{address}: {outages[0]}\n{[line for line in message.splitlines() if 'back' in line or 'frames in' in line]}"
    )
