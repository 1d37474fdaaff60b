#!/usr/bin/env python
"""Show that a streaming student learns from an offline teacher: synthetic videos with labels that know the true flow.

The oracle is the framewise teacher's depth averaged along the exact flow over 16 frames to either side: what a
video-consistent teacher of the same skill would say. `write` renders worlds and writes them as image folders, with the
oracle's depth beside them; `score` evaluates teacher, oracle and students on held-out worlds, and says how much of the
oracle's gain over the teacher a student keeps.

python scripts/offline_to_streaming.py write runs/oracle
python train.py experiment=from_labels data.root=runs/oracle/videos data.labels=runs/oracle/labels name=offline
python scripts/offline_to_streaming.py score offline:runs/offline/last recipe:embedded
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from videomamba_depth.data.labels.pixel_trajectories import ClipTracks
from videomamba_depth.evaluation.code_digest import code_digest
from videomamba_depth.evaluation.context import Context
from videomamba_depth.evaluation.datasets.worlds import WorldSet, WorldSpec, load_world
from videomamba_depth.evaluation.engine import Evaluator, evaluate_clips
from videomamba_depth.evaluation.methods import Method
from videomamba_depth.evaluation.model_methods import student_method, teacher_method
from videomamba_depth.flow.clip_motion import ClipMotion
from videomamba_depth.flow.estimators import build_flow
from videomamba_depth.models.checkpoint import load_student
from videomamba_depth.models.encoder_da import DepthAnythingEncoder, Teacher
from videomamba_depth.utils.arguments import path_argument, whole
from videomamba_depth.utils.atomic import replacing, write_json
from videomamba_depth.utils.errors import UserError, exit_on_user_error
from videomamba_depth.utils.logger import configure_logging

log = logging.getLogger("offline_to_streaming")

RADIUS = 16  # frames to either side
KINDS = ("moving", "static", "fast")  # of the worlds to train on
HEIGHT, WIDTH = 112, 140
METRICS = ("tge", "abs_rel/video", "edge_ratio", "abs_rel/fast_pixels", "lag")


def oracle_depth(depth: np.ndarray, motion: ClipMotion) -> Iterator[np.ndarray]:
    """Yield, for every frame, the mean depth of its points over the frames within `RADIUS` in which they are seen.

    Args:
        depth: [F,H,W] the framewise teacher's.
        motion: exact.
    """
    flow, visible = (motion.flow_fwd[:], motion.flow_bwd[:]), (motion.trusted_fwd[:], motion.trusted_bwd[:])
    tracks = ClipTracks(depth, *flow, *visible)
    for frame in range(len(depth)):
        values, trust = tracks.follow(frame, RADIUS)
        yield (values * trust).sum(0) / trust.sum(0)


def write(output: Path, worlds: int, frames: int, seed: int, teacher_name: str, cache: Path) -> None:
    """Write videos/world-N/*.png and labels/world-N.npz; worlds that are there stay."""
    teacher, flow = DepthAnythingEncoder.from_pretrained(teacher_name), build_flow("dis", None, device="cpu")
    for number in range(worlds):
        name, kind = f"world-{number:03d}", KINDS[number % len(KINDS)]
        labels = output / "labels" / f"{name}.npz"
        if labels.exists():
            continue
        world = load_world(cache, WorldSpec(kind, seed + number, frames, "rooms", HEIGHT, WIDTH), flow)
        assert world.motion is not None
        pictures = output / "videos" / name
        pictures.mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(world.frames):
            cv2.imwrite(str(pictures / f"{index:06d}.png"), picture[..., ::-1])
        rgb = torch.from_numpy(np.stack(list(world.frames))).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            depth = torch.cat([teacher.predict_depth(part) for part in rgb.split(8)])[:, 0].numpy()
        oracle = np.stack(list(oracle_depth(depth, world.motion)))
        labels.parent.mkdir(parents=True, exist_ok=True)
        with replacing(labels) as partial_file, partial_file.open("wb") as file:
            np.savez(file, depth=oracle.astype(np.float32), depth_kind=np.array(teacher.depth_kind.value))
        log.info("%s: %d frames, %s camera", name, frames, kind)


def score(
    checkpoints: list[str], memories: list[float], geometry: bool, cache: Path, output: Path, worlds: WorldSet
) -> None:
    """Write what teacher, oracle and students change on held-out worlds, and print it.

    geometry: also score students that were trained without geometry with it, as NAME+geometry, others without it, as
        NAME-geometry.

    Raises:
        UserError: the students do not have one teacher.
    """
    device, dtype, flow = torch.device("cpu"), torch.float32, build_flow("dis", None, device="cpu")
    students = [(name, path or name) for name, _, path in (checkpoint.partition(":") for checkpoint in checkpoints)]
    models = [(name, path, load_student(path)) for name, path in students]
    teacher = models[0][2].encoder
    if not isinstance(teacher, DepthAnythingEncoder):
        raise UserError(f"{students[0][1]}: the encoder of a student of an oracle is its framewise teacher")
    for name, _, model in models:
        if not isinstance(model.encoder, Teacher) or model.encoder.weights_sha256() != teacher.weights_sha256():
            raise UserError(f"{name} has another teacher than {students[0][0]}: score them one by one")
    if geometry:
        models += [
            (
                f"{name}{'-' if model.geometry else '+'}geometry",
                path,
                load_student(path, geometry=model.geometry is None),
            )
            for name, path, model in models
        ]

    def oracle(context: Context) -> Iterator[np.ndarray]:
        return oracle_depth(np.asarray(context.teacher[:]), context.motion)

    about = f"oracle-{RADIUS}-{code_digest(ClipTracks.__module__)}"
    methods = [teacher_method(teacher, device, dtype), Method("oracle", derive=oracle, digest=about)]
    for name, path, student in models:
        methods += [student_method(name, path, student, memory, device, dtype) for memory in memories]
    evaluator = Evaluator(methods=methods, depth_kind=teacher.depth_kind, flow=flow, flow_name="dis", cache=cache)
    result = evaluate_clips(worlds.sources(cache, flow, "dis"), evaluator, metadata={"checkpoints": checkpoints})
    changes = {
        group: {
            name: {metric: change[metric] for metric in METRICS if metric in change} for name, change in methods.items()
        }
        for group, methods in ((group, summary["changes"]) for group, summary in result["groups"].items())
    }
    for group, methods_of in changes.items():
        for name, change in methods_of.items():
            cells = ", ".join(f"{metric} {_number(change.get(metric))}" for metric in METRICS)
            log.info("%-8s %-12s %s", group, name, cells)
    kept = {
        method.name: {metric: _kept(changes, method.name, metric) for metric in METRICS[:2]} for method in methods[2:]
    }
    write_json(output, {"checkpoints": checkpoints, "changes": _finite(changes), "kept": _finite(kept)})
    log.info("of the oracle's gain over the teacher is kept:")
    for name, shares in kept.items():
        for metric, groups in shares.items():
            log.info(
                "%-16s %-14s %s", name, metric, ", ".join(f"{group} {share:.0%}" for group, share in groups.items())
            )


def _finite(value: Any) -> Any:
    """Return nested values with null for what is not finite, as JSON needs it."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value if value is None or np.isfinite(value) else None


def _kept(changes: dict[str, Any], name: str, metric: str) -> dict[str, float]:
    """Return the share of the oracle's gain in a metric, per kind of world and of the mean; NaN where it has none."""
    gains = {group: [change[method][metric][0] for method in (name, "oracle")] for group, change in changes.items()}
    gains["all"] = [float(np.mean(column)) for column in zip(*gains.values(), strict=True)]
    return {group: student / oracle if oracle < 0 else np.nan for group, (student, oracle) in gains.items()}


def _number(value: tuple[float, float] | None) -> str:
    if value is None or value[0] is None:
        return "-"
    return f"{value[0]:+.1f} ± {value[1]:.1f}" if value[1] is not None else f"{value[0]:+.1f}"


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write", help="render worlds, and write them with the oracle's labels")
    writing.add_argument("output", type=path_argument)
    writing.add_argument("--worlds", type=whole(1, 100_000), default=24)
    writing.add_argument("--frames", type=whole(2, 100_000), default=48)
    writing.add_argument("--seed", type=whole(0, 2**31 - 1), default=700_000)
    writing.add_argument("--teacher", default="embedded", help="the framewise one: a Depth Anything id or folder")
    scoring = commands.add_parser("score", help="evaluate teacher, oracle and students")
    scoring.add_argument("checkpoints", nargs="+", metavar="NAME:FOLDER")
    scoring.add_argument("--memory", nargs="+", type=float, default=[1.0], help="of every student; 1: as trained")
    scoring.add_argument(
        "--geometry", action="store_true", help="score students with and without geometry in the stream"
    )
    scoring.add_argument("--videos", type=whole(1, 10_000), default=4, help="of each kind")
    scoring.add_argument("--frames", type=whole(2, 100_000), default=48, help="of each video")
    scoring.add_argument("--kinds", nargs="+", default=["moving", "fast", "static"])
    scoring.add_argument("--seed", type=whole(0, 2**40), default=3_400_000_000)
    for command in (writing, scoring):
        command.add_argument("--cache", type=path_argument, default=Path("runs/evaluation_cache"), help="of worlds")
    scoring.add_argument("--output", type=path_argument, default=Path("runs/offline_to_streaming.json"))
    args = parser.parse_args(argv)
    configure_logging()
    torch.set_num_threads(1)
    if args.command == "write":
        write(args.output, args.worlds, args.frames, args.seed, args.teacher, args.cache)
        return
    if any(":" not in checkpoint and checkpoint != "embedded" for checkpoint in args.checkpoints):
        raise UserError("name every student: NAME:FOLDER")
    worlds = WorldSet(seed=args.seed, kinds=args.kinds, videos=args.videos, frames=args.frames)
    score(args.checkpoints, args.memory, args.geometry, args.cache, args.output, worlds)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
