"""Processes that tests start: they have the environment of the moment they are started in."""

from __future__ import annotations

import os

import pytest
from processes import finish, start


def test_no_variable_of_an_earlier_test_reaches_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setenv("LEFT", "over")
        assert finish(start(_exit_with_0_if_set, "LEFT")) == 0  # the server starts now, or runs already
    monkeypatch.setenv("GIVEN", "now")
    monkeypatch.delenv("PATH")
    assert finish(start(_exit_with_0_if_set, "GIVEN")) == 0
    for gone in ("LEFT", "PATH"):
        assert finish(start(_exit_with_0_if_set, gone)) == 1


def _exit_with_0_if_set(name: str) -> None:
    raise SystemExit(0 if name in os.environ else 1)
