"""Whether a file ends where its container says: most demuxers stop at a cut without a word."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_TAIL = 1 << 16  # bytes looked through for the last page of an Ogg file: more than a page can hold
_PNG_TAIL = 64  # bytes in which the last chunk of a PNG begins, and what may follow it
_FIRST_MP4_BOXES = {b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"sidx", b"pnot"}
_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def is_cut_off(path: str | Path) -> bool:
    """Tell whether a file ends before its container does; False where that container does not say where it ends.

    Only sizes in headers are followed, so that it takes no time. MP4 and MOV (ISO/IEC 14496-12), Matroska and WebM (RFC
    8794), AVI and WebP (RIFF), FLV, MPEG-TS, ASF, Ogg (RFC 3533), GIF and PNG. A file cut exactly between two
    fragments or packets of a container that states no total is a shorter file, and nobody can tell.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(4096)
        for recognizes, check in _CHECKS:
            if recognizes(head):
                file.seek(0)
                return check(file, size)
    return False


def _boxes_cut(file: BinaryIO, size: int) -> bool:
    """MP4: boxes of 32-bit size and type, 64-bit where the size is 1, to the end where it is 0."""
    at, kind = 0, b""
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16).ljust(16, b"\0")
        length, kind = struct.unpack(">I4s", head[:8])
        if length == 1:
            length = struct.unpack(">Q", head[8:])[0]
        if length < 8 or not kind.isascii():
            return False  # to the end, or something else
        at += length
    return at > size or kind == b"moof"  # a fragment's index without its data


def _ebml_cut(file: BinaryIO, size: int) -> bool:
    """Matroska: elements of a variable-length id and size; those of unknown size hold what follows."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        id_length = 9 - head[0].bit_length()
        if id_length > 4 or len(head) <= id_length:
            return id_length <= 4
        size_length = 9 - head[id_length].bit_length()
        if size_length > 8 or len(head) < id_length + size_length:
            return size_length <= 8
        number = int.from_bytes(head[:id_length], "big")
        length = int.from_bytes(head[id_length : id_length + size_length], "big") & ((1 << 7 * size_length) - 1)
        unknown = length == (1 << 7 * size_length) - 1
        at += id_length + size_length
        if unknown and number not in (_SEGMENT, _CLUSTER):
            return False
        at += 0 if unknown else length
    return at > size


def _riff_cut(file: BinaryIO, size: int) -> bool:
    """AVI and WebP: one or several RIFF chunks; a recorder that was killed leaves a size of 0."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind != b"RIFF" or length == 0:
            return False
        at += 8 + length
    return at > size + 1  # the last chunk's padding may be missing


def _flv_cut(file: BinaryIO, size: int) -> bool:
    """FLV: tags with their length in front and behind; the muxer states the file's size."""
    head = file.read(4096)
    stated = head.find(b"filesize\0")
    if stated >= 0 and len(head) >= stated + 17 and struct.unpack(">d", head[stated + 9 : stated + 17])[0] > size:
        return True
    file.seek(size - 4)
    length = int.from_bytes(file.read(4), "big")
    if 11 <= length <= size - 17:
        file.seek(size - 4 - length)
        tag = file.read(4)
        if tag[0] in (8, 9, 18) and int.from_bytes(tag[1:], "big") == length - 11:
            return False
    at = 13
    while at + 11 <= size:  # an odd last tag: walk through all of them
        file.seek(at)
        tag = file.read(4)
        if tag[0] & 0x1F not in (8, 9, 18):
            return False
        at += 15 + int.from_bytes(tag[1:], "big")
    return at != size


def _transport_cut(packet: int) -> Callable[[BinaryIO, int], bool]:
    """MPEG-TS: packets of one size that begin with 0x47."""

    def check(file: BinaryIO, size: int) -> bool:
        file.seek(size - size % packet - 188)
        return bool(size % packet) and file.read(1) == b"\x47"

    return check


def _asf_cut(file: BinaryIO, size: int) -> bool:
    """ASF: the file properties state the file's size."""
    head = file.read(4096)
    at = head.find(_ASF_PROPERTIES)
    return at >= 0 and len(head) >= at + 48 and struct.unpack("<Q", head[at + 40 : at + 48])[0] > size


def _ogg_cut(file: BinaryIO, size: int) -> bool:
    """Ogg: pages whose lacing values add up to their size."""
    file.seek(max(0, size - _TAIL - 282))
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0 or at + 27 > len(tail):
        return at >= 0
    segments = tail[at + 27 : at + 27 + tail[at + 26]]
    return at + 27 + tail[at + 26] + sum(segments) > len(tail)


def _gif_cut(file: BinaryIO, size: int) -> bool:
    """GIF: blocks up to a trailer; their data lies in sub-blocks of up to 255 bytes."""
    data = file.read()
    at = 13 + _color_table(data[10])
    while at < size and data[at] != 0x3B:
        if data[at] == 0x21:  # an extension: its label
            at += 2
        elif data[at] == 0x2C and at + 10 <= size:  # a picture: place, size, colors, code size
            at += 11 + _color_table(data[at + 9])
        else:
            return data[at] == 0x2C
        while at < size and data[at]:
            at += 1 + data[at]
        at += 1
    return at >= size


def _color_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _png_cut(file: BinaryIO, size: int) -> bool:
    """PNG: the last chunk."""
    file.seek(max(0, size - _PNG_TAIL))
    return b"IEND" not in file.read()


def _starts_with(mark: bytes, at: int = 0) -> Callable[[bytes], bool]:
    return lambda head: head[at : at + len(mark)] == mark


def _is_transport(packet: int) -> Callable[[bytes], bool]:
    first = packet - 188
    return lambda head: head[first : first + 3 * packet : packet] == b"\x47\x47\x47"


_CHECKS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int], bool]], ...] = (
    (lambda head: head[4:8] in _FIRST_MP4_BOXES, _boxes_cut),
    (_starts_with(_EBML.to_bytes(4, "big")), _ebml_cut),
    (_starts_with(b"RIFF"), _riff_cut),
    (_starts_with(b"FLV"), _flv_cut),
    (_is_transport(188), _transport_cut(188)),
    (_is_transport(192), _transport_cut(192)),
    (_starts_with(_ASF), _asf_cut),
    (_starts_with(b"OggS"), _ogg_cut),
    (_starts_with(b"GIF8"), _gif_cut),
    (_starts_with(b"\x89PNG"), _png_cut),
)
