"""Frames that the encoder does not see: which ones they are, what they get, and the same for every split of a clip."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import enliven
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.models.checkpoint import describe_encoder, load_student, save_student, student_weights
from videomamba_depth.models.depth_state import DepthState
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.feature_propagation import FeatureUpdate, turns
from videomamba_depth.models.geometry import GeometrySpec
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth

SIZE = (61, 75)  # px; the model sees 56x70
SPEC = TemporalSpec(*(ScaleSpec(n, backend="reference", initial_gain=0.5, advect=n == 1) for n in (0, 1, 2, 1)))


def student(encoder: DepthAnythingEncoder, learned: int = 1, geometry: GeometrySpec | None = None) -> VideoMambaDepth:
    torch.manual_seed(0)
    motion, output = MotionSpec(short_side=56), OutputSpec()
    return VideoMambaDepth(encoder, encoder.head, SPEC, True, motion, output, geometry, encode_every=learned).eval()


def scrolling(batch: int = 1, frames: int = 8, cut: int | None = None, seed: int = 0) -> Tensor:
    """Return clips [B, N, 3, *SIZE] of a picture that moves by 2 px per frame; another picture from `cut` on."""
    noise = torch.rand(2 * batch, 3, SIZE[0] // 4, 40, generator=torch.Generator().manual_seed(seed))
    pictures = F.interpolate(noise, (SIZE[0], 160), mode="bicubic").clamp(0, 1).unflatten(0, (2, batch))
    shown = [pictures[int(cut is not None and t >= cut)][..., 2 * t : 2 * t + SIZE[1]] for t in range(frames)]
    return torch.stack(shown, 1)


def run(
    model: VideoMambaDepth, clip: Tensor, every: int, lengths: list[int] | None = None
) -> tuple[Tensor, DepthState]:
    states = model.init_states(clip.shape[0], SIZE, encode_every=every)
    depth = []
    with torch.no_grad():
        for chunk in clip.split(lengths or [clip.shape[1]], 1):
            part, states, _ = model(chunk, states)
            depth.append(part)
    return torch.cat(depth, 1), states


def frames_encoded(model: VideoMambaDepth, clip: Tensor, every: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many frames the encoder sees at each step."""
    counts: list[int] = []
    real = model.encoder.encode_pixels
    monkeypatch.setattr(model.encoder, "encode_pixels", lambda x: counts.append(counts.pop() + len(x)) or real(x))
    states = model.init_states(clip.shape[0], SIZE, encode_every=every)
    with torch.no_grad():
        for frame in clip.unbind(1):
            counts.append(0)
            _, states = model.step(frame, states)
    return counts


@pytest.mark.parametrize("learned", [1, 4])
@given(cuts=st.sets(st.integers(1, 7)))
@settings(max_examples=3, deadline=None)
def test_every_split_gives_the_same(tiny_encoder: DepthAnythingEncoder, learned: int, cuts: set[int]) -> None:
    model = student(tiny_encoder, learned)
    if model.propagation is not None:
        enliven(model.propagation)
    clip = scrolling(batch=2, cut=5)
    lengths = [b - a for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), 8], strict=True)]
    (whole, after), (pieces, pieces_after) = run(model, clip, 3), run(model, clip, 3, lengths)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-4 * float(whole.max() - whole.min()))  # 3e-6
    assert (after.clock, pieces_after.clock) == (8, 8)
    for name, tensor in after.tensors().items():
        torch.testing.assert_close(pieces_after.tensors()[name], tensor, rtol=1e-3, atol=1e-4)


def test_the_encoder_sees_every_kth_frame_and_what_is_new_at_once(
    tiny_encoder: DepthAnythingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = student(copy.deepcopy(tiny_encoder))
    assert frames_encoded(model, scrolling(), 3, monkeypatch) == [1, 0, 0, 1, 0, 0, 1, 0]
    assert frames_encoded(model, scrolling(cut=5), 3, monkeypatch) == [1, 0, 0, 1, 0, 1, 1, 0]  # a cut
    unrelated = torch.rand(1, 5, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    assert frames_encoded(model, unrelated, 100, monkeypatch) == [1] * 5  # nothing can be followed


@pytest.mark.parametrize(
    ("step_px", "lost", "expected"),
    [
        (2.0, 0.0, [True, False, False, False, False]),
        (3.0, 0.0, [True, False, False, True, False]),  # 9 px are more than 15 % of 56; 87 % can still be followed
        (0.0, 0.15, [True, False, False, False, False]),
        (0.0, 0.25, [True] * 5),
    ],
)
def test_a_frame_that_moved_far_or_is_hard_to_follow_is_encoded_at_once(
    tiny_encoder: DepthAnythingEncoder, step_px: float, lost: float, expected: list[bool]
) -> None:
    model, clip = student(tiny_encoder), scrolling(frames=5)
    assert model.propagation is not None
    maps = model.init_states(1, SIZE, encode_every=100).maps
    motion = model.motion(model.fit(clip))[0]  # type: ignore[misc]
    assert motion.flow_px.shape[-2:] == (56, 70)
    motion.flow_px.zero_()[:, 1:, 0] = step_px
    motion.trusted.fill_(True)[:, 0] = False
    motion.trusted[..., : round(70 * lost)] = False
    plan = model.propagation.plan(maps, motion, turns(0, 5, 100, 1))
    assert [streams[0] for streams in plan.encoded] == expected


@pytest.mark.parametrize(("batch", "every"), [(4, 4), (3, 2), (2, 4), (8, 4), (1, 3)])
def test_streams_take_turns(batch: int, every: int) -> None:
    plan = turns(7, 3 * every, every, batch)
    counts = [sum(streams) for streams in plan]
    assert max(counts) - min(counts) <= 1  # even
    for stream in zip(*plan, strict=True):
        assert stream[:every].count(True) == 1
        assert stream == stream[:every] * 3
    assert turns(0, 1, every, batch)[0][0]


def test_a_batch_costs_the_same_at_every_frame(
    tiny_encoder: DepthAnythingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = student(copy.deepcopy(tiny_encoder))
    assert frames_encoded(model, scrolling(batch=4), 4, monkeypatch) == [4, 1, 1, 1, 1, 1, 1, 1]


def test_a_picture_that_stays_keeps_its_features(tiny_encoder: DepthAnythingEncoder) -> None:
    model = student(tiny_encoder)
    clip = scrolling(frames=1).expand(-1, 6, -1, -1, -1)
    (depth, _), (expected, _) = run(model, clip, 3), run(model, clip, 1)
    torch.testing.assert_close(depth, expected, rtol=0, atol=1e-5 * float(expected.max() - expected.min()))


def test_features_are_moved_in_one_piece_from_the_frame_encoded_last(tiny_encoder: DepthAnythingEncoder) -> None:
    """After whole cells of s0, they are those of the first frame, shifted: no blur adds up."""
    model = student(tiny_encoder)
    assert model.propagation is not None
    maps = model.init_states(1, SIZE, encode_every=9).maps
    flow = torch.zeros(1, 5, 2, *maps["encoded.flow"].shape[-2:])
    flow[:, 1:, 0] = 1.75
    motion = model.motion(model.fit(scrolling(frames=5)))[0]._replace(flow_px=flow)  # type: ignore[misc]
    motion.trusted[:, 1:] = True
    seen = {name: torch.randn(1, *maps[f"encoded.{name}"].shape[1:]) for name in ("s0", "s1", "s2", "s3")}
    plan = model.propagation.plan(maps, motion, turns(0, 5, 9, 1))
    assert plan.chosen() == [0]
    features, after = model.propagation(scrolling(frames=5), seen, plan, maps)
    width = seen["s0"].shape[-1]
    cells = 2  # of 3.5 px, in four frames
    torch.testing.assert_close(features["s0"][:, 4, ..., : width - cells], seen["s0"][..., cells:], rtol=0, atol=1e-4)
    assert torch.equal(after["encoded.s0"], seen["s0"])


def test_the_correction_starts_at_nothing_and_only_touches_frames_that_were_not_encoded(
    tiny_encoder: DepthAnythingEncoder,
) -> None:
    plain, learned, clip = student(tiny_encoder), student(tiny_encoder, 4), scrolling(frames=4)
    expected, _ = run(plain, clip, 2)
    assert torch.equal(run(learned, clip, 2)[0], expected)
    assert learned.propagation is not None
    before = {name: x.clone() for name, x in learned.state_dict().items() if not name.startswith("propagation.")}
    assert all(torch.equal(x, before[name]) for name, x in plain.state_dict().items())
    enliven(learned.propagation)
    changed, _ = run(learned, clip, 2)
    assert torch.equal(changed[:, 0], expected[:, 0])
    assert float((changed[:, 1] - expected[:, 1]).abs().max()) > 1e-3 * float(expected.max() - expected.min())
    assert torch.equal(run(learned, clip, 1)[0], run(plain, clip, 1)[0])


def test_the_correction_depends_on_the_picture_on_what_was_moved_there_and_on_the_trust_in_it() -> None:
    torch.manual_seed(0)
    update = FeatureUpdate((4, 6))
    enliven(update)
    moved = {"s0": torch.randn(1, 4, 8, 10), "s1": torch.randn(1, 6, 4, 5)}
    inputs = [torch.rand(1, 3, 8, 10), torch.rand(1, 3, 8, 10), torch.rand(1, 1, 8, 10)]
    with torch.no_grad():
        expected = update(moved, *inputs)
    for i, x in enumerate(inputs):
        with torch.no_grad():
            other = update(moved, *inputs[:i], x.flip(-1), *inputs[i + 1 :])
        for name, features in expected.items():
            assert other[name].shape == moved[name].shape
            assert float((other[name] - features).abs().max()) > 1e-4


def test_it_learns_from_features_that_are_at_hand(tiny_encoder: DepthAnythingEncoder) -> None:
    """As in training: all frames are encoded, motion is known, and the depth is that of a stream."""
    model, clip = student(tiny_encoder, 3).train(), scrolling(batch=2)
    assert model.propagation is not None
    enliven(model.propagation)
    states = model.init_states(2, SIZE, encode_every=3)
    motion, _ = model.motion(model.fit(clip))  # type: ignore[misc]
    depth = model(clip, states, features=model.encode(clip), motion=motion).depth
    expected, _ = run(model.eval(), clip, 3)
    torch.testing.assert_close(depth, expected, rtol=0, atol=1e-4 * float(expected.max() - expected.min()))
    depth.square().mean().backward()
    for name, weight in model.propagation.named_parameters():
        assert weight.grad is not None, name
        assert bool(weight.grad.any()), name


def test_with_geometry(tiny_encoder: DepthAnythingEncoder) -> None:
    model = student(tiny_encoder, geometry=GeometrySpec(short_side=56, key_frames=2))
    clip = scrolling(frames=5)
    (whole, after), (pieces, _) = run(model, clip, 2), run(model, clip, 2, [1, 3, 1])
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-3 * float(whole.max() - whole.min()))
    assert {"encoded.s0", "geometry.flow", "frame", "depth"} <= set(after.maps)


def test_a_state_is_saved_in_the_middle_and_refused_elsewhere(
    tiny_encoder: DepthAnythingEncoder, tmp_path: Path
) -> None:
    model, clip = student(tiny_encoder), scrolling(frames=4)
    _, states = run(model, clip[:, :2], 3)
    states.save(tmp_path / "state")
    loaded = DepthState.load(tmp_path / "state")
    assert (loaded.encode_every, loaded.clock) == (3, 2)
    with torch.no_grad():
        assert torch.equal(model(clip[:, 2:], loaded).depth, model(clip[:, 2:], states).depth)
    reset = states.reset(torch.tensor([True]))
    assert reset.clock == 2
    assert not any(bool(t.any()) for t in reset.maps.values())
    plain = VideoMambaDepth(tiny_encoder, tiny_encoder.head, SPEC).eval()
    with pytest.raises(ValueError, match="a student without flow has none"):
        plain(clip, replace(plain.init_states(1, SIZE), encode_every=2))
    with pytest.raises(ValueError, match="a student without flow has none"):
        plain.init_states(1, SIZE, encode_every=2)
    for wrong in (0, 1.5, "2", None, True):
        with pytest.raises(ValueError, match="encode_every must be a whole number from 1; got "):
            model.init_states(1, SIZE, encode_every=wrong)  # type: ignore[arg-type]
    for wrong in ("[2]", "[0, 1]", "[2, -1]", "{}", "[true, 0]"):
        with pytest.raises(ValueError, match="encode_every must be two counts"):
            DepthState.from_tensors(states.tensors(), {**states.metadata(), "encode_every": wrong})
    assert "encode_every" not in model.init_states(1, SIZE).metadata()


def test_a_student_keeps_what_it_learned(tiny_encoder: DepthAnythingEncoder, tmp_path: Path) -> None:
    tiny_encoder.save_pretrained(tmp_path / "encoder")
    model = student(tiny_encoder, 4)
    assert model.propagation is not None
    enliven(model.propagation)
    (tmp_path / "last").mkdir()
    about, parts = describe_encoder(tiny_encoder, "../encoder"), {"motion": MotionSpec(short_side=56)}
    save_student(
        tmp_path / "last", student_weights(model), SPEC, about, None, output=OutputSpec(), encode_every=4, **parts
    )
    loaded = load_student(tmp_path / "last")
    assert loaded.encode_every == 4
    assert torch.equal(run(loaded, scrolling(), 3)[0], run(model, scrolling(), 3)[0])
