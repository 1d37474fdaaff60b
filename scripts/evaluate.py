"""Judge a student beside its teacher and the trivial filters of it: `python scripts/evaluate.py checkpoint=...`."""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported; its idle threads spin

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor

from videomamba_depth.configuration.build import build_flow_estimator
from videomamba_depth.configuration.build_evaluate import load_students
from videomamba_depth.configuration.cli import hydra_entry
from videomamba_depth.configuration.evaluate_schema import EvaluateConfig, name_checkpoints
from videomamba_depth.data.synthetic import WorldConfig, iter_video
from videomamba_depth.data.video.find import VideoSource, find_sources
from videomamba_depth.data.video.reader import iter_frames, probe_video
from videomamba_depth.evaluation.baselines import default_baselines
from videomamba_depth.evaluation.clips import ClipSource, EvaluationClip, clip_from_synthetic
from videomamba_depth.evaluation.datasets.rgbd import find_sequences, load_rgbd
from videomamba_depth.evaluation.feature_average import FEATURE_ROW, feature_average_stream
from videomamba_depth.evaluation.html import Gallery, clips_page, write_html
from videomamba_depth.evaluation.memory import Stream
from videomamba_depth.evaluation.progress import EvaluationBar
from videomamba_depth.evaluation.protocol import evaluate_videos
from videomamba_depth.evaluation.report import to_markdown, write_json, write_markdown
from videomamba_depth.models.checkpoint import student_weights
from videomamba_depth.models.depth_state import DepthState
from videomamba_depth.models.encoder_da import hash_tensors
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.utils.device import autocast, resolve_device, resolve_dtype
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.lock import exclusive

log = logging.getLogger(__name__)


def main(config: EvaluateConfig) -> None:
    """Evaluate, print the table, write JSON, Markdown and HTML; exit with 1 where clips had to be left out."""
    with ExitStack() as held:
        evaluate(config, held)


def evaluate(config: EvaluateConfig, held: ExitStack) -> None:
    """Do what `main` says; `held` keeps the lock of the outputs."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
        cv2.setNumThreads(config.threads)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.precision, device)
    checkpoints = name_checkpoints(config.checkpoint)
    if not checkpoints:
        raise UserError("no student to evaluate: give checkpoint=runs/NAME/last, or a list of NAME:PATH")
    own, students = load_students(checkpoints, config.input_size)
    flow = build_flow_estimator(config.flow, device)
    for model in (own, *students.values()):
        model.to(device)

    def teacher(frame: Tensor) -> Tensor:
        with torch.no_grad(), autocast(device, dtype):
            return own.predict_depth(frame.to(device)).float().cpu()

    folder = Path(config.output or Path(next(iter(checkpoints.values()))).parent / "evaluation")
    held.enter_context(exclusive(folder / f".{config.name}.lock", f"evaluation '{folder / config.name}'"))
    so_far = [folder / f"{config.name}.so_far{suffix}" for suffix in (".json", ".md")]

    def keep(result: Mapping[str, Any]) -> None:
        write_json(result, so_far[0])
        write_markdown(result, so_far[1])

    gallery = Gallery([*config.html.rows, *checkpoints], config.html.video_frames)
    clips = synthetic_clips(config) if config.input == "synthetic" else find_clips(config)
    runs = int(config.palindrome) + int(config.cut_frames > 0)
    bar = EvaluationBar(len(clips), 2 + len(default_baselines()) + len(students), runs * len(students))
    result = evaluate_videos(
        bar.over(clips),
        teacher,
        {name: partial(student_stream, model, device, dtype) for name, model in students.items()},
        untrained={FEATURE_ROW: lambda: on_device(feature_average_stream(own, flow), device, dtype)},
        depth_kind=own.depth_kind,
        flow=flow,
        max_side=config.max_side,
        max_gt_side=config.max_gt_side,
        max_frames=config.max_frames,
        palindrome=config.palindrome,
        cut_frames=config.cut_frames,
        metadata={
            "checkpoints": checkpoints,
            "weights_sha256": {n: hash_tensors(student_weights(m).items()) for n, m in students.items()},
            "teacher": own.model_id,
            "teacher_sha256": own.weights_sha256(),
            "input": config.input,
            "command": " ".join(["python", *sys.argv]),
        },
        viewer=gallery if config.html.enabled else None,
        progress=bar,
        keep=keep,
        skip_unusable=True,
    )
    paths = [write_json(result, folder / f"{config.name}.json"), write_markdown(result, folder / f"{config.name}.md")]
    if config.html.enabled:
        paths.append(write_html(clips_page(result, gallery.pictures()), folder / f"{config.name}.html"))
    for path in so_far:
        path.unlink()
    print(to_markdown(result, per_clip=False))
    print(f"\nwrote {', '.join(map(str, paths))}", flush=True)
    if result["skipped"]:
        sys.exit(1)


def on_device(stream: Stream, device: torch.device, dtype: torch.dtype) -> Stream:
    """Return a stream that computes on `device` under autocast and takes and returns tensors of the CPU."""

    def step(frame: Tensor) -> Tensor:
        with torch.no_grad(), autocast(device, dtype):
            return stream(frame.to(device)).float().cpu()

    return step


def student_stream(student: VideoMambaDepth, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return a fresh stream: a function from the next frame to its depth."""
    states: DepthState | None = None

    def step(frame: Tensor) -> Tensor:
        nonlocal states
        with torch.no_grad(), autocast(device, dtype):
            depth, states = student.step(frame.to(device), states)
        return depth.float().cpu()

    return step


def synthetic_clips(config: EvaluateConfig) -> list[ClipSource]:
    """Return fresh worlds, rendered one after another when their turn comes."""
    s = config.synthetic
    world = WorldConfig(s.height, s.width, s.frames, family=s.world, camera_motion=s.motion)  # type: ignore[arg-type]

    def render(name: str, seed: int) -> EvaluationClip:
        return clip_from_synthetic(name, iter_video(seed, world))

    names = {f"{s.world}-{s.motion}-{seed}": seed for seed in range(s.seed, s.seed + s.videos)}
    return [ClipSource(name, partial(render, name, seed)) for name, seed in names.items()]


def find_clips(config: EvaluateConfig) -> list[ClipSource]:
    """Return the RGB-D sequences of `input` where `rgbd.depth_scale` is given, else every video at or below it."""
    if config.rgbd.depth_scale is None:
        return [ClipSource(source.video_id, partial(open_video, source)) for source in find_sources(config.input)]
    load = partial(
        load_rgbd,
        depth_scale=config.rgbd.depth_scale,
        invalid_value=config.rgbd.invalid,
        intrinsics=config.rgbd.intrinsics,
        poses=config.rgbd.poses,
        max_depth_m=config.rgbd.max_depth_m,
        crop_px=config.rgbd.crop_px,
        max_frames=config.max_frames,
    )
    return [ClipSource(sequence.name, partial(load, sequence)) for sequence in find_sequences(config.input)]


def open_video(source: VideoSource) -> EvaluationClip:
    """Open a video; its frames are decoded as they are asked for."""
    fps = probe_video(source.path).fps
    return EvaluationClip(source.video_id, (frame.rgb for frame in iter_frames(source.path)), fps=fps)


if __name__ == "__main__":
    hydra_entry("evaluate", EvaluateConfig, main)
