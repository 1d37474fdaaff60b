"""Network cameras: a cut connection comes back, a slow reader drops frames and says how many, nothing piles up."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from media import frame_number
from mjpeg_server import MjpegServer

from videomamba_depth.commands.stream import main
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.data.video.reader import VideoReadError
from videomamba_depth.streaming import job
from videomamba_depth.streaming.sources.live import LatestFrames
from videomamba_depth.streaming.sources.network import NetworkCamera
from videomamba_depth.streaming.sources.open import SourceSettings, open_source
from videomamba_depth.streaming.timing import resident_mb
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.logger import read_json_lines


@pytest.fixture
def camera() -> Iterator[MjpegServer]:
    server = MjpegServer()
    yield server
    server.cut()


def test_a_cut_connection_comes_back(camera: MjpegServer) -> None:
    frames = iter(NetworkCamera(camera.url, silence_s=2))
    before = [next(frames) for _ in range(5)]
    camera.cut()
    threading.Timer(0.7, camera.start).start()
    after = [next(frames) for _ in range(40)]
    back = next(frame for frame in after if frame.outage_s)
    assert 0.7 <= back.outage_s < 5
    assert back.timestamp_s - before[-1].timestamp_s >= 0.7
    seen = [*before, *after]
    assert [frame.index for frame in seen] == list(range(45))
    assert all(a.pts < b.pts for a, b in itertools.pairwise(seen))
    numbers = [frame_number(frame.rgb) for frame in seen]
    assert all(0 < (b - a) % 256 < 128 for a, b in itertools.pairwise(numbers))  # none twice, none older
    assert camera.num_connections == 2


def test_giving_up_is_one_line_without_the_password(camera: MjpegServer) -> None:
    url = camera.url.replace("://", "://me:secret@")
    frames = iter(NetworkCamera(url, reconnect_s=0.4, silence_s=1))
    next(frames)
    camera.cut()
    with pytest.raises(VideoReadError, match=r"http://127.*camera\.mjpg has not come back for 0\.4 s") as caught:
        list(frames)
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match=r"cannot open video http://127.*is the address right") as caught:
        open_source(SourceSettings(input=url, live=True))
    assert "secret" not in str(caught.value)
    camera.start()


def test_without_reconnection_the_end_is_the_end(camera: MjpegServer) -> None:
    frames = iter(NetworkCamera(camera.url, reconnect_s=0))
    next(frames)
    camera.cut()
    assert len(list(frames)) < 100
    camera.start()


def test_a_silent_connection_counts_as_lost(camera: MjpegServer) -> None:
    frames = iter(NetworkCamera(camera.url, silence_s=0.5))
    next(frames)
    camera.fps, fps = 0.01, camera.fps  # the next frame is due in minutes
    threading.Timer(1.0, lambda: setattr(camera, "fps", fps)).start()
    assert max(next(frames).outage_s for _ in range(30)) >= 0.5


def test_a_slow_reader_gets_new_frames_and_the_count_of_the_others(camera: MjpegServer) -> None:
    source = open_source(SourceSettings(input=camera.url, live=True))
    assert isinstance(source, LatestFrames)
    frames, ages, seen = iter(source), [], []
    for _ in range(8):
        time.sleep(0.1)
        seen.append(next(frames))
        newest = (time.monotonic() - camera._start_s) * camera.fps
        ages.append((round(newest) - frame_number(seen[-1].rgb)) % 256)
    assert sum(frame.dropped for frame in seen) == seen[-1].index - 7
    assert seen[-1].index > 20
    assert max(ages[1:]) < 25  # half a second: the newest, not the next one in a queue


def test_the_command_says_what_it_dropped(
    tmp_path: Path, checkpoint: Path, camera: MjpegServer, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    step = job.DepthStream.step

    def slow_step(self: job.DepthStream, frame: np.ndarray, timestamp_s: float | None = None) -> np.ndarray:
        time.sleep(0.1)
        return step(self, frame, timestamp_s)

    monkeypatch.setattr(job.DepthStream, "step", slow_step)
    url = camera.url.replace("://", "://me:secret@")
    overrides = [f"checkpoint={checkpoint}", f"input={url}", f"output={tmp_path}", "live=true", "device=cpu"]
    with caplog.at_level("INFO"):
        main(load_config("stream", StreamConfig, [*overrides, "max_frames=60"]))
    lines = read_json_lines(tmp_path / "camera.frames.jsonl")
    dropped = sum(line.get("dropped", 0) for line in lines)
    message = re.search(r"; (\d+) frames dropped, the model is slower", caplog.text)
    assert message is not None
    assert int(message[1]) == dropped == lines[-1]["frame"] + 1 - len(lines) > 20
    assert "secret" not in (tmp_path / "camera.json").read_text() + caplog.text


@pytest.mark.slow
def test_memory_does_not_grow_with_a_fast_camera() -> None:
    camera = MjpegServer(fps=60, size=(640, 360), cycle=8)
    frames = iter(open_source(SourceSettings(input=camera.url, live=True)))
    resident = []
    for _ in range(100):
        time.sleep(0.2)
        frame = next(frames)
        resident.append(resident_mb())
    camera.cut()
    print(f"{frame.index + 1} frames came, 100 were taken; resident {resident[20]:.1f} and {resident[-1]:.1f} MB")
    assert resident[-1] - resident[20] < 20
