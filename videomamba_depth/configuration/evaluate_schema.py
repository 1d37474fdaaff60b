"""Names and types of `configs/evaluate.yaml` and `configs/evaluate_fresh.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from videomamba_depth.configuration.schema import FlowConfig
from videomamba_depth.utils.errors import UserError


@dataclass
class SyntheticEvalConfig:
    """Fresh synthetic worlds with exact ground truth."""

    videos: int = MISSING
    frames: int = MISSING
    seed: int = MISSING
    world: str = MISSING
    motion: str = MISSING
    height: int = MISSING
    width: int = MISSING


@dataclass
class RgbdEvalConfig:
    """How depth images beside colour images are read."""

    depth_scale: float | None = None
    invalid: float = 0.0
    intrinsics: str | None = None
    poses: str | None = None
    max_depth_m: float = MISSING
    crop_px: int = MISSING


@dataclass
class HtmlConfig:
    """The page beside JSON and Markdown, and which rows its pictures show besides the students."""

    enabled: bool = MISSING
    rows: list[str] = MISSING
    video_frames: int = MISSING


@dataclass
class EvaluateConfig:
    """`configs/evaluate.yaml`."""

    checkpoint: Any = MISSING
    input: str = MISSING
    output: str | None = None
    name: str = MISSING
    synthetic: SyntheticEvalConfig = field(default_factory=SyntheticEvalConfig)
    rgbd: RgbdEvalConfig = field(default_factory=RgbdEvalConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    html: HtmlConfig = field(default_factory=HtmlConfig)
    input_size: int | None = None
    max_frames: int | None = None
    max_side: int = MISSING
    max_gt_side: int | None = None
    palindrome: bool = MISSING
    cut_frames: int = MISSING
    precision: str = MISSING
    device: str = MISSING
    threads: int | None = None


SPLITS = {"final": ("courtyard", 3_000_000_000), "tuning": ("rooms", 2_500_000_000)}
"""Family and first seed of each set of fresh worlds. Training draws its seeds below 2³¹, so neither is ever seen."""


@dataclass
class FreshWorldsConfig:
    """How many fresh worlds of which size, see `WorldSet`."""

    videos: int = MISSING
    frames: int = MISSING
    long_videos: int = MISSING
    long_frames: int = MISSING
    height: int = MISSING
    width: int = MISSING
    max_depth_m: float = MISSING
    first_seed: int | None = None


@dataclass
class EvaluateFreshConfig:
    """`configs/evaluate_fresh.yaml`."""

    checkpoint: Any = MISSING
    memory: list[float] = MISSING
    teacher: str = MISSING
    output: str = MISSING
    name: str = MISSING
    cache: str = MISSING
    split: str = MISSING
    worlds: FreshWorldsConfig = field(default_factory=FreshWorldsConfig)
    kinds: list[str] = MISSING
    flow: FlowConfig = field(default_factory=FlowConfig)
    html: HtmlConfig = field(default_factory=HtmlConfig)
    input_size: int | None = None
    workers: int = MISSING

    def __post_init__(self) -> None:
        if self.split not in (*SPLITS, MISSING):
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got '{self.split}'")
        if self.memory != MISSING and (not self.memory or min(self.memory) <= 0):
            raise ValueError(f"memory must hold positive numbers; got {self.memory}")


def name_checkpoints(value: Any) -> dict[str, str]:
    """Return {row name: checkpoint} of "PATH", "NAME:PATH" or a list of them; a single nameless one is "student".

    Raises:
        UserError: two students of one name, or something that is not text.
    """
    entries = [value] if isinstance(value, str) else list(value or [])
    named: dict[str, str] = {}
    for entry in entries:
        if not isinstance(entry, str):
            raise UserError(f"checkpoint must be a folder, NAME:FOLDER or a list of them; got {entry!r}")
        name, colon, path = entry.partition(":")
        if not colon:
            name, path = "student" if len(entries) == 1 else Path(entry).parent.name or entry, entry
        if name in named:
            raise UserError(f"checkpoint names '{name}' twice; write NAME:FOLDER with a name of its own for each")
        named[name] = path
    return named
