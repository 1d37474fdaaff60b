"""Results that are kept belong to all that decided them: another flow, protocol, teacher or kind of depth runs anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from videomamba_depth.evaluation import engine
from videomamba_depth.evaluation.cache import kept_arrays, read_result
from videomamba_depth.evaluation.clips import ClipSource, EvaluationClip
from videomamba_depth.evaluation.engine import Evaluator, Protocol
from videomamba_depth.evaluation.methods import Method
from videomamba_depth.flow.estimators import DISFlow
from videomamba_depth.utils.depth_kind import DepthKind

RUNS: list[str] = []


def method(name: str, digest: str) -> Method:
    """Return a method whose depth is brightness, and that notes when a stream is opened."""

    def new_stream() -> Callable[[Tensor], Tensor]:
        RUNS.append(name)
        return lambda frame: frame.mean(1, keepdim=True) + 1.0

    return Method(name, new_stream, digest=digest, trained=name != "teacher")


def source(content: str = "a clip") -> ClipSource:
    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 40, 3)).astype(np.uint8)
    return ClipSource("clip", lambda: EvaluationClip("clip", frames), digest=lambda: content, keep_depth=True)


def runs(evaluator: Evaluator, clip: ClipSource, draw: bool = False) -> list[str]:
    """Evaluate, and return the methods that had to run."""
    RUNS.clear()
    evaluator.evaluate(clip, draw=draw)
    return sorted(RUNS)


@pytest.fixture
def kept(tmp_path: Path) -> Evaluator:
    """An evaluator whose results on the clip are kept."""
    methods = [method("teacher", "weights"), method("student", "weights")]
    made = Evaluator(methods, DepthKind.RELATIVE, DISFlow("fast"), "dis_fast", Protocol(max_side=40), tmp_path)
    assert runs(made, source()) == ["student", "teacher"]
    assert runs(made, source()) == []
    return made


@pytest.mark.parametrize(
    "changed",
    [
        {"flow_name": "dis"},
        {"protocol": Protocol(max_side=32)},
        {"protocol": Protocol(max_side=40, max_frames=2)},
        {"protocol": Protocol(max_side=40, palindrome=True)},
        {"depth_kind": DepthKind.METRIC},
        {"methods": [method("teacher", "other weights"), method("student", "weights")]},
    ],
    ids=["flow", "side", "frames", "palindrome", "kind of depth", "teacher"],
)
def test_another_setting_runs_all(kept: Evaluator, changed: dict[str, object]) -> None:
    assert set(runs(replace(kept, **changed), source())) == {"student", "teacher"}  # type: ignore[arg-type]
    assert runs(kept, source()) == []


def test_another_clip_runs_all_and_another_student_only_with_its_teacher(kept: Evaluator) -> None:
    assert set(runs(kept, source("another clip"))) == {"student", "teacher"}
    changed = replace(kept, methods=[kept.methods[0], method("student", "other weights")])
    assert "student" in runs(changed, source())
    assert runs(changed, source()) == []


def test_depth_is_kept_for_the_code_that_runs_streams(kept: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher's depth serves other students, but not another way of running and resizing it."""
    changed = replace(kept, methods=[kept.methods[0], method("student", "other weights")])
    assert runs(changed, source()) == ["student"]
    runner = engine.run_streams.__module__
    monkeypatch.setattr(engine, "code_digest", lambda *modules: f"new {modules}" if runner in modules else "old")
    assert runs(changed, source()) == ["student", "teacher"]


@pytest.mark.parametrize("damage", ["content", "file"])
def test_damaged_depth_is_made_again_and_kept(kept: Evaluator, tmp_path: Path, damage: str) -> None:
    (folder,) = (path for path in tmp_path.rglob("teacher-*") if path.is_dir())
    if damage == "content":
        (folder / "depth.npy").write_bytes(b"damaged")
    else:
        shutil.rmtree(folder)
        folder.write_text("a plain file")
    for weights, run in (("second", ["student", "teacher"]), ("third", ["student"])):
        assert runs(replace(kept, methods=[kept.methods[0], method("student", weights)]), source()) == run
    assert "depth" in kept_arrays(folder, dict)


def test_arrays_of_a_faster_process_stand(tmp_path: Path) -> None:
    def make() -> dict[str, np.ndarray]:
        kept_arrays(tmp_path / "folder", lambda: {"faster": np.ones(2)})
        return {"slower": np.ones(2)}

    assert list(kept_arrays(tmp_path / "folder", make)) == ["faster"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_pictures_belong_to_the_length_of_their_video(kept: Evaluator) -> None:
    stills, video = (replace(kept, shown=["student"], video_frames=frames) for frames in (0, 2))
    for drawn in (stills, video):
        assert runs(drawn, source(), draw=True) == ["student"]
        assert runs(drawn, source(), draw=True) == []


def test_a_result_of_nested_brackets_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("[" * 100_000)
    assert read_result(tmp_path / "result.json") is None
