"""Every value of `configs/stream.yaml` and `serve.yaml` arrives, under its own name, in the part it is meant for."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from media import write_video

from videomamba_depth.commands import serve
from videomamba_depth.commands import stream as stream_command
from videomamba_depth.configuration import build_stream
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.serve_schema import ServeConfig
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.streaming.key_frames.key_frames import AddedFrames
from videomamba_depth.streaming.pipeline import PipelineReport
from videomamba_depth.streaming.sources import open as open_module
from videomamba_depth.streaming.sources.live import LatestFrames
from videomamba_depth.streaming.sources.open import open_source
from videomamba_depth.utils.depth_kind import DepthKind

FRAMES = SimpleNamespace(name="x", num_frames=3, fps=30.0, time_base=Fraction(1, 30))


class Recorded(Exception):
    """Ends a command once it has what it was built from."""


def stream_parts(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> SimpleNamespace:
    """Run the command up to its job; return what stream and job were made with, and what its sinks would be."""
    parts = SimpleNamespace(stream={}, job={})

    def stream(checkpoint: str, **given: Any) -> SimpleNamespace:
        parts.stream = {"checkpoint": checkpoint, **given}
        return SimpleNamespace(depth_kind=DepthKind.RELATIVE, max_depth_m=None)

    class Job:
        def __init__(self, source: Any, stream: Any, sinks: Any, **given: Any) -> None:
            parts.source, parts.sinks, parts.job = source, sinks, given

        def run(self, stop: Any) -> PipelineReport:
            raise Recorded

    threads: list[int] = []
    monkeypatch.setattr(build_stream, "DepthStream", stream)
    monkeypatch.setattr(stream_command, "StreamJob", Job)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    with pytest.raises(Recorded):
        stream_command.main(load_config("stream", StreamConfig, ["checkpoint=student", *overrides]))
    parts.threads = threads
    return parts


@pytest.fixture
def clip(tmp_path: Path) -> str:
    return str(write_video(tmp_path / "clip.mp4", 8))


def test_the_model(monkeypatch: pytest.MonkeyPatch, clip: str, tmp_path: Path) -> None:
    values = {"device": "cpu", "precision": "bfloat16", "short_side": 77, "resolution": "model", "memory": 1.5,
              "compile": True, "geometry": True, "affine": False, "encode_every": 3}  # fmt: skip
    overrides = [f"{key}={value}" for key, value in values.items()]
    made = stream_parts(
        monkeypatch, f"input={clip}", f"output={tmp_path}/out", *overrides, "threads=3", "max_gap_s=2.5",
        "reset_at_cuts=false", "key_frames.enabled=true", "key_frames.every=7", "key_frames.capacity=5",
    )  # fmt: skip
    assert {key: made.stream[key] for key in ["checkpoint", *values]} == {"checkpoint": "student", **values}
    assert (made.stream["resets"].cuts, made.stream["resets"].max_gap_s) == (False, 2.5)
    (hook,) = made.stream["hooks"]
    assert (hook.settings()["every"], hook.settings()["capacity"]) == (7, 5)
    assert made.threads == [3]
    plain = stream_parts(monkeypatch, f"input={clip}", f"output={tmp_path}/out")
    assert (plain.stream["hooks"], plain.stream["short_side"], plain.threads) == ([], None, [])
    assert plain.stream["geometry"] is plain.stream["affine"] is None
    assert plain.stream["encode_every"] == 1
    assert (plain.stream["resets"].cuts, plain.stream["resets"].max_gap_s) == (True, None)


@pytest.mark.parametrize("live", [True, False])
def test_source_and_job(monkeypatch: pytest.MonkeyPatch, clip: str, tmp_path: Path, live: bool) -> None:
    made = stream_parts(
        monkeypatch, f"input={clip}", f"output={tmp_path}/out", f"live={live}", "max_frames=5", f"overlap={not live}"
    )
    assert isinstance(made.source, LatestFrames) == live
    assert made.source.num_frames == 5
    assert (made.job["overlap"], made.job["queue_frames"]) == (not live, 0 if live else 4)
    about = made.job["about"]
    assert (about["checkpoint"], about["input"], about["source_frames"]) == ("student", clip, 5)
    assert about["config"]["max_frames"] == 5


def test_sources_get_their_rate_and_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shared = ["checkpoint=a", f"output={tmp_path}"]
    raw: Any = open_source(load_config("stream", StreamConfig, [*shared, "input=-", "raw_input_size=[12,8]", "fps=5"]))
    assert (raw.fps, raw.time_base, raw._size) == (5.0, Fraction(1, 5), (12, 8))
    opened: list[Any] = []
    monkeypatch.setattr(open_module, "NetworkCamera", lambda *args, **options: opened.append((args, options)) or FRAMES)
    url = load_config("stream", StreamConfig, [*shared, "input=rtsp://x/y", "reconnect_s=7", "max_frames=3"])
    assert isinstance(open_source(url), LatestFrames)
    assert opened == [(("rtsp://x/y", 3), {"reconnect_s": 7.0})]


@pytest.mark.parametrize("raw", ["npz", "png16", "exr", "zarr"])
def test_sinks(monkeypatch: pytest.MonkeyPatch, clip: str, tmp_path: Path, raw: str) -> None:
    made = stream_parts(
        monkeypatch, f"input={clip}", f"output={tmp_path}/out", f"raw={raw}", "raw_precision=float32",
        "shard_frames=9", "video=depth", "video_codec=hevc", "intrinsics=[100,110,32,24]", "ply_every=11",
        "color.map=viridis", "color.percentiles=[5,90]", "color.time_constant_s=3", "color.range=[1,4]",
    )  # fmt: skip
    outputs = made.job["outputs"]
    sinks: dict[str, Any] = {type(s).__name__: s for s in made.sinks[0]._open()}
    assert outputs is not None
    name = {"npz": "NpzSink", "png16": "Png16Sink", "exr": "ExrSink", "zarr": "ZarrSink"}[raw]
    assert set(sinks) == {"VideoSink", "PointCloudSink", "FrameLog", name}
    if raw == "npz":
        assert (sinks[name]._dtype, sinks[name]._shard_frames) == (np.float32, 9)
    if raw == "zarr":
        assert sinks[name]._dtype == np.float32
    if raw == "exr":
        assert not sinks[name]._half
    assert (sinks["PointCloudSink"]._every, sinks["PointCloudSink"]._intrinsics) == (11, (100, 110, 32, 24))
    video = sinks["VideoSink"]
    assert video._codec == "hevc"
    colors = video._painter._colors
    assert (colors._range.settings.percentiles, colors._range.settings.time_constant_s) == ((5, 90), 3.0)
    assert colors._range.update(np.ones((4, 4), np.float32), 0.0) == (1.0, 4.0)
    assert not video._painter._side_by_side
    for sink in sinks.values():
        sink.close()


def test_raw_depth_on_stdout_and_clouds_of_key_frames(
    monkeypatch: pytest.MonkeyPatch, clip: str, tmp_path: Path
) -> None:
    made = stream_parts(monkeypatch, f"input={clip}", "output=-", "raw_precision=float32")
    assert (type(made.sinks[0]).__name__, made.sinks[0]._dtype) == ("RawStreamSink", np.float32)
    assert made.job["outputs"] is None
    made = stream_parts(
        monkeypatch, f"input={clip}", f"output={tmp_path}/out", "intrinsics=[9,9,1,1]", "key_frames.enabled=true"
    )
    clouds = next(s for s in made.sinks[0]._open() if type(s).__name__ == "PointCloudSink")
    assert isinstance(clouds._every, AddedFrames)


def test_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("starlette")
    from videomamba_depth.serving import app

    values = {"max_upload_mb": 3.0, "max_picture_mb": 2.0, "max_pixels": 5000, "longest_px": 70, "max_streams": 6,
              "decode_s": 8.0, "upload_s": 9.0, "idle_s": 11.0}  # fmt: skip
    overrides = [f"{key}={value}" for key, value in values.items()]
    given = ["checkpoint=student", "device=cpu", "precision=bfloat16", "short_side=77", "reset_at_cuts=false",
             "max_gap_s=4", "allowed_hosts=[mybox.lan]", "host=0.0.0.0", "color.map=magma",
             "framed_by=[https://huggingface.co]"]  # fmt: skip
    config = load_config("serve", ServeConfig, [*given, *overrides])
    made = SimpleNamespace()

    class Stream:
        def __init__(self, model: Any, **options: Any) -> None:
            made.model, made.options = model, options

        def step(self, frame: np.ndarray) -> None:
            pass

    def build_app(new_stream: Any, settings: Any, **options: Any) -> str:
        made.settings, made.app = settings, options
        return "page"

    monkeypatch.setattr(serve, "DepthStream", Stream)
    monkeypatch.setattr(serve, "load_student", lambda *arguments: arguments)
    monkeypatch.setattr(app, "build_app", build_app)
    assert serve.build_page(config) == "page"
    assert made.model == ("student", 77)
    assert (made.options["device"], made.options["precision"]) == ("cpu", "bfloat16")
    assert (made.options["resets"].cuts, made.options["resets"].max_gap_s) == (False, 4.0)
    assert {key: getattr(made.settings, key) for key in values} == values
    assert (made.settings.max_upload_bytes, made.settings.color.map) == (3_000_000, "magma")
    assert made.app == {
        "loopback": False,
        "allowed_hosts": ("0.0.0.0", "mybox.lan"),
        "framed_by": ["https://huggingface.co"],
    }
