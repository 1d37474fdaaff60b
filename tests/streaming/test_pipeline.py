"""Every frame passes in order; errors of any stage end all of them; queues are bounded; sinks are always closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

from videomamba_depth.data.video.reader import Frame
from videomamba_depth.streaming.depth_frame import DepthFrame
from videomamba_depth.streaming.pipeline import run_pipeline

_PICTURE = np.zeros((2, 2, 3), np.uint8)


class Source:
    """Frames 0, 1, …; counts how many were taken and fails before `fails_at`."""

    def __init__(self, num_frames: int, fails_at: int | None = None) -> None:
        self.num_frames, self.fails_at, self.taken = num_frames, fails_at, 0

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.num_frames):
            if index == self.fails_at:
                raise OSError("source")
            self.taken += 1
            yield Frame(index, index, Fraction(1, 10), _PICTURE)


class ListSink:
    """Keeps indices; fails at `fails_at`."""

    def __init__(self, fails_at: int | None = None, gate: threading.Event | None = None) -> None:
        self.fails_at, self.gate, self.num_closed = fails_at, gate, 0
        self.seen: list[int] = []

    def write(self, frame: DepthFrame) -> None:
        if self.gate is not None:
            self.gate.wait(10)
        if frame.index == self.fails_at:
            raise OSError("sink")
        self.seen.append(frame.index)

    def close(self) -> None:
        self.num_closed += 1


def with_depth(frame: Frame) -> DepthFrame:
    return DepthFrame(frame.index, frame.pts, frame.time_base, frame.rgb, np.zeros((2, 2), np.float32))


infer = partial(map, with_depth)


@pytest.mark.parametrize("overlap", [True, False])
def test_all_frames_in_order(overlap: bool) -> None:
    sinks = [ListSink(), ListSink()]
    report = run_pipeline(Source(50), infer, sinks, overlap=overlap)
    assert sinks[0].seen == sinks[1].seen == list(range(50))
    assert (report.num_frames, report.stopped) == (50, False)
    assert report.decode.count == report.infer.count == report.write.count == 50 or not overlap
    assert [s.num_closed for s in sinks] == [1, 1]


@pytest.mark.parametrize("overlap", [True, False])
def test_a_failing_source_ends_after_its_frames(overlap: bool) -> None:
    sink = ListSink()
    with pytest.raises(OSError, match="source"):
        run_pipeline(Source(50, fails_at=7), infer, [sink], overlap=overlap)
    assert sink.seen == list(range(7))
    assert sink.num_closed == 1


@pytest.mark.parametrize("overlap", [True, False])
def test_a_failing_model_ends_after_its_frames(overlap: bool) -> None:
    def failing(frame: Frame) -> DepthFrame:
        if frame.index == 5:
            raise RuntimeError("model")
        return with_depth(frame)

    sink = ListSink()
    with pytest.raises(RuntimeError, match="model"):
        run_pipeline(Source(50), partial(map, failing), [sink], overlap=overlap)
    assert sink.seen == list(range(5))
    assert sink.num_closed == 1


@pytest.mark.parametrize("overlap", [True, False])
def test_a_failing_sink_ends_and_the_others_are_closed(overlap: bool) -> None:
    source, sinks = Source(1000), [ListSink(), ListSink(fails_at=3)]
    with pytest.raises(OSError, match="sink"):
        run_pipeline(source, infer, sinks, overlap=overlap)
    assert sinks[0].seen == [0, 1, 2, 3]
    assert [s.num_closed for s in sinks] == [1, 1]
    assert source.taken < 30


@pytest.mark.parametrize("overlap", [True, False])
def test_a_sink_that_fails_at_the_last_frame_is_not_overheard(overlap: bool) -> None:
    """Nothing is inferred after it: what still waits to be written is asked how it ended."""
    with pytest.raises(OSError, match="sink"):
        run_pipeline(Source(3), infer, [ListSink(fails_at=2)], overlap=overlap)


def test_a_failing_close_is_raised_and_closes_the_others() -> None:
    class FailingClose(ListSink):
        def close(self) -> None:
            raise OSError("close")

    sink = ListSink()
    with pytest.raises(OSError, match="close"):
        run_pipeline(Source(3), infer, [FailingClose(), sink])
    assert sink.num_closed == 1


@pytest.mark.parametrize("overlap", [True, False])
def test_stop_finishes_what_is_in_hand(overlap: bool) -> None:
    stop, sink = threading.Event(), ListSink()

    def stop_at_four(frame: DepthFrame) -> None:
        if frame.index == 4:
            stop.set()

    report = run_pipeline(Source(10**9), infer, [sink], stop=stop, on_frame=stop_at_four, overlap=overlap)
    assert sink.seen == [0, 1, 2, 3, 4]
    assert report.stopped
    assert sink.num_closed == 1


def test_a_slow_sink_holds_the_source_back() -> None:
    gate, source, taken = threading.Event(), Source(100), []

    def watch(frame: Frame) -> DepthFrame:
        if frame.index == 3:
            threading.Event().wait(0.3)  # time enough for an unbounded reader to run through
            taken.append(source.taken)
            gate.set()
        return with_depth(frame)

    sink = ListSink(gate=gate)
    run_pipeline(source, partial(map, watch), [sink], queue_frames=2)
    assert sink.seen == list(range(100))
    # 0 in the sink, 1 and 2 queued after the model, 3 in it, 4 and 5 queued before it, 6 in the reader's hand
    assert taken == [7]


def test_a_live_source_is_read_only_when_the_model_is_free() -> None:
    source, taken = Source(20), []

    def watch(frame: Frame) -> DepthFrame:
        time.sleep(0.01)  # a reader that runs ahead would have read on by now
        taken.append(source.taken)
        return with_depth(frame)

    run_pipeline(source, partial(map, watch), [ListSink()], queue_frames=0)
    assert taken == list(range(1, 21))


@pytest.mark.parametrize("fails_at", [None, 7])
def test_what_is_held_back_is_written_too(fails_at: int | None) -> None:
    """By the end of the source, whether it ends well or not."""

    def in_threes(frames: Iterator[Frame]) -> Iterator[DepthFrame]:
        held, error = [], None
        while True:
            try:
                frame = next(frames, None)
            except OSError as caught:
                frame, error = None, caught
            held += [] if frame is None else [with_depth(frame)]
            if frame is None or len(held) == 3:
                yield from held
                held = []
            if error is not None:
                raise error
            if frame is None:
                return

    sink = ListSink()
    with pytest.raises(OSError, match="source") if fails_at else nullcontext():
        run_pipeline(Source(8, fails_at), in_threes, [sink])
    assert sink.seen == list(range(fails_at or 8))
