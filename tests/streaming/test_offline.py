"""offline=true writes the targets of the teacher's depth with the files, times and error lines of a stream."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from media import write_truncated, write_video
from tiny import save_tiny_teacher

from videomamba_depth.commands.stream import main
from videomamba_depth.configuration.build_stream import build_stream
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.data.labels.stabilize import stabilize_clip
from videomamba_depth.data.labels.windowed_target import WindowedTarget
from videomamba_depth.data.video.reader import Frame, iter_frames
from videomamba_depth.flow.estimators import DISFlow
from videomamba_depth.models.teachers import open_teacher
from videomamba_depth.streaming.offline import OfflineDepth
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.logger import read_json_lines


@pytest.fixture(scope="module")
def metric_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_teacher(tmp_path_factory.mktemp("metric"), "metric")


@pytest.fixture
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 20 frames, so that a short clip has seams."""
    monkeypatch.setitem(WindowedTarget.__init__.__kwdefaults__, "window", 20)
    monkeypatch.setitem(WindowedTarget.__init__.__kwdefaults__, "overlap", 10)


def stream(checkpoint: str, source: Path, output: Path, *overrides: str) -> Path:
    named = [f"checkpoint={checkpoint}", f"input={source}", f"output={output}", "device=cpu", "short_side=42"]
    main(load_config("stream", StreamConfig, [*named, "offline=true", "video=none", *overrides]))
    return output


def recorded(out: Path) -> np.ndarray:
    return np.concatenate([np.load(path)["depth"] for path in sorted((out / "clip_depth").iterdir())])


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_depth_is_the_target_of_the_teacher_s(
    kind: str, tiny_teacher_folder: str, metric_teacher: str, tmp_path: Path
) -> None:
    teacher = tiny_teacher_folder if kind == "relative" else metric_teacher
    video = write_video(tmp_path / "clip.mp4", 9, width=66, height=50)
    options = ["geometry=false", "raw=npz", "raw_precision=float32", "resolution=model", "reset_at_cuts=false"]
    out = stream(f"teacher:{teacher}", video, tmp_path / "out", *options)
    model = open_teacher(teacher, short_side=42)
    clip = torch.stack([torch.from_numpy(frame.rgb) for frame in iter_frames(video)]).permute(0, 3, 1, 2).float() / 255
    seen = model.fit(clip)
    with torch.inference_mode():
        depth = torch.cat([model.predict_depth(frame) for frame in seen.split(1)])
    wanted = stabilize_clip(depth, seen, DISFlow(), radius=8, sigma=5.0, depth_kind=model.depth_kind)[:, 0]
    np.testing.assert_allclose(recorded(out), wanted.numpy(), rtol=1e-5)
    record = json.loads((out / "clip.json").read_text())
    assert (record["status"], record["num_frames"], record["depth_kind"]) == ("complete", 9, model.depth_kind.value)
    assert record["config"]["offline"]
    assert model.depth_kind is (DepthKind.METRIC if kind == "metric" else DepthKind.RELATIVE)


def test_all_frames_of_a_long_clip_come_in_order(tiny_teacher_folder: str, tmp_path: Path, short_windows: None) -> None:
    pts = [k * 3 + k % 2 for k in range(47)]
    video = write_video(tmp_path / "clip.mp4", 47, pts=pts)
    options = ["poses=true", "raw=npz", "video=depth", "max_gap_s=0.35"]
    out = stream(f"teacher:{tiny_teacher_folder}", video, tmp_path / "out", *options)
    lines = list(read_json_lines(out / "clip.frames.jsonl"))
    assert [line["frame"] for line in lines] == list(range(47))
    assert recorded(out).shape == (47, 48, 64)
    assert [line["frame"] for line in lines if "reset" in line] == [0, *range(1, 47, 2)]  # every gap of 0.4 s
    assert np.loadtxt(out / "clip.poses.txt").shape == (47, 8)
    assert all("evidence" in line["camera"] and "noise_px" not in line["camera"] for line in lines)
    assert (out / "clip.mp4").exists()


@pytest.mark.usefixtures("short_windows")
def test_what_is_held_back_is_written_when_the_input_ends_early(tiny_teacher_folder: str, tmp_path: Path) -> None:
    video = write_truncated(tmp_path / "clip.mp4", 0.8, 40)
    with pytest.raises(UserError, match=r"is damaged: .*; (\d+) frames were streamed before, and written"):
        stream(f"teacher:{tiny_teacher_folder}", video, tmp_path / "out", "raw=npz", "geometry=false")
    record = json.loads((tmp_path / "out" / "clip.json").read_text())
    assert record["status"].startswith("failed")
    assert record["num_frames"] == len(recorded(tmp_path / "out")) > 20
    usable = sum(1 for _ in iter_frames(video))
    assert record["num_frames"] == usable


@pytest.mark.usefixtures("short_windows")
def test_a_stop_writes_what_was_read(tiny_teacher_folder: str, tmp_path: Path) -> None:
    named = [f"checkpoint=teacher:{tiny_teacher_folder}", f"input={tmp_path}", f"output={tmp_path}", "short_side=42"]
    offline = build_stream(load_config("stream", StreamConfig, [*named, "offline=true", "geometry=false"]))
    assert isinstance(offline, OfflineDepth)
    video, read, stop = write_video(tmp_path / "clip.mp4", 40), [], threading.Event()

    def until_stopped() -> Iterator[Frame]:
        for frame in iter_frames(video):
            if stop.is_set():
                return
            read.append(frame.index)
            yield frame

    shown = []
    for frame in offline.depth_frames(until_stopped()):
        shown.append(frame.index)
        stop.set()
    assert shown == read == list(range(21))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["input=0"], "offline=true sees frames that come later: input=0 must be recorded first"),
        (["live=true"], "must be recorded first"),
        (["memory=2", "compile=true"], "leave out memory=2, compile=true"),
        (["key_frames.enabled=true"], r"leave out key_frames.enabled=true"),
        (["geometry=false", "poses=true"], "poses=true needs parallax: leave out geometry=false"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config("stream", StreamConfig, ["checkpoint=a", "input=b", "output=c", "offline=true", *overrides])
    assert "\n" not in str(caught.value)


def test_depth_that_is_not_finite_is_one_line(tiny_teacher_folder: str, tmp_path: Path) -> None:
    teacher = open_teacher(tiny_teacher_folder, short_side=42)
    with torch.no_grad():
        next(teacher.head.parameters()).fill_(torch.nan)
    offline = OfflineDepth(teacher, WindowedTarget(DISFlow(), teacher.depth_kind), device="cpu")
    with pytest.raises(UserError, match="the teacher's depth of frame 0 is not finite"):
        list(offline.depth_frames(iter_frames(write_video(tmp_path / "clip.mp4", 3))))
