"""Pictures and videos that are small to send and long to decode."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av

_ZERO_TREE = bytes([1] + [0] * 15)  # one code, of one bit


def scans_jpeg(num_scans: int, width: int = 3840, height: int = 2160) -> bytes:
    """Return a gray progressive JPEG whose scans say in a few bytes each that nothing changes.

    A run of up to 32767 blocks without coefficients is one code (EOB14, ITU-T T.81, G.1.2.2), so that a scan over all
    blocks of a 4K picture takes 20 bytes; a decoder visits every block all the same.
    """
    blocks = -(-width // 8) * -(-height // 8)
    bits, left = "", blocks
    while left > 0:
        run = max(min(left, 32767), 16384)
        bits, left = bits + "0" + format(run - 16384, "014b"), left - run
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    head = b"\xff\xd8" + _segment(0xDB, b"\0" + b"\1" * 64)
    head += _segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    head += _segment(0xC4, b"\0" + _ZERO_TREE + b"\0") + _segment(0xC4, b"\x10" + _ZERO_TREE + b"\xe0")
    first = _segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-blocks // 8))
    return head + first + (_segment(0xDA, b"\1\1\0\1\x3f\0") + coded) * (num_scans - 1) + b"\xff\xd9"


def scans_video(path: Path, num_scans: int) -> Path:
    """Write two frames of `scans_jpeg` as MJPEG in Matroska."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 3840, 2160, "yuvj420p"
        for number in range(2):
            packet = av.Packet(scans_jpeg(num_scans))
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 10), True
            packet.pts = packet.dts = number
            container.mux(packet)
    return path


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
