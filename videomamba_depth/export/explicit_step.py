"""One step of a student as a function of plain tensors: frame and state in, depth and next state out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers.models.depth_anything import modeling_depth_anything

from videomamba_depth.models import videomamba_depth
from videomamba_depth.models.depth_state import DepthState
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.utils.errors import UserError

Dimension = int | list[list[Any]]
"""A size, or factors `["H" | "W", numerator, denominator]` whose product is it.

Each factor is ⌈side · numerator / denominator⌉, the side in px.
"""

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
        fresh = model.init_states(1, image_size)
        self.names = list(fresh.tensors())
        self._metadata = fresh.metadata()

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
        sizes = self.model.encoder.feature_sizes(*size)
        states = replace(states, feature_sizes={name: sizes[name] for name in self.model.temporal}, image_size=size)
        depth, next_states = self.model.step(rgb, states)
        tensors = next_states.tensors()
        return (depth, *(tensors[name] for name in self.names))


@contextmanager
def exportable(model: VideoMambaDepth) -> Iterator[None]:
    """Within, the model can be traced with symbolic sizes: the scan is plain operators, and sides are not rounded.

    Frames must then have sides that are multiples of the patch.
    """
    encoder: DepthAnythingEncoder = model.encoder

    def feature_sizes(height: int, width: int) -> dict[str, tuple[int, int]]:
        return {
            f"s{i}": (_ceil_share(height, factor / patch), _ceil_share(width, factor / patch))
            for i, factor in enumerate(_factors(model))
        }

    patch = encoder.patch_size
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, VIDEOMAMBA_DISABLE_FUSED="1"))
        stack.enter_context(mock.patch.object(encoder, "input_resolution", lambda height, width: (height, width)))
        stack.enter_context(mock.patch.object(encoder, "feature_sizes", feature_sizes))
        # The check compares symbolic sizes, which would pin them.
        stack.enter_context(mock.patch.object(videomamba_depth, "check_state"))
        # int() of a symbolic size is the size at hand; transformers' decoder calls it on its output's.
        stack.enter_context(mock.patch.object(modeling_depth_anything, "int", _symbolic_int, create=True))
        yield


def state_shapes(model: VideoMambaDepth) -> dict[str, list[Dimension]]:
    """Return the shape of every state tensor of one stream as a function of the frame's size.

    Raises:
        UserError: a tensor's size follows no rule of the kind `Dimension`; export at a fixed size.
    """
    patch = model.encoder.patch_size
    sizes = [(rows * patch, columns * patch) for rows, columns in _FIT_SIDES]
    with exportable(model):
        looks = [model.init_states(1, size).tensors() for size in sizes]
    shapes: dict[str, list[Dimension]] = {}
    for name in looks[0]:
        per_axis = zip(*(look[name].shape for look in looks), strict=True)
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
    return [Fraction(factor) for factor in model.encoder.hf_config.reassemble_factors]


def _ceil_share(side: Any, share: Fraction) -> Any:
    """Return ⌈side · share⌉ in whole numbers, which symbolic sizes understand."""
    if share.denominator == 1:
        return side * share.numerator
    return (side * share.numerator + share.denominator - 1) // share.denominator


def _symbolic_int(value: Any) -> Any:
    return value if isinstance(value, torch.SymInt) else int(value)
