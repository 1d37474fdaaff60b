"""Whether a file's own sizes add up: most demuxers stop at a cut, and skip what is destroyed, without a word."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

CUT_OFF = "it is cut off"
BROKEN = "its structure is broken"

_BLOCK = 188 * 192 * 50  # bytes read at a time; a multiple of both packet sizes of MPEG-TS
_TAIL = 1 << 16  # bytes looked through for the last page of an Ogg file: more than a page can hold
_PNG_TAIL = 64  # bytes in which the last chunk of a PNG begins, and what may follow it
_FIRST_MP4_BOXES = {b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"sidx", b"pnot"}
_MP4_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}
_EBML, _SEGMENT, _TRACK_NUMBER = 0x1A45DFA3, 0x18538067, 0xD7
_EBML_PARENTS = {_SEGMENT, 0x1F43B675, 0x1654AE6B, 0xAE, 0xA0}  # Cluster, Tracks, TrackEntry, BlockGroup
_EBML_BLOCKS = {0xA3, 0xA1}  # SimpleBlock, Block; they begin with the number of their track
_WEBP_CHUNKS = {b"VP8X", b"VP8 ", b"VP8L", b"ANIM", b"ANMF", b"ALPH", b"ICCP", b"EXIF", b"XMP "}
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def find_damage(path: str | Path) -> str:
    """Return `CUT_OFF` or `BROKEN` where the sizes in a file do not lead from its start to its end, else "".

    Only headers are read (and every byte of MPEG-TS and GIF). MP4 and MOV (ISO/IEC 14496-12), Matroska and WebM (RFC
    8794), AVI and WebP (RIFF), FLV, MPEG-TS, ASF, Ogg (RFC 3533), GIF and PNG; "" for others. A file cut exactly
    between two fragments or packets of a container that states no total is a shorter file, and nobody can tell.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(4096)
        for recognizes, check in _CHECKS:
            if recognizes(head):
                file.seek(0)
                return check(file, size)
    return ""


def _check_boxes(file: BinaryIO, size: int) -> str:
    """MP4: boxes of 32-bit size and type, 64-bit where the size is 1, to the end where it is 0."""
    at, kind, fragments, waiting = 0, b"", False, False
    while at + 8 <= size:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length < 8 or not kind.isascii():
            return ""  # to the end, or something else behind it
        if kind in _MP4_PARENTS and at + length <= size and not _are_boxes(file, at + 8, at + length):
            return BROKEN
        if kind == b"mdat" and fragments and not waiting:
            return BROKEN  # a fragment's data without its index
        fragments |= kind == b"moof"
        waiting = kind == b"moof" or (waiting and kind != b"mdat")
        at += length
    return CUT_OFF if at > size or waiting else ""


def _are_boxes(file: BinaryIO, at: int, end: int) -> bool:
    """Tell whether boxes of a type and a length fill a stretch; those that hold the index are gone into."""
    while at + 8 <= end:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length < 8 or at + length > end or not kind.isascii():
            return False
        if kind in _MP4_PARENTS and not _are_boxes(file, at + 8, at + length):
            return False
        at += length
    return True


def _check_elements(file: BinaryIO, size: int) -> str:
    """Matroska: elements of a variable-length id and size; parents of unknown size hold what follows."""
    at, ends = 0, [size]  # of the parents that are open
    tracks: set[int] = set()
    while at < ends[0]:
        file.seek(at)
        head = file.read(16)
        id_length = 9 - head[0].bit_length()
        size_length = 9 - head[id_length].bit_length() if len(head) > id_length else 9
        if id_length > 4 or size_length > 8:
            return BROKEN if len(head) == 16 else CUT_OFF
        number = int.from_bytes(head[:id_length], "big")
        length = int.from_bytes(head[id_length : id_length + size_length], "big") & ((1 << 7 * size_length) - 1)
        content = head[id_length + size_length :]
        unknown = length == (1 << 7 * size_length) - 1
        at += id_length + size_length
        if number == _SEGMENT and not unknown:
            ends = [at + length]  # what follows is not ours
            if at + length > size:
                return CUT_OFF
        elif number in _EBML_PARENTS:
            ends += [] if unknown else [at + length]
        elif unknown:
            return BROKEN
        elif number in _EBML_BLOCKS and content and content[0] & 0x7F not in tracks:
            return BROKEN  # it would be passed over
        else:
            at += length
        if number == _TRACK_NUMBER and content:
            tracks.add(content[0])
        if at > ends[-1] or ends[-1] > ends[0]:
            return CUT_OFF if at > size or ends[-1] > size else BROKEN
        while len(ends) > 1 and at == ends[-1]:
            ends.pop()
    return CUT_OFF if at > size else ""


def _check_riff(file: BinaryIO, size: int) -> str:
    """AVI and WebP: one or several RIFF chunks; a recorder that was killed leaves a size of 0."""
    at = 0
    while at + 12 <= size:
        file.seek(at)
        kind, length, form = struct.unpack("<4sI4s", file.read(12))
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
        file.seek(at)
        kind, length, form = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
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
        file.seek(at)
        tag = file.read(4)
        if tag[0] & 0x1F not in (8, 9, 18):
            return BROKEN
        at += 15 + int.from_bytes(tag[1:], "big")
    return CUT_OFF if at != size else ""


def _check_transport(packet: int) -> Callable[[BinaryIO, int], str]:
    """MPEG-TS: packets of one size that begin with 0x47 (behind four bytes, on Blu-ray)."""

    def check(file: BinaryIO, size: int) -> str:
        whole = size - size % packet
        for start in range(0, whole, _BLOCK):
            data = np.frombuffer(file.read(min(_BLOCK, whole - start)), np.uint8)
            if (data[packet - 188 :: packet] != 0x47).any():
                return BROKEN
        return CUT_OFF if size % packet else ""

    return check


def _check_asf(file: BinaryIO, size: int) -> str:
    """ASF: the file properties state the file's size."""
    head = file.read(4096)
    at = head.find(_ASF_PROPERTIES)
    stated = head[at + 40 : at + 48] if at >= 0 else b""
    return CUT_OFF if len(stated) == 8 and int.from_bytes(stated, "little") > size else ""


def _check_ogg(file: BinaryIO, size: int) -> str:
    """Ogg: pages whose lacing values add up to their size."""
    file.seek(max(0, size - _TAIL))
    tail = file.read()
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
    file.seek(max(0, size - _PNG_TAIL))
    return "" if b"IEND" in file.read() else CUT_OFF


def _starts_with(mark: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(mark)


def _is_transport(packet: int) -> Callable[[bytes], bool]:
    first = packet - 188
    return lambda head: head[first : first + 3 * packet : packet] == b"\x47\x47\x47"


_CHECKS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int], str]], ...] = (
    (lambda head: head[4:8] in _FIRST_MP4_BOXES, _check_boxes),
    (_starts_with(_EBML.to_bytes(4, "big")), _check_elements),
    (_starts_with(b"RIFF"), _check_riff),
    (_starts_with(b"FLV"), _check_flv),
    (_is_transport(188), _check_transport(188)),
    (_is_transport(192), _check_transport(192)),
    (_starts_with(_ASF), _check_asf),
    (_starts_with(b"OggS"), _check_ogg),
    (_starts_with(b"GIF8"), _check_gif),
    (_starts_with(b"\x89PNG"), _check_png),
)
