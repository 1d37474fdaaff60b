"""A run that was stopped and continued, however it was stopped, ends in the same bits as one that was not.

Training runs in children of a server that has imported everything: stopping and starting is then quick enough to be
done often. The real command line is run by `tests/test_commands.py`.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_command
from media import write_video
from processes import finish, start
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from videomamba_depth.configuration.build import build_trainer
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.training.distributed import only_deterministic, start_ranks, stop_ranks
from videomamba_depth.training.run_folder import RunFolder
from videomamba_depth.training.trainer import Trainer
from videomamba_depth.utils import checkpoint as checkpoint_module
from videomamba_depth.utils.checkpoint import list_steps, write_manifest
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.logger import read_json_lines
from videomamba_depth.utils.settings import to_values

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
    run, resolved = RunFolder(config.run_dir), to_values(config)
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
    "loss.temporal_gradient_strides=[1,2]",
    "model.encode_every=3",
    "trainer.steps=5",
)


def assert_resumes_in_the_middle(tmp_path: Path, teacher: str, *options: str) -> None:
    """Compare a whole run with copies of it that went back some steps and were continued."""
    whole = tmp_path / "whole"
    assert train(whole, teacher, *options)
    for kept in (2, 3):
        run = tmp_path / f"from_{kept}"
        shutil.copytree(whole, run, symlinks=True)
        for step in list_steps(whole / "checkpoints")[kept:]:
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
        "cache=cache", "short_side=28", "crop=[28,42]", "device=cpu", "threads=1", "store_flow=true",
        "stabilize=true",
    )  # fmt: skip
    assert done.status == 0, done.err
    source = ("data=video_folder", f"data.root={tmp_path / 'videos'}", f"data.teacher_cache={tmp_path / 'cache'}")
    loader = ("data.num_workers=0", "data.clip_frames=5", "data.short_side=28", "data.crop=[28,42]")
    assert_resumes_in_the_middle(tmp_path, tiny_teacher_folder, *source, *loader, *EVERYTHING)
    with pytest.raises(UserError, match=r"stabilized targets of .* do not fit: radius is 8, wanted 2"):
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
    with pytest.raises(UserError, match=r"optim.lr=0.001, now it is optim.lr=0.5"):
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


def damaged_copy(uninterrupted: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return a copy of a run that is to be continued from step 5, and the folder of that step."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "step_00000006")
    return run, run / "checkpoints" / "step_00000005"


def of_0_1_0(checkpoint: Path) -> None:
    """Turn a checkpoint into one of version 0.1.0: no digests."""
    (checkpoint / "manifest.json").unlink()
    path = checkpoint / "student.json"
    path.write_text(path.read_text().replace(',\n "manifest": "manifest.json"', ""))
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            metadata = {key: value for key, value in about.items() if key not in ("sha256", "step", "rank")}
        save_file(load_file(path), path, metadata=metadata or None)


@pytest.mark.parametrize(
    "name",
    ["student.safetensors", "student.json", "trainer.safetensors", "trainer.json", "rank_0.safetensors", "config.json",
     "manifest.json"],
)  # fmt: skip
def test_no_byte_of_what_is_resumed_changes_unnoticed(
    tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path, name: str
) -> None:
    run, checkpoint = damaged_copy(uninterrupted, tmp_path)
    data = bytearray((checkpoint / name).read_bytes())
    data[-20] ^= 1
    (checkpoint / name).write_bytes(data)
    damaged = "is damaged" if name == "manifest.json" else name.replace(".", r"\.")
    with pytest.raises(UserError, match=rf"{damaged}.* delete that folder to go back to the one before"):
        train(run, tiny_teacher_folder)


def test_optimizer_state_of_another_dtype_is_refused(
    tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path
) -> None:
    run, checkpoint = damaged_copy(uninterrupted, tmp_path)
    path = checkpoint / "trainer.safetensors"
    save_file({name: t.half() for name, t in load_file(path).items()}, path)
    with pytest.raises(UserError, match=r"cannot resume from .*trainer\.safetensors' is damaged.* delete that folder"):
        train(run, tiny_teacher_folder)


def test_a_digest_that_was_taken_off_is_missed(tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path) -> None:
    run, checkpoint = damaged_copy(uninterrupted, tmp_path)
    path = checkpoint / "trainer.safetensors"
    save_file({name: t.half() for name, t in load_file(path).items()}, path)
    write_manifest(checkpoint)
    with pytest.raises(UserError, match=r"trainer\.safetensors' has no digest.* delete that folder"):
        train(run, tiny_teacher_folder)


@pytest.mark.parametrize("name", ["student.safetensors", "trainer.safetensors", "rank_0.safetensors"])
def test_a_file_of_another_step_is_refused(
    tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path, name: str
) -> None:
    run, checkpoint = damaged_copy(uninterrupted, tmp_path)
    shutil.copy(uninterrupted / "checkpoints" / "step_00000006" / name, checkpoint / name)
    write_manifest(checkpoint)
    with pytest.raises(UserError, match=rf"{name}' is of step 6, not 5.* delete that folder"):
        train(run, tiny_teacher_folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("student", lambda t: {k: v.half() for k, v in t.items()}, "is torch.float16, not torch.float32"),
        ("trainer", lambda t: {k: v.half() for k, v in t.items()}, "is torch.float16, not torch.float32"),
        ("trainer", lambda t: {k: v.half() if "exp_avg" in k else v for k, v in t.items()}, r"exp_avg.* must be"),
        ("trainer", lambda t: {k: v for k, v in t.items() if k != "optimizer.0.exp_avg"}, r"no tensor exp_avg \(opt"),
        ("trainer", lambda t: {**t, "optimizer.0.exp_avg": t["optimizer.0.exp_avg"][:1]}, r"exp_avg .*0\) must be"),
        ("trainer", lambda t: {**t, "optimizer.0.more": t["optimizer.0.step"] + 1}, r"unknown tensor more \(opt"),
        ("trainer", lambda t: {**t, "optimizer.999.step": t["optimizer.0.step"] + 1}, "IndexError"),
    ],
)  # fmt: skip
def test_a_state_that_is_not_the_run_s_is_refused_without_digests_too(
    tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path, file: str, change: Any, message: str
) -> None:
    run, checkpoint = damaged_copy(uninterrupted, tmp_path)
    of_0_1_0(checkpoint)
    path = checkpoint / f"{file}.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(UserError, match=rf"cannot resume from .*{message}.* delete that folder"):
        train(run, tiny_teacher_folder)


def test_a_run_of_0_1_0_continues(tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path) -> None:
    run, checkpoint = damaged_copy(uninterrupted, tmp_path)
    of_0_1_0(checkpoint)
    assert train(run, tiny_teacher_folder)
    assert_same_end(run, uninterrupted)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"step": 2}, "trainer.json is of step 2"),
        ({"step": "5"}, "holds '5' where a count belongs"),
        ({"batch": -1}, "holds -1 where a count belongs"),
        ({"scaler": 3}, "not iterable"),
    ],
)
def test_a_step_that_is_not_the_folder_s_is_refused_without_digests_too(
    tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path, edit: dict[str, object], message: str
) -> None:
    run, checkpoint = damaged_copy(uninterrupted, tmp_path)
    of_0_1_0(checkpoint)
    path = checkpoint / "trainer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(UserError, match=rf"cannot resume from .*{message}.* delete that folder"):
        train(run, tiny_teacher_folder)


def test_the_copy_of_the_encoder_is_checked_when_a_run_is_continued(
    tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path
) -> None:
    run, _ = damaged_copy(uninterrupted, tmp_path)
    path = run / "encoder" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 64
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(UserError, match=r"the copy of the encoder in .* is damaged .* delete that folder"):
            train(run, tiny_teacher_folder)
        (run / "encoder" / "manifest.json").unlink(missing_ok=True)  # as 0.1.0 left it
    shutil.rmtree(run / "encoder")
    assert train(run, tiny_teacher_folder)
    assert (run / "encoder" / "manifest.json").is_file()


def test_another_teacher_under_the_same_name_is_refused(
    tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path
) -> None:
    run, checkpoint = damaged_copy(uninterrupted, tmp_path)
    of_0_1_0(checkpoint)
    path = checkpoint / "student.json"
    digest = json.loads(path.read_text())["encoder"]["weights_sha256"]
    path.write_text(path.read_text().replace(digest, "0" * 64))
    with pytest.raises(UserError, match="was started with other weights"):
        train(run, tiny_teacher_folder)


def test_another_number_of_processes_is_refused(tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path) -> None:
    run, checkpoint = damaged_copy(uninterrupted, tmp_path)
    shutil.copy(checkpoint / "rank_0.safetensors", checkpoint / "rank_1.safetensors")
    with pytest.raises(UserError, match=r"holds the states of 2 processes, not 1; resume with 2"):
        train(run, tiny_teacher_folder)


def test_the_learning_rate_s_curve_is_fixed_and_the_steps_are_not(
    tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path
) -> None:
    """A run cut at 4 of its 6 steps goes on as one that was never cut; one of another curve is refused."""
    run = tmp_path / "run"
    assert train(run, tiny_teacher_folder, "trainer.steps=4", f"trainer.total_steps={STEPS}")
    with pytest.raises(UserError, match=r"trainer\.total_steps=6, now it is trainer\.total_steps=8"):
        train(run, tiny_teacher_folder, "trainer.steps=8")
    assert train(run, tiny_teacher_folder)
    assert_same_end(run, uninterrupted)
    assert train(run, tiny_teacher_folder, "trainer.steps=7", f"trainer.total_steps={STEPS}")
    rates = [r["optim/lr"] for r in read_json_lines(run / "metrics.jsonl")]
    assert rates[-1] <= rates[-2]


def test_a_full_disk_costs_no_checkpoint_and_no_bit(
    tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real, calls = tmp_path / "run", checkpoint_module.save_file, [0]

    def full(*args: object, **kwargs: object) -> None:
        calls[0] += 1
        if calls[0] > 4:  # three files a checkpoint
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args, **kwargs)

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(
        UserError,
        match=r"step 2 failed: cannot write .*: No space left.* free some .*step_00000001', was read back",
    ):
        train(run, tiny_teacher_folder)
    assert [entry.name for entry in (run / "checkpoints").iterdir()] == ["step_00000001"]
    monkeypatch.setattr(checkpoint_module, "save_file", real)
    assert train(run, tiny_teacher_folder)
    assert_same_end(run, uninterrupted)


@pytest.mark.parametrize("tensor", ["average", "optimizer"])
def test_a_number_that_is_not_finite_is_never_saved(
    tmp_path: Path, tiny_teacher_folder: str, monkeypatch: pytest.MonkeyPatch, tensor: str
) -> None:
    real = Trainer._train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        result = real(self, batches)
        if self.step == 1:
            target = self._average.average if tensor == "average" else next(iter(self._optimizer.state.values()))
            next(t for t in target.values() if t.ndim > 0).fill_(float("nan"))
        return result

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    with pytest.raises(UserError, match=r"step 2 failed: tensor .* not finite .*step_00000001', was read back"):
        train(tmp_path / "run", tiny_teacher_folder)
    assert list_steps(tmp_path / "run" / "checkpoints") == [1]
    assert [entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000001"]


def test_the_last_checkpoint_is_called_intact_only_if_it_is(
    tmp_path: Path, tiny_teacher_folder: str, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, checkpoint = damaged_copy(uninterrupted, tmp_path)
    real = Trainer._train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        real(self, batches)
        (checkpoint / "trainer.json").write_text("{}")
        self._refuse("the gradient norm")

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    with pytest.raises(UserError, match=r"the gradient norm is not finite .* the last checkpoint is damaged too"):
        train(run, tiny_teacher_folder)


def test_deterministic_refuses() -> None:
    x, index = torch.zeros(4), torch.tensor([0, 0])
    with (
        pytest.raises(UserError, match=r"deterministic=true: put_.* is not reproducible"),
        only_deterministic(True),
    ):
        x.put_(index, torch.tensor([1.0, 2.0]))
    with only_deterministic(False):
        x.put_(index, torch.tensor([1.0, 2.0]))
    assert not torch.are_deterministic_algorithms_enabled()


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
    """DDP over gloo: 2 + 4 steps equal 6, the carried states of both ranks come back, and both ranks learn.

    The correction of features that were not encoded rests in some steps.
    """
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    train_on_two_ranks(whole, tiny_teacher_folder, free_port(), "model.encode_every=2")
    shutil.copytree(whole, halved, symlinks=True)
    for step in (3, 4, 5, 6):
        shutil.rmtree(halved / "checkpoints" / f"step_{step:08d}")
    train_on_two_ranks(halved, tiny_teacher_folder, free_port(), "model.encode_every=2")
    assert_same_end(whole, halved, ranks=2)
    both, alone = (load_file(run / "last/student.safetensors") for run in (whole, uninterrupted))
    assert any(name.startswith("propagation.") for name in both)
    assert not all(torch.equal(both[name], weights) for name, weights in alone.items())
