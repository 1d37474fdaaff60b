"""A run that was stopped and continued, however it was stopped, ends in the same bits as one that was not.

Training runs in children of a server that has imported everything: stopping and starting is then quick enough to be
done often. The real command line is run by `tests/test_commands.py`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from commands import run_command
from media import write_video
from processes import finish, start
from safetensors.torch import load_file

from videomamba_depth.configuration.build import build_trainer
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.training.distributed import start_ranks, stop_ranks
from videomamba_depth.training.run_folder import RunFolder
from videomamba_depth.utils.checkpoint import list_steps
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.logger import read_json_lines

COMPARED = ("student.safetensors", "trainer.safetensors", "rank_0.safetensors", "trainer.json")
STEPS = 6


def train(run_path: Path, teacher: str, *extra: str) -> bool:
    """Train in this process: clips of 5 frames in chunks of 2, so that most stops fall inside a clip."""
    torch.set_num_threads(1)
    overrides = [
        f"teacher.name={teacher}",
        f"run_dir={run_path}",
        "debug=smoke",
        "data.clip_frames=5",
        "data.short_side=28",
        "data.crop=[28,42]",
        "data.p_single_frame=0.3",
        "trainer.chunk_frames=2",
        f"trainer.steps={STEPS}",
        "trainer.checkpoint_every=1",
        "trainer.keep_checkpoints=10",
        "trainer.picture_every=0",
        "trainer.logger=none",
        "trainer.device=cpu",
        "model.scan_backend=reference",
    ]
    config = load_config("train", TrainConfig, [*overrides, *extra])
    run, resolved = RunFolder(config.run_dir), asdict(config)
    run.check_config(resolved)
    ranks = start_ranks(config.trainer.device)
    if ranks.is_main:
        run.write_config(resolved)
    try:
        return build_trainer(config, ranks, run, resolved).fit()
    finally:
        stop_ranks()


def interrupt(run: Path, teacher: str, number: int, delay_s: float) -> int | None:
    """Train in a child, send it a signal `delay_s` after its next checkpoint, return its exit code."""
    before = list_steps(run / "checkpoints")
    process = start(train, run, teacher)
    deadline = time.monotonic() + 60
    while process.is_alive() and list_steps(run / "checkpoints") == before and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay_s)
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, number)
    return finish(process)


def contents(path: Path) -> dict[str, bytes] | str:
    """Return every tensor of a file as bytes (the header's order is not fixed), or its text."""
    if path.suffix != ".safetensors":
        return path.read_text()
    return {name: str(t.shape).encode() + t.numpy().tobytes() for name, t in load_file(path).items()}


def assert_same_end(a: Path, b: Path, ranks: int = 1) -> None:
    for name in (*COMPARED, *(f"rank_{rank}.safetensors" for rank in range(1, ranks))):
        assert contents(a / "last" / name) == contents(b / "last" / name), name
    losses = [[r["loss/total"] for r in read_json_lines(run / "metrics.jsonl")] for run in (a, b)]
    assert losses[0] == losses[1]
    assert len(losses[0]) > 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_folder: str) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert finish(start(train, run, tiny_teacher_folder)) == 0
    assert list_steps(run / "checkpoints") == [1, 2, 3, 4, 5, 6]
    return run


def test_three_and_three_steps_equal_six(tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run, symlinks=True)
    for step in (4, 5, 6):
        shutil.rmtree(run / "checkpoints" / f"step_{step:08d}")
    assert finish(start(train, run, tiny_teacher_folder)) == 0
    assert_same_end(run, uninterrupted)


def test_sigterm_saves_and_the_run_continues(tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    assert interrupt(run, tiny_teacher_folder, signal.SIGTERM, 0.0) == 0
    assert 1 <= list_steps(run / "checkpoints")[-1] < STEPS
    assert finish(start(train, run, tiny_teacher_folder)) == 0
    assert_same_end(run, uninterrupted)


EVERYTHING = (
    "data.stride=[1,2]",
    "data.reverse_probability=0.5",
    "trainer.reset_probability=0.5",
    "trainer.accumulate=2",
    "data.batch_size=2",
    "loss=stabilised",
    "loss.temporal_gradient_strides=[1,2]",
    "model.motion=flow",
    "model.output.enabled=true",
)


def assert_resumes_in_the_middle(tmp_path: Path, teacher: str, *options: str) -> None:
    """Compare a whole run with copies of it that went back some steps and were continued."""
    whole = tmp_path / "whole"
    assert finish(start(train, whole, teacher, *options)) == 0
    for kept in (2, 3):
        run = tmp_path / f"from_{kept}"
        shutil.copytree(whole, run, symlinks=True)
        for step in range(kept + 1, STEPS + 1):
            shutil.rmtree(run / "checkpoints" / f"step_{step:08d}")
        assert finish(start(train, run, teacher, *options)) == 0
        assert_same_end(run, whole)


@pytest.mark.parametrize("worlds", ["null", "3"])
def test_everything_that_is_random_comes_back(tmp_path: Path, tiny_teacher_folder: str, worlds: str) -> None:
    assert_resumes_in_the_middle(tmp_path, tiny_teacher_folder, *EVERYTHING, f"data.num_worlds={worlds}")


def test_everything_comes_back_on_videos_with_cached_labels(tmp_path: Path, tiny_teacher_folder: str) -> None:
    (tmp_path / "videos").mkdir()
    for seed in range(2):
        write_video(tmp_path / "videos" / f"{seed}.mp4", num_frames=12, seed=seed)
    done = run_command(
        tmp_path, "scripts/precompute_teacher_depth.py", f"teacher.name={tiny_teacher_folder}", "root=videos",
        "cache=cache", "short_side=28", "device=cpu", "threads=1", "store_flow=true",
        "stabilise=true",
    )  # fmt: skip
    assert done.status == 0, done.err
    source = ("data=video_folder", f"data.root={tmp_path / 'videos'}", f"data.teacher_cache={tmp_path / 'cache'}")
    loader = ("data.num_workers=0", "data.clip_frames=5", "data.short_side=28", "data.crop=[28,42]")
    assert_resumes_in_the_middle(tmp_path, tiny_teacher_folder, *source, *loader, *EVERYTHING)
    with pytest.raises(UserError, match=r"stabilised targets of .* do not fit: radius is 4, wanted 2"):
        train(tmp_path / "other", tiny_teacher_folder, *source, *loader, *EVERYTHING, "loss.target_radius=2")


def kill_and_finish(run: Path, teacher: str, kills: int, rng: random.Random) -> None:
    for _ in range(kills):
        assert interrupt(run, teacher, signal.SIGKILL, rng.uniform(0, 0.1)) in (-signal.SIGKILL, 0)
    assert finish(start(train, run, teacher)) == 0


def test_kill_9_loses_nothing(tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path) -> None:
    kill_and_finish(tmp_path / "run", tiny_teacher_folder, 2, random.Random(0))
    assert_same_end(tmp_path / "run", uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_kill_9_ten_times(tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path, seed: int) -> None:
    """Ten kills at random moments, two to a run."""
    kill_and_finish(tmp_path / "run", tiny_teacher_folder, 2, random.Random(seed))
    assert_same_end(tmp_path / "run", uninterrupted)


def test_other_settings_are_refused(tiny_teacher_folder: str, uninterrupted: Path) -> None:
    with pytest.raises(UserError, match=r"optim.lr=0.001, now it is 0.5"):
        train(uninterrupted, tiny_teacher_folder, "optim.lr=0.5")


def test_a_damaged_checkpoint_is_refused_with_the_remedy(
    tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "step_00000006")
    (run / "checkpoints" / "step_00000005" / "trainer.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot resume from .* delete that folder"):
        train(run, tiny_teacher_folder)


def train_rank(rank: int, port: int, run: Path, teacher: str, *extra: str) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    train(run, teacher, *extra)


def train_on_two_ranks(run: Path, teacher: str, port: int, *extra: str) -> None:
    processes = [start(train_rank, rank, port, run, teacher, *extra) for rank in (0, 1)]
    assert [finish(process) for process in processes] == [0, 0]


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_two_processes_continue_exactly_too(tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path) -> None:
    """DDP over gloo: 2 + 4 steps equal 6, the carried states of both ranks come back, and both ranks learn."""
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    train_on_two_ranks(whole, tiny_teacher_folder, free_port())
    shutil.copytree(whole, halved, symlinks=True)
    for step in (3, 4, 5, 6):
        shutil.rmtree(halved / "checkpoints" / f"step_{step:08d}")
    train_on_two_ranks(halved, tiny_teacher_folder, free_port())
    assert_same_end(whole, halved, ranks=2)
    name = "last/student.safetensors"
    assert contents(whole / name) != contents(uninterrupted / name)
