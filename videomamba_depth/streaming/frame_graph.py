"""A frame of a stream as one compiled graph: encoder, cut test, motion, stacks, decoder, carried output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from videomamba_depth.models.depth_state import DepthState
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.resets import KEPT_FOR_CUTS, ResetPolicy
from videomamba_depth.utils.device import autocast


class FrameStep(nn.Module):
    """What `DepthStream` does with a frame that has a past, as a function of tensors alone.

    Args:
        states: the state before the frame. resets: what looks for cuts; None: nobody does.
        out_size: (H, W) px of the depth.
        precision: of autocast.
    """

    def __init__(
        self,
        model: VideoMambaDepth,
        states: DepthState,
        resets: ResetPolicy | None,
        out_size: tuple[int, int],
        precision: torch.dtype,
    ) -> None:
        super().__init__()
        self.model, self.out_size, self.precision = model, out_size, precision
        self.resets = resets if resets is not None and resets.cuts else None
        self.state_names, self.metadata = list(states.tensors()), states.metadata()
        self.kept_names = () if self.resets is None else KEPT_FOR_CUTS

    def forward(self, rgb: Tensor, gaps: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Take a frame in.

        Args:
            rgb: `[B, 3, H, W]` in [0, 1].
            gaps: `[B]` bool, streams that start anew whatever the frame shows.
            tensors: the state's, then what the resets keep of the frame before.

        Returns:
            depth `[B, 1, *out_size]` float32, whether it is finite [] bool, cuts `[B]` bool, next `tensors`.
        """
        before = dict(zip(self.state_names, tensors, strict=False))
        kept = dict(zip(self.kept_names, tensors[len(self.state_names) :], strict=True))
        states = DepthState.from_tensors(before, self.metadata)
        with autocast(rgb.device, self.precision):
            size = self.model.encoder.input_resolution(rgb.shape[-2], rgb.shape[-1])
            clip = self.model.fit(rgb.unsqueeze(1), size)
            features = self.model.encode(clip, checked=True, size=size)
            cuts = torch.zeros_like(gaps)
            if self.resets is not None:
                cuts = self.resets.find_cuts(kept, clip.squeeze(1), features["s3"].squeeze(1))
            states = states.reset(cuts | gaps)
            depth, states, _ = self.model(clip, states, features=features, out_size=self.out_size)
        depth, after = depth.squeeze(1).float(), states.tensors()
        is_finite = torch.isfinite(depth).all()
        return depth, is_finite, cuts, *(after[n] for n in self.state_names), *(kept[n] for n in self.kept_names)


class FrameGraph:
    """A `FrameStep` that is exported as a whole and compiled; on CUDA replayed as one graph.

    It is compiled for one frame size when it is first called.
    """

    def __init__(self, step: FrameStep, rgb: Tensor, states: DepthState) -> None:
        self._step, self.image_size = step, (rgb.shape[-2], rgb.shape[-1])
        self._no_gaps = torch.zeros(rgb.shape[0], dtype=torch.bool, device=rgb.device)
        with torch.inference_mode(False), torch.no_grad():
            inputs = (_plain(rgb, torch.channels_last), _plain(self._no_gaps), *self._inputs(states))
            program = torch.export.export(step, inputs, strict=False)
        mode = "reduce-overhead" if rgb.device.type == "cuda" else "default"
        self._run = torch.compile(program.module(), mode=mode, fullgraph=True, dynamic=False)

    def __call__(
        self, rgb: Tensor, states: DepthState, gaps: Sequence[bool]
    ) -> tuple[Tensor, Tensor, Tensor, DepthState]:
        """Return depth, whether it is finite, cuts and the next state; what the resets keep is replaced."""
        mask = torch.tensor(gaps, device=rgb.device) if any(gaps) else self._no_gaps
        with torch.inference_mode(False), torch.no_grad():
            outputs = self._run(_plain(rgb, torch.channels_last), _plain(mask), *self._inputs(states))
        if rgb.device.type == "cuda":  # a replayed graph writes the next ones into the same memory
            outputs = [t.clone() for t in outputs]
        depth, is_finite, cuts, *rest = outputs
        step = self._step
        after = DepthState.from_tensors(dict(zip(step.state_names, rest, strict=False)), states.metadata())
        if step.resets is not None:
            kept = zip(step.kept_names, rest[len(step.state_names) :], strict=True)
            step.resets.kept = step.resets.kept | dict(kept)
        return depth, is_finite, cuts, after

    def _inputs(self, states: DepthState) -> list[Tensor]:
        named, kept = states.tensors(), {} if self._step.resets is None else self._step.resets.kept
        ordered = [*(named[name] for name in self._step.state_names), *(kept[name] for name in self._step.kept_names)]
        return [_plain(t) for t in ordered]


def _plain(tensor: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Return the tensor in one memory layout, of no inference mode and without a gradient.

    For every other kind a graph would be compiled again.
    """
    plain = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format)
    is_plain = tensor.stride() == plain.stride() and not tensor.is_inference() and not tensor.requires_grad
    return tensor if is_plain else plain.copy_(tensor.detach())
