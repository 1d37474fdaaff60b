"""Score students beside their teacher and its filters: stability, never without its guards.

    videomamba-depth evaluate checkpoint=runs/demo/last                        # worlds with exact depth
    videomamba-depth evaluate checkpoint=runs/demo/last input=clip.mp4         # a video, without ground truth
    videomamba-depth evaluate checkpoint=[a:runs/a/last,b:runs/b/last] preset=held_out
    videomamba-depth evaluate prediction=[a:depth/a,b:depth/b] input=videos   # what any two programs have recorded
    videomamba-depth evaluate check=true input=dataset prediction=a:depth/a   # are scale, units and frames right?
    torchrun --nproc-per-node 2 -m videomamba_depth.commands.console evaluate checkpoint=runs/demo/last  # shares clips

A table is printed; the report goes to `evaluation/` beside the run's checkpoints.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported, by workers too; its idle threads spin

import multiprocessing
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from videomamba_depth.configuration.build_evaluate import (
    Evaluation,
    build_check,
    build_evaluation,
    evaluate_in_worker,
    start_worker,
)
from videomamba_depth.configuration.cli import hydra_entry
from videomamba_depth.configuration.evaluate_schema import EvaluateConfig
from videomamba_depth.evaluation.cache import digest
from videomamba_depth.evaluation.check import check_report
from videomamba_depth.evaluation.clips import ClipSource
from videomamba_depth.evaluation.context import Progress
from videomamba_depth.evaluation.engine import ClipResult, collect
from videomamba_depth.evaluation.progress import EvaluationBar
from videomamba_depth.evaluation.report import to_markdown, write_csv, write_json, write_markdown
from videomamba_depth.evaluation.sharing import collect_all, evaluate_unclaimed
from videomamba_depth.utils.arguments import called_command
from videomamba_depth.utils.environment import launch
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.extras import require
from videomamba_depth.utils.lock import exclusive


def main(config: EvaluateConfig) -> None:
    """Evaluate, print the table, write JSON, Markdown and HTML; exit with 1 where clips had to be left out.

    With `check`, only look at the first clips, and exit with 1 where something looks wrong.
    """
    if config.check:
        sources, predictions, evaluator = build_check(config)
        text, wrong = check_report(sources, predictions, evaluator)
        print(text, flush=True)
        if wrong:
            sys.exit(1)
        return
    for package in ("jinja2", "matplotlib") if config.html.enabled else ():
        require(package, "the report's page (or take html.enabled=false)")
    shared = launch()
    if shared.world_size > 1:
        if config.cache is None or config.workers > 1:
            raise UserError("torchrun's processes share clips through the cache: set cache=FOLDER and workers=1")
        if shared.rank > 0:
            help_out(build_evaluation(config), config)
            return
    evaluation = build_evaluation(config)
    checkpoints = list(evaluation.metadata["checkpoints"].values())
    predictions = [about["path"] for about in (evaluation.metadata["predictions"] or {}).values()]
    beside = Path([*checkpoints, *predictions, "runs/teacher/last"][0])
    folder = Path(config.output or beside.parent / "evaluation")
    so_far = [folder / f"{config.name}.so_far{suffix}" for suffix in (".json", ".md")]

    def keep(result: Mapping[str, Any]) -> None:
        write_json(result, so_far[0])
        write_markdown(result, so_far[1])

    with exclusive(folder / f".{config.name}.lock", f"evaluation '{folder / config.name}'"):
        result = collect(
            outcomes(evaluation, config),
            evaluation.evaluator,
            metadata={**evaluation.metadata, "command": called_command()},
            keep=keep,
            skip_unusable=True,
        )
        paths = [
            write_json(result, folder / f"{config.name}.json"),
            write_markdown(result, folder / f"{config.name}.md"),
            write_csv(result, folder / f"{config.name}.csv"),
        ]
        if config.html.enabled:
            from videomamba_depth.evaluation.html.page import write_html

            paths.append(write_html(result, folder / f"{config.name}.html"))
        for path in so_far:
            path.unlink()
    print(to_markdown(result, per_clip=False))
    print(f"\nwrote {', '.join(map(str, paths))}", flush=True)
    if result["skipped"]:
        sys.exit(1)


def outcomes(evaluation: Evaluation, config: EvaluateConfig) -> Iterator[tuple[str, ClipResult | UserError]]:
    """Yield name and result of every clip in order, from this process or from several."""
    sources = evaluation.sources
    bar, evaluate = _bar(evaluation), partial(_evaluate, evaluation)
    if launch().world_size > 1:
        evaluate_unclaimed(bar.over(sources), partial(evaluate, progress=bar), _claims(config))
        yield from collect_all(sources, evaluate, _claims(config))
        return
    if config.workers == 1:
        for source in bar.over(sources):
            yield source.name, evaluate(source, progress=bar)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.workers, spawn, initializer=start_worker, initargs=(config,)) as pool:
        results = pool.map(evaluate_in_worker, range(len(sources)))
        for source in bar.over(sources):
            try:
                outcome = next(results)
            except BrokenProcessPool as error:
                raise UserError(
                    f"a worker was killed at '{source.name}' or a clip after it; is memory short? The same command goes"
                    " on with what is kept in cache; fewer workers need less memory"
                ) from error
            yield source.name, outcome


def help_out(evaluation: Evaluation, config: EvaluateConfig) -> None:
    """Evaluate clips that no other process is at; their results stay in the cache, for the process of rank 0."""
    evaluate_unclaimed(evaluation.sources, partial(_evaluate, evaluation), _claims(config))


def _evaluate(evaluation: Evaluation, source: ClipSource, progress: Progress | None = None) -> ClipResult | UserError:
    return evaluation.evaluator.attempt(source, progress, draw=source.name in evaluation.drawn)


def _claims(config: EvaluateConfig) -> Path:
    """Return where clips are claimed: one folder for all evaluations that go over the same clips."""
    about = {key: value for key, value in asdict(config).items() if key not in ("name", "output", "html")}
    return Path(str(config.cache)) / "claims" / digest(about)


def _bar(evaluation: Evaluation) -> EvaluationBar:
    evaluator, sources = evaluation.evaluator, evaluation.sources
    protocol, students = evaluator.protocol, sum(m.trained and m.new_stream is not None for m in evaluator.methods)
    again = (int(protocol.palindrome) + int(protocol.cut_frames > 0)) * students
    return EvaluationBar(len(sources), len(evaluator.methods), again)


def run() -> None:
    """Run the command line."""
    hydra_entry("evaluate", EvaluateConfig, main)


if __name__ == "__main__":
    run()
