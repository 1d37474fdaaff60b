"""Variables of the environment that no command can use end in one line, before or while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from selective_scan.backends import resolve_backend
from videomamba_depth.configuration import cli
from videomamba_depth.configuration.stream_schema import StreamConfig


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
