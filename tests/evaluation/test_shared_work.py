"""What the methods of a clip share is worked out once, and changes no number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny import tiny_student, tiny_teacher

from videomamba_depth.evaluation import model_methods
from videomamba_depth.evaluation.clips import EvaluationClip
from videomamba_depth.evaluation.encoded_frames import EncodedFrames
from videomamba_depth.evaluation.engine import Evaluator, Protocol
from videomamba_depth.evaluation.model_methods import feature_average_method, student_method, teacher_method
from videomamba_depth.flow.estimators import DISFlow
from videomamba_depth.flow.frame_view import FrameView, computed, mapped, recent, remembered
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.utils.depth_kind import DepthKind

CPU = (torch.device("cpu"), torch.float32)
NUM_FRAMES, CUT_FRAMES = 8, 3


@pytest.mark.parametrize("max_bytes", [10**9, 0], ids=["all held", "the last held"])
def test_a_frame_is_encoded_once_for_all_methods_and_runs(monkeypatch: pytest.MonkeyPatch, max_bytes: int) -> None:
    encoder = DepthAnythingEncoder(tiny_teacher(), "tiny", short_side=42)
    student = tiny_student(encoder)
    monkeypatch.setattr(model_methods, "read_description", lambda path: {})
    frames = np.random.default_rng(0).integers(0, 255, (NUM_FRAMES, 42, 56, 3)).astype(np.uint8)
    flow = DISFlow("fast")
    count: list[int] = []
    encode = DepthAnythingEncoder.encode_frame

    def counted(self: DepthAnythingEncoder, rgb: torch.Tensor, **checked: bool) -> dict[str, torch.Tensor]:
        count.append(len(rgb))
        return encode(self, rgb, **checked)

    monkeypatch.setattr(DepthAnythingEncoder, "encode_frame", counted)

    def scores(encoded: Callable[[], EncodedFrames]) -> str:
        count.clear()
        methods = [
            teacher_method(encoder, *CPU, encoded()),
            feature_average_method(encoder, flow, "dis", *CPU, encoded()),
            student_method("student", "nowhere", student, 1.0, *CPU, encoded()),
        ]
        protocol = Protocol(palindrome=True, cut_frames=CUT_FRAMES)
        return str(
            Evaluator(methods, DepthKind.RELATIVE, flow, protocol=protocol).evaluate(EvaluationClip("c", frames))
        )

    alone = scores(lambda: EncodedFrames(encoder, max_bytes=0))
    shared = EncodedFrames(encoder, max_bytes)
    together = scores(lambda: shared)
    assert together == alone
    again = 0 if max_bytes else NUM_FRAMES - 1 + CUT_FRAMES  # backwards, and the first frames after the cut
    assert len(count) == NUM_FRAMES + CUT_FRAMES + again


def test_frames_are_computed_once() -> None:
    read: list[int] = []

    def frame(t: int) -> np.ndarray:
        read.append(t)
        return np.full((2, 3), t, np.float32)

    view = FrameView(frame, 4)
    neighbors = recent(view)
    assert [float((neighbors[t] - neighbors[t - 1]).sum()) for t in (1, 2, 3)] == [6.0] * 3
    assert read == [1, 0, 2, 3]
    read.clear()
    kept = computed(mapped(np.square, view))
    np.testing.assert_array_equal(kept[:], np.square(view[:]))
    read.clear()
    assert kept[3][0, 0] == 9.0
    assert read == []


def test_what_is_remembered_depends_on_all_arguments() -> None:
    calls: list[object] = []

    @remembered
    def total(frames: FrameView, *about: object) -> int:
        calls.append(about)
        return len(calls)

    view, other = (FrameView(lambda t: np.zeros(1), 2) for _ in range(2))
    array = np.zeros(2)
    for about in ((), (1,), (2.5,), ([1, 2],), (array,), (array.copy(),), (other,)):
        assert total(view, *about) == total(view, *about)
    assert len(calls) == 7
    assert total(other) != total(view)
    assert total(np.zeros((1, 1)), 1) != total(np.zeros((1, 1)), 1)  # arrays may change
