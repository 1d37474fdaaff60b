"""Teacher, feature average and students as methods: streams on a device, and digests of what decides their depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from videomamba_depth.evaluation.cache import digest
from videomamba_depth.evaluation.code_digest import code_digest
from videomamba_depth.evaluation.encoded_frames import EncodedFrames
from videomamba_depth.evaluation.feature_average import feature_average_stream
from videomamba_depth.evaluation.methods import FEATURE_AVERAGE, TEACHER, Method
from videomamba_depth.evaluation.recurrence import Stream
from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.models.checkpoint import load_student, read_description, student_weights
from videomamba_depth.models.depth_state import DepthState
from videomamba_depth.models.encoder_da import Teacher
from videomamba_depth.models.feature_propagation import check_encode_every
from videomamba_depth.models.videomamba_depth import VideoMambaDepth, check_memory
from videomamba_depth.utils.checkpoint import hash_tensors
from videomamba_depth.utils.device import autocast
from videomamba_depth.utils.errors import UserError


def teacher_method(
    encoder: Teacher, device: torch.device, dtype: torch.dtype, encoded: EncodedFrames | None = None
) -> Method:
    """Return the framewise teacher. encoded: of the encoder, where methods share it."""
    encode = encoded or EncodedFrames(encoder)

    def step(frame: Tensor) -> Tensor:
        return encoder.decode(encode(frame), (frame.shape[-2], frame.shape[-1]))

    return Method(TEACHER, lambda: _stream(step, device, dtype), digest=_about(encoder, device, dtype))


def feature_average_method(
    encoder: Teacher,
    flow: FlowEstimator,
    flow_name: str,
    device: torch.device,
    dtype: torch.dtype,
    encoded: EncodedFrames | None = None,
) -> Method:
    """Return the average of the teacher's features along the flow; see `AdvectedFeatureAverage`, `teacher_method`."""
    about = digest(_about(encoder, device, dtype), flow_name, code_digest(feature_average_stream.__module__))
    encode = encoded or EncodedFrames(encoder)

    def new_stream() -> Stream:
        average = feature_average_stream(encoder, flow)
        return _stream(lambda frame: average(frame.to(device), encode(frame)), device, dtype)

    return Method(FEATURE_AVERAGE, new_stream, digest=about)


def student_method(
    name: str,
    path: str | Path,
    model: VideoMambaDepth,
    memory: float,
    device: torch.device,
    dtype: torch.dtype,
    encoded: EncodedFrames | None = None,
    encode_every: int = 1,
) -> Method:
    """Return a student that remembers `memory` times as long as it was trained to, as NAME or NAME@MEMORY.

    path: its checkpoint. encoded: of an encoder of the same weights and input size, where methods share it.
    encode_every: its encoder sees every so many-th frame; above 1 NAME is NAME+everyN.

    Raises:
        UserError: the student cannot have that memory or `encode_every`.
    """
    try:
        check_memory(model, memory)
        check_encode_every(encode_every, model.motion is not None)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    weights = hash_tensors(student_weights(model).items())
    about = digest(
        weights, read_description(path), model.encoder.short_side, memory, str(dtype), device.type,
        *([] if model.geometry is None else [asdict(model.geometry.spec)]),
        *([] if encode_every == 1 else [encode_every]),
        *([model.output.affine] if model.output is not None and model.output.affine else []),
        code_digest(__name__, load_student.__module__),
    )  # fmt: skip
    encode = encoded or EncodedFrames(model.encoder)

    def new_stream() -> Stream:
        states: DepthState | None = None

        def step(frame: Tensor) -> Tensor:
            nonlocal states
            if states is None and (memory != 1.0 or encode_every > 1):
                size = (frame.shape[-2], frame.shape[-1])
                states = model.init_states(1, size, memory=memory, encode_every=encode_every)
            features = {scale: maps.unsqueeze(1) for scale, maps in encode(frame).items()}  # [1, 1, C_i, H_i, W_i]
            depth, states, _ = model(frame.to(device).unsqueeze(1), states, features=features)
            return depth.squeeze(1)

        return _stream(step, device, dtype)

    name = name if encode_every == 1 else f"{name}+every{encode_every}"
    return Method(
        name if memory == 1.0 else f"{name}@{memory:g}", new_stream, digest=about, trained=True, remembers=True
    )


def _stream(step: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype) -> Stream:
    """Return a stream that computes under the device's autocast and takes and returns tensors of the CPU."""

    def stream(frame: Tensor) -> Tensor:
        with torch.no_grad(), autocast(device, dtype):
            return step(frame).float().cpu()

    return stream


def _about(encoder: Teacher, device: torch.device, dtype: torch.dtype) -> str:
    about = {name: value for name, value in encoder.cache_key().items() if name != "model_id"}
    return digest(about, str(dtype), device.type, code_digest(type(encoder).__module__, EncodedFrames.__module__))
