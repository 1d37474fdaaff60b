"""Labels on an S3 server (moto's, on loopback): four ranks, a rank that is killed, and a training that reads them."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from commands import finish_command, run_command, run_ranks, start_ranks
from media import write_video
from test_cache_at_url import tree

from videomamba_depth.data.labels.cache_format import group_name

for needed in ("s3fs", "moto", "flask"):
    pytest.importorskip(needed, reason="needs s3fs and moto[server], an S3 server for tests")

SCRIPT = "scripts/precompute_teacher_depth.py"
SLOW_S = 400
SIZES = ("short_side=56", "crop=[56,70]", "device=cpu", "threads=1")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server with the empty bucket "labels", which the environment names."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    started = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            patched.setenv(name, "us-east-1")
        fsspec.filesystem("s3").mkdir("labels")
        yield f"http://{host}:{port}"
    started.stop()


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_folder: str) -> tuple[str, ...]:
    root = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate((21, 70, 35, 18, 17, 16)):
        write_video(root / f"{number}.mp4", frames, seed=number)
    return (f"root={root}", f"teacher.name={tiny_teacher_folder}", *SIZES)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, options: tuple[str, ...]) -> Path:
    """What one process writes into a folder."""
    folder = tmp_path_factory.mktemp("local")
    done = run_command(folder, SCRIPT, *options, f"cache={folder}/cache", "stabilize=true")
    assert done.status == 0, done.err
    return folder / "cache"


def test_four_ranks_write_the_same_bytes_as_one(
    server: str, options: tuple[str, ...], local: Path, tmp_path: Path
) -> None:
    labels = (*options, "cache=s3://labels/four", "stabilize=true")
    results = run_ranks(4, tmp_path / "first", SCRIPT, *labels)
    assert [result.status for result in results] == [0] * 4, results
    assert "6 videos labelled, 0 were already, 177 frames, 0 failed" in results[0].err
    assert tree("s3://labels/four") == tree(local)
    results = run_ranks(2, tmp_path / "second", SCRIPT, *labels, "verify=true")
    assert [result.status for result in results] == [0] * 2, results
    assert "6 videos and 177 frames are whole" in results[0].err


def test_a_rank_is_killed_and_run_again(server: str, options: tuple[str, ...], local: Path, tmp_path: Path) -> None:
    labels = (*options, "cache=s3://labels/killed", "stabilize=true")
    processes = start_ranks(4, tmp_path / "first", SCRIPT, *labels)
    system, written = (
        fsspec.filesystem("s3", use_listings_cache=False),
        f"labels/killed/{group_name('1.mp4')}/depth/c/0/0/0",
    )
    deadline = time.monotonic() + SLOW_S
    while not system.exists(written) and time.monotonic() < deadline:
        time.sleep(0.01)
    processes[1].kill()
    results = [
        finish_command(process, tmp_path / "first" / str(rank), SLOW_S) for rank, process in enumerate(processes)
    ]
    assert [result.status for result in results] == [2, -signal.SIGKILL, 2, 2]
    assert results[0].errors == ["error: another process of this run has ended early; run again, which continues"]
    assert tree("s3://labels/killed") != tree(local)
    results = run_ranks(4, tmp_path / "second", SCRIPT, *labels)
    assert [result.status for result in results] == [0] * 4, results
    assert tree("s3://labels/killed") == tree(local)


def test_an_epoch_is_trained_from_a_bucket(server: str, options: tuple[str, ...], local: Path, tmp_path: Path) -> None:
    system = fsspec.filesystem("s3")
    system.put(f"{local}/", "labels/trained/", recursive=True)
    root, teacher, *_ = options
    students = []
    for name, cache in (("bucket", "s3://labels/trained"), ("folder", str(local)), ("live", "null")):
        done = run_command(
            tmp_path / name, "train.py", "debug=smoke", "data=video_folder", f"data.{root}", teacher, "run_dir=run",
            f"data.teacher_cache={cache}", "trainer.steps=6", "trainer.device=cpu", "data.num_workers=2",
            timeout_s=SLOW_S,
        )  # fmt: skip
        assert done.status == 0, done.err
        assert "live teacher labels instead" not in done.err
        students.append((tmp_path / name / "run" / "last" / "student.safetensors").read_bytes())
    assert students[0] == students[1]
    assert students[0] != students[2]  # the labels' float16


def test_a_bucket_that_is_not_there(server: str, options: tuple[str, ...], tmp_path: Path) -> None:
    refused = run_command(tmp_path, SCRIPT, *options, "cache=s3://nowhere/labels", timeout_s=SLOW_S)
    assert refused.status == 2
    (error,) = refused.errors
    assert "s3://nowhere/labels: The specified bucket does not exist" in error


def test_a_server_that_does_not_answer(
    server: str, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    refused = run_command(tmp_path, SCRIPT, *options, "cache=s3://labels/x", timeout_s=SLOW_S)
    assert refused.status == 2
    assert refused.errors == [
        'error: teacher cache s3://labels/x: Could not connect to the endpoint URL: "http://127.0.0.1:9/labels/x";'
        " see to the address, the server and its credentials, and run again"
    ]
