"""Jobs that the submitit launcher hands to Slurm: what it would submit, and that its tasks are the ranks of a run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import slurm
from commands import run_command
from media import write_video

from videomamba_depth.commands import precompute
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.schema import PrecomputeConfig
from videomamba_depth.data.labels.cache_verify import verify_cache
from videomamba_depth.utils.errors import UserError

SCRIPT = "scripts/precompute_teacher_depth.py"
SLURM = ("-m", "hydra/launcher=submitit_slurm", "hydra.sweep.dir=jobs", "hydra.launcher.partition=gpu")


@pytest.fixture
def options(tmp_path: Path, tiny_teacher_folder: str) -> tuple[str, ...]:
    (tmp_path / "videos").mkdir()
    for number in range(3):
        write_video(tmp_path / "videos" / f"{number}.mp4", 4 + number, seed=number)
        (tmp_path / "videos" / f"{number}.txt").write_text(f"{number}.mp4")
    return (f"teacher.name={tiny_teacher_folder}", "cache=cache", "short_side=28", "device=cpu", "threads=1")


def test_a_launcher_that_is_not_there_names_its_extra() -> None:
    with pytest.raises(UserError, match=r"hydra/launcher.*; pip install 'videomamba-depth\[slurm\]'"):
        load_config("precompute", PrecomputeConfig, ["root=a", "cache=b", "hydra/launcher=submitit_none"])


def test_what_a_launcher_pickles_can_be_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    handed = []
    monkeypatch.setattr("sys.argv", [SCRIPT])
    monkeypatch.setattr("videomamba_depth.configuration.cli.load_config", lambda *_: None)
    monkeypatch.setattr("hydra.main", lambda **_: lambda task: handed.append(task) or (lambda: None))
    precompute.run()
    (task,) = handed
    assert task.__closure__
    for cell in task.__closure__:
        pickle.dumps(cell.cell_contents)


def test_without_slurm_is_one_line(tmp_path: Path, options: tuple[str, ...]) -> None:
    pytest.importorskip("submitit", reason="needs hydra-submitit-launcher, the extra slurm")
    refused = run_command(tmp_path, SCRIPT, *SLURM, *options, "root=videos")
    assert refused.status == 2, refused.err
    (error,) = refused.errors
    assert "the launcher needs a machine with sbatch and srun" in error


def test_tasks_of_a_job_are_ranks(tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="needs hydra-submitit-launcher, the extra slurm")
    log = slurm.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{log}:{os.environ['PATH']}")
    done = run_command(
        tmp_path, SCRIPT, *SLURM, "hydra.launcher.tasks_per_node=2", "hydra.launcher.gpus_per_node=2",
        "hydra.launcher.cpus_per_task=4", "hydra.launcher.timeout_min=90", *options, "root=videos", timeout_s=400,
    )  # fmt: skip
    output = "".join(path.read_text() for path in sorted(log.glob("task_*")))
    assert done.status == 0, done.err + output
    assert "3 videos labelled, 0 were already, 15 frames, 0 failed" in output
    assert verify_cache(tmp_path / "cache").videos == 3
    (submitted,) = (path.read_text() for path in log.glob("submitted_*"))
    flags = {line.removeprefix("#SBATCH --") for line in submitted.splitlines() if line.startswith("#SBATCH")}
    expected = ("partition=gpu", "nodes=1", "ntasks-per-node=2", "gpus-per-node=2", "cpus-per-task=4", "time=90")
    assert set(expected) <= flags
    assert (log / "srun.log").read_text().split()[1:4] == ["-u", "-m", "submitit.core._submit"]


def test_values_of_a_sweep_are_an_array(
    tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="needs hydra-submitit-launcher, the extra slurm")
    log = slurm.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{log}:{os.environ['PATH']}")
    lists = ",".join(f"videos/{number}.txt" for number in range(3))
    done = run_command(tmp_path, SCRIPT, *SLURM, *options, f"root={lists}", timeout_s=400)
    assert done.status == 0, done.err
    assert verify_cache(tmp_path / "cache").videos == 3
    (submitted,) = (path.read_text() for path in log.glob("submitted_*"))
    assert "#SBATCH --array=0-2%3" in submitted
