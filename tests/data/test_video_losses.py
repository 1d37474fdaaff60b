"""No frame is lost in silence: joined and broken clocks, null frames, edit lists, and files that end too early."""

from __future__ import annotations

import http.server
import itertools
import logging
import struct
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from media import frame_number, write_video

from videomamba_depth.data.video.clock import Clock
from videomamba_depth.data.video.decode import Losses, decode_frames
from videomamba_depth.data.video.info import BROKEN, CUT_OFF
from videomamba_depth.data.video.reader import (
    Frame,
    VideoReadError,
    VideoWriter,
    count_frames,
    iter_frames,
    probe_video,
    read_frames,
)
from videomamba_depth.data.video.structure import find_damage
from videomamba_depth.streaming.sources.files import FileSource, UrlSource
from videomamba_depth.streaming.sources.network import NetworkCamera

B_FRAMES = {"g": "6", "bf": "2"}
CONTAINERS: dict[str, dict[str, Any]] = {
    "front.mp4": {"options": B_FRAMES, "container_options": {"movflags": "faststart"}},
    "front.mov": {"options": B_FRAMES, "container_options": {"movflags": "faststart"}},
    "fragments.mp4": {"options": {"g": "4"}, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "h264.mkv": {"options": B_FRAMES},
    "live.mkv": {"options": B_FRAMES, "container_options": {"live": "1"}},
    "mpeg4.mkv": {"codec": "mpeg4"},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "h264.ts": {"options": B_FRAMES},
    "mpeg2.ts": {"codec": "mpeg2video", "fps": 25},
    "blu.m2ts": {"options": B_FRAMES},
    "h264.flv": {"options": B_FRAMES},
    "h264.avi": {"options": B_FRAMES},
    "mpeg4.avi": {"codec": "mpeg4"},
    "wmv2.wmv": {"codec": "wmv2"},
    "mpeg2.mxf": {"codec": "mpeg2video", "fps": 25, "options": B_FRAMES},
    "vp9.ivf": {"codec": "libvpx-vp9"},
    "gif.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}
NUM_FRAMES = 24


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    usable = {
        name: recipe for name, recipe in CONTAINERS.items() if recipe.get("codec", "libx264") in av.codecs_available
    }
    return {
        name: write_video(folder / name, NUM_FRAMES, width=112, height=84, **recipe) for name, recipe in usable.items()
    }


def read(source: FileSource | UrlSource) -> tuple[list[Frame], str]:
    """Return the frames of a source, and what it says after them."""
    frames = []
    try:
        for frame in source:
            frames.append(frame)
    except VideoReadError as error:
        return frames, str(error)
    return frames, ""


def assert_consistent(path: Path, frames: list[Frame]) -> None:
    """By index and in order, with a probe and without: the same frames at the same, increasing times."""
    info = probe_video(path)
    assert [frame.pts for frame in frames] == info.pts.tolist()
    assert all(a.pts < b.pts for a, b in itertools.pairwise(frames))
    straight = list(iter_frames(path))
    assert [f.pts * f.time_base for f in straight] == [f.pts * f.time_base for f in frames]
    for index in {0, len(frames) // 2, len(frames) - 1}:
        np.testing.assert_array_equal(read_frames(path, [index], info=info)[0], frames[index].rgb)
        np.testing.assert_array_equal(straight[index].rgb, frames[index].rgb)


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_whole_file_is_whole(whole: dict[str, Path], name: str) -> None:
    frames, losses_text = read(FileSource(whole[name]))
    assert [frame_number(frame.rgb) for frame in frames] == list(range(NUM_FRAMES))
    assert losses_text == ""
    assert count_frames(whole[name]) in (None, NUM_FRAMES)
    assert find_damage(whole[name]) == ""


@pytest.mark.parametrize("share", [0.7, 0.85])
@pytest.mark.parametrize("name", CONTAINERS)
def test_what_is_there_is_used_and_the_end_is_told(
    whole: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, share: float
) -> None:
    data = whole[name].read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * share) // 188 * 188 + 5])
    frames, losses_text = read(FileSource(path))
    numbers = [frame_number(frame.rgb) for frame in frames]
    assert 1 <= len(frames) <= NUM_FRAMES
    assert numbers == sorted(numbers)
    assert f"{name} is damaged: " in losses_text
    assert "\n" not in losses_text
    assert name in caplog.text
    assert_consistent(path, frames)
    assert count_frames(path) in (None, len(frames))


@pytest.mark.parametrize("name", sorted(CONTAINERS.keys() - {"live.mkv", "vp9.ivf"}))  # whose blocks have no whole
def test_every_cut_is_seen_from_sizes_alone(whole: dict[str, Path], tmp_path: Path, name: str) -> None:
    data, path = whole[name].read_bytes(), tmp_path / "cut"
    for length in np.random.default_rng(0).integers(len(data) // 3, len(data), 40):
        if name.endswith("ts") and length % (192 if name == "blu.m2ts" else 188) == 0:
            continue  # a shorter file
        path.write_bytes(data[:length])
        assert find_damage(path) == CUT_OFF, length


def place_all(stamps: list[int | None]) -> list[int]:
    clock = Clock(Fraction(10), Fraction(1, 1000))
    return [clock.place(stamp) for stamp in stamps]


@pytest.mark.parametrize(
    ("stamps", "times"),
    [
        ([7, 107, 250, 900], [7, 107, 250, 900]),
        ([0, 100, 200, 300, 0, 100], [0, 100, 200, 300, 400, 500]),  # began anew
        ([0, 100, 200, None, 400], [0, 100, 200, 300, 400]),
        ([0, 100, 100, 200, 300], [0, 100, 150, 200, 300]),  # equal, and back on its clock
        ([0, 0, 100, 100, 200, 200], [0, 50, 100, 150, 200, 250]),
        ([0, 100, 60, 200], [0, 100, 150, 200]),
        ([0, 100, 10**11, 10**11 + 100], [0, 100, 200, 300]),  # three years later
        ([-500, -400], [-500, -400]),
        ([None, None], [0, 100]),
    ],
)
def test_time_goes_on(stamps: list[int | None], times: list[int]) -> None:
    assert place_all(stamps) == times


@pytest.mark.parametrize("name", ["h264.ts", "mpeg2.ts"])
def test_joined_recordings_are_read_to_the_end(whole: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = tmp_path / "joined.ts"
    path.write_bytes(whole[name].read_bytes() * 2)  # clock and continuity counters begin anew
    frames, losses_text = read(FileSource(path))
    assert [frame_number(frame.rgb) for frame in frames] == 2 * list(range(NUM_FRAMES))
    assert losses_text == ""
    rate = CONTAINERS[name].get("fps", 10)
    steps = np.diff([frame.timestamp_s for frame in frames])
    np.testing.assert_allclose(steps, 1 / rate, atol=1e-6)
    assert_consistent(path, frames)


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
LIVE = {"container_options": {"live": "1"}}


def joined(tmp_path: Path, suffix: str, cut: bytes = b"", **second: Any) -> Path:
    """Join two recordings byte by byte, the second one from the mark `cut` on; `second` changes how it is written."""
    common: dict[str, Any] = {"codec": "wmv2"} if suffix == "wmv" else {"options": B_FRAMES}
    common |= second.pop("both", {})
    first = write_video(tmp_path / f"1.{suffix}", 20, **common)
    other = write_video(tmp_path / f"2.{suffix}", 20, seed=1, **(common | second))
    after = other.read_bytes()
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(first.read_bytes() + after[after.index(cut) - 4 if cut else 0 :])
    return path


@pytest.mark.parametrize(
    ("suffix", "recipe", "words"),
    [
        ("mp4", {"both": {"container_options": FRAGMENTS}, "cut": b"moof"}, "of the 40 frames"),
        ("mp4", {"both": {"container_options": FRAGMENTS}}, "of the 40 frames"),
        ("mp4", {}, "a second index of 20 frames"),
        ("ts", {"container_options": {"mpegts_start_pid": "500"}}, "a stream of 20 frames"),
        ("mkv", {"both": LIVE, "container_options": {}, "width": 96}, "only 20 of the 40 frames"),
        ("mkv", {"both": LIVE, "container_options": {}, "codec": "mpeg4", "options": {}}, "20 of the 40"),
        ("wmv", {}, "a second header"),
        ("nut", {}, "a second header"),
    ],
)
def test_a_second_recording_that_is_not_read_is_told(
    tmp_path: Path, suffix: str, recipe: dict[str, Any], words: str
) -> None:
    path = joined(tmp_path, suffix, **recipe)
    frames, losses_text = read(FileSource(path))
    assert 20 <= len(frames) < 40
    assert "is damaged: " in losses_text
    assert words in losses_text
    assert "\n" not in losses_text
    assert count_frames(path) is None


def test_a_second_recording_that_is_read_is_no_damage(tmp_path: Path) -> None:
    frames, losses_text = read(FileSource(joined(tmp_path, "mkv")))
    assert (len(frames), losses_text) == (40, "")


@pytest.mark.parametrize("length", range(1, 8))
def test_a_cut_within_the_header_of_a_fragment_is_seen(whole: dict[str, Path], tmp_path: Path, length: int) -> None:
    data, path = whole["fragments.mp4"].read_bytes(), tmp_path / "cut.mp4"
    path.write_bytes(data[: data.rindex(b"moof") - 4 + length])
    assert find_damage(path) == CUT_OFF


def restamped(path: Path, out: Path, stamp: Callable[[int], int | None], shown: Callable[[int], bool]) -> Path:
    """Copy an intra or P-frame video to `out`: packet k gets stamp(k), where shown(k)."""
    with av.open(str(path)) as source, av.open(str(out), "w", options={"avoid_negative_ts": "disabled"}) as target:
        copy: Any = target.add_stream_from_template(source.streams.video[0])
        copy.time_base = source.streams.video[0].time_base
        for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
            if shown(number):
                packet.pts = packet.dts = stamp(number)
                packet.stream = copy
                target.mux(packet)
    return out


def test_equal_stamps_lose_no_frame(tmp_path: Path) -> None:
    stamps = [0, 100, 200, 200, 400, 500, 600, 600, 600, 900, 1000, 1100]
    source = write_video(tmp_path / "source.mkv", 12, codec="mpeg4", options={"g": "4"})
    path = restamped(source, tmp_path / "equal.mkv", lambda k: stamps[k], lambda k: True)
    frames, losses_text = read(FileSource(path))
    assert [frame_number(frame.rgb) for frame in frames] == list(range(12))
    assert losses_text == ""
    times = [0, 100, 200, 250, 400, 500, 600, 650, 700, 900, 1000, 1100]
    assert [round(1000 * frame.timestamp_s) for frame in frames] == times
    assert_consistent(path, frames)


def test_an_edit_list_hides_frames_and_is_no_damage(tmp_path: Path) -> None:
    source = write_video(tmp_path / "source.mp4", 20, options={"g": "20", "bf": "0"})
    path = restamped(source, tmp_path / "trimmed.mp4", lambda k: 1024 * (k - 8), lambda k: True)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 20
    frames, losses_text = read(FileSource(path))
    assert [frame_number(frame.rgb) for frame in frames] == list(range(8, 20))
    assert frames[0].timestamp_s == 0
    assert (losses_text, count_frames(path)) == ("", 12)
    assert_consistent(path, frames)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_null_frames_of_an_avi_take_up_time(tmp_path: Path, codec: str) -> None:
    at = [0, 1, 2, 3, 4, 15, 16, 17, 18, 19]
    options = {"bf": "0"} if codec == "libx264" else {}
    path = write_video(tmp_path / "gap.avi", 10, pts=at, codec=codec, options=options)
    frames, losses_text = read(FileSource(path))
    assert [frame_number(frame.rgb) for frame in frames] == list(range(10))
    assert [round(10 * frame.timestamp_s) for frame in frames] == at
    assert (losses_text, count_frames(path)) == ("", None)
    assert_consistent(path, frames)


def test_a_recording_that_begins_between_key_frames_says_so(
    whole: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = whole["h264.ts"].read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    video = [number for number, packet in enumerate(packets) if packet[1] & 0x5F == 0x41]  # payload begins, pid 0x100
    path = tmp_path / "late.ts"
    path.write_bytes(b"".join(packets[:3] + packets[video[3] :]))
    frames, losses_text = read(FileSource(path))
    assert [frame_number(frame.rgb) for frame in frames] == list(range(6, NUM_FRAMES))
    assert losses_text == ""
    assert "frames before the first key frame cannot be decoded" in caplog.text


@pytest.mark.parametrize("name", sorted(CONTAINERS.keys() - {"wmv2.wmv"}))
def test_a_hole_in_the_middle_is_told(whole: dict[str, Path], tmp_path: Path, name: str) -> None:
    data = bytearray(whole[name].read_bytes())
    start, length = len(data) * 7 // 10, len(data) // 8
    data[start : start + length] = bytes(length)
    path = tmp_path / name
    path.write_bytes(data)
    frames, losses_text = read(FileSource(path))
    assert frames
    assert f"{name} is damaged: " in losses_text


def test_a_block_of_a_track_that_is_not_there_is_seen(whole: dict[str, Path], tmp_path: Path) -> None:
    data, path = whole["vp9.webm"].read_bytes(), tmp_path / "x.webm"
    track = data.rindex(b"\x81", 0, data.rindex(b"\xa3") + 8)  # the last block's: demuxers pass it over without a word
    path.write_bytes(data[:track] + b"\x82" + data[track + 1 :])
    assert find_damage(path) == BROKEN


@pytest.mark.parametrize(("name", "instead"), [(b"moof", b"free"), (b"traf", b"\xff\xff\xff\xff")])
def test_a_destroyed_index_of_a_fragment_is_seen(
    whole: dict[str, Path], tmp_path: Path, name: bytes, instead: bytes
) -> None:
    data, path = whole["fragments.mp4"].read_bytes(), tmp_path / "x.mp4"
    at = data.rindex(name)
    path.write_bytes(data[:at] + instead + data[at + 4 :])
    assert find_damage(path) == BROKEN


def test_packets_without_a_frame_and_of_unknown_streams() -> None:
    """PyAV raises IndexError at a packet of a stream that the header did not name."""

    def packet(pts: int, *frames: Any) -> Any:
        more = {"is_corrupt": False, "is_discard": False, "decode": lambda: list(frames)}
        return SimpleNamespace(size=9, pts=pts, dts=pts, **more)

    def frame(pts: int) -> Any:
        return SimpleNamespace(pts=pts, is_corrupt=False, interlaced_frame=False)

    rest = iter([packet(0, frame(0)), IndexError("list index out of range"), packet(1), packet(2, frame(2))])

    def demux(_: Any) -> Iterator[Any]:
        for item in rest:
            if isinstance(item, Exception):
                raise item
            yield item

    container = SimpleNamespace(name="x.flv", format=SimpleNamespace(name="flv"), demux=demux)
    codec = SimpleNamespace(name="h264", sample_aspect_ratio=None)
    stream = SimpleNamespace(codec_context=codec, decode=lambda _: [], container=container)
    losses = Losses()
    assert [f.pts for f in decode_frames(stream, losses=losses)] == [0, 2]
    assert losses.described() == "1 packets cannot be decoded"


def test_damage_in_the_middle_is_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "hole.mkv", 24, width=112, height=84, codec="mpeg4", options={"g": "6"})
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
    path.write_bytes(data)
    frames, losses_text = read(FileSource(path))
    assert len(frames) < 24
    assert "hole.mkv is damaged" in losses_text


class Server:
    """Sends the first bytes of a file and breaks off, whatever it has promised in a header: its length, or chunks."""

    def __init__(self, data: bytes, sent: int, promise: str = "Content-Length") -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send_response(200)
                if promise:
                    self.send_header(promise, str(len(data)) if promise == "Content-Length" else "chunked")
                self.end_headers()
                if promise == "Transfer-Encoding":
                    self.wfile.write(b"%x\r\n%b\r\n" % (sent, data[:sent]))
                    self.wfile.write(b"0\r\n\r\n" if sent == len(data) else b"")
                else:
                    self.wfile.write(data[:sent])
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://me:secret@127.0.0.1:{self.http.server_port}/{name}"


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(data: bytes, sent: int, promise: str = "Content-Length") -> Server:
        servers.append(Server(data, sent, promise))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


@pytest.mark.parametrize("name", ["front.mp4", "fragments.mp4", "h264.mkv", "vp8.webm", "h264.ts", "h264.flv"])
def test_a_connection_that_breaks_off_is_told(
    whole: dict[str, Path], serve: Callable[[bytes, int], Server], name: str
) -> None:
    data = whole[name].read_bytes()
    frames, losses_text = read(UrlSource(serve(data, int(len(data) * 0.8)).url(name)))
    assert 4 <= len(frames) < NUM_FRAMES
    assert "is damaged: " in losses_text
    assert "broke off" in losses_text
    assert "secret" not in losses_text
    frames, losses_text = read(UrlSource(serve(data, len(data)).url(name)))
    assert (len(frames), losses_text) == (NUM_FRAMES, "")


@pytest.mark.parametrize("promise", ["Transfer-Encoding", ""])
@pytest.mark.parametrize("name", ["h264.mkv", "vp8.webm", "wmv2.wmv", "front.mp4"])
def test_without_a_length_the_header_says_where_a_video_ends(
    whole: dict[str, Path], serve: Callable[..., Server], name: str, promise: str
) -> None:
    data = whole[name].read_bytes()
    frames, losses_text = read(UrlSource(serve(data, int(len(data) * 0.7), promise).url(name)))
    assert 4 <= len(frames) < NUM_FRAMES
    assert "is damaged: " in losses_text
    frames, losses_text = read(UrlSource(serve(data, len(data), promise).url(name)))
    assert (len(frames), losses_text) == (NUM_FRAMES, "")


def test_a_video_whose_end_nobody_states_is_told(
    whole: dict[str, Path], serve: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    data = whole["gif.gif"].read_bytes()
    _, losses_text = read(UrlSource(serve(data, len(data), "Transfer-Encoding").url("a.gif")))
    assert losses_text == ""
    assert "neither the server nor the file says where it ends" in caplog.text


def test_a_part_that_was_asked_for_is_complete(whole: dict[str, Path], serve: Callable[[bytes, int], Server]) -> None:
    data = whole["h264.mkv"].read_bytes()
    frames, losses_text = read(UrlSource(serve(data, int(len(data) * 0.8)).url("a.mkv"), max_frames=4))
    assert (len(frames), losses_text) == (4, "")


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_an_encoder_that_restarts_loses_no_frame(
    tmp_path: Path, serve: Callable[[bytes, int], Server], codec: str
) -> None:
    """As a live source sends it: the second part has a clock, counters and headers of its own."""
    parts = [
        write_video(tmp_path / f"{seed}.ts", 20, codec=codec, fps=25, seed=seed, options={"g": "10"}) for seed in (0, 1)
    ]
    data = b"".join(part.read_bytes() for part in parts)
    frames = list(NetworkCamera(serve(data, len(data)).url("live.ts"), reconnect_s=0))
    assert [frame_number(frame.rgb) for frame in frames] == 2 * list(range(20))
    assert all(a.pts < b.pts for a, b in itertools.pairwise(frames))


@pytest.mark.parametrize(("layout", "size"), [("420jpeg", 96), ("422p10", 256), ("mono", 64), ("444alpha", 256)])
def test_a_cut_y4m_is_seen(tmp_path: Path, layout: str, size: int) -> None:
    path = tmp_path / "x.y4m"
    data = f"YUV4MPEG2 W8 H8 F10:1 C{layout}\n".encode() + 3 * (b"FRAME\n" + bytes(size))
    path.write_bytes(data)
    assert find_damage(path) == ""
    for length in (1, 7, size, size + 1, size + 5):
        path.write_bytes(data[:-length])
        assert find_damage(path) == CUT_OFF, length
    for broken in (data.replace(b"FRAME", b"frame"), data.replace(b"W8", b"Wx"), data.replace(b"H8 ", b"")):
        path.write_bytes(broken)
        assert find_damage(path) == BROKEN


def boxed(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def with_edits(path: Path, edits: list[tuple[int, int]]) -> Path:
    """Put an edit list (duration in ms, first frame or -1) into an MP4 whose index is at its end."""
    with av.open(str(path)) as container:
        frame = int(Fraction(1, 10) / container.streams.video[0].time_base)
    rows = [struct.pack(">IiI", duration, time if time < 0 else time * frame, 1 << 16) for duration, time in edits]
    added = boxed(b"edts", boxed(b"elst", struct.pack(">II", 0, len(rows)) + b"".join(rows)))

    def rebuilt(data: bytes) -> bytes:
        out, at = b"", 0
        while at < len(data):
            length, kind = struct.unpack(">I4s", data[at : at + 8])
            content = data[at + 8 : at + length]
            if kind == b"trak":
                content = rebuilt(content)
            out += b"" if kind == b"edts" else boxed(kind, content)
            out += added if kind == b"tkhd" else b""
            at += length
        return out

    data = path.read_bytes()
    index = data.rindex(b"moov") - 4
    path.write_bytes(data[:index] + boxed(b"moov", rebuilt(data[index + 8 :])))
    return path


def test_a_pause_in_an_edit_list_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "x.mp4", 20, options={"bf": "0"})
    read(FileSource(with_edits(path, [(500, -1), (500, 0)])))
    assert "pauses" not in caplog.text
    read(FileSource(with_edits(path, [(500, 0), (500, -1), (500, 5)])))
    assert caplog.text.count("its edit list pauses in the middle, which is not followed") == 1
    list(iter_frames(path))
    assert caplog.text.count("pauses in the middle") == 2


@pytest.mark.parametrize("edits", [[(0, 0)], [(1000, 100)]])
def test_an_edit_list_that_hides_everything_is_named(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    path = with_edits(write_video(tmp_path / "x.mp4", 20, options={"bf": "0"}), edits)
    for use in (probe_video, lambda p: list(iter_frames(p))):
        with pytest.raises(VideoReadError, match="its edit list hides all frames"):
            use(path)


def test_fragments_after_an_index_are_not_hidden(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = write_video(tmp_path / "x.mp4", 20, options={"g": "5"}, container_options={"movflags": "frag_keyframe"})
    frames, losses_text = read(FileSource(path))
    assert (len(frames), losses_text) == (20, "")
    assert "hides" not in caplog.text


@pytest.mark.parametrize("share", [0.5, 0.6, 0.77])
def test_a_cut_mxf_is_the_same_by_index_and_in_order(tmp_path: Path, share: float) -> None:
    path = write_video(tmp_path / "x.mxf", 24, codec="mpeg2video", fps=25, options=B_FRAMES)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    frames, losses_text = read(FileSource(path))
    info = probe_video(path)
    assert frames
    assert "x.mxf is damaged: " in losses_text
    for index in range(len(frames)):
        np.testing.assert_array_equal(read_frames(path, [index], info=info)[0], frames[index].rgb)


@pytest.mark.parametrize("name", ["12:30.mp4", "a:b.mp4", "./12:30.mp4"])
def test_a_name_with_a_colon_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "x.mp4", 3).rename(tmp_path / name)
    assert len(read(FileSource(name))[0]) == count_frames(name) == 3
    with VideoWriter(name, size=(64, 48), fps=10) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
    assert count_frames(name) == 1
