"""Names, types and constraints of every key of `configs/stream.yaml`; the YAML file holds the values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from omegaconf import MISSING

from videomamba_depth.configuration.checks import DTYPES, check_values
from videomamba_depth.streaming.colour import COLOUR_MAPS
from videomamba_depth.streaming.keyframes import KeyFrameSettings

_CHOICES = {
    "video": ("side_by_side", "depth", "none"),
    "video_codec": ("h264", "hevc"),
    "raw": ("none", "npz", "png16", "exr", "zarr"),
    "raw_dtype": ("float16", "float32"),
    "resolution": ("source", "model"),
    "dtype": DTYPES,
    "colour_map": tuple(COLOUR_MAPS),
}
_Number = TypeVar("_Number", int, float)
_POSITIVE = ("input_size", "fps", "max_frames", "threads", "shard_frames", "max_gap_s", "memory", "ply_every")


@dataclass
class KeyFrameConfig:
    """`key_frames` of `configs/stream.yaml`; constraints: `streaming.keyframes.KeyFrameSettings`."""

    enabled: bool = MISSING
    every: int = MISSING
    capacity: int = MISSING
    duplicate: float = MISSING
    enter: float = MISSING
    leave: float = MISSING
    blend_frames: int = MISSING
    grid: int = MISSING
    align: bool = MISSING
    time_constant: float = MISSING
    max_state_change: float = MISSING
    max_scale: float = MISSING

    def settings(self) -> KeyFrameSettings | None:
        """Return the settings, or None where key frames are off.

        Raises:
            ValueError: values that do not fit each other.
        """
        values = asdict(self)
        enabled = values.pop("enabled")
        settings = KeyFrameSettings(**values)
        return settings if enabled else None


@dataclass
class StreamConfig:
    """`configs/stream.yaml`."""

    checkpoint: str = MISSING
    input: str = MISSING
    output: str = MISSING
    video: str = MISSING
    video_codec: str = MISSING
    preview: bool = MISSING
    raw: str = MISSING
    raw_dtype: str = MISSING
    shard_frames: int = MISSING
    resolution: str = MISSING
    intrinsics: Any = None
    ply_every: int = MISSING
    colour_map: str = MISSING
    colour_percentiles: list[float] = MISSING
    colour_time_constant_s: float = MISSING
    colour_range: list[float] | None = None
    memory: float = MISSING
    reset_at_cuts: bool = MISSING
    max_gap_s: float | None = None
    key_frames: KeyFrameConfig = field(default_factory=KeyFrameConfig)
    device: str = MISSING
    dtype: str = MISSING
    input_size: int | None = None
    compile: bool = MISSING
    threads: int | None = None
    overlap: bool = MISSING
    live: bool | None = None
    reconnect_s: float = MISSING
    raw_input_size: list[int] | None = None
    fps: float | None = None
    max_frames: int | None = None
    overwrite: bool = MISSING

    def __post_init__(self) -> None:
        check_values(self, _CHOICES, _POSITIVE)
        low, high = _pair("colour_percentiles", self.colour_percentiles)
        if not 0 <= low < high <= 100:
            raise ValueError(f"colour_percentiles must ascend within [0, 100]; got {self.colour_percentiles}")
        if self.raw_input_size is not None and min(_pair("raw_input_size", self.raw_input_size)) < 1:
            raise ValueError(f"raw_input_size must be positive; got {self.raw_input_size}")
        if self.colour_range is not None:
            low, high = _pair("colour_range", self.colour_range)
            if low >= high:
                raise ValueError(f"colour_range must ascend; got {self.colour_range}")
        _check_intrinsics(self.intrinsics, self.output)
        _ = self.key_frames.settings()
        for name in ("colour_time_constant_s", "reconnect_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")


def _check_intrinsics(given: Any, output: str) -> None:
    numbers = isinstance(given, list) and all(isinstance(value, int | float) for value in given)
    if given is not None and not (isinstance(given, str) or numbers):
        raise ValueError(f"intrinsics must be [fx,fy,cx,cy] in px or a text file; got {given}")
    if given is not None and output == "-":
        raise ValueError("intrinsics asks for point clouds, which need a folder: output=FOLDER, not output=-")


def _pair(name: str, values: Sequence[_Number]) -> tuple[_Number, _Number]:
    if len(values) != 2:
        raise ValueError(f"{name} must hold two numbers, low and high; got {values}")
    return values[0], values[1]
