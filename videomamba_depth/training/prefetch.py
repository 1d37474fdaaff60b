"""Clips are labeled one batch ahead of the one that is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from videomamba_depth.training.labeller import LabelledClip


class LabelledClips:
    """The labeled clips of a stream of batches, in its order; one more is labeled in a thread while one is trained on.

    Labeling depends on nothing that training changes, so that the clips are to the bit those that are labeled when they
    are asked for. What it raises is raised when its clip is asked for, hence at the same step.

    Args:
        batches: of `data.dataset_video`; read in that thread alone.
        label: returns the labeled clips of a batch.
        device: that labels are worked out on.
        ahead: False labels when asked, in the caller's thread.
    """

    def __init__(
        self,
        batches: Iterator[dict[str, Any]],
        label: Callable[[dict[str, Any], torch.device], LabelledClip],
        device: torch.device,
        ahead: bool = True,
    ) -> None:
        self._batches, self._label, self._device = batches, label, device
        self._thread = ThreadPoolExecutor(1, "labels", _enter_thread, (device,)) if ahead else None
        self._next: Future[LabelledClip] | None = None

    def take(self) -> LabelledClip:
        """Return the next labeled clip, waiting for it."""
        if self._thread is None:
            return self._work_out()
        future, self._next = self._next or self._thread.submit(self._work_out), None
        return future.result()

    def begin_next(self) -> None:
        """Start on the clip after: to be called where it will be wanted."""
        if self._thread is not None and self._next is None:
            self._next = self._thread.submit(self._work_out)

    def close(self) -> None:
        """Wait for the clip that is being labeled, if any, and drop it."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _work_out(self) -> LabelledClip:
        return self._label(next(self._batches), self._device)


def _enter_thread(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of this thread
    # Never left: leaving a thread's outermost autocast drops the casts of all threads, and the student's weights would
    # be cast anew in the middle of a forward pass, whose gradients then add up in another order.
    torch.autocast(device.type, enabled=False).__enter__()
