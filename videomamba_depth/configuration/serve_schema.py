"""Names, types and constraints of every key of `configs/serve.yaml`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from omegaconf import MISSING

from videomamba_depth.configuration.checks import DTYPES, check_values
from videomamba_depth.streaming.colour import COLOUR_MAPS

_CHOICES = {
    "dtype": DTYPES,
    "colour_map": tuple(COLOUR_MAPS),
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
    allowed_hosts: list[str] = field(default_factory=list)
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
        check_values(self, _CHOICES, _POSITIVE)
        if not 0 <= self.port < 65536:
            raise ValueError(f"port must lie in [0, 65535]; got {self.port}")
        for name in self.allowed_hosts:
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
                raise ValueError(f"allowed_hosts must be host names, without http:// and port; got '{name}'")
