"""The cache of compiled kernels: damaged files, foreign folders, compilers that fail or hang, and several at once."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from processes import finish, start
from scan_cases import make_case

from selective_scan import backends, build, selective_scan

CACHED = (build.load_library, build._try_load, build._environment_key, backends._cpp_problem)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache of our own; what a test makes the module remember is forgotten."""
    forget()
    folder = tmp_path / "cache"
    monkeypatch.setenv("SELECTIVE_SCAN_CACHE_DIR", str(folder))
    yield folder
    forget()


def forget() -> None:
    for function in CACHED:
        function.cache_clear()
    for memory in (build._hanging, build._warned, backends._warned):
        memory.clear()


def compiler(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> Path:
    """Put a shell script in the place of the compiler."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return path


# Takes a moment, counts its runs and writes a small library, so that tests need not wait for the real kernels.
SMALL = """
case "$1" in --version) echo small; exit 0;; esac
echo run >> "$(dirname "$0")/runs"
while [ "$1" != "-o" ]; do shift; done
for f in selective_scan causal_conv1d; do echo "void ${f}_forward(void) {} void ${f}_backward(void) {}"; done |
(cat; echo 'int answer(void) { return 42; }') | gcc -shared -fPIC -x c - -o "$2"
"""


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    """Compile quickly; returns how often it was done."""
    compiler(monkeypatch, tmp_path, SMALL)
    return lambda: len((tmp_path / "runs").read_text().splitlines()) if (tmp_path / "runs").exists() else 0


def load() -> ctypes.CDLL:
    """Load as a new process would."""
    build.load_library.cache_clear()
    build._try_load.cache_clear()
    return build.load_library("conv.cpp")


def built(cache: Path, source: str = "conv.cpp", defines: tuple[str, ...] = ()) -> Path:
    """Build in another process: what this one has loaded once, the loader would remember."""
    process = start(_load_here, source, defines)
    assert finish(process) == 0
    return cache / build._library_name(source, defines)


def test_a_library_is_compiled_once_and_kept_with_its_digest(runs: Callable[[], int], cache: Path) -> None:
    assert load().answer() == load().answer() == 42
    assert runs() == 1
    assert sorted(path.suffix for path in cache.iterdir()) == [".lock", ".sha256", ".so"]
    assert cache.stat().st_mode & 0o077 == 0


def cut(library: Path) -> None:
    library.write_bytes(library.read_bytes()[:4096])


def flip(library: Path) -> None:
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(data)


def cut_digest(library: Path) -> None:
    library.with_suffix(".sha256").write_text(library.with_suffix(".sha256").read_text()[:40])


DAMAGES = [
    cut,
    flip,
    cut_digest,
    lambda library: library.write_bytes(b""),
    lambda library: library.unlink(),
    lambda library: library.with_suffix(".sha256").unlink(),
    lambda library: library.with_suffix(".sha256").write_bytes(b"\xff"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_fit_its_digest_is_compiled_again(
    runs: Callable[[], int], cache: Path, damage: Callable[[Path], object]
) -> None:
    expected = built(cache).read_bytes()
    damage(next(cache.glob("*.so")))
    assert load().answer() == 42
    assert runs() == 2
    assert next(cache.glob("*.so")).read_bytes() == expected
    load()
    assert runs() == 2


def test_a_damaged_library_is_told_once(runs: Callable[[], int], cache: Path, caplog) -> None:
    flip(built(cache))
    with caplog.at_level(logging.WARNING, "selective_scan"):
        load()
    assert len(caplog.records) == 1
    assert "damaged; they are compiled again" in caplog.records[0].getMessage()


def refuse(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the cache folder one that must not, or cannot, be used."""
    folder.mkdir()
    if kind == "others may write":
        folder.chmod(0o777)
    elif kind == "its group may write":
        folder.chmod(0o775)
    elif kind == "another user's":
        real = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: real + 1)
        monkeypatch.setattr(Path, "resolve", lambda path, strict=False: Path("/nowhere") if path == folder else path)
        stat = Path.stat
        monkeypatch.setattr(Path, "stat", lambda path, **k: stat(folder if path == Path("/nowhere") else path, **k))
        os.chown(folder, real + 7, -1) if real == 0 else pytest.skip("needs root")
    elif kind == "others may replace it":
        folder.parent.chmod(0o777)
    elif kind == "a file":
        folder.rmdir()
        folder.write_text("")
    elif kind == "no home":
        monkeypatch.delenv("SELECTIVE_SCAN_CACHE_DIR")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

        def expanduser(path: Path) -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "expanduser", expanduser)
    elif kind == "read-only":

        def mkdir(*_: object, **__: object) -> None:
            raise OSError(30, "Read-only file system", str(folder))

        monkeypatch.setattr(Path, "mkdir", mkdir)


KINDS = [
    "others may write", "its group may write", "another user's", "others may replace it", "a file", "no home",
    "read-only",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_cannot_be_used_is_told_once_and_done_without(
    runs: Callable[[], int], cache: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog, tmp_path: Path
) -> None:
    refuse(cache, kind, monkeypatch)
    with caplog.at_level(logging.WARNING, "selective_scan"):
        assert load().answer() == 42
        assert build.load_library("scan.cpp").answer() == 42
    assert len(caplog.records) == 1, caplog.text
    assert "every process compiles its own" in caplog.records[0].getMessage()
    assert cache.is_file() or not list(cache.glob("*"))


def test_code_that_another_user_put_there_is_not_loaded(runs: Callable[[], int], cache: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    library = built(cache)
    os.chown(library, 12345, -1)
    assert load().answer() == 42
    assert runs() == 2
    assert library.stat().st_uid == 12345


def test_a_compiler_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path, "echo 'x.cpp:1: error: no such thing' >&2\nexit 1")
    with pytest.raises(build.BuildError, match=r"cannot compile conv\.cpp: x\.cpp:1: error: no such thing$"):
        build.load_library("conv.cpp")


@pytest.mark.parametrize("script", ["sleep 1000", 'case "$1" in --version) exit 0;; esac\nsleep 1000 &\nwait'])
def test_a_compiler_that_hangs_is_ended_and_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog, script: str
) -> None:
    path = compiler(monkeypatch, tmp_path, f"echo $$ >> {tmp_path}/asked\n{script}")
    monkeypatch.setattr(build, "BUILD_TIMEOUT_S", 0.3)
    monkeypatch.setattr(build, "_VERSION_TIMEOUT_S", 0.3)
    case = make_case(1, 2, 3, 2)
    with caplog.at_level(logging.WARNING, "selective_scan"):
        selective_scan(**case.arguments)  # type: ignore[arg-type]
        selective_scan(**case.arguments, discretization="bilinear")  # type: ignore[arg-type]
    assert len(caplog.records) == 1
    expected = f"the slow reference backend runs: the compiler {path} does not come back (waited 0.3 s)"
    assert expected in caplog.records[0].getMessage()
    asked = (tmp_path / "asked").read_text().split()
    assert len(asked) <= 2  # --version, and one compilation
    for group in asked:
        with pytest.raises(ProcessLookupError):
            wait_for_end(int(group))


def wait_for_end(group: int) -> None:
    """Return only if a process of the group is still there after ten seconds."""
    for _ in range(200):
        os.killpg(group, 0)
        time.sleep(0.05)


def test_an_interrupted_compilation_leaves_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path, f"echo $$ >> {tmp_path}/asked\nsleep 1000")

    def interrupted(process: subprocess.Popen, timeout: float) -> None:
        while not (tmp_path / "asked").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.load_library("conv.cpp")
    with pytest.raises(ProcessLookupError):
        wait_for_end(int((tmp_path / "asked").read_text()))


def test_several_processes_compile_once(runs: Callable[[], int], cache: Path) -> None:
    processes = [start(_load_here) for _ in range(4)]
    assert [finish(process) for process in processes] == [0] * 4
    assert runs() == 1


def test_a_killed_builder_leaves_no_lock(runs: Callable[[], int], cache: Path, tmp_path: Path) -> None:
    script = (tmp_path / "compiler").read_text()
    (tmp_path / "compiler").write_text(script.replace("echo run", f"echo $$ > {tmp_path}/group; sleep 1000; echo run"))
    process = start(_load_here)
    while not (tmp_path / "group").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    os.killpg(int((tmp_path / "group").read_text()), signal.SIGKILL)
    (tmp_path / "compiler").write_text(script)
    assert load().answer() == 42


def test_a_builder_that_stands_still_is_not_waited_for(
    runs: Callable[[], int], cache: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(build, "LOCK_TIMEOUT_S", 0.3)
    cache.mkdir(mode=0o700)
    name = build._library_name("conv.cpp", ())
    with FileLock((cache / name).with_suffix(".lock")):
        assert load().answer() == 42
    assert f"{name.removesuffix('.so')}.lock' could not be acquired" in caplog.text


def _load_here(source: str = "conv.cpp", defines: tuple[str, ...] = ()) -> None:
    forget()
    assert build.load_library(source, defines).answer() == 42


def test_libraries_that_are_swapped_together_with_their_digests_are_compiled_again(
    runs: Callable[[], int], cache: Path
) -> None:
    one, other = built(cache), built(cache, defines=("SCALAR_IS_DOUBLE",))
    contents = [path.read_bytes() for path in (one, other)]
    for suffix in (".so", ".sha256"):
        one.with_suffix(suffix).rename(cache / "kept")
        other.with_suffix(suffix).rename(one.with_suffix(suffix))
        (cache / "kept").rename(other.with_suffix(suffix))
    assert load().answer() == 42
    assert runs() == 3
    assert one.read_bytes() == contents[0]


RUBBISH = {
    "a library of something else": "echo 'int other(void) { return 1; }' | gcc -shared -fPIC -x c - -o",
    "no library": "echo rubbish >",
}


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_what_does_not_load_or_lacks_a_function_is_compiled_again(
    runs: Callable[[], int], cache: Path, rubbish: str
) -> None:
    library = built(cache)
    subprocess.run(["sh", "-c", f"{RUBBISH[rubbish]} {library.name}"], cwd=cache, check=True)
    library.with_suffix(".sha256").write_text(build._digest(library))
    assert load().answer() == 42
    assert runs() == 2
    assert finish(start(_load_here)) == 0
    assert runs() == 2


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_a_compiler_that_writes_rubbish_leaves_nothing_in_the_cache(
    runs: Callable[[], int], cache: Path, tmp_path: Path, rubbish: str, caplog
) -> None:
    good = (tmp_path / "compiler").read_text()
    (tmp_path / "compiler").write_text(good[: good.index("for f in")] + f'{RUBBISH[rubbish]} "$2"\n')
    with (
        caplog.at_level(logging.WARNING, "selective_scan"),
        pytest.raises(build.BuildError, match="cannot be stored or"),
    ):
        load()
    assert caplog.records == []
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    (tmp_path / "compiler").write_text(good)
    assert load().answer() == 42


@pytest.mark.parametrize("suffix", [".so", ".sha256", ".lock"])
def test_a_pipe_in_the_cache_is_not_waited_for(runs: Callable[[], int], cache: Path, suffix: str) -> None:
    path = built(cache).with_suffix(suffix)
    path.unlink()
    os.mkfifo(path)
    if suffix == ".lock":
        path.with_suffix(".so").unlink()
    process = start(_load_here)
    assert finish(process, 30) == 0
    assert runs() == 2
