"""Fresh worlds, rendered once and kept on disk: pictures, exact ground truth, and the flow that a user would have.

A world is a folder of plain arrays (`.npy`, lossless, never pickled) that are memory-mapped, so that the length of a
stream costs no memory. The folder's name holds a digest of its description and of the code that made it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from videomamba_depth.data.synthetic import WorldConfig
from videomamba_depth.evaluation.code_digest import code_digest
from videomamba_depth.evaluation.world_render import render_world
from videomamba_depth.flow.clip_motion import ClipMotion
from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.utils.atomic import disk_errors, sync, sync_tree, write_json
from videomamba_depth.utils.checkpoint import verify_files, write_manifest
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

KIND_SEEDS = {"moving": 0, "fast": 10_000, "static": 20_000, "long": 30_000}
"""Kinds of videos, and where the seeds of each begin behind the first seed of the set."""


@dataclass(frozen=True)
class WorldSet:
    """Which worlds are measured on.

    family: scene family. seed: first seed; training draws below 2³¹, so larger ones are never trained on.
    videos, frames: of each of the kinds moving, fast (3× speed) and static. long_videos, long_frames: streams with a
    moving camera. max_depth_m: ground truth beyond it does not count (in the courtyard 30 m leaves out the sky).
    """

    family: str = "courtyard"
    seed: int = 3_000_000_000
    videos: int = 16
    frames: int = 48
    long_videos: int = 4
    long_frames: int = 500
    height: int = 112
    width: int = 140
    max_depth_m: float = 30.0

    def specs(self) -> list[WorldSpec]:
        """Return every world of the set, kind by kind."""
        counts = dict.fromkeys(("moving", "fast", "static"), (self.videos, self.frames))
        counts["long"] = (self.long_videos, self.long_frames)
        return [
            WorldSpec(kind, self.seed + KIND_SEEDS[kind] + i, frames, self.family, self.height, self.width)
            for kind, (videos, frames) in counts.items()
            for i in range(videos)
        ]


@dataclass(frozen=True)
class WorldSpec:
    """One world; kind as in `KIND_SEEDS`."""

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
        motion = "moving" if self.kind == "long" else self.kind
        return WorldConfig(self.height, self.width, self.frames, family=self.family, camera_motion=motion)  # type: ignore[arg-type]


@dataclass(frozen=True)
class World:
    """A rendered world of F frames of H×W px; arrays are read-only.

    rgb: uint8 [F,H,W,3]. depth_m: float32 [F,H,W]. flow_fwd: float32 [F,2,H,W] px, exact, t → t+1, and visible_fwd:
    bool [F,H,W], seen there. speed_px: float32 [F,H,W], exact |flow| t → t−1. flow_bwd: float32 [F,2,H,W] px, t → t−1,
    estimated from the pictures; trusted_bwd: bool [F,H,W], it passes every check (`trust_mask`); consistent_bwd: the
    forward-backward check alone.
    """

    spec: WorldSpec
    folder: Path
    rgb: np.ndarray
    depth_m: np.ndarray
    flow_fwd: np.ndarray
    visible_fwd: np.ndarray
    speed_px: np.ndarray
    flow_bwd: np.ndarray
    trusted_bwd: np.ndarray
    consistent_bwd: np.ndarray

    def estimated_motion(self) -> ClipMotion:
        """Return the estimated motion towards the past, which is all that a causal filter may read."""
        nothing = np.broadcast_to(np.float32(0), self.flow_bwd.shape)
        nowhere = np.broadcast_to(np.bool_(False), self.trusted_bwd.shape)
        return ClipMotion(np.array(self.flow_bwd), nothing, np.array(self.trusted_bwd), nowhere)


ARRAYS = ("rgb", "depth_m", "flow_fwd", "visible_fwd", "speed_px", "flow_bwd", "trusted_bwd", "consistent_bwd")


def world_folder(root: Path, spec: WorldSpec, flow_name: str) -> Path:
    """Return where a world is kept."""
    about = json.dumps([asdict(spec), asdict(spec.config()), flow_name, code_digest(render_world.__module__)])
    return root / f"{spec.name}-{spec.frames}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"


def load_world(root: Path, spec: WorldSpec, flow: FlowEstimator, flow_name: str = "dis") -> World:
    """Return a world from its folder; render it first where it is not there yet."""
    folder = world_folder(root, spec, flow_name)
    if not is_intact(folder):
        write_folder(folder, render_world(spec.seed, spec.config(), flow), {"world.json": asdict(spec)})
    arrays = {name: read_array(folder / f"{name}.npy") for name in ARRAYS}
    return World(spec, folder, **arrays)


def write_folder(folder: Path, arrays: Mapping[str, np.ndarray], texts: Mapping[str, object]) -> None:
    """Write arrays and JSON files into a new folder, with a manifest, atomically.

    Raises:
        UserError: the disk is full; nothing is left behind.
    """
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
        try:
            for name, values in arrays.items():
                np.save(partial / f"{name}.npy", values, allow_pickle=False)
            for name, value in texts.items():
                write_json(partial / name, value)
            write_manifest(partial)
            sync_tree(partial)
            if not folder.is_dir():  # else another process was faster: what it wrote is the same
                os.replace(partial, folder)
                sync(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def is_intact(folder: Path) -> bool:
    """Return whether a folder of `write_folder` is there; a damaged one is removed, with a warning."""
    if not folder.is_dir():
        return False
    try:
        verify_files(folder, required=True)
    except UserError as error:
        log.warning("%s: made again", str(error).split(";")[0])
        shutil.rmtree(folder)
        return False
    return True


def read_array(path: Path) -> np.ndarray:
    """Return an array of a world, memory-mapped."""
    return np.load(path, mmap_mode="r", allow_pickle=False)
