"""Clips that are labeled ahead, in a thread, are those that are labeled when they are asked for."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from videomamba_depth.configuration.build import build_trainer
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.training.distributed import Ranks
from videomamba_depth.training.labeller import Labeller
from videomamba_depth.training.prefetch import LabelledClips
from videomamba_depth.training.run_folder import RunFolder
from videomamba_depth.utils.errors import UserError

CPU = torch.device("cpu")


def numbers() -> Iterator[dict[str, Any]]:
    return ({"number": i} for i in itertools.count())


def test_one_ahead_in_order_and_an_error_when_its_clip_is_wanted() -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def label(batch: dict[str, Any], device: torch.device) -> Any:
        begun.append(batch["number"])
        if batch["number"] == 1:
            assert go_on.wait(60)
        if batch["number"] == 2:
            raise UserError("the third clip is damaged")
        return batch["number"], threading.current_thread() is threading.main_thread()

    clips = LabelledClips(numbers(), label, CPU)
    assert begun == []
    assert clips.take() == (0, False)
    clips.begin_next()
    clips.begin_next()
    go_on.set()
    assert clips.take() == (1, False)
    assert begun == [0, 1]
    clips.begin_next()
    with pytest.raises(UserError, match="third clip"):
        clips.take()
    clips.begin_next()
    clips.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("labels")]
    assert LabelledClips(numbers(), label, CPU, ahead=False).take() == (0, True)


def test_labeling_beside_a_forward_pass_keeps_its_cast_weights() -> None:
    """A weight that is cast twice in one pass has its gradients added in another order."""

    def label(batch: dict[str, Any], device: torch.device) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return F.linear(torch.ones(1, 4), torch.ones(4, 4)).dtype

    weight, clips = nn.Parameter(torch.rand(4, 4)), LabelledClips(numbers(), label, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        before = F.linear(torch.ones(1, 4), weight)
        assert clips.take() is torch.bfloat16
        after = F.linear(torch.ones(1, 4), weight)
    clips.close()
    casts = [_cast(y) for y in (before, after)]
    assert casts[0] is casts[1]


def _cast(product: torch.Tensor) -> Any:
    """Return the node of the graph that casts the weight of a product."""
    node: Any = product.grad_fn
    while type(node).__name__ != "ToCopyBackward0":
        node = next(before for before, _ in node.next_functions if before is not None)
    return node


def train(folder: Path, teacher: str, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[dict[str, Any], int]:
    labelled = []
    real = Labeller.__call__
    monkeypatch.setattr(Labeller, "__call__", lambda self, *given: labelled.append(given) or real(self, *given))
    numbers = {
        "data.clip_frames": 5, "data.p_single_frame": 0, "data.batch_size": 2, "data.short_side": 28,
        "data.crop": "[28,42]", "model.scan_backend": "reference", "trainer.chunk_frames": 3, "trainer.device": "cpu",
        "trainer.logger": "none", "trainer.picture_every": 0, "trainer.precision": "bfloat16", "trainer.steps": 4,
    }  # fmt: skip
    given = [f"teacher.name={teacher}", "debug=smoke", *(f"{k}={v}" for k, v in numbers.items()), *overrides]
    config = load_config("train", TrainConfig, given)
    trainer = build_trainer(config, Ranks(0, 1, CPU), RunFolder(folder), asdict(config))
    assert trainer.fit()
    monkeypatch.undo()
    return trainer.student.state_dict(), len(labelled)


def test_training_is_the_same_and_labels_no_clip_that_it_does_not_use(
    tmp_path: Path, tiny_teacher_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips of 5 frames in chunks of 3 are two steps each."""
    ahead, count = train(tmp_path / "ahead", tiny_teacher_folder, monkeypatch)
    assert count == 2
    now, _ = train(tmp_path / "now", tiny_teacher_folder, monkeypatch, "trainer.prefetch=false")
    assert all(torch.equal(ahead[name], now[name]) for name in now)
