"""Key frames: a stream that comes back to a view goes on from the state it left there."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.models.depth_state import DepthState, check_state, check_values
from videomamba_depth.streaming.depth_frame import DepthFrame
from videomamba_depth.streaming.hooks import NextFrame, StreamHook
from videomamba_depth.streaming.key_frames.scale_align import fit_scale, follow_scale
from videomamba_depth.streaming.resets import layout
from videomamba_depth.utils.checkpoint import Layout, check_tensors
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.settings import check_settings, ranged

_THUMBNAIL_PX = 64  # short side at which pictures and depths are compared
_MAX_RGB_CHANGE = 0.06  # of a pixel that shows the same, in any channel, of 1


@dataclass(frozen=True)
class KeyFrameSettings:
    """How key frames are chosen and used.

    Attributes:
        enabled: whether a command uses them.
        every: frames between two candidates (the last frame before a cut is one too).
        capacity: key frames that are held at most; the oldest goes. Each holds a state.
        duplicate: a candidate that is more similar than this to a key frame is not added.
        enter: smallest similarity at which the stream re-anchors to a key frame that it had left.
        leave: a key frame below this similarity, or before a cut, has been left.
        blend_frames: over how many frames the state moves to the key frame's, where the stream was not cut.
        grid: cells per side of the descriptor; 1 is the plain average of the coarsest feature over the picture.
        align: hold depth's scale to the key frame's.
        time_constant: of the scale's exponential mean, in frames.
        max_state_change: largest relative change of the state's norm between frames at which the scale is followed.
        max_scale: bound of the scale, see `follow_scale`.
    """

    enabled: bool = True
    every: int = ranged(1, 10**9, 15)
    capacity: int = ranged(1, 10_000, 8)
    duplicate: float = ranged(-1, 1, 0.95)
    enter: float = ranged(-1, 1, 0.8)
    leave: float = ranged(-1, 1, 0.65)
    blend_frames: int = ranged(1, 10**6, 4)
    grid: int = ranged(1, 256, 4)
    align: bool = False
    time_constant: float = ranged(0, 1e6, 16.0, open="low")
    max_state_change: float = ranged(0, 1e6, 0.05)
    max_scale: float = ranged(1.0, 1e6, 1.25)

    def __post_init__(self) -> None:
        check_settings(self)
        if not -1 <= self.leave <= self.enter <= self.duplicate <= 1:
            raise ValueError(
                "key_frames.leave, .enter and .duplicate are similarities that must ascend, -1 ≤ leave ≤ enter ≤"
                f" duplicate ≤ 1; got {self.leave}, {self.enter}, {self.duplicate}"
            )


@dataclass(frozen=True)
class Appearance:
    """What a frame is compared by.

    Attributes:
        descriptor: `[1, C]`, unit length.
        picture: `[1, 3, h, w]` small RGB in [0, 1].
        depth: `[1, 1, h, w]` as shown; empty before it is known.
    """

    descriptor: Tensor
    picture: Tensor
    depth: Tensor


@dataclass(frozen=True)
class KeyFrame:
    """A frame that the stream can return to, and the state after it.

    Attributes:
        number: of the frame, counted since the stream was opened or reset.
        left: whether the stream has left that view since.
    """

    number: int
    appearance: Appearance
    state: DepthState
    left: bool = False


@dataclass
class Kept:
    """What is carried from frame to frame: every frame writes to a copy of its own.

    Attributes:
        number: of the latest frame.
        anchor: number of the key frame that the stream went on from; it may have gone from the ring.
        blended: frames of the running blend; 0: none runs.
        norm: of the state after the latest frame.
        after_reset: the latest frame was the first one after a cut or a gap, or of the stream.
        scale: (a, b) of shown depth = a · depth + b.
        appearance: of the latest frame.
        ring: the key frames that are held, oldest first.
        decision: what was done with the latest frame.
    """

    number: int = -1
    anchor: int | None = None
    blended: int = 0
    norm: float = 0.0
    after_reset: bool = True
    scale: tuple[float, float] = (1.0, 0.0)
    appearance: Appearance | None = None
    ring: tuple[KeyFrame, ...] = ()
    decision: dict[str, Any] = field(default_factory=dict)

    def anchored(self) -> KeyFrame | None:
        """Return the key frame that the stream is anchored to; None where it has gone from the ring."""
        return next((key for key in self.ring if key.number == self.anchor), None)


_IN_JSON = [item.name for item in fields(Kept)][:6]


class KeyFrames(StreamHook):
    """The key frames of one stream. States are shared, never copied or written to."""

    name = "key_frames"

    def __init__(self, settings: KeyFrameSettings) -> None:
        self._settings, self._with_shift = settings, True
        self.kept = Kept()

    def attach(self, batch_size: int, depth_kind: DepthKind) -> None:
        """Refuse batches; relative depth's zero is free as well as its scale, metric depth's is not."""
        if batch_size != 1:
            raise ValueError(f"key frames need batch_size 1; got {batch_size}: open one stream per video")
        self._with_shift = depth_kind is DepthKind.RELATIVE

    def settings(self) -> dict[str, Any]:
        """Return the settings by name."""
        return {name: value for name, value in asdict(self._settings).items() if name != "enabled"}

    def reset(self, streams: Tensor) -> None:
        """Forget everything where the stream is reset."""
        self.kept = Kept() if bool(streams.all()) else self.kept

    def notes(self) -> dict[str, Any]:
        """Return what was decided about the latest frame."""
        return {"key": dict(self.kept.decision)}

    def before_frame(self, frame: NextFrame, states: DepthState) -> DepthState:
        """Return the state to start the next frame from: a key frame's, where the stream comes back to its view."""
        kept = self.kept = replace(self.kept, number=self.kept.number + 1)
        kept.decision = {"event": "", "followed": False, "added": [], "dropped": []}
        kept.after_reset = bool(states.frame_index[0] == 0)
        if kept.after_reset:
            self._leave_all(frame.before)
        descriptor = descriptor_of(frame.features, self._settings.grid)
        nearest = self._nearest(descriptor)
        kept.appearance = Appearance(descriptor, _thumbnail(frame.whole), frame.rgb.new_zeros(0))
        if nearest is not None and nearest.left and kept.decision["similarity"] >= self._settings.enter:
            kept.ring = tuple(replace(key, left=key.left and key is not nearest) for key in kept.ring)
            kept.anchor, kept.blended = nearest.number, 0
            kept.decision["event"] = "returned"
            return nearest.state if kept.after_reset or self._settings.blend_frames == 1 else self._blend(states)
        return self._blend(states) if kept.blended else states

    def after_frame(self, depth: Tensor, states: DepthState) -> Tensor:
        """Return the depth to show, `[1, 1, H, W]` like `depth`; remember the frame where it is due."""
        kept = self.kept
        assert kept.appearance is not None
        small = F.interpolate(depth.float(), kept.appearance.picture.shape[-2:], mode="area")
        if not bool(torch.isfinite(small).all()):
            return depth  # which the stream refuses
        norm = state_norm(states)
        change = abs(norm - kept.norm) / max(norm, 1e-12)
        kept.norm = norm
        if self._settings.align:
            self._align(small, change)
        a, b = kept.scale
        kept.decision |= {"anchor": kept.anchor, "scale": a, "shift": b, "change": change}
        kept.appearance = replace(kept.appearance, depth=_scaled(small, kept.scale))
        if kept.number % self._settings.every == self._settings.every - 1:
            self._add(kept.number, states)
        kept.decision["held"] = len(kept.ring)
        return _scaled(depth, kept.scale)

    def _leave_all(self, before: DepthState) -> None:
        """Take leave of the view at a cut: what was shown last is worth returning to."""
        if self.kept.appearance is not None:
            self._add(self.kept.number - 1, before)
        self.kept.ring = tuple(replace(key, left=True) for key in self.kept.ring)
        self.kept.anchor, self.kept.blended, self.kept.scale = None, 0, (1.0, 0.0)

    def _nearest(self, descriptor: Tensor) -> KeyFrame | None:
        """Return the most similar key frame, after all those that are unlike the frame have been left."""
        kept = self.kept
        if not kept.ring:
            return None
        similarities = [float((descriptor * key.appearance.descriptor).sum()) for key in kept.ring]
        best = max(range(len(similarities)), key=lambda i: similarities[i])
        kept.ring = tuple(
            replace(key, left=key.left or similarity < self._settings.leave)
            for key, similarity in zip(kept.ring, similarities, strict=True)
        )
        anchored = kept.anchored()
        if anchored is not None and anchored.left:
            kept.anchor, kept.blended = None, 0
            kept.decision["event"] = "left"
        kept.decision |= {"nearest": kept.ring[best].number, "similarity": similarities[best]}
        return kept.ring[best]

    def _blend(self, states: DepthState) -> DepthState:
        """Move one frame's share toward the anchor's state: the stream's own part fades linearly."""
        kept = self.kept
        key = kept.anchored()
        if key is None:
            kept.blended = 0
            return states
        share = 1 / (self._settings.blend_frames - kept.blended)
        kept.blended = (kept.blended + 1) % self._settings.blend_frames
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
        kept = self.kept
        key = kept.anchored()
        if key is None or (change > self._settings.max_state_change and not kept.after_reset):
            return
        assert kept.appearance is not None
        same = (kept.appearance.picture - key.appearance.picture).abs().amax(1, keepdim=True) <= _MAX_RGB_CHANGE
        fitted = fit_scale(depth, key.appearance.depth, same, with_shift=self._with_shift)
        if fitted is not None:
            # After a reset there is nothing before it to be continuous with: the fit is taken over at once.
            time_constant = 0.0 if kept.after_reset else self._settings.time_constant
            mean = float(key.appearance.depth.mean())
            kept.scale = follow_scale(kept.scale, fitted, mean, time_constant, self._settings.max_scale)
            kept.decision["followed"] = True

    def _add(self, number: int, state: DepthState) -> None:
        """Remember the frame of that number, whose appearance is the latest one, unless a key frame is like it."""
        kept = self.kept
        assert kept.appearance is not None
        descriptor = kept.appearance.descriptor
        if any(float((descriptor * key.appearance.descriptor).sum()) > self._settings.duplicate for key in kept.ring):
            return
        kept.ring = (*kept.ring, KeyFrame(number, kept.appearance, state))
        kept.decision["added"].append(number)
        if len(kept.ring) > self._settings.capacity:
            kept.decision["dropped"].append(kept.ring[0].number)
            kept.ring = kept.ring[1:]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are kept, under flat names."""
        named: dict[str, Tensor] = {}
        if self.kept.appearance is not None:
            named |= {f"appearance.{name}": t for name, t in vars(self.kept.appearance).items()}
        for key in self.kept.ring:
            named |= {f"{key.number}.appearance.{name}": t for name, t in vars(key.appearance).items()}
            named |= {f"{key.number}.state.{name}": t for name, t in key.state.tensors().items()}
        return named

    def metadata(self) -> str:
        """Return what else is kept, as JSON; floats survive to the bit."""
        ring = [{"number": key.number, "left": key.left, "state": key.state.metadata()} for key in self.kept.ring]
        return json.dumps({name: getattr(self.kept, name) for name in _IN_JSON} | {"ring": ring})

    def read(self, tensors: dict[str, Tensor], metadata: str, start: DepthState, channels: int) -> Kept:
        """Undo `tensors` and `metadata`, see `StreamHook`.

        Raises:
            ValueError: they are not of the key frames of such a stream.
        """
        try:
            return self._read(tensors, json.loads(metadata), start, channels)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"it is not what describes key frames ({error!r})") from error

    def _read(self, tensors: dict[str, Tensor], about: Any, start: DepthState, channels: int) -> Kept:
        (a, b), numbers = about["scale"], [key["number"] for key in about["ring"]]
        kept = Kept(**{name: about[name] for name in _IN_JSON} | {"scale": (a, b)})
        if not (
            all(type(n) is int for n in [kept.number, kept.blended, *numbers])
            and (kept.anchor is None or type(kept.anchor) is int)
            and all(type(flag) is bool for flag in [kept.after_reset, *(key["left"] for key in about["ring"])])
            and all(type(x) in (int, float) and math.isfinite(x) for x in (a, b, kept.norm))
            and [-1, *numbers, kept.number] == sorted([-1, *numbers, kept.number])
            and len(numbers) <= self._settings.capacity
            and 0 <= kept.blended < self._settings.blend_frames
            and a > 0
        ):
            raise ValueError("its key frames are none: numbers, flags or the scale are out of range")
        appearance = _appearance_layout(start.image_size, channels, self._settings.grid)
        state = {f"state.{name}": (tuple(t.shape), t.dtype) for name, t in start.tensors().items()}
        expected = appearance if kept.number >= 0 else {}
        for number in numbers:
            expected = expected | {f"{number}.{name}": layout for name, layout in (appearance | state).items()}
        check_tensors("key frames", tensors, expected)
        for key in about["ring"]:
            number = key["number"]
            restored = DepthState.from_tensors(_below(f"{number}.state.", tensors), key["state"])
            check_state(restored, start)
            check_values(restored)
            shown = Appearance(**_below(f"{number}.appearance.", tensors))
            kept.ring = (*kept.ring, KeyFrame(number, shown, restored, key["left"]))
        if kept.number >= 0:
            kept.appearance = Appearance(**_below("appearance.", tensors))
        return kept


class AddedFrames:
    """Choose the frames that became key frames, for sinks that write some frames alone; called with every frame."""

    def __init__(self) -> None:
        self._number = -1  # of the latest frame, counted as key frames count
        self._before: DepthFrame | None = None

    def __call__(self, frame: DepthFrame) -> list[DepthFrame]:
        """Return the frame, and the one before it, as far as they have been added: a cut adds the one before."""
        self._number += 1
        added = frame.notes["key"]["added"]
        latest = [(self._number - 1, self._before), (self._number, frame)]
        self._before = frame
        return [candidate for number, candidate in latest if candidate is not None and number in added]


def descriptor_of(features: Tensor, grid: int) -> Tensor:
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


def _scaled(depth: Tensor, scale: tuple[float, float]) -> Tensor:
    return depth if scale == (1.0, 0.0) else depth * scale[0] + scale[1]


def _appearance_layout(image_size: tuple[int, int], channels: int, grid: int) -> dict[str, Layout]:
    """Return what the tensors of an `Appearance` are for frames of that size and features of that many channels."""
    height, width = _thumbnail_size(*image_size)
    sizes = {"descriptor": (1, channels * grid**2), "picture": (1, 3, height, width), "depth": (1, 1, height, width)}
    return {f"appearance.{name}": (size, torch.float32) for name, size in sizes.items()}


def _thumbnail_size(height: int, width: int) -> tuple[int, int]:
    ratio = min(1.0, _THUMBNAIL_PX / min(height, width))
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def _thumbnail(rgb: Tensor) -> Tensor:
    return F.interpolate(rgb.float(), _thumbnail_size(rgb.shape[-2], rgb.shape[-1]), mode="area")


def _below(prefix: str, named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in named.items() if name.startswith(prefix)}
