"""What may move a stream's state before a frame, and its depth after it: automatic resets, key frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videomamba_depth.models.depth_state import DepthState
from videomamba_depth.utils.depth_kind import DepthKind


@dataclass
class NextFrame:
    """What a hook sees before the model does.

    Attributes:
        rgb: `[B, 3, H, W]` in [0, 1], no larger than the model sees it.
        features: `[B, C, h, w]`, coarsest features of the frozen encoder.
        timestamps_s: of each stream's frame; None: unknown.
        before: the state after the frame before.
        reset_reasons: why each stream starts anew here, "" where it goes on; what resets one says so.
        cuts: `[B]` bool on the device, streams that are reset at a cut; None: nobody looked. Nobody waits for it while
            the frame is on its way.
        given: the frames at their own size, in [0, 1] or uint8; None: `rgb` is that.
    """

    rgb: Tensor
    features: Tensor
    timestamps_s: Sequence[float] | None
    before: DepthState
    reset_reasons: list[str]
    cuts: Tensor | None = None
    given: Tensor | None = None

    @property
    def whole(self) -> Tensor:
        """The frames in [0, 1] at their own size."""
        given = self.rgb if self.given is None else self.given
        return given.float().div_(255) if given.dtype == torch.uint8 else given


class StreamHook:
    """Called around every frame of one stream. What it keeps is saved, reset and, where a frame ends early, put back.

    Attributes:
        name: in files and messages.
        kept: what is carried from frame to frame; never written to once its frame is done.
    """

    name = ""
    kept: Any

    def attach(self, batch_size: int, depth_kind: DepthKind) -> None:
        """Take notice of the stream that is opened; raises ValueError where it does not suit."""

    def before_frame(self, frame: NextFrame, states: DepthState) -> DepthState:
        """Return the state to start the frame from, in place of `states`."""
        return states

    def after_frame(self, depth: Tensor, states: DepthState) -> Tensor:
        """Return the depth to show, like `depth [B, 1, H, W]`; `states` are those after the frame."""
        return depth

    def notes(self) -> dict[str, Any]:
        """Return what the frame log says of the latest frame."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return what a saved stream must agree in to go on here to the bit."""
        raise NotImplementedError

    def reset(self, streams: Tensor) -> None:
        """Forget the past of the streams of `streams [B]` bool."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of `kept`, by name."""
        raise NotImplementedError

    def metadata(self) -> str:
        """Return the rest of it, as JSON."""
        return ""

    def read(self, tensors: dict[str, Tensor], metadata: str, start: DepthState, channels: int) -> Any:
        """Undo `tensors` and `metadata`: return `kept`; raises ValueError where they are not of such a stream.

        Args:
            start: the state that the stream starts from; it may live on the meta device.
            channels: of the features.
        """
        raise NotImplementedError
