"""New memory for large results and states on a CPU."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_LARGE = 4 << 20  # bytes; a huge page has 2 MiB
_PAGE = 4096
_MADV_HUGEPAGE = 14


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialized contiguous tensor, in huge pages where it is large and the system offers them.

    The C library returns large blocks to the system when they are freed, so that every large result is in new pages,
    and the first write to a page of 4 KiB costs the kernel more time than the scan needs to fill it.
    """
    x = torch.empty(shape, dtype=dtype, device="cpu")
    if x.nbytes >= _LARGE and type(x) is Tensor:  # a fake tensor has no memory
        advise = _madvise()
        if advise is not None:
            start = x.data_ptr() // _PAGE * _PAGE
            advise(start, x.data_ptr() + x.nbytes - start, _MADV_HUGEPAGE)  # advice: a failure changes nothing
    return x


def zero_state(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str | None = "cpu"
) -> Tensor:
    """Return zeros, the state that a stream starts from; on a CPU in huge pages like every state that follows.

    A step in place walks through the state once, and in pages of 4 KiB the prefetches stop at every page's end.

    Args:
        shape: `state_shape(...)`, or [T, D, K] for the convolution.
        dtype: float32, or float64 for float64 inputs.
        device: where; None: PyTorch's default.
    """
    device = torch.get_default_device() if device is None else torch.device(device)
    if device.type != "cpu" or torch.compiler.is_compiling():
        return torch.zeros(shape, dtype=dtype, device=device)
    return empty(shape, dtype).zero_()


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    result: Callable[[int, int, int], int] = function
    return result
