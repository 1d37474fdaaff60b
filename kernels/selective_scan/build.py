"""Compile the C++ kernels once for this machine and load them, on first use and never at import.

The libraries have a plain C interface and include no PyTorch header, so that one compiles in about four seconds and
serves every PyTorch release. They are kept in SELECTIVE_SCAN_CACHE_DIR, or else in videomamba_depth/selective_scan
below XDG_CACHE_HOME (~/.cache), under a name that holds a hash of the sources, the flags, the compiler and the CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCE_DIR = Path(__file__).parent / "cpp"
FLAGS = ("-std=c++20", "-O2", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# Newer than these refuse nothing that we use; the note of older ones about how vectors are passed is about calls
# between libraries, of which there are none.
QUIET = ("-Wno-psabi",)


class BuildError(RuntimeError):
    """The kernels cannot be compiled or loaded here; the message is one line that says why."""


def cache_dir() -> Path:
    """Return the folder that compiled libraries are kept in (it need not exist)."""
    explicit = os.environ.get("SELECTIVE_SCAN_CACHE_DIR")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "videomamba_depth" / "selective_scan"


@functools.cache
def load_library(source: str, defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Return `cpp/<source>` compiled with `defines`, from the cache or after building it.

    Raises:
        BuildError: no compiler, a failed compilation, or a library that does not load. A failure is remembered, so
            that every later call fails at once with the same message.
    """
    result = _try_load(source, defines)
    if isinstance(result, BuildError):
        raise result
    return result


@functools.cache
def _try_load(source: str, defines: tuple[str, ...]) -> ctypes.CDLL | BuildError:
    try:
        library = _library_path(source, defines)
        if not library.exists():
            _build(source, defines, library)
        return ctypes.CDLL(str(library))
    except BuildError as error:
        return error
    except OSError as error:
        return BuildError(f"the compiled kernels cannot be stored or loaded: {error}")


@functools.cache
def _compiler() -> str:
    for candidate in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if candidate and shutil.which(candidate):
            return candidate
    raise BuildError("no C++ compiler found (looked for $CXX, g++, clang++ and c++); install one to run 30-60x faster")


@functools.cache
def _environment_key() -> str:
    """Describe the compiler and the instruction set that -march=native stands for on this machine."""
    version = subprocess.run([_compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line for line in lines if line.startswith(("flags", "Features"))), cpu)
    return "\n".join([version, platform.system(), platform.machine(), cpu])


def _library_path(source: str, defines: tuple[str, ...]) -> Path:
    digest = hashlib.sha256()
    for path in sorted(SOURCE_DIR.iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.name.encode() + path.read_bytes())
    digest.update(" ".join([*FLAGS, *QUIET, source, *defines]).encode())
    digest.update(_environment_key().encode())
    name = "-".join([Path(source).stem, *defines, digest.hexdigest()[:16]]).replace("=", "")
    return cache_dir() / f"{name}.so"


def _build(source: str, defines: tuple[str, ...], library: Path) -> None:
    """Compile into a temporary file and rename it, so that no process ever sees half a library."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with _locked(library.with_suffix(".lock")):
        if library.exists():  # another process built it while this one waited
            return
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            output = Path(folder) / library.name
            command = [_compiler(), *FLAGS, *QUIET, *(f"-D{define}" for define in defines)]
            command += [str(SOURCE_DIR / source), "-o", str(output)]
            # Apple's clang has no OpenMP: one thread is better than none.
            result = _run([*command, "-fopenmp"])
            if result.returncode != 0:
                result = _run(command)
            if result.returncode != 0:
                lines = [line for line in result.stderr.splitlines() if "error" in line] or ["no message"]
                raise BuildError(f"{_compiler()} cannot compile {source}: {lines[0]}")
            os.replace(output, library)
        logger.info("compiled %s in %.1f s", library.name, time.perf_counter() - started)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the lock dies with its holder."""
    with path.open("w") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
