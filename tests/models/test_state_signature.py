"""A state is taken only by a model in which it means the same, whatever its shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth

BASE = ScaleSpec(num_blocks=1, d_state=4, backend="reference")
DIFFERENT = {
    "num_blocks": 2, "form": "plain", "d_state": 3, "d_conv": 3, "expand": 2, "heads": 2, "advect": False,
    "discretization": "foh",
}  # fmt: skip
EQUAL = {"initial_gain": 0.5, "backend": "cpp"}  # where weights start and who computes: no state depends on them


def student(encoder: DepthAnythingEncoder, **changed: Any) -> VideoMambaDepth:
    off = ScaleSpec(num_blocks=0)
    spec = TemporalSpec(off, replace(BASE, **changed), off, off)
    return VideoMambaDepth(encoder, encoder.head, spec, motion=MotionSpec()).eval()


@pytest.mark.parametrize("name", [*DIFFERENT, *EQUAL])
@torch.no_grad()
def test_a_state_of_another_structure_is_refused(tiny_encoder: DepthAnythingEncoder, name: str) -> None:
    frame = torch.rand(1, 3, 42, 56, generator=torch.Generator().manual_seed(0))
    _, states = student(tiny_encoder).step(frame)
    other = student(tiny_encoder, **{name: {**DIFFERENT, **EQUAL}[name]})
    if name in EQUAL:
        _, after = other.step(frame, states)
        assert after.frame_index.tolist() == [2]
    else:
        with pytest.raises(ValueError, match="the state belongs to another model"):
            other.step(frame, states)


@torch.no_grad()
def test_a_reset_zeroes_all_that_one_stream_carries(tiny_encoder: DepthAnythingEncoder) -> None:
    """An all-zero state is a new stream: layers, maps and the frame's number; the other stream's stay."""
    off = ScaleSpec(num_blocks=0)
    parts = {"motion": MotionSpec(), "output": OutputSpec()}
    model = VideoMambaDepth(tiny_encoder, tiny_encoder.head, TemporalSpec(off, BASE, off, BASE), **parts).eval()  # type: ignore[arg-type]
    _, states = model.step(torch.rand(2, 3, 42, 56, generator=torch.Generator().manual_seed(0)))
    reset = states.reset(torch.tensor([True, False])).tensors()
    assert {name.partition(".")[0] for name in reset} == {"frame_index", "s1", "s3", "map"}
    for name, tensor in states.tensors().items():
        (before, kept), (zeroed, same) = (t.unflatten(0, (2, -1)) for t in (tensor, reset[name]))
        assert bool(before.any()), name
        assert not bool(zeroed.any()), name
        assert torch.equal(same, kept), name
