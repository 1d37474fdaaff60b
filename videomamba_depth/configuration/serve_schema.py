"""Names, types and constraints of the keys of `configs/serve.yaml`: the page's own, and those of the model."""

from __future__ import annotations

from dataclasses import dataclass

from videomamba_depth.serving.settings import ServeSettings
from videomamba_depth.utils.device import DTYPES
from videomamba_depth.utils.settings import choice, device_name, path, ranged, text


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ServeSettings):
    """`configs/serve.yaml`."""

    checkpoint: str = path(named=True)
    host: str = text()
    port: int = ranged(0, 65535)
    allowed_hosts: list[str] = text(r"[A-Za-z0-9_.-]+", "host names, without http:// and port")
    framed_by: list[str] = text(
        r"https?://[A-Za-z0-9.-]+(:\d{1,5})?", "origins such as https://huggingface.co, without a path"
    )
    device: str = device_name()
    precision: str = choice(*DTYPES)
    short_side: int | None = ranged(14, 8192, None)
    threads: int | None = ranged(1, 1024, None)
    reset_at_cuts: bool
    max_gap_s: float | None = ranged(0, 1e9, None, open="low")
