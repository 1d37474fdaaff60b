"""Fixtures that several packages' tests share."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# `import tiny`, `import media`, `import commands`; the other test files are imported by their own names.
sys.path.insert(0, str(Path(__file__).parent))

NO_ZARR = "needs zarr, which needs Python 3.11 or newer"

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What imports have made stays: the collector of cycles need not go over it at every test."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Skip what Python 3.10 cannot run for want of Zarr; one test or fixture may run a command that says so."""
    report = yield
    if sys.version_info < (3, 11) and report.failed and NO_ZARR in str(call.excinfo and call.excinfo.value):
        report.outcome, report.longrepr = "skipped", (str(item.path), item.location[1], f"Skipped: {NO_ZARR}")
    return report


@pytest.fixture(scope="session")
def tiny_teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny relative Depth Anything checkpoint on disk."""
    from tiny import save_tiny_teacher

    return save_tiny_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def tiny_encoder(tiny_teacher_folder: str):
    """The same, loaded; anew for every file of tests, since streams and trainers change the memory format."""
    from videomamba_depth.models.encoder_da import DepthAnythingEncoder

    return DepthAnythingEncoder.from_pretrained(tiny_teacher_folder)


@pytest.fixture(autouse=True)
def root_logger_as_before() -> Iterator[None]:
    """A command that a test runs in this process configures logging for that test alone."""
    root = logging.getLogger()
    level, handlers = root.level, set(root.handlers)
    yield
    root.setLevel(level)
    for handler in set(root.handlers) - handlers:
        if not type(handler).__module__.startswith("_pytest."):
            root.removeHandler(handler)


@pytest.fixture
def no_tf32() -> Iterator[None]:
    """Products and convolutions of float32 on CUDA are not rounded to TF32."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value
