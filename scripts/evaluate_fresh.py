"""Judge students on worlds that nobody has seen: `python scripts/evaluate_fresh.py checkpoint=...`."""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported, by the workers too

import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tqdm import tqdm

from videomamba_depth.configuration.build_evaluate import load_all, score_fresh_world, show_fresh_world, world_set
from videomamba_depth.configuration.cli import hydra_entry
from videomamba_depth.configuration.evaluate_schema import EvaluateFreshConfig, name_checkpoints
from videomamba_depth.evaluation.fresh import Scores
from videomamba_depth.evaluation.fresh_report import fresh_markdown
from videomamba_depth.evaluation.html import fresh_page, write_html
from videomamba_depth.evaluation.paired import compare
from videomamba_depth.evaluation.report import write_json, write_text
from videomamba_depth.evaluation.summary import versions
from videomamba_depth.evaluation.worlds import KIND_SEEDS, WorldSet, WorldSpec
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.lock import exclusive


def main(config: EvaluateFreshConfig) -> None:
    """Score every world, print the report, write JSON, Markdown and HTML."""
    with ExitStack() as held:
        evaluate(config, held)


def evaluate(config: EvaluateFreshConfig, held: ExitStack) -> None:
    """Do what `main` says; `held` keeps the lock of the outputs."""
    worlds = world_set(config)
    specs = [spec for spec in worlds.specs() if spec.kind in config.kinds]
    if not specs:
        raise UserError(f"nothing to evaluate: kinds={config.kinds} names no kind with videos")
    checkpoints = name_checkpoints(config.checkpoint)
    teacher, students = load_all(
        config.teacher.name,
        tuple(checkpoints.items()),
        tuple(config.memory),
        config.input_size,
        (worlds.height, worlds.width),
    )
    folder = Path(config.output)
    held.enter_context(exclusive(folder / f".{config.name}.lock", f"evaluation '{folder / config.name}'"))
    names = [student.name for student in students]
    task = partial(score_fresh_world, config=config)
    jobs = [(spec, is_shown(spec, worlds)) for spec in specs]
    scores: dict[str, dict[str, Scores]] = {}
    with tqdm(desc="worlds", total=len(jobs), unit="world", smoothing=0.0) as bar:
        for spec, rows in zip(specs, run_all(task, jobs, config.workers), strict=True):
            scores.setdefault(spec.kind, {})[spec.name] = rows
            bar.set_postfix_str(spec.name, refresh=False)
            bar.update()
    result = {
        "kinds": {kind: compare(list(videos.values()), names) for kind, videos in scores.items()},
        "videos": scores,
        "worlds": asdict(worlds),
        "specs": {spec.name: asdict(spec) for spec in specs},
        "protocol": {
            "alignment": "one affine per video to the ground truth, except where a metric's name says otherwise",
            "flow of the filters": f"{config.flow.name}, from the pictures",
            "averaging": "pixels of a frame, then frames; then mean ± standard error over videos",
        },
        "metadata": {
            "teacher": teacher.encoder.model_id,
            "teacher_digest": teacher.digest,
            "checkpoints": checkpoints,
            "weights_sha256": {student.name: student.weights_sha256 for student in students},
            "command": " ".join(["python", *sys.argv]),
        },
        "versions": versions(),
    }
    text = fresh_markdown(result)
    paths = [write_json(result, folder / f"{config.name}.json"), write_text(folder / f"{config.name}.md", text)]
    if config.html.enabled:
        pictures = {spec.kind: [show_fresh_world(spec, config)] for spec, shown in jobs if shown}
        paths.append(write_html(fresh_page(result, pictures), folder / f"{config.name}.html"))
    print(text)
    print(f"wrote {', '.join(map(str, paths))}")


def is_shown(spec: WorldSpec, worlds: WorldSet) -> bool:
    """Return whether pictures are made of this world: the first of each kind, but for long streams."""
    return spec.kind != "long" and spec.seed == worlds.seed + KIND_SEEDS[spec.kind]


def run_all(task: partial[Scores], jobs: list[tuple[WorldSpec, bool]], workers: int) -> Iterator[Scores]:
    """Yield the scores of the jobs in their order, from one process or several."""
    if workers <= 1:
        yield from map(task, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(task, jobs)


if __name__ == "__main__":
    hydra_entry("evaluate_fresh", EvaluateFreshConfig, main)
