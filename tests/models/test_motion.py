"""States that move with the scene, and the estimate that is carried at output resolution."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_student
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.models.checkpoint import describe_encoder, load_student, save_student, student_weights
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.motion import Motion, MotionEstimator, MotionSpec, TokenWarp
from videomamba_depth.models.output_refiner import CELL_PX, SLOW_PX, OutputRefiner, OutputSpec
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.flow_utils import backward_warp, warp_map

SIZE = (42, 56)


def sliding_clip(frames: int = 6, shift_px: int = 3, batch: int = 1) -> Tensor:
    """Return a smooth random picture that slides to the right, `[batch, frames, 3, *SIZE]`."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.rand(batch, 3, SIZE[0] // 3, (SIZE[1] + frames * shift_px) // 3 + 1, generator=generator)
    wide = F.interpolate(wide, (SIZE[0], SIZE[1] + frames * shift_px), mode="bicubic").clamp(0, 1)
    starts = [(frames - 1 - t) * shift_px for t in range(frames)]
    return torch.stack([wide[..., start : start + SIZE[1]] for start in starts], 1)


def moving_student(encoder: DepthAnythingEncoder, method: str = "zoh", trained: bool = True) -> VideoMambaDepth:
    """Return a tiny student with motion and a carried output whose every weight has moved away from its start."""
    torch.manual_seed(1)
    scale = ScaleSpec(num_blocks=1, d_state=2, heads=2, discretization=method, backend="reference")
    still = replace(scale, advect=False)
    spec = TemporalSpec(scale, scale, still, scale)
    student = VideoMambaDepth(encoder, encoder.head, spec, motion=MotionSpec(), output=OutputSpec(hidden=4))
    if trained:
        assert student.output is not None
        with torch.no_grad():
            for p in [*student.temporal.parameters(), *student.output.parameters()]:
                p.add_(torch.randn_like(p) * 0.2)
    return student.eval()


def test_token_warp_samples_like_grid_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 5, 7, 9, generator=generator, dtype=torch.float64)
    flow = torch.randn(2, 2, 7, 9, generator=generator, dtype=torch.float64) * 0.8
    inside = backward_warp(torch.ones_like(values), flow)[1]
    x = torch.arange(9) + flow[:, 0]
    y = torch.arange(7)[:, None] + flow[:, 1]
    inner = ((x >= 1) & (x <= 7) & (y >= 1) & (y <= 5)).unsqueeze(1)  # bicubic taps stay in the picture
    move = TokenWarp(flow, torch.ones_like(inside))
    tokens = values.permute(0, 2, 3, 1).reshape(-1, 5)
    for mode in ("bilinear", "bicubic"):
        want = backward_warp(values, flow, mode)[0]  # type: ignore[arg-type]
        got = move(tokens, mode == "bicubic").view(2, 7, 9, 5).permute(0, 3, 1, 2)
        torch.testing.assert_close(got * inner, want * inner, rtol=0, atol=1e-10)


def test_untrusted_tokens_are_reset_and_flow_that_is_not_finite_does_not_spread() -> None:
    flow = torch.zeros(1, 2, 2, 3)
    flow[0, 0, 0, 0] = float("nan")
    trusted = torch.tensor([[[[True, False, True], [True, True, True]]]])
    moved = TokenWarp(flow, trusted)(torch.ones(6, 4, 2))
    assert torch.equal(moved[:, 0, 0], torch.tensor([1.0, 0, 1, 1, 1, 1]))


def test_motion_finds_a_slide_and_trusts_no_first_frame() -> None:
    clip = sliding_clip()
    estimate = MotionEstimator(MotionSpec())
    motion, last = estimate(clip)
    assert torch.equal(last, clip[:, -1])
    assert not motion.trusted[:, 0].any()
    inner = motion.flow_px[:, 1:, :, 8:-8, 16:-16]
    assert float(inner[:, :, 0].median()) == pytest.approx(-3, abs=0.3)
    assert float(inner[:, :, 1].median()) == pytest.approx(0, abs=0.3)
    assert motion.trusted[:, 1:, :, 8:-8, 16:-16].float().mean() > 0.8


def test_coarse_motion_keeps_its_unit() -> None:
    motion = Motion(torch.full((1, 1, 2, 12, 16), 4.0), torch.ones(1, 1, 1, 12, 16, dtype=torch.bool))
    flow, trusted = motion.frame(0, (3, 8))
    assert torch.equal(flow[0, :, 0, 0], torch.tensor([2.0, 1.0]))
    assert trusted.all()
    finer, _ = motion.frame(0, (24, 32))
    torch.testing.assert_close(finer, torch.full((1, 2, 24, 32), 8.0))


@pytest.mark.parametrize("method", ["zoh", "tustin"])
def test_every_split_gives_the_same_with_motion(tiny_encoder: DepthAnythingEncoder, method: str) -> None:
    model = moving_student(tiny_encoder, method)
    clip = sliding_clip(batch=2)
    with torch.no_grad():
        whole, whole_state, _ = model(clip)
        for lengths in ([1] * 6, [2, 4], [5, 1]):
            states, pieces = None, []
            for part in clip.split(lengths, 1):
                depth, states, _ = model(part, states)
                pieces.append(depth)
            bound = 1e-4 * float(whole.max() - whole.min())
            torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=bound)
            assert states is not None
            for name, tensor in whole_state.tensors().items():
                torch.testing.assert_close(states.tensors()[name], tensor, rtol=1e-4, atol=1e-4)


def test_a_single_image_gets_the_teachers_depth_whatever_was_learned(tiny_encoder: DepthAnythingEncoder) -> None:
    model = moving_student(tiny_encoder)
    with torch.no_grad():
        clip = sliding_clip(1)
        depth = model(clip).depth
        teacher = tiny_encoder.predict_depth(clip[:, 0])
    torch.testing.assert_close(depth[:, 0], teacher, rtol=0, atol=1e-5)


def test_without_training_still_frames_stay_the_teachers(tiny_encoder: DepthAnythingEncoder) -> None:
    model = moving_student(tiny_encoder, trained=False)
    still = sliding_clip(1).expand(-1, 4, -1, -1, -1)
    with torch.no_grad():
        depth = model(still).depth
        teacher = tiny_encoder.predict_depth(still[:, 0])
    torch.testing.assert_close(depth[:, 3], teacher, rtol=0, atol=1e-4)


def test_later_frames_cannot_change_earlier_depth_and_streams_do_not_mix(tiny_encoder: DepthAnythingEncoder) -> None:
    model = moving_student(tiny_encoder)
    clip = sliding_clip(batch=2)
    changed = clip.clone()
    changed[1, 4:] = torch.rand_like(changed[1, 4:])
    with torch.no_grad():
        before, after = model(clip)[0], model(changed)[0]
    torch.testing.assert_close(after[:, :4], before[:, :4], rtol=0, atol=1e-5)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-5)
    assert (after[1, 4:] - before[1, 4:]).abs().max() > 1e-3


def test_a_reset_stream_is_a_new_one(tiny_encoder: DepthAnythingEncoder) -> None:
    model = moving_student(tiny_encoder)
    clip = sliding_clip(batch=2)
    with torch.no_grad():
        states = model(clip[:, :3]).states
        depth = model(clip[:, 3:], states.reset(torch.tensor([False, True]))).depth
        new = model(clip[1:, 3:]).depth
        carried = model(clip[:, 3:], states).depth
    torch.testing.assert_close(depth[1:], new, rtol=0, atol=1e-5)
    torch.testing.assert_close(depth[0], carried[0], rtol=0, atol=1e-5)


def test_a_saved_student_and_state_continue(tiny_encoder: DepthAnythingEncoder, tmp_path: Path) -> None:
    model = moving_student(tiny_encoder)
    scale = ScaleSpec(num_blocks=1, d_state=2, heads=2, backend="reference")
    spec = TemporalSpec(scale, scale, replace(scale, advect=False), scale)
    tiny_encoder.save_pretrained(tmp_path / "encoder")
    about = describe_encoder(tiny_encoder, "encoder")
    weights = student_weights(model)
    save_student(tmp_path, weights, spec, about, None, motion=MotionSpec(), output=OutputSpec(hidden=4))
    loaded = load_student(tmp_path)
    clip = sliding_clip()
    with torch.no_grad():
        whole = model(clip).depth
        states = loaded(clip[:, :3]).states
        states.save(tmp_path / "state.safetensors")
        rest = loaded(clip[:, 3:], type(states).load(tmp_path / "state.safetensors")).depth
    torch.testing.assert_close(rest, whole[:, 3:], rtol=0, atol=1e-4)


def test_gradients_reach_every_weight_through_the_carried_state(tiny_encoder: DepthAnythingEncoder) -> None:
    model = moving_student(tiny_encoder)
    clip = sliding_clip()
    states = model(clip[:, :3]).states
    depth = model(clip[:, 3:4], states).depth
    depth.square().mean().backward()
    assert model.output is not None
    for name, p in [*model.temporal.named_parameters(), *model.output.named_parameters()]:
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
    assert all(float(p.grad.abs().max()) > 0 for p in model.output.parameters() if p.grad is not None)


def test_refined_output_is_steadier_than_its_input_and_follows_the_motion() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = sliding_clip(12)[:, :, :1]
    noisy = truth + 0.05 * torch.randn(truth.shape, generator=generator)
    flow = torch.zeros(1, 12, 2, *SIZE)
    flow[:, :, 0] = -3.0
    trusted = torch.ones(1, 12, 1, *SIZE, dtype=torch.bool)
    trusted[..., :3] = False
    refine = OutputRefiner(OutputSpec(gain=0.6, coarse_gain=0.25, hidden=0))
    index = torch.zeros(1, dtype=torch.int64)
    steady, _ = refine(noisy, torch.zeros(1, 1, *SIZE), index, Motion(flow, trusted))
    inner = (slice(None), slice(6, None), slice(None), slice(4, -4), slice(24, -4))
    error = (steady - truth)[inner].square().mean().sqrt()
    assert error < 0.75 * (noisy - truth)[inner].square().mean().sqrt()  # 0.58 for the fixed gain of a half
    in_place, _ = refine(noisy, torch.zeros(1, 1, *SIZE), index, None)
    assert (in_place - truth)[inner].square().mean().sqrt() > 1.2 * error


def test_a_correction_counts_half_where_half_a_cell_is_crossed_in_one_frame() -> None:
    refine = OutputRefiner(OutputSpec(hidden=0))
    height, width = 2 * CELL_PX, 4 * CELL_PX
    brighter = torch.stack([torch.ones(1, 1, height, width), torch.full((1, 1, height, width), 2.0)], 1)
    trusted = torch.ones(1, 2, 1, height, width, dtype=torch.bool)

    def correction(speed_px: float, memory: float = 1.0) -> float:
        flow = torch.zeros(1, 2, 2, height, width)
        flow[:, :, 0] = speed_px
        motion = Motion(flow, trusted)
        start = torch.zeros(1, 1, height, width), torch.zeros(1, dtype=torch.int64)
        refined, _ = refine(brighter, *start, motion, memory)
        return 2.0 - float(refined[0, 1].mean())

    still, moved = correction(0.0), correction(SLOW_PX)
    assert still > 0.5
    assert moved == pytest.approx(still / 2, rel=0.05)
    assert correction(3 * SLOW_PX, 3.0) == pytest.approx(correction(0.0, 3.0) / 2, rel=0.05)


def test_refined_output_does_not_depend_on_the_unit_of_depth() -> None:
    refine = OutputRefiner(OutputSpec(hidden=4))
    assert refine.gain_net is not None
    torch.nn.init.normal_(refine.gain_net[-1].weight)  # type: ignore[arg-type]
    depth = sliding_clip(4)[:, :, :1]
    index, empty = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, *SIZE)
    plain, _ = refine(depth, empty, index, None)
    scaled, _ = refine(1000 * depth, empty, index, None)
    torch.testing.assert_close(scaled, 1000 * plain, rtol=1e-4, atol=1e-2)


def test_warp_map_is_the_plain_bicubic_warp() -> None:
    values = torch.rand(1, 1, 8, 9)
    flow = torch.randn(1, 2, 8, 9)
    torch.testing.assert_close(warp_map(values, flow), backward_warp(values, flow, "bicubic")[0], rtol=0, atol=1e-5)


def test_motion_without_use_and_bad_specs_are_refused(tiny_encoder: DepthAnythingEncoder) -> None:
    model = moving_student(tiny_encoder)
    clip = sliding_clip(1)
    with pytest.raises(ValueError, match="leave motion out"):
        tiny_student(tiny_encoder)(clip, motion=MotionEstimator(MotionSpec())(clip)[0])
    with pytest.raises(ValueError, match="short_side"):
        MotionSpec(short_side=4)
    with pytest.raises(ValueError, match="gain"):
        OutputSpec(gain=1.0)
    other = tiny_student(tiny_encoder)
    states = other(sliding_clip(1)).states
    with pytest.raises(ValueError, match="another model"):
        model(sliding_clip(1), states)


def test_memory_runs_from_the_teacher_to_a_long_average(tiny_encoder: DepthAnythingEncoder) -> None:
    student = moving_student(tiny_encoder)
    clip = sliding_clip()
    with torch.no_grad():
        teacher = tiny_encoder.decode(tiny_encoder.encode_frame(clip[0]), (42, 56))
        changes = []
        for memory in (1e-6, 1.0, 4.0):
            states = student.init_states(1, SIZE, memory=memory)
            depth, after, _ = student(clip, states)
            depth = depth[0]
            assert after.memory == memory
            changes.append(float((depth - teacher).abs().mean()))
            for t in range(clip.shape[1]):
                streamed, states = student.step(clip[:, t], states)
                torch.testing.assert_close(streamed[0], depth[t], rtol=1e-4, atol=1e-5)
    assert changes[0] < 1e-3 * changes[1]
    assert changes[1] < changes[2]
    with pytest.raises(ValueError, match="memory must be a positive number"):
        student.init_states(1, SIZE, memory=0.0)


def test_streams_of_two_memories_share_a_model(tiny_encoder: DepthAnythingEncoder, tmp_path: Path) -> None:
    """Each gives the bits that it gives alone, whatever the other does to the model."""
    student = moving_student(tiny_encoder)
    clip = sliding_clip()
    frames = (clip[0].permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    alone = {m: np.stack(list(DepthStream(copy.deepcopy(student), device="cpu", memory=m)(frames))) for m in (1.0, 4.0)}
    assert np.abs(alone[1.0] - alone[4.0]).max() > 1e-2 * np.ptp(alone[1.0])
    streams = {m: DepthStream(student, device="cpu", memory=m) for m in (1.0, 4.0)}
    together = {m: [] for m in streams}
    for frame in frames:
        for memory, stream in streams.items():
            together[memory].append(stream.step(frame))
    for memory, depth in together.items():
        assert np.array_equal(np.stack(depth), alone[memory])
    streams[4.0].save(tmp_path / "stream")
    with pytest.raises(UserError, match=r"with memory 4\.0; this stream has 1\.0"):
        streams[1.0].load(tmp_path / "stream")
    again = DepthStream(student, device="cpu", memory=4.0)
    again.load(tmp_path / "stream")
    assert np.array_equal(again.step(frames[0]), streams[4.0].step(frames[0]))


def test_memory_is_the_same_for_every_split(tiny_encoder: DepthAnythingEncoder) -> None:
    student = moving_student(tiny_encoder)
    clip = sliding_clip()
    with torch.no_grad():
        whole, end, _ = student(clip, student.init_states(1, SIZE, memory=3.0))
        states, depth = student.init_states(1, SIZE, memory=3.0), []
        for part in (clip[:, :1], clip[:, 1:4], clip[:, 4:]):
            out, states, _ = student(part, states)
            depth.append(out)
    assert (torch.cat(depth, 1) - whole).abs().max() < 1e-4 * float(whole.max() - whole.min())
    assert states.memory == end.memory == 3.0
    for name, tensor in states.tensors().items():
        torch.testing.assert_close(tensor, end.tensors()[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "short_side"), [((150, 300), 42), ((98, 980), 100), ((60, 90), 98)])
def test_motion_is_that_of_the_picture_that_the_model_sees(
    tiny_encoder: DepthAnythingEncoder, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], short_side: int
) -> None:
    """However it is cut or brought, also where the size that was rounded to patches would be rounded to another one."""
    monkeypatch.setattr(tiny_encoder, "short_side", short_side)
    student = moving_student(tiny_encoder)
    clip = F.interpolate(sliding_clip(3)[0], size, mode="bilinear").unsqueeze(0)
    with torch.no_grad():
        depth, states, _ = student(clip)
    assert depth.shape[-2:] == size
    assert states.maps["frame"].shape[-2:] == student.encoder.fitted_size(*size)
    stream = DepthStream(student, device="cpu")
    for t in range(3):
        shown = stream.step_tensor(clip[:, t])
        assert torch.allclose(shown, depth[:, t], atol=1e-5 * float(depth.max()))


@pytest.mark.parametrize("moving", [True, False])
def test_another_frame_size_midway_is_refused_with_both_sizes(tiny_encoder: DepthAnythingEncoder, moving: bool) -> None:
    student = moving_student(tiny_encoder) if moving else tiny_student(tiny_encoder)
    _, states = student.step(torch.rand(1, 3, 56, 70))
    with pytest.raises(ValueError, match=r"frames of 56x70 px .* this one has 84x98 px; .* states=None"):
        student.step(torch.rand(1, 3, 84, 98), states)
    with pytest.raises(ValueError, match="batch of 1 streams, the clip one of 2"):
        student.step(torch.rand(2, 3, 56, 70), states)
