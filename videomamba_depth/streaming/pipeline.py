"""Decode, infer and write at the same time, with bounded queues between them."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from videomamba_depth.data.video.reader import Frame
from videomamba_depth.streaming.depth_frame import DepthFrame, LiveLosses
from videomamba_depth.streaming.timing import StageTimes

log = logging.getLogger(__name__)

_POLL_S = 0.1  # how often a blocked stage looks whether it should stop
_READER_PATIENCE_S = 2.0  # how long to wait at the end for a reader that blocks in a device or network call

T = TypeVar("T")


class Sink(Protocol):
    """Where frames with depth go."""

    def write(self, frame: DepthFrame) -> None:
        """Take one frame."""

    def close(self) -> None:
        """Finish the files; called once, whatever happened before."""


class FileSink(Sink, Protocol):
    """A sink that knows what it has written."""

    def files(self) -> Iterable[Path]:
        """Return the files that it wrote, or may have written, and no other."""


class LateSinks:
    """Sinks that are opened by the first frame: before it comes, nothing is made and nothing replaced.

    Args:
        open_sinks: called once, by the first frame.
    """

    def __init__(self, open_sinks: Callable[[], Sequence[Sink]]) -> None:
        self._open, self._sinks = open_sinks, list[Sink]()

    def write(self, frame: DepthFrame) -> None:
        """Hand one frame to every sink."""
        self._sinks = self._sinks or list(self._open())
        for sink in self._sinks:
            sink.write(frame)

    def close(self) -> None:
        """Close every sink, even if one fails; one error is raised then."""
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)


@dataclass
class PipelineReport:
    """What happened: busy time by stage, and the wall time of all."""

    decode: StageTimes = field(default_factory=StageTimes)
    infer: StageTimes = field(default_factory=StageTimes)
    write: StageTimes = field(default_factory=StageTimes)
    losses: LiveLosses = field(default_factory=LiveLosses)
    wall_s: float = 0.0
    num_frames: int = 0
    stopped: bool = False
    written: bool = True  # False once an output has failed: what it had in hand is lost


class Lane(Generic[T]):
    """A bounded queue between two threads that either side can close.

    After `finish` the items that are in it still come out; after `abandon` nothing goes in or out. One of size 0 is
    filled on request: `wanted` waits until somebody asks, so that what goes in is as new as can be.
    """

    def __init__(self, size: int) -> None:
        self._items: queue.Queue[T] = queue.Queue(max(1, size))
        self._requests = threading.Semaphore(0) if size == 0 else None
        self._finished, self._abandoned = threading.Event(), threading.Event()
        self.error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Wait for room; False when the other side has gone."""
        while not self._abandoned.is_set():
            try:
                self._items.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def wanted(self) -> bool:
        """Wait until an item may be fetched for `put`; False when the other side has gone."""
        while not self._abandoned.is_set():
            if self._requests is None or self._requests.acquire(timeout=_POLL_S):
                return True
        return False

    def get(self, stop: Callable[[], bool] = lambda: False) -> T | None:
        """Wait for an item; None when no more will come or `stop()` says so."""
        if self._requests is not None:
            self._requests.release()
        while not (self._abandoned.is_set() or stop()):
            # Looked at before the queue: what was put before the end is not missed.
            finished = self._finished.is_set()
            try:
                return self._items.get(timeout=0 if finished else _POLL_S) if not finished else self._items.get_nowait()
            except queue.Empty:
                if finished:
                    return None
        return None

    def finish(self, error: BaseException | None = None) -> None:
        """Say that no more will be put, and why if by an error."""
        self.error = self.error or error
        self._finished.set()

    def abandon(self, error: BaseException | None = None) -> None:
        """Say that nothing will be taken out any more."""
        self.error = self.error or error
        self._abandoned.set()


def run_pipeline(
    source: Iterable[Frame],
    infer: Callable[[Frame], DepthFrame],
    sinks: Sequence[Sink],
    *,
    stop: threading.Event | None = None,
    on_frame: Callable[[DepthFrame], None] | None = None,
    queue_frames: int = 4,
    overlap: bool = True,
    report: PipelineReport | None = None,
) -> PipelineReport:
    """Stream every frame of `source` through `infer` into all `sinks`, then close the sinks.

    The source is read in one thread and the sinks are written in another; `infer` and `on_frame` run in the caller's.
    At most `queue_frames` wait before and behind `infer`; with 0, for live sources, a frame is taken when `infer` is
    free, and one may wait behind it. An error of any stage ends the others after what they have in hand, closes the
    sinks and is then raised; what was inferred before it is written, if the sinks can.

    Args:
        stop: set from outside (a signal handler) to end after the frame in hand; not an error.
        on_frame: called for every frame that has been inferred, e.g. to show progress.
        report: filled as it goes and returned; hand one in to have it after an error too.
        overlap: False runs the three stages one after the other in the caller's thread, for measurements.
    """
    stop = stop or threading.Event()
    report = report or PipelineReport()
    start = time.perf_counter()
    run = _run_overlapped if overlap else _run_serially
    error: BaseException | None = None
    try:
        run(source, infer, sinks, stop, on_frame or (lambda _: None), queue_frames, report)
    except BaseException as caught:
        error = caught
    error = _close_all(sinks, error, report)
    report.wall_s, report.stopped = time.perf_counter() - start, stop.is_set()
    if error is not None:
        raise error
    return report


def _run_serially(
    source: Iterable[Frame],
    infer: Callable[[Frame], DepthFrame],
    sinks: Sequence[Sink],
    stop: threading.Event,
    on_frame: Callable[[DepthFrame], None],
    queue_frames: int,
    report: PipelineReport,
) -> None:
    frames = iter(source)
    while not stop.is_set():
        with report.decode.measure():
            frame = next(frames, None)
        if frame is None:
            return
        with report.infer.measure():
            result = infer(frame)
        _write_frame(result, sinks, report)
        on_frame(result)


def _run_overlapped(
    source: Iterable[Frame],
    infer: Callable[[Frame], DepthFrame],
    sinks: Sequence[Sink],
    stop: threading.Event,
    on_frame: Callable[[DepthFrame], None],
    queue_frames: int,
    report: PipelineReport,
) -> None:
    decoded: Lane[Frame] = Lane(queue_frames)
    inferred: Lane[DepthFrame] = Lane(max(1, queue_frames))
    reader = threading.Thread(target=_read, args=(source, decoded, report.decode), daemon=True, name="reader")
    writer = threading.Thread(target=_write, args=(inferred, sinks, report), name="writer")
    reader.start()
    writer.start()
    try:
        while (frame := decoded.get(stop.is_set)) is not None:
            with report.infer.measure():
                result = infer(frame)
            if not inferred.put(result):
                break
            on_frame(result)
    finally:
        decoded.abandon()
        inferred.finish()
        writer.join()
        reader.join(_READER_PATIENCE_S)
    for lane in (inferred, decoded):
        if lane.error is not None:
            raise lane.error


def _read(source: Iterable[Frame], lane: Lane[Frame], times: StageTimes) -> None:
    try:
        frames = iter(source)
        with closing(frames) if isinstance(frames, Generator) else nullcontext():
            while lane.wanted():
                start = time.perf_counter()
                frame = next(frames, None)
                if frame is None:
                    break
                times.add(time.perf_counter() - start)
                if not lane.put(frame):
                    break
        lane.finish()
    except BaseException as error:
        lane.finish(error)


def _write(lane: Lane[DepthFrame], sinks: Sequence[Sink], report: PipelineReport) -> None:
    try:
        while (frame := lane.get()) is not None:
            _write_frame(frame, sinks, report)
    except BaseException as error:
        lane.abandon(error)


def _write_frame(frame: DepthFrame, sinks: Sequence[Sink], report: PipelineReport) -> None:
    try:
        with report.write.measure():
            for sink in sinks:
                sink.write(frame)
    except BaseException:
        report.written = False
        raise
    report.num_frames += 1


def _close_all(sinks: Sequence[Sink], error: BaseException | None, report: PipelineReport) -> BaseException | None:
    """Close every sink, even if one fails; return the first error of all."""
    for sink in sinks:
        try:
            sink.close()
        except Exception as closing_error:
            report.written = False
            if error is not None:
                log.warning("closing an output failed too: %s", closing_error)
            error = error or closing_error
    return error
