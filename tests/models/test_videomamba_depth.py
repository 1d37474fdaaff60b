"""The student: equal to the teacher at the start, causal, and the same for every split of a clip."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_student

from videomamba_depth.models import input_size
from videomamba_depth.models.depth_state import DepthState
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.utils.errors import UserError

METHODS = ("zoh", "foh", "bilinear", "poly", "highorder", "rk4")
FORMS = ("innovation", "plain")
NUM_FRAMES = 6
SIZE = (31, 45)  # odd, no multiple of the patch

# The whole model in float32 may differ between splits by the rounding of ordinary convolutions: at most 1e-4 of the
# depth range (measured: 3e-6).
SPLIT_TOLERANCE = 1e-4


def run_in_chunks(model: VideoMambaDepth, clip: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, DepthState]:
    states, outputs, start = None, [], 0
    for length in lengths:
        depth, states, _ = model(clip[:, start : start + length], states)
        outputs.append(depth)
        start += length
    assert start == clip.shape[1]
    assert states is not None
    return torch.cat(outputs, 1), states


def random_clip(batch: int = 2, frames: int = NUM_FRAMES, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, frames, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def splits() -> st.SearchStrategy[list[int]]:
    """All ways to cut NUM_FRAMES frames into chunks."""
    return st.sets(st.integers(1, NUM_FRAMES - 1)).map(
        lambda cuts: [b - a for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), NUM_FRAMES], strict=True)]
    )


@pytest.mark.parametrize("form", FORMS)
def test_student_at_init_is_the_teacher(tiny_encoder: DepthAnythingEncoder, form: str) -> None:
    student = tiny_student(tiny_encoder, form, trained=False)
    clip = torch.rand(2, 3, 3, 75, 101)
    with torch.no_grad():
        depth = student(clip).depth
    teacher = tiny_encoder.predict_depth(clip.flatten(0, 1)).unflatten(0, (2, 3))
    assert teacher.std() > 0.01
    torch.testing.assert_close(depth, teacher, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
@given(lengths=splits())
@settings(max_examples=4, deadline=None)
def test_every_split_gives_the_same(
    tiny_encoder: DepthAnythingEncoder, method: str, form: str, lengths: list[int]
) -> None:
    model = tiny_student(tiny_encoder, form, method)
    clip = random_clip()
    with torch.no_grad():
        whole, whole_state, _ = model(clip)
        pieces, pieces_state = run_in_chunks(model, clip, lengths)
    bound = SPLIT_TOLERANCE * float(whole.max() - whole.min())
    torch.testing.assert_close(pieces, whole, rtol=0, atol=bound)
    assert torch.equal(pieces_state.frame_index, whole_state.frame_index)
    for name, tensor in whole_state.tensors().items():
        torch.testing.assert_close(pieces_state.tensors()[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", FORMS)
def test_every_split_gives_the_same_gradients(tiny_encoder: DepthAnythingEncoder, method: str, form: str) -> None:
    model = tiny_student(tiny_encoder, form, method)
    clip = random_clip()
    gradients = []
    for lengths in ([NUM_FRAMES], [1, 3, 2]):
        model.zero_grad()
        depth, _ = run_in_chunks(model, clip, lengths)
        depth.square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    whole, pieces = gradients
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert whole.keys() == trainable
    for name, gradient in whole.items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert (pieces[name] - gradient).abs().max() < 1e-3 * scale, name


def test_frames_decoded_in_passes_are_frames_decoded_together(
    tiny_encoder: DepthAnythingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, clip = tiny_student(tiny_encoder), random_clip(batch=1)
    decoded: list[int] = []
    model.head.register_forward_hook(lambda head, inputs, depth: decoded.append(len(depth)))
    found = []
    for frames in (NUM_FRAMES, 4):
        pixels = (frames * SIZE[0] * SIZE[1]) // torch.get_num_threads() + 1
        monkeypatch.setattr(input_size, "PIXELS_PER_PASS", pixels)
        model.zero_grad()
        depth = model(clip).depth
        depth.square().mean().backward()
        found.append((depth.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    assert decoded == [6, 4, 2]
    (whole, gradients), (pieces, of_pieces) = found
    assert (pieces - whole).abs().max() <= SPLIT_TOLERANCE * (whole.max() - whole.min())
    for name, gradient in gradients.items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert (of_pieces[name] - gradient).abs().max() < 1e-3 * scale, name


@pytest.mark.parametrize("form", FORMS)
def test_the_state_matters_and_detaching_it_cuts_the_gradient(tiny_encoder: DepthAnythingEncoder, form: str) -> None:
    model = tiny_student(tiny_encoder, form)
    clip = random_clip(batch=1)
    with torch.no_grad():
        states = model(clip[:, :3]).states
        carried = model(clip[:, 3:], states).depth
        forgotten = model(clip[:, 3:]).depth
    assert (carried - forgotten).abs().max() > 1e-3
    first = model(clip[:, :1]).states
    assert any(t.requires_grad for t in first.tensors().values())
    assert not any(t.requires_grad for t in first.detach().tensors().values())


@pytest.mark.parametrize("form", FORMS)
def test_causal_and_samples_do_not_mix(tiny_encoder: DepthAnythingEncoder, form: str) -> None:
    model = tiny_student(tiny_encoder, form)
    clip = random_clip()
    changed = clip.clone()
    changed[0, 3] = 1 - changed[0, 3]
    with torch.no_grad():
        before, after = model(clip)[0], model(changed)[0]
    assert torch.equal(before[0, :3], after[0, :3])
    assert torch.equal(before[1], after[1])
    assert (before[0, 4:] - after[0, 4:]).abs().max() > 1e-4


def test_interleaved_streams_equal_separate_ones(tiny_encoder: DepthAnythingEncoder) -> None:
    model = tiny_student(tiny_encoder)
    clips = [random_clip(1, seed=s) for s in (1, 2)]
    with torch.no_grad():
        separate = [model(clip)[0] for clip in clips]
        states: list[DepthState | None] = [None, None]
        for t in range(NUM_FRAMES):
            for i, clip in enumerate(clips):
                depth, states[i] = model.step(clip[:, t], states[i])
                torch.testing.assert_close(depth, separate[i][:, t], rtol=0, atol=1e-4)


def test_a_single_image_passes_unchanged_whatever_was_learned(tiny_encoder: DepthAnythingEncoder) -> None:
    model = tiny_student(tiny_encoder, "innovation")
    clip = random_clip(frames=1)
    with torch.no_grad():
        depth = model(clip).depth
    teacher = tiny_encoder.predict_depth(clip[:, 0]).unsqueeze(1)
    torch.testing.assert_close(depth, teacher, rtol=0, atol=1e-4)


def test_zero_state_is_no_state_and_is_not_written_to(tiny_encoder: DepthAnythingEncoder) -> None:
    model = tiny_student(tiny_encoder)
    clip = random_clip()
    zeros = model.init_states(2, SIZE)
    with torch.no_grad():
        assert torch.equal(model(clip, zeros)[0], model(clip)[0])
        states = model(clip[:, :2]).states
        copy = states.clone()
        first, second = model(clip[:, 2:], states)[0], model(clip[:, 2:], states)[0]
    assert torch.equal(first, second)
    assert all(not t.any() for t in zeros.tensors().values())
    for name, tensor in copy.tensors().items():
        assert torch.equal(states.tensors()[name], tensor)


def test_one_stream_of_a_batch_can_be_reset(tiny_encoder: DepthAnythingEncoder) -> None:
    model = tiny_student(tiny_encoder)
    clip = random_clip()
    with torch.no_grad():
        states = model(clip[:, :3]).states
        mixed = model(clip[:, 3:], states.reset(torch.tensor([True, False]))).depth
        new, carried = model(clip[:, 3:])[0], model(clip[:, 3:], states)[0]
    torch.testing.assert_close(mixed[0], new[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[1], carried[1], rtol=0, atol=1e-5)


def test_saved_state_continues_identically(tmp_path: Path, tiny_encoder: DepthAnythingEncoder) -> None:
    model = tiny_student(tiny_encoder)
    clip = random_clip()
    with torch.no_grad():
        states = model(clip[:, :4]).states
        states.save(tmp_path / "state.safetensors")
        expected = model(clip[:, 4:], states).depth
        got = model(clip[:, 4:], DepthState.load(tmp_path / "state.safetensors")).depth
    assert torch.equal(got, expected)


def test_time_does_not_overflow(tiny_encoder: DepthAnythingEncoder) -> None:
    model = tiny_student(tiny_encoder)
    clip = random_clip(frames=3)
    with torch.no_grad():
        states = model(clip[:, :2]).states
        late = [
            model(clip[:, 2:], replace(states, frame_index=torch.full((2,), t)))[0] for t in (10**6, 10**7, 10**7 + 1)
        ]
    assert all(torch.isfinite(depth).all() for depth in late)
    torch.testing.assert_close(late[0], late[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(late[1], late[2], rtol=0, atol=1e-6)


def test_a_wrong_state_is_refused_with_the_reason(tiny_encoder: DepthAnythingEncoder) -> None:
    model = tiny_student(tiny_encoder)
    clip = random_clip()
    with torch.no_grad():
        states = model(clip[:, :2]).states
    with pytest.raises(ValueError, match="batch of 2 streams, the clip one of 1"):
        model(clip[:1], states)
    with pytest.raises(ValueError, match="another resolution"):
        model(torch.rand(2, 1, 3, 70, 70), states)
    with pytest.raises(ValueError, match=r"must be .* torch.float32; got .* torch.float64"):
        model(clip, states.map(torch.Tensor.double))
    with pytest.raises(ValueError, match="another model"):
        tiny_student(tiny_encoder, "plain")(clip, states)
    with pytest.raises(ValueError, match=r"clip must be a tensor \[B, N, 3, H, W\], no axis of length 0"):
        model(clip[:, :0])


def test_a_state_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        DepthState.load(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("no state")
    with pytest.raises(UserError, match="cannot read"):
        DepthState.load(tmp_path / "text.safetensors")


def test_a_state_of_another_version_is_refused(
    tmp_path: Path, tiny_encoder: DepthAnythingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = tiny_student(tiny_encoder).init_states(1, SIZE)
    with monkeypatch.context() as patch:
        patch.setattr("videomamba_depth.models.depth_state._FORMAT", "videomamba-depth state 1")
        states.save(tmp_path / "old.safetensors")
    with pytest.raises(UserError, match="not a stream state of this version"):
        DepthState.load(tmp_path / "old.safetensors")


@pytest.mark.parametrize("lower", ["half", "bfloat16", "to"])
def test_weights_below_float32_are_refused_where_they_are_asked_for(
    tiny_encoder: DepthAnythingEncoder, lower: str
) -> None:
    model = tiny_student(tiny_encoder)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"float32 or float64; got torch\.\w+: give DepthStream precision='\w+16'"):
        model.to(torch.float16) if lower == "to" else getattr(model, lower)()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    states = copy.deepcopy(model).double()(random_clip(frames=1).double()).states
    assert states.layers["s0"][0][1].dtype == torch.float64


def test_bfloat16_autocast_carries_the_state(tiny_encoder: DepthAnythingEncoder) -> None:
    model = tiny_student(tiny_encoder)
    clip = random_clip()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        whole, state, _ = model(clip)
        pieces, _ = run_in_chunks(model, clip, [2, 1, 3])
    spread = float(whole.max() - whole.min())
    assert (whole - pieces).abs().max() < 0.05 * spread
    assert all(ssm.dtype == torch.float32 for blocks in state.layers.values() for _, ssm in blocks)
