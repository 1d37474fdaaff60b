"""The preview window: it never holds the stream up, and closing it ends the stream with its files whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT
from media import write_video

from videomamba_depth.commands.stream import main
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.streaming.depth_frame import DepthFrame
from videomamba_depth.streaming.sinks.preview_window import PreviewWindow
from videomamba_depth.streaming.sinks.video import FramePainter, PreviewSink
from videomamba_depth.utils.color import ColorSettings, DepthColors
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError

TOOLS = ("xvfb-run", "xdotool", "import")  # a screen without a monitor, a hand, a camera


def window(code: str) -> PreviewWindow:
    """Return a window whose process runs `code`; what it prints is what a window says."""
    return PreviewWindow("a", (sys.executable, "-u", "-c", "import sys, time\n" + code))


def frame(index: int) -> DepthFrame:
    rgb, depth = np.zeros((4, 5, 3), np.uint8), np.full((4, 5), 1.0 + index, np.float32)
    return DepthFrame(index, index, Fraction(1, 10), rgb, depth)


def sink(shown_in: PreviewWindow, stop: threading.Event) -> PreviewSink:
    return PreviewSink(shown_in, FramePainter(DepthColors(DepthKind.RELATIVE, ColorSettings())), stop)


def test_closing_the_window_stops_the_stream() -> None:
    stop = threading.Event()
    preview = sink(window("print('opened\\nwanted')\nsys.stdin.buffer.read(8 + 4 * 10 * 3)"), stop)
    deadline = time.monotonic() + 60
    while not stop.is_set() and time.monotonic() < deadline:
        preview.write(frame(0))
        time.sleep(0.01)
    assert stop.is_set()
    preview.close()


def test_a_window_that_hangs_holds_nothing_up() -> None:
    stop = threading.Event()
    preview = sink(window("print('opened')\ntime.sleep(1000)"), stop)
    for index in range(50):
        preview.write(frame(index))
    preview.close()
    assert not stop.is_set()


def test_what_keeps_it_from_opening_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot open a preview window: no windows here"):
        window("print('no windows here')")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    source = write_video(tmp_path / "clip.mp4", 3)
    named = ["checkpoint=embedded", f"input={source}", f"output={tmp_path}/out", "preview=true"]
    with pytest.raises(UserError, match="needs a screen"):
        main(load_config("stream", StreamConfig, named))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}")
def test_a_real_window_shows_the_stream_and_q_ends_it(tmp_path: Path) -> None:
    """The whole command on a virtual screen, which is photographed before q is pressed."""
    source = write_video(tmp_path / "clip.mp4", 2000, width=80, height=64)
    script = f"""
        '{sys.executable}' '{ROOT}/inference_streaming.py' \\
            checkpoint=embedded 'input={source}' output=out preview=true &
        for i in $(seq 100); do sleep 0.5; xdotool search --name 'depth of clip' && break; done
        sleep 6
        import -window root screen.png
        xdotool search --name 'depth of clip' windowfocus key q
        wait $!; echo "status $?"
    """
    command = ["xvfb-run", "-a", "-s", "-screen 0 640x480x24", "bash", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert "status 130" in done.stdout, done.stderr
    about = json.loads((tmp_path / "out" / "clip.json").read_text())
    assert about["status"] == "stopped"
    assert 0 < about["num_frames"] < 2000
    lines = (tmp_path / "out" / "clip.frames.jsonl").read_text().splitlines()
    assert len(lines) == about["num_frames"]
