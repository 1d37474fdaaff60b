"""Seeds and deterministic algorithms, from code or from a command line."""

from __future__ import annotations

import argparse
import os
import random
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class DeterminismConfig:
    """The settings in force after `configure_determinism`.

    Attributes:
        seed: of random, numpy and torch (all devices).
        deterministic: torch uses deterministic algorithms only.
        warn_only: an operation without one warns instead of raising.
        cudnn_benchmark: cuDNN picks its algorithms by timing them.
        allow_tf32: matrix products and convolutions on CUDA may round float32 inputs to TF32.
    """

    seed: int = 0
    deterministic: bool = False
    warn_only: bool = True
    cudnn_benchmark: bool = True
    allow_tf32: bool = True


def configure_determinism(
    seed: int,
    deterministic: bool,
    warn_only: bool = True,
    cudnn_benchmark: bool | None = None,
    allow_tf32: bool | None = None,
) -> DeterminismConfig:
    """Seed every generator and choose deterministic algorithms; returns what is in force.

    Args:
        seed: ≥ 0.
        deterministic: two runs of the same program are to be equal to the bit.
        warn_only: warn where torch has no deterministic algorithm, instead of raising.
        cudnn_benchmark, allow_tf32: None: the opposite of `deterministic`.
    """
    config = DeterminismConfig(
        seed=seed,
        deterministic=deterministic,
        warn_only=warn_only,
        cudnn_benchmark=not deterministic if cudnn_benchmark is None else cudnn_benchmark,
        allow_tf32=not deterministic if allow_tf32 is None else allow_tf32,
    )
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # CUDA devices too, once they are initialized
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
    if deterministic:
        # cuBLAS reads it when its first handle is made; without it, matrix products may differ between runs.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
    torch.backends.cudnn.allow_tf32 = config.allow_tf32
    return config


def add_determinism_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the flags that `configure_determinism_from_args` reads; returns the parser."""
    group = parser.add_argument_group("determinism")
    group.add_argument("--seed", type=int, default=0, help="seed of random, numpy and torch (default: 0)")
    group.add_argument("--deterministic", action="store_true", help="use deterministic algorithms only")
    group.add_argument(
        "--deterministic-warn-only", action="store_true", help="warn, not fail, where there is no such algorithm"
    )
    for flag, what in (("--cudnn-benchmark", "cuDNN autotuning"), ("--allow-tf32", "TF32 on CUDA")):
        group.add_argument(
            flag, choices=("on", "off", "auto"), default="auto", help=f"{what}; auto: off when --deterministic"
        )
    return parser


def configure_determinism_from_args(args: argparse.Namespace) -> DeterminismConfig:
    """Call `configure_determinism` with the flags of `add_determinism_args`."""
    tristate = {"on": True, "off": False, "auto": None}
    return configure_determinism(
        seed=args.seed,
        deterministic=args.deterministic,
        warn_only=args.deterministic_warn_only,
        cudnn_benchmark=tristate[args.cudnn_benchmark],
        allow_tf32=tristate[args.allow_tf32],
    )
