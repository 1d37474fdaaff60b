"""Build the parts of a run from the values of its config. Nothing below this package knows of configs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from selective_scan.backends import resolve_backend
from videomamba_depth.configuration.schema import (
    DataConfig,
    ModelConfig,
    TeacherConfig,
    TrainConfig,
)
from videomamba_depth.data.dataset_synthetic import SyntheticClipDataset
from videomamba_depth.data.dataset_video import VideoClipDataset
from videomamba_depth.data.labels.cache_format import StaticKey
from videomamba_depth.data.labels.cache_server import has_content, local_root
from videomamba_depth.data.labels.label_checks import Sample, check_labels
from videomamba_depth.data.labels.label_folder import LabelFolder
from videomamba_depth.data.labels.stabilized_cache import StabilizeKey, TargetSettings
from videomamba_depth.data.labels.teacher_cache import TeacherCacheReader, TeacherKey
from videomamba_depth.data.sampling import ClipBatchSampler, build_loader, iterate_loader
from videomamba_depth.data.synthetic import CameraMotion, WorldConfig
from videomamba_depth.data.transforms import cover_size, resize_depth, resize_images
from videomamba_depth.data.video.find import hash_source
from videomamba_depth.data.video.reader import probe_video, read_frames, read_image
from videomamba_depth.flow.estimators import FlowEstimator, FlowSettings, build_flow
from videomamba_depth.models.checkpoint import (
    describe_encoder,
    describe_video_mamba,
    load_student,
    read_description,
    save_student,
    save_student_like,
)
from videomamba_depth.models.encoder_da import DepthAnythingEncoder, Teacher
from videomamba_depth.models.encoder_video_mamba import VideoMambaEncoder
from videomamba_depth.models.teachers import open_encoder, open_teacher
from videomamba_depth.models.temporal_mamba import TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.training.distributed import Ranks
from videomamba_depth.training.labeller import Labeller
from videomamba_depth.training.run_folder import CONFIG_JSON, LABELS_JSON, RunFolder, RunLog
from videomamba_depth.training.trainer import Trainer
from videomamba_depth.utils.atomic import write_json
from videomamba_depth.utils.depth_kind import DepthKind, can_convert
from videomamba_depth.utils.device import DTYPES, resolve_dtype
from videomamba_depth.utils.errors import UserError, building

log = logging.getLogger(__name__)

_CHECKED_VIDEOS, _CHECKED_FRAMES = 4, 16


@building("teacher.name")
def build_teacher(config: TeacherConfig, device: torch.device, short_side: int | None = None) -> Teacher:
    """Load the frozen teacher."""
    kind = None if config.depth_kind is None else DepthKind(config.depth_kind)
    return open_teacher(
        config.name,
        DTYPES[config.dtype],
        short_side,
        depth_kind=kind,
        horizontal_fov_deg=config.horizontal_fov_deg,
        min_confidence=config.min_confidence,
    ).to(device)


def build_encoder(config: ModelConfig, teacher: Teacher, device: torch.device) -> Teacher | VideoMambaEncoder:
    """Return the student's encoder: the teacher itself, another model that encodes, or a VideoMamba that learns.

    Raises:
        UserError: the teacher only labels, or its depth cannot be what the encoder's decoder gives.
    """
    if config.encoder == "video_mamba":
        if not isinstance(teacher, DepthAnythingEncoder):
            raise UserError(
                f"model.encoder=video_mamba takes its decoder from the teacher, and '{teacher.model_id}' is not Depth"
                " Anything V1 or V2; use one that is, or another encoder"
            )
        spec = replace(config.video_mamba, backend=config.scan_backend)
        with building("model.video_mamba" if spec.pretrained is None else "model.video_mamba.pretrained"):
            return VideoMambaEncoder.from_spec(
                spec, teacher.channels, teacher.depth_kind, max_depth_m=teacher.max_depth_m
            ).to(device)
    if config.encoder is not None and config.encoder != teacher.model_id:
        with building("model.encoder"):
            encoder = open_encoder(config.encoder).to(device)
        if not can_convert(teacher.depth_kind, encoder.depth_kind):
            raise UserError(
                f"model.encoder: '{config.encoder}' gives {encoder.depth_kind.value}, which cannot be learned from the"
                f" {teacher.depth_kind.value} of '{teacher.model_id}'; take an encoder of relative depth"
            )
        return encoder
    if not teacher.encodes:
        raise UserError(
            f"teacher '{teacher.model_id}' only labels: name the student's encoder too, a Depth Anything such as"
            " model.encoder=depth-anything/Depth-Anything-V2-Small-hf or model.encoder=embedded"
        )
    return teacher


@building("reference_flow.weights")
def build_flow_estimator(config: FlowSettings, device: torch.device) -> FlowEstimator:
    """Return the optical flow estimator."""
    return build_flow(config.estimator, config.weights, device=str(device))


def flow_key(config: FlowSettings) -> str:
    """Return what names the estimator in keys of caches: its name, and a digest of its weights where it has some."""
    return config.estimator if config.weights is None else f"{config.estimator}-{hash_source(config.weights)[:12]}"


def stabilize_key(target: TargetSettings, flow: FlowSettings) -> StabilizeKey:
    """Return what says how cached targets are made."""
    return StabilizeKey(target.target_radius, target.target_sigma, flow_key(flow), target.target)


def static_key(flow: FlowSettings) -> StaticKey:
    """Return what says how cached static masks are found."""
    return StaticKey(flow_key(flow), flow.max_motion_px, flow.max_rgb_change)


@building("data")
def build_dataset(
    config: DataConfig,
    seed: int,
    teacher: Teacher,
    stabilized: StabilizeKey | None = None,
    static: StaticKey | None = None,
) -> Dataset[dict[str, Any]]:
    """Return the clips to train on; with `stabilized`, targets made like that are taken from the teacher cache.

    static: of static masks, likewise.
    teacher: labels frames; with `data.labels`, encodes them for the student, whose kind of depth it has.
    """
    if config.kind == "synthetic":
        if config.labels is not None:
            raise UserError("data.labels is for data=video_folder; the synthetic world has no files")
        if config.teacher_cache is not None:
            raise UserError("data.teacher_cache is for data=video_folder; the synthetic world has no cache")
        short_side = config.transform.short_side or 0
        height, width = config.transform.crop or (short_side, short_side * 5 // 4)
        motions = get_args(CameraMotion) if config.camera_motion == "mixed" else (config.camera_motion,)
        worlds = [WorldConfig(height=height, width=width, family=config.world, camera_motion=m) for m in motions]  # type: ignore[arg-type]
        return SyntheticClipDataset(
            worlds,
            clip_frames=config.clip_frames,
            seed=seed,
            transform=config.transform,
            num_worlds=config.num_worlds,
            playback=config.playback,
        )
    cache, labels = None, None
    if config.labels is not None:
        labels = LabelFolder(config.labels, teacher.depth_kind, config.labels_kind, config.labels_scale)
    if config.teacher_cache is not None:
        folder = local_root(config.teacher_cache)
        if not (has_content(config.teacher_cache) if folder is None else folder.is_dir()):
            found = "is not a folder" if folder is not None else "holds nothing"
            raise UserError(
                f"data.teacher_cache: '{config.teacher_cache}' {found}; make it with videomamba-depth precompute, or"
                " set data.teacher_cache=null"
            )
        key = label_key(teacher, labels, config.transform.short_side)
        cache = TeacherCacheReader(config.teacher_cache, key, stabilized, static)
    return VideoClipDataset(
        config.root or "",
        clip_frames=config.clip_frames,
        playback=config.playback,
        seed=seed,
        transform=config.transform,
        teacher_cache=cache,
        labels=labels,
    )


def label_key(teacher: Teacher, labels: LabelFolder | None, short_side: int | None) -> TeacherKey:
    """Return what decides labels in a cache: the teacher's weights, or the files of a folder of labels."""
    key = TeacherKey.from_dict({**teacher.cache_key(), "input_size": short_side})
    if labels is None:
        return key
    return replace(key, model_id=f"labels of {labels.root.name}", weights_sha256=labels.digest(), dtype="float32")


@building("data.labels")
def check_label_folder(dataset: VideoClipDataset, labels: LabelFolder, encoder: Teacher) -> None:
    """Compare the first frames of some videos with the encoder's own depth of them, see `check_labels`."""
    sources, device = dataset.sources, next(encoder.parameters()).device
    samples: dict[str, Sample] = {}
    for source in sources[:: max(1, len(sources) // _CHECKED_VIDEOS)][:_CHECKED_VIDEOS]:
        info = probe_video(source.path)
        indices = range(min(info.num_frames, _CHECKED_FRAMES))
        if len({read_image(path).shape for path in info.image_paths[: len(indices)]}) > 1:
            continue  # stills
        size = cover_size(info.height, info.width, dataset.transform.short_side)[1]
        rgb = resize_images(read_frames(source.path, indices, info=info), size)
        clip = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            depth = torch.cat([encoder.predict_depth(part.to(device)).float() for part in clip.split(4)])[:, 0]
        given = labels.read(source, info, indices)
        if given.shape[1:] != size and not samples:
            level = logging.WARNING if given.shape[1] < size[0] else logging.INFO
            log.log(
                level,
                "labels of %s are %d×%d px, frames %d×%d px: labels are resized",
                source.video_id,
                *given.shape[1:],
                *size,
            )
        samples[source.video_id] = Sample(resize_depth(given, size), depth.cpu().numpy())
    check_labels(samples)


def build_batches(
    dataset: Dataset[dict[str, Any]], config: DataConfig, seed: int, ranks: Ranks
) -> Callable[[int], Iterator[dict[str, Any]]]:
    """Return a function from a batch index to the stream of batches from there on."""

    def batches_from(start: int) -> Iterator[dict[str, Any]]:
        sampler = ClipBatchSampler(
            config.batch_size,
            clip_frames=config.clip_frames,
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=seed,
            p_single_frame=config.p_single_frame,
            start_batch=start,
        )
        pin = ranks.device.type == "cuda"
        return iterate_loader(build_loader(dataset, sampler, num_workers=config.num_workers, pin_memory=pin))

    return batches_from


def build_trainer(config: TrainConfig, ranks: Ranks, run: RunFolder, resolved: dict[str, Any]) -> Trainer:
    """Build everything that a training run is made of.

    Args:
        resolved: the whole config as plain values, for the logs and checkpoints.
    """
    if config.model.scan_backend is not None:
        with building("model.scan_backend"):
            resolve_backend(config.model.scan_backend, ranks.device.type, config.model.discretization, wide=False)
    computed = resolve_dtype(config.trainer.precision, ranks.device)
    if DTYPES[config.teacher.dtype] not in (torch.float32, computed):
        wanted, found = config.teacher.dtype, str(computed).removeprefix("torch.")
        raise UserError(
            f"teacher.dtype={wanted} needs trainer.precision={wanted}; the training computes in {found} here"
        )
    torch.manual_seed(config.trainer.seed)  # one seed for the weights: all ranks start equal
    teacher = build_teacher(config.teacher, ranks.device)
    encoder = build_encoder(config.model, teacher, ranks.device)
    origin: Teacher
    if isinstance(encoder, VideoMambaEncoder):
        assert isinstance(teacher, DepthAnythingEncoder)
        origin, about = teacher, describe_video_mamba(encoder, teacher, "../../encoder")
    else:
        origin, about = encoder, describe_encoder(encoder, "../../encoder")
        config = _with_whole_frames(config, encoder)
    _check_scale(config, encoder, teacher)
    temporal, motion = config.model.temporal(), config.model.flow
    output, geometry, every = config.model.output, config.model.geometry, config.model.encode_every
    like: dict[str, Any] | None = None
    if config.model.start is None:
        with building("model"):
            student = VideoMambaDepth(
                encoder, origin.head, temporal, config.model.train_head, motion, output, geometry, every
            )
    else:
        with building("model.start"):
            student, like = build_started(config.model, encoder, run)
    student.to(ranks.device).train()
    if config.data.labels is not None and isinstance(encoder, DepthAnythingEncoder):
        teacher = encoder  # labels nothing, and has the student's kind of depth
    loss = config.loss
    labeller = Labeller(
        encoder if encoder.frozen else None,
        teacher,
        build_flow_estimator(config.reference_flow, ranks.device) if loss.needs_flow else None,
        config.reference_flow.max_motion_px,
        config.reference_flow.max_rgb_change,
        frames_per_pass=config.data.batch_size * config.trainer.chunk_frames,
        autocast_dtype=None if computed == torch.float32 else computed,
        target=loss,
        motion=student.motion,
        depth_kind=student.depth_kind,
        memory_bytes=int(config.trainer.label_memory_gb * 1e9),
    )
    cached = stabilize_key(loss, config.reference_flow) if loss.is_offline else None
    dataset = build_dataset(config.data, config.trainer.seed, teacher, cached, static_key(config.reference_flow))
    if config.data.labels_check and isinstance(dataset, VideoClipDataset) and dataset.labels is not None:
        check_label_folder(dataset, dataset.labels, teacher)
    labelled_by: TeacherKey | None = None
    with ranks.together():
        if ranks.is_main:
            run.keep_encoder(origin)
            labels = dataset.labels if isinstance(dataset, VideoClipDataset) else None
            if labels is not None or teacher is not origin:
                labelled_by = label_key(teacher, labels, config.data.transform.short_side)
                run.check_labels(labelled_by, teacher)
    return Trainer(
        student,
        labeller,
        build_batches(dataset, config.data, config.trainer.seed, ranks),
        loss,
        config.trainer,
        config.optim,
        ranks,
        run,
        run_log=partial(RunLog, run, backend=config.trainer.logger, config=resolved),
        save_student=student_writer(temporal, about, config, resolved, labelled_by, like),
    )


def build_started(
    config: ModelConfig, encoder: Teacher | VideoMambaEncoder, run: RunFolder
) -> tuple[VideoMambaDepth, dict[str, Any]]:
    """Return a student that goes on from `model.start`, and its description; a run that is continued has its own.

    Raises:
        UserError: there is no such student, its encoder is another, or it lacks a part that the config asks for.
    """
    continued = run.newest_checkpoint()
    place = continued or config.start or ""
    student = load_student(place)
    about = read_description(place)
    if continued is None:
        _check_added_parts(config, about)
    own = student.encoder
    if isinstance(encoder, VideoMambaEncoder) or isinstance(own, VideoMambaEncoder):
        raise UserError("a student with an encoder that learns cannot go on: leave out model.start and video_mamba")
    assert isinstance(own, Teacher)
    if own.weights_sha256() != encoder.weights_sha256():
        raise UserError(
            f"'{config.start}' was trained with the encoder '{own.model_id}', here it is '{encoder.model_id}'; set"
            " teacher.name (or model.encoder) to that one, such as the folder encoder/ of its run"
        )
    student.encoder = encoder  # one for student and teacher
    student.head.requires_grad_(config.train_head)
    student.head.freeze_unused()
    return student, about


def _check_added_parts(config: ModelConfig, about: dict[str, Any]) -> None:
    affine = 0.0 if config.output is None else config.output.affine
    parts = {
        "encode_every": (config.encode_every, 1, about.get("encode_every", 1)),
        "output.affine": (affine, 0.0, (about.get("output") or {}).get("affine", 0.0)),
        "geometry": (config.geometry is not None, False, bool(about.get("geometry"))),
    }
    for key, (wanted, default, own) in parts.items():
        if wanted not in (default, own):
            raise UserError(f"model.{key} is as '{config.start}' was trained, which has none like it; leave it out")


def _with_whole_frames(config: TrainConfig, encoder: Teacher) -> TrainConfig:
    """Return the config with frames that are not cut, for an encoder that is told the field of view of whole ones.

    Raises:
        UserError: the config asks for a crop.
    """
    fov, transform = encoder.options().get("horizontal_fov_deg"), config.data.transform
    if fov is None or config.data.kind == "synthetic":
        return config
    if transform.crop is not None:
        raise UserError(
            f"data.crop={list(transform.crop)} cuts frames for an encoder that is told the field of view of whole ones,"
            f" teacher.horizontal_fov_deg={fov:g}: its meters would be others; set data.short_side alone"
        )
    return replace(config, data=replace(config.data, transform=replace(transform, whole=True)))


def _check_scale(config: TrainConfig, encoder: Teacher | VideoMambaEncoder, teacher: Teacher) -> None:
    """Look whether the student's depth can get the scale of its labels.

    Raises:
        UserError: nothing would teach it the labels' meters.
    """
    labels = config.data.labels
    if teacher is encoder and labels is None:
        return
    is_metric, learns = encoder.depth_kind is DepthKind.METRIC, config.model.train_head or not encoder.frozen
    if is_metric and config.loss.ssi_alignment != "none":
        raise UserError(
            f"loss.ssi_alignment={config.loss.ssi_alignment} is blind to scale and shift: nothing would teach the"
            f" student the meters of '{labels or teacher.model_id}'; set loss.ssi_alignment=none"
            + ("" if learns else " and model.train_head=true")
        )
    if not learns and (is_metric or labels is None):
        log.warning(
            "the decoder of the encoder '%s' is frozen: a single frame keeps the encoder's depth; model.train_head=true"
            " lets it learn that of '%s'",
            getattr(encoder, "model_id", ""),
            labels or teacher.model_id,
        )


def student_writer(
    temporal: TemporalSpec,
    encoder: dict[str, Any],
    config: TrainConfig,
    resolved: dict[str, Any],
    labelled_by: TeacherKey | None,
    like: dict[str, Any] | None = None,
) -> Callable[[Path, dict[str, Tensor], int], None]:
    """Return the function that writes `student.*`, the resolved config and whose labels these are into a checkpoint.

    like: describes the student that this one went on from; None: it is built as the config says.
    """

    def write(folder: Path, weights: dict[str, Tensor], step: int) -> None:
        model, size, extra = config.model, config.data.transform.short_side, {"step": step}
        if like is not None:
            save_student_like(folder, weights, like, encoder, size, extra)
        else:
            parts = (model.flow, model.output, model.geometry, model.encode_every)
            save_student(folder, weights, temporal, encoder, size, extra, *parts)
        write_json(folder / CONFIG_JSON, resolved)
        if labelled_by is not None:
            write_json(folder / LABELS_JSON, asdict(labelled_by))

    return write
