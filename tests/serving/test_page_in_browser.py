"""The page in a real headless browser: a file, a broken file, and a (fake) camera."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from media import write_truncated

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).parents[2]
_CLIP = _ROOT / "videomamba_depth" / "assets" / "clip.mp4"
_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--no-sandbox"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The command itself, on a free port."""
    pytest.importorskip("uvicorn", reason="the page needs the extra [serve]")
    log = tmp_path_factory.mktemp("serve") / "stderr.txt"
    options = ["checkpoint=teacher:embedded", "port=0", "device=cpu", "max_upload_mb=1"]
    with log.open("w") as stderr:
        server = subprocess.Popen([sys.executable, str(_ROOT / "scripts" / "serve.py"), *options], stderr=stderr)
    end_s = time.monotonic() + 120
    while (found := re.search(r"open (http://\S+) in", log.read_text())) is None:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < end_s, log.read_text()
        time.sleep(0.2)
    yield found[1]
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 130, log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """The page in Chromium; what the browser complains about fails the test."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here (Debian: chromium)")
    complaints: list[str] = []
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=chromium, args=_CAMERA)
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda entry: complaints.append(entry.text) if "Security Policy" in entry.text else None)
        page.set_default_timeout(60_000)
        page.goto(address)
        yield page
        browser.close()
    assert complaints == []


def wait_for(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    """Look from outside: the page itself allows no script but its own."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.1)


def frame_number(page: Any) -> int:
    shown = re.match(r"\d+", page.text_content("#frame"))
    return int(shown[0]) if shown else -1


def keep(page: Any, name: str, folder: Path) -> None:
    """Take a picture of the page, for a person to look at."""
    folder = Path(os.environ.get("VIDEOMAMBA_SCREENSHOTS", folder))
    page.screenshot(path=str(folder / f"{name}.png"))


def spread(page: Any, canvas: str) -> float:
    """Return the standard deviation of what a canvas shows."""
    return page.evaluate(
        f"""() => {{ const c = document.getElementById("{canvas}");
        const v = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        let n = v.length / 4, s = 0, q = 0;
        for (let i = 0; i < v.length; i += 4) {{ s += v[i]; q += v[i] * v[i]; }}
        return Math.sqrt(q / n - (s / n) ** 2); }}"""
    )


def test_a_file_is_shown_with_its_depth(page: Any, tmp_path: Path) -> None:
    page.set_input_files("#file", str(_CLIP))
    wait_for(lambda: frame_number(page) >= 5)
    keep(page, "file", tmp_path)
    assert spread(page, "input") > 10
    assert spread(page, "depth") > 10
    assert re.fullmatch(r"\d+ ms", page.text_content("#latency"))
    wait_for(lambda: page.text_content("#state").startswith("done"))
    assert page.is_hidden("#error")


def test_a_camera_is_shown_with_its_depth_until_it_is_stopped(page: Any, tmp_path: Path) -> None:
    page.click("#camera")
    wait_for(lambda: frame_number(page) >= 8)
    keep(page, "camera", tmp_path)
    assert spread(page, "depth") > 10
    assert float(page.text_content("#rate").split()[0]) > 0
    page.click("#stop")
    assert page.text_content("#state") == "stopped"
    stopped_at = page.text_content("#frame")
    time.sleep(0.5)
    assert page.text_content("#frame") == stopped_at


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no video" * 100, "bad.mp4: this file is not a video"),
        (bytes(1_100_000), "bad.mp4: the file is larger than 1 MB"),
    ],
)
def test_a_file_that_cannot_be_shown_says_why(page: Any, tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "bad.mp4").write_bytes(data)
    page.set_input_files("#file", str(tmp_path / "bad.mp4"))
    page.wait_for_selector("#error:not([hidden])")
    assert message in page.text_content("#error")
    keep(page, "refused", tmp_path)


def test_a_cut_file_says_so_after_its_frames(page: Any, tmp_path: Path) -> None:
    page.set_input_files("#file", str(write_truncated(tmp_path / "cut.mp4")))
    page.wait_for_selector("#error:not([hidden])")
    assert re.search(r"cut\.mp4: the file is damaged or cut off: only \d+ of 24 frames", page.text_content("#error"))
