"""What one page may cost the machine that serves it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServeSettings:
    """Limits and looks of the page.

    Attributes:
        max_upload_mb: of a video file, in 10^6 bytes.
        max_picture_mb: of one camera picture (JPEG).
        max_pixels: of a frame; larger ones are refused before they are decoded.
        longest_px: frames are scaled down to this long side before the model sees them.
        max_streams: videos and cameras at the same time.
        decode_s: how long the decoding of one frame may take; the connection ends then.
        upload_s: how long the upload of a file may take.
        idle_s: a client that sends nothing when it is its turn, or reads nothing, for that long is let go.
        colour_map: of the depth.
    """

    max_upload_mb: float = 200.0
    max_picture_mb: float = 4.0
    max_pixels: int = 3840 * 2160
    longest_px: int = 640
    max_streams: int = 4
    decode_s: float = 10.0
    upload_s: float = 300.0
    idle_s: float = 30.0
    colour_map: str = "inferno"

    @property
    def max_upload_bytes(self) -> int:
        """The same in bytes."""
        return round(self.max_upload_mb * 1e6)

    @property
    def max_picture_bytes(self) -> int:
        """The same in bytes."""
        return round(self.max_picture_mb * 1e6)


class Slots:
    """A number of places; `take` tells at once whether there was one."""

    def __init__(self, count: int) -> None:
        self.free = count

    def take(self) -> bool:
        """Take a place, if there is one; every place taken is to be given back."""
        if self.free == 0:
            return False
        self.free -= 1
        return True

    def give_back(self) -> None:
        """Give a place back."""
        self.free += 1
