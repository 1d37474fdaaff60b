"""A training step on another device has the losses and the gradients of the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from devices import DEVICES
from test_resume import train

from videomamba_depth.utils.logger import read_json_lines

pytestmark = pytest.mark.usefixtures("no_tf32")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [("model=plain_stack", "loss=raw"), ("model.flow.estimator=inverse_search",)])
def test_two_steps_have_the_losses_of_the_cpu(
    tmp_path: Path, tiny_teacher_folder: str, device: str, options: tuple[str, ...]
) -> None:
    common = (
        "trainer.steps=2",
        "trainer.precision=float32",
        "data.p_single_frame=0",
        "model.scan_backend=auto",
        *options,
    )
    records = []
    for name in ("cpu", device):
        run = tmp_path / f"{len(records)}_{name}"
        assert train(run, tiny_teacher_folder, *common, f"trainer.device={name}")
        records.append(read_json_lines(run / "metrics.jsonl"))
    for expected, got in zip(*records, strict=True):
        compared = [key for key in expected if key.startswith("loss/") or key == "optim/grad_norm"]
        assert len(compared) > 2
        for key in compared:
            assert got[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-6), key
