"""Judge a student beside its teacher and the trivial filters of it: `python scripts/evaluate.py checkpoint=...`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from videomamba_depth.configuration.build import build_flow_estimator
from videomamba_depth.configuration.cli import hydra_entry
from videomamba_depth.configuration.evaluate_schema import EvaluateConfig
from videomamba_depth.data.sources import find_sources
from videomamba_depth.data.synthetic import WorldConfig, render_video
from videomamba_depth.data.video_io import iter_frames, probe_video
from videomamba_depth.evaluation.clips import EvaluationClip, clip_from_synthetic
from videomamba_depth.evaluation.protocol import evaluate_videos
from videomamba_depth.evaluation.report import table, write_json, write_markdown
from videomamba_depth.evaluation.rgbd import load_rgbd
from videomamba_depth.models.checkpoint import load_student, load_teacher
from videomamba_depth.models.encoder_da import hash_tensors
from videomamba_depth.models.state import DepthState
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.utils.precision import autocast, resolve_device, resolve_dtype

log = logging.getLogger(__name__)


def main(config: EvaluateConfig) -> None:
    """Evaluate, print the table, write JSON and Markdown."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.precision, device)
    student = load_student(config.checkpoint, config.input_size).to(device)
    own = student.encoder if student.encoder.frozen else load_teacher(config.checkpoint, config.input_size).to(device)

    def teacher(frame: Tensor) -> Tensor:
        with autocast(device, dtype):
            return own.predict_depth(frame.to(device)).float().cpu()

    clips = list(find_clips(config)) if config.input != "synthetic" else synthetic_clips(config)
    total = config.synthetic.videos if config.input == "synthetic" else len(clips)
    with tqdm(desc="clips", total=total, unit="clip") as bar:
        result = evaluate_videos(
            counted(clips, bar),
            teacher,
            lambda: student_stream(student, device, dtype),
            depth_kind=student.depth_kind,
            flow=build_flow_estimator(config.flow, device),
            max_side=config.max_side,
            max_frames=config.max_frames,
            palindrome=config.palindrome,
            metadata={
                "checkpoint": config.checkpoint,
                "weights_sha256": hash_tensors(student.student_state_dict().items()),
                "input": config.input,
                "command": " ".join(["python", *sys.argv]),
            },
        )
    folder = Path(config.output)
    paths = write_json(result, folder / f"{config.name}.json"), write_markdown(result, folder / f"{config.name}.md")
    print(table(result["mean"]))
    print(f"\nwrote {paths[0]} and {paths[1]}")


def student_stream(student: VideoMambaDepth, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return a fresh stream: a function from the next frame to its depth."""
    states: DepthState | None = None

    def step(frame: Tensor) -> Tensor:
        nonlocal states
        with torch.no_grad(), autocast(device, dtype):
            depth, states = student.step(frame.to(device), states)
        return depth.float().cpu()

    return step


def synthetic_clips(config: EvaluateConfig) -> Iterator[EvaluationClip]:
    """Render fresh worlds one after another."""
    s = config.synthetic
    world = WorldConfig(s.height, s.width, s.frames, family=s.world, camera_motion=s.motion)  # type: ignore[arg-type]
    for seed in range(s.seed, s.seed + s.videos):
        yield clip_from_synthetic(f"{s.world}-{s.motion}-{seed}", render_video(seed, world))


def find_clips(config: EvaluateConfig) -> Iterator[EvaluationClip]:
    """Yield an RGB-D folder where `rgbd.depth_scale` is given, else every video at or below `input`."""
    if config.rgbd.depth_scale is not None:
        yield load_rgbd(
            config.input,
            depth_scale=config.rgbd.depth_scale,
            invalid_value=config.rgbd.invalid,
            intrinsics=config.rgbd.intrinsics,
            poses=config.rgbd.poses,
            max_depth_m=config.rgbd.max_depth_m,
        )
        return
    for source in find_sources(config.input):
        fps = probe_video(source.path).fps
        yield EvaluationClip(source.video_id, (frame.rgb for frame in iter_frames(source.path)), fps=fps)


def counted(clips: Iterator[EvaluationClip] | list[EvaluationClip], bar: tqdm) -> Iterator[EvaluationClip]:
    """Pass clips on and move the bar when each is done with."""
    for clip in clips:
        bar.set_postfix_str(clip.name)
        yield clip
        bar.update()


if __name__ == "__main__":
    hydra_entry("evaluate", EvaluateConfig, main)
