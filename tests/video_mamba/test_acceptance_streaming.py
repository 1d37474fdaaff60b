"""Acceptance points of streaming: chunks equal the whole, states are safe to use, gradients cross, time is causal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_backbones import PATCHES, clip, contract, image_model, state_tensors, stream, video_model, vim_model

from videomamba_depth.video_mamba import BiMambaRefinerBlock, positions, streaming

SAME = 1e-4  # float32; measured 4e-6
DIFFERENT = 0.1


@pytest.mark.parametrize("rms_norm", [True, False])
@pytest.mark.parametrize("tubelet", [1, 2])
@pytest.mark.parametrize("split", [[1] * 8, [1, 2, 5], [4, 4], [3, 1, 4]])
def test_point_01_chunks_equal_one_go(rms_norm: bool, tubelet: int, split: list[int]) -> None:
    model = contract(rms_norm=rms_norm, kernel_size=tubelet, num_frames=8 * tubelet)
    x = clip(8 * tubelet)
    with torch.no_grad():
        whole = model.forward_features(x)
        chunked, _ = stream(model, x, [n * tubelet for n in split])
    torch.testing.assert_close(chunked, whole, atol=SAME, rtol=0)


@pytest.mark.parametrize("discretization", ["bilinear", "rk4", "foh_exact", "tustin"])
def test_point_01_every_discretization_streams(discretization: str) -> None:
    model = contract(ssm_cfg={"d_state": 4, "backend": "reference", "discretization": discretization})
    x = clip(6)
    with torch.no_grad():
        chunked, _ = stream(model, x, [1, 2, 3])
        torch.testing.assert_close(chunked, model.forward_features(x), atol=SAME, rtol=0)


@pytest.mark.parametrize("dropped", ["conv", "ssm", "both"])
def test_point_01_without_the_state_outputs_differ(dropped: str) -> None:
    model, x = contract(), clip(8)
    with torch.no_grad():
        whole = model.forward_features(x)
        first, state = model.forward_features(x[:, :, :4], ssm_state=model.allocate_state(2))
        state = [
            (conv if dropped == "ssm" else conv * 1e-9, ssm if dropped == "conv" else ssm * 1e-9) for conv, ssm in state
        ]
        second, _ = model.forward_features(x[:, :, 4:], ssm_state=state, temporal_pos_offset=4)
    chunked = torch.cat([first, second], dim=1)
    assert (chunked - whole).abs().max() > DIFFERENT


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 3))
def test_point_01_any_split_from_any_start(split: list[int], start: int) -> None:
    model = contract(add_pool_norm=False, num_frames=24, depth=2)
    x = clip(sum(split), batch=1)
    with torch.no_grad():
        whole = model(x, ssm_state=model.allocate_state(1), temporal_pos_offset=start)[0]
        chunked, state = stream(model, x, split, offset=start)
        _, final = model(x, ssm_state=model.allocate_state(1), temporal_pos_offset=start)
    torch.testing.assert_close(chunked, whole, atol=SAME, rtol=0)
    for ours, theirs in zip(state_tensors(state), state_tensors(final), strict=True):
        torch.testing.assert_close(ours, theirs, atol=SAME, rtol=0)


@pytest.mark.parametrize("policy", ["clamp", "resize_once(16)", "resize_once(12)"])
def test_point_02_chunks_equal_one_go_beyond_the_temporal_table(policy: str) -> None:
    model, x = contract(num_frames=4, temporal_policy=policy), clip(12)
    with torch.no_grad():
        whole = model.forward_features(x)
        one_by_one, _ = stream(model, x, [1] * 12)
        uneven, _ = stream(model, x, [5, 1, 6])
    torch.testing.assert_close(one_by_one, whole, atol=SAME, rtol=0)
    torch.testing.assert_close(uneven, whole, atol=SAME, rtol=0)


def test_point_02_positions_beyond_the_table_are_those_of_the_policy() -> None:
    table = torch.arange(4.0).view(1, 4, 1)
    model = contract(num_frames=4)
    rows = {}
    for policy in ("clamp", "resize_once(8)"):
        model.temporal_policy = type(model.temporal_policy).parse(policy)
        rows[policy] = torch.cat([model.temporal_policy.rows(table, offset, 2) for offset in (0, 2, 4, 6)], 1).flatten()
    assert rows["clamp"].tolist() == [0, 1, 2, 3, 3, 3, 3, 3]
    assert rows["resize_once(8)"].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]


def test_point_02_clamp_runs_for_ever() -> None:
    model = contract(num_frames=4, temporal_policy="clamp")
    out, _ = model.forward_features(clip(1), ssm_state=model.allocate_state(2), temporal_pos_offset=10**7)
    assert out.isfinite().all()


@pytest.mark.parametrize(("policy", "length"), [("error", 4), ("resize_once(6)", 6)])
def test_point_02_error_raises_at_the_first_offending_chunk(policy: str, length: int) -> None:
    model, x = contract(num_frames=4, temporal_policy=policy, pool_type="avg"), clip(8)
    _, state = stream(model, x[:, :, :length], [1] * length)
    with pytest.raises(ValueError, match=f"positions {length} to {length} lie beyond.*temporal_policy"):
        model(x[:, :, length : length + 1], ssm_state=state, temporal_pos_offset=length)
    with pytest.raises(ValueError, match="lie beyond"):
        model(clip(length + 1))


def test_point_02_longer_clips_run_by_default_and_it_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    positions._log_clamped.cache_clear()
    model, x = contract(num_frames=4, add_pool_norm=False), clip(9)
    with torch.no_grad():
        whole = model(x)
        chunked, _ = stream(model, x, [3, 3, 3])
    torch.testing.assert_close(chunked, whole, atol=SAME, rtol=0)
    (record,) = caplog.records
    assert "beyond the temporal table of 4 rows take its last row" in record.getMessage()


@pytest.mark.parametrize("bad", ["stretch", "resize_once", "resize_once(0)", "resize_once(-3)", None, 8])
def test_point_02_unknown_policies_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="temporal_policy must be"):
        contract(temporal_policy=bad)


@pytest.mark.parametrize("backend", ["reference", None])
def test_point_03_a_state_used_twice_gives_the_same_and_stays_untouched(backend: str | None) -> None:
    model, x = contract(pool_type="avg", ssm_cfg={"d_state": 4, "backend": backend}), clip(6)
    with torch.no_grad():
        _, state = stream(model, x[:, :, :4], [3, 1])
        before = [tensor.clone() for tensor in state_tensors(state)]
        for length in (1, 2):  # one frame and more may take different paths
            chunk = x[:, :, 4 : 4 + length]
            first = model(chunk, ssm_state=state, temporal_pos_offset=4)
            second = model(chunk, ssm_state=state, temporal_pos_offset=4)
            assert torch.equal(first[0], second[0])
            assert torch.equal(first[1], second[1])
            assert all(map(torch.equal, state_tensors(first[2]), state_tensors(second[2])))
            assert all(map(torch.equal, state_tensors(state), before))
            assert not any(map(torch.equal, state_tensors(first[2]), before))


@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_point_04_gradients_cross_chunks_as_in_one_go(use_checkpoint: bool) -> None:
    model = contract(pool_type="avg", use_checkpoint=use_checkpoint, checkpoint_num=2).train()
    x, weight = clip(6), torch.randn(2, 25, 16, generator=torch.Generator().manual_seed(5))

    def gradients(split: list[int]) -> list[torch.Tensor]:
        model.zero_grad()
        chunks = [chunk.clone().requires_grad_() for chunk in x.split(split, dim=2)]
        state, tokens, offset = model.allocate_state(2), [], 0
        for chunk in chunks:
            out, state = model.forward_features(chunk, ssm_state=state, temporal_pos_offset=offset)
            tokens.append(out)
            offset += chunk.shape[2]
        tokens = torch.cat(tokens, dim=1)
        (tokens * weight + tokens.square()).sum().backward()
        inputs = torch.cat([chunk.grad for chunk in chunks], dim=2)
        return [inputs] + [p.grad.clone() for n, p in model.named_parameters() if "pool_norm" not in n]

    for whole, chunked in zip(gradients([6]), gradients([2, 4]), strict=True):
        assert whole.abs().max() > 1e-3
        torch.testing.assert_close(chunked, whole, atol=3e-5 * whole.abs().max().item(), rtol=1e-4)  # measured 1e-6


def test_point_04_a_detached_state_stops_gradients() -> None:
    model, x = contract(pool_type="avg"), clip(4)
    first, second = (part.clone().requires_grad_() for part in x.split(2, dim=2))
    _, _, state = model(first, ssm_state=model.allocate_state(2))
    out = model(second, ssm_state=[(c.detach(), s.detach()) for c, s in state], temporal_pos_offset=2)[0]
    grads = torch.autograd.grad(out.sum(), [first, second], allow_unused=True)
    assert grads[0] is None
    assert grads[1].abs().max() > 0
    out = model(second, ssm_state=state, temporal_pos_offset=2)[0]
    assert torch.autograd.grad(out.square().sum(), first)[0].abs().max() > 1e-3


def test_point_04_checkpointing_changes_nothing() -> None:
    x, results = clip(4), []
    for use_checkpoint in (False, True):
        model = contract(use_checkpoint=use_checkpoint, checkpoint_num=3).train()
        out = model(x)[1]
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("tubelet", [1, 2])
def test_point_05_the_future_changes_nothing_earlier(tubelet: int) -> None:
    model, x = contract(kernel_size=tubelet), clip(8)
    changed = x.clone()
    changed[:, :, 4] += 1
    with torch.no_grad():
        before, after = model.forward_features(x), model.forward_features(changed)
    boundary = 1 + (4 // tubelet) * PATCHES
    assert (before - after)[:, :boundary].abs().max() <= 1e-6
    later = (before - after)[:, boundary:].unflatten(1, (-1, PATCHES)).abs().amax((0, 2, 3))
    assert (later > 1e-3).all()


def test_point_05_batch_entries_do_not_mix() -> None:
    model, x = contract(), clip(4)
    with torch.no_grad():
        together, state = stream(model, x, [1, 3])
        alone, alone_state = stream(model, x[1:], [1, 3])
    torch.testing.assert_close(together[1:], alone, atol=SAME, rtol=0)
    torch.testing.assert_close(state[2][1][1:], alone_state[2][1], atol=SAME, rtol=0)


def test_point_06_bidirectional_models_refuse_a_state_and_say_why() -> None:
    state = contract().allocate_state(2)
    image = clip(1)[:, :, 0]
    reason = "bidirectional.*needs the whole clip: passing a state raises.*PretrainVideoMamba"
    for model, x in ((image_model(), image), (video_model(), clip(4)), (vim_model(), image)):
        with pytest.raises(ValueError, match=reason):
            model(x, ssm_state=state)
        with pytest.raises(ValueError, match=reason):
            model.forward_features(x, ssm_state=state)
        with pytest.raises(TypeError, match="no causal mixer"):
            contract().__class__.expected_state_shapes(model, 2)
        with pytest.raises(TypeError, match="whole sequence"):
            model.layers[0].mixer(torch.zeros(1, 2, 16), None)


def test_point_06_the_refiner_block_refuses_a_stream_that_has_begun() -> None:
    block = BiMambaRefinerBlock(8, ssm_cfg={"backend": "reference"})
    x = torch.randn(2, 3, 4, 8)
    new = block.allocate_state(2)
    out, state = block(x, *new)
    torch.testing.assert_close(out, block(x)[0])
    assert out.shape == x.shape
    with pytest.raises(ValueError, match=r"state_fwd.*new.*whole clip"):
        block(x, state_fwd=state)
    with pytest.raises(ValueError, match="must have shape"):
        block(x[0, 0])


def test_point_06_a_video_model_sees_the_future() -> None:
    model, x = video_model(), clip(4)
    changed = x.clone()
    changed[:, :, 3] += 1
    with torch.no_grad():
        difference = (model.forward_features(x) - model.forward_features(changed)).abs().amax((0, 2))
    assert difference.min() > 1e-4


def test_point_09_bf16_with_float32_state_does_not_drift() -> None:
    exact = contract(depth=2, temporal_policy="clamp").double()
    model = contract(depth=2, temporal_policy="clamp").bfloat16()
    x = clip(256, batch=1).bfloat16()
    with torch.no_grad():
        truth = exact.forward_features(x.double())
        one_go = model.forward_features(x)
        state = model.allocate_state(1)
        chunked, state = stream(model, x, [1] * 256, state)
    assert {tensor.dtype for tensor in state_tensors(state)} == {torch.float32}
    assert chunked.dtype == torch.bfloat16
    one_go_error = (one_go.double() - truth).abs()
    drift = (chunked.double() - one_go.double()).abs()
    late = slice(-64 * PATCHES, None)
    assert drift.max() <= one_go_error.max()
    assert drift[:, late].mean() <= one_go_error.mean()
    assert (chunked.double() - truth).abs()[:, late].mean() <= 1.5 * one_go_error.mean()


def test_point_09_autocast_streams_too() -> None:
    model, x = contract(), clip(6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = model.forward_features(x)
        chunked, state = stream(model, x, [1, 2, 3])
    exact = model.forward_features(x)
    assert {tensor.dtype for tensor in state_tensors(state)} == {torch.float32}
    assert (chunked - whole).abs().max() <= (whole - exact).abs().max()


@pytest.mark.parametrize("make", ["allocate_state", "init_state"])
@pytest.mark.parametrize("held", [0.0, 1.0, torch.nan])
def test_point_12_an_offset_above_0_continues_whatever_the_state_holds(make: str, held: float) -> None:
    model, x = contract(add_pool_norm=False, num_frames=16), clip(6)
    state = [(conv + held, ssm + held) for conv, ssm in getattr(model, make)(2)]
    with torch.no_grad():
        first, state = model(x[:, :, :2], ssm_state=state, temporal_pos_offset=5)
        second, _ = model(x[:, :, 2:], ssm_state=state, temporal_pos_offset=7)
    assert [out.shape[1] for out in (first, second)] == [2 * PATCHES, 4 * PATCHES]


def test_a_state_that_is_not_finite_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = contract()
    streaming._say_not_finite.cache_clear()
    good = model.allocate_state(2)
    streaming.validate_state(model, good, 2)
    assert not caplog.messages
    for _ in range(2):
        streaming.validate_state(
            model, [(conv, ssm.index_fill(1, torch.tensor(0), torch.inf)) for conv, ssm in good], 2
        )
    assert caplog.messages == ["a streaming state is not finite, nor will its streams be again; begin them anew"]


def test_point_12_a_stream_that_starts_later_has_no_cls_and_equals_one_go() -> None:
    model, x = contract(add_pool_norm=False, num_frames=16), clip(6)
    with torch.no_grad():
        chunked, _ = stream(model, x, [2, 1, 3], offset=5)
        whole, _ = model(x, ssm_state=model.allocate_state(2), temporal_pos_offset=5)
        from_one, _ = model(x, ssm_state=model.allocate_state(2), temporal_pos_offset=1)
    torch.testing.assert_close(chunked, whole, atol=SAME, rtol=0)
    assert (whole - from_one).abs().max() > DIFFERENT  # the offset chose other temporal rows


def test_point_12_a_used_state_at_offset_0_is_an_error() -> None:
    model, x = contract(pool_type="avg"), clip(2)
    _, _, state = model(x, ssm_state=model.allocate_state(2))
    for call in (model, model.forward_features):
        with pytest.raises(ValueError, match="has begun, but temporal_pos_offset is 0"):
            call(x, ssm_state=state)


def test_point_12_black_frames_get_no_second_cls() -> None:
    model = contract(num_frames=64)
    with torch.no_grad():
        model.patch_embed.proj.bias.zero_()
        model.pos_embed[:, 1:].zero_()
        model.temporal_pos_embedding.zero_()
    x = torch.zeros(1, 3, 40, 8, 8)
    tokens, _ = stream(model, x, [4] * 10)
    assert tokens.shape[1] == 1 + 40 * PATCHES


def test_point_12_a_batch_may_mix_new_streams_with_others_beyond_offset_0() -> None:
    model, x = contract(pool_type="avg"), clip(2)
    state = [(c.detach().clone(), s.detach().clone()) for c, s in stream(model, x, [2])[1]]
    for conv, ssm in state:
        conv[1], ssm[1] = 0, 0
    assert model(x, ssm_state=state, temporal_pos_offset=2)[0].shape[1] == 2 * PATCHES
    with pytest.raises(ValueError, match="has begun, but temporal_pos_offset is 0"):
        model(x, ssm_state=state)


def test_point_12_a_model_without_data_trusts_the_offset() -> None:
    model = contract(add_pool_norm=False).to("meta")
    x = clip(2).to("meta")
    out, state = model(x, ssm_state=model.allocate_state(2))
    assert out.shape == (2, 9, 16)
    assert model(x, ssm_state=state, temporal_pos_offset=2)[0].shape == (2, 8, 16)


@pytest.mark.parametrize("pool_type", ["cls", "cls+avg", "cls_cat_avg"])
@pytest.mark.parametrize("keep_temporal", [False, True])
def test_point_12_a_continuation_cannot_pool_the_cls(pool_type: str, keep_temporal: bool) -> None:
    model, x = contract(pool_type=pool_type), clip(2)
    _, _, state = model(x, ssm_state=model.allocate_state(2))
    with pytest.raises(ValueError, match="requires a CLS token"):
        model(x, ssm_state=state, keep_temporal=keep_temporal, temporal_pos_offset=2)
