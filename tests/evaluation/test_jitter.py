"""A teacher that jitters as a whole: the same for teacher and student, drawn anew in every frame and clip."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch

from videomamba_depth.evaluation.jitter import WAVE_FRAMES, TeacherJitter
from videomamba_depth.evaluation.model_methods import teacher_method
from videomamba_depth.models.checkpoint import bare_teacher
from videomamba_depth.models.encoder_da import DepthAnythingEncoder

CPU = torch.device("cpu")
FRAMES = torch.rand(4, 1, 3, 42, 56, generator=torch.Generator().manual_seed(0))


def amounts(jitter: TeacherJitter, count: int, first: int = 0) -> np.ndarray:
    return np.array(list(islice(jitter.amounts(FRAMES[first]), count)))


def test_what_is_drawn() -> None:
    jitter = TeacherJitter(scale=0.06, shift=0.02)
    many = amounts(jitter, 4000)
    np.testing.assert_allclose(many.std(0), [0.06, 0.02], rtol=0.05)
    np.testing.assert_allclose(many.mean(0), 0, atol=0.003)
    assert abs(np.corrcoef(many[1:, 0], many[:-1, 0])[0, 1]) < 0.05
    np.testing.assert_array_equal(amounts(jitter, 5), many[:5])
    assert not np.allclose(amounts(jitter, 5, first=1), many[:5])
    wave = amounts(TeacherJitter(drift=0.06), 2 * WAVE_FRAMES)
    np.testing.assert_allclose(np.abs(wave).max(0), 0.06, rtol=0.01)
    np.testing.assert_allclose(wave[:WAVE_FRAMES], wave[WAVE_FRAMES:], atol=1e-12)
    assert np.abs(np.diff(wave, axis=0)).max() < 0.005
    assert [bool(one) for one in (TeacherJitter(), TeacherJitter(shift=0.1), jitter)] == [False, True, True]


def test_teacher_and_student_get_the_same(tiny_encoder: DepthAnythingEncoder) -> None:
    jitter = TeacherJitter(scale=0.06, shift=0.06, drift=0.06)
    student = bare_teacher(tiny_encoder)
    teacher = teacher_method(tiny_encoder, CPU, torch.float32)
    steady = teacher.open()
    streams = [
        jitter.of_method(teacher, tiny_encoder.head).open(),
        jitter.of_method(teacher, tiny_encoder.head).open(),
        jitter.of(lambda frame: student.step(frame)[0].detach(), student.head),
    ]
    for t, (s, b) in enumerate(amounts(jitter, len(FRAMES))):
        depth, *others = (stream(FRAMES[t]) for stream in [steady, *streams])
        expected = (1 + s) * depth + b * depth.mean()
        for other in others:
            torch.testing.assert_close(other, expected, rtol=1e-5, atol=1e-5)
    assert teacher == TeacherJitter().of_method(teacher, tiny_encoder.head)
    assert not tiny_encoder.head._forward_hooks
