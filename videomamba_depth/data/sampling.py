"""Which items make up batch b on rank r, as a pure function of the seed, and the loader around it."""

from __future__ import annotations

import gc
import itertools
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from videomamba_depth.data.clip import collate_clips
from videomamba_depth.utils.errors import UserError

# Keeps the draws about batches apart from those about items, which use (seed, index, attempt).
_BATCH_STREAM = 0x5EED_BA7C
LOOK_AT_WORKERS_S = 20.0
"""How long a batch may take before the loader processes are looked at."""


class ClipBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yield batches of keys (item index, clip frames) without end.

    Batch b is a function of (seed, b) alone: to resume after b batches, build it with `start_batch=b`. All ranks agree
    on the kind of batch b, and never draw the same item. The state to save is the number of batches consumed by
    training, not by the loader, which prefetches.

    Args:
        batch_size: clips per batch and rank.
        clip_frames: frames per clip; with several numbers, each batch draws one of them.
        rank, world_size: this process among all.
        seed: same on all ranks.
        p_single_frame: probability that a batch is made of single images, which teach appearance without a sequence.
        start_batch: first batch.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(
        self,
        batch_size: int,
        *,
        clip_frames: int | Sequence[int],
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        p_single_frame: float = 0.0,
        start_batch: int = 0,
    ) -> None:
        self.clip_frames = (clip_frames,) if isinstance(clip_frames, int) else tuple(clip_frames)
        self.batch_size = batch_size
        if min(self.batch_size, *self.clip_frames) < 1:
            raise ValueError(f"batch_size and clip_frames must be at least 1; got {batch_size}, {self.clip_frames}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size); got rank {rank} of {world_size}")
        if not 0 <= p_single_frame <= 1:
            raise ValueError(f"p_single_frame must be in [0, 1]; got {p_single_frame}")
        if seed < 0 or start_batch < 0:
            raise ValueError(f"seed and start_batch must not be negative; got {seed} and {start_batch}")
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.p_single_frame = p_single_frame
        self.start_batch = start_batch

    def batch_frames(self, batch: int) -> int:
        """Return the clip length of batch `batch`, the same on all ranks; 1 for a single-image batch."""
        rng = np.random.default_rng((_BATCH_STREAM, self.seed, batch))
        single, choice = rng.random(), int(rng.integers(len(self.clip_frames)))
        return 1 if single < self.p_single_frame else self.clip_frames[choice]

    def keys(self, batch: int) -> list[tuple[int, int]]:
        """Return the keys of batch `batch` on this rank."""
        frames = self.batch_frames(batch)
        first = (batch * self.world_size + self.rank) * self.batch_size
        return [(first + slot, frames) for slot in range(self.batch_size)]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self.keys, itertools.count(self.start_batch))


def build_loader(
    dataset: Dataset[dict[str, Any]],
    batch_sampler: ClipBatchSampler,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
) -> DataLoader[dict[str, Any]]:
    """Wrap a clip dataset in a loader; batches come in the sampler's order and do not depend on `num_workers`.

    Workers use one thread each, for PyTorch, OpenCV and FFmpeg alike, and share no open file.

    Args:
        dataset: a map from (index, clip_frames) to an item.
        batch_sampler: which items, in which order.
        num_workers: loader processes; 0 reads in this process.
        pin_memory: page-locked batches, for quick copies to a GPU.
        prefetch_factor: batches that each worker prepares ahead.
    """
    workers: dict[str, Any] = {}
    if num_workers > 0:
        workers = {
            "prefetch_factor": prefetch_factor,
            "persistent_workers": True,
            "timeout": LOOK_AT_WORKERS_S,
        }
    worker_init: Callable[[int], None] = limit_threads
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        collate_fn=collate_clips,
        pin_memory=pin_memory,
        worker_init_fn=worker_init,
        generator=torch.Generator(),  # of its own: starting a loader must not move the run's random state
        **workers,
    )


def iterate_loader(loader: DataLoader[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Return the batches of a loader; after `LOOK_AT_WORKERS_S` without one its processes are looked at.

    They start here, in the main thread: only there PyTorch notices at once that one has ended. They do not collect the
    garbage of this process: what holds threads, as FFmpeg's scaler does, would wait for them for ever in a fork.

    Raises:
        UserError: on the way, a loader process was killed or stopped, or raised a `UserError`.
    """
    gc.freeze()
    try:
        return _watched(iter(loader))
    finally:
        gc.unfreeze()


def _watched(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    while True:
        try:
            with loader_errors():
                batch = next(batches, None)
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            pid = next((worker.pid for worker in getattr(batches, "_workers", ()) if _is_stopped(worker.pid)), None)
            if pid is not None:
                os.kill(pid, signal.SIGCONT)  # else it could not be ended either
                raise UserError(f"the loader process {pid} was stopped (kill -STOP); run again to go on") from error
            continue
        if batch is None:
            return
        yield batch


@contextmanager
def loader_errors() -> Iterator[None]:
    """Turn the death of a loader process, which is noticed wherever the main process is, into a `UserError`."""
    try:
        yield
    except UserError as error:  # of a loader process: torch puts its traceback into the message
        raise UserError(re.sub(r"^[\w.]+: ", "", str(error).strip().splitlines()[-1])) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "timed out" in str(error):
            raise
        raise UserError(
            f"a loader process has ended ({str(error).strip().splitlines()[0]}), often for want of memory; run again,"
            " with fewer data.num_workers"
        ) from error


def _is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped (SIGSTOP); False where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


def limit_threads(worker: int = 0) -> None:
    """Give this process one thread for PyTorch and none of OpenCV's, whose pool does not survive a fork."""
    del worker
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
