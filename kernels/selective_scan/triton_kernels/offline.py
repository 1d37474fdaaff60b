"""Compile the Triton kernels for a GPU that need not be there, and read what the assembler says of them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from selective_scan import triton_backend
from selective_scan.discretization import get_discretization
from selective_scan.triton_kernels import conv, scan


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel uses.

    Attributes:
        registers: per thread.
        spill_bytes: local memory for registers that did not fit, per thread.
        barriers, shuffles: instructions in the PTX.
    """

    registers: int
    spill_bytes: int
    barriers: int
    shuffles: int


def kernel_usage(
    kernel: str, discretization: str = "zoh", states: int = 16, capability: int = 90, dtype: str = "fp32"
) -> Usage:
    """Compile one kernel as the backend launches it, with every option on and bf16 inputs or float32 ones.

    Args:
        kernel: "scan_forward", "scan_backward", "conv_forward" or "conv_backward".
        discretization: for the scan.
        states: N of the scan, K of the convolution.
        capability: 90 for sm_90 and so on.
        dtype: "fp32" or "bf16", of u, delta, z, B, C and their gradients.

    Raises:
        RuntimeError: the assembler bundled with triton does not know this GPU.
    """
    forward = kernel.endswith("forward")
    function = getattr(conv if kernel.startswith("conv") else scan, kernel)
    block = triton_backend.FORWARD_BLOCK if forward else triton_backend.BACKWARD_BLOCK
    warps = triton_backend.FORWARD_WARPS if forward else triton_backend.BACKWARD_WARPS
    if kernel.startswith("conv"):  # both of its kernels are launched like a forward one
        block, warps = triton_backend.FORWARD_BLOCK, triton_backend.FORWARD_WARPS
    method = get_discretization(discretization)
    constants: dict[str, Any] = {
        "METHOD": method.index,
        "TWO_TAPS": method.taps == 2,
        "N": states,
        "K": states,
        "BLOCK": block,
        "SUMMARY": False,
    }
    signature, constexprs = {}, {}
    for name in function.arg_names:
        if name.isupper() and name not in ("T", "L", "D"):
            signature[name] = "constexpr"
            constexprs[name] = constants.get(name, True)
        elif name.endswith("_ptr"):
            low = name[:-4] in ("u", "delta", "z", "B", "C", "x", "y", "dy", "du", "ddelta", "dz")
            signature[name] = f"*{dtype}" if low else "*fp32"
        else:
            signature[name] = "i32"
    source = ASTSource(fn=function, signature=signature, constexprs=constexprs)
    target = GPUTarget("cuda", capability, 32)
    try:
        compiled = triton.compile(source, target=target, options={"num_warps": warps})
    except Exception as error:  # triton has no class for an assembler that knows no such GPU
        raise RuntimeError(f"{kernel} does not compile for sm_{capability}: {error}") from error
    return _usage(compiled)


def _usage(compiled: Any) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        command = [str(tool), "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    ptx = compiled.asm["ptx"]
    return Usage(used["REG"], used["STACK"] + used["LOCAL"], ptx.count("bar.sync"), ptx.count("shfl."))
