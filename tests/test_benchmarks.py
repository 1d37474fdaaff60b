"""The benchmarks' models are those of the recipe, and the script for a GPU runs as a whole without one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import random_models  # noqa: E402
from gpu_bench import Bench  # noqa: E402

from videomamba_depth.configuration.cli import load_config  # noqa: E402
from videomamba_depth.configuration.schema import TrainConfig  # noqa: E402
from videomamba_depth.models.motion import MotionSpec  # noqa: E402
from videomamba_depth.models.output_refiner import OutputSpec  # noqa: E402


def test_the_recipe_is_that_of_the_config() -> None:
    model = load_config("train", TrainConfig, []).model
    assert model.temporal() == random_models.RECIPE
    assert (model.flow, model.output, model.geometry) == (MotionSpec(), OutputSpec(), None)


def test_every_part_for_a_gpu_runs_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run", "--output", str(output), "--minutes", "60"])
    status = gpu.main()
    text, found = capsys.readouterr().out, json.loads(output.read_text())
    assert (found["failed"], found["left_out"]) == ({}, [])
    assert [check for check in found["checks"] if not check["ok"]] == []
    assert status == 0
    assert found["seconds"].keys() == gpu.parts(Bench(True, 1, None)).keys()
    for part in ("ceilings", "scan", "flow", "streams", "graph", "training", "peers"):
        assert found[part]
    assert {row["model"] for row in found["streams"]} == {"teacher", "recipe", "recipe + geometry"}
    assert "tiny 70x42 float32 recipe + geometry" in text
    assert text.rstrip().endswith("checks passed")


def test_what_is_wrong_or_late_is_named_and_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(True, 1.0, tmp_path / "gpu.json")
    bench.run("broken", 0, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    bench.run("late", 61, lambda: None)
    bench.run("wrong", 0, lambda: bench.check("an error", float("nan"), 1.0))
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failed"] == {"broken": "ZeroDivisionError: division by zero"}
    assert found["left_out"] == ["late"]
    assert [check["ok"] for check in found["checks"]] == [False]
    assert "FAIL an error" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 2
    assert "--dry-run" in capsys.readouterr().err
