"""SIGKILL at seeded moments in training, precompute, streaming and evaluation: run again, it ends as if unkilled.

    pytest -m slow tests/campaigns/test_kills.py -s        # prints the table

VIDEOMAMBA_CAMPAIGN_SEED chooses other moments.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import run_command, start_command
from media import write_video
from processes import finish
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("VIDEOMAMBA_CAMPAIGN_SEED", "0"))
KILLS = 10
SMOKE = (
    "debug=smoke", "data.short_side=28", "data.crop=[28,42]", "data.num_workers=0", "trainer.logger=none",
    "trainer.device=cpu", "trainer.threads=1", "trainer.steps=6", "trainer.checkpoint_every=1", "run_dir=run",
)  # fmt: skip

Files = dict[str, bytes]


def every_file(folder: Path) -> Files:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def trained(work: Path) -> Files:
    files: Files = {}
    for path in sorted((work / "run" / "last").glob("*.safetensors")):  # the order in their headers is not fixed
        files |= {f"{path.name} {name}": t.numpy().tobytes() for name, t in load_file(path).items()}
    return files | {"trainer.json": (work / "run" / "last" / "trainer.json").read_bytes()}


def labelled(work: Path) -> Files:
    return every_file(work / "cache")


def streamed(work: Path) -> Files:
    files = {}
    for path in sorted((work / "out" / "clip_depth").glob("*.npz")):
        with np.load(path) as shard:
            files |= {f"{path.name} {name}": shard[name].tobytes() for name in shard.files}
    return files | {"frames": (work / "out" / "clip.frames.jsonl").read_bytes()}


def evaluated(work: Path) -> Files:
    result = json.loads((work / "evaluated" / "evaluation.json").read_text())
    return {"clips": json.dumps(result["clips"]).encode(), "mean": json.dumps(result["mean"]).encode()}


COMMANDS: dict[str, tuple[str, tuple[str, ...], Callable[[Path], Files]]] = {
    "train": ("train.py", SMOKE, trained),
    "precompute": (
        "scripts/precompute_teacher_depth.py",
        ("root=videos", "cache=cache", "short_side=28", "device=cpu", "threads=1", "store_flow=true", "stabilize=true"),
        labelled,
    ),
    "stream": (
        "inference_streaming.py",
        ("checkpoint=embedded", "input=videos/clip.mp4", "output=out", "input_size=28", "device=cpu", "threads=1",
         "raw=npz", "shard_frames=8"),
        streamed,
    ),
    "evaluate": (
        "scripts/evaluate.py",
        ("checkpoint=embedded", "input=videos", "output=evaluated", "short_side=28", "device=cpu", "threads=1",
         "max_frames=6", "cut_frames=0", "palindrome=false", "html.enabled=false"),
        evaluated,
    ),
}  # fmt: skip


def kill(work: Path, script: str, arguments: tuple[str, ...], delay_s: float) -> bool:
    """Run a command and kill it after a while; return whether it was still running."""
    process = start_command(work, script, *arguments)
    time.sleep(delay_s)
    running = process.is_alive()
    if running:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    assert finish(process) in (-signal.SIGKILL, 0)
    return running


@pytest.mark.parametrize("command", COMMANDS)
def test_kills(tmp_path: Path, tiny_teacher_folder: str, command: str) -> None:
    script, arguments, end = COMMANDS[command]
    if command in ("train", "precompute"):
        arguments += (f"teacher.name={tiny_teacher_folder}",)
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "clip.mp4", 40)
    write_video(videos / "other.mp4", 20, seed=1)
    ends: list[Files] = []
    whole_s, killed, attempt = float("inf"), 0, 0
    while killed < KILLS and attempt < 3 * KILLS:  # the first attempt is the unkilled one
        work = tmp_path / str(attempt)
        work.mkdir()
        (work / "videos").symlink_to(videos)
        rng = random.Random(f"{SEED} {command} {attempt}")
        for _ in range(2 if attempt else 0):
            killed += kill(work, script, arguments, rng.uniform(0.1, 0.9) * whole_s)
            shutil.rmtree(work / "out", ignore_errors=True)  # what a killed stream wrote is not known: removed by hand
        attempt += 1
        began = time.monotonic()
        done = run_command(work, script, *arguments)
        whole_s = min(whole_s, time.monotonic() - began)
        assert done.status == 0, done.err
        assert "Traceback" not in done.err
        ends.append(end(work))
    assert len(ends[0]) > 1
    different = [i for i, files in enumerate(ends) if files != ends[0]]
    left = [
        str(p.relative_to(tmp_path)) for p in tmp_path.rglob(".*") if p.is_file() and not p.name.startswith(".lock")
    ]
    print(f"\n{command:12}{killed:4} kills in {attempt - 1} runs, {len(different)} other ends, left behind: {left}")
    assert not different
