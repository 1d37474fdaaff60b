"""The objective does not depend on where a clip is cut, and a term that is off costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from videomamba_depth.losses import LossSums, mean_of_sums
from videomamba_depth.training.objective import ChunkTarget, Objective, Tail, weight_of
from videomamba_depth.training.schedule import WeightAverage, warmup_cosine
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.settings import read_settings, to_values

FRAMES, SIZE = 6, (6, 8)


def shuffled_frames(seed: int) -> torch.Tensor:
    """Return [1, N, 1, H, W] whose frames all hold the same values in another order: one spread for every chunk."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(SIZE[0] * SIZE[1], generator=generator) + 1
    frames = [values[torch.randperm(len(values), generator=generator)].view(1, *SIZE) for _ in range(FRAMES)]
    return torch.stack(frames).unsqueeze(0)


def make_clip() -> tuple[torch.Tensor, ChunkTarget, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(9)
    static = torch.rand(1, FRAMES, 1, *SIZE, generator=generator) < 0.8
    target = ChunkTarget(shuffled_frames(1), torch.rand(1, FRAMES, 1, *SIZE, generator=generator) < 0.9, static)
    return shuffled_frames(0), target, [torch.rand(1, FRAMES, 3, 3, 4, generator=generator)]


@pytest.mark.parametrize("lengths", [[1] * 6, [2, 3, 1], [5, 1]])
def test_chunks_see_every_pair_of_frames_once(lengths: list[int]) -> None:
    objective = Objective(ssi_alignment="none", ssi_gradient_weight=0.0, state_smoothness_weight=0.0)
    prediction, target, summaries = make_clip()
    whole, _ = objective(prediction, target, summaries, None)
    sums = {name: (torch.zeros_like(s.numerators), torch.zeros_like(s.counts)) for name, s in whole.items()}
    tail: Tail | None = None
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        chunk = ChunkTarget(*(x[:, part] for x in target))
        terms, tail = objective(prediction[:, part], chunk, [s[:, part] for s in summaries], tail)
        sums = {name: (sums[name][0] + t.numerators, sums[name][1] + t.counts) for name, t in terms.items()}
        start += length
    assert float(whole["temporal_gradient"].counts.sum()) > 0
    assert torch.equal(sums["temporal_gradient"][1], whole["temporal_gradient"].counts)
    assert torch.equal(sums["ssi"][1], whole["ssi"].counts)
    # The unit of a chunk is the spread of its own valid pixels, which differ a little from the clip's.
    for name, term in whole.items():
        torch.testing.assert_close(sums[name][0], term.numerators, rtol=0.1, atol=1e-4)


def test_the_alignment_of_the_first_chunk_is_kept() -> None:
    objective = Objective(ssi_alignment="clip")
    prediction, target, summaries = make_clip()
    first = ChunkTarget(*(x[:, :2] for x in target))
    _, tail = objective(prediction[:, :2], first, [s[:, :2] for s in summaries], None)
    rest = ChunkTarget(*(x[:, 2:] for x in target))
    _, later = objective(prediction[:, 2:], rest, [s[:, 2:] for s in summaries], tail)
    assert torch.equal(later.scale, tail.scale)
    assert torch.equal(later.shift, tail.shift)
    assert not later.prediction.requires_grad


@pytest.mark.parametrize(("alignment", "flicker", "units"), [("frame", 0, 0), ("clip", 1, 0), ("none", 1, 1)])
def test_what_each_alignment_sees(alignment: str, flicker: int, units: int) -> None:
    """Per frame, flicker of the scale costs nothing; per clip it does, and other units do not; fixed, both do."""
    _, target, _ = make_clip()
    objective = Objective(ssi_alignment=alignment, temporal_gradient_weight=0.0, state_smoothness_weight=0.0)  # type: ignore[arg-type]

    def cost(prediction: torch.Tensor) -> float:
        terms, _ = objective(prediction, target, (), None)
        return float(mean_of_sums(*terms["ssi"]))

    scales = torch.tensor([1.0, 1.3, 0.8, 1.1, 0.9, 1.2]).view(1, FRAMES, 1, 1, 1)
    assert (cost(scales * target.depth) > 0.05, cost(2 * target.depth + 1) > 0.05) == (flicker, units)


def test_terms_of_weight_zero_are_left_out() -> None:
    prediction, target, summaries = make_clip()
    off = Objective(temporal_gradient_weight=0.0, state_smoothness_weight=0.0)
    assert set(off(prediction, target, summaries, None)[0]) == {"ssi"}


def test_consistent_targets_are_followed_everywhere_without_any_flow() -> None:
    """Their terms are those of stabilized targets, which have to be made; nothing looks at static pixels."""
    prediction, target, summaries = make_clip()
    consistent, stabilized = (
        Objective(target=target_name, state_smoothness_weight=0.0)(prediction, target, summaries, None)[0]
        for target_name in ("consistent", "stabilized")
    )
    for name, sums in stabilized.items():
        assert torch.equal(consistent[name].numerators, sums.numerators), name
    assert not Objective(target="consistent", state_smoothness_weight=0.0).needs_flow
    assert Objective(target="consistent").needs_flow
    assert Objective(target="raw", state_smoothness_weight=0.0).needs_flow
    assert Objective(target="stabilized", state_smoothness_weight=0.0).needs_flow


def test_raw_targets_ask_for_stillness_on_static_pixels_only() -> None:
    """A flickering teacher pulls its flicker in unless gradients are matched on static pixels alone, where it is 0."""
    _, target, _ = make_clip()
    still = target.depth[:, :1].expand_as(target.depth).clone().requires_grad_()
    options = {"ssi_alignment": "none", "ssi_weight": 0.0, "state_smoothness_weight": 0.0}
    guarded, _ = Objective(**options)(still, target, [], None)  # type: ignore[arg-type]
    raw, _ = Objective(target="stabilized", **options)(still, target, [], None)  # type: ignore[arg-type]
    assert float(guarded["temporal_gradient"].numerators.detach().sum()) == 0
    assert float(raw["temporal_gradient"].numerators.detach().sum()) > 1


def test_schedule_and_average() -> None:
    factors = [warmup_cosine(step, 10, 2, 0.1) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.1 + 0.9 * 0.5)
    assert all(a >= b for a, b in pairwise(factors[2:]))
    average = WeightAverage({"w": torch.zeros(1)}, decay=0.5)
    average.update({"w": torch.ones(1)}, step=0)  # the decay starts at 1/10
    assert average.average["w"].item() == pytest.approx(0.9)
    average.update({"w": torch.zeros(1)}, step=1000)
    assert average.average["w"].item() == pytest.approx(0.45)


def test_one_field_adds_a_term_and_its_weight() -> None:
    @dataclass(frozen=True)
    class More(Objective):
        brightness_weight: float = weight_of(lambda _, chunk: LossSums(chunk.prediction.sum(), torch.tensor(2.0)), 3.0)

    prediction, target, summaries = make_clip()
    off = {"ssi_weight": 0.0, "temporal_gradient_weight": 0.0, "state_smoothness_weight": 0.0}
    terms, _ = More(**off)(prediction, target, summaries, None)  # type: ignore[arg-type]
    assert list(terms) == ["brightness"]
    torch.testing.assert_close(terms["brightness"].numerators, 3 * prediction.sum())
    assert not More(**off).needs_flow  # type: ignore[arg-type]
    assert read_settings(More, {**to_values(More()), "brightness_weight": 0.0}).brightness_weight == 0
    with pytest.raises(UserError, match="brightness_weight must be in"):
        read_settings(More, {"brightness_weight": -1})
