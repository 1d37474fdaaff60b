"""Train a streaming student from a frozen Depth Anything teacher, on videos without ground truth.

    videomamba-depth train experiment=demo                                  # built-in worlds, minutes on a CPU
    videomamba-depth train teacher=depth_anything_v2 data=video_folder data.root=videos name=mine
    videomamba-depth train experiment=adapt data.root=clip.mp4              # a student for this video alone
    videomamba-depth train name=short trainer.steps=500 trainer.device=cpu  # single keys

The student goes to runs/NAME/last, the log beside it. Stop it at any time: the same command continues.
"""

from __future__ import annotations

import logging
import shlex
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from videomamba_depth.configuration.build import build_trainer
from videomamba_depth.configuration.cli import hydra_entry, sweep_folder
from videomamba_depth.configuration.offline_labels import write_offline_labels
from videomamba_depth.configuration.old_keys import upgraded_values
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.data.sampling import loader_errors
from videomamba_depth.data.video.find import is_list
from videomamba_depth.training.distributed import only_deterministic, start_ranks, stop_ranks
from videomamba_depth.training.run_folder import RunFolder
from videomamba_depth.utils.device import use_threads
from videomamba_depth.utils.errors import building
from videomamba_depth.utils.settings import to_values
from videomamba_depth.utils.signals import STOPPED_STATUS

log = logging.getLogger(__name__)


def main(config: TrainConfig) -> None:
    """Train, or continue, the run that `config` describes."""
    config = replace(config, run_dir=sweep_folder() or config.run_dir)
    use_threads(config.trainer.threads)
    with building("trainer.device"):
        ranks = start_ranks(config.trainer.device)
    run, resolved = RunFolder(config.run_dir), to_values(config)
    try:
        with ExitStack() as stack:
            with ranks.together():
                if ranks.is_main:  # one lock for all ranks
                    stack.enter_context(run.locked())
                    run.check_config(resolved, partial(upgraded_values, schema=TrainConfig))
                    run.write_config(resolved)
                    if config.data.offline_labels:
                        write_offline_labels(config, ranks.device)
            trainer = build_trainer(config, ranks, run, resolved)
            with only_deterministic(config.trainer.deterministic), loader_errors():
                finished = trainer.fit()
    finally:
        stop_ranks()
    if not finished:
        sys.exit(STOPPED_STATUS)
    log.info("student: %s", run.last)
    root = config.data.root
    if root is not None and Path(root).expanduser().is_file() and not is_list(root):
        stream = "python inference_streaming.py" if sys.argv[0].endswith(".py") else "videomamba-depth stream"
        keys = (f"checkpoint={run.last}", f"input={root}", "output=out/")
        log.info("stream the video with it: %s %s", stream, shlex.join(keys))


def run() -> None:
    """Run the command line."""
    hydra_entry("train", TrainConfig, main)


if __name__ == "__main__":
    run()
