"""The innovation mixer: what its gate lets through, and states that are moved along the flow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selective_scan import DISCRETIZATIONS
from videomamba_depth.layers.innovation_mixer import InnovationMixer
from videomamba_depth.layers.mamba_mixer import LayerState
from videomamba_depth.models.motion import TokenWarp

HEIGHT, WIDTH, CHANNELS, FRAMES = 6, 7, 8, 5


def mixer_and_inputs(method: str = "zoh", gain: float = 1.0) -> tuple[InnovationMixer, Tensor, Tensor]:
    """Return a mixer with tokens [HEIGHT·WIDTH, 5, 8] of which each third is large, and its control."""
    torch.manual_seed(0)
    mixer = InnovationMixer(
        CHANNELS, d_state=4, d_control=8, initial_gain=gain, discretization=method, backend="reference"
    )
    tokens = torch.randn(HEIGHT * WIDTH, FRAMES, CHANNELS)
    tokens[::3] *= 20  # neighbors that differ a lot: where bicubic interpolation overshoots
    return mixer, tokens, 4 * torch.randn(HEIGHT * WIDTH, FRAMES, 8)


def weights_of(mixer: InnovationMixer, state: LayerState) -> Tensor:
    """Return what the means of a one-tap method rest on."""
    return mixer._split_state(state[1])[1]  # type: ignore[return-value]


@pytest.mark.parametrize("method", ["zoh", "tustin"])
def test_weights_stay_positive_when_states_are_moved(method: str) -> None:
    """The means are moved sharply, which may overshoot; their weights are not, since no weight is negative."""
    mixer, tokens, control = mixer_and_inputs(method)
    _, state, _ = mixer(tokens, control)
    one_tap = method == "zoh"
    before = weights_of(mixer, state)
    flow = torch.rand(1, 2, HEIGHT, WIDTH) * 3 - 1.5
    trusted = torch.rand(1, 1, HEIGHT, WIDTH) > 0.2
    for _ in range(4):
        state = mixer.advect(state, TokenWarp(flow, trusted))
        assert torch.isfinite(state[1]).all()
        if one_tap:  # a two-tap state also holds the last input, of any sign, and is moved linearly as a whole
            assert weights_of(mixer, state).min() >= 0
            assert weights_of(mixer, state).max() <= before.max()
    hidden = ~trusted.flatten()
    assert (state[1][hidden] == 0).all()
    new, _, _ = mixer(tokens[:, :1], control[:, :1])
    moved, _, _ = mixer(tokens[:, :1], control[:, :1], state)
    assert torch.isfinite(moved).all()
    assert torch.allclose(moved[hidden], new[hidden], atol=1e-5)
    assert not torch.allclose(moved[~hidden], new[~hidden], atol=1e-2)


@pytest.mark.parametrize("step", [False, True], ids=["scan", "one step"])
@pytest.mark.parametrize("method", DISCRETIZATIONS)
def test_a_first_frame_adds_nothing_to_the_bit(method: str, step: bool) -> None:
    mixer, tokens, control = mixer_and_inputs(method)
    length = 1 if step else FRAMES
    _, past, _ = mixer(tokens, control)
    new = torch.arange(len(tokens)) % 2 == 0
    state = tuple(torch.where(new.view(-1, *[1] * (part.ndim - 1)), 0.0, part) for part in past)
    for given in (None, mixer.init_state(len(tokens), tokens.dtype, "cpu")):
        branch, _, _ = mixer(tokens[:, :length], control[:, :length], given)
        assert not branch[:, 0].any()
        assert step or branch[:, 1:].any(-1).all()
    branch, _, _ = mixer(tokens[:, :length], control[:, :length], state)
    assert not branch[new, 0].any()
    assert branch[~new, 0].any(-1).all()


@pytest.mark.parametrize("step", [False, True], ids=["scan", "one step"])
def test_the_gate_of_a_head_decides_how_much_of_its_innovation_passes(step: bool) -> None:
    mixer, tokens, control = mixer_and_inputs()
    _, state, _ = mixer(tokens[:, :-1], control[:, :-1])
    chunk, chunk_control = (tokens[:, -1:], control[:, -1:]) if step else (tokens, control)
    before = state if step else None
    branches = {}
    for name, value in (("half", 0.0), ("open", 30.0), ("closed", -30.0)):
        with torch.no_grad():
            mixer.x_proj.weight[mixer.num_heads : 2 * mixer.num_heads] = 0
            mixer.x_proj.bias[mixer.num_heads : 2 * mixer.num_heads] = value
            branches[name] = mixer(chunk, chunk_control, before)[0]
    assert branches["open"].abs().max() > 1
    torch.testing.assert_close(branches["half"], 0.5 * branches["open"], rtol=1e-4, atol=1e-5)
    assert branches["closed"].abs().max() < 1e-6
    with torch.no_grad():
        mixer.x_proj.bias[mixer.num_heads] = 30.0  # the first head alone
        one = mixer(chunk, chunk_control, before)[0]
    per_head = CHANNELS // mixer.num_heads
    torch.testing.assert_close(one[..., :per_head], branches["open"][..., :per_head])
    assert one[..., per_head:].abs().max() < 1e-6


@pytest.mark.parametrize("method", DISCRETIZATIONS)
def test_the_estimate_is_an_average_of_the_past(method: str) -> None:
    """W = 2·gain·I and a gate of one half: out = h − x, h the weighted mean of what was seen, for steps of any size."""
    mixer, tokens, control = mixer_and_inputs(method)
    with torch.no_grad():
        mixer.x_proj.weight[: mixer.num_heads] *= 100  # Δ between 0 and far more than 1 / A
        mixer.x_proj.weight[mixer.num_heads : 2 * mixer.num_heads] = 0
        estimate = mixer(tokens, control)[0] + tokens
    assert torch.allclose(estimate[:, 0], tokens[:, 0], atol=1e-4)
    low, high = (torch.stack([f(tokens[:, : t + 1], 1) for t in range(FRAMES)], 1) for f in (torch.amin, torch.amax))
    assert (estimate >= low - 1e-3).all()
    assert (estimate <= high + 1e-3).all()
    assert not torch.allclose(estimate[:, 1:], tokens[:, 1:], atol=1e-2)
