"""Names, types and constraints of every key of `configs/stream.yaml`; the YAML file holds the values."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from videomamba_depth.streaming.key_frames.key_frames import KeyFrameSettings
from videomamba_depth.utils.color import COLOR_MAPS
from videomamba_depth.utils.device import DTYPES
from videomamba_depth.utils.settings import Range, choice, device_name, path, ranged


@dataclass(frozen=True, kw_only=True)
class KeyFrameConfig:
    """`key_frames` of `configs/stream.yaml`; see `streaming.keyframes.KeyFrameSettings`."""

    enabled: bool
    every: int = ranged(1, 10**9)
    capacity: int = ranged(1, 10_000)
    duplicate: float = ranged(-1, 1)
    enter: float = ranged(-1, 1)
    leave: float = ranged(-1, 1)
    blend_frames: int = ranged(1, 10**6)
    grid: int = ranged(1, 256)
    align: bool
    time_constant: float = ranged(0, 1e6, open="low")
    max_state_change: float = ranged(0, 1e6)
    max_scale: float = ranged(1.0, 1e6)

    def settings(self) -> KeyFrameSettings | None:
        """Return the settings, or None where key frames are off.

        Raises:
            ValueError: values that do not fit each other.
        """
        values = asdict(self)
        enabled = values.pop("enabled")
        settings = KeyFrameSettings(**values)
        return settings if enabled else None


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """`configs/stream.yaml`."""

    checkpoint: str = path(named=True)
    input: str = path()
    output: str = path()
    video: str = choice("side_by_side", "depth", "none")
    video_codec: str = choice("h264", "hevc")
    preview: bool
    raw: str = choice("none", "npz", "png16", "exr", "zarr")
    raw_dtype: str = choice("float16", "float32")
    shard_frames: int = ranged(1, 10**6)
    resolution: str = choice("source", "model")
    intrinsics: str | list[float] | None = path(None, numbers=Range(-1e9, 1e9, length=(4, 4)))
    ply_every: int = ranged(1, 10**9)
    colour_map: str = choice(*COLOR_MAPS)
    colour_percentiles: list[float] = ranged(0, 100, length=2)
    colour_time_constant_s: float = ranged(0, 1e9)
    colour_range: list[float] | None = ranged(-1e9, 1e9, None, length=2)
    memory: float = ranged(0, 1e6, open="low")
    reset_at_cuts: bool
    max_gap_s: float | None = ranged(0, 1e9, None, open="low")
    key_frames: KeyFrameConfig
    device: str = device_name()
    dtype: str = choice(*DTYPES)
    input_size: int | None = ranged(14, 8192, None)
    compile: bool
    threads: int | None = ranged(1, 1024, None)
    overlap: bool
    live: bool | None = None
    reconnect_s: float = ranged(0, 1e9)
    raw_input_size: list[int] | None = ranged(1, 65536, None, length=2)
    fps: float | None = ranged(0.01, 1000, None)
    max_frames: int | None = ranged(1, 10**9, None)
    overwrite: bool

    def __post_init__(self) -> None:
        for name in ("colour_percentiles", "colour_range"):
            pair = getattr(self, name)
            if pair is not None and pair[0] >= pair[1]:
                raise ValueError(f"{name} must ascend; got {pair}")
        if self.intrinsics is not None and self.output == "-":
            raise ValueError("intrinsics asks for point clouds, which need a folder: output=FOLDER, not output=-")
        _ = self.key_frames.settings()
