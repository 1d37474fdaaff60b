"""Labels that a training makes for itself before it begins: the offline targets of its videos."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from videomamba_depth.configuration.build import (
    build_encoder,
    build_flow_estimator,
    build_started,
    build_teacher,
    flow_key,
)
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.data.dataset_video import VideoClipDataset
from videomamba_depth.data.labels.windowed_target import WindowedTarget
from videomamba_depth.data.video.find import VIDEO_SUFFIXES, VideoSource, hash_source, summarize
from videomamba_depth.data.video.info import VideoReadError
from videomamba_depth.models.encoder_da import Teacher
from videomamba_depth.streaming.offline import OfflineDepth
from videomamba_depth.streaming.sinks.open import exact_sink
from videomamba_depth.streaming.sources.open import open_file
from videomamba_depth.training.run_folder import RunFolder
from videomamba_depth.utils.atomic import write_json
from videomamba_depth.utils.checkpoint import whole_folder
from videomamba_depth.utils.errors import UserError, building

log = logging.getLogger(__name__)

_KEY = ".offline.json"  # what decides the labels of a video; hidden: no part of their digest


def write_offline_labels(config: TrainConfig, device: torch.device) -> None:
    """Write the offline targets of every video of `data.root` into `data.labels`, but for those that are there.

    Videos that are too short for `data.clip_frames` are left out.

    Each video is written atomically. One that cannot be read is left out, with a warning; of a damaged one the frames
    that can be read are labeled.

    Raises:
        UserError: no videos that can be used, no teacher, a `model.start` that cannot be gone on from, or a disk that
            is full.
    """
    root = config.data.root or ""
    usable = VideoClipDataset(root, clip_frames=config.data.clip_frames, playback=config.data.playback).sources
    teacher = build_teacher(config.teacher, device, config.data.transform.short_side)
    about = teacher.cache_key() | {"flow": flow_key(config.reference_flow), "targets": 1}
    problems: dict[str, str] = {}
    is_checked = config.model.start is None
    for source in usable:
        folder = Path(config.data.labels or "") / _name_of(source)
        try:
            key = about | {"video": hash_source(source.path)}
            if _read_key(folder) != key:
                if not is_checked:  # not after hours of labeling
                    with building("model.start"):
                        build_started(
                            config.model, build_encoder(config.model, teacher, device), RunFolder(config.run_dir)
                        )
                    is_checked = True
                _write(source, folder, key, config, teacher, device)
        except VideoReadError as error:
            problems[source.video_id] = str(error)
            log.warning("no labels of %s: %s", source.video_id, error)
    if len(problems) == len(usable):
        raise UserError(f"none of the {len(usable)} videos in {root} can be read: {summarize(problems)}")


def _name_of(source: VideoSource) -> Path:
    """Return where `find_recorded_depth` looks for a video's depth."""
    path = Path(source.video_id)
    path = path if not path.is_absolute() and ".." not in path.parts else Path(path.name)
    return path.with_suffix("") if path.suffix.lower() in VIDEO_SUFFIXES else path


def _read_key(folder: Path) -> Any:
    try:
        return json.loads((folder / _KEY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(
    source: VideoSource, folder: Path, key: dict[str, Any], config: TrainConfig, teacher: Teacher, device: torch.device
) -> None:
    frames = open_file(Path(source.path))
    targets = WindowedTarget(build_flow_estimator(config.reference_flow, device), teacher.depth_kind)
    offline = OfflineDepth(teacher, targets, device=str(device), resolution="model")
    with (
        whole_folder(folder) as staging,
        tqdm(total=frames.num_frames, unit="frame", desc=f"labels of {frames.name}", disable=None) as progress,
    ):
        sink, count = exact_sink(staging, teacher.depth_kind), 0
        try:
            for count, frame in enumerate(offline.depth_frames(iter(frames)), 1):  # noqa: B007
                sink.write(frame)
                progress.update()
        except VideoReadError as error:
            if not count:
                raise
            log.warning("labels of its first %d frames alone: %s", count, error)
        sink.close()
        write_json(staging / _KEY, key)
    log.info("wrote %s, the labels of %s", folder, source.video_id)
