"""Choice of backend, and building of the C++ library when things are not as they should be."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scan_cases import make_case

from selective_scan import backends, build, selective_scan
from selective_scan.backends import resolve_backend

VARIABLES = ("VIDEOMAMBA_DISABLE_FUSED", "VIDEOMAMBA_SCAN_BACKEND", "VIM_USE_CUDA_KERNEL")

CACHED = (
    build.load_library,
    build._try_load,
    build._environment_key,
    backends._cpp_problem,
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable set, nothing logged yet; whatever a test makes the caches believe is forgotten after it."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    backends._logged.clear()
    backends._warned.clear()
    yield
    forget()


def forget() -> None:
    for function in CACHED:
        function.cache_clear()
    build._hanging.clear()
    build._warned.clear()


def choose(requested: str | None = None, device: str = "cpu") -> str:
    return resolve_backend(requested, device, "zoh", False)


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose() == "cpp"
    monkeypatch.setenv("VIM_USE_CUDA_KERNEL", "0")
    assert choose() == "reference"
    monkeypatch.setenv("VIDEOMAMBA_SCAN_BACKEND", "cpp")
    assert choose() == "cpp"
    assert choose("reference") == "reference"
    monkeypatch.setenv("VIDEOMAMBA_DISABLE_FUSED", "1")
    assert choose("cpp") == "reference"


@pytest.mark.parametrize("word", ["1", "true", "TRUE", "on", "Yes", " 1 "])
def test_switches_that_are_on(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("VIDEOMAMBA_DISABLE_FUSED", word)
    assert choose("cpp") == "reference"
    monkeypatch.delenv("VIDEOMAMBA_DISABLE_FUSED")
    monkeypatch.setenv("VIM_USE_CUDA_KERNEL", word)
    with pytest.raises(RuntimeError, match="there is no fused backend for mps"):
        choose(device="mps")


@pytest.mark.parametrize("word", ["0", "false", "False", "off", "NO", ""])
def test_switches_that_are_off(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("VIDEOMAMBA_DISABLE_FUSED", word)
    assert choose() == "cpp"
    monkeypatch.setenv("VIM_USE_CUDA_KERNEL", word)
    assert choose() == ("reference" if word else "cpp")  # empty is not set


@pytest.mark.parametrize("name", ["VIDEOMAMBA_DISABLE_FUSED", "VIM_USE_CUDA_KERNEL"])
@pytest.mark.parametrize("word", ["2", "fused", "-1", "none", "1.0"])
def test_other_words_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, word: str) -> None:
    monkeypatch.setenv(name, word)
    with pytest.raises(backends.BackendError, match=f"{name} must be 1/true/on/yes or 0/false/off/no; got '{word}'"):
        choose()


def test_refuses_what_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend must be one of reference"):
        choose("cuda")
    with pytest.raises(ValueError, match="'triton' runs on cuda tensors; got cpu"):
        choose("triton")
    monkeypatch.setenv("VIM_USE_CUDA_KERNEL", "1")
    with pytest.raises(RuntimeError, match="there is no fused backend for mps"):
        choose(device="mps")


def test_logs_its_choice_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "selective_scan"):
        choose()
        choose()
    assert [r.getMessage() for r in caplog.records if r.name == "selective_scan"] == [
        "selective_scan[zoh] runs on backend cpp (automatic)",
    ]


def test_without_a_compiler_one_warning_and_the_reference(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    forget()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("SELECTIVE_SCAN_CACHE_DIR", str(tmp_path))
    case = make_case(1, 2, 3, 2)
    with caplog.at_level(logging.WARNING, "selective_scan"):
        for _ in range(2):
            selective_scan(**case.arguments)  # type: ignore[arg-type]
    assert len(caplog.records) == 1
    assert "the slow reference backend runs: no C++ compiler found" in caplog.records[0].getMessage()
    with pytest.raises(RuntimeError, match="backend 'cpp', chosen by the argument, does not work here: no C"):
        choose("cpp")
    monkeypatch.setenv("VIM_USE_CUDA_KERNEL", "1")
    with pytest.raises(RuntimeError, match="asks for a fused backend: no C"):
        choose()


def test_key_depends_on_sources_flags_and_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = {build._library_name("scan.cpp", ("METHOD=0",)), build._library_name("scan.cpp", ("METHOD=1",))}
    monkeypatch.setattr(build, "_environment_key", lambda: "another machine")
    names.add(build._library_name("scan.cpp", ("METHOD=0",)))
    (tmp_path / "scan.cpp").write_text("// another source")
    monkeypatch.setattr(build, "SOURCE_DIR", tmp_path)
    names.add(build._library_name("scan.cpp", ("METHOD=0",)))
    assert len(names) == 4


def test_import_builds_prints_and_configures_nothing(tmp_path: Path) -> None:
    code = (
        "import logging, sys, selective_scan\n"
        "assert not logging.getLogger().handlers\n"
        "assert 'triton' not in sys.modules or not [m for m in sys.modules if 'triton_kernels' in m]\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "", "SELECTIVE_SCAN_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not (tmp_path / "cache").exists()


def test_meta_tensors_run_on_the_reference() -> None:
    case = make_case(1, 2, 3, 2)
    y, _, _ = selective_scan(**{name: x.to("meta") for name, x in case.arguments.items()})  # type: ignore[arg-type]
    assert y.shape == (1, 2, 3)
    assert y.device == torch.device("meta")
