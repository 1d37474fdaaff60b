"""Decode untrusted uploads in a process of its own, which can be ended at any moment.

A picture of a few kilobytes can keep a decoder busy for minutes, a damaged one can crash it, and a thread cannot be
ended. So every connection has a process (`decoder_process`), which ends itself when one frame takes longer than
`decode_s`, and is killed when the client leaves or the server stops. Nothing that it writes to its console is shown.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import anyio
import numpy as np
from anyio.streams.buffered import BufferedByteReceiveStream

from videomamba_depth.serving.messages import LENGTH
from videomamba_depth.serving.settings import ServeSettings
from videomamba_depth.utils.errors import UserError


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded frame.

    Attributes:
        rgb: uint8 `[H, W, 3]`, scaled down to the long side that the page allows.
        sent_size: (height, width) in px before that.
        time_s: in the video; 0 for pictures of a camera.
    """

    rgb: np.ndarray
    sent_size: tuple[int, int]
    time_s: float = 0.0


class Decoder:
    """The process of one connection, see `open_decoder`."""

    def __init__(self, process: Any, decode_s: float) -> None:
        self._process, self._decode_s = process, decode_s
        self._output = BufferedByteReceiveStream(process.stdout)

    async def decode(self, data: bytes) -> Picture:
        """Return a JPEG of the camera.

        Raises:
            UserError: it is refused, damaged, or takes too long.
        """
        with suppress(anyio.BrokenResourceError):  # the process has ended: reading says so
            await self._process.stdin.send(LENGTH.pack(len(data)) + data)
        picture = await self.next_frame()
        assert picture is not None
        return picture

    async def next_frame(self) -> Picture | None:
        """Return the next frame of the video; None after the last one.

        Raises:
            UserError: it cannot be decoded, or takes too long.
        """
        try:
            about = json.loads(await self._receive(LENGTH.unpack(await self._receive(LENGTH.size))[0]))
            parts = [await self._receive(length) for length in about["pictures"]]
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            raise UserError(
                f"a frame takes longer than {self._decode_s:g} s to decode, or is damaged so that the decoder broke off"
            ) from None
        if "error" in about:
            raise UserError(about["error"])
        if not parts:
            return None
        rgb = np.frombuffer(parts[0], np.uint8).reshape(about["shape"]).copy()
        return Picture(rgb, tuple(about["sent_size"]), about["time_s"])

    async def _receive(self, size: int) -> bytes:
        return await self._output.receive_exactly(size)


@asynccontextmanager
async def open_decoder(settings: ServeSettings, video: tuple[IO[bytes], Path] | None = None) -> AsyncIterator[Decoder]:
    """Start a process that decodes a camera's pictures or a video; it is killed at the end of the context.

    Args:
        video: see `unnamed_file`.

    Raises:
        UserError: the machine can start no process.
    """
    file, path = (subprocess.PIPE, "") if video is None else (video[0], str(video[1]))
    limits = (settings.max_pixels, settings.longest_px, settings.decode_s)
    command = [sys.executable, "-m", "videomamba_depth.serving.decoder_process", *map(str, limits), path]
    try:  # in a session of its own: Ctrl-C is for the server
        process = await anyio.open_process(command, stdin=file, stderr=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        raise UserError("the server cannot start one more decoder now; try again later") from error
    try:
        yield Decoder(process, settings.decode_s)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()
