"""Names and types of `configs/evaluate.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from videomamba_depth.configuration.schema import TeacherConfig
from videomamba_depth.evaluation.datasets.rgbd import RgbdFormat
from videomamba_depth.evaluation.datasets.worlds import WorldSet
from videomamba_depth.evaluation.engine import Protocol
from videomamba_depth.evaluation.protocols import PROTOCOLS
from videomamba_depth.flow.estimators import FlowSettings
from videomamba_depth.utils.device import DTYPES
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.settings import choice, device_name, file_name, path, ranged, text


@dataclass(frozen=True, kw_only=True)
class HtmlConfig:
    """The page beside JSON and Markdown, and which methods its pictures show besides the students."""

    enabled: bool
    methods: list[str] = text()
    clips: int | None = ranged(0, 10**6, None)
    video_frames: int = ranged(0, 100_000)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Protocol):
    """`configs/evaluate.yaml`; the keys of the protocol stand beside the others."""

    checkpoint: str | list[str] = path(named=True)
    memory: list[float] = ranged(0, 1e6, open="low")
    targets: bool
    teacher: TeacherConfig
    input: str | list[str] = path()
    protocol: str | None = choice(*PROTOCOLS, default=None)
    output: str | None = path(None)
    name: str = file_name()
    cache: str | None = path(None)
    synthetic: WorldSet
    rgbd: RgbdFormat
    reference_flow: FlowSettings
    html: HtmlConfig
    short_side: int | None = ranged(14, 8192, None)
    precision: str = choice("auto", *DTYPES)
    device: str = device_name()
    threads: int | None = ranged(1, 1024, None)
    workers: int = ranged(1, 256)


def name_checkpoints(value: str | Sequence[str]) -> dict[str, str]:
    """Return {method: checkpoint} of "PATH", "NAME:PATH" or a list of them; a single nameless one is "student".

    Raises:
        UserError: two students of one name.
    """
    entries = [value] if isinstance(value, str) else value
    named: dict[str, str] = {}
    for entry in entries:
        name, colon, path = entry.partition(":")
        if not colon:
            name, path = "student" if len(entries) == 1 else Path(entry).parent.name or entry, entry
        if name in named:
            raise UserError(f"checkpoint names '{name}' twice; write NAME:FOLDER with a name of its own for each")
        named[name] = path
    return named
