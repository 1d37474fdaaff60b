"""Frames as a screen shows them: colors, fields, the shape of pixels, animated images, and no cover for a video."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
from media import frame_number, numbered_frame, skip_with_old_pyav, write_images, write_video
from PIL import Image

from videomamba_depth.data.video.color import _rolled_off
from videomamba_depth.data.video.decode import _video_stream
from videomamba_depth.data.video.probe import displayed_geometry
from videomamba_depth.data.video.reader import (
    VideoReadError,
    count_frames,
    iter_frames,
    probe_video,
    read_frames,
)
from videomamba_depth.streaming.sinks.point_cloud import to_points
from videomamba_depth.streaming.sources.files import FileSource

_709_TO_2020 = np.linalg.inv(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]
)
PQ, HLG, BT2020, BT709 = 16, 18, 9, 1


def as_hdr(rgb: np.ndarray, transfer: int) -> np.ndarray:
    """Return BT.2020 uint16 RGB of sRGB uint8 whose white is 203 cd/m²; an implementation of its own."""
    s = rgb / 255
    nits = 203 * np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4) @ _709_TO_2020.T
    if transfer == PQ:
        power = (np.maximum(nits, 0) / 10000) ** 0.1593017578125
        code = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    else:
        luma = nits @ [0.2627, 0.6780, 0.0593]
        scene = np.maximum(nits / 1000, 0) * (np.maximum(luma, 1e-9)[..., None] / 1000) ** (1 / 1.2 - 1)
        code = np.where(
            scene <= 1 / 12,
            np.sqrt(3 * scene),
            0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073,
        )
    return np.round(65535 * code).astype(np.uint16)


def write_frames(
    path: Path,
    frames: list[np.ndarray],
    *,
    codec: str = "ffv1",
    pix_fmt: str = "yuv444p",
    matrix: int | None = None,
    tags: dict[str, Any] | None = None,
) -> Path:
    """Encode uint8 or uint16 RGB under a YUV matrix, with `tags` on the stream (none by default)."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for rgb in frames:
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24" if rgb.dtype == np.uint8 else "rgb48le")
            color_range = (tags or {}).get("color_range", 1)
            frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=color_range)
            for name, value in (tags or {}).items():
                if hasattr(frame, name):
                    setattr(frame, name, value)
            if tags is None:
                frame.colorspace, frame.color_range = 2, 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_is_brought_to_what_sdr_shows(tmp_path: Path, transfer: int) -> None:
    pictures = [cv2.GaussianBlur(numbered_frame(number), (5, 5), 0) for number in range(3)]
    tags = {"color_trc": transfer, "color_primaries": BT2020, "colorspace": BT2020, "color_range": 1}
    deep = [as_hdr(rgb, transfer) for rgb in pictures]
    path = write_frames(tmp_path / "hdr.mkv", deep, pix_fmt="yuv444p10le", matrix=BT2020, tags=tags)
    for read, rgb in zip(iter_frames(path), pictures, strict=True):
        difference = np.abs(read.rgb.astype(int) - rgb)[rgb.max(-1) < 240]  # below the knee
        assert difference.max() <= 6  # measured 3 (PQ), 1 (HLG)
        assert np.corrcoef(read.rgb.ravel(), rgb.ravel())[0, 1] > 0.999
    assert frame_number(read_frames(path, [2])[0]) == 2


def test_highlights_are_rolled_off_in_order() -> None:
    light = np.linspace(0, 1000 / 203, 5000)
    shown = _rolled_off(light)
    assert (np.diff(shown) > 0).all()
    np.testing.assert_array_equal(shown[light <= 0.9], light[light <= 0.9])
    assert shown[-1] == pytest.approx(1)


def test_wide_sdr_keeps_grays_and_moves_colors(tmp_path: Path) -> None:
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:, :32], rgb[:, 32:] = 120, (200, 60, 60)
    tags = {"color_trc": 14, "color_primaries": BT2020, "colorspace": BT2020, "color_range": 1}
    shown = read_frames(write_frames(tmp_path / "wide.mkv", [rgb], matrix=BT2020, tags=tags), [0])[0]
    assert np.abs(shown[:, :30].astype(int) - 120).max() <= 2
    assert shown[20, 50, 0] > 230  # the same numbers mean a redder red in BT.2020: measured 250, 5, 55
    assert shown[20, 50, 1] < 30


@pytest.mark.parametrize(
    ("size", "matrix", "tagged", "right"),
    [
        ((1280, 720), 1, False, True),
        ((720, 1280), 1, False, True),
        ((640, 480), 5, False, True),
        ((1280, 720), 5, True, True),
        ((640, 480), 1, True, True),
        ((640, 480), 1, False, False),  # against the rule: nobody can know
    ],
)
def test_untagged_hd_is_bt709_and_tags_are_followed(
    tmp_path: Path, size: tuple[int, int], matrix: int, tagged: bool, right: bool
) -> None:
    rgb = np.full((size[1], size[0], 3), (200, 40, 40), np.uint8)
    tags = {"colorspace": matrix, "color_range": 1} if tagged else None
    path = write_frames(tmp_path / "x.mkv", [rgb], pix_fmt="yuv420p", matrix=matrix, tags=tags)
    assert (np.abs(read_frames(path, [0])[0][9, 9].astype(int) - rgb[0, 0]).max() <= 3) == right  # measured 2


@pytest.mark.parametrize("color_range", [1, 2])
def test_full_and_limited_range(tmp_path: Path, color_range: int) -> None:
    rgb = np.full((48, 64, 3), (0, 128, 255), np.uint8)
    tags = {"colorspace": 5, "color_range": color_range}
    path = write_frames(tmp_path / "x.mkv", [rgb], matrix=5, tags=tags)
    assert np.abs(read_frames(path, [0])[0].astype(int) - rgb).max() <= 3  # measured 1


@pytest.mark.parametrize(("matrix", "taken"), [(14, "BT.709"), (10, "BT.2020")])
def test_an_unknown_matrix_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, matrix: int, taken: str) -> None:
    path = write_frames(tmp_path / "x.mkv", [numbered_frame(1)], tags={"colorspace": matrix, "color_range": 1})
    assert read_frames(path, [0]).shape == (1, 48, 64, 3)
    assert f"color matrix {matrix} of H.273 is not known here: colors are taken as {taken}" in caplog.text


@pytest.mark.parametrize(
    ("tag", "words"), [({"color_primaries": 12}, "color primaries 12"), ({"color_trc": 8}, "transfer function 8")]
)
def test_colors_that_are_not_converted_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tag: dict[str, int], words: str
) -> None:
    path = write_frames(tmp_path / "x.mkv", [numbered_frame(1)], tags={"colorspace": 1, "color_range": 1, **tag})
    assert frame_number(read_frames(path, [0])[0]) == 1
    assert words in caplog.text


def test_pages_after_the_first_one_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, *others = [Image.fromarray(numbered_frame(number)) for number in range(3)]
    first.save(tmp_path / "one.tif")
    assert probe_video(tmp_path / "one.tif").num_frames == 1
    assert "pages" not in caplog.text
    first.save(tmp_path / "many.tif", save_all=True, append_images=others)
    assert [frame_number(frame.rgb) for frame in iter_frames(tmp_path / "many.tif")] == [0]
    assert "only the first page is used" in caplog.text


def test_pixels_that_change_their_shape_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = []
    for number, aspect in enumerate((Fraction(1), Fraction(2))):
        with av.open(str(tmp_path / f"{number}.ts"), "w") as container:
            stream: Any = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.sample_aspect_ratio = aspect
            for k in range(5):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(k), format="rgb24")))
            container.mux(stream.encode(None))
        parts.append((tmp_path / f"{number}.ts").read_bytes())
    (tmp_path / "x.ts").write_bytes(b"".join(parts))
    assert {frame.rgb.shape for frame in iter_frames(tmp_path / "x.ts")} == {(48, 64, 3)}
    assert caplog.text.count("its pixels change from 1 : 1 to 2 : 1 midway") == 1


@pytest.mark.parametrize(("rotation", "shape"), [(0, (84, 159)), (90, (159, 84))])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_pixels_become_square(tmp_path: Path, suffix: str, rotation: int, shape: tuple[int, int]) -> None:
    if rotation and suffix == "ts":
        pytest.skip("MPEG-TS holds no rotation")
    path = tmp_path / f"x.{suffix}"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(64, 45)
        if rotation:
            skip_with_old_pyav()
            stream.set_display_rotation(rotation)
        for number in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number, 112, 84), format="rgb24")))
        container.mux(stream.encode(None))
    info, frames = probe_video(path), list(FileSource(path))
    assert (info.height, info.width) == shape == frames[3].rgb.shape[:2]
    upright = np.rot90(frames[3].rgb, -rotation // 90)
    assert frame_number(upright) == 3
    wanted = cv2.resize(numbered_frame(3, 112, 84), (159, 84))
    difference = np.abs(upright.astype(int) - wanted)[30:].mean()
    assert difference < 4  # measured 1.95
    np.testing.assert_array_equal(read_frames(path, [3], info=info)[0], frames[3].rgb)


def test_points_of_square_pixels_need_one_focal_length() -> None:
    """A camera of 90° across, 16:9, stored as 4:3: frames come in their displayed shape, and fx = fy there."""
    shown = np.zeros((90, 160, 3), np.uint8)
    points = to_points(shown, np.ones((45, 80), np.float32), (80.0, 80.0, 79.5, 44.5))
    np.testing.assert_allclose(np.ptp(points["xyz"], axis=0)[:2], [158 / 80, 88 / 80], rtol=1e-6)


def test_absurd_pixels_are_taken_as_square(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with av.open(str(write_video(tmp_path / "x.mp4", 1))) as container:
        frame = next(container.decode(video=0))
    for aspect, width in ((Fraction(900), 64), (Fraction(1, 900), 64), (Fraction(2), 128), (None, 64)):
        stream = SimpleNamespace(sample_aspect_ratio=aspect, container=SimpleNamespace(name="x.mp4"))
        assert displayed_geometry(frame, stream)[1:] == (width, 48)
    assert caplog.text.count("taken as square") == 2


def woven(number: int) -> np.ndarray:
    """A bar that moves by 6 px from field to field, over a ramp."""
    y, x = np.mgrid[:96, :224]
    rgb = np.repeat((60 + x // 4)[..., None], 3, -1)
    left = 20 + 12 * number + 6 * (y % 2)
    rgb[(x >= left) & (x < left + 40)] = 230
    return rgb.astype(np.uint8)


def combing(rgb: np.ndarray) -> float:
    lines = rgb.astype(float).mean(-1)
    return float(np.abs(lines[1:-1] - (lines[:-2] + lines[2:]) / 2).mean())


INTERLACED = {
    "x.mpg": ("mpeg2video", {"flags": "+ildct+ilme", "g": "6", "qmin": "1", "qmax": "2"}),
    "x.mp4": ("libx264", {"x264-params": "tff=1:keyint=6:bframes=2", "crf": "4"}),
    "x.ts": ("libx264", {"x264-params": "tff=1:keyint=6:bframes=2", "crf": "4"}),
}


@pytest.mark.parametrize("name", INTERLACED)
def test_fields_are_taken_apart_the_same_from_everywhere(tmp_path: Path, name: str) -> None:
    codec, options = INTERLACED[name]
    with av.open(str(tmp_path / name), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 224, 96, "yuv420p"
        for number in range(13):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(woven(number), format="rgb24")))
        container.mux(stream.encode(None))
    frames, info = list(FileSource(tmp_path / name)), probe_video(tmp_path / name)
    assert len(frames) == info.num_frames == 13
    assert max(combing(frame.rgb) for frame in frames) < 0.2 * combing(woven(3))  # measured 0.04
    for index in range(13):
        read = read_frames(tmp_path / name, [index], info=info)[0]
        np.testing.assert_array_equal(read, frames[index].rgb)
    tail = list(iter_frames(tmp_path / name, start=7, info=info))
    assert [frame.index for frame in tail] == list(range(7, 13))
    np.testing.assert_array_equal(tail[0].rgb, frames[7].rgb)


DURATIONS_MS = [100, 40, 250, 100, 100, 60]


@pytest.fixture
def animation(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / f"anim.{request.param}"
    first, *others = [Image.fromarray(numbered_frame(number)) for number in range(6)]
    options = {"lossless": True} if request.param == "webp" else {}
    kind = "WEBP" if request.param == "webp" else "PNG"
    first.save(path, kind, save_all=True, append_images=others, duration=DURATIONS_MS, **options)
    return path


@pytest.mark.parametrize("animation", ["webp", "png", "apng"], indirect=True)
def test_animated_images_give_all_frames_at_their_times(animation: Path) -> None:
    frames = list(FileSource(animation))
    assert [frame_number(frame.rgb) for frame in frames] == list(range(6))
    assert [round(1000 * frame.timestamp_s) for frame in frames] == [0, 100, 140, 390, 490, 590]
    assert count_frames(animation) == 6
    np.testing.assert_array_equal(read_frames(animation, [4, 1]), np.stack([frames[4].rgb, frames[1].rgb]))
    assert [frame.index for frame in iter_frames(animation, start=4)] == [4, 5]


@pytest.mark.parametrize("animation", ["webp", "png"], indirect=True)
def test_a_cut_animation_is_used_or_refused_in_one_line(animation: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = animation.read_bytes()
    animation.write_bytes(data[: len(data) * 7 // 10])
    with pytest.raises(VideoReadError, match="anim") as caught:
        list(FileSource(animation))
    assert "\n" not in str(caught.value)
    if animation.suffix == ".png":
        info = probe_video(animation)
        assert 2 <= info.num_frames < 6
        last = info.num_frames - 1
        assert [frame_number(rgb) for rgb in read_frames(animation, [last, 0], info=info)] == [last, 0]


@pytest.mark.parametrize("animation", ["webp"], indirect=True)
def test_an_animation_in_a_folder_of_images_is_told(animation: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_images(animation.parent / "images", 2)
    animation.rename(folder / "img2.webp")
    if cv2.imread(str(folder / "img2.webp")) is None:
        pytest.skip(f"OpenCV {cv2.__version__} does not read animated WebP")
    assert [frame_number(frame.rgb) for frame in iter_frames(folder)] == [0, 1, 0]
    assert "only the first frame is used" in caplog.text


def write_with_cover(path: Path, video: bool) -> Path:
    """Silence and a large cover picture; `video`: and three frames."""
    skip_with_old_pyav()
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else None) as container:
        sound: Any = container.add_stream("libmp3lame" if path.suffix == ".mp3" else "aac", rate=44100)
        cover: Any = container.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 320, 240, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        moving: Any = container.add_stream("libx264", rate=10) if video else None
        if video:
            moving.width, moving.height, moving.pix_fmt = 64, 48, "yuv420p"
        picture = av.VideoFrame.from_ndarray(numbered_frame(200, 320, 240), format="rgb24")
        for packet in [*cover.encode(picture.reformat(format="yuvj420p")), *cover.encode(None)]:
            container.mux(packet)
        for number in range(3 if video else 0):
            container.mux(moving.encode(av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        container.mux(sound.encode(silence))
        for stream in (moving, sound) if video else (sound,):
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["song.m4a", "song.mp4", "song.mp3"])
def test_a_cover_is_no_video(tmp_path: Path, name: str) -> None:
    if name == "song.mp3" and "libmp3lame" not in av.codecs_available:
        pytest.skip("this build of PyAV cannot encode MP3")
    path = write_with_cover(tmp_path / name, video=False)
    for use in (probe_video, count_frames, lambda p: list(iter_frames(p))):
        with pytest.raises(VideoReadError, match=f"{name}: it holds no video, only a cover"):
            use(path)


def test_the_video_is_taken_and_not_its_larger_cover(tmp_path: Path) -> None:
    path = write_with_cover(tmp_path / "film.mp4", video=True)
    assert [frame_number(frame.rgb) for frame in FileSource(path)] == [0, 1, 2]


def test_covers_in_front_are_passed_over() -> None:
    cover = SimpleNamespace(disposition=av.stream.Disposition.attached_pic, width=640, height=480)
    film = SimpleNamespace(disposition=av.stream.Disposition(0), width=64, height=48, codec_context=object())
    streams = SimpleNamespace(video=(cover, film), best=lambda _: cover)
    assert _video_stream(SimpleNamespace(streams=streams), "x") is film


def test_png_stays_a_still(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(numbered_frame(9)).save(buffer, "PNG")
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    assert probe_video(tmp_path / "x.png").num_frames == 1
    assert not probe_video(write_video(tmp_path / "x.mp4", 2)).animated
