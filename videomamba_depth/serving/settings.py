"""What one page may cost the machine that serves it."""

from __future__ import annotations

from dataclasses import dataclass, field

from videomamba_depth.utils.color import ColorSettings
from videomamba_depth.utils.settings import ranged


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Limits and colors of the page.

    Attributes:
        max_upload_mb: of a video file, in 10^6 bytes.
        max_picture_mb: of one camera picture (JPEG).
        max_pixels: of a frame; larger ones are refused before they are decoded.
        longest_px: frames are scaled down to this long side before the model sees them.
        max_streams: videos and cameras at the same time.
        decode_s: how long the decoding of one frame may take; the connection ends then.
        upload_s: how long the upload of a file may take.
        idle_s: a client that sends nothing when it is its turn, or reads nothing, for that long is let go.
        color: of the depth.
    """

    max_upload_mb: float = ranged(0, 1e6, 200.0, open="low")
    max_picture_mb: float = ranged(0, 1e6, 4.0, open="low")
    max_pixels: int = ranged(1, 10**9, 3840 * 2160)
    longest_px: int = ranged(14, 8192, 640)
    max_streams: int = ranged(1, 1024, 4)
    decode_s: float = ranged(0, 1e6, 10.0, open="low")
    upload_s: float = ranged(0, 1e6, 300.0, open="low")
    idle_s: float = ranged(0, 1e6, 30.0, open="low")
    color: ColorSettings = field(default_factory=ColorSettings)

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
