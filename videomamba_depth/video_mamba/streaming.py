"""The streaming contract: what a state looks like, what `forward` returns, and where a stream begins.

A state is a plain list, tuple or dict of `(conv_state, ssm_state)` per layer, so that it survives `torch.save`,
`copy.deepcopy`, comprehensions and `torch.utils._pytree` without a class of ours. A stream begins at
`temporal_pos_offset=0`: that chunk gets the CLS token, and its state must be all zero. A chunk at a larger offset
continues a stream and gets no CLS token, whatever its state holds.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from videomamba_depth.layers.bidirectional_mixer import BidirectionalMixer
from videomamba_depth.layers.mamba_mixer import LayerState
from videomamba_depth.video_mamba.patch_embed import check_sizes

STREAMING_CONTRACT_VERSION = "1.0.0"
"""Version of the state's layout and of `forward`'s returns; the major number changes when old states stop working."""

StreamingState = list[LayerState] | tuple[LayerState, ...] | dict[int, LayerState]
"""One `LayerState` per layer, in order, or by layer index."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StateShape:
    """Shapes of one layer's state."""

    conv_state: tuple[int, int, int]  # (B, d_inner, d_conv): the last inputs of the convolution, oldest first
    ssm_state: tuple[int, int, int]  # (B, d_inner, d_state)


@dataclass(frozen=True)
class ForwardReturnSemantics:
    """What `forward` returns, in words."""

    without_state: str
    with_state: str


class Streams(Protocol):
    """What the functions here need of a model."""

    layers: nn.ModuleList
    add_pool_norm: bool

    def allocate_state(
        self, batch_size: int, dtype: torch.dtype | None, device: torch.device | str | None, as_dict: bool
    ) -> StreamingState:
        """Return the state of new streams."""


def forward_return_semantics(add_pool_norm: bool) -> ForwardReturnSemantics:
    """Return what `forward` returns for a model built with `add_pool_norm`."""
    if add_pool_norm:
        return ForwardReturnSemantics("(x_vis, x_pool)", "(x_vis, x_pool, next_state)")
    return ForwardReturnSemantics("x_vis", "(x_vis, next_state)")


def model_forward_return_semantics(model: Streams) -> ForwardReturnSemantics:
    """Return what `model.forward` returns."""
    return forward_return_semantics(bool(model.add_pool_norm))


def expected_state_shapes(model: Streams, batch_size: int) -> dict[int, StateShape]:
    """Return the shapes of every layer's state for `batch_size` streams.

    Raises:
        ValueError: batch_size < 1. TypeError: a layer has no causal mixer.
    """
    check_sizes(batch_size=batch_size)
    shapes = {}
    for index, layer in enumerate(model.layers):
        mixer = getattr(layer, "mixer", None)
        if mixer is None or isinstance(mixer, BidirectionalMixer):
            raise TypeError(f"layer {index} has no causal mixer, so the model has no state")
        with torch.device("meta"):
            conv_state, ssm_state = mixer.init_state(batch_size, torch.float32, "meta")
        shapes[index] = StateShape(_triple(conv_state), _triple(ssm_state))
    return shapes


def allocate_state(
    model: Streams,
    batch_size: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    as_dict: bool = False,
) -> StreamingState:
    """Return the zero state of `batch_size` new streams; see `PretrainVideoMamba.allocate_state`.

    Raises:
        TypeError: the model does not stream.
    """
    if not callable(getattr(model, "allocate_state", None)):
        raise TypeError(f"{type(model).__name__} has no allocate_state and does not stream")
    return model.allocate_state(batch_size, dtype=dtype, device=device, as_dict=as_dict)


def validate_state(model: Streams, state: StreamingState, batch_size: int) -> None:
    """Check a state against a model: container, layers, shapes, dtypes, device.

    On a CPU a state that is not finite is said once in the log: its streams will never be finite again.

    A conv_state is in float32 or in the model's dtype; an ssm_state is in float32 (both are float64 in a float64
    model).

    Raises:
        TypeError: wrong container, an entry that is no pair, or no tensor.
        ValueError: a missing or extra layer, a wrong shape, dtype or device.
    """
    shapes = expected_state_shapes(model, batch_size)
    layers = state_layers(state, len(shapes))
    parameter = next(cast(nn.Module, model).parameters())
    for index, shape in shapes.items():
        conv_state, ssm_state = _layer_pair(layers[index], index)
        wide = torch.promote_types(parameter.dtype, torch.float32)
        for name, tensor, wanted, dtypes in (
            ("conv_state", conv_state, shape.conv_state, {parameter.dtype, wide}),
            ("ssm_state", ssm_state, shape.ssm_state, {wide}),
        ):
            where = f"state of layer {index}: {name}"
            if tuple(tensor.shape) != wanted:
                raise ValueError(f"{where} must have shape {wanted}; got {tuple(tensor.shape)}")
            if tensor.layout is not torch.strided:
                raise ValueError(f"{where} must be dense; got {tensor.layout}; use .to_dense()")
            if tensor.dtype not in dtypes:
                names = " or ".join(sorted(str(dtype) for dtype in dtypes))
                raise ValueError(f"{where} must have dtype {names}; got {tensor.dtype}; use allocate_state's default")
            if tensor.device != parameter.device:
                raise ValueError(
                    f"{where} must be on device {parameter.device} like the model; got {tensor.device}; move it"
                )
            # On a GPU every chunk would wait for it.
            if tensor.is_cpu and not torch.compiler.is_compiling() and not tensor.isfinite().all():
                _say_not_finite()


def state_layers(state: StreamingState, num_layers: int) -> list[LayerState]:
    """Return the layer states in order; raises as `validate_state` when layers are missing or extra."""
    if isinstance(state, dict):
        if set(state) != set(range(num_layers)):
            raise ValueError(
                f"state must have the keys 0 to {num_layers - 1}, one per layer; got {sorted(state, key=str)}"
            )
        return [state[index] for index in range(num_layers)]
    if isinstance(state, list | tuple):
        if len(state) != num_layers:
            raise ValueError(f"state must have {num_layers} entries, one per layer; got {len(state)}")
        return list(state)
    raise TypeError(f"state must be a list, a tuple or a dict by layer index; got {type(state).__name__}")


def pack_layers(layers: Sequence[LayerState], like: StreamingState) -> StreamingState:
    """Return the layers in the container type of `like`."""
    if isinstance(like, dict):
        return dict(enumerate(layers))
    return tuple(layers) if isinstance(like, tuple) else list(layers)


def has_begun(layers: Sequence[LayerState]) -> bool:
    """Tell whether a state holds anything but zeros; False for tensors without data (device meta)."""
    return not layers[0][0].is_meta and any(bool((tensor.detach() != 0).any()) for pair in layers for tensor in pair)


@functools.cache
def _say_not_finite() -> None:
    """Warn, once in a process."""
    _logger.warning("a streaming state is not finite, nor will its streams be again; begin them anew")


def _layer_pair(layer: object, index: int) -> LayerState:
    if not isinstance(layer, list | tuple) or len(layer) != 2:
        raise TypeError(f"state of layer {index} must be a pair (conv_state, ssm_state); got {_describe(layer)}")
    for name, tensor in zip(("conv_state", "ssm_state"), layer, strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"state of layer {index}: {name} must be a tensor; got {type(tensor).__name__}")
    return layer[0], layer[1]


def _describe(value: object) -> str:
    size = f" of {len(value)}" if isinstance(value, list | tuple) else ""
    return type(value).__name__ + size


def _triple(tensor: Tensor) -> tuple[int, int, int]:
    batch, channels, width = tensor.shape
    return batch, channels, width
