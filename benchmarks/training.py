"""Where a training step's time goes, and how many steps an hour has, beside another version of this code.

    python benchmarks/training.py --data DIR                                # three sizes, a teacher with random weights
    python benchmarks/training.py --data DIR --sizes 252 --cache            # labels, targets and masks cached before
    python benchmarks/training.py --data DIR --sizes 252 --beside ../old    # another checkout, in turn, and the ratio
    python benchmarks/training.py --data DIR --sizes 252 --beside ../v0.1.0 --recipe-of-0.1.0    # its keys are others

DIR holds videos. Each round is a process of its own that trains a student of the default recipe for a few steps, on a
teacher of the size of Depth Anything V2 Small whose random weights are made on the spot (`--teacher` names another).
Times are CPU times, which other work on the machine changes little: of a thread for the parts, of the process for the
whole; with one thread they are what the steps take on a machine of one core. The loss is printed too: rounds of equal
work have equal ones. The other checkout is taken as it is; with `--cache` it trains from labels live, as the base.
Version 0.1.0 labeled the crops alone, and trained another recipe by default: it is given today's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE_OF_0_1_0 = (
    "loss=stabilised", "loss.target_radius=8", "loss.target_sigma=5.0", "loss.ssi_gradient_weight=1.0",
    "loss.temporal_gradient_weight=3.0", "data.clip_frames=24", "model.motion=flow", "model.output.enabled=true",
    "model.output.gain=0.95", "model.output.coarse_gain=0.2", "model.s0.num_blocks=0", "model.s1.initial_gain=0.7",
    "model.s2.num_blocks=1", "model.s2.initial_gain=0.8", "model.s2.advect=false",
    "model.s3.num_blocks=1", "model.s3.initial_gain=0.8", "model.s3.advect=false",
)  # fmt: skip


def main() -> None:
    """Measure and print."""
    options = _parse()
    with tempfile.TemporaryDirectory() as folder:
        teacher = options.teacher or _random_teacher(Path(folder) / "teacher")
        trees = [REPOSITORY, *([options.beside.resolve()] if options.beside else [])]
        for size in options.sizes:
            cache = _cached(options, teacher, size, Path(folder)) if options.cache else None
            found: dict[Path, list[dict[str, Any]]] = {tree: [] for tree in trees}
            for _ in range(options.rounds):
                for tree in trees:
                    mine = tree == REPOSITORY
                    extra = RECIPE_OF_0_1_0 if options.recipe_of_0_1_0 and not mine else options.override
                    task = {"size": size, "teacher": teacher, "cache": cache if mine else None, "extra": extra}
                    found[tree].append(_in_process(tree, options, task))
            _print(size, found, trees, options)


def _print(size: int, found: dict[Path, list[dict[str, Any]]], trees: list[Path], options: argparse.Namespace) -> None:
    kept = ", from a cache" if options.cache else ""
    later = f" after {options.after}" if options.after else ""
    print(f"\n{size} px{kept}: {options.steps} steps{later} a round, {options.rounds} rounds, medians in s per step")
    columns = [_medians(found[tree]) for tree in trees]
    names = sorted({name for column in columns for name in column}, key=lambda name: -columns[0].get(name, 0.0))
    print(f"{'':24}" + "".join(f"{'now' if i == 0 else 'beside':>10}" for i in range(len(trees))))
    for name in names:
        print(f"{name:24}" + "".join(f"{column.get(name, 0.0):10.3f}" for column in columns))
    totals = [[run["cpu_s"] for run in found[tree]] for tree in trees]
    print(f"{'CPU time':24}" + "".join(f"{statistics.median(total):10.3f}" for total in totals))
    print(f"{'steps per hour':24}" + "".join(f"{3600 / statistics.median(total):10.0f}" for total in totals))
    peaks = [statistics.median(run["peak_mb"] for run in found[tree]) for tree in trees]
    print(f"{'peak memory, MB':24}" + "".join(f"{peak:10.0f}" for peak in peaks))
    for tree, label in zip(trees, ("now", "beside"), strict=False):
        losses = {tuple(run["losses"]) for run in found[tree]}
        print(f"losses {label}: " + " | ".join(" ".join(f"{loss:.6f}" for loss in run) for run in sorted(losses)))
    if len(trees) > 1:
        ratios = [other / mine for mine, other in zip(*totals, strict=True)]
        low, middle, high = statistics.quantiles(ratios * (1 + (len(ratios) == 1)), n=4, method="inclusive")
        print(f"steps per hour, now / beside: median {middle:.2f}, quartiles {low:.2f} and {high:.2f}")


def _medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    names = {name for run in runs for name in run["parts"]}
    return {name: statistics.median(run["parts"].get(name, 0.0) for run in runs) for name in names}


def _in_process(tree: Path, options: argparse.Namespace, task: dict[str, Any]) -> dict[str, Any]:
    """Run `measure` on a checkout in a process of its own and return what it prints last."""
    environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'kernels'}", "OMP_NUM_THREADS": "1"}
    given = task | {
        "data": str(options.data),
        "steps": options.steps,
        "after": options.after,
    }
    command = [sys.executable, __file__, "--task", json.dumps(given)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr.strip().splitlines()[-1]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


class PartTimes:
    """CPU seconds of the parts of a step, each without the parts that it calls."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._thread = threading.local()

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """Return the same function, timed."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            stack = self._thread.__dict__.setdefault("stack", [])
            start = time.thread_time()
            stack.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.thread_time() - start
                self.seconds[part] += whole - stack.pop()
                if stack:
                    stack[-1] += whole

        return wrapped


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Train for a few steps; return CPU seconds per step, of the whole and of its parts, and the losses."""
    import cv2
    import torch

    from videomamba_depth.configuration.build import build_trainer
    from videomamba_depth.configuration.cli import load_config
    from videomamba_depth.configuration.schema import TrainConfig
    from videomamba_depth.training.distributed import Ranks
    from videomamba_depth.training.run_folder import RunFolder
    from videomamba_depth.utils.logger import read_json_lines

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    size, steps = task["size"], task["steps"]
    values = {
        "teacher.name": task["teacher"], "data": "video_folder", "data.root": task["data"], "data.short_side": size,
        "data.crop": f"[{size},{size}]", "data.num_workers": 0, "data.p_single_frame": 0, "trainer.device": "cpu",
        "trainer.logger": "none", "trainer.log_every": 1, "trainer.picture_every": 0,
        "trainer.steps": steps + task["after"],
    }  # fmt: skip
    if task["cache"]:
        values["data.teacher_cache"] = task["cache"]
    config = load_config("train", TrainConfig, [*(f"{key}={value}" for key, value in values.items()), *task["extra"]])
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = build_trainer(config, Ranks(0, 1, torch.device("cpu")), RunFolder(folder), asdict(config))
        trainer._save = lambda: None
        times, start = PartTimes(), time.process_time()
        _watch(trainer, times)
        train_step = trainer._train_step

        def counted(clips: Any) -> Any:
            nonlocal start
            if trainer.step == task["after"]:
                times.seconds.clear()
                start = time.process_time()
            return train_step(clips)

        trainer._train_step = counted
        trainer.fit()
        cpu_s = time.process_time() - start
        losses = [record["loss/total"] for record in read_json_lines(Path(folder) / "metrics.jsonl")][-steps:]
    return {
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "cpu_s": cpu_s / steps,
        "parts": {name: seconds / steps for name, seconds in times.seconds.items()},
        "losses": losses,
    }


def _watch(trainer: Any, times: PartTimes) -> None:
    """Time the parts of a trainer by the names that they have; those that a version lacks are left out."""
    from torch import Tensor

    labeller = trainer.labeller
    for owner, name, part in (
        (labeller, "_encode", "encode"),
        (labeller, "_decode", "teacher's decoder"),
        (labeller, "_offline_target", "smoothed target"),
        (labeller, "_stabilised", "smoothed target"),  # of 0.1.0
        (labeller, "_static", "static masks"),
        (type(labeller.flow), "__call__", "optical flow"),
        (type(labeller.flow), "both_ways", "optical flow"),
        (type(labeller.motion), "__call__", "student's flow, rest"),
        (type(labeller), "__call__", "labels, rest"),
        (type(trainer._forward), "forward", "student, forward"),
        (Tensor, "backward", "backward"),
        (type(trainer.objective), "__call__", "losses"),
        (trainer, "_train_step", "optimizer, rest"),
    ):
        if hasattr(owner, name):
            setattr(owner, name, times.timed(getattr(owner, name), part))
    batches_from = trainer._batches_from

    class Timed:
        """A stream of batches."""

        def __init__(self, start: int) -> None:
            self._batches = batches_from(start)
            self._read = times.timed(lambda: next(self._batches), "reading clips")

        def __iter__(self) -> Timed:
            return self

        def __next__(self) -> dict[str, Any]:
            batch: dict[str, Any] = self._read()
            return batch

    trainer._batches_from = Timed


def _random_teacher(folder: Path) -> str:
    from random_models import build_encoder

    build_encoder("small").save_pretrained(folder)
    return str(folder)


def _cached(options: argparse.Namespace, teacher: str, size: int, folder: Path) -> str:
    """Label the videos, targets and masks included; return the cache."""
    cache = folder / f"cache_{size}"
    command = [
        sys.executable, str(REPOSITORY / "scripts" / "precompute_teacher_depth.py"), f"teacher.name={teacher}",
        f"root={options.data}", f"cache={cache}", f"short_side={size}", "stabilize=true", "device=cpu", "threads=1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    return str(cache)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of videos")
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 252, 392], help="px")
    parser.add_argument("--steps", type=int, default=3, help="of a round; a clip of the default recipe is three")
    parser.add_argument("--after", type=int, default=0, help="steps before those that are measured")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cache", action="store_true", help="label before, and train from the cache")
    parser.add_argument("--beside", type=Path, help="another checkout")
    parser.add_argument(
        "--recipe-of-0.1.0", dest="recipe_of_0_1_0", action="store_true", help="beside is version 0.1.0"
    )
    parser.add_argument("--teacher", help="id or folder")
    parser.add_argument("--override", nargs="*", default=[], help="more of the training's keys, KEY=VALUE")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(measure(json.loads(options.task))))
        sys.exit()
    if options.data is None:
        parser.error("--data names a folder of videos")
    return options


if __name__ == "__main__":
    main()
