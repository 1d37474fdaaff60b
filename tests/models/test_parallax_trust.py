"""A learned trust: it changes nothing before it has learned, only what parallax corrects, and nothing that is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_geometry_in_the_stream import BLACK, SPEC, H, W, Walk, pictures, teacher, walk
from torch import Tensor, nn

from videomamba_depth.models.checkpoint import describe_encoder, load_student, save_student, student_weights
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.geometry import FIT, SCENE, Geometry, GeometrySpec
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.parallax_trust import NUM_CLUES, Parallax, ParallaxTrust
from videomamba_depth.models.point_grid import along_surfaces
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.depth_kind import DepthKind

EVIDENCE = 2  # of `Scene`


class Kept(nn.Module):
    """Keeps what a trust is asked, and adds a number to the correction."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.asked: list[Parallax] = []
        self.offset = offset

    def forward(self, parallax: Parallax) -> Tensor:
        self.asked.append(parallax)
        return parallax.correction + self.offset


def lively(channels: int = 4) -> ParallaxTrust:
    """Return a trust as if it had learned something."""
    torch.manual_seed(0)
    trust = ParallaxTrust(channels)
    nn.init.normal_(trust.last.weight, std=0.05)
    return trust


def watch(
    seen: Walk, trust: nn.Module | None, kind: DepthKind = DepthKind.RELATIVE, chunks: tuple[int, ...] = (24,),
    spec: GeometrySpec = SPEC, clip: Tensor = BLACK,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Return corrected depth [1,N,1,H,W] and the last state, for a clip that comes in chunks."""
    geometry, inverse = Geometry(spec, kind), teacher(seen.inv_depth)
    geometry.trust = trust
    depth = 1 / inverse if kind is DepthKind.METRIC else inverse
    maps, frames, start = geometry.new_maps(1, (H, W), "cpu"), [], 0
    for count in chunks:
        some = slice(start, start + count)
        motion = seen.motion.chunk(start, start + count)
        found, maps = geometry(depth[:, some], clip[:, some], maps, torch.tensor([start]), motion)
        frames.append(found)
        start += count
    return torch.cat(frames, 1), maps


@pytest.mark.parametrize("kind", list(DepthKind))
def test_it_changes_nothing_before_it_has_learned(kind: DepthKind) -> None:
    seen = walk()
    plain, state = watch(seen, None, kind)
    depth, after = watch(seen, ParallaxTrust(4), kind)
    assert torch.equal(depth, plain)
    assert all(torch.equal(after[name], values) for name, values in state.items())


def test_what_it_says_counts_as_far_as_there_is_evidence_and_changes_no_state() -> None:
    seen = walk()
    spec = replace(SPEC, shift_spread=0)  # the walk's shift is not one that is to be expected
    plain, state = watch(seen, None, spec=spec)
    depth, after = watch(seen, Kept(0.1), spec=spec)
    assert all(torch.equal(after[name], values) for name, values in state.items() if name != FIT)
    assert torch.equal(depth[:, 0], plain[:, 0])  # the first frame has no parallax
    assert float(state[SCENE].flatten()[EVIDENCE]) == pytest.approx(1.0, abs=1e-3)
    assert not torch.allclose(depth[:, -1], plain[:, -1])
    still = walk(speed=0.0, turn=0.0)
    assert torch.equal(watch(still, Kept(0.1))[0], watch(still, None)[0])


@pytest.mark.parametrize("kind", list(DepthKind))
def test_depth_on_the_grid_is_that_of_the_frame(kind: DepthKind) -> None:
    seen, kept = walk(), Kept(0.1)
    depth, _ = watch(seen, kept, kind)
    parallax = kept.asked[-1]
    on_grid = Geometry(SPEC, kind).at_points(1 / depth[:, -1] if kind is DepthKind.METRIC else depth[:, -1], (H, W))
    found = parallax.depth(parallax.correction + 0.1)
    inner = (..., slice(2, -2), slice(2, -2))  # smoothed over the grid, and its borders continued
    found, on_grid = found[inner].flatten(), on_grid[inner].flatten()
    if kind is not DepthKind.METRIC:  # as it was fitted to the decoder's depth
        columns = torch.stack([found, torch.ones_like(found)], 1)
        found = columns @ torch.linalg.lstsq(columns, on_grid[:, None]).solution[:, 0]
    assert float((found / on_grid).log().abs().mean()) < 0.01


def test_clues_are_finite_and_of_the_order_of_one() -> None:
    seen, kept = walk(), Kept()
    watch(seen, kept, spec=GeometrySpec(short_side=H, focal=1.0), clip=pictures(seen))
    clues = torch.cat([parallax.clues for parallax in kept.asked])
    assert clues.shape[:2] == (24, NUM_CLUES)
    assert bool(torch.isfinite(clues).all())
    assert float(clues.abs().max()) < 6


def test_every_split_of_a_clip_gives_the_same() -> None:
    seen, trust = walk(), lively()
    whole, _ = watch(seen, trust)
    split, _ = watch(seen, trust, chunks=(1, 7, 16))
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(whole, watch(seen, None)[0], rtol=1e-4)


def test_a_network_without_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one channel; got 0"):
        ParallaxTrust(0)


def test_a_student_keeps_it_with_its_weights(tiny_teacher_folder: str, tmp_path: Path) -> None:
    encoder = DepthAnythingEncoder.from_pretrained(tiny_teacher_folder, short_side=42)
    spec, motion = TemporalSpec(*[ScaleSpec(num_blocks=0)] * 4), MotionSpec()
    student = VideoMambaDepth(encoder, encoder.head, spec, motion=motion, trust_channels=4)
    assert student.trust is not None
    student.trust.load_state_dict(lively().state_dict())
    encoder.save_pretrained(tmp_path / "encoder")
    (tmp_path / "last").mkdir()
    about = describe_encoder(encoder, "../encoder")
    save_student(tmp_path / "last", student_weights(student), spec, about, 42, motion=motion, trust_channels=4)
    loaded = load_student(tmp_path / "last", geometry=True)
    assert loaded.trust is not None
    assert loaded.geometry is not None
    assert loaded.geometry.trust is loaded.trust
    assert torch.equal(loaded.trust.last.weight, student.trust.last.weight)
    assert not any(p.requires_grad for p in loaded.trust.parameters())
    without = load_student(tmp_path / "last")
    assert without.geometry is None
    plain = load_student(tmp_path / "last", geometry=True, trust=False)
    assert plain.trust is None
    new = load_student(tmp_path / "last", geometry=True, untrained=True)
    assert new.trust is not None
    assert not new.trust.last.weight.any()
    seen = walk()
    clip = pictures(seen)[:, :6].clamp(0, 1)
    depth = {name: model(clip)[0] for name, model in (("learned", loaded), ("plain", plain), ("new", new))}
    torch.testing.assert_close(depth["new"], depth["plain"], rtol=0, atol=0)
    assert loaded.double()(clip.double())[0].dtype == torch.float64


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_stream_of_less_precision_keeps_it_in_float32(precision: str) -> None:
    model = load_student("embedded", geometry=True)
    assert model.trust is not None
    kept = model.trust.last.weight.clone()
    frames = [(255 * frame).byte().permute(1, 2, 0).numpy() for frame in pictures(walk())[0, :3].clamp(0, 1)]
    stream = DepthStream(model, precision=precision)
    assert all(np.isfinite(stream.step(frame)).all() for frame in frames)
    assert torch.equal(model.trust.last.weight, kept)


def test_a_correction_is_a_mean_along_surfaces_and_not_across_edges() -> None:
    torch.manual_seed(0)
    near, far = 2.0, 1.0
    inv_depth = torch.full((1, 1, 28, 35), far)
    inv_depth[..., 17:] = near
    correction = torch.where(inv_depth == near, 0.3, -0.2)
    assert torch.allclose(along_surfaces(correction, inv_depth), correction, atol=1e-5)
    noise = 0.1 * torch.randn_like(correction)
    left = along_surfaces(correction + noise, inv_depth) - correction
    assert left.std() < 0.25 * noise.std()
    flat = along_surfaces(correction, torch.full_like(inv_depth, far))
    assert (flat.diff(dim=-1).abs().max() < 0.2 * correction.diff(dim=-1).abs().max()).item()
