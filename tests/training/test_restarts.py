"""A stream restarted in the middle of a clip is a new stream; nothing is asked of it across the border."""

from __future__ import annotations

import torch
from tiny import tiny_student

from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.motion import Motion
from videomamba_depth.training.labeller import Chunk
from videomamba_depth.training.objective import ChunkTarget, Objective
from videomamba_depth.training.restarts import draw_encode_every, draw_restarts, restart
from videomamba_depth.training.trainer_state import Carry, Position

SIZE = (28, 42)


def test_draws_depend_on_position_seed_and_rank_alone() -> None:
    places = [Position(batch, frame) for batch in range(20) for frame in (2, 4)]
    drawn = torch.stack([draw_restarts(0.3, 0, place, 0, 4) for place in places])
    assert torch.equal(drawn, torch.stack([draw_restarts(0.3, 0, place, 0, 4) for place in places]))
    assert 0.2 < drawn.float().mean() < 0.4
    for seed, rank in ((1, 0), (0, 1)):
        assert not torch.equal(drawn, torch.stack([draw_restarts(0.3, seed, place, rank, 4) for place in places]))
    assert not draw_restarts(1.0, 0, Position(3, 0), 0, 4).any()  # states are new there anyway
    assert not draw_restarts(0.0, 0, Position(3, 2), 0, 4).any()
    assert draw_restarts(1.0, 0, Position(3, 2), 0, 4).all()


def test_how_many_frames_are_encoded_is_drawn_alike_for_each_batch_of_clips() -> None:
    drawn = [draw_encode_every(4, 0, batch) for batch in range(100)]
    assert drawn == [draw_encode_every(4, 0, batch) for batch in range(100)]
    assert drawn != [draw_encode_every(4, 1, batch) for batch in range(100)]
    assert all(15 <= drawn.count(every) <= 35 for every in (1, 2, 3, 4))
    assert draw_encode_every(1, 0, 7) == 1


def test_a_restarted_stream_is_new_and_the_other_goes_on(tiny_encoder: DepthAnythingEncoder) -> None:
    student = tiny_student(tiny_encoder)
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(2, 4, 3, *SIZE, generator=generator)
    static, valid = (torch.ones(2, 4, 1, *SIZE, dtype=torch.bool) for _ in range(2))
    labels = ChunkTarget(torch.rand(2, 4, 1, *SIZE, generator=generator) + 1, valid, static)
    trusted = Motion(torch.zeros(2, 2, 2, *SIZE), torch.ones(2, 2, 1, *SIZE, dtype=torch.bool))
    objective = Objective(ssi_weight=0.0)
    with torch.no_grad():
        first = student(clip[:, :2])
        summaries = [summary for scale in first.summaries.values() for summary in scale]
        _, tail = objective(first.depth, ChunkTarget(*(x[:, :2] for x in labels)), summaries, None)
        rest = clip[:, 2:]
        chunk = Chunk(rest, None, trusted, ChunkTarget(*(x[:, 2:] for x in labels)))
        carry, restarted = restart(Carry(first.states, tail), chunk, torch.tensor([True, False]))
        depth = student(rest, carry.states).depth
        new, onwards = (student(rest, states).depth for states in (None, first.states))
        torch.testing.assert_close(depth[0], new[0])
        torch.testing.assert_close(depth[1], onwards[1])
        assert not torch.allclose(new[0], onwards[0])
    assert restarted.motion is not None
    assert restarted.motion.trusted[:, 0].flatten(1).any(1).tolist() == [False, True]
    assert restarted.target.static[:, 0].flatten(1).any(1).tolist() == [False, True]
    assert restarted.motion.trusted[:, 1].all()
    assert chunk.target.static.all()  # the input is unchanged
    assert carry.tail is not None
    assert torch.equal(carry.tail.scale, tail.scale)

    def counts(chunk: Chunk, carry: Carry) -> dict[str, float]:
        terms, _ = objective(depth, chunk.target, [s[:, 2:] for s in whole_summaries], carry.tail)
        return {name: float(term.counts.sum()) for name, term in terms.items()}

    whole_summaries = [torch.rand(2, 4, *s.shape[2:], generator=generator) for s in summaries]
    before, after = counts(chunk, Carry(first.states, tail)), counts(restarted, carry)
    # Of the two pairs of frames (the border and the one in the chunk) of two streams, one is left out.
    assert after == {name: 0.75 * value for name, value in before.items()}


def test_nothing_drawn_changes_nothing(tiny_encoder: DepthAnythingEncoder) -> None:
    chunk = Chunk(torch.zeros(1), None, None, ChunkTarget(*(torch.zeros(1) for _ in range(3))))
    carry = Carry()
    assert restart(carry, chunk, torch.tensor([True])) == (carry, chunk)
