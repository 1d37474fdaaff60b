"""Names, types and constraints of the keys of `configs/stream.yaml`: those of its parts, and of the model."""

from __future__ import annotations

from dataclasses import dataclass

from videomamba_depth.streaming.key_frames.key_frames import KeyFrameSettings
from videomamba_depth.streaming.sinks.open import SinkSettings
from videomamba_depth.streaming.sources.open import SourceSettings
from videomamba_depth.utils.device import DTYPES
from videomamba_depth.utils.settings import choice, device_name, path, ranged


@dataclass(frozen=True, kw_only=True)
class StreamConfig(SourceSettings, SinkSettings):
    """`configs/stream.yaml`; see `DepthStream` for the keys of the model."""

    checkpoint: str = path(named=True)
    device: str = device_name()
    precision: str = choice(*DTYPES)
    short_side: int | None = ranged(14, 8192, None)
    resolution: str = choice("source", "model")
    memory: float = ranged(0, 1e6, open="low")
    encode_every: int = ranged(1, 10_000, 1)
    geometry: bool | None = None
    affine: bool | None = None
    offline: bool = False
    reset_at_cuts: bool
    max_gap_s: float | None = ranged(0, 1e9, None, open="low")
    key_frames: KeyFrameSettings
    compile: bool
    threads: int | None = ranged(1, 1024, None)
    overlap: bool
    preview: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.offline:
            return
        if self.is_live:
            raise ValueError(f"offline=true sees frames that come later: input={self.input} must be recorded first")
        given = {
            "key_frames.enabled=true": self.key_frames.enabled,
            f"memory={self.memory:g}": self.memory != 1,
            f"encode_every={self.encode_every}": self.encode_every != 1,
            "compile=true": self.compile,
            "affine=true": bool(self.affine),
        }
        if useless := [name for name, is_given in given.items() if is_given]:
            raise ValueError(f"offline=true runs the teacher, which has no state: leave out {', '.join(useless)}")
        if self.poses and self.geometry is False:
            raise ValueError("poses=true needs parallax: leave out geometry=false")
