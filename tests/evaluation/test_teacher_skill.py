"""What a teacher knows about single pictures, and the baselines that it is held against."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from commands import load_script

from videomamba_depth.evaluation.teacher_skill import baseline, mean_skill, picture_skill, skill_on_worlds
from videomamba_depth.models.small_depth_anything import NATIVE_SIZE
from videomamba_depth.utils.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "evaluate_teacher.py"


def floor(height: int = 24, width: int = 32) -> np.ndarray:
    """Return the depth in m of a level floor with a box on it: inverse depth is a ramp plus a step."""
    inverse = np.linspace(0.1, 1.0, height)[:, None].repeat(width, 1)
    inverse[8:16, 10:20] = 0.9
    return (1 / inverse).astype(np.float32)


def test_the_truth_of_any_scale_and_shift_scores_zero() -> None:
    depth_m = floor()
    valid = np.ones_like(depth_m, bool)
    scores = mean_skill([(3 / depth_m + 0.7, depth_m, valid)], 80.0, edges=True)
    assert scores["abs_rel"] == pytest.approx(0, abs=1e-4)
    assert scores["delta1"] == 1
    assert scores["boundary_f1"] == 1
    assert 0 < scores["ramp"] < scores["constant"], "a floor is nearly a ramp"


def test_baselines_by_hand() -> None:
    depth_m = np.array([[1.0, 1.0], [0.5, 0.25]], np.float32)
    valid = np.ones_like(depth_m, bool)
    constant = picture_skill(baseline("constant", 2, 2), depth_m, valid, 80.0)
    assert constant["abs_rel"] == pytest.approx(np.mean([0.5, 0.5, 0, 1]), rel=1e-6)  # mean inverse depth 2 → 0.5 m
    ramp = picture_skill(baseline("ramp", 2, 2), depth_m, valid, 80.0)
    assert ramp["abs_rel"] == pytest.approx(np.mean([0, 0, 1 / 3, 1 / 3]), rel=1e-6)  # rows 1 and 3 → 1 m and 1/3 m


def test_pixels_without_truth_do_not_matter() -> None:
    depth_m = floor()
    valid = np.ones_like(depth_m, bool)
    valid[:4] = False
    wild = depth_m.copy()
    wild[:4] = np.nan
    p = np.random.default_rng(0).uniform(0.5, 2, depth_m.shape).astype(np.float32)
    q = p.copy()
    q[:4] = 1000
    assert picture_skill(p, depth_m, valid, 80.0) == picture_skill(q, wild, valid, 80.0)
    assert mean_skill([(p, depth_m, np.zeros_like(valid))], 80.0, edges=False) == {}


def test_a_constant_teacher_is_no_better_than_the_constant_on_worlds() -> None:
    def constant(rgb: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(rgb), 1, *rgb.shape[-2:])

    scores = skill_on_worlds(constant, 2, ["tabletop"])["tabletop"]
    assert scores["abs_rel"] == pytest.approx(scores["constant"], abs=1e-4)
    assert scores["boundary_f1"] == 0


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("evaluate_teacher")


def test_the_command_measures_a_teacher_on_a_folder(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    depth_m, rgb = floor(56, 70), np.random.default_rng(0).integers(0, 256, (56, 70, 3), np.uint8)
    own, official = tmp_path / "own", tmp_path / "office" / "seq-01"
    for path, image in (
        (own / "depth" / "0.png", (1000 * depth_m).astype(np.uint16)),
        (own / "rgb" / "0.png", rgb),
        (official / "frame-000000.depth.png", (1000 * depth_m).astype(np.uint16)),
        (official / "frame-000000.color.png", rgb),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    sets = [f"mine=1000:{own}", f"named=7scenes:{tmp_path}", f"known={tmp_path / 'office'}"]
    script.main(["embedded", "--frames", "0", "--rgbd", *sets, "--json", str(tmp_path / "s.json")])
    report = json.loads((tmp_path / "s.json").read_text())
    scores = report["mine"]["embedded"]
    assert 0 < scores["abs_rel"] < 1.5
    assert report["named"] == report["known"] == report["mine"]
    assert f"| mine | embedded | {scores['abs_rel']:.3f} |" in capsys.readouterr().out
    assert script.native_size("embedded") == NATIVE_SIZE
    for wrong, message in (
        ("unknown:/nowhere", "a layout of vda"),
        (own, "is no data set"),
        (f"tum:{own}", "must have"),
    ):
        with pytest.raises(UserError, match=message):
            script.main(["embedded", "--rgbd", f"mine={wrong}"])


def test_a_sheet_of_pictures_has_a_row_for_each_video(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 36, 64, 3), np.uint8)
    for name, image in zip(("videos/walk", "videos/drive"), noise, strict=True):
        (tmp_path / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / name / "0.png"), image)
    arguments = ["embedded", "--frames", "0", "--videos", str(tmp_path / "videos"), "--pictures"]
    sizes = []
    for extra in ([], ["--depth-only"]):
        script.main([*arguments, str(tmp_path / "new" / "sheet.png"), *extra])
        sizes.append(cv2.imread(str(tmp_path / "new" / "sheet.png")).shape[:2])
    assert sizes[0] == (2 * (180 + 22), 2 * 320)
    assert sizes[1] == (2 * (180 + 22), 320)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"\.jpg or \.png"):
        script.main([*arguments, str(tmp_path / "sheet.txt")])
    with pytest.raises(UserError, match="go together"):
        script.main(arguments[:-1])
