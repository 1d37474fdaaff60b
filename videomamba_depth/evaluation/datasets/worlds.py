"""Synthetic worlds as evaluation clips: pictures, exact ground truth, and the flow that a user would estimate.

A world is rendered once and kept as a folder of plain arrays, memory-mapped, so that the length of a stream costs no
memory. The folder's name holds a digest of its description and of the code that made it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from videomamba_depth.data.synthetic import SceneFamily, WorldConfig
from videomamba_depth.evaluation.cache import digest, kept_arrays
from videomamba_depth.evaluation.clips import ClipSource, EvaluationClip, world_clip
from videomamba_depth.evaluation.code_digest import code_digest
from videomamba_depth.evaluation.datasets.world_kinds import KINDS, render_world
from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.utils.settings import choice, ranged


@dataclass(frozen=True, kw_only=True)
class WorldSet:
    """Which worlds are evaluated on.

    world: scene family. seed: of the first world of each kind; training draws below 2³¹, so larger ones are never
    trained on. videos, frames: of each of `kinds`; long_videos, long_frames: of the kind "long". height, width: px.
    max_depth_m: farther ground truth does not count.
    """

    world: SceneFamily = "courtyard"
    seed: int = ranged(0, 2**40, 3_000_000_000)
    kinds: tuple[str, ...] = choice(*KINDS, default=("moving", "fast", "static", "long"), length=(1, 64))
    videos: int = ranged(0, 10_000, 16)
    frames: int = ranged(2, 100_000, 48)
    long_videos: int = ranged(0, 10_000, 4)
    long_frames: int = ranged(2, 100_000, 500)
    height: int = ranged(16, 4096, 112)
    width: int = ranged(16, 4096, 140)
    max_depth_m: float = ranged(0, 1e6, 30.0, open="low")

    def specs(self) -> list[WorldSpec]:
        """Return every world of the set, kind by kind."""
        return [
            WorldSpec(kind, self.seed + KINDS[kind].seed + i, frames, self.world, self.height, self.width)
            for kind in self.kinds
            for videos, frames in [
                (self.long_videos, self.long_frames) if kind == "long" else (self.videos, self.frames)
            ]
            for i in range(videos)
        ]

    def sources(self, cache: Path | None, flow: FlowEstimator, flow_name: str) -> list[ClipSource]:
        """Return every world as a clip, grouped by kind; `flow` estimates the motion that filters read."""
        return [
            ClipSource(
                spec.name,
                partial(load_world, cache, spec, flow, flow_name, self.max_depth_m),
                group=spec.kind,
                digest=partial(digest, world_digest(spec, flow_name), self.max_depth_m),
                keep_depth=True,
            )
            for spec in self.specs()
        ]


@dataclass(frozen=True)
class WorldSpec:
    """One world; kind: of `KINDS`."""

    kind: str
    seed: int
    frames: int
    family: str
    height: int
    width: int

    @property
    def name(self) -> str:
        return f"{self.family}-{self.kind}-{self.seed}"

    def config(self) -> WorldConfig:
        """Return what the renderer takes."""
        motion = KINDS[self.kind].camera_motion
        return WorldConfig(self.height, self.width, self.frames, family=self.family, camera_motion=motion)  # type: ignore[arg-type]


def world_digest(spec: WorldSpec, flow_name: str) -> str:
    """Return what names a world and the code that makes it."""
    return digest(asdict(spec), asdict(spec.config()), flow_name, code_digest(render_world.__module__))


def load_world(
    cache: Path | None, spec: WorldSpec, flow: FlowEstimator, flow_name: str = "dis", max_depth_m: float = 30.0
) -> EvaluationClip:
    """Return a world from its folder in `cache`; render it first where it is not there yet."""
    make = partial(render_world, spec.kind, spec.seed, spec.config(), flow)
    if cache is None:
        return world_clip(spec.name, make(), max_depth_m)
    folder = cache / "worlds" / f"{spec.name}-{spec.frames}-{world_digest(spec, flow_name)}"
    return world_clip(spec.name, kept_arrays(folder, make), max_depth_m)
