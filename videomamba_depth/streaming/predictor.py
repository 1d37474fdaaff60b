"""What a stream runs: a student, or the bare teacher frame by frame behind the same three functions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from videomamba_depth.models.checkpoint import load_student
from videomamba_depth.models.depth_state import DepthState, check_state
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.motion import Motion
from videomamba_depth.models.videomamba_depth import ClipFeatures, Prediction, RefineOutput, VideoMambaDepth
from videomamba_depth.utils.errors import describe
from videomamba_depth.utils.images import check_axes

TEACHER_PREFIX = "teacher:"
"""`teacher:NAME_OR_PATH` in place of a checkpoint streams that teacher, frame by frame."""


class FrameByFrame(nn.Module):
    """A teacher with the student's interface: every frame on its own; the state only counts frames."""

    def __init__(self, encoder: DepthAnythingEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.depth_kind = encoder.depth_kind
        self.signature = "frame by frame"

    def init_states(
        self,
        batch_size: int,
        image_size: tuple[int, int],
        dtype: torch.dtype | None = None,
        memory: float = 1.0,
        device: torch.device | str | None = None,
    ) -> DepthState:
        """Return the state of `batch_size` fresh streams."""
        self.check_memory(memory)
        device = next(self.encoder.parameters()).device if device is None else device
        frame_index = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return DepthState({}, frame_index, {}, self.signature, image_size)

    def encode(self, clip: Tensor) -> ClipFeatures:
        """Return the encoder's features of a clip `[B, N, 3, H, W]` in [0, 1]."""
        check_axes("clip", clip, "B N 3 H W")
        features = self.encoder.encode_frame(clip.flatten(0, 1))
        return {name: x.unflatten(0, clip.shape[:2]) for name, x in features.items()}

    def check_memory(self, memory: float) -> None:
        """Refuse any memory but that of 1.

        Raises:
            ValueError: another.
        """
        if memory != 1.0:
            raise ValueError(f"the bare teacher remembers nothing; memory must be 1, got {describe(memory)}")

    def observe(self, clip: Tensor, states: DepthState) -> tuple[None, DepthState]:
        """Return no motion, and the state as it is."""
        return None, states

    def predict(
        self,
        features: ClipFeatures,
        states: DepthState | None,
        image_size: tuple[int, int],
        motion: Motion | None = None,
        out_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Return the teacher's depth at `out_size`, and count the frames."""
        refined = self.refine(features, states, image_size)
        depth = self.decode(refined.features, image_size if out_size is None else out_size)
        return Prediction(depth, refined.states, refined.summaries)

    def refine(
        self,
        features: ClipFeatures,
        states: DepthState | None,
        image_size: tuple[int, int],
        motion: Motion | None = None,
    ) -> RefineOutput:
        """Return the features as they are, and count the frames."""
        batch, num_frames = next(iter(features.values())).shape[:2]
        fresh = self.init_states(batch, image_size)
        if states is None:
            states = fresh
        check_state(states, fresh)
        return RefineOutput(features, replace(fresh, frame_index=states.frame_index + num_frames), {})

    def decode(self, features: ClipFeatures, image_size: tuple[int, int]) -> Tensor:
        """Return depth `[B, N, 1, H, W]` from features, at `image_size` = (H, W)."""
        shape = next(iter(features.values())).shape[:2]
        return self.encoder.decode({name: x.flatten(0, 1) for name, x in features.items()}, image_size).unflatten(
            0, shape
        )


Predictor = VideoMambaDepth | FrameByFrame


def load_predictor(checkpoint: str | Path, input_size: int | None = None) -> Predictor:
    """Load a student's folder, or the teacher that `teacher:NAME_OR_PATH` names.

    Args:
        input_size: short side in px that frames are resized to; None: the checkpoint's (a teacher: the frame's own).

    Raises:
        UserError: missing or damaged.
    """
    name = str(checkpoint)
    if name.startswith(TEACHER_PREFIX):
        teacher = name.removeprefix(TEACHER_PREFIX)
        return FrameByFrame(DepthAnythingEncoder.from_pretrained(teacher, input_size=input_size))
    return load_student(checkpoint, input_size)
