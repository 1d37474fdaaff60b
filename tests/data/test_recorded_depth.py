"""Depth that programs have recorded: every form gives the same numbers, and what is wrong is refused by name."""

from __future__ import annotations

import json
import pickle
import re
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

pytest.importorskip("zarr", reason="it needs Python 3.11")
import zarr

from videomamba_depth.data.recorded_depth import (
    arrays,
    find_mixed_up,
    find_recorded_depth,
    match_frames,
    open_recorded_depth,
)
from videomamba_depth.streaming.depth_frame import DepthFrame
from videomamba_depth.streaming.sinks.images import ExrSink, Png16Sink
from videomamba_depth.streaming.sinks.npz import NpzSink
from videomamba_depth.streaming.sinks.zarr_group import ZarrSink
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError

METRIC = DepthKind.METRIC
DEPTH = np.random.default_rng(0).uniform(0.5, 9.0, (7, 11, 13)).astype(np.float32)  # [F,h,w], odd sizes


def exr(depth: np.ndarray, channel: bytes = b"Y", half: bool = False) -> bytes:
    """Return an EXR of one channel [h,w], or of R, G and B [h,w,3]."""
    encoder = av.CodecContext.create("exr", "w")
    encoder.height, encoder.width = depth.shape[:2]
    encoder.pix_fmt, encoder.time_base = ("grayf32le" if depth.ndim == 2 else "gbrpf32le"), Fraction(1, 30)
    encoder.options = {"format": "half" if half else "float", "compression": "zip16"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(depth), format=encoder.pix_fmt)
    frame.pts, frame.time_base = 0, encoder.time_base
    data = b"".join(bytes(packet) for packet in encoder.encode(frame))
    return data.replace(b"Y\0\x02", channel + b"\0\x02", 1) if depth.ndim == 2 else data


def png(values: np.ndarray) -> bytes:
    return cv2.imencode(".png", values)[1].tobytes()


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def npy_folder(path: Path) -> Path:
    path.mkdir()
    for i, depth in enumerate(DEPTH):
        np.save(path / f"frame{i}.npy", depth[None])
    return path


def frame_npz_folder(path: Path) -> Path:
    path.mkdir()
    for i, depth in enumerate(DEPTH):
        np.savez_compressed(path / f"frame{i}.npz", depth=depth, focallength_px=np.array(800.0))
    return path


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def stored(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def npy(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def zarr_group(path: Path, version: int) -> Path:
    group = zarr.create_group(path, zarr_format=version)
    array = group.create_array("depths", shape=DEPTH.shape, chunks=(3, 11, 13), dtype=np.float32)
    array[:] = DEPTH
    return path


def zarr_array(path: Path) -> Path:
    zarr.create_array(path, shape=DEPTH.shape, chunks=(2, 11, 13), dtype=np.float32, zarr_format=2)[:] = DEPTH
    return path


EXACT: dict[str, Callable[[Path], Path]] = {
    "npz compressed": lambda p: saved(p / "a.npz", depths=DEPTH, fps=np.array(24.0)),
    "npz stored": lambda p: stored(p / "a.npz", disparity=DEPTH, confidence=DEPTH[:, 0]),
    "npz, only array": lambda p: stored(p / "a.npz", of_my_own=DEPTH[:, None]),
    "npz, Fortran order": lambda p: stored(p / "a.npz", depth=np.asfortranarray(DEPTH)),
    "npz, big-endian": lambda p: stored(p / "a.npz", depth=DEPTH.astype(">f8")),
    "npy": lambda p: npy(p / "a.npy", DEPTH[..., None]),
    "npy, Fortran order": lambda p: npy(p / "a.npy", np.asfortranarray(DEPTH)),
    "folder of npy": lambda p: npy_folder(p / "a"),
    "folder of npz, one frame each": lambda p: frame_npz_folder(p / "a"),
    "EXR": lambda p: folder(p / "a", {f"{i}.exr": exr(d) for i, d in enumerate(DEPTH)}),
    "EXR, channel Z": lambda p: folder(p / "a", {f"frame_{i:05d}.exr": exr(d, b"Z") for i, d in enumerate(DEPTH)}),
    "EXR, R = G = B": lambda p: folder(p / "a", {f"{i}.exr": exr(np.stack([d] * 3, -1)) for i, d in enumerate(DEPTH)}),
    "folder of folders": lambda p: folder(
        p / "a", {f"img{i}/depth.exr": exr(d) for i, d in enumerate(DEPTH)} | {"img0/mask.png": png(np.ones((2, 2)))}
    ),
    "Zarr v2": lambda p: zarr_group(p / "a.zarr", 2),
    "Zarr v3": lambda p: zarr_group(p / "a.zarr", 3),
    "Zarr array": lambda p: zarr_array(p / "a.zarr"),
}


@pytest.mark.parametrize("form", EXACT)
def test_every_form_gives_the_same_numbers(tmp_path: Path, form: str) -> None:
    found = pickle.loads(pickle.dumps(open_recorded_depth(EXACT[form](tmp_path), METRIC)))
    assert (found.num_frames, found.size, found.kind) == (7, (11, 13), METRIC)
    np.testing.assert_array_equal(found.read_many([5, 0, 5]), DEPTH[[5, 0, 5]])
    np.testing.assert_array_equal(found.read(6), DEPTH[6])
    assert found.read(0).dtype == np.float32
    np.testing.assert_array_equal(np.stack(list(found)), DEPTH)
    with pytest.raises(IndexError):
        found.read(7)


def test_a_large_compressed_array_is_decompressed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "HELD_BYTES", 2000)
    found = open_recorded_depth(saved(tmp_path / "a.npz", depth=DEPTH), METRIC)
    np.testing.assert_array_equal(found.read_many([4, 1]), DEPTH[[4, 1]])
    np.testing.assert_array_equal(np.stack(list(found)), DEPTH)


@pytest.mark.parametrize("pack", [saved, stored])
def test_a_long_video_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[..., Path]) -> None:
    monkeypatch.setattr(arrays, "HELD_BYTES", 2**20)
    path = pack(tmp_path / "a.npz", depth=np.ones((3000, 32, 48), np.float16))  # 9 MB
    tracemalloc.start()
    assert sum(float(frame.sum()) for frame in open_recorded_depth(path, METRIC)) == 3000 * 32 * 48
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_16_bits_and_a_scale(tmp_path: Path) -> None:
    millimeters = np.round(1000 * DEPTH).astype(np.uint16)
    millimeters[0, 0, 0] = 0
    path = folder(tmp_path / "a", {f"{i}.png": png(values) for i, values in enumerate(millimeters)})
    with pytest.raises(UserError, match="whole numbers; say the scale in meters"):
        open_recorded_depth(path, METRIC)
    found = open_recorded_depth(path, METRIC, scale=0.001)
    assert np.isnan(found.read(0)[0, 0])
    np.testing.assert_allclose(found.read(3), DEPTH[3], atol=5.1e-4)
    (tmp_path / "about.json").write_text(json.dumps({"depth_kind": METRIC.value, "scale": 0.001}))
    np.testing.assert_array_equal(open_recorded_depth(path).read(3), found.read(3))
    with pytest.raises(UserError, match=r"says that its scale is 0\.001; scale 1 contradicts"):
        open_recorded_depth(path, scale=1.0)
    with pytest.raises(UserError, match="says that it is metric_depth_m; kind scale_invariant_depth contradicts"):
        open_recorded_depth(path, DepthKind.SCALED_DEPTH)


def test_a_scale_that_some_files_alone_say_is_no_scale_of_all(tmp_path: Path) -> None:
    for i, values in enumerate(DEPTH):
        np.savez(tmp_path / f"{i}.npz", depth=values, **({"scale": 2.0} if i < 3 else {}))
    with pytest.raises(UserError, match=r"some say a scale and 3\.npz says none; write it into all"):
        open_recorded_depth(tmp_path, METRIC)


def test_a_chunk_that_is_missing_from_zarr_is_no_depth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.zarr"
    zarr.open_group(str(path), mode="w").create_array("depth", data=DEPTH, chunks=(2, *DEPTH.shape[1:]))
    (path / "depth" / "c" / "1" / "0" / "0").unlink()
    found = open_recorded_depth(path, DepthKind.RELATIVE).read_many(range(len(DEPTH)))
    assert np.isnan(found[2:4]).all()
    np.testing.assert_array_equal(np.delete(found, (2, 3), 0), np.delete(DEPTH, (2, 3), 0))
    assert f"{path} has no chunk of frame 2" in caplog.text


@pytest.mark.parametrize("raw", ["npz", "zarr", "exr", "png16"])
def test_what_our_streams_write(tmp_path: Path, raw: str) -> None:
    sink = {
        "npz": lambda: NpzSink(tmp_path / "clip_depth", METRIC, "float32", shard_frames=3),
        "zarr": lambda: ZarrSink(tmp_path / "clip_depth.zarr", METRIC, "float32", chunk_frames=3),
        "exr": lambda: ExrSink(tmp_path / "clip_depth", METRIC),
        "png16": lambda: Png16Sink(tmp_path / "clip_depth", METRIC, max_depth_m=4.0),  # doubles on the way
    }[raw]()
    numbers = [0, 1, 2, 4, 5, 6, 9]  # a camera dropped frames
    for number, depth in zip(numbers, DEPTH, strict=True):
        sink.write(DepthFrame(number, 1001 * number, Fraction(1, 30000), np.empty((0, 0, 3), np.uint8), depth))
    sink.close()
    found = open_recorded_depth(find_recorded_depth(tmp_path, "clip.mp4"))
    assert found.kind is METRIC
    np.testing.assert_allclose(np.stack(list(found)), DEPTH, atol=2e-4 if raw == "png16" else 0)
    assert found.frame_numbers is not None
    assert found.frame_numbers.tolist() == numbers
    assert match_frames(found, 3, numbers=[9, 0, 4], total=10) == [6, 0, 3]
    with pytest.raises(UserError, match="no depth of 3 of 10 frames, by number: 3, 7, 8"):
        match_frames(found, 10)
    if raw in ("npz", "zarr"):
        assert found.timestamps is not None
        np.testing.assert_allclose(found.timestamps, np.array(numbers) * 1001 / 30000)


def test_a_gray_video_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ramp = np.tile(np.linspace(0, 250, 64).astype(np.uint8), (48, 1))
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(np.stack([np.roll(ramp, i, 1)] * 3, -1), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    found = open_recorded_depth(tmp_path / "a.mp4", DepthKind.RELATIVE)
    assert "8 bits" in caplog.text
    assert np.abs(found.read(3) - np.roll(ramp, 3, 1)).max() < 12
    np.testing.assert_array_equal(np.stack(list(found))[3], found.read(3))


def test_videos_are_found_by_their_names(tmp_path: Path) -> None:
    for name in ("day/a_depths.npz", "day/b.npy", "c.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.savez(tmp_path / name, DEPTH) if name.endswith("npz") else np.save(tmp_path / name, DEPTH)
    npy_folder(tmp_path / "day" / "d")
    zarr_group(tmp_path / "e_depth.zarr", 3)
    assert find_recorded_depth(tmp_path, "day/a.mp4").name == "a_depths.npz"
    assert find_recorded_depth(tmp_path, "day/b").name == "b.npy"
    assert find_recorded_depth(tmp_path, "night/c.mov").name == "c.npz"
    assert find_recorded_depth(tmp_path, "day/d").name == "d"
    assert find_recorded_depth(tmp_path, "e.mp4").name == "e_depth.zarr"
    assert find_recorded_depth(tmp_path / "day" / "d", "anything.mp4", alone=True).name == "d"
    with pytest.raises(UserError, match=r"has no depth of 'day/x\.mp4'; expected day/x\.npz"):
        find_recorded_depth(tmp_path, "day/x.mp4")


def test_a_video_is_never_its_own_depth(tmp_path: Path) -> None:
    for name in ("videos/clip.mp4", "depth/note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    root, video = tmp_path / "depth", tmp_path / "videos" / "clip.mp4"
    for name in (str(video), "../videos/clip.mp4"):  # of lists
        with pytest.raises(UserError, match="has no depth of"):
            find_recorded_depth(root, name)
    with pytest.raises(UserError, match="has no depth of"):
        find_recorded_depth(video.parent, "clip.mp4", source=video)
    npy(tmp_path / "0.npy", DEPTH)
    for name in (".", ".."):
        with pytest.raises(UserError, match="has no depth of"):
            find_recorded_depth(root, name)
    npy(root / "clip.npy", DEPTH)
    assert find_recorded_depth(root, str(video), source=video) == root / "clip.npy"
    assert find_recorded_depth(root, "../videos/clip.mp4", source=video) == root / "clip.npy"


def test_one_recording_is_not_of_two_videos(tmp_path: Path) -> None:
    root, day, c = tmp_path / "clip.npz", tmp_path / "day", tmp_path / "c.npz"
    folder(day, {"d.npz": b""})
    found = {"a/clip.mp4": root, "b/clip.mp4": root, "c.mp4": c, "day.mp4": day, "day/d": day / "d.npz"}
    wrong = find_mixed_up(found, {"e.mp4": c})
    assert set(wrong) == {*found} - {"day.mp4"}
    assert "depth of 'a/clip.mp4' and of 'b/clip.mp4'" in wrong["a/clip.mp4"]
    assert "is the video 'e.mp4' and not depth of 'c.mp4'" in wrong["c.mp4"]
    assert "lies among the frames of 'day.mp4'" in wrong["day/d"]
    assert not find_mixed_up({"a.mp4": root, "b.mp4": c}, {"a.mp4": tmp_path / "a.mp4"})


def test_of_one_clip_the_recording_of_its_name_counts(tmp_path: Path) -> None:
    npy(tmp_path / "other.npy", DEPTH)
    with pytest.raises(UserError, match=r"no depth that is called like 'clip\.mp4': it holds other\.npy; rename it"):
        find_recorded_depth(tmp_path, "clip.mp4", alone=True)
    npy(tmp_path / "third.npy", DEPTH)
    with pytest.raises(UserError, match=r"other\.npy and 1 more"):
        find_recorded_depth(tmp_path, "clip.mp4", alone=True)
    assert find_recorded_depth(tmp_path / "other.npy", "clip.mp4", alone=True) == tmp_path / "other.npy"
    npy(tmp_path / "clip_depth.npy", DEPTH)
    assert find_recorded_depth(tmp_path, "clip.mp4", alone=True) == tmp_path / "clip_depth.npy"
    for first in (0, 3):
        (tmp_path / "shards").mkdir(exist_ok=True)
        saved(tmp_path / "shards" / f"{first}.npz", depth=DEPTH[:3], frame_index=np.arange(first, first + 3))
    assert find_recorded_depth(tmp_path / "shards", "clip.mp4", alone=True) == tmp_path / "shards"


def test_times_count_where_both_sides_have_them(tmp_path: Path) -> None:
    times = np.array([0, 1, 2, 4, 5, 6, 7]) / 10  # frame 3 was lost, one more was recorded
    timed = open_recorded_depth(stored(tmp_path / "t.npz", depth=DEPTH, timestamps=times), METRIC)
    with pytest.raises(UserError, match=r"no depth of 1 of 7 frames, by time: 0\.300 s"):
        match_frames(timed, 7, timestamps=np.arange(7) / 10)
    assert match_frames(timed, 7, timestamps=times + 0.02) == list(range(7))
    for offset, message in ((1.234, r"all stamps are 1\.234 s early"), (-0.07, r"stamps are 0\.070 s late")):
        with pytest.raises(UserError, match=message):
            match_frames(timed, 7, timestamps=times + offset)
    assert match_frames(timed, 7) == list(range(7))  # a source without a clock
    with pytest.raises(UserError, match="the clip has 7"):
        match_frames(timed, 4, numbers=[0, 2, 3, 7], total=7)  # places that such a source does not have


def test_frames_are_matched_by_name_number_place_or_time(tmp_path: Path) -> None:
    named = open_recorded_depth(npy_folder(tmp_path / "named"), METRIC)  # frame0 … frame6
    assert match_frames(named, 2, names=["frame6", "frame2"], numbers=[0, 1], total=7) == [6, 2]
    with pytest.raises(UserError, match="no depth of 1 of 2 frames, by name: frame9"):
        match_frames(named, 2, names=["frame6", "frame9"])
    timed = open_recorded_depth(stored(tmp_path / "t.npz", depth=DEPTH, timestamps=np.arange(7) / 10), METRIC)
    assert match_frames(timed, 3, numbers=[0, 2, 4], total=7) == [0, 2, 4]
    assert match_frames(timed, 7, total=20) == list(range(7))
    assert match_frames(timed, 3, timestamps=[0.11, 0.31, 0.49], total=20) == [1, 3, 5]
    with pytest.raises(UserError, match=r"by time: 0\.800 s"):
        match_frames(timed, 3, timestamps=[0.4, 0.6, 0.8], total=20)
    with pytest.raises(UserError, match="depth of 7 frames, the clip has 8"):
        match_frames(timed, 8)


def test_frames_with_an_axis_of_one_channel(tmp_path: Path) -> None:
    for i in range(2):
        npy(tmp_path / f"{i}.npy", DEPTH[i][..., None])
    opened = open_recorded_depth(tmp_path, METRIC)
    assert (opened.num_frames, opened.size) == (2, DEPTH.shape[1:])
    np.testing.assert_array_equal(opened.read(1), DEPTH[1])


def damaged_npz(path: Path) -> Path:
    whole = saved(path / "a.npz", depth=DEPTH).read_bytes()
    (path / "a.npz").write_bytes(whole[: len(whole) // 2])
    return path / "a.npz"


def other_size(path: Path) -> Path:
    np.save(npy_folder(path / "a") / "frame3.npy", DEPTH[0, :5])
    return path / "a"


EXR = exr(DEPTH[0])
EXR_TABLE = next(
    EXR[i : i + 8] for i in range(len(EXR)) if int.from_bytes(EXR[i : i + 8], "little") == i + 8
)  # one chunk
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda p: p / "no.npz", "there is no recorded depth at"),
    "objects": (lambda p: npy(p / "a.npy", np.array([{}], dtype=object)), "nothing is unpickled"),
    "damaged": (damaged_npz, "cannot read depth"),
    "empty": (lambda p: folder(p, {"a.npy": b""}) / "a.npy", "cannot read depth"),
    "two arrays": (lambda p: saved(p / "a.npz", one=DEPTH, two=DEPTH), "must have one array of depth"),
    "colors": (lambda p: npy(p / "a.npy", np.zeros((4, 5, 6, 3))), r"has the shape \[4, 5, 6, 3\]"),
    "another size": (other_size, "must have one size"),
    "colored PNG": (
        lambda p: folder(p / "a", {"0.png": png(np.random.default_rng(0).integers(0, 255, (4, 5, 3)))}),
        "colored picture",
    ),
    "EXR, many channels": (
        lambda p: folder(p / "a", {"0.exr": exr(np.ones((9, 9, 3), np.float32)).replace(b"R\0\x02", b"Z\0\x02")}),
        "it has the channels B, G, Z",
    ),
    **{
        f"EXR, {name}": ((lambda p, data=data: folder(p / "a", {"0.exr": data})), message)
        for name, data, message in (
            ("half of it", EXR[: len(EXR) // 2], "it is cut off"),
            ("without its last byte", EXR[:-1], "it is cut off"),
            ("of a header alone", EXR[:60], "it is cut off"),
            ("whose writer was stopped", EXR.replace(EXR_TABLE, bytes(len(EXR_TABLE))), "its writer was stopped"),
            (
                "DWA",
                re.sub(rb"(compression\0){2}\x01\0{3}.", lambda m: m[0][:-1] + b"\x08", EXR),
                "its compression is DWA",
            ),
        )
    },
    "empty folder": (lambda p: folder(p / "a", {"note.txt": b"x"}), "holds no npz, npy, EXR or PNG"),
    "a text": (lambda p: folder(p, {"a.txt": b"x"}) / "a.txt", "is no form of recorded depth"),
    "too many numbers": (
        lambda p: saved(p / "a.npz", depth=DEPTH, frame_index=np.arange(8)),
        "holds 7 frames and 8 frame numbers",
    ),
    "a scale that is none": (lambda p: saved(p / "a.npz", depth=DEPTH, scale=True), "must hold one number as scale"),
    "too few times": (lambda p: saved(p / "a.npz", depth=DEPTH, timestamps=np.arange(6)), "7 frames and 6 time stamps"),
    "NaN times": (lambda p: saved(p / "a.npz", depth=DEPTH, timestamps=np.full(7, np.nan)), "time stamps that are no"),
    "damaged note": (lambda p: folder(p, {"about.json": b"{"}) and npy(p / "a.npy", DEPTH), "cannot read .*about"),
    "damaged Zarr": (lambda p: folder(p / "a.zarr", {"zarr.json": b"{"}), "cannot read depth"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        list(open_recorded_depth(make(tmp_path), METRIC))
    assert "\n" not in str(caught.value)


def test_a_kind_is_never_guessed(tmp_path: Path) -> None:
    path = npy(tmp_path / "depth_m.npy", DEPTH)
    with pytest.raises(UserError, match="does not say what its depth means; name its kind: affine_invariant_inverse"):
        open_recorded_depth(path)
    with pytest.raises(UserError, match="'inverse' is no kind of depth"):
        open_recorded_depth(path, "inverse")


def test_the_digest_follows_content_kind_and_scale(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", DEPTH)
    digests = {
        open_recorded_depth(path, METRIC).digest(),
        open_recorded_depth(path, METRIC, scale=2.0).digest(),
        open_recorded_depth(path, DepthKind.SCALED_DEPTH).digest(),
        open_recorded_depth(npy(tmp_path / "a.npy", DEPTH + 1), METRIC).digest(),
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"scale": np.linspace(0.1, 0.2, 7)}, "one number as scale"),
        ({"scale": "abc"}, "one number as scale"),
        ({"scale": np.zeros(0)}, "one number as scale"),
        ({"offset": 1.5}, "says offset=1.5"),
        ({"frame_index": [str(i) for i in range(7)]}, "frame numbers that are no numbers"),
        ({"timestamps": [f"{i} s" for i in range(7)]}, "time stamps that are no numbers"),
    ],
)
def test_what_an_npz_says_otherwise_is_refused(tmp_path: Path, columns: dict, reason: str) -> None:
    np.savez(tmp_path / "a.npz", depth=DEPTH, depth_kind=METRIC.value, **columns)
    with pytest.raises(UserError, match=reason):
        open_recorded_depth(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"scale": "abc"}, "one number as scale"),
        ({"scale": [1, 2]}, "one number as scale"),
        ({"shift": 0.5}, "says shift=0.5"),
        ({"num_frames": "x"}, "one number as num_frames"),
        ({"num_frames": "nan"}, "finite number as num_frames"),
        ({"time_base": "1/0"}, "time_base as a fraction"),
    ],
)
def test_what_a_zarr_group_says_otherwise_is_refused(tmp_path: Path, attributes: dict, reason: str) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("depth", data=DEPTH)
    group.create_array("pts", data=np.arange(7))
    group.attrs.update({"depth_kind": METRIC.value, **attributes})
    with pytest.raises(UserError, match=reason):
        open_recorded_depth(tmp_path / "a.zarr")


def test_two_scales_of_a_zarr_group_must_agree(tmp_path: Path) -> None:
    for scale in (2, 3):
        group = zarr.open_group(tmp_path / f"{scale}.zarr", mode="w")
        group.create_array("depth", data=DEPTH)
        group.create_array("scale", data=np.array([2.0]))
        group.attrs.update({"depth_kind": METRIC.value, "scale": scale})
    assert open_recorded_depth(tmp_path / "2.zarr").scale == 2
    with pytest.raises(UserError, match=r"the attribute and the array 'scale' of .*3\.zarr disagree: 2\.0, 3\.0"):
        open_recorded_depth(tmp_path / "3.zarr")


def test_scales_in_any_order_and_no_offset(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((6, 4, 5), np.float32))
    about = {"depth_kind": METRIC.value, "scales": [{"first_frame": 3, "scale": 2}, {"first_frame": 0, "scale": 5}]}
    (tmp_path / "about.json").write_text(json.dumps(about))
    assert [frame[0, 0] for frame in open_recorded_depth(tmp_path / "a.npy")] == [5, 5, 5, 2, 2, 2]
    twice, endless = ({"first_frame": first, "scale": 4} for first in (3, float("inf")))
    for wrong, message in (
        ({"scales": [*about["scales"], twice]}, "two scales have first_frame 3"),
        ({"scales": [endless]}, "cannot convert float infinity"),
        ({"scale": 4}, "its scale and scales disagree"),
        ({"scale": True}, "scale is True, not a number"),
        ({"scales": [{"first_frame": 0, "scale": True}]}, "scale is True, not a number"),
    ):
        (tmp_path / "about.json").write_text(json.dumps(about | wrong))
        with pytest.raises(UserError, match=rf"about\.json: {message}"):
            open_recorded_depth(tmp_path / "a.npy")
    (tmp_path / "about.json").write_text(json.dumps(about | {"offset": 1.5}))
    with pytest.raises(UserError, match=r"says offset=1\.5"):
        open_recorded_depth(tmp_path / "a.npy")
