"""Processes that share the clips of an evaluation write the report of a single one, also when one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import ROOT
from processes import finish, start
from torch import Tensor

from videomamba_depth.commands import evaluate as command
from videomamba_depth.evaluation.clips import ClipSource, EvaluationClip
from videomamba_depth.evaluation.engine import Evaluator, Protocol, collect, evaluate_clips
from videomamba_depth.evaluation.methods import Method, filter_methods
from videomamba_depth.evaluation.report import write_json
from videomamba_depth.evaluation.sharing import collect_all, evaluate_unclaimed
from videomamba_depth.flow.estimators import DISFlow
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.lock import exclusive

NUM_CLIPS = 4


def brightness(frame: Tensor) -> Tensor:
    return frame.mean(1, keepdim=True) + 1.0


def clip(number: int, opened: Path | None, hangs: bool) -> EvaluationClip:
    if opened is not None:
        (opened / f"{number}-{os.getpid()}").touch()
    if number == 2:
        raise UserError("damaged")
    if hangs and number == 1:
        time.sleep(60)
    frames = np.random.default_rng(number).integers(0, 255, (5, 32, 40, 3)).astype(np.uint8)
    return EvaluationClip(f"clip {number}", frames)


def sources(opened: Path | None = None, hangs: bool = False) -> list[ClipSource]:
    return [ClipSource(f"clip {n}", partial(clip, n, opened, hangs), digest=partial(str, n)) for n in range(NUM_CLIPS)]


def evaluator(cache: Path | None) -> Evaluator:
    def student() -> Callable[[Tensor], Tensor]:
        return lambda frame: brightness(frame) ** 2

    methods = [
        Method("teacher", lambda: brightness, digest="t"),
        *filter_methods()[:2],
        Method("student", student, digest="s", trained=True),
    ]
    protocol = Protocol(max_side=40, palindrome=True, cut_frames=2)
    return Evaluator(methods, DepthKind.RELATIVE, DISFlow("fast"), "dis_fast", protocol, cache)


def help_out(cache: Path, opened: Path, hangs: bool) -> None:
    evaluate_unclaimed(sources(opened, hangs), evaluator(cache).attempt, cache / "claims")


def lead(cache: Path, opened: Path) -> None:
    help_out(cache, opened, False)
    found = collect_all(sources(opened), evaluator(cache).attempt, cache / "claims")
    write_json(collect(found, evaluator(cache), skip_unusable=True), cache / "report.json")


@pytest.fixture
def alone(tmp_path: Path) -> bytes:
    """The report of one process, without a cache."""
    result = evaluate_clips(sources(), evaluator(None), skip_unusable=True)
    return write_json(result, tmp_path / "alone.json").read_bytes()


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_processes_write_the_report_of_one(tmp_path: Path, alone: bytes) -> None:
    cache, opened = tmp_path / "cache", tmp_path / "opened"
    opened.mkdir()
    processes = [start(lead, cache, opened), start(help_out, cache, opened, False)]
    assert [finish(process) for process in processes] == [0, 0]
    assert (cache / "report.json").read_bytes() == alone
    usable = [name for name in sorted(path.name for path in opened.iterdir()) if not name.startswith("2-")]
    assert [name[0] for name in usable] == ["0", "1", "3"], "a clip was evaluated twice"
    assert not list((cache / "claims").iterdir())


def test_a_killed_process_loses_the_clip_it_was_at(tmp_path: Path, alone: bytes) -> None:
    cache, opened = tmp_path / "cache", tmp_path / "opened"
    opened.mkdir()
    doomed = start(help_out, cache, opened, True)
    wait_for(lambda: bool(list(opened.glob("1-*"))))
    leader = start(lead, cache, opened)
    wait_for(lambda: bool(list(opened.glob("3-*"))))  # it has passed the claimed clip
    assert doomed.pid is not None
    os.kill(doomed.pid, signal.SIGKILL)
    assert finish(leader) == 0
    assert (cache / "report.json").read_bytes() == alone
    assert len(list(opened.glob("0-*"))) == 1, "what the killed process had finished was run again"
    assert len(list(opened.glob("1-*"))) == 2


def test_a_place_that_takes_no_claims_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "claims").write_text("a file")
    with pytest.raises(UserError):
        evaluate_unclaimed(sources(), lambda source: UserError("unused"), tmp_path / "claims")
    with exclusive(tmp_path / "locks" / "0.lock", "clip 0"):
        seen: list[str] = []
        evaluate_unclaimed(sources(), lambda s: UserError(seen.append(s.name) or ""), tmp_path / "locks")
        assert seen == ["clip 1", "clip 2", "clip 3"]


def test_a_killed_worker_is_one_line_with_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        def __init__(self, *given: Any, **more: Any) -> None: ...

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *error: object) -> None: ...

        def map(self, function: Callable[[int], Any], numbers: Sequence[int]) -> Any:
            yield UserError("unused")
            raise BrokenProcessPool("terminated abruptly")

    monkeypatch.setattr(command, "ProcessPoolExecutor", Pool)
    evaluation = command.Evaluation(evaluator(None), sources(), frozenset(), {})
    found = command.outcomes(evaluation, SimpleNamespace(workers=2))  # type: ignore[arg-type]
    assert next(found)[0] == "clip 0"
    with pytest.raises(UserError, match=r"a worker was killed at 'clip 1' or a clip after it; .* with what is kept"):
        next(found)


@pytest.mark.slow
def test_torchrun_writes_the_report_of_one_process_also_after_a_rank_was_killed(tmp_path: Path) -> None:
    arguments = [
        "scripts/evaluate.py", "checkpoint=embedded", "synthetic.videos=4", "synthetic.frames=6", "synthetic.height=56",
        "synthetic.width=70", "html.enabled=false", "device=cpu",
    ]  # fmt: skip

    def run(name: str, launcher: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        given = [f"output={tmp_path / 'out'}", f"name={name}", f"cache={tmp_path / name}"]
        return subprocess.Popen([sys.executable, *launcher, *arguments, *given], cwd=ROOT)

    def report(name: str) -> dict[str, Any]:
        text = (tmp_path / "out" / f"{name}.json").read_text()
        result: dict[str, Any] = json.loads(text)
        result["metadata"].pop("command")
        return result

    def kept() -> dict[str, int]:
        results = (tmp_path / "shared" / "results").rglob("*.json")
        return {str(path): path.stat().st_mtime_ns for path in results}

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert run("alone").wait(600) == 0
    first = run("shared", torchrun)
    wait_for(lambda: len(kept()) >= 20, 600)  # the first clip is done, 16 methods; another is under way
    (victim, *_) = ranks_of(first.pid)
    os.kill(victim, signal.SIGKILL)
    assert first.wait(120) != 0
    before = kept()
    assert run("shared", torchrun).wait(600) == 0
    assert report("shared") == report("alone")
    assert before.items() <= kept().items(), "a kept result was made again"


def ranks_of(pid: int) -> list[int]:
    """Return the processes that a launcher has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
