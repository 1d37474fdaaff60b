"""Change one thing of a recipe at a time: `python scripts/ablate.py [only=[form,motion]] [seeds=[0,1,2]] [workers=2]`.

Trains what is not trained yet, continues what was cut short, scores all students on the tuning worlds in one call per
seed, and writes a table. Run it again to go on.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from videomamba_depth.configuration.ablate_schema import RECIPE, AblateConfig, AblationRun, list_runs
from videomamba_depth.configuration.cli import hydra_entry, load_config
from videomamba_depth.configuration.evaluate_schema import EvaluateConfig
from videomamba_depth.configuration.old_keys import upgraded_values
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.evaluation.ablation import ablation_markdown, over_seeds, summarize
from videomamba_depth.evaluation.cache import write_text
from videomamba_depth.evaluation.report import write_json
from videomamba_depth.evaluation.summary import versions
from videomamba_depth.training.run_folder import RunFolder
from videomamba_depth.utils.arguments import called_command
from videomamba_depth.utils.checkpoint import list_steps
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.logger import read_json_lines
from videomamba_depth.utils.settings import to_values

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
_children: set[subprocess.Popen[str]] = set()


def main(config: AblateConfig) -> None:
    """Train, evaluate and write the table, seed by seed."""
    runs, groups = list_runs(config), config.groups()
    _ = load_config(
        "evaluate", EvaluateConfig, [*config.evaluation, "checkpoint=[]"]
    )  # a slip shows before hours of training
    waiting = [run for run in runs if not is_finished(run)]
    log.info("%d runs, %d of them finished", len(runs), len(runs) - len(waiting))
    failed: dict[str, str] = {}
    seen: list[AblationRun] = []
    for seed in config.seeds:
        failed |= train_all([run for run in waiting if run.seed == seed], config.workers)
        seen += [run for run in runs if run.seed == seed and run.name not in failed]
        evaluate(config, groups, seen, failed)
    if failed:
        sys.exit(1)


def is_finished(run: AblationRun) -> bool:
    """Return whether a run has reached its last step.

    Raises:
        UserError: its overrides are wrong, or the folder holds a run with other settings.
    """
    train = load_config("train", TrainConfig, list(run.overrides))
    folder = RunFolder(run.folder)
    folder.check_config(to_values(train), partial(upgraded_values, schema=TrainConfig))
    steps = list_steps(folder.checkpoints)
    return bool(steps) and steps[-1] >= train.trainer.steps


def train_all(runs: Sequence[AblationRun], workers: int) -> dict[str, str]:
    """Train `workers` runs at a time, each in a process of one thread; return {run: last line} of those that failed."""
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(train_one, run): run for run in runs}
        try:
            for number, job in enumerate(as_completed(jobs), start=1):
                run, problem = jobs[job], job.result()
                log.info("%d/%d %s %s", number, len(runs), run.name, problem or "done")
                if problem:
                    failed[run.name] = problem
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(_children):
                child.terminate()  # a training saves itself and stops
            raise
    return failed


def train_one(run: AblationRun) -> str:
    """Train one run in a process of its own, its log in `train.log`; return why it failed, or nothing."""
    run.folder.mkdir(parents=True, exist_ok=True)
    path = run.folder / "train.log"
    with path.open("a", encoding="utf-8") as file:
        status = _call([str(ROOT / "train.py"), *run.overrides], file)
    lines = path.read_text(encoding="utf-8").splitlines()
    errors = [line for line in lines if line.startswith("error:")] or lines[-1:]
    return "" if status == 0 else f"exit status {status}: {errors[-1] if errors else ''}"


def final_loss(run: AblationRun) -> float:
    """Return the mean loss over the last fifth of a run's steps; NaN where none is logged."""
    records = [r for r in read_json_lines(RunFolder(run.folder).metrics) if r.get("loss/total") is not None]
    last = [record["loss/total"] for record in records if record["step"] > 0.8 * records[-1]["step"]]
    return sum(last) / len(last) if last else math.nan


def evaluate(config: AblateConfig, groups: dict[str, str], runs: Sequence[AblationRun], failed: dict[str, str]) -> None:
    """Score students in one call of `scripts/evaluate.py`; write `ablation.json` and `ablation.md`."""
    if not any(run.variant == RECIPE for run in runs):
        raise UserError(f"the recipe itself could not be trained; see {Path(config.output) / RECIPE}/*/train.log")
    output = Path(config.output)
    students = ",".join(f"'{run.name}:{run.folder / 'last'}'" for run in runs)
    arguments = [f"checkpoint=[{students}]", f"output={output}", "name=students", f"workers={config.workers}"]
    with (output / "evaluate.log").open("w", encoding="utf-8") as file:
        status = _call([str(ROOT / "scripts/evaluate.py"), *arguments, *config.evaluation], file)
    if status != 0:
        raise UserError(f"scripts/evaluate.py ended with exit status {status}; see {output / 'evaluate.log'}")
    evaluated = json.loads((output / "students.json").read_text(encoding="utf-8"))
    result = report(evaluated, config, groups, runs, failed)
    text = ablation_markdown(result)
    write_json(result, output / "ablation.json")
    log.info("wrote %s and ablation.json beside it", write_text(output / "ablation.md", text))
    print(text)


def report(
    evaluated: dict[str, Any],
    config: AblateConfig,
    groups: dict[str, str],
    runs: Sequence[AblationRun],
    failed: dict[str, str],
) -> dict[str, Any]:
    """Return what `ablation.json` holds."""
    variants = {variant: {run.seed: run.name for run in runs if run.variant == variant} for variant in groups}
    worlds = evaluated["metadata"]["synthetic"]
    seeds = sorted({run.seed for run in runs})
    losses = {variant: over_seeds([final_loss(run) for run in runs if run.variant == variant]) for variant in groups}
    return {
        "about": f"Recipe: experiment={config.recipe} {' '.join(config.base)}".rstrip()
        + f"; seeds {', '.join(map(str, seeds))}; family {worlds['world']}, seeds from {worlds['seed']},"
        f" {worlds['videos']} videos × {worlds['frames']} frames of each kind.",
        "reference": RECIPE,
        "groups": groups,
        "variants": summarize(evaluated["groups"], {name: seeds for name, seeds in variants.items() if seeds}, RECIPE),
        "losses": losses,
        "failed": failed,
        "command": called_command(),
        "versions": versions(),
    }


def _call(arguments: Sequence[str], log_file: Any) -> int:
    """Run a command of ours on one thread; return its exit status."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    child = subprocess.Popen(command, stdout=log_file, stderr=subprocess.STDOUT, env=environment, text=True)
    _children.add(child)
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.terminate()
        raise
    finally:
        _children.discard(child)


if __name__ == "__main__":
    hydra_entry("ablate", AblateConfig, main)
