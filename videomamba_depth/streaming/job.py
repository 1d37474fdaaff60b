"""One streaming job: a source through a stream into sinks, with progress, a record of it, and clean stops."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Any

import torch
import transformers
from tqdm import tqdm

from videomamba_depth import __version__
from videomamba_depth.data.video.reader import Frame
from videomamba_depth.streaming.depth_frame import DepthFrame, LiveLosses
from videomamba_depth.streaming.offline import OfflineDepth
from videomamba_depth.streaming.pipeline import PipelineReport, Sink, run_pipeline
from videomamba_depth.streaming.sinks.paths import Outputs
from videomamba_depth.streaming.sources.files import FrameSource
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.streaming.timing import resident_mb
from videomamba_depth.utils.atomic import write_json
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.signals import on_stop

log = logging.getLogger(__name__)

_MEMORY_FRAMES = 300  # resident memory is recorded after this frame ("warm") and its latest multiple: it must not grow


class StreamJob:
    """Run a source through a stream into sinks.

    Args:
        outputs: what is written where, for the JSON record of the job; None: no record. It is written at the start, or
            with the first frame where it replaces another, and at the end.
        about: what the caller wants in it.
        overlap: decode, infer and write at the same time.
        queue_frames: how many frames may wait before and after the model.
    """

    def __init__(
        self,
        source: FrameSource,
        stream: DepthStream | OfflineDepth,
        sinks: Sequence[Sink],
        *,
        outputs: Outputs | None = None,
        about: dict[str, Any] | None = None,
        overlap: bool = True,
        queue_frames: int = 4,
    ) -> None:
        self._source, self._stream, self._sinks = source, stream, sinks
        self._overlap, self._queue_frames = overlap, queue_frames
        self._outputs, self._memory = outputs, dict[str, float]()
        self._is_recorded = False
        self._losses = LiveLosses()
        self._record: dict[str, Any] = {
            "status": "running",
            "depth_kind": stream.depth_kind.value,
            **(about or {}),
            "versions": {
                "videomamba_depth": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }

    def run(self, stop: threading.Event | None = None) -> PipelineReport:
        """Stream until the source ends, `stop` is set or a signal asks to stop; the outputs are finished in every case.

        Raises:
            UserError: the source is damaged or an output cannot be written; what could be done before is done.
        """
        stop, report = stop or threading.Event(), PipelineReport(losses=self._losses)
        if self._outputs is not None and not self._outputs.record_path.exists():
            self._write_record()
        progress = tqdm(total=self._source.num_frames, unit="frame", mininterval=0.5, desc=self._source.name)
        try:
            with stop_on_signals(stop), progress:
                run_pipeline(
                    self._source,
                    self._depth_frames,
                    self._sinks,
                    stop=stop,
                    on_frame=lambda _: self._count(progress),
                    queue_frames=self._queue_frames,
                    overlap=self._overlap,
                    report=report,
                )
        except BaseException as error:
            self._finish_record(report, f"failed: {' '.join(str(error).split()) or type(error).__name__}")
            if isinstance(error, UserError) and report.num_frames:
                written = ", and written" if report.written else ""
                raise UserError(f"{error}; {report.num_frames} frames were streamed before{written}") from error
            raise
        self._finish_record(report, "stopped" if report.stopped else "complete")
        return report

    def _finish_record(self, report: PipelineReport, status: str) -> None:
        self._record |= {"status": status, "num_frames": report.num_frames, "ms_per_frame": _timings(report)}
        self._record["resident_mb"] = self._memory
        self._record |= {"live_losses": asdict(self._losses)} if self._losses.any() else {}
        if self._is_recorded:  # a stream without a frame leaves the record of the one before
            self._write_record(finished=True)

    def _count(self, progress: Any) -> None:
        progress.update()
        if progress.n % _MEMORY_FRAMES == 0:
            name = "warm" if progress.n == _MEMORY_FRAMES else f"frame_{progress.n}"
            self._memory = {"warm": self._memory.get("warm", 0.0), name: round(resident_mb(), 1)}

    def _depth_frames(self, frames: Iterator[Frame]) -> Iterator[DepthFrame]:
        stream = self._stream
        found = stream.depth_frames(frames) if isinstance(stream, OfflineDepth) else self._step_by_step(stream, frames)
        for frame in found:
            if not self._is_recorded:
                self._write_record()
            yield frame

    def _step_by_step(self, stream: DepthStream, frames: Iterator[Frame]) -> Iterator[DepthFrame]:
        for frame in frames:
            depth = stream.step(frame.rgb, frame.timestamp_s)
            reset, notes = stream.reset_reasons[0], stream.notes
            self._losses.add(frame)
            lost = (frame.dropped, frame.outage_s)
            camera = next(iter(stream.cameras), None)
            yield DepthFrame(frame.index, frame.pts, frame.time_base, frame.rgb, depth, reset, notes, *lost, camera)

    def _write_record(self, finished: bool = False) -> None:
        self._is_recorded = True
        if self._outputs is None:
            return
        path = self._outputs.record_path
        try:
            write_json(path, self._record | {"outputs": self._outputs.record(finished)})
        except UserError as error:  # a full disk: the error that the sinks raise says it
            log.warning("%s", error)


def summary(report: PipelineReport) -> str:
    """Return the timings in one line."""
    timing = _timings(report)
    p50, p95, p99 = timing["infer_p50_p95_p99"]
    return (
        f"{report.num_frames} frames in {report.wall_s:.1f} s ({report.num_frames / max(report.wall_s, 1e-9):.1f}"
        f" frames/s); ms per frame: {timing['wall']} wall = decode {timing['decode']} | infer {timing['infer']}"
        f" (p50 {p50}, p95 {p95}, p99 {p99}) | write {timing['write']}, side by side{report.losses.described()}"
    )


def _timings(report: PipelineReport) -> dict[str, Any]:
    return {
        "wall": round(1000 * report.wall_s / max(1, report.num_frames), 1),
        "decode": round(report.decode.mean_ms, 1),
        "infer": round(report.infer.mean_ms, 1),
        "infer_p50_p95_p99": [round(v, 1) for v in report.infer.percentiles_ms()],
        "write": round(report.write.mean_ms, 1),
    }


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """Set `stop` on the first Ctrl-C, SIGTERM or SIGHUP; a second Ctrl-C interrupts at once."""

    def handle(number: int, _: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        log.info("%s: finishing the files (Ctrl-C again interrupts at once)", signal.Signals(number).name)
        stop.set()

    with on_stop(handle):
        yield
