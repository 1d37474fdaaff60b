"""What a stream carries from frame to frame."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from videomamba_depth.layers.mamba_mixer import LayerState
from videomamba_depth.utils.checkpoint import check_tensors, load_tensors, save_tensors
from videomamba_depth.utils.errors import UserError, describe

_FORMAT = "videomamba-depth state 2"
_MAP = "map."  # before the names of maps, where tensors are listed by flat names


@dataclass(frozen=True)
class DepthState:
    """The state of B streams after some frames. Immutable: every method returns a new one.

    Attributes:
        layers: per scale, per block `(conv_state, ssm_state)`; the leading axis is B·H_i·W_i.
        frame_index: `[B]` int64, index of the next frame of each stream.
        feature_sizes: (H_i, W_i) per scale, what ties a state to a resolution.
        maps: what is carried per pixel, `[B, C, h, w]` by name: the last frame, the last depth. Empty for most models.
        signature: text that names the temporal model's architecture, what ties a state to a model.
        image_size: (H, W) px of the frames.
        memory: how long the streams remember, relative to the student's training, see `VideoMambaDepth.init_states`.
        encode_every: the encoder sees every so many-th frame, see `FeaturePropagation`.
        clock: frames since `init_states`, which no reset sets back; not counted where every frame is encoded.
    """

    layers: dict[str, tuple[LayerState, ...]]
    frame_index: Tensor
    feature_sizes: dict[str, tuple[int, int]]
    signature: str
    image_size: tuple[int, int]
    maps: dict[str, Tensor] = field(default_factory=dict)
    memory: float = 1.0
    encode_every: int = 1
    clock: int = 0

    @property
    def batch_size(self) -> int:
        """Number of streams B."""
        return self.frame_index.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> DepthState:
        """Return a state with `function` applied to every tensor but the frame index."""
        layers = {
            name: tuple((function(conv), function(ssm)) for conv, ssm in blocks) for name, blocks in self.layers.items()
        }
        return replace(self, layers=layers, maps={name: function(t) for name, t in self.maps.items()})

    def detach(self) -> DepthState:
        """Cut the gradient: what comes next does not reach back."""
        return self.map(Tensor.detach)

    def clone(self) -> DepthState:
        """Copy every tensor."""
        return replace(self.map(Tensor.clone), frame_index=self.frame_index.clone())

    def to(self, device: torch.device | str) -> DepthState:
        """Move to a device; dtypes stay."""
        return replace(self.map(lambda t: t.to(device)), frame_index=self.frame_index.to(device))

    def reset(self, streams: Tensor) -> DepthState:
        """Reset the streams where `streams [B]` bool is True: an all-zero state at frame 0 is a new one."""
        keep = ~streams.to(self.frame_index.device)

        def zero(t: Tensor) -> Tensor:
            per_stream = t.unflatten(0, (self.batch_size, -1))
            mask = keep.view(-1, *[1] * (per_stream.ndim - 1))
            return torch.where(mask, per_stream, torch.zeros_like(per_stream)).flatten(0, 1)

        return replace(self.map(zero), frame_index=self.frame_index * keep)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors under flat names, as they are saved."""
        named = {"frame_index": self.frame_index}
        for name, blocks in self.layers.items():
            for i, (conv, ssm) in enumerate(blocks):
                named[f"{name}.{i}.conv"], named[f"{name}.{i}.ssm"] = conv, ssm
        return named | {f"{_MAP}{name}": t for name, t in self.maps.items()}

    def metadata(self) -> dict[str, str]:
        """Return what else is saved, as text."""
        return {
            "format": _FORMAT,
            "signature": self.signature,
            "feature_sizes": json.dumps(self.feature_sizes),
            "image_size": json.dumps(self.image_size),
            "memory": json.dumps(self.memory),
            **({"encode_every": json.dumps([self.encode_every, self.clock])} if self.encode_every > 1 else {}),
        }

    @classmethod
    def from_tensors(cls, named: dict[str, Tensor], metadata: dict[str, str]) -> DepthState:
        """Undo `tensors` and `metadata`.

        Raises:
            ValueError: they are not of a state.
        """
        try:
            state = cls._read(named, metadata)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"it is not what describes a state ({error!r})") from error
        unknown = named.keys() - state.tensors().keys()
        if unknown:
            raise ValueError(f"{min(unknown)} is no tensor of a state")
        return state

    @classmethod
    def _read(cls, named: dict[str, Tensor], metadata: dict[str, str]) -> DepthState:
        sizes = {str(name): _size(size) for name, size in json.loads(metadata["feature_sizes"]).items()}
        layers: dict[str, tuple[LayerState, ...]] = {}
        for name in sizes:
            blocks: list[LayerState] = []
            while f"{name}.{len(blocks)}.conv" in named:
                key = f"{name}.{len(blocks)}"
                blocks.append((named[f"{key}.conv"], named[f"{key}.ssm"]))
            layers[name] = tuple(blocks)
        maps = {name.removeprefix(_MAP): t for name, t in named.items() if name.startswith(_MAP)}
        image_size, memory = _size(json.loads(metadata["image_size"])), json.loads(metadata["memory"])
        if isinstance(memory, bool) or not isinstance(memory, int | float):
            raise ValueError(f"memory must be a number; got {describe(memory)}")
        counts = json.loads(metadata.get("encode_every", "[1, 0]"))
        if not isinstance(counts, list) or [type(n) for n in counts] != [int, int] or counts[0] < 1 or counts[1] < 0:
            raise ValueError(f"encode_every must be two counts; got {describe(counts)}")
        return cls(layers, named["frame_index"], sizes, metadata["signature"], image_size, maps, memory, *counts)

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, atomically.

        Raises:
            UserError: a number is not finite, or the disk is full.
        """
        save_tensors(Path(path), self.tensors(), self.metadata())

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> DepthState:
        """Read what `save` wrote.

        Raises:
            UserError: no such file, not a state, or damaged.
        """
        tensors, metadata = load_tensors(Path(path), device, sealed=True)
        if metadata.get("format") != _FORMAT:
            raise UserError(f"'{path}' is not a stream state of this version ({_FORMAT}); save it again")
        try:
            state = cls.from_tensors(tensors, metadata)
            check_values(state)
        except ValueError as error:
            raise UserError(f"the stream state '{path}' is damaged ({error}); save it again") from error
        return state


def check_values(state: DepthState) -> None:
    """Refuse what is no state, and numbers that no model has written: NaN, infinity, a frame before the first.

    While a model is traced or compiled, values are not looked at.

    Raises:
        ValueError: naming the tensor.
    """
    if not isinstance(state, DepthState):
        raise ValueError(
            f"states must be a DepthState, the second of what the model returned for the chunk before, or None; got"
            f" {describe(state)}"
        )
    if torch.compiler.is_compiling():
        return
    tensors = state.tensors()
    index = tensors.pop("frame_index")
    # A sum is finite where every number is, unless it overflows: then the numbers themselves decide.
    sums = torch.stack([index.amin().float(), *(t.detach().sum(dtype=torch.float32) for t in tensors.values())])
    first, *totals = sums.tolist()
    if first < 0:
        raise ValueError("state tensor frame_index must not be negative; start again with states=None")
    for (name, tensor), total in zip(tensors.items(), totals, strict=True):
        if not math.isfinite(total) and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"state tensor {name} holds NaN or infinity; start again with states=None")


def check_state(state: DepthState, expected: DepthState) -> None:
    """Refuse a state that does not fit, with a message that says whether batch, resolution, dtype or model is wrong.

    Args:
        expected: a new state of the right kind; its values do not matter (it may live on the meta device).

    Raises:
        ValueError: naming what differs and what to do.
    """
    if state.signature != expected.signature:
        raise ValueError(
            f"the state belongs to another model: it was made by [{state.signature}],"
            f" this one is [{expected.signature}]"
        )
    if state.encode_every != expected.encode_every:
        raise ValueError(
            f"the state is of a stream with encode_every {state.encode_every}; this one has {expected.encode_every}"
        )
    if state.feature_sizes != expected.feature_sizes or _map_sizes(state) != _map_sizes(expected):
        if state.image_size == expected.image_size:
            had, has = (_grids(s) for s in (state, expected))
            raise ValueError(
                f"the state belongs to this model with another short_side: its maps are {had}, here {has}; load the"
                " model with that short_side, or start again with states=None"
            )
        had, has = ("x".join(map(str, size)) for size in (state.image_size, expected.image_size))
        raise ValueError(
            f"the state belongs to another resolution: to frames of {had} px (height x width), this one has {has} px;"
            " resize the frames, or start again with states=None"
        )
    if state.batch_size != expected.batch_size:
        raise ValueError(
            f"the state holds a batch of {state.batch_size} streams, the clip one of {expected.batch_size};"
            " start again with states=None"
        )
    if state.memory != expected.memory:
        raise ValueError(f"the state is of a stream with memory {state.memory:g}; this one has {expected.memory:g}")
    want = {name: (tuple(t.shape), t.dtype) for name, t in expected.tensors().items()}
    check_tensors("state", state.tensors(), want)


def _size(value: object) -> tuple[int, int]:
    """Return a (height, width) that was read from JSON."""
    if not isinstance(value, list) or len(value) != 2 or any(type(side) is not int or side < 1 for side in value):
        raise ValueError(f"a size must be two whole numbers from 1; got {describe(value)}")
    return value[0], value[1]


def _grids(state: DepthState) -> str:
    sizes = {**state.feature_sizes, **_map_sizes(state)}
    return ", ".join(f"{name} {'x'.join(map(str, size))}" for name, size in sizes.items())


def _map_sizes(state: DepthState) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape[-2:]) for name, t in state.maps.items()}
