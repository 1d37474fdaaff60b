"""The backbones under MMEngine's registry and Runner."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine", reason="MMEngine is not installed")
pytest.importorskip("accelerate", reason="what the recipes share imports transformers' Trainer")

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "recipes"


def test_registered_models_train_under_the_runner_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    recipe = importlib.import_module("mmengine_classification")
    for split in ("train", "val"):
        for name, value in (("dark", 30), ("light", 220)):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(2):
                picture = np.full((40, 40, 3), value + index, np.uint8)
                Image.fromarray(picture).save(tmp_path / "data" / split / name / f"{index}.png")
    options = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--variant", "2,16", "--size", "32"]
    options += ["--workers", "0", "--batch", "2", "--lr", "5e-3"]
    recipe.main([*options, "--epochs", "2"])
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # a checkpoint of this test
    recipe.main([*options, "--epochs", "3", "--resume"])
    logs = sorted((tmp_path / "out").glob("*/vis_data/scalars.json"))
    found = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    rates = [entry["lr"] for entry in found if "lr" in entry]
    assert rates == pytest.approx([5e-3 * 0.75**3] * len(rates)), "patches are three levels down"
    assert [entry["top1"] >= 0 for entry in found if "top1" in entry] == [True] * 3, "two epochs, then one more"
    with pytest.raises(SystemExit):
        recipe.main([*options, "--family", "contract"])
    backbone = recipe.MODELS.build(
        {"type": "VimBackbone", "depth": 4, "embed_dim": 16, "img_size": 32, "layers": (1, 3)}
    )
    assert [tuple(m.shape) for m in backbone(torch.randn(1, 3, 32, 32))] == [(1, 16, 2, 2)] * 2
    for name in ("mmengine_classification", "image_classification", "common"):
        sys.modules.pop(name, None)
