"""The student: frozen encoder, temporal stacks, DPT decoder, and the state that is carried."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from videomamba_depth.models.head_depth import DPTHead
from videomamba_depth.models.state import DepthState, check_state
from videomamba_depth.models.temporal_mamba import TemporalMambaScale, TemporalSpec
from videomamba_depth.utils.depth_kind import DepthKind

ClipFeatures = dict[str, Tensor]
"""Feature maps of a clip by scale name, each `[B, N, C_i, H_i, W_i]`."""


class FrameEncoder(Protocol):
    """What the student needs from its encoder, an `nn.Module`: `DepthAnythingEncoder`, `VideoMambaEncoder`."""

    frozen: bool  # True: never trained, and stored once, beside the student's weights; False: a part of them
    channels: tuple[int, ...]
    depth_kind: DepthKind

    def encode_frame(self, rgb: Tensor) -> dict[str, Tensor]:
        """Return s0..s3, each `[B, C_i, H_i, W_i]`, of frames `[B, 3, H, W]` in [0, 1]."""

    def feature_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        """Return (H_i, W_i) per scale for a frame of that size."""


class RefineOutput(NamedTuple):
    """Features after the temporal stacks."""

    features: ClipFeatures
    states: DepthState
    summaries: dict[str, tuple[Tensor, ...]]  # per scale and block [B, N, d_state, H_i, W_i]


class VideoMambaDepth(nn.Module):
    """Streaming video depth: `depth, states = model(clip, states)`.

    The same function serves clips, chunks and single frames: for every split of a clip, outputs and final state are
    those of the whole clip. At initialisation the temporal stacks change nothing: on the teacher's encoder the depth is
    the teacher's, frame by frame.

    Args:
        encoder: handed in, so that a frozen one can be shared with the teacher.
        head: the decoder to start from, usually `encoder.head`; copied.
        temporal: the temporal stacks.
        train_head: whether the decoder learns too, or stays the teacher's.
    """

    encoder: Any  # an nn.Module that is a FrameEncoder; no type says both

    def __init__(self, encoder: FrameEncoder, head: DPTHead, temporal: TemporalSpec, train_head: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = copy.deepcopy(head).requires_grad_(train_head)
        self.head.freeze_unused()
        channels: tuple[int, ...] = encoder.channels
        self.signature = temporal.signature(channels)
        self.depth_kind: DepthKind = encoder.depth_kind
        self.temporal = nn.ModuleDict(
            {name: TemporalMambaScale(channels[int(name[1])], spec) for name, spec in temporal.scales().items()}
        )

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.head.parameters()).device

    def init_states(self, batch_size: int, image_size: tuple[int, int], dtype: torch.dtype | None = None) -> DepthState:
        """Return the state of `batch_size` fresh streams of frames of `image_size` = (H, W).

        Args:
            dtype: of the features; states are float64 for float64 and float32 for all others, whatever precision the
                layers compute in, unless a scale stores less. None: the dtype of the weights.
        """
        dtype = dtype if dtype is not None else next(self.head.parameters()).dtype
        sizes = self._sizes(image_size)
        layers = {
            name: scale.init_state(batch_size * sizes[name][0] * sizes[name][1], dtype, self.device)
            for name, scale in self._scales()
        }
        frame_index = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        return DepthState(layers, frame_index, sizes, self.signature)

    def encode(self, clip: Tensor) -> ClipFeatures:
        """Return the encoder's features of a clip `[B, N, 3, H, W]` in [0, 1]; no gradient if it is frozen."""
        if clip.ndim != 5 or clip.shape[2] != 3 or clip.shape[1] == 0:
            raise ValueError(f"clip must have shape [B, N ≥ 1, 3, H, W]; got {tuple(clip.shape)}")
        features = self.encoder.encode_frame(clip.flatten(0, 1))
        return {name: x.unflatten(0, clip.shape[:2]) for name, x in features.items()}

    def refine(self, features: ClipFeatures, states: DepthState | None, image_size: tuple[int, int]) -> RefineOutput:
        """Run the temporal stacks over the features of a chunk.

        Args:
            states: what the previous chunk returned; None starts fresh streams. Never written to.

        Raises:
            ValueError: the state has the wrong batch, resolution, dtype or model.
        """
        first = next(iter(features.values()))
        batch, num_frames = first.shape[:2]
        dtype = first.dtype
        if states is None:
            states = self.init_states(batch, image_size, dtype)
        else:
            with torch.device("meta"):
                check_state(states, self._expected(batch, image_size, dtype))
        refined, layers, summaries = dict(features), {}, {}
        for name, scale in self._scales():
            refined[name], layers[name], summaries[name] = scale(
                features[name], states.frame_index, states.layers[name]
            )
        next_states = DepthState(layers, states.frame_index + num_frames, states.feature_sizes, self.signature)
        return RefineOutput(refined, next_states, summaries)

    def decode(self, features: ClipFeatures, image_size: tuple[int, int]) -> Tensor:
        """Return depth `[B, N, 1, H, W]` from features, at `image_size` = (H, W)."""
        shape = next(iter(features.values())).shape[:2]
        depth = self.head({name: x.flatten(0, 1) for name, x in features.items()}, image_size)
        return depth.unflatten(0, shape)

    def forward(self, clip: Tensor, states: DepthState | None = None) -> tuple[Tensor, DepthState]:
        """Return the depth of a clip or chunk and the state after it.

        Args:
            clip: `[B, N, 3, H, W]` RGB in [0, 1]; any H, W.
            states: what the previous chunk returned; None starts fresh streams. Never written to.

        Returns:
            depth `[B, N, 1, H, W]`, unit as `depth_kind` says, and the next state.
        """
        image_size = (clip.shape[-2], clip.shape[-1])
        refined = self.refine(self.encode(clip), states, image_size)
        return self.decode(refined.features, image_size), refined.states

    def step(self, frame: Tensor, states: DepthState | None = None) -> tuple[Tensor, DepthState]:
        """Return the depth `[B, 1, H, W]` of one frame `[B, 3, H, W]` in [0, 1] and the next state."""
        depth, states = self(frame.unsqueeze(1), states)
        return depth.squeeze(1), states

    def student_state_dict(self) -> dict[str, Tensor]:
        """Return the weights that are the student's own: all but a frozen encoder's."""
        others = ("encoder.",) if self.encoder.frozen else ()
        return {name: t for name, t in self.state_dict().items() if not name.startswith(others)}

    def _scales(self) -> Iterator[tuple[str, TemporalMambaScale]]:
        for name, scale in self.temporal.items():
            assert isinstance(scale, TemporalMambaScale)
            yield name, scale

    def _sizes(self, image_size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        sizes = self.encoder.feature_sizes(*image_size)
        return {name: sizes[name] for name in self.temporal}

    def _expected(self, batch: int, image_size: tuple[int, int], dtype: torch.dtype) -> DepthState:
        sizes = self._sizes(image_size)
        layers = {
            name: scale.init_state(batch * sizes[name][0] * sizes[name][1], dtype, "meta")
            for name, scale in self._scales()
        }
        return DepthState(layers, torch.zeros(batch, dtype=torch.int64), sizes, self.signature)
