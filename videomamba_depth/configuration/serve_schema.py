"""Names, types and constraints of every key of `configs/serve.yaml`."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

_CHOICES = {
    "dtype": ("float32", "bfloat16", "float16"),
    "colour_map": ("inferno", "magma", "turbo", "viridis", "grey"),
}
_POSITIVE = (
    "input_size",
    "threads",
    "max_gap_s",
    "max_streams",
    "max_upload_mb",
    "max_pixels",
    "longest_px",
    "upload_s",
    "idle_s",
)


@dataclass
class ServeConfig:
    """`configs/serve.yaml`."""

    checkpoint: str = MISSING
    host: str = MISSING
    port: int = MISSING
    device: str = MISSING
    dtype: str = MISSING
    input_size: int | None = None
    threads: int | None = None
    reset_at_cuts: bool = MISSING
    max_gap_s: float | None = None
    colour_map: str = MISSING
    max_streams: int = MISSING
    max_upload_mb: float = MISSING
    max_pixels: int = MISSING
    longest_px: int = MISSING
    upload_s: float = MISSING
    idle_s: float = MISSING

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got '{getattr(self, name)}'")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive; got {value}")
        if not 0 <= self.port < 65536:
            raise ValueError(f"port must lie in [0, 65535]; got {self.port}")
