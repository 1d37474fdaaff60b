"""The HTML page: one file that needs nothing else, holds every method, and opens in a browser without a complaint."""

from __future__ import annotations

import base64
import io
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tiny_room import Room, render_room
from torch import Tensor

from videomamba_depth.evaluation import EvaluationClip, Evaluator, Method, Protocol, evaluate_clips, filter_methods
from videomamba_depth.evaluation.context import build_context
from videomamba_depth.evaluation.html.page import render, write_html
from videomamba_depth.evaluation.html.pareto_plot import Axis, Point, pareto_plot, points_of
from videomamba_depth.evaluation.methods import all_filters
from videomamba_depth.evaluation.metrics.score import Score
from videomamba_depth.evaluation.paired import Estimate, costs
from videomamba_depth.evaluation.pictures import ClipPictures, ClipView, fit_videos, worst_frames
from videomamba_depth.evaluation.report import Table, folded_ranges, table_markdown, to_markdown
from videomamba_depth.evaluation.summary import plain_scores, summarize_clips
from videomamba_depth.flow.frame_view import mapped
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
    methods = [Method("teacher", lambda: brightness), *filter_methods(), Method("mine", average, trained=True)]
    evaluator = Evaluator(
        methods, DepthKind.RELATIVE, protocol=Protocol(palindrome=True, cut_frames=6),
        shown=["teacher", "ema_0.5", "mine"], video_frames=8,
    )  # fmt: skip
    metadata = {"weights_sha256": {"mine": "abc123"}, "command": "python x.py a=<b>"}
    return render(evaluate_clips(clips, evaluator, metadata=metadata, draw=True))


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


def test_the_page_holds_every_method_guard_and_source(text: str) -> None:
    for method in ("teacher", *all_filters(), "mine"):
        assert f'<th scope="row">{method}' in text, method
    words = """AbsRel video|AbsRel first frame|AbsRel per frame|TGE|Flk2|OPW/clip|sDrift|sJit|rTC 1.02|palindrome
edges|edge F1|lag (frames)|settled after a cut|abc123|one affine per clip to ground truth|12 frames: 0–11
torch|Verdict: mine|Leaderboard: change against teacher|better on clips"""
    for expected in words.replace("\n", "|").split("|"):
        assert expected in text, expected


def plots(text: str) -> list[ElementTree.Element]:
    sources = [a["src"] or "" for tag, a in Tags(text).found if tag == "img"]
    start = "data:image/svg+xml;base64,"
    return [ElementTree.fromstring(base64.b64decode(s.removeprefix(start))) for s in sources if s.startswith(start)]


def test_plots_show_every_filter_and_the_student(text: str) -> None:
    figures = plots(text)
    assert len(figures) >= 9
    curves = {element.get("id") for element in figures[0].iter()}
    assert {"ema", "affine_ema", "warped_ema", "teacher", "mine", "pareto"} <= curves
    assert "constant" not in curves
    written = ["".join(element.itertext()).strip() for element in figures[0].iter() if element.tag.endswith("}text")]
    assert {"mine", "teacher"} <= set(written)
    assert any(label == "TGE %, change" for label in written)


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
    whole = view.finish()
    assert whole.video
    fits, left_out = fit_videos([whole, whole], max_bytes=len(whole.video))
    assert fits == whole
    assert left_out.video == ""
    assert "too large" in left_out.no_video_reason
    assert [s.method for s in left_out.slices] == ["input", "teacher"]
    silent = ClipView("room", room.rgb, 24.0, teacher, video_frames=0).finish()
    assert silent.no_video_reason == "not asked for"
    assert ClipPictures.from_json(asdict(whole)) == whole


def test_the_page_leaves_out_what_does_not_fit(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = [Method("teacher", lambda: brightness)]
    evaluator = Evaluator(methods, DepthKind.RELATIVE, shown=["teacher"], video_frames=8)
    result = evaluate_clips([EvaluationClip("room", room.rgb, motion=room.motion)], evaluator, draw=True)
    assert "<video" in render(result)
    monkeypatch.setattr("videomamba_depth.evaluation.pictures.MAX_VIDEO_BYTES", 100)
    assert "<video" not in render(result)
    assert "would make the page too large" in render(result)


def test_slices_show_a_jump_and_nothing_where_depth_is_steady(room: Room) -> None:
    steady = np.repeat(1.0 / room.depth_m[:1], NUM_FRAMES, axis=0)
    jumping = steady * (1 + 0.1 * (np.arange(NUM_FRAMES) % 2))[:, None, None]
    view = ClipView("room", room.rgb, 24.0, jumping, video_frames=0)
    for name, depth in (("still", steady), ("jumps", jumping)):
        view.add(name, depth)
    still, jumps = (decoded(s.jumps) for s in view.finish().slices[1:])
    assert still.min() == 255
    assert jumps.min() < 200


def test_the_worst_frames_are_found_and_shown(room: Room, text: str) -> None:
    assert "Worst frames" in text
    assert "mine, frame" in text
    teacher = 1.0 / room.depth_m
    student = teacher.copy()
    student[9] *= 1.4
    student[3, 10:20, 10:20] *= 3.0
    for truth in (room.depth_m, None):
        clip = EvaluationClip("room", room.rgb, gt_depth_m=truth, motion=room.motion)
        context = build_context(clip, mapped(np.asarray, room.rgb), teacher, DepthKind.RELATIVE, None, False)
        worst = worst_frames("student", student, context)
        assert [frame.frame for frame in worst] == [9, 3]
        assert worst[0].value > max(worst[1].value, worst[0].mean)
        assert decoded(worst[0].picture).shape[1] == 4 * 320  # input, reference, depth, error
    blind = EvaluationClip("room", room.rgb, gt_depth_m=np.zeros_like(room.depth_m), motion=room.motion)
    context = build_context(blind, mapped(np.asarray, room.rgb), teacher, DepthKind.RELATIVE, None, False)
    assert worst_frames("student", student, context) == []


def decoded(uri: str) -> np.ndarray:
    import cv2

    data = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def two_groups() -> dict[str, Any]:
    """Return a made-up result of three worlds of one group and one of another."""

    def method(tge: float, edges: float) -> dict[str, Score]:
        guards = {"edge_ratio": edges, "lag": 0.1, "sDrift": 0.0, "sJit": 0.0}
        values = {"tge": tge, "abs_rel/video": 0.1, "abs_rel/fast_pixels": 0.2, **guards}
        return {metric: Score(value) for metric, value in values.items()}

    clips = []
    for i in range(4):
        methods = {"teacher": method(1.0 + i, 1.0)}
        for family in ("ema", "affine_ema", "warped_ema"):
            methods |= {f"{family}_{a}": method((0.4 + 0.5 * a) * (1 + i), 0.9) for a in (0.75, 0.5, 0.25, 0.1)}
        methods |= {"constant": method(math.nan, math.nan), "feature_ema": method(0.6, 1.0)}
        methods["mine"] = method(0.5 * (1 + i), 0.97)
        about = {
            "num_frames": 5, "frame_ids": list(range(5)), "size": [4, 6], "fps": 24.0, "coverage": 1.0, "cuts": [],
            "alignment": "one affine per clip", "exact_motion": True, "flags": {},
        }  # fmt: skip
        clips.append({"name": f"world-{i}", "group": "fast" if i == 3 else "moving", "methods": methods, **about})
    return summarize_clips(clips, {}, ["mine"], {"averaging": "frames"}, {"command": "python y.py"})


def test_groups_of_clips_have_plots_and_tables_of_their_own() -> None:
    result = two_groups()
    text = render(result)
    assert len(plots(text)) == 8  # two groups, TGE against edges, lag, accuracy and fast pixels
    for expected in (
        "Moving camera: 3 clips",
        "3× speed: 1 clip",
        "mine minus each method",
        "dominates",
        "python y.py",
    ):
        assert expected in text
    assert "http" not in text
    markdown = to_markdown(result)
    for expected in ("−50.0 ± 0.0", "mine dominates", "lag (frames)", "command: python y.py"):
        assert expected in markdown, expected


def test_points_keep_the_order_of_strength_and_leave_out_what_is_far() -> None:
    clips = [plain_scores(clip) for clip in two_groups()["clips"][:3]]
    families = points_of(costs(clips, ["edge_ratio", "tge"]), "edge_ratio", "tge", ["mine"])
    assert [p.method for p in families["ema"]] == ["teacher", "ema_0.75", "ema_0.5", "ema_0.25", "ema_0.1"]
    assert "constant" not in families
    far = {**families, "mine": [Point("mine", "mine", Estimate(99.0, 1.0, 3), Estimate(-1.0, math.nan, 3))]}
    drawn = str(pareto_plot(far, ["mine"], Axis("edges", 40.0), Axis("TGE")))
    assert "Outside of the plot: mine (99, −1)" in drawn
    assert "Not measured" in str(pareto_plot({}, ["mine"], Axis("edges"), Axis("TGE")))


def test_a_bar_in_a_name_opens_no_column() -> None:
    table = table_markdown(Table("", ["a"], [("one|two", "", ["1 | 2"])]))
    assert r"| one\|two | 1 \| 2 |" in table


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
        expected_text, asked = [], []
        page.on("console", lambda message: expected_text.append(message.text))
        page.on("pageerror", lambda error: expected_text.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        page.evaluate("document.querySelector('video').play()")
        page.wait_for_function("document.querySelector('video').currentTime > 0.05")
        too_wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        browser.close()
    assert expected_text == []
    assert not too_wide
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}


def test_writing_is_atomic(tmp_path: Path) -> None:
    path = write_html(two_groups(), tmp_path / "deep" / "page.html")
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert list(path.parent.iterdir()) == [path]
