"""Names, types and constraints of every key of the training and precompute configs; the YAML files hold the values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from selective_scan import DISCRETIZATIONS
from selective_scan.backends import BACKENDS
from videomamba_depth.data.labels.stabilized_cache import TargetSettings
from videomamba_depth.data.playback import Playback
from videomamba_depth.data.synthetic import CameraMotion, SceneFamily
from videomamba_depth.data.transforms import ClipTransform
from videomamba_depth.flow.estimators import FlowSettings
from videomamba_depth.models.encoder_video_mamba import VideoMambaSpec
from videomamba_depth.models.geometry import GeometrySpec
from videomamba_depth.models.input_size import MAX_PIXELS
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.training.objective import Objective
from videomamba_depth.training.settings import OptimSettings, TrainerSettings
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.device import DTYPES
from videomamba_depth.utils.settings import choice, file_name, inlined, like, path, ranged

# Bounds are far beyond what makes sense, so that what is refused is a slip of the keyboard and not an experiment.
_DEVICES = ("auto", "cpu", "cuda")
_COUNT, _PX = 10**9, 8192
_BATCH_FRAMES, _BATCH_PX = 2**14, 2**28  # all frames of a batch; 2^28 px of float32 RGB are 3.2 GB


def _check_sizes(prefix: str, crop: Sequence[int] | None, short_side: int, frames: int, keys: str) -> None:
    """Refuse frames, and batches of them, that nothing could compute.

    Args:
        keys: in full, that `frames` comes from.

    Raises:
        ValueError: naming the keys.
    """
    size = f"{prefix}crop={list(crop)}" if crop else f"{prefix}short_side={short_side}"
    pixels = crop[0] * crop[1] if crop else short_side**2
    if pixels > MAX_PIXELS:
        raise ValueError(f"{size} is too large: a frame may have {MAX_PIXELS / 1e6:.1f} million px")
    if frames > _BATCH_FRAMES or frames * pixels > _BATCH_PX:
        raise ValueError(
            f"{keys} with {size} is too large: {frames} frames of {pixels} px at once; at most {_BATCH_FRAMES} frames"
            f" and {_BATCH_PX / 1e6:.0f} million px are possible"
        )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The frozen model that labels frames."""

    name: str = path()
    dtype: str = choice(*DTYPES, default="float32")
    depth_kind: str | None = choice(*(kind.value for kind in DepthKind), default=None)
    horizontal_fov_deg: float | None = ranged(1, 179, None)
    min_confidence: float = ranged(1, 1e6, 1.0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The student; `scale` is what s0..s3, fine to coarse, have in common."""

    start: str | None = path(None, named=True)
    encoder: str | None = path(None)
    video_mamba: VideoMambaSpec
    form: Literal["innovation", "plain"]
    discretization: str = choice(*DISCRETIZATIONS)
    scan_backend: str | None = choice("auto", *BACKENDS, default=None)
    train_head: bool
    flow: MotionSpec | None
    output: OutputSpec | None
    encode_every: int = ranged(1, 1000, 1)
    geometry: GeometrySpec | None = None
    scale: ScaleSpec
    s0: ScaleSpec = like("scale")
    s1: ScaleSpec = like("scale")
    s2: ScaleSpec = like("scale")
    s3: ScaleSpec = like("scale")

    def temporal(self) -> TemporalSpec:
        """Return the temporal stacks' specification."""
        shared: dict[str, Any] = {
            "form": self.form,
            "discretization": self.discretization,
            "backend": self.scan_backend,
        }
        return TemporalSpec(*(replace(scale, **shared) for scale in (self.s0, self.s1, self.s2, self.s3)))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where clips come from and how they are cut."""

    kind: str = choice("synthetic", "video_folder")
    root: str | None = path()
    clip_frames: int = ranged(1, 100_000)
    playback: Playback = inlined()
    transform: ClipTransform = inlined()
    batch_size: int = ranged(1, 4096)
    p_single_frame: float = ranged(0, 1)
    teacher_cache: str | None = path(None)
    labels: str | None = path(None)
    labels_kind: str | None = choice(*(kind.value for kind in DepthKind), default=None)
    labels_scale: float | None = ranged(0, 1e9, None, open="low")
    labels_check: bool = True
    offline_labels: bool = False
    num_workers: int = ranged(0, 256)
    world: str = choice(*get_args(SceneFamily), default="rooms")
    camera_motion: str = choice(*get_args(CameraMotion), "mixed", default="mixed")
    num_worlds: int | None = ranged(1, _COUNT, None)

    def __post_init__(self) -> None:
        if self.transform.short_side is None:  # a batch's clips are of one size
            raise ValueError("data.short_side must be a number; got null")
        if self.offline_labels and (self.labels is None or self.teacher_cache is not None or self.kind == "synthetic"):
            raise ValueError(
                "data.offline_labels=true makes the labels of data=video_folder, into the folder data.labels=FOLDER and"
                " without data.teacher_cache"
            )
        frames = self.clip_frames * self.batch_size
        keys = f"data.clip_frames={self.clip_frames} with data.batch_size={self.batch_size}"
        _check_sizes("data.", self.transform.crop, self.transform.short_side, frames, keys)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """`configs/train.yaml`."""

    name: str = file_name()
    run_dir: str = path()
    teacher: TeacherConfig
    model: ModelConfig
    data: DataConfig
    loss: Objective
    optim: OptimSettings
    trainer: TrainerSettings
    reference_flow: FlowSettings


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig(TargetSettings):
    """`configs/precompute.yaml`."""

    teacher: TeacherConfig
    reference_flow: FlowSettings
    root: str = path()
    cache: str = path()
    short_side: int = ranged(14, _PX)
    crop: tuple[int, int] | None = ranged(14, _PX, None, length=2)
    batch_frames: int = ranged(1, 4096)
    store_flow: bool
    stabilize: bool
    labels: str | None = path(None)
    labels_kind: str | None = choice(*(kind.value for kind in DepthKind), default=None)
    labels_scale: float | None = ranged(0, 1e9, None, open="low")
    verify: bool
    device: str = choice(*_DEVICES)
    threads: int | None = ranged(1, 1024, None)

    def __post_init__(self) -> None:
        if not self.is_offline and self.stabilize:
            raise ValueError(
                f"target={self.target} is the teacher's depth itself; choose another one, or set stabilize=false"
            )
        _check_sizes("", self.crop, self.short_side, self.batch_frames, f"batch_frames={self.batch_frames}")
