"""A loader process that is killed, stopped or fails ends the run in one line."""

from __future__ import annotations

import gc
import itertools
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from videomamba_depth.data import sampling
from videomamba_depth.data.sampling import ClipBatchSampler, build_loader, iterate_loader
from videomamba_depth.data.video.info import VideoReadError
from videomamba_depth.utils.errors import UserError


class Items(Dataset[dict[str, Any]]):
    """Signals its own process at the second item."""

    def __init__(self, number: int | None) -> None:
        self.number = number

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        if key[0] > 0 and self.number is None:
            raise VideoReadError("clip.mp4: it is damaged")
        if key[0] > 0 and self.number is not None:
            os.kill(os.getpid(), self.number)
        return {"rgb": torch.zeros(1)}


def batches(number: int | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    monkeypatch.setattr(sampling, "collate_clips", lambda items: items[0])
    monkeypatch.setattr(sampling, "LOOK_AT_WORKERS_S", 1.0)
    loader = build_loader(Items(number), ClipBatchSampler(1, clip_frames=1), num_workers=1, prefetch_factor=1)
    return itertools.islice(iterate_loader(loader), 3)


def test_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(UserError, match=r"a loader process has ended .*fewer data\.num_workers"),
        sampling.loader_errors(),
    ):
        list(batches(signal.SIGKILL, monkeypatch))


def test_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="was stopped"):
        list(batches(signal.SIGSTOP, monkeypatch))


def test_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as caught:
        list(batches(None, monkeypatch))
    assert str(caught.value) == "clip.mp4: it is damaged"


class Threaded:
    """Ends any process but its own that collects it, as what waits for threads that a fork lacks would hang there."""

    def __init__(self) -> None:
        self.owner, self.itself = os.getpid(), self

    def __del__(self) -> None:
        if os.getpid() != self.owner:
            os._exit(1)


def test_loader_processes_leave_the_garbage_of_this_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Items, "__getitem__", lambda self, key: {"freed": gc.collect()})
    gc.disable()  # the cycle is still there when the loader starts
    try:
        Threaded()
        assert len(list(batches(None, monkeypatch))) == 3
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()


def test_slow_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Items, "__getitem__", lambda self, key: (__import__("time").sleep(1.5), {"n": key[0]})[1])
    assert len(list(batches(None, monkeypatch))) == 3
