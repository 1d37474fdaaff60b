"""The levels of `inverse_search.py` on a CPU, compiled: the same maths, several times faster."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from pathlib import Path

import torch
from torch import Tensor

from selective_scan.build import BuildError, load_library
from videomamba_depth.flow import inverse_search as maths

log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("inverse_search.cpp")
_IMPORT_PROCESS = os.getpid()


def _structure(integers: str, floats: str) -> type[ctypes.Structure]:
    """Return the C struct of one function of inverse_search.cpp; what both share stands here."""
    fields = (
        *((name, ctypes.c_int64) for name in f"count height width {integers} threads".split()),
        *((name, ctypes.c_float) for name in floats.split()),
        *((name, ctypes.c_void_p) for name in ("source", "target", "flow", "result")),
    )
    return type("Arguments", (ctypes.Structure,), {"_fields_": fields})


_Search = _structure("steps candidate_stride", "damping max_step max_residual densify_sigma")
_Refine = _structure("warps sweeps", "gradient_floor robust smoothness edge_falloff overshoot border")


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled functions, built on first use; None where that fails, which is logged once."""
    try:
        return load_library(str(_SOURCE))
    except BuildError as error:
        log.warning("optical flow runs as tensor operations, which takes several times as long: %s", error)
        return None


def search_level(source: Tensor, target: Tensor, flow: Tensor, steps: int, candidate_stride: int = 1) -> Tensor:
    """Return what `inverse_search.search_level` does; candidate_stride: 1, 2 or 4."""
    constants = (maths.DAMPING, maths.MAX_STEP_PX, maths.MAX_RESIDUAL, maths.DENSIFY_SIGMA)
    return _run("search_level", _Search, source, target, flow, (steps, candidate_stride), constants)


def refine_level(source: Tensor, target: Tensor, flow: Tensor, warps: int, sweeps: int) -> Tensor:
    """Return what `inverse_search.refine_level` does."""
    constants = (
        maths.GRADIENT_FLOOR,
        maths.ROBUST,
        maths.SMOOTHNESS,
        maths.EDGE_FALLOFF,
        maths.OVERSHOOT,
        maths.BORDER,
    )
    return _run("refine_level", _Refine, source, target, flow, (warps, sweeps), constants)


def _run(
    function: str,
    structure: type[ctypes.Structure],
    source: Tensor,
    target: Tensor,
    flow: Tensor,
    integers: tuple[int, int],
    constants: tuple[float, ...],
) -> Tensor:
    compiled = library()
    assert compiled is not None, "asked for without having been built"
    inputs = [x.to(torch.float32).contiguous() for x in (source, target, flow)]
    result = torch.empty_like(inputs[2])
    count, _, height, width = source.shape
    # A forked process has lost the threads of the OpenMP runtime that it inherits.
    threads = min(torch.get_num_threads(), count) if os.getpid() == _IMPORT_PROCESS else 1
    pointers = (x.data_ptr() for x in (*inputs, result))
    arguments = structure(count, height, width, *integers, threads, *constants, *pointers)
    getattr(compiled, function)(ctypes.byref(arguments))
    return result
