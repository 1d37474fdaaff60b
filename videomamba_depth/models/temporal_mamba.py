"""The temporal part: per scale, a spatial pre-mix and a stack of Mamba blocks over time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from videomamba_depth.layers.mamba_mixer import LayerState
from videomamba_depth.layers.temporal_block import InnovationBlock, MambaBlock, temporal_age
from videomamba_depth.models.motion import Motion, TokenWarp
from videomamba_depth.utils.settings import derived, ranged

AGE_TIME_CONSTANTS = (1.0, 2.0, 4.0, 8.0)
"""Time constants of the temporal position features, in frames."""


@dataclass(frozen=True)
class ScaleSpec:
    """What the temporal stack of one scale is made of; `num_blocks=0` switches the scale off.

    Attributes:
        form: "innovation" (`x + W(h − x)`) or "plain" (published residual Mamba with FFN).
        state_dtype: precision in which the SSM state is kept between chunks. float16 halves the memory, but rounds at
            every chunk border: outputs then differ between splits of a clip by about 2e-3.
        ffn_ratio: hidden width of the FFN over the scale's channels; plain form only.
        heads: groups of channels with their own step size; innovation form only.
        initial_gain: what the first block smooths before training; innovation form only, see `InnovationMixer`.
        advect: carry the state along with the scene where the model knows the motion.
    """

    num_blocks: int = ranged(0, 64, 1)
    form: Literal["innovation", "plain"] = derived("innovation")
    d_state: int = ranged(1, 256, 4)
    d_conv: int = ranged(2, 4, 4)
    expand: int = ranged(1, 16, 1)
    heads: int = ranged(1, 256, 4)
    initial_gain: float = ranged(0, 1, 0.0)
    advect: bool = True
    ffn_ratio: float = ranged(0, 16, 2.0)
    state_dtype: Literal["float32", "float16"] = "float32"
    discretization: str = derived("zoh")
    backend: str | None = derived(None)

    def build_block(self, channels: int, index: int = 0) -> MambaBlock | InnovationBlock:
        """Return block number `index` for tokens of that many channels."""
        mixer: dict[str, Any] = {
            name: getattr(self, name) for name in ("d_state", "d_conv", "expand", "discretization", "backend")
        }
        ages = len(AGE_TIME_CONSTANTS)
        if self.form == "plain":
            return MambaBlock(channels, ages, ffn_ratio=self.ffn_ratio, **mixer)
        if self.form == "innovation":
            gain = self.initial_gain if index == 0 else 0.0
            return InnovationBlock(channels, ages, heads=self.heads, initial_gain=gain, **mixer)
        raise ValueError(f"form must be 'innovation' or 'plain'; got '{self.form}'")


class SpatialPreMix(nn.Conv2d):
    """Depthwise 3x3 convolution that starts as the identity: neighbors reach a token before time does."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1, groups=channels)
        nn.init.dirac_(self.weight, groups=channels)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


def temporal_tokenize(features: Tensor) -> Tensor:
    """Turn `[B, N, C, H, W]` into one sequence per pixel, `[(B·H·W), N, C]`."""
    return rearrange(features, "b n c h w -> (b h w) n c")


def temporal_detokenize(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `temporal_tokenize` for maps of `size` = (H, W)."""
    height, width = size
    return rearrange(tokens, "(b h w) n c -> b n c h w", h=height, w=width)


class ScaleOutput(NamedTuple):
    """What one scale returns for a chunk of N frames."""

    features: Tensor  # [B, N, C, H, W]
    state: tuple[LayerState, ...]
    summaries: tuple[Tensor, ...]  # per block [B, N, d_state, H, W]: mean over channels of the SSM state


class TemporalMambaScale(nn.Module):
    """Pre-mix and n Mamba blocks for the features of one scale.

    The blocks see the pre-mixed features; what they change is added to the features themselves. So a new scale is
    the identity, and one in innovation form leaves the first frame of a stream untouched whatever it has learned.
    """

    def __init__(self, channels: int, spec: ScaleSpec) -> None:
        super().__init__()
        self.pre_mix = SpatialPreMix(channels)
        self.blocks = nn.ModuleList(spec.build_block(channels, index) for index in range(spec.num_blocks))
        self.state_dtype = getattr(torch, spec.state_dtype)
        self.advect = spec.advect

    def init_state(self, num_tokens: int, dtype: torch.dtype, device: torch.device | str) -> tuple[LayerState, ...]:
        """Return the zero states of all blocks for `num_tokens` = B·H·W sequences."""
        return tuple(self._store(block.init_state(num_tokens, dtype, device)) for block in self._typed_blocks())

    def forward(
        self,
        features: Tensor,
        frame_index: Tensor,
        state: tuple[LayerState, ...] | None = None,
        motion: Motion | None = None,
        memory: float = 1.0,
    ) -> ScaleOutput:
        """Run a chunk.

        Args:
            features: `[B, N, C, H, W]`.
            frame_index: `[B]` int64, index of the first of the N frames in its stream.
            state: what the previous chunk returned; None starts new streams.
            motion: of the chunk; None, or a scale that does not advect, leaves the state where it is.
            memory: see `InnovationMixer.forward`.
        """
        batch, num_frames, _, height, width = features.shape
        # The blocks only look along time: what a place should know of its neighbors has to be mixed in before.
        mixed = self.pre_mix(features.flatten(0, 1)).unflatten(0, (batch, num_frames))  # [B, N, C, H, W]
        tokens = temporal_tokenize(mixed)  # [B·H·W, N, C]: one sequence per place
        age = temporal_age(frame_index, num_frames, AGE_TIME_CONSTANTS).to(tokens.dtype)  # [B, N, K] in [0, 1)
        if motion is None or not self.advect:
            output, next_state, summaries = self._run_blocks(tokens, age, state, memory)  # all N frames in one scan
        else:
            # The state has to be moved between frames, so that the scan runs one frame at a time.
            steps = []
            for t in range(num_frames):
                if state is not None:
                    state = self._advected(state, TokenWarp(*motion.frame(t, (height, width))))
                steps.append(self._run_blocks(tokens[:, t : t + 1], age[:, t : t + 1], state, memory))
                state = steps[-1][1]
            output = torch.cat([step[0] for step in steps], 1)  # [B·H·W, N, C]
            next_state = steps[-1][1]
            summaries = tuple(torch.cat(parts, 1) for parts in zip(*(step[2] for step in steps), strict=True))
        # Only the change is added to the features, so that the pre-mix alone changes nothing.
        update = temporal_detokenize(output - tokens, (height, width))  # [B, N, C, H, W]
        maps = tuple(temporal_detokenize(summary, (height, width)) for summary in summaries)  # [B, N, d_state, H, W]
        return ScaleOutput(features + update, next_state, maps)

    def _run_blocks(
        self, tokens: Tensor, age: Tensor, state: tuple[LayerState, ...] | None, memory: float
    ) -> tuple[Tensor, tuple[LayerState, ...], tuple[Tensor, ...]]:
        next_state, summaries = [], []
        for i, block in enumerate(self._typed_blocks()):
            before = None if state is None else self._fetch(state[i])
            tokens, layer_state, summary = block(tokens, age, before, memory)
            next_state.append(self._store(layer_state))
            summaries.append(summary)
        return tokens, tuple(next_state), tuple(summaries)

    def _advected(self, state: tuple[LayerState, ...], warp: TokenWarp) -> tuple[LayerState, ...]:
        blocks = zip(self._typed_blocks(), state, strict=True)
        return tuple(self._store(block.advect(self._fetch(layer), warp)) for block, layer in blocks)

    def _typed_blocks(self) -> Iterator[MambaBlock | InnovationBlock]:
        for block in self.blocks:
            assert isinstance(block, MambaBlock | InnovationBlock)
            yield block

    def _store(self, state: LayerState) -> LayerState:
        conv, ssm = state
        return conv, ssm.to(self.state_dtype) if ssm.dtype == torch.float32 else ssm

    def _fetch(self, state: LayerState) -> LayerState:
        conv, ssm = state
        return conv, ssm.float() if ssm.dtype == torch.float16 else ssm


@dataclass(frozen=True)
class TemporalSpec:
    """The temporal stacks of all four scales, fine (s0) to coarse (s3).

    The fine scales hold most tokens, so that their blocks decide memory and time.
    """

    s0: ScaleSpec = field(default_factory=lambda: ScaleSpec(num_blocks=1))
    s1: ScaleSpec = field(default_factory=lambda: ScaleSpec(num_blocks=1))
    s2: ScaleSpec = field(default_factory=lambda: ScaleSpec(num_blocks=2))
    s3: ScaleSpec = field(default_factory=lambda: ScaleSpec(num_blocks=2))

    def scales(self) -> dict[str, ScaleSpec]:
        """Return the specs of the scales that are switched on, by name."""
        specs = {"s0": self.s0, "s1": self.s1, "s2": self.s2, "s3": self.s3}
        return {name: spec for name, spec in specs.items() if spec.num_blocks > 0}

    def signature(self, channels: tuple[int, ...]) -> str:
        """Return a text that is equal for models whose states are interchangeable in shape and meaning."""
        relevant = ("num_blocks", "form", "d_state", "d_conv", "expand", "heads", "advect", "discretization")
        parts = []
        for name, spec in self.scales().items():
            values = asdict(spec)
            width = channels[int(name[1])]
            parts.append(f"{name}:{width} " + " ".join(f"{key}={values[key]}" for key in relevant))
        return "; ".join(parts)
