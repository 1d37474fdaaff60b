"""Which backend runs a call: an argument, else the environment, else whatever is fastest here."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os

import torch

from selective_scan import cpp_backend
from selective_scan.build import BuildError

logger = logging.getLogger("selective_scan")

ON, OFF = ("1", "true", "on", "yes"), ("0", "false", "off", "no")
"""What a variable of the environment that is a switch may say, in any case; empty is like not set."""

BACKENDS = ("reference", "cpp", "triton", "mamba_ssm")
_DEVICE_OF = {"cpp": "cpu", "triton": "cuda", "mamba_ssm": "cuda"}


class BackendError(ValueError, RuntimeError):
    """What was asked for, by argument or environment, is unknown or does not run here; the message is one line."""


@torch.compiler.assume_constant_result
def resolve_backend(
    requested: str | None, device: str, discretization: str, wide: bool, preferred: str | None = None
) -> str:
    """Return the name of the backend to run.

    In order of precedence: VIDEOMAMBA_DISABLE_FUSED=1 (the reference, whatever else is asked for); `requested`;
    VIDEOMAMBA_SCAN_BACKEND; VIM_USE_CUDA_KERNEL (0: the reference, 1: a fused backend or an error); the fastest that
    works: `cpp` on CPU, `triton` on CUDA and ROCm, the reference elsewhere. Both switches take the words of `switch`.

    Args:
        requested: a name in `BACKENDS`, "auto" or None.
        device: type of the tensors' device, as "cpu" or "cuda".
        discretization: name of a discretization, or "conv" for the convolution.
        wide: arithmetic is in float64.
        preferred: what to choose before the fastest, where it is installed and nothing else is asked for.

    Raises:
        BackendError: an unknown name or word, or a backend that was asked for and does not work here or on `device`.
    """
    if switch("VIDEOMAMBA_DISABLE_FUSED"):
        return _log_once("reference", discretization, "VIDEOMAMBA_DISABLE_FUSED is set")
    for name, origin in (
        (requested, "the argument"),
        (os.environ.get("VIDEOMAMBA_SCAN_BACKEND"), "VIDEOMAMBA_SCAN_BACKEND"),
    ):
        if name and name != "auto":
            return _log_once(_explicit(name, origin, device, discretization, wide), discretization, origin)
    use_kernel = switch("VIM_USE_CUDA_KERNEL")
    if preferred is not None and use_kernel is not False and _problem(preferred, discretization, wide) is None:
        return _log_once(preferred, discretization, "automatic")
    return _automatic(use_kernel, device, discretization, wide)


def check_environment() -> None:
    """Raise BackendError for variables of the environment that say something unknown; nothing is built."""
    switch("VIDEOMAMBA_DISABLE_FUSED")
    switch("VIM_USE_CUDA_KERNEL")
    _check_name(os.environ.get("VIDEOMAMBA_SCAN_BACKEND") or "auto", "VIDEOMAMBA_SCAN_BACKEND")


def _check_name(name: str, origin: str) -> None:
    if name not in (*BACKENDS, "auto"):
        raise BackendError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r} from {origin}")


def switch(name: str) -> bool | None:
    """Return what a switch of the environment says: True, False, or None where it is not set or empty.

    Raises:
        BackendError: another word than those of `ON` and `OFF`.
    """
    word = os.environ.get(name, "").strip().lower()
    if word not in ("", *ON, *OFF):
        words = f"{'/'.join(ON)} or {'/'.join(OFF)}"
        raise BackendError(f"the environment variable {name} must be {words}; got {os.environ[name]!r}")
    return word in ON if word else None


def _explicit(name: str, origin: str, device: str, discretization: str, wide: bool) -> str:
    _check_name(name, origin)
    if name != "reference" and device not in ("meta", _DEVICE_OF[name]) and not _interpreted(name):
        raise BackendError(f"backend {name!r} runs on {_DEVICE_OF[name]} tensors; got {device} ({origin})")
    problem = _problem(name, discretization, wide)
    if problem:
        raise BackendError(f"backend {name!r}, chosen by {origin}, does not work here: {problem}")
    return name


def _automatic(use_kernel: bool | None, device: str, discretization: str, wide: bool) -> str:
    if use_kernel is False:
        return _log_once("reference", discretization, "VIM_USE_CUDA_KERNEL=0")
    fused = next((name for name in ("cpp", "triton") if _DEVICE_OF[name] == device), None)
    problem = f"there is no fused backend for {device} tensors" if fused is None else None
    if fused is not None:
        problem = _problem(fused, discretization, wide)
        if problem is None:
            return _log_once(fused, discretization, "automatic")
    if use_kernel:
        raise BackendError(f"VIM_USE_CUDA_KERNEL=1 asks for a fused backend: {problem}")
    if device != "meta":
        _warn_once(f"the slow reference backend runs: {problem}")
    return "reference"


def _problem(name: str, discretization: str, wide: bool) -> str | None:
    """Return the reason that a backend cannot run here, or None. Builds the C++ kernels if need be."""
    if name == "cpp":
        return _cpp_problem(discretization, torch.float64 if wide else torch.float32)
    if name == "triton":
        return None if _installed("triton") else "triton is not installed"
    if name == "mamba_ssm":
        package = "causal_conv1d" if discretization == "conv" else "mamba_ssm"
        return None if _installed(package) else f"{package} is not installed"
    return None


@functools.cache
def _cpp_problem(discretization: str, dtype: torch.dtype) -> str | None:
    try:
        if discretization == "conv":
            cpp_backend.conv_library(dtype)
        else:
            cpp_backend.scan_library(discretization, dtype)
    except BuildError as error:
        return str(error)
    return None


@functools.cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _interpreted(name: str) -> bool:
    """Triton's interpreter runs its kernels on CPU tensors; the tests use it."""
    return name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"


_logged: set[tuple[str, str]] = set()
_warned: set[str] = set()


def _log_once(backend: str, discretization: str, reason: str) -> str:
    what = "causal_conv1d" if discretization == "conv" else f"selective_scan[{discretization}]"
    if (what, backend) not in _logged:
        _logged.add((what, backend))
        logger.info("%s runs on backend %s (%s)", what, backend, reason)
    return backend


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        logger.warning(message)
