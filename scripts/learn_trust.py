#!/usr/bin/env python
"""Teach a student how far it may believe parallax: `python scripts/learn_trust.py runs/NAME/last runs/NAME/with_trust`.

Worlds are rendered, the student watches them with geometry in the stream, and a small network learns from their exact
depth which of the corrections to believe (docs/geometry.md). The student that is written is the same but for that
network, which `geometry=true` then uses. What was rendered is kept in --work-dir: the same command goes on where it
was stopped.
"""

import argparse
import logging
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videomamba_depth.data.synthetic import iter_video
from videomamba_depth.evaluation.cache import digest, kept_arrays
from videomamba_depth.evaluation.clips import world_arrays
from videomamba_depth.evaluation.code_digest import code_digest
from videomamba_depth.evaluation.datasets.worlds import WorldSpec
from videomamba_depth.flow.frame_view import in_memory
from videomamba_depth.models.checkpoint import (
    TRUST,
    TRUST_CHANNELS,
    load_student,
    read_description,
    save_student_like,
    student_folder,
    student_weights,
)
from videomamba_depth.models.parallax_trust import ParallaxTrust
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.training.parallax_trust import Example, errors, errors_of_decoder, learn, record
from videomamba_depth.utils.arguments import path_argument, positive, whole
from videomamba_depth.utils.atomic import disk_errors
from videomamba_depth.utils.checkpoint import STEP, hash_tensors, staging_folder, whole_folder
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError, exit_on_user_error
from videomamba_depth.utils.lock import exclusive
from videomamba_depth.utils.logger import configure_logging

log = logging.getLogger("learn_trust")

FIRST_SEED = 20_000_000  # of the worlds
WORLDS = ("rooms", "clutter", "rooms", "bodies", "rooms", "tabletop", "rooms", "corridor", "rooms", "terrain")
"""Scene families in turn; every other world is three times as fast, and the other ones in the next turn."""
PLACES = ("folder", "model_id", "teacher")  # of a description of an encoder: none of them changes what it sees
ERRORS = ("one alignment per video", "one per frame", "change over time", "gradients")
ASIDE = 7  # every so-many-th world is not learned from


def world(index: int, args: argparse.Namespace) -> WorldSpec:
    """Return what is rendered as the index-th world."""
    turn, place = divmod(index, len(WORLDS))
    kind = ("moving", "fast")[(turn + place) % 2]
    return WorldSpec(kind, FIRST_SEED + index, args.frames, WORLDS[place], args.height, args.width)


@cache
def watching(checkpoint: str, short_side: int | None) -> VideoMambaDepth:
    """Return the student with plain geometry, once per process."""
    return load_student(checkpoint, short_side, geometry=True, trust=False)


def example(index: int, folder: Path, args: argparse.Namespace) -> Path:
    """Return the folder of what the index-th world's parallax says; render and watch it where there is none."""
    spec = world(index, args)

    def make() -> dict[str, np.ndarray]:
        arrays = world_arrays(iter_video(spec.seed, spec.config()), in_memory)
        torch.set_num_threads(1)
        student = watching(args.checkpoint, args.short_side)
        return record(student, arrays["rgb"][:], arrays["depth_m"][:]).arrays()

    kept_arrays(folder / spec.name, make)
    return folder / spec.name


def examples(args: argparse.Namespace) -> Iterator[Example]:
    """Return what the parallax of all worlds says, in order."""
    student = watching(args.checkpoint, args.short_side)
    assert student.geometry is not None
    about = read_description(args.checkpoint)
    encoder = {key: value for key, value in about["encoder"].items() if key not in PLACES}
    weights = hash_tensors(student.state_dict().items())
    watcher = (weights, encoder, about["temporal"], about["motion"], student.geometry.signature)
    size = (args.frames, args.height, args.width, student.encoder.short_side)
    code = [code_digest(module) for module in (iter_video.__module__, VideoMambaDepth.__module__)]
    folder = args.work_dir / digest(*watcher, *size, *code)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, spawn) as pool:
        made = pool.map(partial(example, folder=folder, args=args), range(args.worlds))
        try:
            for number, path in enumerate(made, 1):
                if number % 10 == 0 or number == args.worlds:
                    log.info("%d of %d worlds", number, args.worlds)
                yield Example.from_arrays({file.stem: np.load(file, allow_pickle=False) for file in path.glob("*.npy")})
        except BrokenProcessPool as error:
            raise UserError(
                "a process that renders was killed, for memory maybe; the same command with fewer --workers goes on"
            ) from error


def report(name: str, trust: ParallaxTrust, some: list[Example], with_shift: bool) -> None:
    """Log by how much the errors differ from the decoder's, with the trust and without."""
    with torch.no_grad():
        learned, plain = (
            np.array([errors(x, x.parallax.shown(correction(x.parallax)), with_shift) for x in some])
            for correction in (trust, lambda parallax: parallax.correction)
        )
    decoder = np.array([errors_of_decoder(x, with_shift) for x in some])
    changes, before = (100 * (values / decoder - 1) for values in (learned, plain))
    apart = changes - before
    spread = apart.std(0, ddof=1) / len(some) ** 0.5 if len(some) > 1 else np.full(len(ERRORS), np.nan)
    for column, kind in enumerate(ERRORS):
        log.info(
            "%s (%d worlds), %s: error %+.1f %% of the decoder's with what was learned, %+.1f without: %+.1f ± %.1f",
            name, len(some), kind, changes[:, column].mean(), before[:, column].mean(), apart[:, column].mean(),
            spread[column],
        )  # fmt: skip


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a student: runs/NAME/last, embedded, or owner/name of the hub")
    parser.add_argument("output", type=path_argument, help="folder of the student that is written")
    parser.add_argument("--work-dir", type=path_argument, default=Path("runs/trust"), help="what was rendered")
    parser.add_argument("--worlds", type=whole(ASIDE), default=160)
    parser.add_argument("--frames", type=whole(8, 10_000), default=48, help="of each of them")
    parser.add_argument("--height", type=whole(32, 4096), default=112, help="of the pictures, px")
    parser.add_argument("--width", type=whole(32, 4096), default=140, help="likewise")
    parser.add_argument("--short-side", type=whole(14, 4096), help="that the student sees; default: the checkpoint's")
    parser.add_argument("--channels", type=whole(1, 1024), default=16, help="of each layer of the network")
    parser.add_argument("--steps", type=whole(20), default=12_000, help="a world each")
    parser.add_argument("--lr", type=positive, default=2e-3, help="of AdamW, the highest")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--threads", type=whole(1), default=1, help="of the training")
    parser.add_argument("--workers", type=whole(1), default=2, help="processes that render")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(argv)
    configure_logging()
    description = read_description(args.checkpoint)
    if not description.get("motion"):
        raise UserError(
            f"geometry follows the optical flow between frames; '{args.checkpoint}' was trained without any"
        )
    if os.path.lexists(args.output):
        raise UserError(f"'{args.output}' exists already; name another folder")
    _check_writable(args.output)
    with exclusive(args.work_dir / "lock", f"work folder '{args.work_dir}'"):
        seen = list(examples(args))
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    trust = ParallaxTrust(args.channels)
    with_shift = load_student(args.checkpoint).depth_kind is not DepthKind.METRIC
    aside = seen[ASIDE - 1 :: ASIDE]
    others = [x for index, x in enumerate(seen) if index % ASIDE != ASIDE - 1]
    learn(trust, others, args.steps, args.lr, args.seed, with_shift)
    report("learned from", trust, others, with_shift)
    report("set aside", trust, aside, with_shift)
    write(args, description, trust)
    log.info("wrote %s: evaluate and stream it with geometry=true", args.output)


def write(args: argparse.Namespace, description: dict[str, Any], trust: ParallaxTrust) -> None:
    """Write the student with the trust into a new folder, which appears when it is complete."""
    weights = student_weights(load_student(args.checkpoint, trust=False))
    weights |= {f"{TRUST}{name}": tensor for name, tensor in trust.state_dict().items()}
    encoder = _seen_from(args.output, student_folder(args.checkpoint), description["encoder"])
    extra = {STEP: description[STEP]} if STEP in description else None
    like = {**description, TRUST_CHANNELS: trust.channels}
    with whole_folder(args.output) as staging:
        save_student_like(staging, weights, like, encoder, description.get("input_size"), extra)


def _check_writable(output: Path) -> None:
    """Refuse a folder that cannot be made, before anything is rendered or learned for it."""
    staging = staging_folder(output)
    with disk_errors(output):
        staging.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging)


def _seen_from(output: Path, checkpoint: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Return how to find an encoder from another folder than its checkpoint."""
    moved = dict(about)
    if "teacher" in about:
        moved["teacher"] = _seen_from(output, checkpoint, about["teacher"])
    if "folder" in about:
        moved["folder"] = os.path.relpath((checkpoint.resolve() / about["folder"]).resolve(), output.resolve())
    return moved


if __name__ == "__main__":
    with exit_on_user_error():
        main()
