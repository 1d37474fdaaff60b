"""A write that fails leaves what was there, in one line; a write that ends is on the disk; one writer at a time."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from processes import finish, make_event, start

from videomamba_depth.utils import atomic
from videomamba_depth.utils.atomic import sync, to_json, write_bytes, write_json
from videomamba_depth.utils.checkpoint import load_tensors, save_tensors, staging_folder, verify_files, whole_folder
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.lock import exclusive
from videomamba_depth.utils.logger import JsonLines, read_json_lines


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond `num_bytes`: a full disk, for what is written here."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with (
        largest_file(100),
        pytest.raises(UserError, match=r"cannot write .*a\.json: .*; free some space and run again"),
    ):
        write_bytes(path, bytes(1000))
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_leaves_no_tensors_and_no_staging_folder(tmp_path: Path) -> None:
    with largest_file(1000), pytest.raises(UserError, match="cannot write"):
        save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1000)})
    with pytest.raises(UserError, match="free some space"), whole_folder(tmp_path / "step"):
        full_disk()
    assert list(tmp_path.iterdir()) == []


def test_everything_is_flushed_before_and_after_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, str]] = []
    monkeypatch.setattr(atomic, "sync", lambda path: (events.append(("sync", path.name)), sync(path)))
    rename = os.replace
    monkeypatch.setattr(atomic.os, "replace", lambda a, b: (events.append(("rename", b.name)), rename(a, b)))
    write_bytes(tmp_path / "a", b"a")
    assert [what for what, _ in events] == ["sync", "rename", "sync"]
    assert [name for _, name in events][1:] == ["a", tmp_path.name]
    events.clear()
    with whole_folder(tmp_path / "step") as staging:
        (staging / "b").write_text("b")
    synced = [name for what, name in events if what == "sync"]
    assert {"b", "manifest.json", staging.name, tmp_path.name} <= set(synced)
    assert synced[-1] == tmp_path.name  # the new entry, last


def test_a_whole_folder_names_what_was_changed(tmp_path: Path) -> None:
    final = tmp_path / "step"
    with whole_folder(final) as staging:
        for name in ("a", "b"):
            (staging / name).write_text(name)
    verify_files(final)
    (final / "a").write_text("b")
    with pytest.raises(UserError, match="a' is damaged"):
        verify_files(final)
    verify_files(final, ["b"])
    (final / "b").unlink()
    with pytest.raises(UserError, match="b' is missing"):
        verify_files(final, ["b"])
    assert not staging_folder(final).exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_carry_their_own_digest(tmp_path: Path, dtype: torch.dtype) -> None:
    path, tensors = tmp_path / "a.safetensors", {"x": torch.ones(3, 4).to(dtype), "scalar": torch.tensor(2.0)}
    save_tensors(path, tensors, {"about": "x"})

    def same(loaded: dict[str, torch.Tensor], metadata: dict[str, str]) -> bool:
        equal = (torch.equal(loaded[name], t) and loaded[name].dtype == t.dtype for name, t in tensors.items())
        return metadata == {"about": "x"} and loaded.keys() == tensors.keys() and all(equal)

    assert same(*load_tensors(path))
    data = path.read_bytes()
    noticed = 0
    for i in range(8, len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :])
        try:
            assert same(*load_tensors(path, sealed=True))  # a byte that means nothing, such as padding
        except UserError:
            noticed += 1
    assert noticed > 0.9 * (len(data) - 8)


def test_json_is_strict() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json({"a": float("nan")})


def test_a_broken_line_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": i, "loss": i / 2}).encode() for i in range(1, 7)]
    lines[1] = lines[1][:5]
    lines[2] = b"\xff\xfe" + lines[2]
    lines[3] = b"7"
    path.write_bytes(b"\n".join(lines) + b'\n{"step": 7, "lo')
    assert [record["step"] for record in read_json_lines(path)] == [1, 5, 6]
    log = JsonLines(path, keep_up_to_step=5)
    log.write({"step": 6, "loss": float("nan"), "nested": {"x": [float("inf")]}})
    log.close()
    records = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 5, 6]
    assert records[-1] == {"step": 6, "loss": None, "nested": {"x": [None]}}
    assert "4 unreadable lines are left out, first line 2" in caplog.text


def test_a_log_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "metrics.jsonl")
    with largest_file(20), pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl"):
        log.write({"step": 1, "text": "x" * 50})
    log.close()


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    with exclusive(path, "run 'x'"):
        for _ in range(2):
            with (
                pytest.raises(UserError, match=rf"run 'x' is in use by process {os.getpid()} on host \S+; wait"),
                exclusive(path, "run 'x'"),
            ):
                pass
    assert not path.exists()
    with exclusive(path, "run 'x'"):
        pass


def hold(path: Path, held: object, fork: bool) -> None:
    with exclusive(path, "run 'x'"):
        is_worker = fork and os.fork() == 0
        if is_worker or not fork:  # once a worker runs, what it must not keep is closed
            held.set()  # type: ignore[attr-defined]
        time.sleep(60)
        if is_worker:
            os._exit(0)


@pytest.mark.parametrize("fork", [False, True])
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, fork: bool) -> None:
    """Even while a loader worker that it has forked is still there."""
    held = make_event()
    process = start(hold, tmp_path / ".lock", held, fork)
    assert held.wait(60)
    with pytest.raises(UserError, match=f"process {process.pid} "), exclusive(tmp_path / ".lock", "run 'x'"):
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    assert (tmp_path / ".lock").is_file()
    with exclusive(tmp_path / ".lock", "run 'x'"):
        pass
