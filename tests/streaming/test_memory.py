"""A long stream takes no more memory than a short one. Run with `pytest -m slow tests/streaming/test_memory.py`."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from videomamba_depth.commands.stream import main
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.data.video.reader import VideoWriter


@pytest.mark.slow
def test_resident_memory_stays(tmp_path: Path, checkpoint: Path) -> None:
    source = tmp_path / "long.mp4"
    texture = np.random.default_rng(0).integers(0, 256, (180, 640, 3), np.uint8)
    with VideoWriter(source, size=(320, 180), time_base=Fraction(1, 30), crf=30, preset="ultrafast") as writer:
        for index in range(3000):
            writer.write(np.ascontiguousarray(np.roll(texture, index, 1)[:, :320]))
    named = [f"checkpoint={checkpoint}", f"input={source}", f"output={tmp_path}/out", "raw=npz", "device=cpu"]
    main(load_config("stream", StreamConfig, named))
    about = json.loads((tmp_path / "out" / "long.json").read_text())
    assert about["num_frames"] == 3000
    # measured: see docs/streaming.md
    assert about["resident_mb"]["frame_3000"] - about["resident_mb"]["warm"] < 20
