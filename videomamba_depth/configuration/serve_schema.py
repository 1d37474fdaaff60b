"""Names, types and constraints of every key of `configs/serve.yaml`."""

from __future__ import annotations

from dataclasses import dataclass

from videomamba_depth.utils.color import COLOR_MAPS
from videomamba_depth.utils.device import DTYPES
from videomamba_depth.utils.settings import choice, device_name, path, ranged, text


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """`configs/serve.yaml`."""

    checkpoint: str = path(named=True)
    host: str = text()
    port: int = ranged(0, 65535)
    allowed_hosts: list[str] = text(r"[A-Za-z0-9_.-]+", "host names, without http:// and port")
    device: str = device_name()
    dtype: str = choice(*DTYPES)
    input_size: int | None = ranged(14, 8192, None)
    threads: int | None = ranged(1, 1024, None)
    reset_at_cuts: bool
    max_gap_s: float | None = ranged(0, 1e9, None, open="low")
    colour_map: str = choice(*COLOR_MAPS)
    max_streams: int = ranged(1, 1024)
    max_upload_mb: float = ranged(0, 1e6, open="low")
    max_pixels: int = ranged(1, 10**9)
    longest_px: int = ranged(14, 8192)
    decode_s: float = ranged(0, 1e6, open="low")
    upload_s: float = ranged(0, 1e6, open="low")
    idle_s: float = ranged(0, 1e6, open="low")
