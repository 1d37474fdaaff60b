"""What a person can cause ends in one line and exit status 2, a full disk behind stdout included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = "from videomamba_depth.utils.errors import exit_on_user_error\nwith exit_on_user_error():\n    {}"


def run(body: str, stdout: object = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE.format(body)], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60
    )  # type: ignore[call-overload,no-any-return]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("body", ["print('x')", "print('x' * 100000)"])
def test_a_full_disk_behind_stdout(body: str) -> None:
    with open("/dev/full", "w") as full:
        done = run(body, full)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write ")
    assert "No space left on device; free some space" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_full_disk_behind_any_file() -> None:
    done = run("raise OSError(28, 'No space left on device', 'runs/x/events')")
    assert done.returncode == 2
    assert done.stderr == "error: cannot write runs/x/events: No space left on device; free some space and run again\n"


def test_a_reader_that_has_gone() -> None:
    code = CODE.format("import time; time.sleep(1); print('x' * 10)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        assert p.stderr is not None
        p.stdout.close()
        assert p.stderr.read() == "error: whoever read the output has stopped reading\n"
        assert p.wait() == 2


def test_any_other_error_is_a_bug() -> None:
    assert "Traceback" in run("raise OSError(2, 'No such file')").stderr
