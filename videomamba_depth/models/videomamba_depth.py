"""The student: frozen encoder, temporal stacks, DPT decoder, and the state that is carried."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomamba_depth.layers.innovation_mixer import InnovationMixer
from videomamba_depth.models.depth_state import DepthState, check_state, check_values
from videomamba_depth.models.encoder_da import FrameEncoder
from videomamba_depth.models.feature_propagation import FeaturePropagation, check_encode_every, turns
from videomamba_depth.models.geometry import Geometry, GeometrySpec
from videomamba_depth.models.head_depth import DepthHead
from videomamba_depth.models.input_size import frames_per_pass
from videomamba_depth.models.motion import Motion, MotionEstimator, MotionSpec
from videomamba_depth.models.output_refiner import OutputRefiner, OutputSpec
from videomamba_depth.models.parallax_trust import ParallaxTrust
from videomamba_depth.models.temporal_mamba import TemporalMambaScale, TemporalSpec
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import describe, is_out_of_memory
from videomamba_depth.utils.images import check_axes, check_rgb

ClipFeatures = dict[str, Tensor]
"""Feature maps of a clip by scale name, each `[B, N, C_i, H_i, W_i]`."""


class Prediction(NamedTuple):
    """Depth of a chunk, the state after it, and what the temporal stacks held on the way."""

    depth: Tensor  # [B, N, 1, H, W]; unit: the model's `depth_kind`
    states: DepthState
    summaries: dict[str, tuple[Tensor, ...]]  # per scale and block [B, N, d_state, H_i, W_i]: mean over the channels


class Observation(NamedTuple):
    """What the student takes from the frames of a chunk, before any temporal stack."""

    features: ClipFeatures  # of every frame, whether the encoder saw it or not
    motion: Motion
    maps: dict[str, Tensor]  # of the state after the chunk: the last frame, and what was encoded last


@contextmanager
def _explain_mixed_weights(model: nn.Module) -> Iterator[None]:
    """Explain why weights of several dtypes fail, which they do outside autocast.

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
            " give DepthStream the precision, or run it under torch.autocast"
        ) from error


class VideoMambaDepth(nn.Module):
    """Streaming video depth: `depth, states, _ = model(clip, states)`.

    The same function serves clips, chunks and single frames: for every split of a clip, outputs and final state are
    those of the whole clip. At initialization the temporal stacks change nothing: on the teacher's encoder the depth is
    the teacher's, frame by frame. Without any blocks it always is.

    Args:
        encoder: handed in, so that a frozen one can be shared with the teacher.
        head: the decoder to start from, usually `encoder.head`; copied.
        temporal: the temporal stacks.
        train_head: whether the decoder learns too, or stays the teacher's.
        motion: carries states along the motion between frames, which is then estimated; None leaves them in place.
        output: a recurrent refinement of the decoder's depth; None for none.
        geometry: corrects the decoder's depth by the parallax of a moving camera, before `output`; None: does not.
        trust_channels: of the network that has learned how far parallax is believed, see `ParallaxTrust`, which is used
            where there is geometry; 0: none.
        encode_every: above 1, the student learns to correct the features of frames that the encoder does not see, for
            every number up to this one, see `FeaturePropagation`. What a stream does is in its state.

    Raises:
        ValueError: geometry, or `encode_every` above 1, without motion.
    """

    def __init__(
        self,
        encoder: FrameEncoder,
        head: DepthHead,
        temporal: TemporalSpec,
        train_head: bool = True,
        motion: MotionSpec | None = None,
        output: OutputSpec | None = None,
        geometry: GeometrySpec | None = None,
        encode_every: int = 1,
        trust_channels: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = copy.deepcopy(head).requires_grad_(train_head)
        self.head.freeze_unused()
        channels = encoder.channels
        self.motion = MotionEstimator(motion) if motion is not None else None
        metric = encoder.depth_kind is DepthKind.METRIC
        self.output = OutputRefiner(output, metric) if output is not None else None
        if geometry is not None and motion is None:
            raise ValueError("geometry follows the flow between frames: a student without motion has none")
        self.encode_every = check_encode_every(encode_every, motion is not None)
        self.propagation: FeaturePropagation | None = None
        self.depth_kind = encoder.depth_kind
        self._expected: tuple[object, DepthState] | None = None
        self.temporal = nn.ModuleDict()
        for name, spec in temporal.scales().items():
            try:
                self.temporal[name] = TemporalMambaScale(channels[int(name[1])], spec)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        # Last: all other weights start as they would without.
        if motion is not None:
            self.propagation = FeaturePropagation(channels, learned=encode_every > 1)
        self.trust = ParallaxTrust(trust_channels) if trust_channels else None
        self.geometry = Geometry(geometry, encoder.depth_kind, self.trust) if geometry is not None else None
        parts = [temporal.signature(channels)]
        parts += [f"motion at {motion.short_side} px"] if motion is not None else []
        parts += ["carried output"] if output is not None else []
        parts += [f"affine {output.affine:g}"] if output is not None and output.affine else []
        parts += [self.geometry.signature] if self.geometry is not None else []
        self.signature = "; ".join(parts) or "frame by frame"

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self._any_weight.device

    @property
    def _any_weight(self) -> Tensor:
        return next(chain(self.head.parameters(), self.parameters()))

    def init_states(
        self,
        batch_size: int,
        image_size: tuple[int, int],
        dtype: torch.dtype | None = None,
        memory: float = 1.0,
        device: torch.device | str | None = None,
        encode_every: int = 1,
    ) -> DepthState:
        """Return the state of `batch_size` new streams of frames of `image_size` = (H, W).

        Args:
            dtype: of the features; states are float64 for float64 and float32 for all others, whatever precision the
                layers compute in, unless a scale stores less. None: the dtype of the weights.
            memory: > 0; how long the streams remember: steadiness against reaction. It multiplies the time
                constants of the innovation blocks and the past's odds in the carried output. 1: as trained; toward 0:
                the teacher's frames.
            device: None: the model's.
            encode_every: the encoder sees every so many-th frame, see `FeaturePropagation`; 1: all of them.

        Raises:
            ValueError: see `check_memory` and `check_encode_every`.
        """
        check_memory(self, memory)
        every = check_encode_every(encode_every, self.motion is not None)
        dtype = dtype if dtype is not None else self._any_weight.dtype
        device = self.device if device is None else device
        return self._new_state(batch_size, image_size, dtype, float(memory), every, device)

    def fit(self, clip: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return a clip `[B, N, 3, H, W]` no larger than the model sees it, see `FrameEncoder.fit`."""
        return self.encoder.fit(clip.flatten(0, 1), size).unflatten(0, clip.shape[:2])

    def encode(self, clip: Tensor, *, checked: bool = False, size: tuple[int, int] | None = None) -> ClipFeatures:
        """Return the encoder's features of a clip `[B, N, 3, H, W]` in [0, 1]; no gradient if it is frozen.

        Args:
            checked, size: see `FrameEncoder.encode_frame`.
        """
        check_axes("clip", clip, "B N 3 H W")
        frames = clip.flatten(0, 1)  # frame by frame: time is the stacks' business
        with _explain_mixed_weights(self):
            features = self.encoder.encode_frame(frames, checked=checked, size=size)
        return {name: x.unflatten(0, clip.shape[:2]) for name, x in features.items()}

    def observe(
        self,
        clip: Tensor,
        states: DepthState,
        *,
        features: ClipFeatures | None = None,
        motion: Motion | None = None,
        size: tuple[int, int] | None = None,
        must_encode: Tensor | None = None,
    ) -> Observation:
        """Encode those frames of a chunk whose turn it is, and move their features to the others.

        For states with `encode_every` above 1; waits for the device at every frame.

        Args:
            clip: `[B, N, 3, H, W]` in [0, 1], checked.
            features: of every frame, where they are at hand; those of others than the chosen are not read.
            motion: of the clip, where it is known already, see `forward`.
            size: (H, W) px that the model works in.
            must_encode: `[B]` bool, streams whose first frame here is encoded in any case.
        """
        assert self.motion is not None
        assert self.propagation is not None
        maps: dict[str, Tensor] = {}
        clip = self.fit(clip, size)
        if motion is None:
            motion, maps["frame"] = self.motion(clip, states.maps["frame"], states.frame_index == 0)
        due = turns(states.clock, clip.shape[1], states.encode_every, clip.shape[0])
        plan = self.propagation.plan(states.maps, motion, due, must_encode)
        chosen = plan.chosen()
        if features is not None:
            seen = {name: x.flatten(0, 1)[chosen] for name, x in features.items()}
        elif chosen:
            with _explain_mixed_weights(self):
                seen = self.encoder.encode_frame(clip.flatten(0, 1)[chosen], checked=True, size=size)
        else:
            seen = {}
        features, carried = self.propagation(clip, seen, plan, states.maps)
        return Observation(features, motion, {**maps, **carried})

    def forward(
        self,
        clip: Tensor,
        states: DepthState | None = None,
        *,
        features: ClipFeatures | None = None,
        motion: Motion | None = None,
        observed: Observation | None = None,
        out_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Return the depth of a clip or chunk and the state after it: `depth, states, _ = model(clip, states)`.

        Args:
            clip: `[B, N, 3, H, W]` RGB in [0, 1]; any H, W. What `fit` made of it will do, with features and states.
            states: what the previous chunk returned; None starts new streams. Never written to.
            features: what `encode` returned for the clip, where it is at hand. Who brings them, as streams and trainers
                do, looks at the depth: the states' values are then not checked.
            motion: of the clip, where it is known already: it is then not estimated, nor the last frame kept for the
                next chunk, which has to come with its motion too.
            observed: what `observe` returned for the clip, in place of features and motion; streams may have been reset
                since.
            out_size: (H, W) of the depth; None: that of the frames.

        Raises:
            ValueError: frames that are no pictures in [0, 1], a state that is not finite or does not fit, or motion
                for a model without.
        """
        check_axes("clip", clip, "B N 3 H W")
        is_seen = features is not None or observed is not None
        if states is not None and not is_seen and not self.training:
            check_values(states)
        if motion is not None and self.motion is None:
            raise ValueError("this student carries nothing along the motion: leave motion out")
        image_size = (clip.shape[-2], clip.shape[-1])
        if is_seen and states is not None:
            image_size = states.image_size  # the clip may have been fitted
        model_size = self.encoder.input_resolution(*image_size)
        if not is_seen:
            check_rgb(clip.flatten(0, 1))
            clip = self.fit(clip, model_size)
        if states is not None and states.encode_every > 1:
            self._check(states, clip.shape[0], image_size, self._any_weight.dtype)
            if observed is None:
                observed = self.observe(clip, states, features=features, motion=motion, size=model_size)
            features, motion = observed.features, observed.motion.since(states.frame_index == 0)
            clock = states.clock + clip.shape[1]
            states = replace(states, maps={**states.maps, **observed.maps}, clock=clock)
        else:
            if features is None:
                features = self.encode(clip, checked=True, size=model_size)
            dtype = next(iter(features.values())).dtype
            if states is None:
                states = self.init_states(clip.shape[0], image_size, dtype)
            else:
                self._check(states, clip.shape[0], image_size, dtype)
            if self.motion is not None and motion is None:
                fitted = self.fit(clip, model_size)
                motion, last_frame = self.motion(fitted, states.maps["frame"], states.frame_index == 0)
                states = replace(states, maps={**states.maps, "frame": last_frame})
        with _explain_mixed_weights(self):
            depth, states, summaries = self._predict(clip, features, states, motion, model_size, out_size or image_size)
        return Prediction(depth, states, summaries)

    def step(self, frame: Tensor, states: DepthState | None = None) -> tuple[Tensor, DepthState]:
        """Return the depth `[B, 1, H, W]` of one frame `[B, 3, H, W]` in [0, 1] and the next state; see `forward`."""
        check_axes("frame", frame, "B 3 H W")
        depth, states, _ = self(frame.unsqueeze(1), states)
        return depth.squeeze(1), states

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VideoMambaDepth:
        """Refuse weights below float32 (`half`, `bfloat16`, `to`): averages over time lose what they add up."""
        kind = fn(torch.zeros((), device=self.device)).dtype
        if kind not in (torch.float32, torch.float64):
            raise ValueError(
                f"a student's weights stay float32 or float64; got {kind}: give DepthStream precision="
                f"'{str(kind).removeprefix('torch.')}', or run the model under torch.autocast"
            )
        return super()._apply(fn, recurse)

    def _predict(
        self,
        clip: Tensor,
        features: ClipFeatures,
        states: DepthState,
        motion: Motion | None,
        model_size: tuple[int, int],
        out_size: tuple[int, int],
    ) -> Prediction:
        """Do what comes after encoder, motion and checks: temporal stacks, decoder, carried output.

        Args:
            model_size: (H, W) px that the model works in. out_size: of the depth.
        """
        features, states, summaries = self._refine(features, states, motion)
        if self.output is None and self.geometry is None:
            return Prediction(self._decode(features, out_size), states, summaries)
        # What is carried of the output lives at the model's own size: what a larger frame adds is interpolation alone.
        depth = self._decode(features, model_size)  # [B, N, 1, *model_size]
        first_index, maps = states.frame_index - depth.shape[1], states.maps
        if self.geometry is not None:
            assert motion is not None
            depth, maps = self.geometry(depth, clip, maps, first_index, motion)
        if self.output is not None:
            depth, estimate = self.output(depth, maps["depth"], first_index, motion, states.memory)
            maps = {**maps, "depth": estimate}
        if depth.shape[-2:] != out_size:
            frames = F.interpolate(depth.flatten(0, 1), out_size, mode="bilinear", align_corners=True)
            depth = frames.unflatten(0, depth.shape[:2])
        return Prediction(depth, replace(states, maps=maps), summaries)

    def _refine(
        self, features: ClipFeatures, states: DepthState, motion: Motion | None
    ) -> tuple[ClipFeatures, DepthState, dict[str, tuple[Tensor, ...]]]:
        """Run the temporal stacks: features after them, the next state, summaries as in `Prediction`."""
        refined, layers, summaries = dict(features), {}, {}
        for name, scale in self._scales():
            refined[name], layers[name], summaries[name] = scale(  # [B, N, C_i, H_i, W_i]
                features[name], states.frame_index, states.layers[name], motion, states.memory
            )
        num_frames = next(iter(features.values())).shape[1]
        return refined, replace(states, layers=layers, frame_index=states.frame_index + num_frames), summaries

    def _decode(self, features: ClipFeatures, size: tuple[int, int]) -> Tensor:
        """Return depth `[B, N, 1, *size]` from features."""
        shape = next(iter(features.values())).shape[:2]
        maps = [x.flatten(0, 1) for x in features.values()]
        passes = zip(*(x.split(frames_per_pass(size, self.device) or len(x)) for x in maps), strict=True)
        depth = [self.head(dict(zip(features, some, strict=True)), size) for some in passes]
        return (depth[0] if len(depth) == 1 else torch.cat(depth)).unflatten(0, shape)

    def _scales(self) -> Iterator[tuple[str, TemporalMambaScale]]:
        for name, scale in self.temporal.items():
            assert isinstance(scale, TemporalMambaScale)
            yield name, scale

    def _check(self, states: DepthState, batch: int, image_size: tuple[int, int], dtype: torch.dtype) -> None:
        """Refuse states that do not fit; what fits is kept, without values, since every frame asks for it."""
        key = (batch, image_size, dtype, states.memory, states.encode_every, self.encoder.short_side)
        if self._expected is None or self._expected[0] != key:
            check_encode_every(states.encode_every, self.motion is not None)
            with torch.device("meta"):
                new = self._new_state(batch, image_size, dtype, states.memory, states.encode_every, "meta")
            self._expected = (key, new)
        check_state(states, self._expected[1])

    def _new_state(
        self,
        batch: int,
        image_size: tuple[int, int],
        dtype: torch.dtype,
        memory: float,
        encode_every: int,
        device: torch.device | str,
    ) -> DepthState:
        all_sizes = self.encoder.feature_sizes(*image_size)
        sizes = {name: all_sizes[name] for name in self.temporal}
        layers = {
            name: scale.init_state(batch * sizes[name][0] * sizes[name][1], dtype, device)
            for name, scale in self._scales()
        }
        maps = {}
        if self.motion is not None:  # the last frame, RGB
            size = self.motion.frame_size(*self.encoder.fitted_size(*image_size))
            maps["frame"] = torch.zeros(batch, 3, *size, dtype=torch.float32, device=device)
            if self.geometry is not None:
                maps |= self.geometry.new_maps(batch, size, device)
            if encode_every > 1:
                assert self.propagation is not None
                maps |= self.propagation.new_maps(batch, all_sizes, size, dtype, device)
        if self.output is not None:  # the last depth
            size = self.encoder.input_resolution(*image_size)
            maps["depth"] = torch.zeros(batch, 1, *size, dtype=torch.promote_types(dtype, torch.float32), device=device)
        frame_index = torch.zeros(batch, dtype=torch.int64, device=device)
        return DepthState(layers, frame_index, sizes, self.signature, image_size, maps, memory, encode_every)


def check_memory(model: VideoMambaDepth, memory: float) -> None:
    """Refuse a memory that no stream of this student can have.

    Raises:
        ValueError: no positive number, or the student has nothing that averages over time.
    """
    try:
        number = math.nan if isinstance(memory, bool | str) else float(memory)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"memory must be a positive number; got {describe(memory)}")
    if memory != 1.0 and not any(isinstance(m, InnovationMixer | OutputRefiner) for m in model.modules()):
        raise ValueError("memory can be set for students with innovation blocks or a carried output")
