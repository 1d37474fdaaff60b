"""Teacher folders that do not hold what they should are refused in one line with the remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import save_tiny_teacher

from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.teacher_files import HAS_FORMER_NAMES
from videomamba_depth.utils.errors import UserError

READ_AS_1 = pytest.mark.skipif(HAS_FORMER_NAMES, reason="transformers before 5.18 reads it as 1")


def refused(name: str) -> str:
    with pytest.raises(UserError) as caught:
        DepthAnythingEncoder.from_pretrained(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path, tiny_teacher_folder: str) -> Path:
    return Path(shutil.copytree(tiny_teacher_folder, tmp_path / "teacher"))


def change(folder: Path, **values: Any) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return str(folder)


@pytest.mark.parametrize("kind", ["metric", "relative"])
@pytest.mark.parametrize(
    "max_depth",
    ["ten", -1, True, [10], *(pytest.param(value, marks=READ_AS_1) for value in (None, 0))],
)
def test_a_teacher_without_a_range(tmp_path: Path, max_depth: object, kind: Any) -> None:
    save_tiny_teacher(tmp_path, kind)
    assert "max_depth" in refused(change(tmp_path, max_depth=max_depth))


@pytest.mark.parametrize(
    ("name", "converted"),
    [
        ("depth_anything_v2_vits.pth", "depth-anything/Depth-Anything-V2-Small-hf"),
        ("depth_anything_v2_vitl.pth", "depth-anything/Depth-Anything-V2-Large-hf"),
        ("depth_anything_v2_metric_hypersim_vitb.pth", "depth-anything/Depth-Anything-V2-Metric-Indoor-Base-hf"),
        ("depth_anything_v2_metric_vkitti_vits.pth", "depth-anything/Depth-Anything-V2-Metric-Outdoor-Small-hf"),
        ("depth_anything_vitl14.pth", "LiheYoung/depth-anything-large-hf"),
        ("weights.pt", "LiheYoung/depth-anything-small-hf"),
    ],
)
def test_an_original_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, converted: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    monkeypatch.chdir(tmp_path)
    for given in (name, str(tmp_path / name), str(tmp_path), f"./{name}"):
        assert refused(given).endswith(f"use the converted checkpoint: teacher.name={converted}")


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    assert "is a file; give the folder" in refused(str(folder / "model.safetensors"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pointer_of_git_lfs(folder: Path, name: str) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n")
    assert refused(str(folder)).endswith(f"is a Git LFS pointer, not the file; run git lfs pull in '{folder}'")


def test_another_image_size(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    message = refused(change(folder, backbone_config=config["backbone_config"] | {"image_size": 518}))
    assert str(folder) in message
    assert "position_embeddings" in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "values",
    [
        {"patch_size": None}, {"patch_size": "14"}, {"neck_hidden_sizes": None}, {"neck_hidden_sizes": []},
        {"backbone_config": None}, {"backbone_config": {}}, {"reassemble_factors": [4, 2]}, {"head_hidden_size": -1},
        {"depth_estimation_type": 3}, {"fusion_hidden_size": "x"}, {"head_in_index": 7}, {"head_in_index": None},
    ],
)  # fmt: skip
def test_a_config_that_makes_no_sense(folder: Path, values: dict[str, Any]) -> None:
    assert refused(change(folder, **values))
