"""The data that is drawn for the recipes: what masks, boxes, folders and descriptions say is what is seen."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from videomamba_depth.data.video.reader import probe_video, read_frames

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "recipes"


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(RECIPES))
    yield importlib.import_module("draw_data")
    for name in ("draw_data", "coco"):
        sys.modules.pop(name, None)


def test_pictures_masks_and_boxes_agree(draw: ModuleType, tmp_path: Path) -> None:
    for out in (tmp_path / "a", tmp_path / "b"):
        draw.draw_scenes(np.random.default_rng(0), out, "train", 4, 48)
        draw.draw_shapes(np.random.default_rng(0), out / "shapes", 1, 48)
    pictures = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.png"))
    assert len(pictures) == 3 * 4 + 5, "of few pictures too there is one of each shape"
    assert {path.name for path in (tmp_path / "a" / "shapes").iterdir()} == set(draw.SHAPES)
    for path in pictures:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    data = importlib.import_module("coco").Coco(tmp_path / "a" / "coco", "train")
    for index, item in enumerate(data):
        target = item["targets"]
        last = target["masks"][-1].bool()  # in front
        mask = torch.from_numpy(np.array(Image.open(tmp_path / f"a/scenes/train/masks/{index:04d}.png")))
        assert (mask[last] == target["labels"][-1]).all()
        assert (mask == 0).any()
        inside = item["images"][:, last]
        assert inside.std(1).max() < 0.01, "one color"
        rows, columns = torch.nonzero(last, as_tuple=True)
        left, top, right, bottom = target["boxes"][-1].tolist()
        assert [columns.min(), rows.min(), columns.max(), rows.max()] == pytest.approx(
            [left, top, right, bottom], abs=1.5
        )
        if index == 3:
            break


def test_clips_do_what_their_folders_say(
    draw: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(draw, "SHAPES", {"circle": draw.SHAPES["circle"]})
    monkeypatch.setattr(draw, "COLORS", {"red": draw.COLORS["red"]})
    draw.draw_motions(np.random.default_rng(0), tmp_path, "val", 1, 64)
    lines = (tmp_path / "val.tsv").read_text().splitlines()
    assert [line.split("\t")[1] for line in lines] == [f"a red circle {motion}" for motion in draw.MOTIONS]
    for line in lines:
        path = tmp_path / line.split("\t")[0]
        assert probe_video(path).num_frames == draw.FRAMES
        frames = read_frames(path, [0, draw.FRAMES - 1]).astype(int)
        red = frames[..., 0] - frames[..., 1:].max(-1) > 60
        rows, counts = [np.nonzero(mask)[0].mean() for mask in red], red.sum((1, 2))
        motion = path.parent.name
        assert {"rises": rows[1] < rows[0] - 3, "falls": rows[1] > rows[0] + 3}.get(motion, True)
        assert {"grows": counts[1] > 2 * counts[0], "shrinks": counts[1] < counts[0] / 2}.get(motion, True)


def test_the_random_clip_tells_descriptions_apart(draw: ModuleType, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, CLIPTextModel, CLIPVisionModel

    torch.manual_seed(0)
    draw.save_clip(tmp_path, 64)
    words = AutoTokenizer.from_pretrained(tmp_path)(["a red star grows", "a blue star grows"], return_tensors="pt")
    assert (words["input_ids"] != 1).all(), "no word is unknown"
    with torch.no_grad():
        a, b = CLIPTextModel.from_pretrained(tmp_path)(**words).pooler_output
        assert (a - b).norm() > 0.01 * a.norm()
        assert CLIPVisionModel.from_pretrained(tmp_path)(torch.zeros(1, 3, 64, 64)).last_hidden_state.shape == (
            1,
            17,
            64,
        )
