"""From the values of `configs/stream.yaml` to a streaming job."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.data.video.decode import is_url, without_password
from videomamba_depth.data.video.image_sequence import is_image_sequence, list_images
from videomamba_depth.streaming.job import StreamJob, summary
from videomamba_depth.streaming.key_frames.key_frames import AddedFrames, KeyFrames
from videomamba_depth.streaming.pipeline import FileSink, LateSinks, Sink
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.sinks.images import ExrSink, Png16Sink, require_exr
from videomamba_depth.streaming.sinks.npz import NpzSink
from videomamba_depth.streaming.sinks.paths import OutputPaths, Outputs
from videomamba_depth.streaming.sinks.point_cloud import Intrinsics, PointCloudSink, load_intrinsics
from videomamba_depth.streaming.sinks.preview_window import PreviewWindow
from videomamba_depth.streaming.sinks.raw_stream import RawStreamSink
from videomamba_depth.streaming.sinks.video import FrameLog, FramePainter, PreviewSink, VideoSink
from videomamba_depth.streaming.sinks.zarr_group import ZarrSink
from videomamba_depth.streaming.sources.files import FrameSource
from videomamba_depth.streaming.sources.live import LatestFrames
from videomamba_depth.streaming.sources.open import open_source
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.color import Colorizer, ColorRange
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.signals import STOPPED_STATUS

log = logging.getLogger(__name__)


def stream_main(config: StreamConfig) -> None:
    """Stream what `config` says, report the timings and name the outputs; exit status 130 when stopped by a signal.

    Raises:
        UserError: anything that a person can mend.
    """
    with ExitStack() as held:
        _stream(config, held)


def _stream(config: StreamConfig, held: ExitStack) -> None:
    """Do what `stream_main` says; `held` keeps the lock of the outputs."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    intrinsics = None if config.intrinsics is None else load_intrinsics(config.intrinsics)
    source = build_source(config)
    window = PreviewWindow(f"depth of {source.name}") if config.preview else None
    stream = build_stream(config)
    outputs = None if config.output == "-" else build_outputs(config, source)
    if outputs is None:
        stdout = open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115
        sinks: list[Sink] = [RawStreamSink(stdout, config.raw_dtype)]
    else:
        if config.raw == "exr":
            require_exr()
        held.enter_context(outputs.paths.locked())
        outputs.prepare()
        sinks = [LateSinks(partial(open_sinks, config, outputs, stream, source, intrinsics))]
    stop = threading.Event()
    if window is not None:
        sinks.append(PreviewSink(window, build_painter(config, stream.depth_kind), stop))
    job = StreamJob(
        source,
        stream,
        sinks,
        outputs=outputs,
        about=_about(config, source),
        overlap=config.overlap,
        queue_frames=0 if isinstance(source, LatestFrames) else 4,
    )
    report = job.run(stop)
    log.info(summary(report))
    if outputs is not None:
        log.info("wrote %s", ", ".join(str(path) for path in outputs.written()))
    if report.stopped:
        sys.exit(STOPPED_STATUS)


def build_source(config: StreamConfig) -> FrameSource:
    """Return the source that `config` names."""
    size = None if config.raw_input_size is None else (config.raw_input_size[0], config.raw_input_size[1])
    return open_source(
        config.input,
        fps=config.fps,
        max_frames=config.max_frames,
        raw_input_size=size,
        live=config.live,
        reconnect_s=config.reconnect_s,
    )


def build_stream(config: StreamConfig) -> DepthStream:
    """Return the stream that `config` describes."""
    resets = ResetPolicy(cuts=config.reset_at_cuts, max_gap_s=config.max_gap_s)
    return DepthStream(
        config.checkpoint,
        device=config.device,
        dtype=config.dtype,
        input_size=config.input_size,
        resolution=config.resolution,
        resets=resets,
        hooks=[KeyFrames(settings)] if (settings := config.key_frames.settings()) else [],
        memory=config.memory,
        compile=config.compile,
    )


def build_painter(config: StreamConfig, kind: DepthKind) -> FramePainter:
    """Return what paints depth for one viewer."""
    low, high = config.colour_percentiles
    fixed = None if config.colour_range is None else (config.colour_range[0], config.colour_range[1])
    colour_range = ColorRange((low, high), config.colour_time_constant_s, fixed)
    return FramePainter(kind, colour_range, Colorizer(config.colour_map), config.video != "depth")


def build_outputs(config: StreamConfig, source: FrameSource) -> Outputs:
    """Return where `config` writes to."""
    read = [config.input, config.checkpoint.removeprefix("teacher:")]
    read += [config.intrinsics] if isinstance(config.intrinsics, str) else []
    there = [Path(text) for text in read if not is_url(text) and Path(text).exists()]
    if is_image_sequence(config.input):
        there += list_images(config.input)
    return Outputs(OutputPaths(Path(config.output), source.name), asdict(config), there, config.overwrite)


def open_sinks(
    config: StreamConfig,
    outputs: Outputs,
    stream: DepthStream,
    source: FrameSource,
    intrinsics: Intrinsics | None = None,
) -> Sequence[Sink]:
    """Remove what an earlier stream wrote, and open the sinks that `config` asks for."""
    outputs.replace()
    paths, kind = outputs.paths, stream.depth_kind
    sinks: dict[Path, FileSink] = {paths.frames: FrameLog(paths.frames)}
    outputs.sinks = sinks
    if config.video != "none":
        painter = build_painter(config, kind)
        sinks[paths.video] = VideoSink(paths.video, painter, source.fps, config.video_codec)
    if config.raw == "npz":
        sinks[paths.depth] = NpzSink(paths.depth, kind, config.raw_dtype, config.shard_frames)
    elif config.raw == "png16":
        sinks[paths.depth] = Png16Sink(paths.depth, kind, stream.max_depth_m)
    elif config.raw == "exr":
        sinks[paths.depth] = ExrSink(paths.depth, kind, config.raw_dtype)
    elif config.raw == "zarr":
        sinks[paths.zarr] = ZarrSink(paths.zarr, kind, config.raw_dtype)
    if intrinsics is not None:
        every = AddedFrames() if config.key_frames.enabled else config.ply_every
        sinks[paths.points] = PointCloudSink(paths.points, kind, intrinsics, every)
    return list(sinks.values())


def _about(config: StreamConfig, source: FrameSource) -> dict[str, Any]:
    """Return what the record of a job says besides its results."""
    colours = "near is bright: relative depth as it is, metric depth by its inverse (1/m)"
    return {
        "checkpoint": config.checkpoint,
        "input": without_password(config.input),
        "source_frames": source.num_frames,
        "time_base": str(source.time_base),
        "colours": colours,
        "config": {**asdict(config), "input": without_password(config.input)},
    }
