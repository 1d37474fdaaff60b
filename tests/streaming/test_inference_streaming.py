"""The command: what it writes equals its input in count and time; mistakes are one line; stops leave whole files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media import write_empty, write_headless, write_images, write_text, write_truncated, write_video

from videomamba_depth.commands.stream import main
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.data.video.reader import iter_frames
from videomamba_depth.streaming import job
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.logger import read_json_lines

_SCRIPT = Path(__file__).parents[2] / "inference_streaming.py"


def stream(checkpoint: Path | str, source: Path | str, output: Path, *overrides: str) -> Path:
    """Run the command in this process; return the output folder."""
    named = [f"checkpoint={checkpoint}", f"input={source}", f"output={output}", "device=cpu", *overrides]
    main(load_config("stream", StreamConfig, named))
    return output


def times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        base = container.streams.video[0].time_base
        return [frame.pts * base for frame in container.decode(video=0)]


@pytest.mark.parametrize("video_kind", ["side_by_side", "depth"])
def test_count_and_times_equal_the_input(tmp_path: Path, checkpoint: Path, video_kind: str) -> None:
    pts = [0, 5, 6, 30, 31, 32, 60, 61, 80]
    source = write_video(tmp_path / "uneven.mp4", 9, width=66, height=50, pts=pts, time_base=Fraction(1, 240))
    out = stream(checkpoint, source, tmp_path / "out", f"video={video_kind}", "raw=npz", "shard_frames=4")
    assert times(out / "uneven.mp4") == times(source)
    assert len(times(source)) == 9
    shards = [np.load(path) for path in sorted((out / "uneven_depth").iterdir())]
    assert np.concatenate([s["timestamp_s"] for s in shards]).tolist() == [float(t) for t in times(source)]
    assert shards[0]["depth"].shape == (4, 50, 66)
    about = json.loads((out / "uneven.json").read_text())
    assert (about["status"], about["num_frames"]) == ("complete", 9)
    assert about["depth_kind"] == "affine_invariant_inverse_depth"
    assert about["versions"]["torch"]
    assert [r["pts"] for r in read_json_lines(out / "uneven.frames.jsonl")] == [
        int(t / Fraction(about["time_base"])) for t in times(source)
    ]


def test_overlapped_and_serial_write_the_same(tmp_path: Path, checkpoint: Path, video: Path) -> None:
    for overlap in ("true", "false"):
        stream(checkpoint, video, tmp_path / overlap, "raw=npz", "video=none", f"overlap={overlap}")
    one, other = (np.load(tmp_path / o / "clip_depth" / "depth_000000.npz")["depth"] for o in ("true", "false"))
    assert np.array_equal(one, other)
    assert one.astype(np.float32).std() > 0


def test_image_folder_and_png16(tmp_path: Path, checkpoint: Path) -> None:
    folder = write_images(tmp_path / "images", 5)
    out = stream(checkpoint, folder, tmp_path / "out", "raw=png16", "fps=12", "resolution=model", "max_frames=4")
    assert times(out / "images.mp4") == [Fraction(i, 12) for i in range(4)]
    assert len(list((out / "images_depth").glob("*.png"))) == 4


def test_bare_teacher(tmp_path: Path, tiny_teacher_folder: str, video: Path) -> None:
    out = stream(f"teacher:{tiny_teacher_folder}", video, tmp_path / "out", "short_side=28", "precision=bfloat16")
    assert times(out / "clip.mp4") == times(video)


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path, checkpoint: Path, video: Path) -> None:
    out = stream(checkpoint, video, tmp_path / "out", "max_frames=1")
    before = (out / "clip.mp4").read_bytes()
    with pytest.raises(UserError, match=r"clip\.mp4 exists already.*overwrite=true"):
        stream(checkpoint, video, out)
    assert (out / "clip.mp4").read_bytes() == before
    stream(checkpoint, video, out, "overwrite=true")
    assert len(times(out / "clip.mp4")) == 12


def test_what_is_readable_of_a_broken_video_is_written(tmp_path: Path, checkpoint: Path) -> None:
    source = write_truncated(tmp_path / "cut.mp4")
    with pytest.raises(
        UserError, match=r"cut\.mp4 is damaged: only \d+ of 24 frames .*; \d+ frames were streamed before"
    ):
        stream(checkpoint, source, tmp_path / "out")
    readable = [frame.pts * frame.time_base for frame in iter_frames(source)]
    assert 0 < len(readable) < 24
    assert times(tmp_path / "out" / "cut.mp4") == readable
    about = json.loads((tmp_path / "out" / "cut.json").read_text())
    assert about["status"].startswith("failed: ")
    assert "is damaged" in about["status"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "missing.mp4", "no such file"),
        (lambda p: write_empty(p / "a.mp4"), "it is empty"),
        (lambda p: write_text(p / "a.mp4"), "not a video"),
        (lambda p: write_headless(p / "a.mp4"), "cut off or not a video"),
        (lambda p: p, "no images in"),
    ],
)
def test_unusable_inputs(tmp_path: Path, checkpoint: Path, make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        stream(checkpoint, make(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tint=red", "tint"),
        ("precision=float64", "precision must be one of float32, bfloat16, float16; got 'float64'"),
        ("max_frames=many", "max_frames"),
        ("max_frames=0", "max_frames must be positive"),
        ("raw=exe", "raw must be one of"),
        ("color.percentiles=[90,10]", "color.percentiles must ascend"),
        ("device=cuda:77", "device 'cuda:77' is not there"),
    ],
)
def test_wrong_options(tmp_path: Path, checkpoint: Path, video: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        stream(checkpoint, video, tmp_path / "out", override)
    assert not (tmp_path / "out").exists()


def test_missing_checkpoint(tmp_path: Path, video: Path) -> None:
    with pytest.raises(UserError, match="not a student checkpoint"):
        stream(tmp_path, video, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unwritable_output(tmp_path: Path, checkpoint: Path, video: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*out: Not a directory"):
        stream(checkpoint, video, tmp_path / "file" / "out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_files(tmp_path: Path, checkpoint: Path, number: signal.Signals, monkeypatch) -> None:
    source = write_video(tmp_path / "long.mp4", 200)
    step = job.DepthStream.step

    def step_then_signal(self: job.DepthStream, frame: np.ndarray, timestamp_s: float | None = None) -> np.ndarray:
        if timestamp_s == 0.5:
            signal.raise_signal(number)
        return step(self, frame, timestamp_s)

    monkeypatch.setattr(job.DepthStream, "step", step_then_signal)
    with pytest.raises(SystemExit) as stop:
        stream(checkpoint, source, tmp_path / "out", "raw=npz")
    assert stop.value.code == 130
    assert times(tmp_path / "out" / "long.mp4") == times(source)[:6]
    assert len(np.load(tmp_path / "out" / "long_depth" / "depth_000000.npz")["depth"]) == 6
    assert json.loads((tmp_path / "out" / "long.json").read_text())["status"] == "stopped"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("reader", "writer"))]


def run_script(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(_SCRIPT), *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_mistakes_are_one_line_and_status_2(tmp_path: Path, checkpoint: Path) -> None:
    done = run_script(f"checkpoint={checkpoint}", f"input={tmp_path}/missing.mp4", f"output={tmp_path}/out")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [f"error: no such file: {tmp_path}/missing.mp4"]
    assert done.stdout == ""


@pytest.mark.slow
def test_a_kill_leaves_a_playable_video_and_whole_lines(tmp_path: Path, checkpoint: Path) -> None:
    source = write_video(tmp_path / "long.mp4", 2000, fps=30)
    out = tmp_path / "out"
    command = [sys.executable, str(_SCRIPT), f"checkpoint={checkpoint}", f"input={source}", f"output={out}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        lines = out / "long.frames.jsonl"
        while process.poll() is None and (not lines.exists() or len(read_json_lines(lines)) < 300):
            time.sleep(0.2)
        assert process.poll() is None
        process.kill()
    written = len(read_json_lines(lines))
    assert [r["frame"] for r in read_json_lines(lines)] == list(range(written))
    playable = times(out / "long.mp4")
    assert playable == times(source)[: len(playable)]
    assert written - 120 <= len(playable)


def test_a_tilde_that_is_no_home_folder_is_part_of_the_name(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "~x.mp4", 2)
    stream(checkpoint, "~x.mp4", Path("~nosuch/o"))
    assert (tmp_path / "~nosuch" / "o" / "~x.mp4").is_file()
    with pytest.raises(UserError, match=r"~nosuch/y\.mp4"):
        stream(checkpoint, "~nosuch/y.mp4", Path("out"))
    assert not (tmp_path / "out").exists()
