"""Stream a video through a student, frame by frame; memory stays constant.

    videomamba-depth stream checkpoint=embedded input=clip.mp4 output=out/     # the student that is shipped
    videomamba-depth stream checkpoint=runs/demo/last input=0 output=out/      # a camera
    videomamba-depth stream checkpoint=runs/demo/last input=clip.mp4 output=out/ raw=npz video=none
    videomamba-depth stream checkpoint=embedded input=clip.mp4 output=out/ offline=true   # best, not causal

The video that is written shows the input and its depth, near is bright; `raw` writes depth as numbers.
"""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from videomamba_depth.configuration.build_stream import build_stream
from videomamba_depth.configuration.cli import hydra_entry
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.data.video.decode import is_url, without_password
from videomamba_depth.data.video.image_sequence import is_image_sequence, list_images
from videomamba_depth.streaming.job import StreamJob, summary
from videomamba_depth.streaming.key_frames.key_frames import AddedFrames
from videomamba_depth.streaming.pipeline import LateSinks, Sink
from videomamba_depth.streaming.sinks.open import Opening, wanted_sinks
from videomamba_depth.streaming.sinks.paths import Outputs
from videomamba_depth.streaming.sinks.point_cloud import load_intrinsics
from videomamba_depth.streaming.sinks.preview_window import PreviewWindow
from videomamba_depth.streaming.sinks.raw_stream import RawStreamSink
from videomamba_depth.streaming.sinks.video import PreviewSink
from videomamba_depth.streaming.sources.live import LatestFrames
from videomamba_depth.streaming.sources.open import open_source
from videomamba_depth.utils.device import use_threads
from videomamba_depth.utils.signals import STOPPED_STATUS

log = logging.getLogger(__name__)


def main(config: StreamConfig) -> None:
    """Stream what `config` says, report the timings and name the outputs; exit status 130 when stopped by a signal.

    Raises:
        UserError: anything that a person can mend.
    """
    use_threads(config.threads)
    intrinsics = None if config.intrinsics is None else load_intrinsics(config.intrinsics)
    source = open_source(config)
    window = PreviewWindow(f"depth of {source.name}") if config.preview else None
    stream = build_stream(config)
    clouds = AddedFrames() if config.key_frames.enabled else config.ply_every
    opening = Opening(config, source.fps, stream.depth_kind, stream.max_depth_m, intrinsics, clouds)
    with ExitStack() as held:
        outputs: Outputs | None = None
        if config.output == "-":
            stdout = open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115
            sinks: list[Sink] = [RawStreamSink(stdout, config.raw_precision)]
        else:
            entries = wanted_sinks(config)
            outputs = Outputs(Path(config.output), source.name, entries, files_read(config), config.overwrite)
            held.enter_context(outputs.locked())
            outputs.prepare()
            sinks = [LateSinks(partial(outputs.open, opening))]
        stop = threading.Event()
        if window is not None:
            sinks.append(PreviewSink(window, opening.painter(), stop))
        about = {
            "checkpoint": config.checkpoint,
            "input": without_password(config.input),
            "source_frames": source.num_frames,
            "time_base": str(source.time_base),
            "colors": "near is bright: relative depth as it is, metric depth by its inverse (1/m)",
            "config": {**asdict(config), "input": without_password(config.input)},
        }
        waiting = 0 if isinstance(source, LatestFrames) else 4
        job = StreamJob(
            source, stream, sinks, outputs=outputs, about=about, overlap=config.overlap, queue_frames=waiting
        )
        report = job.run(stop)
        log.info(summary(report))
        if outputs is not None:
            log.info("wrote %s", ", ".join(str(path) for path in outputs.written()))
        if report.stopped:
            sys.exit(STOPPED_STATUS)


def files_read(config: StreamConfig) -> list[Path]:
    """Return the files and folders that the stream reads, which no output may replace."""
    named = [config.input, config.checkpoint.removeprefix("teacher:")]
    named += [config.intrinsics] if isinstance(config.intrinsics, str) else []
    read = [Path(text) for text in named if not is_url(text) and Path(text).exists()]
    return [*read, *(list_images(config.input) if is_image_sequence(config.input) else [])]


def run() -> None:
    """Run the command line."""
    hydra_entry("stream", StreamConfig, main)


if __name__ == "__main__":
    run()
