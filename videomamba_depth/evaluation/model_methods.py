"""Teacher, feature average and students as methods: streams on a device, and digests of what decides their depth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from videomamba_depth.evaluation.cache import digest
from videomamba_depth.evaluation.code_digest import code_digest
from videomamba_depth.evaluation.feature_average import feature_average_stream
from videomamba_depth.evaluation.methods import FEATURE_AVERAGE, TEACHER, Method
from videomamba_depth.evaluation.recurrence import Stream
from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.models.checkpoint import load_student, read_description, student_weights
from videomamba_depth.models.depth_state import DepthState
from videomamba_depth.models.encoder_da import Teacher
from videomamba_depth.models.videomamba_depth import VideoMambaDepth, check_memory
from videomamba_depth.utils.checkpoint import hash_tensors
from videomamba_depth.utils.device import autocast
from videomamba_depth.utils.errors import UserError


def teacher_method(encoder: Teacher, device: torch.device, dtype: torch.dtype) -> Method:
    """Return the framewise teacher."""
    return Method(
        TEACHER, lambda: _on_device(encoder.predict_depth, device, dtype), digest=_about(encoder, device, dtype)
    )


def feature_average_method(
    encoder: Teacher, flow: FlowEstimator, flow_name: str, device: torch.device, dtype: torch.dtype
) -> Method:
    """Return the average of the teacher's features along the flow; see `AdvectedFeatureAverage`."""
    about = digest(_about(encoder, device, dtype), flow_name, code_digest(feature_average_stream.__module__))
    return Method(
        FEATURE_AVERAGE, lambda: _on_device(feature_average_stream(encoder, flow), device, dtype), digest=about
    )


def student_method(
    name: str, path: str | Path, model: VideoMambaDepth, memory: float, device: torch.device, dtype: torch.dtype
) -> Method:
    """Return a student that remembers `memory` times as long as it was trained to, as NAME or NAME@MEMORY.

    path: its checkpoint.

    Raises:
        UserError: the student cannot have that memory.
    """
    try:
        check_memory(model, memory)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    weights = hash_tensors(student_weights(model).items())
    about = digest(
        weights, read_description(path), model.encoder.short_side, memory, str(dtype), device.type,
        code_digest(__name__, load_student.__module__),
    )  # fmt: skip

    def new_stream() -> Stream:
        states: DepthState | None = None

        def step(frame: Tensor) -> Tensor:
            nonlocal states
            if states is None and memory != 1.0:
                states = model.init_states(1, (frame.shape[-2], frame.shape[-1]), memory=memory)
            depth, states = model.step(frame, states)
            return depth

        return _on_device(step, device, dtype)

    return Method(
        name if memory == 1.0 else f"{name}@{memory:g}", new_stream, digest=about, trained=True, remembers=True
    )


def _on_device(step: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype) -> Stream:
    """Return a stream that computes on `device` under autocast and takes and returns tensors of the CPU."""

    def stream(frame: Tensor) -> Tensor:
        with torch.no_grad(), autocast(device, dtype):
            return step(frame.to(device)).float().cpu()

    return stream


def _about(encoder: Teacher, device: torch.device, dtype: torch.dtype) -> str:
    about = {name: value for name, value in encoder.cache_key().items() if name != "model_id"}
    return digest(about, str(dtype), device.type, code_digest(type(encoder).__module__))
