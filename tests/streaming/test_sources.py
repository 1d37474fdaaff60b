"""Live sources never fall behind; raw frames come through a pipe; what cannot be opened is one line."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from media import frame_number, numbered_frame, write_images, write_video

from videomamba_depth.data.video.reader import Frame, VideoReadError
from videomamba_depth.streaming.sources import live
from videomamba_depth.streaming.sources.files import FileSource
from videomamba_depth.streaming.sources.live import CameraSource, LatestFrames, RawFrameSource, opencv_log
from videomamba_depth.streaming.sources.open import SourceSettings, open_source
from videomamba_depth.utils.errors import UserError


class FakeCamera:
    """Three numbered frames, then nothing."""

    def __init__(self, number: int) -> None:
        self.released, self._next = False, -1

    def isOpened(self) -> bool:
        return True

    def get(self, _: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self._next += 1
        if self._next > 3:
            return False, None
        return True, numbered_frame(self._next)[..., ::-1].copy()

    def release(self) -> None:
        self.released = True


def test_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.cv2, "VideoCapture", FakeCamera)
    source = CameraSource(0)
    frames: list[Frame] = []
    with pytest.raises(VideoReadError, match="camera 0 stopped delivering after 3 frames"):
        frames.extend(source)
    assert [frame_number(f.rgb) for f in frames] == [1, 2, 3]  # the first one was the trial
    assert frames[0].pts == 0
    assert frames[0].pts < frames[1].pts < frames[2].pts
    assert source._camera.released


def test_no_such_camera(capfd: pytest.CaptureFixture[str]) -> None:
    level = opencv_log().getLogLevel()
    with pytest.raises(UserError, match="cannot open camera 77"):
        open_source(SourceSettings(input="77"))
    assert capfd.readouterr() == ("", "")
    assert opencv_log().getLogLevel() == level


class SteppedSource:
    """Numbered frames, each released by the test; ends with an error."""

    name, num_frames, fps, time_base = "stepped", None, 30.0, Fraction(1, 30)

    def __init__(self, total: int) -> None:
        self.total, self.read = total, threading.Semaphore(0)
        self.delivered = threading.Semaphore(0)

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.total):
            self.read.acquire()
            yield Frame(index, index, self.time_base, numbered_frame(index))
            self.delivered.release()
        raise OSError("unplugged")


def test_latest_frames_drops_what_is_late() -> None:
    source = SteppedSource(7)
    latest = LatestFrames(source)
    source.read.release()
    frames = iter(latest)
    assert next(frames).index == 0
    for _ in range(5):  # five more arrive while the reader is busy
        source.read.release()
        source.delivered.acquire()
    source.delivered.acquire()
    assert next(frames).index == 5
    assert latest.num_dropped == 4
    source.read.release()
    assert next(frames).index == 6
    with pytest.raises(OSError, match="unplugged"):
        next(frames)


def test_raw_frames_from_a_pipe() -> None:
    pictures = [numbered_frame(i, 40, 30) for i in range(3)]
    source = RawFrameSource(io.BytesIO(b"".join(p.tobytes() for p in pictures)), (40, 30), fps=25)
    frames = list(source)
    assert all(np.array_equal(f.rgb, p) for f, p in zip(frames, pictures, strict=True))
    assert frames[2].timestamp_s == 2 / 25
    with pytest.raises(VideoReadError, match="ended within frame 1: 100 of 3600 bytes"):
        list(RawFrameSource(io.BytesIO(bytes(3700)), (40, 30)))


def test_stdin_needs_a_size() -> None:
    with pytest.raises(UserError, match="raw_input_size"):
        open_source(SourceSettings(input="-"))


def test_max_frames_of_a_file(tmp_path: Path) -> None:
    source = FileSource(write_video(tmp_path / "a.mp4", 9), max_frames=4)
    assert source.num_frames == 4
    assert [frame_number(f.rgb) for f in source] == [0, 1, 2, 3]


def test_a_broken_image_midway_ends_the_sequence_with_its_name(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 5)
    (folder / "img3.png").write_bytes(b"broken")
    frames: list[Frame] = []
    with pytest.raises(VideoReadError, match=r"img3\.png"):
        frames.extend(open_source(SourceSettings(input=str(folder))))
    assert [frame.index for frame in frames] == [0, 1, 2]


@pytest.mark.parametrize(("given", "name"), [("clip.v2.mp4", "clip.v2"), ("images", "images"), ("images/*.png", "_")])
def test_outputs_are_named_after_the_input(tmp_path: Path, given: str, name: str) -> None:
    write_images(tmp_path / "images", 1)
    write_video(tmp_path / "clip.v2.mp4", 1)
    assert open_source(SourceSettings(input=str(tmp_path / given))).name == name
