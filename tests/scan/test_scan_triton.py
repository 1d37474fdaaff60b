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


CAPABILITIES = (80, 90, 120)
# Registers at N = 16: 128 lets 16 warps run on a multiprocessor, 168 lets 12, 255 (the hardware's end) 8. A step is the
# forward kernel with L = 1.
BOUNDS = {"scan_forward": 128, "scan_backward": 255}
METHOD_BOUNDS = {("scan_forward", "tustin"): 168}


@pytest.mark.parametrize(
    ("kernel", "method", "capability"),
    [
        ("scan_forward", "zoh", 90),
        *[
            pytest.param(kernel, method, capability, marks=pytest.mark.slow)
            for kernel in BOUNDS
            for method in METHODS
            for capability in CAPABILITIES
            if (kernel, method, capability) != ("scan_forward", "zoh", 90)
        ],
    ],
)
def test_offline_compilation_spills_nothing(kernel: str, method: str, capability: int) -> None:
    pytest.importorskip("triton", minversion="3.3")  # older ones take constants in another way
    from selective_scan.triton_kernels.offline import kernel_usage

    usage = kernel_usage(kernel, method, capability=capability)
    assert usage.spill_bytes == 0
    assert usage.registers <= METHOD_BOUNDS.get((kernel, method), BOUNDS[kernel])
    assert usage.barriers == 0
    if kernel == "scan_forward":
        assert usage.shuffles == 0


@pytest.mark.parametrize("kernel", ["conv_forward", "conv_backward"])
def test_offline_compilation_of_the_convolution(kernel: str) -> None:
    pytest.importorskip("triton", minversion="3.3")  # older ones take constants in another way
    from selective_scan.triton_kernels.offline import kernel_usage

    usage = kernel_usage(kernel, states=4)
    assert (usage.spill_bytes, usage.barriers, usage.shuffles) == (0, 0, 0)
    assert usage.registers <= 128
