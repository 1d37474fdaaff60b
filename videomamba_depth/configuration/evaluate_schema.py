"""Names and types of `configs/evaluate.yaml` and `configs/evaluate_fresh.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from videomamba_depth.configuration.schema import FlowConfig, TeacherConfig
from videomamba_depth.data.synthetic import CameraMotion, SceneFamily
from videomamba_depth.evaluation.worlds import KIND_SEEDS
from videomamba_depth.utils.device import DTYPES
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.settings import choice, device_name, file_name, path, ranged, text


@dataclass(frozen=True, kw_only=True)
class SyntheticEvalConfig:
    """Fresh synthetic worlds with exact ground truth."""

    videos: int = ranged(1, 10_000)
    frames: int = ranged(1, 100_000)
    seed: int = ranged(0, 2**40)
    world: str = choice(*get_args(SceneFamily))
    motion: str = choice(*get_args(CameraMotion))
    height: int = ranged(16, 4096)
    width: int = ranged(16, 4096)


@dataclass(frozen=True, kw_only=True)
class RgbdEvalConfig:
    """How depth images beside colour images are read."""

    depth_scale: float | None = ranged(0, 1e9, None, open="low")
    invalid: float = ranged(-1e9, 1e9, 0.0)
    intrinsics: str | None = path(None)
    poses: str | None = path(None)
    max_depth_m: float = ranged(0, 1e6, open="low")
    crop_px: int = ranged(0, 4096)


@dataclass(frozen=True, kw_only=True)
class HtmlConfig:
    """The page beside JSON and Markdown, and which rows its pictures show besides the students."""

    enabled: bool
    rows: list[str] = text()
    video_frames: int = ranged(0, 100_000)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """`configs/evaluate.yaml`."""

    checkpoint: str | list[str] = path(named=True)
    input: str = path()
    output: str | None = path(None)
    name: str = file_name()
    synthetic: SyntheticEvalConfig
    rgbd: RgbdEvalConfig
    flow: FlowConfig
    html: HtmlConfig
    input_size: int | None = ranged(14, 8192, None)
    max_frames: int | None = ranged(1, 10**9, None)
    max_side: int = ranged(16, 8192)
    max_gt_side: int | None = ranged(16, 8192, None)
    palindrome: bool
    cut_frames: int = ranged(0, 10**6)
    precision: str = choice("auto", *DTYPES)
    device: str = device_name()
    threads: int | None = ranged(1, 1024, None)


SPLITS = {"final": ("courtyard", 3_000_000_000), "tuning": ("rooms", 2_500_000_000)}
"""Family and first seed of each set of fresh worlds. Training draws its seeds below 2³¹, so neither is ever seen."""


@dataclass(frozen=True, kw_only=True)
class FreshWorldsConfig:
    """How many fresh worlds of which size, see `WorldSet`."""

    videos: int = ranged(0, 10_000)
    frames: int = ranged(2, 100_000)
    long_videos: int = ranged(0, 10_000)
    long_frames: int = ranged(2, 100_000)
    height: int = ranged(16, 4096)
    width: int = ranged(16, 4096)
    max_depth_m: float = ranged(0, 1e6, open="low")
    first_seed: int | None = ranged(0, 2**40, None)


@dataclass(frozen=True, kw_only=True)
class EvaluateFreshConfig:
    """`configs/evaluate_fresh.yaml`."""

    checkpoint: str | list[str] = path(named=True)
    memory: list[float] = ranged(0, 1e6, open="low")
    teacher: TeacherConfig
    output: str = path()
    name: str = file_name()
    cache: str = path()
    split: str = choice(*SPLITS)
    worlds: FreshWorldsConfig
    kinds: list[str] = choice(*KIND_SEEDS, length=(1, 64))
    flow: FlowConfig
    html: HtmlConfig
    input_size: int | None = ranged(14, 8192, None)
    workers: int = ranged(1, 256)


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
