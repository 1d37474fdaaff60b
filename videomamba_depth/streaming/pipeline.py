"""Decode, infer and write at the same time, with bounded queues between them."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from videomamba_depth.data.video.reader import Frame
from videomamba_depth.streaming.depth_frame import DepthFrame, LiveLosses
from videomamba_depth.streaming.timing import StageTimes

log = logging.getLogger(__name__)

_POLL_S = 0.1  # how often who waits for a frame checks whether it should stop
_READER_PATIENCE_S = 2.0  # how long to wait at the end for a reader that blocks in a device or network call


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


def run_pipeline(
    source: Iterable[Frame],
    infer: Callable[[Iterator[Frame]], Iterator[DepthFrame]],
    sinks: Sequence[Sink],
    *,
    stop: threading.Event | None = None,
    on_frame: Callable[[DepthFrame], None] | None = None,
    queue_frames: int = 4,
    overlap: bool = True,
    report: PipelineReport | None = None,
) -> PipelineReport:
    """Stream every frame of `source` through `infer` into all `sinks`, then close the sinks.

    `infer` takes the frames as they come and yields them with depth, at once or later; where it is stopped, or the
    source fails, it may still yield what it holds back. The source is read in one thread and the sinks are written in
    another; `infer` and `on_frame` run in the caller's.
    At most `queue_frames` wait before and after `infer`; with 0, for live sources, a frame is taken when `infer` is
    free, and one may wait after it. An error of any stage ends the others after what they have in hand, closes the
    sinks and is then raised; what was inferred before it is written, if the sinks can.

    Args:
        stop: set from outside (a signal handler) to end after the frame in hand; not an error.
        on_frame: called for every frame that has been inferred, e.g. to show progress.
        report: filled as it goes and returned; hand one in to have it after an error too.
        overlap: False runs the three stages one after the other in the caller's thread, for measurements.
    """
    stop, report = stop or threading.Event(), report or PipelineReport()
    write: Callable[[DepthFrame], None] = partial(_write_frame, sinks, report)
    fetch: Callable[[], Frame | None]
    start = time.perf_counter()
    error: BaseException | None = None
    try:
        with ExitStack() as threads:
            if overlap:
                ahead = queue_frames + 1 if queue_frames else 0  # one of them in the reader's hand
                fetch = threads.enter_context(closing(_ReadAhead(source, ahead, stop, report.decode)))
                later = _WriteLater(write, max(1, queue_frames))
                write = threads.enter_context(later)
            else:
                fetch = partial(_fetch, iter(source), report.decode)
            frames = _Waiting(fetch, stop)
            results = infer(frames)
            while True:
                start_s, frames.waited_s = time.perf_counter(), 0.0
                result = next(results, None)
                if result is None:
                    break
                report.infer.add(time.perf_counter() - start_s - frames.waited_s)
                write(result)
                if on_frame is not None:
                    on_frame(result)
    except BaseException as caught:
        error = caught
    error = _close_all(sinks, error, report)
    report.wall_s, report.stopped = time.perf_counter() - start, stop.is_set()
    if error is not None:
        raise error
    return report


class _Waiting:
    """Frames until there are no more or a stop is set; `waited_s` adds up how long they took to come."""

    def __init__(self, fetch: Callable[[], Frame | None], stop: threading.Event) -> None:
        self._fetch, self._stop, self.waited_s = fetch, stop, 0.0

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        start = time.perf_counter()
        try:
            frame = None if self._stop.is_set() else self._fetch()
        finally:
            self.waited_s += time.perf_counter() - start
        if frame is None:
            raise StopIteration
        return frame


class _ReadAhead:
    """The frames of a source, read by a thread of its own.

    Args:
        ahead: frames that may be read before they are asked for; 0: none, each is as new as can be.
        stop: ends the waiting for a frame.
    """

    def __init__(self, source: Iterable[Frame], ahead: int, stop: threading.Event, times: StageTimes) -> None:
        self._stop, self._room, self._is_closed = stop, threading.Semaphore(ahead), False
        self._read: queue.SimpleQueue[tuple[Frame | None, BaseException | None]] = queue.SimpleQueue()
        # A daemon: at the end nobody waits long for one that blocks in a device or network call.
        self._thread = threading.Thread(target=self._run, args=(source, times), daemon=True, name="reader")
        self._thread.start()

    def __call__(self) -> Frame | None:
        """Return the next frame; None after the last one or a stop. Raises what the source raised there."""
        self._room.release()
        while not self._stop.is_set():
            try:
                frame, error = self._read.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            return frame
        return None

    def close(self) -> None:
        """Read no more."""
        self._is_closed = True
        self._room.release()
        self._thread.join(_READER_PATIENCE_S)

    def _run(self, source: Iterable[Frame], times: StageTimes) -> None:
        try:
            frames = iter(source)
            with closing(frames) if isinstance(frames, Generator) else nullcontext():
                while self._room.acquire() and not self._is_closed:
                    frame = _fetch(frames, times)
                    self._read.put((frame, None))
                    if frame is None:
                        return
        except BaseException as error:
            self._read.put((None, error))


class _WriteLater:
    """Calls `write` in a thread of its own; waits where more than `most` frames wait for it. Its errors are raised."""

    def __init__(self, write: Callable[[DepthFrame], None], most: int) -> None:
        self._write, self._most = write, most
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: deque[Future[None]] = deque()

    def __call__(self, frame: DepthFrame) -> None:
        while self._pending and (self._pending[0].done() or len(self._pending) > self._most):
            self._pending.popleft().result()
        self._pending.append(self._writer.submit(self._write, frame))

    def __enter__(self) -> _WriteLater:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._writer.shutdown()
        if kind is None:
            for pending in self._pending:
                pending.result()


def _fetch(frames: Iterator[Frame], times: StageTimes) -> Frame | None:
    start = time.perf_counter()
    frame = next(frames, None)
    if frame is not None:
        times.add(time.perf_counter() - start)
    return frame


def _write_frame(sinks: Sequence[Sink], report: PipelineReport, frame: DepthFrame) -> None:
    if not report.written:  # what waited when an output failed
        return
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
