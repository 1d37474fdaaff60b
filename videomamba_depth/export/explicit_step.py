"""One step of a student as a function of plain tensors: frame and state in, depth and next state out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any

from torch import Tensor, nn

from videomamba_depth.flow.estimators import InverseSearchFlow
from videomamba_depth.models.depth_state import DepthState
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.utils.errors import UserError

Dimension = int | list[list[Any]]
"""A size, or factors `["H" | "W", numerator, denominator]` whose product is it.

Each factor is ⌈side · numerator / denominator⌉, the side in px.
"""

_PLAIN = "VIDEOMAMBA_DISABLE_FUSED"  # 1: scan and convolution are plain operators, which an export can hold
_FIT_SIDES = ((2, 3), (3, 2), (5, 4), (8, 9), (7, 7), (11, 6))  # patches; sizes at which `state_shapes` looks


class ExplicitStep(nn.Module):
    """`depth, *next_state = step(rgb, *state)` for one stream; a state of zeros starts it.

    `names` are those of `DepthState.tensors()`, so that whatever a model carries is in the signature.

    Args:
        image_size: (height, width) px, multiples of the patch: the frame comes in the size that the model works in.
    """

    def __init__(self, model: VideoMambaDepth, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        new = model.init_states(1, image_size)
        self.names = list(new.tensors())
        self._metadata = new.metadata()

    def forward(self, rgb: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Step.

        Args:
            rgb: `[1, 3, H, W]` in [0, 1].
            state: the tensors of `names`, in that order.

        Returns:
            depth `[1, 1, H, W]`, then the next state in the same order.
        """
        states = DepthState.from_tensors(dict(zip(self.names, state, strict=True)), self._metadata)
        size = (rgb.shape[-2], rgb.shape[-1])
        # Whole patches need no resizing: what the model does with sizes that it does not know stays outside.
        encoder, motion = self.model.encoder, None
        maps = encoder.encode_pixels(encoder.normalize(rgb))
        features = {name: x.unsqueeze(1) for name, x in maps.items()}  # [1, 1, C_i, H_i, W_i]
        if self.model.motion is not None:
            motion, frame = self.model.motion(rgb.unsqueeze(1), states.maps["frame"], states.frame_index == 0)
            states = replace(states, maps={**states.maps, "frame": frame})
        depth, next_states, _ = self.model._predict(rgb.unsqueeze(1), features, states, motion, size, size)
        tensors = next_states.tensors()
        return (depth.squeeze(1), *(tensors[name] for name in self.names))


@contextmanager
def exportable(model: VideoMambaDepth) -> Iterator[None]:
    """Within, frames of whole patches keep their size; scan and flow are plain operators.

    Flow of OpenCV's DIS is replaced by that of the inverse search on tensors (`flow.inverse_search`).
    """
    short_side, switch = model.encoder.short_side, os.environ.get(_PLAIN)
    flow = None if model.motion is None else model.motion.flow
    model.encoder.short_side, os.environ[_PLAIN] = None, "1"
    if model.motion is not None:
        fine = isinstance(flow, InverseSearchFlow) and flow.preset == "fine"
        model.motion.flow = InverseSearchFlow("fine" if fine else "medium", compiled=False)
    try:
        yield
    finally:
        if model.motion is not None and flow is not None:
            model.motion.flow = flow
        model.encoder.short_side = short_side
        os.environ.pop(_PLAIN)
        os.environ.update({} if switch is None else {_PLAIN: switch})


def state_shapes(model: VideoMambaDepth) -> dict[str, list[Dimension]]:
    """Return the shape of every state tensor of one stream as a function of the frame's size.

    Raises:
        UserError: a tensor's size follows no rule of the kind `Dimension`; export at a fixed size.
    """
    patch = model.encoder.patch_size
    sizes = [(rows * patch, columns * patch) for rows, columns in _FIT_SIDES]
    with exportable(model):
        found = [model.init_states(1, size).tensors() for size in sizes]
    shapes: dict[str, list[Dimension]] = {}
    for name in found[0]:
        per_axis = zip(*(tensors[name].shape for tensors in found), strict=True)
        shapes[name] = [_fit(list(values), sizes, _factors(model), patch, name) for values in per_axis]
    return shapes


def evaluate_shape(shape: Sequence[Dimension], height: int, width: int) -> tuple[int, ...]:
    """Return a shape of `state_shapes` for frames of that size in px."""
    sides = {"H": height, "W": width}
    return tuple(
        d if isinstance(d, int) else prod(-(-sides[axis] * num // denominator) for axis, num, denominator in d)
        for d in shape
    )


def _fit(values: list[int], sizes: list[tuple[int, int]], factors: list[Fraction], patch: int, name: str) -> Dimension:
    if len(set(values)) == 1:
        return values[0]
    for share in [Fraction(1), *(factor / patch for factor in factors)]:
        terms = {axis: [axis, share.numerator, share.denominator] for axis in ("H", "W")}
        for candidate in ([terms["H"], terms["W"]], [terms["H"]], [terms["W"]]):
            if values == [evaluate_shape([candidate], *size)[0] for size in sizes]:
                return candidate
    raise UserError(f"state tensor '{name}' cannot be described for every frame size; export with --size HEIGHT WIDTH")


def _factors(model: VideoMambaDepth) -> list[Fraction]:
    return [Fraction(factor) for factor in model.encoder.factors]
