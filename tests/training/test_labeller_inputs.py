"""Which version of a clip each part of labelling sees: the student's damaged frames or the teacher's clean ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from videomamba_depth.data.clip import ClipMeta
from videomamba_depth.data.labels.stabilized_cache import TargetSettings
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.motion import MotionEstimator, MotionSpec
from videomamba_depth.training.labeller import Labeller
from videomamba_depth.utils.errors import UserError

SIDE = 42


class RecordingFlow:
    """No flow anywhere; remembers the mean of the frames that it was given."""

    def __init__(self) -> None:
        self.means: set[float] = set()

    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        self.means |= {round(float(frame.mean()), 3) for frame in torch.cat([source, target])}
        return torch.zeros(len(source), 2, *source.shape[-2:])


def test_masks_and_targets_are_of_the_clean_frames_and_motion_of_the_student_s(
    tiny_encoder: DepthAnythingEncoder,
) -> None:
    clean, damaged = (torch.full((1, 3, 3, SIDE, SIDE), value) for value in (0.25, 0.75))
    batch = {"rgb": damaged, "rgb_clean": clean, "meta": [ClipMeta("x", (0, 1, 2), (0.0, 0.1, 0.2))]}
    for target in ("raw", "stabilized"):
        flow, motion = RecordingFlow(), MotionEstimator(MotionSpec())
        motion.flow = RecordingFlow()
        labeller = Labeller(
            tiny_encoder, tiny_encoder, flow, 0.5, 0.06, 8, None, TargetSettings(target, 4, 2.5), motion=motion
        )
        made = labeller(batch, torch.device("cpu"))
        assert flow.means == {0.25}
        assert motion.flow.means == {0.75}
        assert made.motion is not None
        assert torch.equal(made.rgb, damaged)
        assert made.target.static[:, 1:].all()
        assert made.features is not None
        wanted = tiny_encoder.encode_frame(damaged[0])
        torch.testing.assert_close(made.features["s1"][0], wanted["s1"], rtol=0, atol=1e-5)
        torch.testing.assert_close(made.target.depth[0, 0], tiny_encoder.predict_depth(clean[0, :1])[0])


def test_a_chunk_has_the_same_frames_in_all_its_parts(tiny_encoder: DepthAnythingEncoder) -> None:
    clip = torch.rand(1, 5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    batch = {"rgb": clip, "rgb_clean": clip, "meta": [ClipMeta("x", tuple(range(5)), tuple(map(float, range(5))))]}
    motion = MotionEstimator(MotionSpec())
    whole = Labeller(tiny_encoder, tiny_encoder, None, 0.5, 0.06, 8, None, motion=motion)(batch, torch.device("cpu"))
    chunk = whole.chunk(2, 5)
    assert chunk.features is not None
    assert torch.equal(chunk.rgb, clip[:, 2:5])
    for name, features in chunk.features.items():
        wanted = tiny_encoder.encode_frame(clip[0, 2:])[name]
        torch.testing.assert_close(features[0], wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(chunk.target.depth[0], tiny_encoder.predict_depth(clip[0, 2:]), rtol=0, atol=1e-5)
    assert chunk.target.valid.shape == chunk.target.static.shape == chunk.target.depth.shape
    assert chunk.motion is not None
    assert whole.motion is not None
    assert torch.equal(chunk.motion.flow_px, whole.motion.flow_px[:, 2:])
    assert torch.equal(chunk.motion.trusted, whole.motion.trusted[:, 2:])


def test_a_teacher_that_gives_no_numbers_is_refused_and_labels_without_any_are_named_once(
    tiny_encoder: DepthAnythingEncoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clip = torch.rand(1, 2, 3, SIDE, SIDE)
    batch = {"rgb": clip, "rgb_clean": clip, "meta": [ClipMeta("walk", (0, 1), (0.0, 0.1))]}
    labeller, nothing = Labeller(tiny_encoder, tiny_encoder, None, 0.5, 0.06, 8, None), torch.nan
    for _ in range(2):
        made = labeller(batch | {"teacher_depth": torch.full((1, 2, 1, SIDE, SIDE), nothing)}, torch.device("cpu"))
        assert not made.target.valid.any()
    assert [record.getMessage() for record in caplog.records] == [
        "no pixel of a whole batch has a label (videos: walk): nothing is learned from it"
    ]
    monkeypatch.setattr(tiny_encoder, "decode_labels", lambda _, size: torch.full((2, 1, *size), nothing))
    with pytest.raises(UserError, match=r"gives depth that is not finite \(videos: walk\)"):
        labeller(batch, torch.device("cpu"))
    monkeypatch.setattr(tiny_encoder, "masks", True)
    labeller(batch, torch.device("cpu"))
