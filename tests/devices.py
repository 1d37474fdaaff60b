"""Devices that a test runs on: the CPU always, a CUDA device with `-m gpu` where there is one."""

from __future__ import annotations

import pytest
import torch

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")],
)
DEVICES = ["cpu", CUDA]
