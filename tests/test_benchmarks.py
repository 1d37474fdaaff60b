"""The benchmarks' models are those of the recipe, and the script for a GPU runs as a whole without one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import encode_every  # noqa: E402
import gpu  # noqa: E402
import page  # noqa: E402
import random_models  # noqa: E402
import streaming  # noqa: E402
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


def test_streams_are_timed_in_turn_and_part_by_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, clip = tmp_path / "found.json", ROOT / page.CLIP
    short = ["--size", "tiny", "--sizes", "28", "--frames", "2", "--warm-up", "1", "--repeats", "1", "--device", "cpu"]
    given = [*short, "--video", str(clip), "--frames-of-video", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["streaming.py", *given])
    streaming.main()
    found = json.loads(output.read_text())
    assert [row["model"] for row in found["frames"]] == ["teacher", "recipe", "recipe + geometry"]
    assert found["frames"][0]["over_teacher"] == [1.0, 1.0, 1.0]
    for row in (*found["parts"], *found["end_to_end"]):
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert ("flow" in row["shares"], "geometry" in row["shares"]) == (
            row["model"] != "teacher",
            "geo" in row["model"],
        )
    assert {"encode video", "decode, close files", "color", "resize"} <= found["end_to_end"][1]["shares"].keys()
    assert "recipe + geometry" in capsys.readouterr().out


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(page.RESULTS)
    about = {"device": "a GPU", "date": "2026-01-01", "torch": "2.11"}
    check = {"what": "flow", "error": 2.0, "most": 1.0, "ok": False}
    found = {"about": about, "checks": [check], "failed": {"scan": "why"}, "left_out": ["late"]}
    (tmp_path / "gpu.json").write_text(json.dumps(found))
    text = page.page(tmp_path)
    for words in ("a GPU, 2026-01-01, torch 2.11.", "0 of 1 checks", "not right: flow", "failed: scan: why", "late"):
        assert words in text
    assert "| FlashDepth | 2044x1148 | 24 |" in text


def test_frames_that_are_not_encoded_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    encode_every.main(["--model", "tiny", "--sizes", "56", "--rounds", "1", "--learned"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    counts = {line[1]: line[-1] for line in lines if line and line[0] == "every"}
    assert counts == {"1": "4", "2": "2", "4": "1"}
