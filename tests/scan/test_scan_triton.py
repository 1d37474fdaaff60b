"""The Triton backend without a GPU: in Triton's interpreter, and compiled offline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scan_cases import METHODS

pytest.importorskip("triton")

# One of each kind by default: exponential and rational, one tap and two. `-m slow` runs all.
QUICK = ["zoh", "tustin", "conv"]


def interpret(*names: str) -> list[str]:
    """Run checks in a process of their own, in which Triton interprets its kernels."""
    script = Path(__file__).with_name("triton_in_interpreter.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(script), *names], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()


def test_forward_backward_and_step_in_the_interpreter() -> None:
    assert interpret(*QUICK) == [f"{name} agrees" for name in QUICK]


@pytest.mark.slow
def test_every_method_in_the_interpreter() -> None:
    rest = [name for name in METHODS if name not in QUICK]
    assert interpret(*rest) == [f"{name} agrees" for name in rest]


# Bounds of registers for N = 16: 168 lets 12 warps run per scheduler group, 128 lets 16, 255 is the hardware's end.
@pytest.mark.parametrize(
    ("kernel", "method", "capability", "bound"),
    [
        ("scan_forward", "zoh", 90, 96),
        *[
            pytest.param("scan_forward", method, 90, 168, marks=pytest.mark.slow)
            for method in METHODS
            if method != "zoh"
        ],
        *[pytest.param("scan_backward", method, 90, 255, marks=pytest.mark.slow) for method in METHODS],
        pytest.param("scan_forward", "zoh", 80, 128, marks=pytest.mark.slow),
        pytest.param("scan_forward", "zoh", 120, 128, marks=pytest.mark.slow),
    ],
)
def test_offline_compilation_spills_nothing(kernel: str, method: str, capability: int, bound: int) -> None:
    from selective_scan.triton_kernels.offline import kernel_usage

    usage = kernel_usage(kernel, method, capability=capability)
    assert usage.spill_bytes == 0
    assert usage.registers <= bound
    assert usage.barriers == 0
    if kernel == "scan_forward":
        assert usage.shuffles == 0


@pytest.mark.parametrize("kernel", ["conv_forward", "conv_backward"])
def test_offline_compilation_of_the_convolution(kernel: str) -> None:
    from selective_scan.triton_kernels.offline import kernel_usage

    usage = kernel_usage(kernel, states=4)
    assert (usage.spill_bytes, usage.barriers, usage.shuffles) == (0, 0, 0)
    assert usage.registers <= 128
