"""A tiny student on disk, and a video to stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from media import write_video
from tiny import tiny_student

from videomamba_depth.models.checkpoint import describe_encoder, load_student, save_student, student_weights
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_folder: str) -> Path:
    """A student's folder; its temporal weights have moved away from their start."""
    tiny_encoder = DepthAnythingEncoder.from_pretrained(tiny_teacher_folder)
    root = tmp_path_factory.mktemp("run")
    tiny_encoder.save_pretrained(root / "encoder")
    folder = root / "last"
    folder.mkdir()
    spec = TemporalSpec(*(ScaleSpec(num_blocks=n, backend="reference") for n in (1, 1, 2, 2)))
    about = describe_encoder(tiny_encoder, "../encoder")
    save_student(folder, student_weights(tiny_student(tiny_encoder)), spec, about, short_side=42)
    return folder


@pytest.fixture
def student(checkpoint: Path) -> VideoMambaDepth:
    """The same, loaded."""
    return load_student(checkpoint)


@pytest.fixture
def frames() -> np.ndarray:
    """uint8 [8, 47, 65, 3], drawn at random: nothing is alike in two frames."""
    return np.random.default_rng(0).integers(0, 256, (8, 47, 65, 3), np.uint8)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """12 frames of 64x48 at 10 frames/s."""
    return write_video(tmp_path / "clip.mp4", 12)
