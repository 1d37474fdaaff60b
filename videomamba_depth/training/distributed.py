"""The few things that a run under torchrun needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from videomamba_depth.utils.device import resolve_device
from videomamba_depth.utils.environment import launch
from videomamba_depth.utils.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place in the run; a run without torchrun is rank 0 of 1."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True for the one process that writes files and logs."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of `x` over all ranks, without gradient."""
        if self.world_size > 1:
            x = x.detach().clone()
            distributed.all_reduce(x)
        return x

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is True on any rank."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item() > 0)

    def gather(self, value: T) -> list[T]:
        """Return every rank's `value`, which can be pickled, in the order of ranks.

        Raises:
            UserError: another rank has ended early.
        """
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        try:
            distributed.all_gather_object(values, value)
        except RuntimeError as error:  # as Gloo and NCCL report a connection that is gone
            raise UserError("another process of this run has ended early; run again, which continues") from error
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            distributed.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait for all ranks at the end of the block; where one of them raises in it, all do.

        Raises:
            UserError: another rank failed; its own message names the reason.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        failed = self.any(error is not None)
        if error is not None:
            raise error
        if failed:
            raise UserError("another process of this run failed; its own line names the reason")


def start_ranks(device_name: str, patience: timedelta | None = None) -> Ranks:
    """Join the process group that torchrun announces in the environment, if any.

    Args:
        device_name: "auto" (CUDA where there is one), "cpu" or "cuda".
        patience: how long a rank waits for the slowest; None: PyTorch's 10 or 30 minutes.

    Raises:
        UserError: the environment says something else than torchrun would, or a CUDA device is missing.
    """
    rank, local_rank, world_size = launch()
    use_cuda = device_name == "cuda" or (device_name == "auto" and torch.cuda.is_available())
    device = resolve_device(f"cuda:{local_rank}") if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    if world_size > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if use_cuda else "gloo", timeout=patience)
    return Ranks(rank, world_size, device)


@contextmanager
def only_deterministic(enabled: bool) -> Iterator[None]:
    """Refuse operations that do not give the same bits every time, inside the block.

    Raises:
        UserError: naming the operation.
    """
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be reproducible, see its manual
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        operation = str(error).split(" does not")[0]
        raise UserError(
            f"trainer.deterministic=true: {operation} is not reproducible on this device; nothing was updated. Train on"
            " trainer.device=cpu, or set trainer.deterministic=false"
        ) from error
    finally:
        torch.use_deterministic_algorithms(False)


def stop_ranks() -> None:
    """Leave the process group, if there is one."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
