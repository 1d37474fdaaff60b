"""What a person can mend is one line and exit status 2; a bug keeps its traceback."""

from __future__ import annotations

import errno
import io
import sys

import pytest
import torch

from videomamba_depth.utils.errors import UserError, building, exit_on_user_error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("a\nb"), "error: a b"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "error: /x: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "n"), "error: n: File name too long"),
        (MemoryError(), "error: memory does not suffice (MemoryError); take smaller frames, clips or batches"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "error: memory does not suffice (CUDA out of memory.)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "error: memory does not suffice"),
    ],
)
def test_one_line(capsys: pytest.CaptureFixture[str], error: Exception, line: str) -> None:
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        raise error
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(line)
    assert printed.count("\n") == 1


def test_a_bug_comes_through() -> None:
    with pytest.raises(RuntimeError, match="bug"), exit_on_user_error():
        raise RuntimeError("bug")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("7 is odd\nmore"), "model.s1: 7 is odd"),
        (RuntimeError("no"), "model.s1: RuntimeError: no"),
        (KeyError("k"), "model.s1: KeyError: 'k'"),
        (FileNotFoundError(errno.ENOENT, "No such file", b"\xff"), "model.s1: \udcff: No such file"),
    ],
)
def test_building_names_the_keys(error: Exception, message: str) -> None:
    with pytest.raises(UserError) as caught, building("model.s1"):
        raise error
    assert str(caught.value) == message
    assert caught.value.__cause__ is error


def test_building_leaves_what_says_it_already() -> None:
    with pytest.raises(UserError, match=r"^device=x is not there$"), building("name, device"):
        raise UserError("device=x is not there")
    with pytest.raises(UserError, match=r"^name, device: 'x' is not there$"), building("name, device"):
        raise UserError("'x' is not there")
    with pytest.raises(OSError, match="space"), building("model"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_traceback_is_shown_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOMAMBA_TRACEBACK", "1")
    with pytest.raises(SystemExit), exit_on_user_error(), building("model"):
        raise RuntimeError("deep")
    printed = capsys.readouterr().err
    assert "RuntimeError: deep" in printed
    assert "Traceback" in printed
    assert printed.rstrip().endswith("error: model: RuntimeError: deep")


def test_names_that_are_no_text_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    with exit_on_user_error():
        print("clip-\udcff.mp4")
    assert written.getvalue() == b"clip-\\udcff.mp4\n"
