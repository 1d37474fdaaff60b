"""The page's server: depth per frame, one state per connection, and limits on untrusted uploads."""

from __future__ import annotations

import json
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from media import numbered_frame, write_empty, write_headless, write_text, write_truncated, write_video
from tiny import tiny_student

from videomamba_depth.commands import serve
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.serve_schema import ServeConfig
from videomamba_depth.data.video.reader import Frame
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.serving.settings import ServeSettings
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.errors import UserError

pytest.importorskip("starlette", reason="the page needs the extra [serve]")
pytest.importorskip("uvicorn", reason="the page needs the extra [serve]")
try:
    from starlette.testclient import TestClient
except (ImportError, RuntimeError):
    pytest.skip("starlette's test client needs httpx", allow_module_level=True)
from starlette.websockets import WebSocketDisconnect

sys.path.insert(0, str(Path(__file__).parent))
from hostile import scans_jpeg

from videomamba_depth.serving.app import build_app
from videomamba_depth.serving.server import listen
from videomamba_depth.serving.uploads import upload_frames

CAMERA = "ws://127.0.0.1/api/camera"


@pytest.fixture(scope="module")
def new_stream(tiny_teacher_folder: str) -> Callable[[], DepthStream]:
    model = tiny_student(DepthAnythingEncoder.from_pretrained(tiny_teacher_folder, short_side=42))
    return lambda: DepthStream(model, device="cpu")


@pytest.fixture
def open_page(new_stream: Callable[[], DepthStream]) -> Iterator[Callable[..., TestClient]]:
    clients = []

    def opened(**limits: Any) -> TestClient:
        client = TestClient(build_app(new_stream, ServeSettings(**limits)), base_url="http://127.0.0.1")
        clients.append(client.__enter__())
        return client

    yield opened
    for client in clients:
        client.__exit__(None, None, None)


def parse(data: bytes) -> list[tuple[dict, list[bytes]]]:
    """Take the server's messages apart."""
    messages = []
    while data:
        head = 4 + struct.unpack("<I", data[:4])[0]
        about, pictures = json.loads(data[4:head]), []
        for length in about["pictures"]:
            pictures.append(data[head : head + length])
            head += length
        messages.append((about, pictures))
        data = data[head:]
    return messages


def jpeg(rgb: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", rgb[..., ::-1])[1].tobytes()


def size_of(picture: bytes) -> tuple[int, ...]:
    return cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).shape


def test_the_page_is_self_contained(open_page: Callable[..., TestClient]) -> None:
    page = open_page()
    text = page.get("/").text + page.get("/static/page.js").text + page.get("/static/page.css").text
    assert "<canvas" in text
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'self'" in page.get("/").headers["content-security-policy"]
    about = page.get("/api/about").json()
    assert (about["depth_kind"], len(about["colors"])) == ("affine_invariant_inverse_depth", 16)
    assert page.get("/static/../app.py").status_code == 404
    assert page.get("/static/%2e%2e/app.py").status_code == 404


def test_every_frame_of_a_file_comes_with_its_depth(tmp_path: Path, open_page, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = write_video(tmp_path / "clip.mp4", 7, width=66, height=50)
    answer = open_page(longest_px=48).post("/api/video", content=path.read_bytes())
    *frames, (last, _) = parse(answer.content)
    assert [about["frame"] for about, _ in frames] == list(range(7))
    assert [about["time_s"] for about, _ in frames] == [round(i / 10, 4) for i in range(7)]
    assert last == {"end": True, "frames": 7, "pictures": []}
    for about, pictures in frames:
        assert about["size"] == [48, 36]
        assert [size_of(p) for p in pictures] == [(36, 48, 3), (36, 48, 3)]  # depth and the frame
    assert frames[0][0]["reset"] == "start"
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_above_the_limit_is_refused(open_page, chunked: bool) -> None:
    body = bytes(30_000)
    content = (body[i : i + 5000] for i in range(0, len(body), 5000)) if chunked else body
    page = open_page(max_upload_mb=0.02, max_streams=1)
    answer = page.post("/api/video", content=content)
    assert answer.status_code == 413
    assert answer.json() == {"error": "the file is larger than 0.02 MB"}
    assert page.post("/api/video", content=b"").status_code == 400  # its place is free again


@pytest.mark.parametrize(
    ("make", "status", "expected"),
    [(write_empty, 400, "empty"), (write_text, 415, "not a video"), (write_headless, 415, "cut off")],
)
def test_what_is_no_video_is_one_clear_line(tmp_path: Path, open_page, make: Any, status: int, expected: str) -> None:
    answer = open_page().post("/api/video", content=make(tmp_path / "a.mp4").read_bytes())
    assert answer.status_code == status
    assert expected in answer.json()["error"]
    assert "/" not in answer.json()["error"]  # no path of this machine


def test_a_cut_video_is_shown_as_far_as_it_goes(tmp_path: Path, open_page) -> None:
    *frames, (last, _) = parse(
        open_page().post("/api/video", content=write_truncated(tmp_path / "cut.mp4").read_bytes()).content
    )
    assert 0 < len(frames) < 24
    assert last["error"].startswith(f"the file is damaged or cut off: only {len(frames)} of 24 frames can be decoded")


def test_a_cut_video_that_states_no_number_says_so_too(tmp_path: Path, open_page) -> None:
    data = write_video(tmp_path / "cut.mkv", 24, options={"g": "4"}).read_bytes()
    *_, (last, _) = parse(open_page().post("/api/video", content=data[: len(data) * 2 // 3]).content)
    assert last["error"].startswith("the file is damaged or cut off: it is cut off after frame")


def test_large_frames_are_refused_before_they_are_decoded(tmp_path: Path, open_page) -> None:
    path = write_video(tmp_path / "large.mp4", 2, width=320, height=240)
    answer = open_page(max_pixels=320 * 239).post("/api/video", content=path.read_bytes())
    assert answer.status_code == 415
    assert "frames of 320x240 px are larger than 0.1 Mpx" in answer.json()["error"]
    assert open_page(max_pixels=320 * 256).post("/api/video", content=path.read_bytes()).status_code == 200


def write_growing(path: Path, codec: str, pixel_format: str) -> Path:
    """Write three frames of 64 x 48 and three of 320 x 240."""
    with av.open(str(path), "w") as container:
        stream, number = container.add_stream(codec, rate=10), 0
        for width, height in ((64, 48), (320, 240)):
            encoder = av.CodecContext.create(codec, "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, pixel_format
            encoder.time_base, encoder.framerate = Fraction(1, 10), Fraction(10)
            if number == 0:
                stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
            frames = [av.VideoFrame.from_ndarray(numbered_frame(i, height, width), "rgb24") for i in range(3)]
            for i, frame in enumerate(frames):
                frame.pts, frame.time_base = i, Fraction(1, 10)
            packets = [p for f in [*(f.reformat(format=pixel_format) for f in frames), None] for p in encoder.encode(f)]
            for packet in packets:
                copy = av.Packet(bytes(packet))
                copy.stream, copy.time_base, copy.is_keyframe = stream, Fraction(1, 10), packet.is_keyframe
                copy.pts = copy.dts = number
                container.mux(copy)
                number += 1
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [("a.mkv", "mjpeg", "yuvj420p"), ("a.ts", "mpeg2video", "yuv420p"), ("a.webm", "libvpx-vp9", "yuv420p")],
)
def test_a_video_whose_frames_become_too_large_says_so(tmp_path: Path, name: str, codec: str, pixel_format) -> None:
    shown: list[Frame] = []
    with pytest.raises(UserError, match=r"^frames of 320x240 px are larger than 0\.0 Mpx$"):
        shown.extend(upload_frames(write_growing(tmp_path / name, codec, pixel_format), 10_000))
    assert len(shown) in (2, 3)  # a decoder that is one frame late may not get to show it


@pytest.mark.parametrize(("width", "height"), [(2000, 4), (4, 2000), (640, 32)])
def test_narrow_frames_are_refused_before_the_model_works(open_page, new_stream, monkeypatch, tmp_path, width, height):
    monkeypatch.setattr(new_stream().model.encoder.backbone, "forward_with_filtered_kwargs", None)
    page = open_page(max_streams=1)
    path = write_video(tmp_path / "narrow.mkv", 2, width=width, height=height, codec="ffv1")
    answer = page.post("/api/video", content=path.read_bytes())
    assert answer.status_code == 415
    assert f"frames of {width}x{height} px are too narrow" in answer.json()["error"]
    with page.websocket_connect(CAMERA) as socket:
        socket.send_bytes(jpeg(np.zeros((height, width, 3), np.uint8)))
        assert f"frames of {width}x{height} px are too narrow" in socket.receive_json()["error"]
        assert socket.receive()["code"] == 1008
    assert page.app.state.page.slots.free == 1


@pytest.mark.parametrize("script", ["playlist", "concat", "ffmetadata"])
def test_files_that_name_other_files_are_refused(tmp_path: Path, open_page, script: str) -> None:
    secret = write_video(tmp_path / "secret.ts", 5)
    text = {
        "playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.5,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "ffmetadata": ";FFMETADATA1\ntitle=x\n",
    }[script]
    if script == "concat":  # FFmpeg does follow such a script when it is let
        (tmp_path / "script").write_text("ffconcat version 1.0\nfile 'secret.ts'\n")
        with av.open(str(tmp_path / "script")) as container:
            assert len(list(container.decode(video=0))) == 5
    answer = open_page().post("/api/video", content=text.encode())
    assert answer.status_code == 415


def test_a_camera_has_one_state_to_the_end(open_page, new_stream: Callable[[], DepthStream]) -> None:
    page = open_page()
    frames = [numbered_frame(i, seed=i) for i in range(4)]
    with page.websocket_connect(CAMERA) as one, page.websocket_connect(CAMERA) as other:
        shown, others = [], []
        for rgb in frames:
            one.send_bytes(jpeg(rgb))
            other.send_bytes(jpeg(rgb[::-1].copy()))
            shown += parse(one.receive_bytes())
            others += parse(other.receive_bytes())
    with page.websocket_connect(CAMERA) as alone:
        for (about, pictures), rgb in zip(shown, frames, strict=True):
            alone.send_bytes(jpeg(rgb))
            same, again = parse(alone.receive_bytes())[0]
            assert again[0] == pictures[0]
            assert (same["near"], same["frame"]) == (about["near"], about["frame"])
    stream = new_stream()
    with page.websocket_connect(CAMERA) as new:
        new.send_bytes(jpeg(frames[3]))
        assert parse(new.receive_bytes())[0][1][0] != shown[3][1][0]  # the frames before it did matter
    assert stream.states is None


def test_a_camera_that_turns_is_reset(open_page) -> None:
    with open_page().websocket_connect(CAMERA) as socket:
        for rgb in (numbered_frame(0), numbered_frame(1), numbered_frame(2, 48, 64)):
            socket.send_bytes(jpeg(rgb))
            about, pictures = parse(socket.receive_bytes())[0]
    assert (about["size"], about["reset"], size_of(pictures[0])) == ([48, 64], "start", (64, 48, 3))


def bomb() -> bytes:
    """A small JPEG that claims to be 60000 x 60000."""
    data = bytearray(jpeg(numbered_frame(0)))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", 60000, 60000)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"no picture", "not a JPEG"),
        (jpeg(numbered_frame(0))[:200], "not a JPEG picture, or it is damaged"),
        (bomb(), "a picture is larger than 8.3 Mpx"),
        pytest.param(bytes(60_000), "larger than 0.05 MB", id="large"),  # ids go into the decoder's environment
        (scans_jpeg(101, 64, 48), "more than 100 scans"),
        ("text", "binary messages"),
    ],
)
def test_pictures_that_are_refused(open_page, data: bytes | str, expected: str) -> None:
    with open_page(max_picture_mb=0.05).websocket_connect(CAMERA) as socket:
        socket.send_text(data) if isinstance(data, str) else socket.send_bytes(data)
        assert expected in socket.receive_json()["error"]
        assert socket.receive()["code"] == 1008


def test_places_are_bounded_and_given_back(tmp_path: Path, open_page) -> None:
    page = open_page(max_streams=1)
    video = write_video(tmp_path / "clip.mp4", 2).read_bytes()
    with page.websocket_connect(CAMERA) as socket:
        socket.send_bytes(jpeg(numbered_frame(0)))
        socket.receive_bytes()
        answer = page.post("/api/video", content=video)
        assert (answer.status_code, answer.json()["error"][:24]) == (503, "all places are taken: as")
        with page.websocket_connect(CAMERA) as second:
            assert "all places are taken" in second.receive_json()["error"]
    for _ in range(2):
        until_s = time.monotonic() + 10  # older versions of Starlette end a connection a little later
        while (status := page.post("/api/video", content=video).status_code) == 503 and time.monotonic() < until_s:
            time.sleep(0.05)
        assert status == 200


def test_a_camera_that_falls_silent_is_let_go(open_page) -> None:
    with open_page(idle_s=0.1).websocket_connect(CAMERA) as socket:
        assert socket.receive_json()["error"] == "no picture came for 0.1 s"


@pytest.mark.parametrize("headers", [{"origin": "http://elsewhere.example"}, {"host": "elsewhere.example"}])
def test_requests_of_other_pages_are_refused(open_page, headers: dict[str, str]) -> None:
    page = open_page()
    assert page.post("/api/video", content=b"x", headers=headers).status_code == 403
    with pytest.raises(WebSocketDisconnect), page.websocket_connect(CAMERA, headers=headers):
        pass
    assert page.get("/api/about", headers={"origin": "http://127.0.0.1"}).status_code == 200


def test_an_address_in_use_is_one_line() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(UserError, match=r"cannot listen at 127\.0\.0\.1:.*port="):
        listen("127.0.0.1", first.getsockname()[1])


def test_it_binds_to_this_machine_unless_told_otherwise() -> None:
    assert load_config("serve", ServeConfig, ["checkpoint=a"]).host == "127.0.0.1"


@pytest.mark.parametrize(
    "override",
    [
        "port=-1",
        "max_streams=0",
        "color.map=red",
        "precision=int8",
        "allowed_hosts=['http://a']",
        "allowed_hosts=['a:80']",
        "framed_by=['*']",
        "framed_by=[\"https://a; script-src 'unsafe-inline'\"]",
    ],
)
def test_wrong_options(override: str) -> None:
    with pytest.raises(UserError, match=override.split("=")[0]):
        load_config("serve", ServeConfig, ["checkpoint=a", override])


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"pip install 'videomamba-depth\[serve\]'"):
        serve.main(load_config("serve", ServeConfig, ["checkpoint=a"]))
