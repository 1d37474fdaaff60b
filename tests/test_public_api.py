"""What the README shows: three names, and snippets that run as they are printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT
from tiny import tiny_student

import videomamba_depth
from videomamba_depth.models.checkpoint import EMBEDDED_STUDENT, bare_teacher, load_student
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.temporal_mamba import temporal_detokenize, temporal_tokenize
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.stream import DepthStream


def test_the_package_gives_three_names_and_refuses_others() -> None:
    assert videomamba_depth.load_student is load_student
    assert videomamba_depth.VideoMambaDepth is VideoMambaDepth
    assert videomamba_depth.DepthStream is DepthStream
    assert {"DepthStream", "VideoMambaDepth", "load_student"} <= set(dir(videomamba_depth))
    with pytest.raises(AttributeError, match="no attribute 'load_students'"):
        videomamba_depth.load_students  # noqa: B018


def test_importing_the_package_costs_nothing() -> None:
    program = (
        "import sys, logging, videomamba_depth, videomamba_depth.utils.errors\n"
        "assert not {'torch', 'transformers', 'cv2'} & set(sys.modules), 'heavy'\n"
        "from videomamba_depth import DepthStream\n"
        "assert not logging.getLogger().handlers"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_snippets_of_the_readme_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "last").symlink_to(EMBEDDED_STUDENT)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        if "PRESETS" not in block:  # the backbone's: test_acceptance_runtime.py runs it
            exec(compile(block, "README.md", "exec"), names)
    assert len(blocks) == 3
    assert names["prediction"].depth.shape == (1, 3, 1, 112, 140)
    assert names["stream"].states.frame_index.item() == names["states"].frame_index.item() == 8


def test_a_prediction_reads_as_depth_and_states(tiny_encoder: DepthAnythingEncoder) -> None:
    model = tiny_student(tiny_encoder)
    clip = torch.rand(1, 3, 3, 30, 44)
    with torch.no_grad():
        features = model.encode(clip)
        prediction = model(clip)
        depth, states, summaries = model(clip, features=features, out_size=(15, 22))
    assert prediction.depth.shape == (1, 3, 1, 30, 44)
    assert depth.shape == (1, 3, 1, 15, 22)
    assert torch.equal(states.frame_index, prediction.states.frame_index)
    height, width = features["s3"].shape[-2:]
    assert [tuple(s.shape) for s in summaries["s3"]] == [(1, 3, 4, height, width)] * 2


def test_the_bare_teacher_is_a_student_without_blocks(tiny_encoder: DepthAnythingEncoder, tmp_path: Path) -> None:
    model = bare_teacher(tiny_encoder)
    clip = torch.rand(1, 3, 3, 30, 44)
    depth, states, summaries = model(clip)
    assert torch.equal(depth[0], tiny_encoder.predict_depth(clip[0]))
    assert not depth.requires_grad
    assert (model.signature, summaries, list(states.tensors())) == ("frame by frame", {}, ["frame_index"])
    states.save(tmp_path / "state")
    assert model.step(clip[:, 0], states.load(tmp_path / "state"))[1].frame_index.item() == 4


def test_tokens_are_one_sequence_per_pixel() -> None:
    maps = torch.arange(2 * 3 * 4 * 5 * 6).view(2, 3, 4, 5, 6)  # [B, N, C, H, W]
    tokens = temporal_tokenize(maps)
    assert tokens.shape == (2 * 5 * 6, 3, 4)
    assert torch.equal(tokens[7], maps[0, :, :, 1, 1])
    assert torch.equal(temporal_detokenize(tokens, (5, 6)), maps)
