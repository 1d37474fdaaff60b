"""Score students beside their teacher and its filters: stability, never without its guards.

    videomamba-depth evaluate checkpoint=runs/demo/last                        # worlds with exact depth
    videomamba-depth evaluate checkpoint=runs/demo/last input=clip.mp4         # a video, without ground truth
    videomamba-depth evaluate checkpoint=[a:runs/a/last,b:runs/b/last] preset=held_out
    videomamba-depth evaluate prediction=[a:depth/a,b:depth/b] input=videos   # what any two programs have recorded

    videomamba-depth evaluate check=true input=dataset prediction=a:depth/a   # are scale, units and frames right?

A table is printed; the report goes to `evaluation/` beside the run's checkpoints.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported, by workers too; its idle threads spin

import multiprocessing
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
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
from videomamba_depth.evaluation.check import check_report
from videomamba_depth.evaluation.engine import ClipResult, collect
from videomamba_depth.evaluation.progress import EvaluationBar
from videomamba_depth.evaluation.report import to_markdown, write_json, write_markdown
from videomamba_depth.utils.arguments import called_command
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
    evaluator, sources = evaluation.evaluator, evaluation.sources
    protocol, students = evaluator.protocol, sum(m.trained and m.new_stream is not None for m in evaluator.methods)
    again = (int(protocol.palindrome) + int(protocol.cut_frames > 0)) * students
    bar = EvaluationBar(len(sources), len(evaluator.methods), again)
    if config.workers == 1:
        for source in bar.over(sources):
            yield source.name, evaluator.attempt(source, bar, draw=source.name in evaluation.drawn)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.workers, spawn, initializer=start_worker, initargs=(config,)) as pool:
        results = pool.map(evaluate_in_worker, range(len(sources)))
        for source in bar.over(sources):
            yield source.name, next(results)


def run() -> None:
    """Run the command line."""
    hydra_entry("evaluate", EvaluateConfig, main)


if __name__ == "__main__":
    run()
