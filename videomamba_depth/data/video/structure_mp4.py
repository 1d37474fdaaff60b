"""What the boxes of an MP4 or MOV file (ISO/IEC 14496-12) state: whether they add up, samples, edit lists."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from videomamba_depth.data.video.info import BROKEN, CUT_OFF, Structure

_FIRST_BOXES = {b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"sidx", b"pnot"}
_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}


def read_at(file: BinaryIO, at: int, count: int) -> bytes:
    """Return `count` bytes of a file from place `at` on, fewer at its end."""
    file.seek(at)
    return file.read(count)


def is_mp4(head: bytes) -> bool:
    """Tell whether a file that begins so is an MP4 or MOV file."""
    return head[4:8] in _FIRST_BOXES


def check_boxes(file: BinaryIO, size: int) -> Structure:
    """MP4: boxes of 32-bit size and type, 64-bit where the size is 1, to the end where it is 0."""
    at, fragments, waiting = 0, False, False
    samples = _Samples()
    while at + 8 <= size:
        length, kind = struct.unpack(">I4s", read_at(file, at, 8))
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length < 8 or not kind.isascii():
            return samples.structure("")  # to the end, or something else after it
        if kind in _PARENTS and at + length <= size:
            if not _are_boxes(file, at + 8, at + length):
                return samples.structure(BROKEN)
            samples.count(file, kind, at + 8, at + length)
        if kind == b"mdat" and fragments and not waiting:
            return samples.structure(BROKEN)  # a fragment's data without its index
        fragments |= kind == b"moof"
        waiting = kind == b"moof" or (waiting and kind != b"mdat")
        at += length
    cut = at > size or waiting or (fragments and at < size)
    return samples.structure(CUT_OFF if cut else "")


class _Samples:
    """Counts the samples that an MP4 file's boxes state."""

    def __init__(self) -> None:
        self._indexed: Counter[int] = Counter()  # by the first index, of every track
        self._in_fragments: Counter[int] = Counter()
        self._video: set[int] = set()  # tracks, by the index that was read last
        self._num_indices = self._second = 0
        self._is_edited = self._pauses = False

    def count(self, file: BinaryIO, kind: bytes, at: int, end: int) -> None:
        """Count those of a `moov` or a `moof` box, whose content is from `at` to `end`."""
        if kind == b"moov":
            self._num_indices, self._video = self._num_indices + 1, set()
            for start, stop in _find_boxes(file, at, end, b"trak"):
                self._count_track(file, start, stop)
        for start, stop in _find_boxes(file, at, end, b"traf") if kind == b"moof" else ():
            track = _number(file, start, stop, 4, b"tfhd")
            stated = sum(_number(file, *run, 4) for run in _find_boxes(file, start, stop, b"trun"))
            if track in self._indexed:
                self._in_fragments[track] += stated
            elif track in self._video:
                self._second += stated

    def _count_track(self, file: BinaryIO, at: int, end: int) -> None:
        header = next(_find_boxes(file, at, end, b"tkhd"), (at, at))
        track = _number(file, *header, 20 if read_at(file, header[0], 1) == b"\1" else 12)
        stated = max(_number(file, at, end, 8, b"mdia", b"minf", b"stbl", name) for name in (b"stsz", b"stz2"))
        is_video = _number(file, at, end, 8, b"mdia", b"hdlr") == int.from_bytes(b"vide", "big")
        self._video |= {track} if is_video else set()
        if is_video:
            self._read_edits(file, at, end)
        if self._num_indices == 1:
            self._indexed[track] = stated
        elif is_video:
            self._second += stated

    def _read_edits(self, file: BinaryIO, at: int, end: int) -> None:
        for start, stop in _find_boxes(file, at, end, b"edts", b"elst"):
            data = read_at(file, start, stop - start)
            layout = ">Qqi" if data[:1] == b"\1" else ">Iii"  # duration, time in the medium or -1, rate
            whole = 8 + (len(data) - 8) // struct.calcsize(layout) * struct.calcsize(layout)
            times = [time for _, time, _ in struct.iter_unpack(layout, data[8:whole])]
            self._is_edited |= bool(times)
            self._pauses |= -1 in times[1:]

    def structure(self, damage: str) -> Structure:
        """Return what was found."""
        packets = Counter({track: count + self._indexed[track] for track, count in self._in_fragments.items()})
        second = f"a second index of {self._second} frames" if self._second else ""
        return Structure(damage, packets, second, self._is_edited, self._pauses)


def _find_boxes(file: BinaryIO, at: int, end: int, *path: bytes) -> Iterator[tuple[int, int]]:
    """Yield from where to where the contents of the boxes of that path of types reach."""
    while at + 8 <= end:
        length, kind = struct.unpack(">I4s", read_at(file, at, 8))
        if length < 8:
            return
        if kind == path[0]:
            content = (at + 8, min(at + length, end))
            yield from _find_boxes(file, *content, *path[1:]) if path[1:] else iter([content])
        at += length


def _number(file: BinaryIO, at: int, end: int, offset: int, *path: bytes) -> int:
    """Return the 32-bit number in a stretch, or in the first box of that path in it; 0 where it is not there."""
    start, stop = next(_find_boxes(file, at, end, *path), (at, at)) if path else (at, end)
    return int.from_bytes(read_at(file, start + offset, 4), "big") if start + offset + 4 <= stop else 0


def _are_boxes(file: BinaryIO, at: int, end: int) -> bool:
    """Tell whether boxes of a type and a length fill a stretch; those that hold the index are gone into."""
    while at + 8 <= end:
        length, kind = struct.unpack(">I4s", read_at(file, at, 8))
        if length < 8 or at + length > end or not kind.isascii():
            return False
        if kind in _PARENTS and not _are_boxes(file, at + 8, at + length):
            return False
        at += length
    return True
