"""What strangers may send: files and pictures are looked at before they are decoded."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from videomamba_depth.data.video.decode import Losses
from videomamba_depth.data.video.reader import Frame, VideoReadError, iter_stream
from videomamba_depth.utils.errors import UserError

# Containers that hold their own data. Playlists, scripts and session descriptions (hls, dash, concat, sdp, …) name
# other files and servers, which FFmpeg would open for the one who uploaded them.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,obu,flv,ogg,asf,gif,apng"
_PREFIX = "videomamba-depth-"
GUEST_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
"""FFmpeg options under which a file of a stranger is opened: nothing but that file is read."""


@contextmanager
def unnamed_file() -> Iterator[tuple[IO[bytes], Path]]:
    """Open a temporary file for an upload; yields it, for writing, and a path to read it at.

    On Linux no folder holds it, so that it vanishes with the process however that ends. Elsewhere it has a name and is
    removed at the end of the context. It is emptied there first: a decoder that still reads it comes to its end.
    """
    with tempfile.TemporaryFile(prefix=_PREFIX) as unnamed, ExitStack() as stack:
        path = Path(f"/proc/self/fd/{unnamed.fileno()}")
        file = unnamed if path.exists() else stack.enter_context(tempfile.NamedTemporaryFile(prefix=_PREFIX))
        try:
            yield file, path if file is unnamed else Path(file.name)
        finally:
            os.ftruncate(file.fileno(), 0)


class GuestVideo:
    """Frames of a file that a stranger sent.

    Args:
        path: where it was put; never a name that the stranger gave.

    Raises:
        UserError: not a video, nothing in it, or frames above `max_pixels`. The path is not named.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        self._losses = Losses()
        try:
            self._frames = iter_stream(path, 1, options=GUEST_OPTIONS, max_pixels=max_pixels, losses=self._losses)
            self._first = next(self._frames)
        except VideoReadError as error:
            raise UserError(self._anonymous(error, max_pixels)) from error

    def __iter__(self) -> Iterator[Frame]:
        """Yield every frame that can be decoded.

        Raises:
            UserError: behind the last one, where something could not be read.
        """
        num_frames = 1
        yield self._first
        try:
            for frame in self._frames:
                yield frame
                num_frames += 1
        except VideoReadError as error:
            raise UserError(f"the file is damaged behind frame {num_frames}") from error
        if damage := self._losses.described():
            raise UserError(f"the file is damaged or cut off: {damage}")

    def _anonymous(self, error: Exception, max_pixels: int) -> str:
        said = str(error)
        if "no frame can be decoded" in said:
            return f"no frame of this file can be decoded: it is damaged, or larger than {max_pixels / 1e6:.1f} Mpx"
        if "no video stream" in said:
            return "this file has no pictures that can be decoded"
        return "this file is not a video, or it is damaged or cut off"


def read_picture(data: bytes, max_pixels: int) -> np.ndarray:
    """Return a JPEG as uint8 RGB `[H, W, 3]`.

    Raises:
        UserError: not a JPEG, a damaged one, or one of more than `max_pixels`, which is not decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:  # reads the header
            if picture.width * picture.height > max_pixels:
                raise Image.DecompressionBombError
            return np.array(picture.convert("RGB"))
    except Image.DecompressionBombError as error:  # Pillow has a limit of its own, far above
        raise UserError(f"a picture is larger than {max_pixels / 1e6:.1f} Mpx") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError("this is not a JPEG picture, or it is damaged") from error
