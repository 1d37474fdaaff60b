"""A stream with geometry writes where its camera was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from media import write_video
from tiny import save_student_with_flow

from videomamba_depth.commands.stream import main
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.utils.errors import UserError


@pytest.fixture
def named(tiny_teacher_folder: str, tmp_path: Path) -> list[str]:
    """Arguments of a stream whose student has flow."""
    save_student_with_flow(tmp_path, tiny_teacher_folder)
    video = write_video(tmp_path / "clip.mp4", 7)
    return [f"checkpoint={tmp_path}/last", f"input={video}", f"output={tmp_path}/out", "device=cpu", "video=none"]


def test_one_pose_per_frame(named: list[str], tmp_path: Path) -> None:
    main(load_config("stream", StreamConfig, [*named, "geometry=true", "poses=true"]))
    rows = np.loadtxt(tmp_path / "out" / "clip.poses.txt")
    lines = [json.loads(line) for line in (tmp_path / "out" / "clip.frames.jsonl").read_text().splitlines()]
    assert rows.shape == (7, 8)
    np.testing.assert_allclose(rows[:, 0], [line["time_s"] for line in lines], atol=1e-6)
    np.testing.assert_allclose(rows[0, 1:], [0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_allclose(np.linalg.norm(rows[:, 4:], axis=1), 1, atol=1e-6)
    assert all({"evidence", "noise_px"} <= line["camera"].keys() for line in lines)
    record = json.loads((tmp_path / "out" / "clip.json").read_text())
    assert record["outputs"]["clip.poses.txt"]["files"] == 1


def test_without_geometry_there_are_none(named: list[str], tmp_path: Path) -> None:
    main(load_config("stream", StreamConfig, named))
    assert not (tmp_path / "out" / "clip.poses.txt").exists()
    assert "camera" not in (tmp_path / "out" / "clip.frames.jsonl").read_text()
    with pytest.raises(UserError, match=r"poses=true: .* does not follow its camera; set geometry=true too"):
        main(load_config("stream", StreamConfig, [*named, "poses=true", "overwrite=true"]))
    with pytest.raises(UserError, match="poses=true writes a file"):
        load_config("stream", StreamConfig, [*named[:2], "output=-", "poses=true"])
