"""A change of the whole depth's scale and shift is undone; what only a part of the frame does stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from videomamba_depth.models.causal_affine import ON, remembering, undo_global_change
from videomamba_depth.models.checkpoint import describe_encoder, load_student, save_student, student_weights
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.errors import UserError

H, W = 57, 75  # neither a multiple of the step nor of each other
OFF = ScaleSpec(num_blocks=0)
STACK = TemporalSpec(OFF, ScaleSpec(num_blocks=1, backend="reference", initial_gain=0.5), OFF, OFF)


def scene(seed: int = 0, batch: int = 1) -> Tensor:
    """Return depth `[B, 1, H, W]` of slopes and steps, from 0.5 to about 4."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 1, 5, 7, generator=draw) * 3
    return (
        0.5
        + torch.nn.functional.interpolate(coarse, (H, W), mode="bilinear")
        + torch.rand(batch, 1, 1, 1, generator=draw)
    )


def everywhere(like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool)


@pytest.mark.parametrize(("scale", "shift"), [(1.06, 0.0), (0.94, 0.1), (1.0, -0.08), (0.6, 0.3)])
def test_a_change_of_scale_and_shift_is_undone_as_far_as_the_strength_says(scale: float, shift: float) -> None:
    before = scene()
    changed = scale * before + shift
    kept = changed.clone()
    right = undo_global_change(changed, before, everywhere(before), 0.8, metric=False)
    torch.testing.assert_close(right - before, 0.2 * (changed - before), rtol=0, atol=3e-4)
    assert torch.equal(changed, kept)


def test_meters_have_a_scale_alone() -> None:
    before = scene()
    right = undo_global_change(1.07 * before, before, everywhere(before), 0.8, metric=True)
    torch.testing.assert_close(right, before * 1.07**0.2, rtol=1e-5, atol=0)
    shifted = undo_global_change(before + 0.2, before, everywhere(before), 0.8, metric=True)
    torch.testing.assert_close(shifted / (before + 0.2), (shifted / (before + 0.2)).mean().expand_as(before))


def test_what_a_part_of_the_frame_does_stays() -> None:
    before = scene()
    nearer = before.clone()
    nearer[..., 10:40, 20:50] += 1.0  # a fifth of the frame comes near
    noise = 0.2 * torch.randn(before.shape, generator=torch.Generator().manual_seed(1))
    left, upper = torch.arange(W) < W // 2, torch.arange(H)[:, None] < H // 2
    quarters = torch.where(left ^ upper, before + 0.3, before - 0.3)
    for now in (nearer, before + noise, quarters):
        assert (undo_global_change(now, before, everywhere(before), 0.8, metric=False) - now).abs().max() < 0.02
    nearer = 0.3 * nearer + 0.7 * before
    together = 1.06 * nearer  # both: the frame's change goes, the part's stays
    right = undo_global_change(together, before, everywhere(before), 0.8, metric=False)
    assert (right - nearer).abs().mean() < 0.5 * (together - nearer).abs().mean()


def test_only_what_is_seen_in_both_counts() -> None:
    before = scene()
    changed = 1.06 * before
    seen = everywhere(before)
    seen[..., :20, :] = False
    new = before.clone()
    new[..., :20, :] = torch.nan
    right = undo_global_change(changed, new, seen, 0.8, metric=False)
    torch.testing.assert_close(right - before, 0.2 * (changed - before), rtol=0, atol=3e-4)
    for nothing in (torch.zeros_like(seen), seen & (torch.arange(W) < 5)):
        assert torch.equal(undo_global_change(changed, torch.full_like(new, 7.0), nothing, 0.8, metric=False), changed)


@pytest.mark.parametrize("metric", [False, True])
def test_flat_and_equal_frames_stay_as_they_are(metric: bool) -> None:
    for depth in (torch.zeros(1, 1, H, W), torch.ones(1, 1, H, W), scene()):
        same = undo_global_change(depth, depth.clone(), everywhere(depth), 0.8, metric)
        torch.testing.assert_close(same, depth, rtol=1e-6, atol=1e-6)


def test_neither_scale_nor_level_shrinks_over_time() -> None:
    """Independent errors of each frame lower its correlation with the last one: a one-sided fit would shrink it."""
    truth, draw = scene(), torch.Generator().manual_seed(0)
    estimate, found = truth, []
    for _ in range(200):
        frame = truth * (1 + 0.06 * torch.randn(1, generator=draw)) + 0.05 * torch.randn(truth.shape, generator=draw)
        estimate = undo_global_change(frame, estimate, everywhere(truth), 0.8, metric=False)
        found.append((float(estimate.std() / truth.std()), float(estimate.mean() / truth.mean())))
    for mean, spread in zip(np.mean(found[20:], axis=0), np.std(found[20:], axis=0), strict=True):
        assert abs(mean - 1) < 0.02
        assert spread < 0.04  # 0.06 of the frames


def test_a_lasting_change_passes() -> None:
    truth, estimate = scene(), scene()
    far = []
    for _ in range(40):
        estimate = undo_global_change(1.3 * truth, estimate, everywhere(truth), 0.8, metric=False)
        far.append(float((estimate - 1.3 * truth).abs().mean() / truth.mean()))
    assert far[0] > 0.2
    assert far[10] < 0.05
    assert far[-1] < 1e-3


def test_streams_of_a_batch_do_not_mix_and_no_gradient_passes_through_the_fit() -> None:
    before = scene(batch=2)
    changed = (torch.tensor([1.06, 0.94]).view(2, 1, 1, 1) * before).requires_grad_()
    both = undo_global_change(changed, before, everywhere(before), 0.8, metric=False)
    for i in range(2):
        one = undo_global_change(changed[i : i + 1], before[i : i + 1], everywhere(before[:1]), 0.8, metric=False)
        torch.testing.assert_close(both[i : i + 1], one, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(both.sum(), changed)
    per_stream = gradient.flatten(1)
    torch.testing.assert_close(per_stream, per_stream[:, :1].expand_as(per_stream))  # a of each stream, everywhere
    assert per_stream[0, 0] < 1 < per_stream[1, 0]


def test_memory_multiplies_the_odds() -> None:
    assert remembering(0.8, 1.0) == pytest.approx(0.8)
    assert remembering(0.8, 2.0) == pytest.approx(8 / 9)
    assert remembering(0.8, 1e-9) < 1e-8
    assert remembering(0.8, 1e308) == 1.0


@pytest.fixture
def student(tiny_encoder: DepthAnythingEncoder) -> VideoMambaDepth:
    torch.manual_seed(0)
    return with_affine(tiny_encoder, 0.8)


def with_affine(encoder: DepthAnythingEncoder, strength: float) -> VideoMambaDepth:
    output = OutputSpec(affine=strength)
    return VideoMambaDepth(encoder, encoder.head, STACK, motion=MotionSpec(), output=output).eval()


def moving_clip(num_frames: int = 5) -> Tensor:
    picture = torch.rand(2, 3, 70, 84, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.avg_pool2d(picture, 5, 1, 2)
    return torch.stack([picture.roll(t, 3) * (1 - 0.1 * (t % 2)) for t in range(num_frames)], 1)  # [2, N, 3, 70, 84]


@torch.no_grad()
def test_every_split_gives_the_same_and_a_reset_stream_is_a_new_one(student: VideoMambaDepth) -> None:
    clip = moving_clip()
    whole = student(clip).depth
    for split in ([1, 1, 1, 1, 1], [2, 3], [4, 1]):
        states, parts = None, []
        for chunk in clip.split(split, 1):
            depth, states, _ = student(chunk, states)
            parts.append(depth)
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=2e-5, atol=2e-5)
    plain = with_affine(student.encoder, 0.0)  # type: ignore[arg-type]
    plain.load_state_dict(student.state_dict(), strict=False)  # the encoder is the same one
    assert torch.equal(plain(clip).depth[:, 0], whole[:, 0])
    assert (plain(clip).depth[:, 1:] - whole[:, 1:]).abs().max() > 1e-3
    states = student(clip).states.reset(torch.tensor([True, False]))
    again = student(clip[:, :2], states).depth
    torch.testing.assert_close(again[0], whole[0, :2], rtol=2e-5, atol=2e-5)
    assert (again[1] - whole[1, :2]).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"the state belongs to another model: .*affine 0\.8"):
        plain(clip[:, :1], states)


def test_a_stream_that_was_saved_goes_on_bit_for_bit(student: VideoMambaDepth, tmp_path: Path) -> None:
    frames = (moving_clip()[0].permute(0, 2, 3, 1) * 255).byte().numpy()
    streams = [DepthStream(student, device="cpu", resets=None) for _ in range(2)]
    expected = list(streams[0](frames))
    list(streams[1](frames[:3]))
    streams[1].save(tmp_path / "stream.safetensors")
    other = DepthStream(student, device="cpu", resets=None)
    other.load(tmp_path / "stream.safetensors")
    for given, wanted in zip(other(frames[3:]), expected[3:], strict=True):
        assert (given == wanted).all()


def test_a_checkpoint_names_it_and_any_student_takes_it(student: VideoMambaDepth, tmp_path: Path) -> None:
    encoder = student.encoder
    assert isinstance(encoder, DepthAnythingEncoder)
    about = describe_encoder(encoder, encoder.model_id)
    for name, output in (("with", OutputSpec(affine=0.6)), ("without", OutputSpec()), ("bare", None)):
        (tmp_path / name).mkdir()
        model = VideoMambaDepth(encoder, encoder.head, STACK, motion=MotionSpec(), output=output)
        save_student(tmp_path / name, student_weights(model), STACK, about, None, motion=MotionSpec(), output=output)
    for name, asked, found in (("with", None, 0.6), ("with", True, 0.6), ("with", False, 0.0), ("without", None, 0.0),
                               ("without", True, ON)):  # fmt: skip
        loaded = load_student(tmp_path / name, affine=asked).output
        assert loaded is not None
        assert loaded.affine == found
    assert load_student(tmp_path / "bare", affine=False).output is None
    for folder in (str(tmp_path / "bare"), f"teacher:{encoder.model_id}"):
        with pytest.raises(UserError, match="affine=true compares with the carried output"):
            load_student(folder, affine=True)
