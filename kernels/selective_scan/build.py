"""Compile the C++ kernels once for this machine and load them, on first use and never at import.

The libraries have a plain C interface and include no PyTorch header, so that one compiles in about four seconds and
serves every PyTorch release. They are kept in SELECTIVE_SCAN_CACHE_DIR, or else in videomamba_depth/selective_scan
below XDG_CACHE_HOME (~/.cache), under a name that holds a hash of the sources, the flags, the compiler and the CPU.
Beside each lies the SHA-256 of its name and bytes: one that does not fit it (cut off, damaged, under another's name) is
never loaded but compiled again, and so is one that does not load or lacks a function. Nothing is loaded from a folder
that other users may write to. Where the cache cannot be used, every process compiles its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from filelock import FileLock  # comes with PyTorch

logger = logging.getLogger(__name__)

SOURCE_DIR = Path(__file__).parent / "cpp"
FLAGS = ("-std=c++20", "-O2", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# Newer than these refuse nothing that we use; the note of older ones about how vectors are passed is about calls
# between libraries, of which there are none.
QUIET = ("-Wno-psabi",)

BUILD_TIMEOUT_S = 120.0
"""Of one compilation, which takes 2-4 s on a quiet machine."""
LOCK_TIMEOUT_S = BUILD_TIMEOUT_S
"""Of the wait for another process that compiles."""
_VERSION_TIMEOUT_S = 20.0
_WRITABLE_BY_OTHERS = 0o022
_STICKY = 0o1000
_CACHE_FORMAT = b"digest of name and bytes"
"""Part of every name, so that versions of this file that write other digests do not share libraries."""
_EXPORTED = re.compile(r'^extern "C" \w+ (\w+)\(', re.MULTILINE)


class BuildError(RuntimeError):
    """The kernels cannot be compiled or loaded here; the message is one line with the reason."""


class _CacheError(Exception):
    """The cache cannot be used; the message is the reason."""


def cache_dir() -> Path:
    """Return the folder that compiled libraries are kept in (it need not exist).

    Raises:
        RuntimeError: there is no home folder to put it in.
    """
    explicit = os.environ.get("SELECTIVE_SCAN_CACHE_DIR")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "videomamba_depth" / "selective_scan"


@functools.cache
def load_library(source: str, defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Return `cpp/<source>`, or the file at another path, compiled with `defines`, from the cache or after building it.

    Raises:
        BuildError: no compiler, a failed compilation or one that takes too long, or a library that does not load. A
            failure is remembered, so that every later call fails at once with the same message.
    """
    result = _try_load(source, defines)
    if isinstance(result, BuildError):
        raise result
    return result


@functools.cache
def _try_load(source: str, defines: tuple[str, ...]) -> ctypes.CDLL | BuildError:
    try:
        name = _library_name(source, defines)
        try:
            return _load_cached(source, defines, name)
        except _CacheError as error:
            library = _load_private(source, defines, name)
            _warn_of_cache(str(error))
            return library
    except BuildError as error:
        return error
    except OSError as error:
        return BuildError(f"the compiled kernels cannot be stored or loaded: {error}")


_warned: set[str] = set()


def _warn_of_cache(reason: str) -> None:
    """Warn once that the cache is of no use."""
    if not _warned:
        _warned.add(reason)
        logger.warning(
            "compiled kernels cannot be kept: %s; every process compiles its own, which takes seconds. Let "
            "SELECTIVE_SCAN_CACHE_DIR name a folder that you alone can write to",
            reason,
        )


def _load_private(source: str, defines: tuple[str, ...], name: str) -> ctypes.CDLL:
    """Compile into a folder that nobody else can write to, load, and remove the file: what is loaded stays."""
    with tempfile.TemporaryDirectory(prefix="selective_scan-") as folder:
        library = Path(folder) / name
        _compile(source, defines, library)
        return _open(library, source)


def _open(library: Path, source: str) -> ctypes.CDLL:
    """Load a library that was compiled from `source`.

    Raises:
        OSError: it does not load (among others, no program may run from there), or lacks a function.
    """
    loaded = ctypes.CDLL(str(library))
    functions = _EXPORTED.findall((SOURCE_DIR / source).read_text(encoding="utf-8"))
    missing = [function for function in functions if not hasattr(loaded, function)]
    if missing:
        raise OSError(f"{library} lacks {missing[0]}")
    return loaded


def _load_cached(source: str, defines: tuple[str, ...], name: str) -> ctypes.CDLL:
    """Load a library whose bytes are those that were compiled; builds it if there is none.

    Raises:
        _CacheError: the folder cannot be written to, or cannot be trusted, or nothing can be loaded from it.
        BuildError: see `load_library`.
    """
    try:
        library = cache_dir() / name
        library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_trust(library.parent)
        loaded = _open_intact(library, source)
        if loaded is None:
            # A lock between processes, which dies with its holder.
            with FileLock(library.with_suffix(".lock"), timeout=LOCK_TIMEOUT_S, mode=0o600):
                loaded = _open_intact(library, source)  # another process may have built it while this one waited
                if loaded is None:
                    if _digest_path(library).exists():
                        logger.warning("the compiled kernels in %s are damaged; they are compiled again", library)
                    loaded = _build(source, defines, library)
        return loaded
    except (OSError, RuntimeError) as error:
        if isinstance(error, BuildError):
            raise
        raise _CacheError(str(error)) from error


def _check_trust(folder: Path) -> None:
    """Raise _CacheError if somebody else than this user and root could put a library into `folder`."""
    if not hasattr(os, "geteuid"):  # Windows: below the user's profile
        return
    folder = folder.resolve()
    trusted = {0, os.geteuid(), Path("/").stat().st_uid}  # in some containers root has another number
    for place in (folder, *folder.parents):
        about = place.stat()
        if about.st_uid not in trusted:
            raise _CacheError(f"{place} belongs to another user")
        # Who may write to a folder above may put another folder in the place of this one, unless it is sticky (/tmp).
        # Groups are asked about here alone: home folders are often writable by a group of one.
        mask = _WRITABLE_BY_OTHERS if place == folder else 0o002
        if about.st_mode & mask and (place == folder or not about.st_mode & _STICKY):
            raise _CacheError(f"others may write to {place} (chmod go-w mends that)")


def _open_intact(library: Path, source: str) -> ctypes.CDLL | None:
    """Load a cached library whose bytes are as compiled; None for any other, or where there is none."""
    if not (library.is_file() and _digest_path(library).is_file()):  # to read a pipe would wait for ever
        return None
    if hasattr(os, "geteuid") and library.stat().st_uid not in (0, os.geteuid()):
        raise _CacheError(f"{library} belongs to another user")
    if _digest_path(library).read_text(encoding="ascii", errors="replace") != _digest(library):
        return None
    try:
        return _open(library, source)
    except OSError as error:
        logger.info("%s", error)
        return None


def _digest(library: Path) -> str:
    return hashlib.sha256(library.name.encode() + b"\0" + library.read_bytes()).hexdigest()


def _digest_path(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _compiler() -> list[str]:
    """Return the command that compiles; $CXX may hold arguments, as in "ccache g++"."""
    for candidate in (os.environ.get("CXX", ""), "g++", "clang++", "c++"):
        command = candidate.split()
        if command and shutil.which(command[0]):
            return command
    raise BuildError("no C++ compiler found (looked for $CXX, g++, clang++ and c++); install one to run 30-60x faster")


@functools.cache
def _environment_key() -> str:
    """Describe the compiler and the instruction set that -march=native stands for on this machine."""
    version = _run([*_compiler(), "--version"], _VERSION_TIMEOUT_S).stdout
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line for line in lines if line.startswith(("flags", "Features"))), cpu)
    return "\n".join([version, platform.system(), platform.machine(), cpu])


def _library_name(source: str, defines: tuple[str, ...]) -> str:
    digest = hashlib.sha256(_CACHE_FORMAT)
    for path in sorted((SOURCE_DIR / source).parent.iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.name.encode() + path.read_bytes())
    digest.update(" ".join([*FLAGS, *QUIET, Path(source).name, *defines]).encode())
    digest.update(_environment_key().encode())
    return "-".join([Path(source).stem, *defines, digest.hexdigest()[:16]]).replace("=", "") + ".so"


def _build(source: str, defines: tuple[str, ...], library: Path) -> ctypes.CDLL:
    """Compile into a temporary folder, load, and rename what loads, so that no process ever sees half a library.

    What is loaded is that file: under the name in the cache, the loader may remember one that was there before.
    """
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        output = Path(folder) / library.name
        _compile(source, defines, output)
        loaded = _open(output, source)
        digest = _digest_path(output)
        digest.write_text(_digest(output), encoding="ascii")
        # A stop between the two leaves a pair that does not fit, which is compiled again.
        os.replace(output, library)
        os.replace(digest, _digest_path(library))
    return loaded


def _compile(source: str, defines: tuple[str, ...], output: Path) -> None:
    started = time.perf_counter()
    command = [*_compiler(), *FLAGS, *QUIET, *(f"-D{define}" for define in defines)]
    command += [str(SOURCE_DIR / source), "-o", str(output)]
    # Apple's clang has no OpenMP: one thread is better than none.
    result = _run([*command, "-fopenmp"], BUILD_TIMEOUT_S)
    if result.returncode != 0:
        result = _run(command, BUILD_TIMEOUT_S)
    if result.returncode != 0 or not output.is_file():
        lines = [line for line in result.stderr.splitlines() if "error" in line] or ["no message"]
        raise BuildError(f"{_compiler()[0]} cannot compile {source}: {lines[0]}")
    logger.info("compiled %s in %.1f s", output.name, time.perf_counter() - started)


_hanging: set[str] = set()
"""Compilers that did not come back: they are not asked again."""


def _run(command: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run the compiler, and end it with the processes that it started when it takes too long or is interrupted."""
    message = f"the compiler {command[0]} does not come back (waited {timeout_s:g} s); let $CXX name another one"
    if command[0] in _hanging:
        raise BuildError(message)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException as error:
            _kill_group(process)
            if isinstance(error, subprocess.TimeoutExpired):
                _hanging.add(command[0])
                raise BuildError(message) from error
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _kill_group(process: subprocess.Popen[str]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
