"""Names, types and constraints of every key of the training and precompute configs; the YAML files hold the values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from omegaconf import MISSING

from selective_scan import DISCRETIZATIONS
from videomamba_depth.configuration.checks import DTYPES, check_choice, check_positive, check_share
from videomamba_depth.data.synthetic import CameraMotion, SceneFamily
from videomamba_depth.models.encoder_video_mamba import VARIANTS, VideoMambaSpec
from videomamba_depth.models.motion import MOTION_FLOWS, MotionSpec
from videomamba_depth.models.output_state import OutputSpec
from videomamba_depth.models.temporal_mamba import ScaleSpec

# Hydra's structured configs know neither Literal nor `X | None` of a dataclass in every release that we support:
# choices are checked in __post_init__, which also sees the placeholder of a value that is not there yet.


@dataclass
class TeacherConfig:
    """The frozen model that labels frames."""

    name: str = MISSING
    dtype: str = "float32"
    licence: str = ""

    def __post_init__(self) -> None:
        check_choice("teacher.dtype", self.dtype, DTYPES)


@dataclass
class ScaleConfig:
    """The temporal stack of one scale, see `ScaleSpec`."""

    num_blocks: int = MISSING
    d_state: int = MISSING
    d_conv: int = MISSING
    expand: int = MISSING
    heads: int = MISSING
    initial_gain: float = MISSING
    advect: bool = MISSING
    ffn_ratio: float = MISSING
    state_dtype: str = MISSING

    def spec(self, form: str, discretization: str, backend: str | None) -> ScaleSpec:
        """Return what the model is built from."""
        values = {key: getattr(self, key) for key in self.__dataclass_fields__}
        return ScaleSpec(form=form, discretization=discretization, backend=backend, **values)  # type: ignore[arg-type]


@dataclass
class VideoMambaConfig:
    """The encoder of `model.encoder=video_mamba`, see `VideoMambaSpec`; a null takes the variant's value."""

    variant: str = MISSING
    num_layers: int | None = None
    embed_dim: int | None = None
    img_size: int = MISSING
    pretrained: str | None = None

    def __post_init__(self) -> None:
        check_choice("model.video_mamba.variant", self.variant, tuple(VARIANTS))
        if self.num_layers is not None and self.num_layers < 4:
            raise ValueError(f"model.video_mamba.num_layers must be at least 4, one per scale; got {self.num_layers}")
        for name in ("embed_dim", "img_size"):
            if getattr(self, name) is not None:
                check_positive(f"model.video_mamba.{name}", getattr(self, name))

    def spec(self, backend: str | None) -> VideoMambaSpec:
        """Return what the encoder is built from."""
        size = VARIANTS[self.variant]
        num_layers, embed_dim = self.num_layers or size.depth, self.embed_dim or size.embed_dim
        return VideoMambaSpec(num_layers, embed_dim, self.img_size, backend=backend)


@dataclass
class OutputConfig:
    """The recurrent refinement after the decoder, see `OutputSpec`."""

    enabled: bool = MISSING
    gain: float = MISSING
    coarse_gain: float = MISSING
    outlier: float = MISSING
    hidden: int = MISSING

    def spec(self) -> OutputSpec | None:
        """Return what the model is built from; None where it is switched off."""
        return OutputSpec(self.gain, self.coarse_gain, self.outlier, self.hidden) if self.enabled else None


@dataclass
class ModelConfig:
    """The student."""

    encoder: str | None = None
    video_mamba: VideoMambaConfig = field(default_factory=VideoMambaConfig)
    form: str = MISSING
    discretization: str = MISSING
    scan_backend: str | None = None
    train_head: bool = MISSING
    motion: str = MISSING
    motion_flow: str = MISSING
    motion_short_side: int = MISSING
    output: OutputConfig = field(default_factory=OutputConfig)
    s0: ScaleConfig = field(default_factory=ScaleConfig)
    s1: ScaleConfig = field(default_factory=ScaleConfig)
    s2: ScaleConfig = field(default_factory=ScaleConfig)
    s3: ScaleConfig = field(default_factory=ScaleConfig)

    def __post_init__(self) -> None:
        check_choice("model.form", self.form, ("innovation", "plain"))
        check_choice("model.motion", self.motion, ("none", "flow"))
        check_choice("model.motion_flow", self.motion_flow, MOTION_FLOWS)
        check_choice("model.discretization", self.discretization, tuple(DISCRETIZATIONS))

    def motion_spec(self) -> MotionSpec | None:
        """Return what motion is estimated by; None where states stay in place."""
        return MotionSpec(self.motion_flow, self.motion_short_side) if self.motion == "flow" else None


@dataclass
class PerturbConfig:
    """Per-frame damage to the student's input; the teacher sees the clean frames."""

    probability: float = MISSING
    exposure: float = MISSING
    noise: float = MISSING
    jpeg: float = MISSING
    blur: float = MISSING


@dataclass
class DataConfig:
    """Where clips come from and how they are cut."""

    kind: str = MISSING
    root: str | None = MISSING
    clip_frames: int = MISSING
    stride: Any = MISSING  # int or list[int]
    reverse_probability: float = MISSING
    short_side: int = MISSING
    crop: list[int] | None = None
    batch_size: int = MISSING
    p_single_frame: float = MISSING
    flip: bool = MISSING
    colour_jitter: float = MISSING
    perturb: PerturbConfig = field(default_factory=PerturbConfig)
    teacher_cache: str | None = None
    num_workers: int = MISSING
    world: str = "rooms"
    motion: str = "moving"
    num_worlds: int | None = None

    def __post_init__(self) -> None:
        check_choice("data.kind", self.kind, ("synthetic", "video_folder"))
        check_choice("data.world", self.world, get_args(SceneFamily))
        check_choice("data.motion", self.motion, (*get_args(CameraMotion), "mixed"))
        for name in ("clip_frames", "short_side", "batch_size"):
            check_positive(f"data.{name}", getattr(self, name))
        if self.stride != MISSING and not (
            self.strides() and all(type(stride) is int and stride > 0 for stride in self.strides())
        ):
            raise ValueError(f"data.stride must be a positive whole number or a list of them; got {self.stride}")
        check_share("data.reverse_probability", self.reverse_probability)
        check_share("data.p_single_frame", self.p_single_frame)

    def strides(self) -> tuple[int, ...]:
        """Return the distances between frames that a clip may have."""
        return tuple(self.stride) if isinstance(self.stride, Sequence) else (self.stride,)


@dataclass
class FlowConfig:
    """Optical flow and what counts as static."""

    name: str = MISSING
    weights: str | None = MISSING
    max_motion_px: float = MISSING
    max_rgb_change: float = MISSING

    def __post_init__(self) -> None:
        check_choice("flow.name", self.name, ("dis", "dis_fast", "dis_ultrafast", "raft"))


@dataclass
class LossConfig:
    """Weights and forms of the loss terms; a weight of 0 leaves a term out."""

    target: str = MISSING
    target_radius: int = MISSING
    target_sigma: float = MISSING
    ssi_weight: float = MISSING
    ssi_alignment: str = MISSING
    ssi_gradient_weight: float = MISSING
    temporal_gradient_weight: float = MISSING
    temporal_gradient_strides: list[int] = MISSING
    state_smoothness_weight: float = MISSING

    def __post_init__(self) -> None:
        check_choice("loss.target", self.target, ("raw", "stabilised"))
        check_choice("loss.ssi_alignment", self.ssi_alignment, ("frame", "clip", "none"))


@dataclass
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = MISSING
    weight_decay: float = MISSING
    beta1: float = MISSING
    beta2: float = MISSING
    warmup_steps: int = MISSING
    final_lr_ratio: float = MISSING
    grad_clip: float = MISSING
    ema_decay: float = MISSING


@dataclass
class TrainerConfig:
    """The loop."""

    steps: int = MISSING
    chunk_frames: int = MISSING
    reset_probability: float = MISSING
    accumulate: int = MISSING
    precision: str = MISSING
    channels_last: bool = MISSING
    compile: bool = MISSING
    device: str = MISSING
    threads: int | None = None
    seed: int = MISSING
    deterministic: bool = MISSING
    checkpoint_every: int = MISSING
    keep_checkpoints: int = MISSING
    log_every: int = MISSING
    picture_every: int = MISSING
    logger: str = MISSING

    def __post_init__(self) -> None:
        check_choice("trainer.precision", self.precision, ("auto", "float32", "bfloat16", "float16"))
        check_share("trainer.reset_probability", self.reset_probability)
        check_choice("trainer.logger", self.logger, ("tensorboard", "wandb", "none"))
        for name in ("steps", "chunk_frames", "accumulate", "checkpoint_every", "keep_checkpoints", "log_every"):
            check_positive(f"trainer.{name}", getattr(self, name))


@dataclass
class TrainConfig:
    """`configs/train.yaml`."""

    name: str = MISSING
    run_dir: str = MISSING
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)


@dataclass
class PrecomputeConfig:
    """`configs/precompute.yaml`."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    root: str = MISSING
    cache: str = MISSING
    short_side: int = MISSING
    batch_frames: int = MISSING
    store_flow: bool = MISSING
    stabilise: bool = MISSING
    target_radius: int = MISSING
    target_sigma: float = MISSING
    verify: bool = MISSING
    device: str = MISSING
    threads: int | None = None
