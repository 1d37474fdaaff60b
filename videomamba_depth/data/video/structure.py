"""What a file's own structure states: whether its sizes add up, and how many packets of video it holds.

Most demuxers stop at a cut, and skip what is destroyed or joined on, without a word.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from videomamba_depth.data.video.info import BROKEN, CUT_OFF, Structure
from videomamba_depth.data.video.structure_mp4 import check_boxes, is_mp4, read_at

_BLOCK = 188 * 192 * 50  # bytes read at a time; a multiple of both packet sizes of MPEG-TS
_TAIL = 1 << 16  # bytes looked through for the last page of an Ogg file: more than a page can hold
_PNG_TAIL = 64  # bytes in which the last chunk of a PNG begins, and what may follow it
_EBML = bytes.fromhex("1a45dfa3")
_SEGMENT, _TRACK_NUMBER = 0x18538067, 0xD7
_EBML_PARENTS = {_SEGMENT, 0x1F43B675, 0x1654AE6B, 0xAE, 0xA0}  # Cluster, Tracks, TrackEntry, BlockGroup
_EBML_BLOCKS = {0xA3, 0xA1}  # SimpleBlock, Block; they begin with the number of their track
_TRACKS, _TRACK_TYPE, _VIDEO_TRACK = 0x1654AE6B, 0x83, b"\x01"
_WEBP_CHUNKS = {b"VP8X", b"VP8 ", b"VP8L", b"ANIM", b"ANMF", b"ALPH", b"ICCP", b"EXIF", b"XMP "}
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_MXF = bytes.fromhex("060e2b34020501010d010201")  # a partition
_NUT = b"nut/multimedia container\0"  # once per file
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def find_damage(path: str | Path) -> str:
    """Return the damage alone, see `read_structure`."""
    return read_structure(path).damage


def read_structure(path: str | Path) -> Structure:
    """Walk through the headers of a file, by seeking (every byte of MPEG-TS, NUT and GIF is read).

    MP4 and MOV (ISO/IEC 14496-12), Matroska and WebM (RFC 8794), AVI and WebP (RIFF), FLV, MPEG-TS (ISO/IEC 13818-1),
    ASF, NUT, MXF (SMPTE ST 377-1), IVF, YUV4MPEG2, Ogg (RFC 3533), GIF and PNG; nothing is said of others. A file cut
    exactly between two fragments or packets of a container that states no total is a shorter file, and nobody can tell.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(4096)
        file.seek(0)
        check = next((check for mark, check in _CHECKS.items() if head.startswith(mark)), None)
        if is_mp4(head):
            check = check_boxes
        elif check is None and _transport_packet(head):
            check = _check_transport
        found = check(file, size) if check else ""
    return found if isinstance(found, Structure) else Structure(found)


def _check_elements(file: BinaryIO, size: int) -> Structure:
    """Matroska: elements of a variable-length id and size; parents of unknown size hold what follows."""
    packets: Counter[int] = Counter()
    return Structure(_walk_elements(file, size, packets), packets)


def _walk_elements(file: BinaryIO, size: int, packets: Counter[int]) -> str:
    """Return the damage; `packets` counts the blocks of each track of video, and those of the files joined on."""
    at, ends = 0, [size]  # of the parents that are open
    tracks: list[bytes] = []  # their numbers
    video: list[bytes] = []
    while at < ends[0] or read_at(file, at, 4) == _EBML:
        ends = ends if at < ends[0] else [size]
        head = read_at(file, at, 16)
        id_length = 9 - head[0].bit_length()
        size_length = 9 - head[id_length].bit_length() if len(head) > id_length else 9
        if id_length > 4 or size_length > 8:
            return BROKEN if len(head) == 16 else CUT_OFF
        number = int.from_bytes(head[:id_length], "big")
        length = int.from_bytes(head[id_length : id_length + size_length], "big") & ((1 << 7 * size_length) - 1)
        content = head[id_length + size_length :]
        unknown = length == (1 << 7 * size_length) - 1
        at += id_length + size_length
        block_of = content[:1] if number in _EBML_BLOCKS else b""
        if number == _SEGMENT and not unknown:
            ends = [at + length]  # what follows is unknown
            if at + length > size:
                return CUT_OFF
        elif number in _EBML_PARENTS:
            ends += [] if unknown else [at + length]
        elif unknown:
            return BROKEN
        elif block_of and block_of not in tracks:
            return BROKEN  # it would be passed over
        else:
            at += length
        if number == _TRACKS:
            tracks, video = [], []
        elif number == _TRACK_NUMBER:
            tracks.append(_track(content))
        elif number == _TRACK_TYPE and tracks and content[:1] == _VIDEO_TRACK:
            video.append(tracks[-1])
        if at > ends[-1] or ends[-1] > ends[0]:
            return CUT_OFF if at > size or ends[-1] > size else BROKEN
        if block_of in video:
            packets[video.index(block_of)] += 1
        while len(ends) > 1 and at == ends[-1]:
            ends.pop()
    return CUT_OFF if at > size else ""


def _track(number: bytes) -> bytes:
    """Return a track's number as its blocks begin: with a mark above it."""
    return bytes([number[0] | 0x80]) if number else b""


def _check_riff(file: BinaryIO, size: int) -> str:
    """AVI and WebP: one or several RIFF chunks; a recorder that was killed leaves a size of 0."""
    at = 0
    while at + 12 <= size:
        kind, length, form = struct.unpack("<4sI4s", read_at(file, at, 12))
        if kind != b"RIFF" or length == 0:
            return ""
        if at + 8 + length > size + 1:  # the last chunk's padding may be missing
            return CUT_OFF
        if not _are_chunks(file, at + 12, min(size, at + 8 + length), _WEBP_CHUNKS if form == b"WEBP" else None):
            return BROKEN
        at += 8 + length + length % 2
    return ""


def _are_chunks(file: BinaryIO, at: int, end: int, names: set[bytes] | None) -> bool:
    """Tell whether chunks of a name and a length fill a stretch; lists of data chunks are gone into.

    names: that there may be; None: any that are printable.
    """
    while at + 8 <= end:
        kind, length, form = struct.unpack("<4sI4s", read_at(file, at, 12).ljust(12, b"\0"))
        known = all(32 <= byte < 127 for byte in kind) if names is None else kind in names
        if not known or at + 8 + length > end + 1:
            return False
        at += 12 if kind == b"LIST" and form in (b"movi", b"rec ") else 8 + length + length % 2
    return True


def _check_flv(file: BinaryIO, size: int) -> str:
    """FLV: tags with their length in front; the muxer states the file's size."""
    head = file.read(4096)
    stated = head.find(b"filesize\0")
    if stated >= 0 and len(head) >= stated + 17 and struct.unpack(">d", head[stated + 9 : stated + 17])[0] > size:
        return CUT_OFF
    at = 13
    while at + 11 <= size:
        tag = read_at(file, at, 4)
        if tag[0] & 0x1F not in (8, 9, 18):
            return BROKEN
        at += 15 + int.from_bytes(tag[1:], "big")
    return CUT_OFF if at != size else ""


def _check_transport(file: BinaryIO, size: int) -> Structure:
    """MPEG-TS: packets of one size that begin with 0x47 (after four bytes, on Blu-ray)."""
    packet = _transport_packet(file.read(4096))
    whole = size - size % packet
    starts: dict[int, list[int]] = {}  # of frames of video, by PID
    for start in range(0, whole, _BLOCK):
        data = np.frombuffer(read_at(file, start, min(_BLOCK, whole - start)), np.uint8)
        packets = data.reshape(-1, packet)[:, -188:]
        if (packets[:, 0] != 0x47).any():
            return Structure(BROKEN, second=_following(starts))
        for number, pid in _video_starts(packets):
            starts.setdefault(pid, []).append(start // packet + number)
    return Structure(CUT_OFF if size % packet else "", second=_following(starts))


def _transport_packet(head: bytes) -> int:
    """Return the size of the packets of MPEG-TS, 0 where a file is none."""
    marks = {packet: head[packet - 188 :][: 3 * packet : packet] for packet in (188, 192)}
    return next((packet for packet, found in marks.items() if found == b"\x47\x47\x47"), 0)


def _video_starts(packets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (number, PID) of those of the MPEG-TS packets `uint8 [N,188]` in which a PES packet of video begins."""
    numbers = np.flatnonzero((packets[:, 1] & 0x40 != 0) & (packets[:, 3] & 0x10 != 0))
    begin = packets[numbers]
    at = 4 + np.where(begin[:, 3] & 0x20, 1 + begin[:, 4].astype(int), 0)  # after the adaptation field
    mark = begin[np.arange(len(begin))[:, None], np.minimum(at[:, None] + np.arange(4), 187)]
    is_video = (mark[:, :3] == (0, 0, 1)).all(1) & (mark[:, 3] & 0xF0 == 0xE0)
    pids = (begin[:, 1].astype(int) & 0x1F) << 8 | begin[:, 2]
    yield from zip(numbers[is_video].tolist(), pids[is_video].tolist(), strict=True)


def _following(starts: dict[int, list[int]]) -> str:
    """Tell of streams of video that begin where another one has ended; those side by side are programs."""
    ends = [numbers[-1] for numbers in starts.values()]
    count = sum(len(numbers) for numbers in starts.values() if numbers[0] > min(ends))
    return f"a stream of {count} frames, which begins where another one ends," if count else ""


def _check_asf(file: BinaryIO, size: int) -> Structure:
    """ASF: the file properties state the file's size; objects of a 128-bit id and a 64-bit size."""
    head = file.read(4096)
    at = head.find(_ASF_PROPERTIES)
    stated = head[at + 40 : at + 48] if at >= 0 else b""
    if len(stated) == 8 and int.from_bytes(stated, "little") > size:
        return Structure(CUT_OFF)
    at = 0
    while at + 24 <= size:
        kind, length = struct.unpack("<16sQ", read_at(file, at, 24))
        if at and kind == _ASF:
            return Structure(second="a second header")
        if length < 24:
            break  # a live stream's data, to the end
        at += length
    return Structure()


def _check_nut(file: BinaryIO, size: int) -> Structure:
    """NUT: the mark of a file stands at its start alone."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return Structure(second="a second header" if data.find(_NUT, 1) > 0 else "")


def _check_mxf(file: BinaryIO, size: int) -> str:
    """MXF: a key of 16 bytes, a length (BER), a value, to the end; the first partition says where the last one is."""
    at = 0
    while at < size:
        head = read_at(file, at, 25)
        more = head[16] & 0x7F if len(head) == 25 and head[16] & 0x80 else 0  # bytes of the length
        if head[:4] != _MXF[:4][: len(head)] or more > 8:
            return BROKEN
        value = at + 17 + more
        if at == 0 and int.from_bytes(read_at(file, value + 24, 8), "big") >= size:
            return CUT_OFF
        at = value + (int.from_bytes(head[17 : 17 + more], "big") if more else head[16] if len(head) > 16 else 0)
    return CUT_OFF if at > size else ""


def _check_ivf(file: BinaryIO, size: int) -> str:
    """IVF: a header that states its length, frames with their length in front."""
    at = int.from_bytes(file.read(8)[6:], "little")
    while at + 12 <= size:
        at += 12 + int.from_bytes(read_at(file, at, 4), "little")
    return CUT_OFF if at != size else ""


def _check_y4m(file: BinaryIO, size: int) -> str:
    """YUV4MPEG2: a line of tags, frames of one size with a line in front of each."""
    tags = {tag[:1]: tag[1:] for tag in file.readline(4096).split()[1:]}
    sides, layout = [tags.get(name, b"") for name in (b"W", b"H")], tags.get(b"C", b"420")
    if not all(side.isdigit() and len(side) < 10 for side in sides):
        return BROKEN
    width, height = map(int, sides)
    halves = {b"420": (2, 2), b"422": (2, 1), b"411": (4, 1), b"444": (1, 1)}.get(layout[:3])
    chroma = 2 * -(-width // halves[0]) * -(-height // halves[1]) if halves else 0
    alpha = width * height if b"alpha" in layout else 0
    deep = re.search(rb"(?:p|mono)\d", layout) is not None
    at = file.tell()
    while at < size:
        file.seek(at)
        line = file.readline(4096)
        if not b"FRAME\n".startswith(line[:5]):
            return BROKEN
        at += len(line) + (width * height + chroma + alpha) * (2 if deep else 1)
    return CUT_OFF if at > size else ""


def _check_ogg(file: BinaryIO, size: int) -> str:
    """Ogg: pages whose lacing values add up to their size."""
    tail = read_at(file, max(0, size - _TAIL), _TAIL)
    at = tail.rfind(b"OggS")
    if at < 0:
        return ""
    lacing = tail[at + 27 : at + 27 + tail[at + 26]] if at + 27 <= len(tail) else b""
    return CUT_OFF if at + 27 + (tail[at + 26] if lacing else 0) + sum(lacing) > len(tail) else ""


def _check_gif(file: BinaryIO, size: int) -> str:
    """GIF: blocks up to a trailer; their data lies in sub-blocks of up to 255 bytes."""
    data = file.read()
    if size < 13:
        return CUT_OFF
    at = 13 + _color_table(data[10])
    while at < size and data[at] != 0x3B:
        if data[at] == 0x21:  # an extension: its label
            at += 2
        elif data[at] == 0x2C and at + 10 <= size:  # a picture: place, size, colors, code size
            at += 11 + _color_table(data[at + 9])
        else:
            return CUT_OFF if data[at] == 0x2C else BROKEN
        while at < size and data[at]:
            at += 1 + data[at]
        at += 1
    return CUT_OFF if at >= size else ""


def _color_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _check_png(file: BinaryIO, size: int) -> str:
    """PNG: the last chunk."""
    return "" if b"IEND" in read_at(file, max(0, size - _PNG_TAIL), _PNG_TAIL) else CUT_OFF


_CHECKS: dict[bytes, Callable[[BinaryIO, int], str | Structure]] = {
    _EBML: _check_elements,
    b"RIFF": _check_riff,
    b"FLV": _check_flv,
    _ASF: _check_asf,
    _NUT: _check_nut,
    _MXF: _check_mxf,
    b"DKIF": _check_ivf,
    b"YUV4MPEG2 ": _check_y4m,
    b"OggS": _check_ogg,
    b"GIF8": _check_gif,
    b"\x89PNG": _check_png,
}
"""By how a file begins."""
