"""Exact frames, exact timestamps, every orientation, and one clear line for everything broken."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media import (
    frame_number,
    numbered_frame,
    write_empty,
    write_headless,
    write_images,
    write_text,
    write_truncated,
    write_video,
)

from videomamba_depth.data.video.reader import (
    VideoReadError,
    VideoWriter,
    count_frames,
    iter_frames,
    probe_video,
    read_frames,
    read_image,
)
from videomamba_depth.utils.errors import UserError

OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0"}
VFR_PTS = list(itertools.accumulate([33, 40, 7, 100, 33] * 6))
FILES: dict[str, dict[str, Any]] = {
    "plain.mp4": {"options": {"g": "8", "bf": "2"}},
    "open_gop.mp4": {"options": OPEN_GOP},
    "open_gop.ts": {"options": OPEN_GOP},
    "intra_refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=12"}},
    "variable.mp4": {"time_base": Fraction(1, 1000), "pts": VFR_PTS, "options": {"g": "8"}},
    "late_start.mkv": {"time_base": Fraction(1, 1000), "pts": [5000 + 40 * i for i in range(30)]},
    "no_timestamps.avi": {"options": {"g": "8", "bf": "2"}},
    "raw.h264": {"options": {"g": "8"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "fps": 25, "options": {"bf": "2", "g": "8"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "keyint=12"}},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "12"}},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    os.environ.setdefault("SVT_LOG", "1")  # errors only
    usable = {name: recipe for name, recipe in FILES.items() if recipe.get("codec", "libx264") in av.codecs_available}
    return {name: write_video(folder / name, 30, **recipe) for name, recipe in usable.items()}


@pytest.mark.parametrize("name", FILES)
def test_every_frame_is_found_by_index_after_a_seek(files: dict[str, Path], name: str) -> None:
    if name not in files:
        pytest.skip(f"this build of PyAV cannot encode {FILES[name]['codec']}")
    info = probe_video(files[name])
    frames = list(iter_frames(files[name], threads=1))
    assert [frame_number(frame.rgb) for frame in frames] == list(range(30))
    assert (info.num_frames, info.width, info.height) == (30, 64, 48)
    assert [frame.pts for frame in frames] == info.pts.tolist()
    for index in range(30):
        np.testing.assert_array_equal(read_frames(files[name], [index], info=info)[0], frames[index].rgb)
    later = list(iter_frames(files[name], start=13, info=info, threads=1))
    assert [frame.index for frame in later] == list(range(13, 30))
    np.testing.assert_array_equal(later[0].rgb, frames[13].rgb)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(indices=st.lists(st.integers(0, 29), min_size=1, max_size=6))
def test_any_order_and_repeats(files: dict[str, Path], indices: list[int]) -> None:
    frames = read_frames(files["open_gop.mp4"], indices)
    assert [frame_number(frame) for frame in frames] == indices


def test_variable_rate_keeps_exact_timestamps(files: dict[str, Path]) -> None:
    info = probe_video(files["variable.mp4"])
    assert [Fraction(int(p)) * info.time_base for p in info.pts] == [Fraction(p, 1000) for p in VFR_PTS]
    np.testing.assert_allclose(info.timestamps_s, np.array(VFR_PTS) / 1000)
    assert info.fps == pytest.approx(29 / (VFR_PTS[-1] - VFR_PTS[0]) * 1000)
    assert probe_video(files["late_start.mkv"]).timestamps_s[0] == pytest.approx(5.0)


def test_files_without_timestamps_are_counted_at_the_nominal_rate(files: dict[str, Path]) -> None:
    info = probe_video(files["no_timestamps.avi"])
    assert not info.has_pts
    np.testing.assert_allclose(info.timestamps_s, np.arange(30) / 10)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_display_matrix_is_applied(tmp_path: Path, rotation: int, mirrored: bool) -> None:
    stored = read_frames(write_video(tmp_path / "plain.mp4", 2), [1])[0]
    path = write_video(tmp_path / "turned.mp4", 2, rotation=rotation, mirrored=mirrored)
    expected = np.rot90(stored, rotation // 90)
    expected = expected[:, ::-1] if mirrored else expected
    info = probe_video(path)
    assert (info.height, info.width) == expected.shape[:2]
    assert mirrored or info.rotation == rotation % 360
    np.testing.assert_array_equal(read_frames(path, [1])[0], expected)
    np.testing.assert_array_equal(next(iter_frames(path)).rgb.shape, expected.shape)


@pytest.mark.parametrize(("codec", "pix_fmt"), [("ffv1", "yuv420p10le"), ("ffv1", "gray"), ("ffv1", "bgra")])
def test_deep_gray_and_alpha_video_become_rgb8_at_odd_sizes(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    path = write_video(tmp_path / "odd.mkv", 3, codec=codec, pix_fmt=pix_fmt, width=67, height=51)
    frames = read_frames(path, [0, 2])
    assert frames.shape == (2, 51, 67, 3)
    assert frames.dtype == np.uint8
    assert [frame_number(frame) for frame in frames] == [0, 2]


def test_color_survives_reading_and_writing(tmp_path: Path) -> None:
    rgb = np.full((48, 64, 3), (200, 40, 90), np.uint8)
    with VideoWriter(tmp_path / "c.mp4", size=(64, 48), fps=10) as writer:
        writer.write(rgb)
    assert np.abs(read_frames(tmp_path / "c.mp4", [0])[0].astype(int) - rgb).max() <= 3  # measured 2: 4:2:0, limited


def test_images_are_read_in_natural_order(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 12)
    info = probe_video(folder, fps=12.5)
    assert (info.num_frames, info.fps) == (12, 12.5)
    assert [frame_number(f) for f in read_frames(folder, [10, 2, 1])] == [10, 2, 1]
    frames = list(iter_frames(str(folder / "img1*.png"), fps=10))
    assert [frame_number(frame.rgb) for frame in frames] == [1, 10, 11]
    assert [frame.timestamp_s for frame in frames] == [0.0, 0.1, 0.2]


@pytest.mark.parametrize("kind", ["gray", "alpha", "sixteen"])
def test_gray_alpha_and_deep_images_become_rgb8(tmp_path: Path, kind: str) -> None:
    rgb = numbered_frame(5)
    stored = {
        "gray": rgb[..., 0],
        "alpha": np.dstack([rgb[..., ::-1], np.full(rgb.shape[:2], 7, np.uint8)]),
        "sixteen": rgb[..., ::-1].astype(np.uint16) * 257,
    }[kind]
    cv2.imwrite(str(tmp_path / "x.png"), stored)
    expected = np.repeat(rgb[..., :1], 3, -1) if kind == "gray" else rgb
    np.testing.assert_allclose(read_image(tmp_path / "x.png"), expected, atol=1)


def test_truncated_file_is_used_as_far_as_it_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_truncated(tmp_path / "cut.mp4")
    info = probe_video(path)
    assert 0 < info.num_frames < 24
    assert "24" in info.damage
    assert "cut.mp4" in caplog.text
    assert [frame_number(f.rgb) for f in iter_frames(path)] == list(range(info.num_frames))
    assert [frame_number(f) for f in read_frames(path, range(info.num_frames))] == list(range(info.num_frames))


def test_a_hole_in_the_file_costs_only_the_frames_in_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "hole.mp4", 24, options={"g": "6"}, container_options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    start = len(data) * 6 // 10
    data[start : start + 120] = bytes(120)
    path.write_bytes(data)
    info = probe_video(path)
    good = []
    for index in range(info.num_frames):
        try:
            read_frames(path, [index], info=info)
            good.append(index)
        except VideoReadError as error:
            assert "hole.mp4" in str(error)  # noqa: PT017
    assert {0, 1, 2, 3, 4, 5} <= set(good)
    assert [frame_number(f) for f in read_frames(path, range(6), info=info)] == list(range(6))


@pytest.mark.parametrize(
    ("make", "says"),
    [(write_empty, "empty"), (write_text, "not a video"), (write_headless, "cut off"), (None, "no such file")],
)
def test_broken_files_give_one_clear_line(tmp_path: Path, make: Any, says: str) -> None:
    path = tmp_path / "broken.mp4"
    if make is not None:
        make(path)
    for read in (probe_video, count_frames, lambda p: list(iter_frames(p)), lambda p: read_frames(p, [0])):
        with pytest.raises(VideoReadError, match=says) as caught:
            read(path)
        assert "broken.mp4" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, UserError)


def test_sound_without_pictures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoReadError, match="no video stream"):
        probe_video(path)


def test_broken_and_unequal_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(VideoReadError, match="no images"):
        probe_video(write_images(tmp_path / "none", 0))
    folder = write_images(tmp_path / "images", 3)
    (folder / "img1.png").write_bytes(b"not a png")
    with pytest.raises(VideoReadError, match=r"img1\.png"):
        read_frames(folder, [0, 1])
    cv2.imwrite(str(folder / "img1.png"), np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(VideoReadError, match="one size"):
        read_frames(folder, [0, 1])


def test_index_outside_the_video_is_a_mistake_of_the_code(files: dict[str, Path]) -> None:
    with pytest.raises(IndexError, match="30"):
        read_frames(files["plain.mp4"], [30])


@pytest.mark.parametrize("mode", [{}, {"fragmented": True}, {"atomic": True}])
@pytest.mark.parametrize(
    ("time_base", "pts"),
    [
        (Fraction(1, 1000), [0, 33, 70, 71, 200]),
        (Fraction(1, 90000), [900001, 903000, 909000]),
        (Fraction(1001, 30000), [0, 1, 2, 3]),
    ],
)
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_written_timestamps_and_count_equal_the_input(
    tmp_path: Path, time_base: Fraction, pts: list[int], mode: dict[str, bool], codec: str
) -> None:
    path = tmp_path / "out" / "w.mp4"
    with VideoWriter(path, size=(67, 51), time_base=time_base, codec=codec, **mode) as writer:
        for number, at in enumerate(pts):
            writer.write(numbered_frame(number, 67, 51), at)
    frames = list(iter_frames(path))
    assert [f.pts * f.time_base for f in frames] == [p * time_base for p in pts]
    assert [frame_number(f.rgb) for f in frames] == list(range(len(pts)))
    assert frames[0].rgb.shape == (52, 68, 3)  # padded to even
    assert [p.name for p in path.parent.iterdir()] == ["w.mp4"]
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == (codec, "yuv420p")


def test_writer_refuses_wrong_frames_and_times(tmp_path: Path) -> None:
    frame = numbered_frame(0)
    with VideoWriter(tmp_path / "w.mp4", size=(64, 48), fps=10) as writer:
        writer.write(frame, 5)
        with pytest.raises(ValueError, match="increase"):
            writer.write(frame, 5)
        with pytest.raises(ValueError, match="uint8"):
            writer.write(frame[:-1])
    with pytest.raises(UserError, match="cannot write"):
        VideoWriter(tmp_path / "w.mp4" / "below_a_file.mp4", size=(64, 48), fps=10)


def write_and_fail(path: Path, atomic: bool) -> None:
    with VideoWriter(path, size=(64, 48), fps=10, atomic=atomic) as writer:
        for number in range(5):
            writer.write(numbered_frame(number))
        raise RuntimeError("stop")


def test_exception_keeps_what_was_written_or_leaves_nothing(tmp_path: Path) -> None:
    for atomic, left in ((False, ["w.mp4"]), (True, [])):
        folder = tmp_path / str(atomic)
        with pytest.raises(RuntimeError, match="stop"):
            write_and_fail(folder / "w.mp4", atomic)
        assert [p.name for p in folder.iterdir()] == left
    assert probe_video(tmp_path / "False" / "w.mp4").num_frames == 5


def test_fragmented_file_of_a_killed_process_plays(tmp_path: Path) -> None:
    path = tmp_path / "killed.mp4"
    code = (
        "import os, sys\n"
        "from media import numbered_frame\n"
        "from videomamba_depth.data.video.reader import VideoWriter\n"
        "writer = VideoWriter(sys.argv[1], size=(64, 48), fps=10, fragmented=True)\n"
        "for number in range(100):\n"
        "    writer.write(numbered_frame(number))\n"
        "os._exit(9)\n"  # nothing is flushed or closed, as after kill -9
    )
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[1], check=False, timeout=120)
    numbers = [frame_number(f.rgb) for f in iter_frames(path)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 50


@pytest.mark.skipif("VIDEOMAMBA_TEST_CLIPS" not in os.environ, reason="VIDEOMAMBA_TEST_CLIPS names no folder of clips")
def test_real_clips() -> None:
    for path in sorted(Path(os.environ["VIDEOMAMBA_TEST_CLIPS"]).glob("*.mp4")):
        info = probe_video(path)
        picks = [info.num_frames - 1, info.num_frames // 2, 0]
        picked = read_frames(path, picks, info=info)
        for frame in iter_frames(path):
            assert frame.pts == info.pts[frame.index]
            if frame.index in picks:
                np.testing.assert_array_equal(picked[picks.index(frame.index)], frame.rgb)
        assert frame.index == info.num_frames - 1
