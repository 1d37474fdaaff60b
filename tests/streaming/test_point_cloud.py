"""Point clouds are written while a video is streamed, and read again."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from media import numbered_frame, write_video
from tiny import save_tiny_teacher

from videomamba_depth.commands.stream import main
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.streaming.depth_frame import DepthFrame
from videomamba_depth.streaming.key_frames.key_frames import AddedFrames
from videomamba_depth.streaming.sinks.point_cloud import PointCloudSink, load_intrinsics
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.logger import read_json_lines

_INTRINSICS = (50.0, 40.0, 31.5, 23.5)
_ROOT = Path(__file__).parents[2]


def read_ply(path: Path) -> tuple[str, np.ndarray]:
    """Return (header, points [P]); written from the format's description, not from the sink."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    header = head.decode("ascii")
    lines = header.splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    kinds = {"float": "<f4", "uchar": "u1"}
    fields = [(line.split()[2], kinds[line.split()[1]]) for line in lines if line.startswith("property")]
    count = int(next(line for line in lines if line.startswith("element vertex")).split()[2])
    points = np.frombuffer(body, np.dtype(fields))
    assert len(points) == count
    return header, points


def frame(index: int, depth: np.ndarray, reset: str = "", added: int | None = None) -> DepthFrame:
    notes = {"key": {"added": [] if added is None else [added]}}
    return DepthFrame(index, index, Fraction(1, 10), numbered_frame(index), depth.astype(np.float32), reset, notes)


def stream(tmp_path: Path, checkpoint: Path | str, source: Path, *overrides: str) -> Path:
    """Run the command in this process; return the folder of point clouds."""
    named = [f"checkpoint={checkpoint}", f"input={source}", f"output={tmp_path}/out", "device=cpu", "video=none"]
    main(load_config("stream", StreamConfig, [*named, *overrides]))
    return tmp_path / "out" / f"{source.stem}_points"


def test_metric_points_project_back_to_their_pixels(tmp_path: Path) -> None:
    depth = np.linspace(1, 9, 48 * 64).reshape(48, 64)
    depth[0, 0], depth[5, 7] = np.nan, 0.0
    PointCloudSink(tmp_path, DepthKind.METRIC, _INTRINSICS).write(frame(0, depth))
    header, points = read_ply(tmp_path / "000000.ply")
    assert "comment unit: meter" in header
    assert len(points) == 48 * 64 - 2
    fx, fy, cx, cy = _INTRINSICS
    columns = np.rint(points["x"] / points["z"] * fx + cx).astype(int)
    rows = np.rint(points["y"] / points["z"] * fy + cy).astype(int)
    np.testing.assert_allclose(points["z"], depth[rows, columns], rtol=1e-6)
    colors = np.stack([points[c] for c in ("red", "green", "blue")], -1)
    np.testing.assert_array_equal(colors, numbered_frame(0)[rows, columns])
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) == len(points)


def test_relative_points_have_no_unit_and_one_scale_per_shot(tmp_path: Path) -> None:
    sink = PointCloudSink(tmp_path, DepthKind.RELATIVE, _INTRINSICS, every=1)
    depth = np.full((48, 64), 4.0)
    depth[:10], depth[-1] = 8.0, 1e-6  # twice as near; as good as infinitely far
    for index, reset in enumerate(("start", "", "cut")):
        sink.write(frame(index, depth * (1 + index), reset))
    header, points = read_ply(tmp_path / "000000.ply")
    assert "comment unit: none" in header
    assert sorted(set(points["z"].tolist())) == [0.5, 1.0]
    assert len(points) == 47 * 64
    assert sorted(set(read_ply(tmp_path / "000001.ply")[1]["z"].tolist())) == [0.25, 0.5]
    assert sorted(set(read_ply(tmp_path / "000002.ply")[1]["z"].tolist())) == [0.5, 1.0]


def test_nothing_usable_is_an_empty_cloud(tmp_path: Path) -> None:
    for kind in DepthKind:
        PointCloudSink(tmp_path / kind.value, kind, _INTRINSICS).write(frame(0, np.zeros((48, 64))))
        assert len(read_ply(tmp_path / kind.value / "000000.ply")[1]) == 0


def test_smaller_depth_keeps_the_view(tmp_path: Path) -> None:
    PointCloudSink(tmp_path, DepthKind.METRIC, _INTRINSICS).write(frame(0, np.full((24, 32), 2.0)))
    points = read_ply(tmp_path / "000000.ply")[1]
    assert points["x"].min() == pytest.approx(2 * (0.5 - 31.5) / 50)  # the middle of the first two columns
    assert points["x"].max() == pytest.approx(2 * (62.5 - 31.5) / 50)


def test_every_so_many_frames_even_when_some_were_dropped(tmp_path: Path) -> None:
    sink = PointCloudSink(tmp_path, DepthKind.METRIC, _INTRINSICS, every=4)
    for index in (0, 1, 3, 6, 7, 9, 10, 15):
        sink.write(frame(index, np.ones((48, 64))))
    sink.close()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["000000.ply", "000006.ply", "000010.ply", "000015.ply"]


def test_key_frames_are_written_and_so_is_the_frame_that_a_cut_made_one(tmp_path: Path) -> None:
    sink = PointCloudSink(tmp_path, DepthKind.METRIC, _INTRINSICS, every=AddedFrames())
    depth = np.ones((48, 64))
    # A live source dropped frames 2 and 3; the second frame is added, the third one by the cut after it, none later.
    for index, reset, added in [(0, "start", None), (1, "", 1), (4, "", None), (5, "cut", 2), (6, "", None)]:
        sink.write(frame(index, depth * (index + 1), reset, added))
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["000001.ply", "000004.ply"]
    assert set(read_ply(tmp_path / "000004.ply")[1]["z"].tolist()) == {5.0}


def test_the_command_writes_meters_of_metric_checkpoints(tmp_path: Path) -> None:
    teacher = save_tiny_teacher(tmp_path / "teacher", "metric")
    source = write_video(tmp_path / "clip.mp4", 5)
    options = ["short_side=42", "intrinsics=[50,40,31.5,23.5]", "ply_every=2", "raw=npz", "raw_precision=float32"]
    folder = stream(tmp_path, f"teacher:{teacher}", source, *options)
    assert [p.name for p in sorted(folder.iterdir())] == ["000000.ply", "000002.ply", "000004.ply"]
    depth = np.load(tmp_path / "out" / "clip_depth" / "depth_000000.npz")["depth"]
    header, points = read_ply(folder / "000002.ply")
    assert "comment unit: meter" in header
    np.testing.assert_array_equal(points["z"], depth[2].ravel())


def test_the_command_writes_one_cloud_per_key_frame(tmp_path: Path, checkpoint: Path) -> None:
    source = write_video(tmp_path / "clip.mp4", 8)
    (tmp_path / "camera.txt").write_text("50 0 31.5\n0 40 23.5\n0 0 1\n")
    options = ["key_frames.enabled=true", "key_frames.every=3", "key_frames.duplicate=1"]
    folder = stream(tmp_path, checkpoint, source, f"intrinsics={tmp_path}/camera.txt", "resolution=model", *options)
    lines = read_json_lines(tmp_path / "out" / "clip.frames.jsonl")
    added = [number for line in lines for number in line["key"]["added"]]
    assert added
    assert [p.name for p in sorted(folder.iterdir())] == [f"{number:06d}.ply" for number in added]
    assert len(read_ply(folder / f"{added[0]:06d}.ply")[1]) > 0


def test_intrinsics_are_four_numbers_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "camera.txt"
    for text in ("50, 40, 31.5, 23.5", "50 0 31.5\n0 40 23.5\n0 0 1\n"):
        file.write_text(text)
        assert load_intrinsics(str(file)) == load_intrinsics([50, 40, 31.5, 23.5]) == _INTRINSICS
    file.write_text("f = 50")
    for given, message in [
        (str(tmp_path / "none.txt"), "none.txt': No such file"),
        (str(file), "something else than numbers"),
        ([50.0, 40.0], r"must be \[fx,fy,cx,cy\]"),
        ([50.0, 0.0, 1.0, 1.0], "focal lengths not 0"),
        ([50.0, float("nan"), 1.0, 1.0], "must be finite"),
        ([50.0, -40.0, 1.0, 1.0], "positive fx and fy"),
    ]:
        with pytest.raises(UserError, match=message):
            load_intrinsics(given)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("intrinsics=[50,50]", "intrinsics must hold 4 values"),
        ("intrinsics={fx: 50}", r"cannot read the intrinsics file .*; give \[fx,fy,cx,cy\] or a file"),
        ("intrinsics=[a,b,c,d]", "intrinsics must be"),
        ("intrinsics=/no/camera.txt", "cannot read the intrinsics file '/no/camera.txt'"),
        ("ply_every=0", "ply_every must be positive"),
    ],
)
def test_wrong_options(tmp_path: Path, checkpoint: Path, video: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        stream(tmp_path, checkpoint, video, override)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="point clouds, which need a folder"):
        stream(tmp_path, checkpoint, video, "intrinsics=[1,1,1,1]", "output=-")
