"""Variables of the environment that no command can use end in one line, before or while it runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import pytest
from commands import ROOT

from selective_scan.backends import resolve_backend
from videomamba_depth.configuration import cli
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.utils.environment import launch
from videomamba_depth.utils.errors import UserError


@pytest.fixture
def enter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Callable], str]:
    """Run a command whose main is given; returns what it says of the error that it must end with."""

    def run(main: Callable[[StreamConfig], None]) -> str:
        monkeypatch.setattr(sys, "argv", ["inference_streaming.py", "checkpoint=embedded", "input=a.mp4", "output=o"])
        monkeypatch.setattr(cli, "configure_logging", lambda: None)
        with pytest.raises(SystemExit) as stop:
            cli.hydra_entry("stream", StreamConfig, main)
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


@pytest.mark.parametrize("name", ["VIDEOMAMBA_DISABLE_FUSED", "VIM_USE_CUDA_KERNEL", "VIDEOMAMBA_SCAN_BACKEND"])
def test_an_unknown_word(enter, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "perhaps")
    line = enter(lambda config: pytest.fail("the command ran"))
    assert line.startswith("error: ")
    assert name in line
    assert "'perhaps'" in line


def test_a_backend_that_does_not_run_here(enter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOMAMBA_SCAN_BACKEND", "triton")
    line = enter(lambda config: print(resolve_backend(None, "cpu", "zoh", False)))
    assert line == "error: backend 'triton' runs on cuda tensors; got cpu (VIDEOMAMBA_SCAN_BACKEND)"


LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def test_what_a_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    assert launch() == (0, 0, 1)
    for name, value in zip(LAUNCHER, ("5", "1", " 8 "), strict=True):
        monkeypatch.setenv(name, value)
    assert launch() == (5, 1, 8)
    monkeypatch.setenv("RANK", "")
    monkeypatch.setenv("LOCAL_RANK", "")
    assert launch() == (0, 0, 8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("a", "0", "1"), "RANK must be a whole number; got 'a'"),
        (("0", "0", "-1"), "WORLD_SIZE must be a whole number; got '-1'"),
        (("0", "1.0", "1"), "LOCAL_RANK must be a whole number; got '1.0'"),
        (("\u0663", "0", "9"), "RANK must be a whole number"),
        (("2", "0", "2"), "must be below the number of processes"),
        (("0", "1", "2"), "must be below the number of processes"),
        (("0", "0", "0"), "must be below the number of processes"),
    ],
)
def test_a_launcher_that_says_nonsense(monkeypatch: pytest.MonkeyPatch, values: tuple[str, ...], message: str) -> None:
    for name, value in zip(LAUNCHER, values, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        launch()


def test_every_variable_is_documented() -> None:
    read = re.compile(r"""(?:environ(?:\.get|\.setdefault|\.pop)?[\[(]|switch\(|_number\()\s*"([A-Z][A-Z0-9_]+)""")
    folders = ("kernels", "scripts", "tests", "videomamba_depth", "benchmarks")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")] + list(ROOT.glob("*.py"))
    found = {name for path in paths for name in read.findall(path.read_text(encoding="utf-8"))}
    table = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    assert {"RANK", "CXX", "SELECTIVE_SCAN_CACHE_DIR", "VIDEOMAMBA_DISABLE_FUSED", "QT_LOGGING_RULES"} <= found
    assert found <= set(re.findall(r"`([A-Z][A-Z0-9_]+)`", table))
