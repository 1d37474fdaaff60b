"""Names and types of `configs/evaluate.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from videomamba_depth.configuration.schema import FlowConfig


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


@dataclass
class EvaluateConfig:
    """`configs/evaluate.yaml`."""

    checkpoint: str = MISSING
    input: str = MISSING
    output: str = MISSING
    name: str = MISSING
    synthetic: SyntheticEvalConfig = field(default_factory=SyntheticEvalConfig)
    rgbd: RgbdEvalConfig = field(default_factory=RgbdEvalConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    input_size: int | None = None
    max_frames: int | None = None
    max_side: int = MISSING
    palindrome: bool = MISSING
    precision: str = MISSING
    device: str = MISSING
    threads: int | None = None
