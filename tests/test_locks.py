"""A second process that would write to the same run, cache or output is refused with the first one's pid and host."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from commands import ROOT, run_command
from media import write_video

from videomamba_depth.utils.lock import exclusive

COMMANDS = {
    "run/.lock": ("train.py", "run_dir=run", "debug=smoke", "trainer.device=cpu"),
    "cache/.lock": ("scripts/precompute_teacher_depth.py", "root=videos", "cache=cache", "short_side=28", "device=cpu"),
    "scored/.evaluation.lock": ("scripts/evaluate.py", "checkpoint=embedded", "output=scored", "device=cpu"),
    "out/.clip.lock": ("inference_streaming.py", "checkpoint=embedded", "input=videos/clip.mp4", "output=out"),
}


@pytest.mark.parametrize("lock", COMMANDS)
def test_a_second_writer_is_refused(tmp_path: Path, tiny_teacher_folder: str, lock: str) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "clip.mp4", num_frames=3)
    script, *arguments = COMMANDS[lock]
    teacher = [f"teacher.name={tiny_teacher_folder}"] if script.startswith(("train", "scripts/pre")) else []
    with exclusive(tmp_path / lock, "it"):
        refused = run_command(tmp_path, script, *arguments, *teacher)
    assert refused.status == 2, refused.err
    (error,) = refused.errors
    assert f"is in use by process {os.getpid()} on host {socket.gethostname()}; wait for it" in error
    assert ROOT.name not in error


def test_streams_of_other_names_share_a_folder(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", num_frames=3)
    with exclusive(tmp_path / "out" / ".other.lock", "it"):
        done = run_command(
            tmp_path, "inference_streaming.py", "checkpoint=embedded", "input=clip.mp4", "output=out", "input_size=56",
            "device=cpu", "threads=1",
        )  # fmt: skip
    assert done.status == 0, done.err
    assert not (tmp_path / "out" / ".clip.lock").exists()
