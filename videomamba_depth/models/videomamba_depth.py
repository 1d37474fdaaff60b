"""The student: frozen encoder, temporal stacks, DPT decoder, and the state that is carried."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomamba_depth.layers.innovation_mixer import InnovationMixer
from videomamba_depth.models.depth_state import DepthState, check_state, check_stream, check_values
from videomamba_depth.models.head_depth import DPTHead
from videomamba_depth.models.motion import Motion, MotionEstimator, MotionSpec
from videomamba_depth.models.output_refiner import OutputRefiner, OutputSpec
from videomamba_depth.models.temporal_mamba import TemporalMambaScale, TemporalSpec
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import describe, is_out_of_memory
from videomamba_depth.utils.images import check_axes

ClipFeatures = dict[str, Tensor]
"""Feature maps of a clip by scale name, each `[B, N, C_i, H_i, W_i]`."""


class FrameEncoder(Protocol):
    """What the student needs from its encoder, an `nn.Module`: `DepthAnythingEncoder`, `VideoMambaEncoder`."""

    frozen: bool  # True: never trained, and stored once, beside the student's weights; False: a part of them
    channels: tuple[int, ...]
    depth_kind: DepthKind

    def encode_frame(self, rgb: Tensor) -> dict[str, Tensor]:
        """Return s0..s3, each `[B, C_i, H_i, W_i]`, of frames `[B, 3, H, W]` in [0, 1]."""

    def input_resolution(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in px that frames of that size are brought to."""

    def feature_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        """Return (H_i, W_i) per scale for a frame of that size."""


class RefineOutput(NamedTuple):
    """Features after the temporal stacks."""

    features: ClipFeatures
    states: DepthState
    summaries: dict[str, tuple[Tensor, ...]]  # per scale and block [B, N, d_state, H_i, W_i]


class Prediction(NamedTuple):
    """Depth of a chunk and what was carried while it was computed."""

    depth: Tensor  # [B, N, 1, H, W]
    states: DepthState
    summaries: dict[str, tuple[Tensor, ...]]  # see RefineOutput


@contextmanager
def explain_mixed_weights(model: nn.Module) -> Iterator[None]:
    """Say why weights of several dtypes fail, which they do outside autocast.

    Raises:
        ValueError: in place of PyTorch's error, where a part of the model has been converted by itself.
    """
    try:
        yield
    except RuntimeError as error:
        kinds = {(weight.dtype, weight.device.type) for weight in model.parameters()}
        dtypes = sorted({str(dtype).removeprefix("torch.") for dtype, _ in kinds})
        autocast = any(torch.is_autocast_enabled(device) for _, device in kinds)
        if len(dtypes) == 1 or autocast or is_out_of_memory(error):
            raise
        raise ValueError(
            f"the model's weights are {' and '.join(dtypes)}: a part of it was converted by itself; load it again, and"
            " give DepthStream the dtype, or run it under torch.autocast"
        ) from error


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
        motion: carries states along the motion between frames, which is then estimated; None leaves them in place.
        output: a recurrent refinement of the decoder's depth; None for none.
    """

    encoder: Any  # an nn.Module that is a FrameEncoder; no type says both

    def __init__(
        self,
        encoder: FrameEncoder,
        head: DPTHead,
        temporal: TemporalSpec,
        train_head: bool = True,
        motion: MotionSpec | None = None,
        output: OutputSpec | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = copy.deepcopy(head).requires_grad_(train_head)
        self.head.freeze_unused()
        channels: tuple[int, ...] = encoder.channels
        self.motion = MotionEstimator(motion) if motion is not None else None
        self.output = OutputRefiner(output) if output is not None else None
        self.signature = "; ".join(
            [
                temporal.signature(channels),
                *([f"motion at {motion.max_short_side} px"] if motion is not None else []),
                *(["carried output"] if output is not None else []),
            ]
        )
        self.depth_kind: DepthKind = encoder.depth_kind
        self.temporal = nn.ModuleDict()
        for name, spec in temporal.scales().items():
            try:
                self.temporal[name] = TemporalMambaScale(channels[int(name[1])], spec)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.head.parameters()).device

    def init_states(
        self,
        batch_size: int,
        image_size: tuple[int, int],
        dtype: torch.dtype | None = None,
        memory: float = 1.0,
        device: torch.device | str | None = None,
    ) -> DepthState:
        """Return the state of `batch_size` fresh streams of frames of `image_size` = (H, W).

        Args:
            dtype: of the features; states are float64 for float64 and float32 for all others, whatever precision the
                layers compute in, unless a scale stores less. None: the dtype of the weights.
            memory: > 0; how long the streams remember: steadiness against reaction (ours). It multiplies the time
                constants of the innovation blocks and the past's odds in the carried output. 1: as trained; towards 0:
                the teacher's frames.
            device: None: the model's.

        Raises:
            ValueError: see `check_memory`.
        """
        self.check_memory(memory)
        dtype = dtype if dtype is not None else next(self.head.parameters()).dtype
        return self._fresh(batch_size, image_size, dtype, float(memory), self.device if device is None else device)

    def encode(self, clip: Tensor) -> ClipFeatures:
        """Return the encoder's features of a clip `[B, N, 3, H, W]` in [0, 1]; no gradient if it is frozen."""
        check_axes("clip", clip, "B N 3 H W")
        features = self.encoder.encode_frame(clip.flatten(0, 1))
        return {name: x.unflatten(0, clip.shape[:2]) for name, x in features.items()}

    def observe(self, clip: Tensor, states: DepthState) -> tuple[Motion | None, DepthState]:
        """Return the motion of a chunk's frames since the frame before each, and the state that knows the last frame.

        Args:
            clip: `[B, N, 3, H, W]` in [0, 1].

        A model that does not estimate motion returns (None, states).

        Raises:
            ValueError: the state belongs to another model, or to frames of another size.
        """
        if self.motion is None:
            return None, states
        size = (clip.shape[-2], clip.shape[-1])
        check_stream(states, self._fresh(clip.shape[0], size, torch.float32, states.memory, "meta", with_layers=False))
        frames = self.motion.shrink(clip)
        motion = self.motion(frames, states.maps["frame"], states.frame_index == 0)
        return motion, replace(states, maps={**states.maps, "frame": frames[:, -1].to(states.maps["frame"].dtype)})

    def predict(
        self,
        features: ClipFeatures,
        states: DepthState | None,
        image_size: tuple[int, int],
        motion: Motion | None = None,
        out_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Return the depth of a chunk from its features: temporal stacks, decoder, carried output.

        Args:
            states, image_size, motion: see `refine`.
            out_size: (H, W) of the depth; None: `image_size`.
        """
        refined = self.refine(features, states, image_size, motion)
        out_size = image_size if out_size is None else out_size
        if self.output is None:
            return Prediction(self.decode(refined.features, out_size), refined.states, refined.summaries)
        states = refined.states
        depth = self.decode(refined.features, self._output_size(image_size))
        first = states.frame_index - depth.shape[1]
        depth, estimate = self.output(depth, states.maps["depth"], first, motion, states.memory)
        if depth.shape[-2:] != out_size:
            depth = F.interpolate(depth.flatten(0, 1), out_size, mode="bilinear", align_corners=True).unflatten(
                0, depth.shape[:2]
            )
        return Prediction(depth, replace(states, maps={**states.maps, "depth": estimate}), refined.summaries)

    def refine(
        self,
        features: ClipFeatures,
        states: DepthState | None,
        image_size: tuple[int, int],
        motion: Motion | None = None,
    ) -> RefineOutput:
        """Run the temporal stacks over the features of a chunk.

        Args:
            states: what the previous chunk returned; None starts fresh streams. Never written to.
            motion: of the chunk, see `observe`; needed by models that estimate it.

        Raises:
            ValueError: the state has the wrong batch, resolution, dtype or model, or the motion is missing.
        """
        if (motion is None) != (self.motion is None):
            raise ValueError("motion must be what observe() returned for this chunk")
        first = next(iter(features.values()))
        batch, num_frames = first.shape[:2]
        dtype = first.dtype
        if states is None:
            states = self.init_states(batch, image_size, dtype)
        else:
            with torch.device("meta"):
                check_state(states, self._fresh(batch, image_size, dtype, states.memory, "meta"))
        refined, layers, summaries = dict(features), {}, {}
        for name, scale in self._scales():
            refined[name], layers[name], summaries[name] = scale(
                features[name], states.frame_index, states.layers[name], motion, states.memory
            )
        frame_index = states.frame_index + num_frames
        next_states = replace(states, layers=layers, frame_index=frame_index, image_size=image_size)
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

        Raises:
            ValueError: frames that are no pictures in [0, 1], or a state that is not finite or does not fit.
        """
        if states is not None:
            check_values(states)
        with explain_mixed_weights(self):
            features = self.encode(clip)
            image_size = (clip.shape[-2], clip.shape[-1])
            if states is None:
                states = self.init_states(clip.shape[0], image_size, next(iter(features.values())).dtype)
            motion, states = self.observe(clip, states)
            depth, states, _ = self.predict(features, states, image_size, motion)
        return depth, states

    def step(self, frame: Tensor, states: DepthState | None = None) -> tuple[Tensor, DepthState]:
        """Return the depth `[B, 1, H, W]` of one frame `[B, 3, H, W]` in [0, 1] and the next state; see `forward`."""
        check_axes("frame", frame, "B 3 H W")
        depth, states = self(frame.unsqueeze(1), states)
        return depth.squeeze(1), states

    def check_memory(self, memory: float) -> None:
        """Refuse a memory that no stream of this student can have.

        Raises:
            ValueError: no positive number, or the student has nothing that averages over time (plain blocks alone).
        """
        try:
            number = math.nan if isinstance(memory, bool | str) else float(memory)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not 0 < number < math.inf:
            raise ValueError(f"memory must be a positive number; got {describe(memory)}")
        if memory != 1.0 and not any(isinstance(m, InnovationMixer | OutputRefiner) for m in self.modules()):
            raise ValueError("memory can be set for students with innovation blocks or a carried output")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VideoMambaDepth:
        """Refuse weights below float32 (`half`, `bfloat16`, `to`): averages over time lose what they add up."""
        kind = fn(torch.zeros((), device=self.device)).dtype
        if kind not in (torch.float32, torch.float64):
            raise ValueError(
                f"a student's weights stay float32 or float64; got {kind}: give DepthStream dtype="
                f"'{str(kind).removeprefix('torch.')}', or run the model under torch.autocast"
            )
        return super()._apply(fn, recurse)

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

    def _fresh(
        self,
        batch: int,
        image_size: tuple[int, int],
        dtype: torch.dtype,
        memory: float,
        device: torch.device | str,
        with_layers: bool = True,
    ) -> DepthState:
        sizes = self._sizes(image_size)
        layers = {
            name: scale.init_state(batch * sizes[name][0] * sizes[name][1], dtype, device)
            for name, scale in self._scales()
            if with_layers
        }
        frame_index = torch.zeros(batch, dtype=torch.int64, device=device)
        maps = self._empty_maps(batch, image_size, dtype, device)
        return DepthState(layers, frame_index, sizes, self.signature, image_size, maps, memory)

    def _empty_maps(
        self, batch: int, image_size: tuple[int, int], dtype: torch.dtype, device: torch.device | str
    ) -> dict[str, Tensor]:
        maps: dict[str, tuple[int, tuple[int, int], torch.dtype]] = {}
        if self.motion is not None:
            maps["frame"] = (3, self.motion.frame_size(*image_size), torch.float32)
        if self.output is not None:
            maps["depth"] = (1, self._output_size(image_size), torch.promote_types(dtype, torch.float32))
        return {
            name: torch.zeros(batch, channels, *size, dtype=kind, device=device)
            for name, (channels, size, kind) in maps.items()
        }

    def _output_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        size: tuple[int, int] = self.encoder.input_resolution(*image_size)
        return size
