"""Train a streaming student: `python train.py [group=choice] [key=value]`; the README lists examples."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from videomamba_depth.configuration.build import build_trainer
from videomamba_depth.configuration.cli import hydra_entry
from videomamba_depth.configuration.old_keys import renamed_values
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.data.sampling import loader_errors
from videomamba_depth.training.distributed import only_deterministic, start_ranks, stop_ranks
from videomamba_depth.training.run_folder import RunFolder
from videomamba_depth.utils.errors import building
from videomamba_depth.utils.settings import to_values
from videomamba_depth.utils.signals import STOPPED_STATUS

log = logging.getLogger(__name__)


def main(config: TrainConfig) -> None:
    """Train, or continue, the run that `config` describes."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        config = replace(config, run_dir=HydraConfig.get().runtime.output_dir)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    with building("trainer.device"):
        ranks = start_ranks(config.trainer.device)
    run, resolved = RunFolder(config.run_dir), to_values(config)
    try:
        with ExitStack() as stack:
            with ranks.together():
                if ranks.is_main:  # one lock for all ranks
                    stack.enter_context(run.locked())
                    run.check_config(resolved, partial(renamed_values, schema=TrainConfig))
                    run.write_config(resolved)
            trainer = build_trainer(config, ranks, run, resolved)
            with only_deterministic(config.trainer.deterministic), loader_errors():
                finished = trainer.fit()
    finally:
        stop_ranks()
    if not finished:
        sys.exit(STOPPED_STATUS)
    log.info("student: %s", run.last)


if __name__ == "__main__":
    hydra_entry("train", TrainConfig, main)
