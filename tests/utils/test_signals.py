"""SIGTERM and SIGHUP stop like Ctrl-C; a signal that is ignored stays so."""

from __future__ import annotations

import re
import signal
import threading

import pytest
from tqdm import tqdm

from videomamba_depth.configuration.cli import _stopped_in_one_line
from videomamba_depth.utils.signals import on_stop

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
    with pytest.raises(SystemExit), _stopped_in_one_line():
        raise KeyboardInterrupt
    assert re.search(r"[\r\n]stopped; what was finished is kept\n", capsys.readouterr().err)
    bar.close()
