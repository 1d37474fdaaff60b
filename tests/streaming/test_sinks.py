"""What is written can be read back: values, scales, and the timestamps of the source to the last digit."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from videomamba_depth.streaming.depth_frame import DepthFrame
from videomamba_depth.streaming.sinks.images import ExrSink, Png16Sink
from videomamba_depth.streaming.sinks.npz import NpzSink
from videomamba_depth.streaming.sinks.raw_stream import RawStreamSink
from videomamba_depth.streaming.sinks.video import FrameLog, FramePainter, VideoSink
from videomamba_depth.streaming.sinks.zarr_group import ZarrSink
from videomamba_depth.utils.color import ColorSettings, DepthColors
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.logger import read_json_lines

_UNEVEN_PTS = [7, 8, 20, 21, 50, 51, 52, 90, 91, 200]


def depth_frames(pts: list[int], height: int = 23, width: int = 31, peak: float = 5.0) -> list[DepthFrame]:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (height, width, 3), np.uint8)
    ramp = np.linspace(0.1, peak, height * width, dtype=np.float32).reshape(height, width)
    base = Fraction(1, 600)
    return [DepthFrame(i, p, base, rgb, ramp + i / 10, "start" if i == 0 else "") for i, p in enumerate(pts)]


def video_sink(path: Path, kind: DepthKind = DepthKind.RELATIVE, side_by_side: bool = True) -> VideoSink:
    return VideoSink(path, FramePainter(DepthColors(kind, ColorSettings(map="gray")), side_by_side), 30.0)


def decode(path: Path) -> list[tuple[Fraction, np.ndarray]]:
    with av.open(str(path)) as container:
        base = container.streams.video[0].time_base
        return [(f.pts * base, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


@pytest.mark.parametrize("side_by_side", [True, False])
def test_video_has_the_timestamps_of_the_source(tmp_path: Path, side_by_side: bool) -> None:
    sink, frames = video_sink(tmp_path / "a.mp4", side_by_side=side_by_side), depth_frames(_UNEVEN_PTS)
    for frame in frames:
        sink.write(frame)
    sink.close()
    decoded = decode(tmp_path / "a.mp4")
    assert [time for time, _ in decoded] == [f.pts * f.time_base for f in frames]
    assert decoded[0][1].shape == (24, 62 if side_by_side else 32, 3)  # even sizes
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.codec_context.name) == (10, "h264")
        assert stream.codec_context.pix_fmt == "yuv420p"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.mp4"]


def test_video_plays_before_it_is_closed(tmp_path: Path) -> None:
    sink = video_sink(tmp_path / "a.mp4")
    for frame in depth_frames([20 * i for i in range(120)]):  # 4 s
        sink.write(frame)
    # what a kill would leave here: all but the fragment in hand and the encoder's look-ahead
    assert 30 <= len(decode(tmp_path / "a.mp4")) < 120
    sink.close()
    assert len(decode(tmp_path / "a.mp4")) == 120


def test_near_is_bright_for_both_kinds(tmp_path: Path) -> None:
    for kind, near_is_last in ((DepthKind.RELATIVE, True), (DepthKind.METRIC, False)):
        path = tmp_path / f"{kind.name}.mp4"
        sink = video_sink(path, kind, side_by_side=False)
        for frame in depth_frames([0, 20, 40]):
            sink.write(frame)
        sink.close()
        picture = decode(path)[0][1].astype(int)
        assert (picture[20].mean() > picture[2].mean() + 20) == near_is_last


def test_source_picture_is_on_the_left(tmp_path: Path) -> None:
    sink, frame = video_sink(tmp_path / "a.mp4"), depth_frames([0], 48, 64)[0]
    frame.rgb[:] = (200, 30, 30)
    sink.write(frame)
    sink.close()
    picture = decode(tmp_path / "a.mp4")[0][1].astype(int)
    assert np.abs(picture[4:-4, 4:60] - (200, 30, 30)).max() < 8
    assert np.abs(picture[:, 68:] - picture[:, 68:, :1]).max() < 8  # gray


def test_small_depth_gets_a_small_picture_beside_it(tmp_path: Path) -> None:
    sink, frame = video_sink(tmp_path / "a.mp4"), depth_frames([0], 48, 64)[0]
    sink.write(DepthFrame(0, 0, frame.time_base, frame.rgb, frame.depth[::2, ::2]))
    sink.close()
    assert decode(tmp_path / "a.mp4")[0][1].shape == (24, 64, 3)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_npz_shards(tmp_path: Path, dtype: str) -> None:
    sink, frames = NpzSink(tmp_path / "d", DepthKind.METRIC, dtype, shard_frames=4), depth_frames(_UNEVEN_PTS)
    for frame in frames:
        sink.write(frame)
    sink.close()
    paths = sorted((tmp_path / "d").iterdir())
    assert [path.name for path in paths] == ["depth_000000.npz", "depth_000004.npz", "depth_000008.npz"]
    shards = [np.load(path) for path in paths]
    depth = np.concatenate([s["depth"] for s in shards])
    assert depth.dtype == dtype
    np.testing.assert_allclose(depth, [f.depth for f in frames], rtol=1e-3 if dtype == "float16" else 0)
    assert np.concatenate([s["frame_index"] for s in shards]).tolist() == list(range(10))
    assert np.concatenate([s["pts"] for s in shards]).tolist() == _UNEVEN_PTS
    assert np.concatenate([s["timestamp_s"] for s in shards]).tolist() == [p / 600 for p in _UNEVEN_PTS]
    assert str(shards[0]["depth_kind"]) == "metric_depth_m"
    assert shards[0]["time_base"].tolist() == [1, 600]


def test_npz_does_not_overflow_to_infinity(tmp_path: Path) -> None:
    sink = NpzSink(tmp_path, DepthKind.RELATIVE)
    sink.write(depth_frames([0], peak=1e6)[0])
    sink.close()
    assert np.load(tmp_path / "depth_000000.npz")["depth"].max() == 65504


def test_png16_of_metric_depth_has_one_fixed_scale(tmp_path: Path) -> None:
    sink = Png16Sink(tmp_path, DepthKind.METRIC, max_depth_m=20.0)
    frames = depth_frames([0, 1, 2])
    for frame in frames:
        sink.write(frame)
    about = json.loads((tmp_path / "scale.json").read_text())
    assert about["depth_kind"] == "metric_depth_m"
    assert about["scales"] == [{"first_frame": 0, "scale": 20 / 65535}]
    for frame in frames:
        value = cv2.imread(str(tmp_path / f"{frame.index:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert value.dtype == np.uint16
        np.testing.assert_allclose(value * (20 / 65535), frame.depth, atol=20 / 65535 * 0.51)


def test_png16_of_relative_depth_never_saturates(tmp_path: Path) -> None:
    sink = Png16Sink(tmp_path, DepthKind.RELATIVE)
    zero, small, large = (depth_frames([0], peak=p)[0].depth for p in (1.0, 3.0, 40.0))
    base = Fraction(1, 30)
    rgb = np.zeros((23, 31, 3), np.uint8)
    depths = [zero * 0, small, small, large, small]
    for index, depth in enumerate(depths):
        sink.write(DepthFrame(index, index, base, rgb, depth))
    scales = json.loads((tmp_path / "scale.json").read_text())["scales"]
    assert [s["first_frame"] for s in scales] == [0, 1, 3]
    for index, depth in enumerate(depths):
        scale = next(s["scale"] for s in reversed(scales) if s["first_frame"] <= index)
        value = cv2.imread(str(tmp_path / f"{index:06d}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_allclose(value * scale, depth, atol=scale * 0.51)


def test_frame_log_is_whole_after_every_line(tmp_path: Path) -> None:
    log = FrameLog(tmp_path / "f.jsonl")
    for number, frame in enumerate(depth_frames([3, 9]), 1):
        log.write(frame)
        assert len(read_json_lines(tmp_path / "f.jsonl")) == number
    log.close()
    first, second = read_json_lines(tmp_path / "f.jsonl")
    assert first == {"frame": 0, "pts": 3, "time_s": 0.005, "depth_min": 0.1, "depth_max": 5.0, "reset": "start"}
    assert "reset" not in second


def test_full_disk_is_one_line(tmp_path: Path) -> None:
    sink = NpzSink(tmp_path / "d", DepthKind.RELATIVE)
    sink.write(depth_frames([0])[0])
    (tmp_path / "d").rmdir()
    with pytest.raises(UserError, match=r"cannot write .*depth_000000\.npz: No such file"):
        sink.close()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_exr_is_read_back_by_ffmpeg(tmp_path: Path, dtype: str) -> None:
    sink, frames = ExrSink(tmp_path / "d", DepthKind.METRIC, dtype), depth_frames([0, 5, 6])
    for frame in frames:
        sink.write(frame)
    sink.close()
    for frame in frames:
        with av.open(str(tmp_path / "d" / f"{frame.index:06d}.exr")) as container:
            picture = next(container.decode(video=0))
        plane = picture.planes[0]  # read as it is: FFmpeg's conversions clip at 1
        rows = np.frombuffer(plane, dtype).reshape(plane.height, plane.line_size // np.dtype(dtype).itemsize)
        assert np.array_equal(rows[:, : plane.width], frame.depth.astype(dtype))
    assert json.loads((tmp_path / "d" / "about.json").read_text())["depth_kind"] == "metric_depth_m"


def test_zarr_is_whole_up_to_the_last_chunk(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", reason="it needs Python 3.11")
    sink, frames = (
        ZarrSink(tmp_path / "d.zarr", DepthKind.RELATIVE, "float32", chunk_frames=4),
        depth_frames(_UNEVEN_PTS),
    )
    for frame in frames:
        sink.write(frame)
    assert zarr.open_group(tmp_path / "d.zarr", mode="r").attrs["num_frames"] == 8
    sink.close()
    group = zarr.open_group(tmp_path / "d.zarr", mode="r")
    assert dict(group.attrs) == {
        "depth_kind": "affine_invariant_inverse_depth",
        "time_base": "1/600",
        "num_frames": 10,
    }
    assert np.array_equal(group["depth"][:], [f.depth for f in frames])
    assert group["pts"][:].tolist() == _UNEVEN_PTS
    assert group["frame_index"][:].tolist() == list(range(10))


def test_raw_stream(tmp_path: Path) -> None:
    frames = depth_frames([0, 1])
    with (tmp_path / "raw").open("wb") as file:
        sink = RawStreamSink(file, "float32")
        for frame in frames:
            sink.write(frame)
        sink.close()
    got = np.fromfile(tmp_path / "raw", "<f4").reshape(2, 23, 31)
    assert np.array_equal(got, [f.depth for f in frames])


def test_raw_stream_without_reader_is_one_line() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with pytest.raises(UserError, match="stopped reading after 0 frames"), os.fdopen(write_end, "wb", 0) as file:
        RawStreamSink(file).write(depth_frames([0])[0])
