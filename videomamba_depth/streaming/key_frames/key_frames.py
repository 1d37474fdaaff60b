"""Key frames: a stream that comes back to a view goes on from the state it left there (ours)."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.models.depth_state import DepthState, check_state, check_values
from videomamba_depth.streaming.key_frames.scale_align import ScaleFollower, fit_scale
from videomamba_depth.streaming.resets import layout
from videomamba_depth.utils.checkpoint import Layout, check_tensors

_THUMBNAIL_PX = 64  # short side at which pictures and depths are compared
_KEPT = ("number", "anchor", "blended", "norm", "afresh")  # what JSON holds as it is
_MAX_RGB_CHANGE = 0.06  # of a pixel that shows the same, in any channel, of 1


@dataclass(frozen=True)
class KeyFrameSettings:
    """How key frames are chosen and used.

    Attributes:
        every: frames between two candidates (the last frame before a cut is one too).
        capacity: key frames that are held at most; the oldest goes. Each holds a state.
        duplicate: a candidate that is more similar than this to a key frame is not added.
        enter: smallest similarity at which the stream re-anchors to a key frame that it had left.
        leave: a key frame below this similarity, or behind a cut, has been left.
        blend_frames: over how many frames the state moves to the key frame's, where the stream was not cut.
        grid: cells per side of the descriptor; 1 is the plain average of the coarsest feature over the picture.
        align: hold depth's scale to the key frame's.
        time_constant: of the scale's exponential mean, in frames.
        max_state_change: largest relative change of the state's norm between frames at which the scale is followed.
        max_scale: bound of the scale, see `ScaleFollower`.
    """

    every: int = 15
    capacity: int = 8
    duplicate: float = 0.95
    enter: float = 0.8
    leave: float = 0.65
    blend_frames: int = 4
    grid: int = 4
    align: bool = False
    time_constant: float = 16.0
    max_state_change: float = 0.05
    max_scale: float = 1.25

    def __post_init__(self) -> None:
        if min(self.every, self.capacity, self.blend_frames, self.grid) < 1 or self.time_constant <= 0:
            raise ValueError("key frames: every, capacity, blend_frames, grid and time_constant must be positive")
        if not -1 <= self.leave <= self.enter <= self.duplicate <= 1:
            raise ValueError(
                "key_frames.leave, .enter and .duplicate are similarities that must ascend, -1 ≤ leave ≤ enter ≤"
                f" duplicate ≤ 1; got {self.leave}, {self.enter}, {self.duplicate}"
            )
        if self.max_scale < 1 or self.max_state_change < 0:
            raise ValueError("key frames: max_scale must be at least 1 and max_state_change must not be negative")


@dataclass(frozen=True)
class Look:
    """What a frame is compared by.

    Attributes:
        descriptor: `[1, C]`, unit length.
        picture: `[1, 3, h, w]` small RGB in [0, 1].
        depth: `[1, 1, h, w]` as shown; empty before it is known.
    """

    descriptor: Tensor
    picture: Tensor
    depth: Tensor


@dataclass
class KeyFrame:
    """A frame that the stream can return to: what it looked like, and the state behind it."""

    number: int  # of the frame, counted since the stream was opened or reset
    look: Look
    state: DepthState
    left: bool = False


class KeyFrames:
    """The key frames of one stream: before each frame `anchor`, behind it `take`.

    States are shared, never copied or written to. `decision` says what was done with the latest frame.

    Args:
        with_shift: whether depth's zero is free as well as its scale: relative depth's is, metric depth's is not.
    """

    def __init__(self, settings: KeyFrameSettings, with_shift: bool = True) -> None:
        self.settings, self._with_shift = settings, with_shift
        self._scale = ScaleFollower(self.settings.time_constant, self.settings.max_scale)
        self.decision: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._ring: list[KeyFrame] = []
        self._number = -1  # of the latest frame
        self._look: Look | None = None
        self._anchor: int | None = None  # number of a key frame
        self._blended = 0  # frames of the running blend; 0: none runs
        self._norm = 0.0
        self._afresh = True
        self._scale.reset()
        self.decision = {}

    @property
    def frames(self) -> tuple[KeyFrame, ...]:
        """The key frames that are held, oldest first."""
        return tuple(self._ring)

    @property
    def scale(self) -> tuple[float, float]:
        """(a, b) of shown depth = a · depth + b."""
        return self._scale.a, self._scale.b

    def anchor(self, before: DepthState, states: DepthState, rgb: Tensor, features: Tensor) -> DepthState:
        """Return the state to start the next frame from.

        Args:
            before: behind the frame before.
            states: the same, or a fresh one where the stream was cut.
            rgb: `[1, 3, H, W]` in [0, 1], the next frame.
            features: `[1, C, h, w]`, coarse features of the frozen encoder.
        """
        self._number += 1
        self.decision = {"event": "", "followed": False, "added": [], "dropped": []}
        self._afresh = bool(states.frame_index[0] == 0)
        if self._afresh:
            self._leave_all(before)
        look = Look(describe(features, self.settings.grid), _thumbnail(rgb), rgb.new_zeros(0))
        nearest = self._nearest(look.descriptor)
        if nearest is not None and nearest.left and self.decision["similarity"] >= self.settings.enter:
            nearest.left, self._anchor, self._blended = False, nearest.number, 0
            self.decision["event"] = "returned"
            states = self._enter(nearest, states)
        elif self._blended:
            states = self._blend(states)
        self._look = look
        return states

    def take(self, depth: Tensor, states: DepthState) -> Tensor:
        """Return the depth to show, `[1, 1, H, W]` like `depth`; remember the frame where it is due.

        Args:
            states: behind the frame.
        """
        assert self._look is not None
        small = _shrink(depth, self._look.picture)
        norm = state_norm(states)
        change = abs(norm - self._norm) / max(norm, 1e-12)
        self._norm = norm
        if self.settings.align:
            self._align(small, change)
        self.decision |= {"anchor": self._anchor, "scale": self._scale.a, "shift": self._scale.b, "change": change}
        self._look = replace(self._look, depth=self._scale(small))
        if self._number % self.settings.every == self.settings.every - 1:
            self._add(self._number, states)
        self.decision["held"] = len(self._ring)
        return self._scale(depth)

    def snapshot(self) -> dict[str, Any]:
        """Return what is kept from frame to frame, for `restore`; later frames do not change it."""
        kept = {name: value for name, value in vars(self).items() if name not in ("settings", "_with_shift")}
        return kept | {"_ring": [replace(key) for key in self._ring], "_scale": copy.copy(self._scale)}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `snapshot` or `read` returned."""
        vars(self).update(kept)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is kept from frame to frame, under flat names."""
        named: dict[str, Tensor] = {}
        if self._look is not None:
            named |= {f"look.{name}": t for name, t in vars(self._look).items()}
        for key in self._ring:
            named |= {f"{key.number}.look.{name}": t for name, t in vars(key.look).items()}
            named |= {f"{key.number}.state.{name}": t for name, t in key.state.tensors().items()}
        return named

    def metadata(self) -> str:
        """Return what else is kept, as JSON; floats survive to the bit."""
        kept: dict[str, Any] = {name: getattr(self, f"_{name}") for name in _KEPT}
        ring = [{"number": key.number, "left": key.left, "state": key.state.metadata()} for key in self._ring]
        return json.dumps(kept | {"scale": self.scale, "ring": ring})

    def read(self, tensors: dict[str, Tensor], metadata: str, fresh: DepthState, channels: int) -> dict[str, Any]:
        """Undo `tensors` and `metadata`: return what `restore` takes.

        Args:
            fresh: a fresh state of the stream; it may live on the meta device.
            channels: of the features.

        Raises:
            ValueError: they are not of the key frames of such a stream.
        """
        try:
            return self._read(tensors, json.loads(metadata), fresh, channels)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"it is not what describes key frames ({error!r})") from error

    def _read(self, tensors: dict[str, Tensor], about: Any, fresh: DepthState, channels: int) -> dict[str, Any]:
        kept = {name: about[name] for name in _KEPT}
        (a, b), numbers = about["scale"], [key["number"] for key in about["ring"]]
        latest, anchor = kept["number"], kept["anchor"]
        if not (
            all(type(n) is int for n in [latest, kept["blended"], *numbers, *([] if anchor is None else [anchor])])
            and all(type(flag) is bool for flag in [kept["afresh"], *(key["left"] for key in about["ring"])])
            and all(type(x) in (int, float) and math.isfinite(x) for x in (a, b, kept["norm"]))
            and [-1, *numbers, latest] == sorted([-1, *numbers, latest])
            and len(numbers) <= self.settings.capacity
            and 0 <= kept["blended"] < self.settings.blend_frames
            and a > 0
        ):
            raise ValueError("its key frames are none: numbers, flags or the scale are out of range")
        look = _look_layout(fresh.image_size, channels, self.settings.grid)
        expected = {f"look.{name}": layout for name, layout in look.items()} if latest >= 0 else {}
        for number in numbers:
            expected |= {f"{number}.look.{name}": layout for name, layout in look.items()}
            expected |= {f"{number}.state.{n}": (tuple(t.shape), t.dtype) for n, t in fresh.tensors().items()}
        check_tensors("key frames", tensors, expected)
        ring = []
        for key in about["ring"]:
            state = DepthState.from_tensors(_below(f"{key['number']}.state.", tensors), key["state"])
            check_state(state, fresh)
            check_values(state)
            ring.append(KeyFrame(key["number"], Look(**_below(f"{key['number']}.look.", tensors)), state, key["left"]))
        scale = copy.copy(self._scale)
        scale.a, scale.b = a, b
        own = {"look": Look(**_below("look.", tensors)) if latest >= 0 else None, "ring": ring, "scale": scale}
        return {"decision": {}} | {f"_{name}": value for name, value in (kept | own).items()}

    def _leave_all(self, before: DepthState) -> None:
        """Take leave of the view at a cut: what was shown last is worth returning to."""
        if self._look is not None:
            self._add(self._number - 1, before)
        for key in self._ring:
            key.left = True
        self._anchor, self._blended = None, 0
        self._scale.reset()

    def _nearest(self, descriptor: Tensor) -> KeyFrame | None:
        if not self._ring:
            return None
        similarities = [float((descriptor * key.look.descriptor).sum()) for key in self._ring]
        best = max(range(len(similarities)), key=lambda i: similarities[i])
        for key, similarity in zip(self._ring, similarities, strict=True):
            key.left |= similarity < self.settings.leave
            if key.left and key.number == self._anchor:
                self._anchor, self._blended = None, 0
                self.decision["event"] = "left"
        self.decision |= {"nearest": self._ring[best].number, "similarity": similarities[best]}
        return self._ring[best]

    def _enter(self, key: KeyFrame, states: DepthState) -> DepthState:
        if self._afresh or self.settings.blend_frames == 1:
            return key.state
        return self._blend(states)

    def _blend(self, states: DepthState) -> DepthState:
        """Move one frame's share towards the anchor's state: the stream's own part fades linearly."""
        key = self._anchored()
        if key is None:
            self._blended = 0
            return states
        share = 1 / (self.settings.blend_frames - self._blended)
        self._blended = (self._blended + 1) % self.settings.blend_frames
        layers = {
            name: tuple(
                (torch.lerp(conv, to_conv, share), torch.lerp(ssm, to_ssm, share))
                for (conv, ssm), (to_conv, to_ssm) in zip(blocks, key.state.layers[name], strict=True)
            )
            for name, blocks in states.layers.items()
        }
        return replace(states, layers=layers)

    def _align(self, depth: Tensor, change: float) -> None:
        """Follow the scale that the anchor's depth asks for, on what has not moved since."""
        key = self._anchored()
        if key is None or (change > self.settings.max_state_change and not self._afresh):
            return
        assert self._look is not None
        same = (self._look.picture - key.look.picture).abs().amax(1, keepdim=True) <= _MAX_RGB_CHANGE
        fitted = fit_scale(depth, key.look.depth, same, with_shift=self._with_shift)
        if fitted is not None:
            self._scale.follow(fitted, float(key.look.depth.mean()), at_once=self._afresh)
            self.decision["followed"] = True

    def _anchored(self) -> KeyFrame | None:
        """Return the key frame that the stream is anchored to; None where it has gone from the ring."""
        return next((key for key in self._ring if key.number == self._anchor), None)

    def _add(self, number: int, state: DepthState) -> None:
        """Remember the frame of that number, the one that was looked at last, unless a key frame is like it."""
        assert self._look is not None
        descriptor = self._look.descriptor
        if any(float((descriptor * key.look.descriptor).sum()) > self.settings.duplicate for key in self._ring):
            return
        self._ring.append(KeyFrame(number, self._look, state))
        self.decision["added"].append(number)
        if len(self._ring) > self.settings.capacity:
            self.decision["dropped"].append(self._ring.pop(0).number)


def describe(features: Tensor, grid: int) -> Tensor:
    """Return the descriptor `[1, C']` of features `[1, C, h, w]`, unit length.

    A grid of 1 is the global average. Finer ones are mean-free per channel: the average itself is nearly the same for
    all pictures, and what can be returned to is a view, not a kind of place.
    """
    pooled = layout(features, grid) if grid > 1 else features.float().mean((2, 3))
    return F.normalize(pooled, dim=-1)


def state_norm(states: DepthState) -> float:
    """Return the norm of the coarsest scale's SSM states; 0 for models without."""
    if not states.layers:
        return 0.0
    blocks = list(states.layers.values())[-1]
    return float(sum(ssm.double().square().sum() for _, ssm in blocks)) ** 0.5


def _look_layout(image_size: tuple[int, int], channels: int, grid: int) -> dict[str, Layout]:
    """Return what the tensors of a `Look` are for frames of that size and features of that many channels."""
    sizes = {"descriptor": (channels * grid**2,), "picture": (3, *_thumbnail_size(*image_size))}
    sizes["depth"] = (1, *sizes["picture"][1:])
    return {name: ((1, *size), torch.float32) for name, size in sizes.items()}


def _thumbnail_size(height: int, width: int) -> tuple[int, int]:
    ratio = min(1.0, _THUMBNAIL_PX / min(height, width))
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def _thumbnail(rgb: Tensor) -> Tensor:
    return F.interpolate(rgb.float(), _thumbnail_size(rgb.shape[-2], rgb.shape[-1]), mode="area")


def _shrink(depth: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(depth.float(), like.shape[-2:], mode="area")


def _below(prefix: str, named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in named.items() if name.startswith(prefix)}
