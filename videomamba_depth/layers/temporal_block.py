"""The residual blocks of a temporal stack: plain (as published) and innovation form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from videomamba_depth.layers.innovation_mixer import InnovationMixer
from videomamba_depth.layers.mamba_mixer import LayerState, MambaMixer, MixerOutput


class MambaBlock(nn.Module):
    """Pre-norm residual block: `x + Mamba(LayerNorm(x) + PE(t))`, then `x + FFN(LayerNorm(x))`.

    Both branches end in a projection that starts at zero, so that a new block is the identity.

    Args:
        d_model: channels of a token.
        age_features: width K of the temporal position features, see `temporal_age`.
        ffn_ratio: hidden width of the FFN over d_model; 0 leaves the FFN out.
        mixer: keyword arguments of `MambaMixer`.
    """

    def __init__(self, d_model: int, age_features: int, ffn_ratio: float = 2.0, **mixer: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.age_proj = nn.Linear(age_features, d_model, bias=False)
        self.mixer = MambaMixer(d_model, **mixer)
        nn.init.zeros_(self.mixer.out_proj.weight)
        self.ffn = _zero_init_ffn(d_model, ffn_ratio) if ffn_ratio > 0 else None

    def init_state(self, num_sequences: int, dtype: torch.dtype, device: torch.device | str) -> LayerState:
        """Return the zero state, see `MambaMixer.init_state`."""
        return self.mixer.init_state(num_sequences, dtype, device)

    def advect(self, state: LayerState, move: Callable[[Tensor, bool], Tensor]) -> LayerState:
        """Return the state moved with the scene, see `InnovationMixer.advect`; here everything linearly."""
        conv, ssm = state
        return move(conv, False), move(ssm, False)

    def forward(self, x: Tensor, age: Tensor, state: LayerState | None = None, memory: float = 1.0) -> MixerOutput:
        """Run a chunk of tokens `x [T, L, d_model]` at ages `age [B, L, K]`; T is a multiple of B.

        memory: has no meaning here and is not read.
        """
        aged = add_per_sample(self.norm(x), self.age_proj(age))  # [T, L, d_model]: tokens that know their frame's age
        branch, state, summary = self.mixer(aged, state)
        x = x + branch
        if self.ffn is not None:
            x = x + self.ffn(x)
        return MixerOutput(x, state, summary)


class InnovationBlock(nn.Module):
    """Residual block in innovation form: `x + W(h − x)`, h a recurrent estimate of x (after the Kalman filter).

    W starts at `initial_gain`, by default zero, so that a new block is the identity; and `h = x` on the first frame
    of a stream, so that a single image passes unchanged whatever was learned.

    Args:
        d_model: channels of a token.
        age_features: width K of the temporal position features, see `temporal_age`.
        mixer: keyword arguments of `InnovationMixer`.
    """

    def __init__(self, d_model: int, age_features: int, **mixer: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.mixer = InnovationMixer(d_model, **mixer)
        self.age_proj = nn.Linear(age_features, self.mixer.d_control, bias=False)

    def init_state(self, num_sequences: int, dtype: torch.dtype, device: torch.device | str) -> LayerState:
        """Return the zero state, see `InnovationMixer.init_state`."""
        return self.mixer.init_state(num_sequences, dtype, device)

    def advect(self, state: LayerState, move: Callable[[Tensor, bool], Tensor]) -> LayerState:
        """Return the state moved with the scene, see `InnovationMixer.advect`."""
        return self.mixer.advect(state, move)

    def forward(self, x: Tensor, age: Tensor, state: LayerState | None = None, memory: float = 1.0) -> MixerOutput:
        """Run a chunk of tokens `x [T, L, d_model]` at ages `age [B, L, K]`; T is a multiple of B.

        memory: see `InnovationMixer.forward`.
        """
        # Norm and age only reach the control path: h is a mean of x itself, or the first frame would change.
        control = add_per_sample(self.mixer.in_proj(self.norm(x)), self.age_proj(age))  # [T, L, d_control]
        branch, state, summary = self.mixer(x, control, state, memory)
        return MixerOutput(x + branch, state, summary)


def temporal_age(frame_index: Tensor, num_frames: int, time_constants: tuple[float, ...]) -> Tensor:
    """Return the temporal position features `t / (t + τ_k)`, `[B, N, K]` in [0, 1), float32.

    They tell how much past a state has seen. Unlike a sinusoid they are monotone and converge, so that frame 10^7
    looks like frame 10^6 and no frame is out of the range that training saw.

    Args:
        frame_index: `[B]` int64, index of the first of the `num_frames` frames in its stream.
    """
    # In float64 until the end: float32 counts frames only up to 1.7e7.
    t = frame_index[:, None] + torch.arange(num_frames, device=frame_index.device)
    t = t.to(torch.float64)  # [B, N]
    return torch.stack([t / (t + tau) for tau in time_constants], -1).float()  # no constant is copied to the device


def add_per_sample(tokens: Tensor, bias: Tensor) -> Tensor:
    """Add `bias [B, L, C]` to the `tokens [B·S, L, C]` of each of the B samples."""
    return (tokens.unflatten(0, (bias.shape[0], -1)) + bias[:, None]).flatten(0, 1)


def _zero_init_ffn(d_model: int, ratio: float) -> nn.Sequential:
    hidden = round(d_model * ratio)
    last = nn.Linear(hidden, d_model)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(d_model), nn.Linear(d_model, hidden), nn.GELU(), last)
