"""The carried output of a student whose frames stay in place: no flow says that the first frame has no past."""

from __future__ import annotations

import torch

from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth


@torch.no_grad()
def test_the_first_frame_is_the_teacher_s_and_the_others_have_a_past(tiny_encoder: DepthAnythingEncoder) -> None:
    spec = TemporalSpec(*(ScaleSpec(num_blocks=0) for _ in range(4)))
    student = VideoMambaDepth(tiny_encoder, tiny_encoder.head, spec, output=OutputSpec()).eval()
    clip = torch.rand(2, 3, 3, 42, 56, generator=torch.Generator().manual_seed(0))
    teacher = tiny_encoder.predict_depth(clip.flatten(0, 1)).unflatten(0, (2, 3))
    spread = float(teacher.max() - teacher.min())
    for split in ([3], [1, 1, 1], [2, 1]):
        states, parts = None, []
        for chunk in clip.split(split, 1):
            depth, states, _ = student(chunk, states)
            parts.append(depth)
        depth = torch.cat(parts, 1)
        assert (depth[:, 0] - teacher[:, 0]).abs().max() < 1e-5 * spread
        assert (depth[:, 1:] - teacher[:, 1:]).abs().max() > 1e-2 * spread
    reset = student(clip[:, :1], states.reset(torch.tensor([True, False])))[0][:, 0]  # type: ignore[union-attr]
    assert (reset[0] - teacher[0, 0]).abs().max() < 1e-5 * spread
    assert (reset[1] - teacher[1, 0]).abs().max() > 1e-2 * spread
