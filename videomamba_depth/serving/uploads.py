"""Validation of untrusted uploads: files and pictures are checked before they are decoded."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from videomamba_depth.data.video.decode import Losses
from videomamba_depth.data.video.reader import Frame, VideoReadError, iter_stream
from videomamba_depth.utils.errors import UserError

# Containers that hold their own data. Playlists, scripts and session descriptions (hls, dash, concat, sdp, …) name
# other files and servers, which FFmpeg would open for the one who uploaded them.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,obu,flv,ogg,asf,gif,apng"
_PREFIX = "videomamba-depth-"
_OWN_INPUT = Path("/proc/self/fd/0")
UPLOAD_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
"""FFmpeg options under which a file of a stranger is opened: nothing but that file is read."""
_TOO_LARGE = re.compile(r"size (\d+x\d+) exceeds")  # as FFmpeg and dav1d log it
_SCAN, _MAX_SCANS = b"\xff\xda", 100
"""Start of a JPEG's scan, and how many a picture may have: each goes over all pixels; encoders write ten or so."""


@contextmanager
def unnamed_file() -> Iterator[tuple[IO[bytes], Path]]:
    """Open a temporary file for an upload; yields it, for writing, and where a process reads it whose stdin it is.

    On Linux no folder holds it, so that it vanishes with the process however that ends. Elsewhere it has a name and is
    removed at the end of the context.
    """
    with tempfile.TemporaryFile(prefix=_PREFIX) as unnamed, ExitStack() as stack:
        if _OWN_INPUT.exists():
            yield unnamed, _OWN_INPUT
        else:
            file = stack.enter_context(tempfile.NamedTemporaryFile(prefix=_PREFIX))
            yield file, Path(file.name)


def upload_frames(path: Path, max_pixels: int) -> Iterator[Frame]:
    """Yield the frames of a file that a stranger sent, as far as they can be decoded.

    Args:
        path: where it was put; never a name that the stranger gave.

    Raises:
        UserError: not a video, nothing in it, damage (after the last frame), or a frame above `max_pixels`, which is
            not decoded. The path is not named.
    """
    losses, num_frames = Losses(), 0
    with _ffmpeg_errors() as errors:
        try:
            for frame in iter_stream(path, 1, options=UPLOAD_OPTIONS, max_pixels=max_pixels, losses=losses):
                yield frame
                num_frames += 1
                _check_pixels(errors, max_pixels)
        except VideoReadError as error:
            _check_pixels(errors, max_pixels)
            raise UserError(_anonymous(error, num_frames)) from error
        _check_pixels(errors, max_pixels)
        if damage := losses.described():
            raise UserError(f"the file is damaged or cut off: {damage}")


@contextmanager
def _ffmpeg_errors() -> Iterator[list[Any]]:
    """Collect what FFmpeg logs as errors: its status alone does not tell what is too large from what is damaged."""
    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture(local=False) as errors:
            yield errors
    finally:
        av.logging.set_level(before)


def _check_pixels(errors: list[Any], max_pixels: int) -> None:
    for _, _, text in errors:
        if found := _TOO_LARGE.search(text):
            raise UserError(f"frames of {found[1]} px are larger than {max_pixels / 1e6:.1f} Mpx")
    errors.clear()


def _anonymous(error: Exception, num_frames: int) -> str:
    message = str(error)
    if num_frames > 0:
        return f"the file is damaged after frame {num_frames}"
    if "no frame can be decoded" in message:
        return "no frame of this file can be decoded: it is damaged"
    if "no video stream" in message:
        return "this file has no pictures that can be decoded"
    return "this file is not a video, or it is damaged or cut off"


def read_picture(data: bytes, max_pixels: int) -> np.ndarray:
    """Return a JPEG as uint8 RGB `[H, W, 3]`.

    Raises:
        UserError: not a JPEG, a damaged one, or one of more than `max_pixels` or scans, which is not decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:  # reads the header
            if picture.width * picture.height > max_pixels:
                raise Image.DecompressionBombError
            if data.count(_SCAN) > _MAX_SCANS:
                raise UserError(f"a picture has more than {_MAX_SCANS} scans; send a baseline JPEG")
            return np.array(picture.convert("RGB"))
    except Image.DecompressionBombError as error:  # Pillow has a limit of its own, far above
        raise UserError(f"a picture is larger than {max_pixels / 1e6:.1f} Mpx") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError("this is not a JPEG picture, or it is damaged") from error
