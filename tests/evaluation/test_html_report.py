"""The HTML page: one file that needs nothing else, holds every row, and opens in a browser without a complaint."""

from __future__ import annotations

import base64
import io
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tiny_room import Room, render_room
from torch import Tensor

from videomamba_depth.evaluation import EvaluationClip, default_baselines, evaluate_videos
from videomamba_depth.evaluation.html import ClipView, Gallery, clips_page, fresh_page, write_html
from videomamba_depth.evaluation.html.front_plot import Axis, Point, front_plot, points_of
from videomamba_depth.evaluation.html.page import folded_ranges, render
from videomamba_depth.evaluation.paired import Estimate, compare, costs
from videomamba_depth.evaluation.worlds import WorldSet
from videomamba_depth.utils.depth_kind import DepthKind

NUM_FRAMES = 12
CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")


class Tags(HTMLParser):
    """Gather every tag with its attributes, and check that what opens closes."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def brightness(frame: Tensor) -> Tensor:
    return 1.0 + frame.mean(dim=1, keepdim=True)


def average() -> Any:
    state: list[Tensor] = []

    def step(frame: Tensor) -> Tensor:
        state[:] = [0.8 * brightness(frame) + 0.2 * state[0] if state else brightness(frame)]
        return state[0]

    return step


@pytest.fixture(scope="module")
def room() -> Room:
    return render_room(NUM_FRAMES, 48, 64, speed_m=0.03)


@pytest.fixture(scope="module")
def text(room: Room) -> str:
    """The page of two clips, one of them of an ill-meant name."""
    truth = {"gt_depth_m": room.depth_m, "motion": room.motion}
    clips = [EvaluationClip(name, room.rgb, **truth) for name in ("room", "<script>alert(1)</script>")]
    gallery = Gallery(["teacher", "ema_0.5", "mine"], video_frames=8)
    result = evaluate_videos(
        clips,
        brightness,
        {"mine": average},
        depth_kind=DepthKind.RELATIVE,
        palindrome=True,
        cut_frames=6,
        metadata={"weights_sha256": {"mine": "abc123"}, "command": "python x.py a=<b>"},
        viewer=gallery,
    )
    return render(clips_page(result, gallery.pictures()))


def test_the_page_needs_nothing_but_itself(text: str) -> None:
    tags = Tags(text).found
    references = [value for _, attributes in tags for name in ("src", "href") if (value := attributes.get(name))]
    assert references
    assert all(value.startswith(("data:", "#")) for value in references)
    without_data = re.sub(r"data:[^\"]*", "", text)
    for word in ("http:", "https:", "url(", "@import", "<script", "<iframe"):
        assert word not in without_data, word
    assert "&lt;script&gt;alert(1)" in text
    assert "python x.py a=&lt;b&gt;" in text
    targets = {attributes.get("id") for _, attributes in tags}
    assert {value[1:] for value in references if value.startswith("#")} <= targets


def test_the_page_holds_every_row_guard_and_source(text: str) -> None:
    for row in ("teacher", *default_baselines(), "mine"):
        assert f'<th scope="row">{row}' in text, row
    said = """AbsRel video|AbsRel first frame|AbsRel per frame|TGE|Flk2|OPW/clip|sDrift|sJit|rTC 1.02|palindrome
edges|edge F1|lag (frames)|settled after a cut|abc123|one affine per clip to ground truth|12 frames: 0–11
torch|Verdict: mine"""
    for expected in said.replace("\n", "|").split("|"):
        assert expected in text, expected


def plots(text: str) -> list[ElementTree.Element]:
    sources = [a["src"] or "" for tag, a in Tags(text).found if tag == "img"]
    start = "data:image/svg+xml;base64,"
    return [ElementTree.fromstring(base64.b64decode(s.removeprefix(start))) for s in sources if s.startswith(start)]


def test_plots_show_every_filter_and_the_student(text: str) -> None:
    figures = plots(text)
    assert len(figures) >= 9
    curves = {element.get("id") for element in figures[0].iter()}
    assert {"ema", "affine_ema", "warped_ema", "teacher", "mine", "front"} <= curves
    assert "constant" not in curves
    written = ["".join(element.itertext()).strip() for element in figures[0].iter() if element.tag.endswith("}text")]
    assert {"mine", "teacher"} <= set(written)
    assert any(label.endswith("change, %") for label in written)


def test_the_video_holds_the_frames(text: str) -> None:
    videos = [a["src"] or "" for tag, a in Tags(text).found if tag == "video"]
    assert len(videos) == 2
    data = base64.b64decode(videos[0].removeprefix("data:video/mp4;base64,"))
    with av.open(io.BytesIO(data)) as file:
        assert file.streams.video[0].codec_context.name == "h264"
        assert sum(1 for _ in file.decode(video=0)) == 8


def test_a_page_stays_small_and_says_what_it_left_out(room: Room) -> None:
    teacher = 1.0 / room.depth_m
    view = ClipView("room", room.rgb, 24.0, teacher)
    view.add("teacher", teacher)
    pictures = view.finish(max_video_bytes=100)
    assert pictures.video == ""
    assert "too large" in pictures.why_no_video
    assert [s.row for s in pictures.slices] == ["input", "teacher"]
    silent = ClipView("room", room.rgb, 24.0, teacher, video_frames=0).finish(10**9)
    assert silent.why_no_video == "not asked for"


def test_slices_show_a_jump_and_nothing_where_depth_is_steady(room: Room) -> None:
    steady = np.repeat(1.0 / room.depth_m[:1], NUM_FRAMES, axis=0)
    jumping = steady * (1 + 0.1 * (np.arange(NUM_FRAMES) % 2))[:, None, None]
    view = ClipView("room", room.rgb, 24.0, jumping, video_frames=0)
    for name, row in (("still", steady), ("jumps", jumping)):
        view.add(name, row)
    still, jumps = (decoded(s.jumps) for s in view.finish(0).slices[1:])
    assert still.min() == 255
    assert jumps.min() < 200


def decoded(uri: str) -> np.ndarray:
    import cv2

    data = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def fresh_result() -> dict[str, Any]:
    def row(tge: float, edges: float) -> dict[str, float]:
        guards = {"edge_ratio": edges, "lag": 0.1, "sDrift": 0.0, "sJit": 0.0}
        return {"tge": tge, "abs_rel/video": 0.1, "abs_rel/fast_pixels": 0.2, **guards}

    videos = {}
    for i in range(3):
        rows = {"teacher": row(1.0 + i, 1.0)}
        for family in ("ema", "affine_ema", "warped_ema"):
            rows |= {f"{family}_{a}": row((0.4 + 0.5 * a) * (1 + i), 0.9) for a in (0.75, 0.5, 0.25, 0.1)}
        videos[f"world-{i}"] = {**rows, "constant": row(math.nan, math.nan), "feature_ema": row(0.6, 1.0),
                                "ours": row(0.5 * (1 + i), 0.97)}  # fmt: skip
    return {
        "kinds": {"moving": compare(list(videos.values()), ["ours"])},
        "videos": {"moving": videos},
        "worlds": vars(WorldSet()),
        "specs": {"world-0": {"kind": "moving", "seed": 3}},
        "protocol": {"alignment": "one affine per video"},
        "metadata": {"checkpoints": {"ours": "runs/x"}, "command": "python y.py"},
        "versions": {"torch": "2"},
    }


def test_the_page_of_fresh_worlds_has_a_front_for_every_price() -> None:
    text = render(fresh_page(fresh_result()))
    assert len(plots(text)) == 4
    for expected in ("Moving camera: 3 videos", "ours minus each row", "dominates", "python y.py", "seed 3"):
        assert expected in text
    assert "http" not in text


def test_points_keep_the_order_of_strength_and_leave_out_what_is_far() -> None:
    videos = list(fresh_result()["videos"]["moving"].values())
    families = points_of(costs(videos), "edge_ratio", "tge", ["ours"])
    assert [p.row for p in families["ema"]] == ["teacher", "ema_0.75", "ema_0.5", "ema_0.25", "ema_0.1"]
    assert "constant" not in families
    far = {**families, "ours": [Point("ours", "ours", Estimate(99.0, 1.0, 3), Estimate(-1.0, math.nan, 3))]}
    drawn = str(front_plot(far, ["ours"], Axis("edges", 40.0), Axis("TGE")))
    assert "Outside of the plot: ours (99, −1)" in drawn
    assert "Not measured" in str(front_plot({}, ["ours"], Axis("edges"), Axis("TGE")))


def test_frame_lists_are_short() -> None:
    assert folded_ranges([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8"
    assert folded_ranges(["frame-0", "frame-1"]) == "frame-0, frame-1"


def test_a_browser_opens_the_page_and_plays_the_video(text: str, tmp_path: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browsers = [path for path in CHROMIUM if Path(path).exists()]
    if not browsers:
        pytest.skip("no Chromium on this machine")
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=browsers[0], args=["--no-sandbox"])
        page = browser.new_page()
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        page.evaluate("document.querySelector('video').play()")
        page.wait_for_function("document.querySelector('video').currentTime > 0.05")
        too_wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        browser.close()
    assert said == []
    assert not too_wide
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}


def test_writing_is_atomic(tmp_path: Path) -> None:
    path = write_html(fresh_page(fresh_result()), tmp_path / "deep" / "page.html")
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert list(path.parent.iterdir()) == [path]
