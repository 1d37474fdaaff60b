"""Camera poses as a text file that the tools of the field read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from videomamba_depth.streaming.depth_frame import DepthFrame
from videomamba_depth.utils.atomic import disk_error
from videomamba_depth.utils.cameras import quaternion


class PoseLog:
    """One line per frame, `time_s tx ty tz qx qy qz qw`, camera to world, as in TUM RGB-D (Sturm et al., IROS 2012)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("w", encoding="ascii", buffering=1)
        except OSError as error:
            raise disk_error(path, error) from error

    def write(self, frame: DepthFrame) -> None:
        """Append one line; the operating system has it when this returns."""
        assert frame.camera is not None
        numbers = [*frame.camera.position, *quaternion(frame.camera.rotation)]
        try:
            self._file.write(f"{frame.timestamp_s:.6f} {' '.join(f'{x:.7g}' for x in numbers)}\n")
        except OSError as error:
            raise disk_error(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError as error:
            raise disk_error(self.path, error) from error

    def files(self) -> Iterable[Path]:
        """Return the file."""
        return [self.path]
