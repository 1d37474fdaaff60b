"""Two fields of different times become one frame of one time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
from av.filter import Graph


def deinterlaced(frames: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Pass (index, frame) on; frames that are marked as interlaced are deinterlaced by FFmpeg's `bwdif`.

    A frame is made from itself, the one before and the one after alone, so that reading from any place gives the same
    as reading from the start. Progressive frames are passed on as they are, at once.
    """
    iterator = iter(frames)
    before, current = None, next(iterator, None)
    while current is not None:
        index, frame = current
        if frame.interlaced_frame:
            after = next(iterator, None)
            yield index, _deinterlace(frame, before, after[1] if after else None)
        else:
            yield current
            after = next(iterator, None)
        before, current = frame, after


def _deinterlace(frame: Any, before: Any | None, after: Any | None) -> Any:
    """Return a frame with its first field's lines kept and the others interpolated in space and time."""
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format.name, time_base=Fraction(1, 25)
    )
    deinterlacer = graph.add("bwdif", "mode=send_frame:parity=auto:deint=all")
    sink = graph.add("buffersink")
    source.link_to(deinterlacer)
    deinterlacer.link_to(sink)
    graph.configure()
    out = []
    before, after = (neighbor if _is_like(neighbor, frame) else None for neighbor in (before, after))
    # At an end the other neighbor stands in: a copy of the frame itself would pass for a scene at rest.
    # The filter answers one frame late: the second answer is the frame in the middle.
    for picture in (before or after or frame, frame, after or before or frame):
        graph.vpush(picture)
        while True:
            try:
                out.append(graph.vpull())
            except av.error.BlockingIOError:
                break
    out[1].pts = frame.pts
    return out[1]


def _is_like(frame: Any | None, other: Any) -> bool:
    """Tell whether two frames have one size and pixel format."""
    return frame is not None and (frame.width, frame.height, frame.format.name) == (
        other.width,
        other.height,
        other.format.name,
    )
