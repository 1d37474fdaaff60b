"""SIGTERM and SIGHUP stop like Ctrl-C; a signal that is ignored stays so."""

from __future__ import annotations

import re
import signal
import threading

import pytest
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from videomamba_depth.configuration import cli
from videomamba_depth.configuration.cli import _stopped_in_one_line
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.utils.signals import STOPPED_STATUS, on_stop

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", STOPS)
def test_every_stop_raises_keyboard_interrupt(number: signal.Signals) -> None:
    before = [signal.getsignal(stop) for stop in STOPS]
    with pytest.raises(KeyboardInterrupt), on_stop():
        signal.raise_signal(number)
    assert [signal.getsignal(stop) for stop in STOPS] == before


def test_nohup_stays() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with on_stop():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_change_nothing() -> None:
    found: list[object] = []

    def enter() -> None:
        with on_stop():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def test_the_last_words_stand_on_a_line_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    bar = tqdm(total=2, mininterval=0)
    bar.update()
    with pytest.raises(SystemExit), _stopped_in_one_line(threading.Event()):
        raise KeyboardInterrupt
    assert re.search(r"[\r\n]stopped; what was finished is kept\n", capsys.readouterr().err)
    bar.close()


@pytest.mark.parametrize(
    ("replaced_by", "main_runs"), [(AttributeError, False), (OmegaConfBaseException, False), (AttributeError, True)]
)
def test_a_stop_while_the_configuration_is_composed_is_one_line(
    replaced_by: type[Exception], main_runs: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """OmegaConf tidies up in a `finally` that fails where a signal came in between; within `main` an error is shown."""

    def stopped(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise replaced_by("_invalidate_flags_cache")

    def main(_: StreamConfig) -> None:
        stopped()

    if not main_runs:
        monkeypatch.setattr(cli.hydra, "compose", stopped)
    monkeypatch.setattr("sys.argv", ["stream", "checkpoint=embedded", "input=nope.mp4", "output=out"])
    expected: type[BaseException] = replaced_by if main_runs else SystemExit
    with pytest.raises(expected) as caught:
        cli.hydra_entry("stream", StreamConfig, main)
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == STOPPED_STATUS
        assert capsys.readouterr().err == "stopped; what was finished is kept\n"
