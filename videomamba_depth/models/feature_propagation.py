"""Features of frames that the encoder does not see: those of an earlier frame, moved along the flow and corrected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomamba_depth.models.motion import Motion
from videomamba_depth.utils.errors import describe
from videomamba_depth.utils.flow_utils import chain_flow, resize_flow, resize_maps, warp_map

MIN_TRUST = 0.8  # share of a frame that can be followed to the one encoded last, below which it is encoded at once
MAX_MOTION = 0.15  # mean motion since that one, in short sides of the frame, above which likewise
HIDDEN = 32  # channels of the learned correction
_NAME = "encoded."  # before the names of what is carried

Maps = dict[str, Tensor]


class EncodingPlan(NamedTuple):
    """Which frames of a chunk the encoder sees, and where the others find theirs."""

    encoded: list[list[bool]]  # [N][B]
    flow_px: Tensor  # [B, N, 2, h, w], to the frame that was encoded last; 0 where that is the frame itself
    trusted: Tensor  # [B, N, 1, h, w], 1 where that flow can be trusted, else 0

    def chosen(self) -> list[int]:
        """Return the indices of the encoded frames in a clip `[B·N, …]`, earlier frames first."""
        frames = len(self.encoded)
        return [b * frames + t for t, streams in enumerate(self.encoded) for b, seen in enumerate(streams) if seen]


class FeaturePropagation(nn.Module):
    """Lets the encoder see every k-th frame of a stream only.

    The other frames get the features of the frame that was encoded last, moved in one piece along the flow to it, which
    is chained from frame to frame (as in deep feature flow, Zhu et al., CVPR 2017, equation 2), plus, where `learned`,
    a correction from the picture itself. k belongs to the state: any value, at any time of training.

    A frame is encoded out of turn where its stream is new, where little of it can be followed, and where it has moved
    far. The streams of a batch take turns, so that every frame costs alike: stream b of B is bk/B frames ahead.

    State, in `DepthState.maps` under names that begin with "encoded.", of the frame encoded last:

        s0 … s3   [B,C_i,H_i,W_i]  its features
        flow      [B,2,h,w]        px, from the frame before the next one to it
        trust     [B,1,h,w]        1 where that can be trusted, else 0
        picture   [B,3,H_0,W_0]    its colors; with `learned` alone

    Args:
        channels: C_i of s0..s3.
        learned: whether there is a correction; it begins at 0.
    """

    def __init__(self, channels: Sequence[int], learned: bool) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.update = FeatureUpdate(channels) if learned else None

    def new_maps(
        self,
        batch: int,
        sizes: dict[str, tuple[int, int]],
        flow_size: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> Maps:
        """Return the state of new streams.

        Args:
            sizes: (H_i, W_i) of s0..s3, in this order. flow_size: (h, w) px that flow comes at.
            dtype: of the features; they are carried in float32 at least.
        """
        shapes = {name: (c, *size) for c, (name, size) in zip(self.channels, sizes.items(), strict=True)}
        if self.update is not None:
            shapes["picture"] = (3, *next(iter(sizes.values())))
        wide = torch.promote_types(dtype, torch.float32)
        maps = {_NAME + name: torch.zeros(batch, *shape, dtype=wide, device=device) for name, shape in shapes.items()}
        for name, count in (("flow", 2), ("trust", 1)):
            maps[_NAME + name] = torch.zeros(batch, count, *flow_size, device=device)
        return maps

    @torch.no_grad()
    def plan(
        self, maps: Maps, motion: Motion, due: Sequence[Sequence[bool]], must_encode: Tensor | None = None
    ) -> EncodingPlan:
        """Decide which frames of a chunk are encoded; waits for the device at every frame.

        Args:
            maps: of the state before it.
            due: [N][B], whose turn it is, see `turns`.
            must_encode: `[B]` bool, streams whose first frame here is encoded in any case.
        """
        flow, trust = maps[_NAME + "flow"], maps[_NAME + "trust"]
        size = (flow.shape[-2], flow.shape[-1])
        encoded, flows, trusts = [], [], []
        for t, turn in enumerate(due):
            flow, trust = chain_flow(flow, trust, *_frame(motion, t, size))
            far = flow.square().sum(1).sqrt().mean((1, 2)) > MAX_MOTION * min(size)
            now = far | (trust.mean((1, 2, 3)) < MIN_TRUST)  # nothing is trusted where a stream is new
            if must_encode is not None and t == 0:
                now = now | must_encode
            encoded.append([a or b for a, b in zip(turn, now.tolist(), strict=True)])
            if any(encoded[-1]):
                here = torch.tensor(encoded[-1], device=flow.device).view(-1, 1, 1, 1)
                flow, trust = flow.masked_fill(here, 0.0), trust.masked_fill(here, 1.0)
            flows.append(flow)
            trusts.append(trust)
        return EncodingPlan(encoded, torch.stack(flows, 1), torch.stack(trusts, 1))

    def forward(self, clip: Tensor, seen: Maps, plan: EncodingPlan, maps: Maps) -> tuple[Maps, Maps]:
        """Return the features of every frame of a chunk, `[B, N, C_i, H_i, W_i]` by scale, and its state.

        Args:
            clip: `[B, N, 3, H, W]` in [0, 1], of any size.
            seen: features `[n, C_i, H_i, W_i]` of the n encoded frames, in the order of `EncodingPlan.chosen`.
            maps: of the state before it.
        """
        names = [name for name in maps if name.startswith(_NAME) and name not in (_NAME + "flow", _NAME + "trust")]
        source = {name.removeprefix(_NAME): maps[name] for name in names}  # of the frames encoded last
        frames: list[Maps] = []
        first = 0
        for t, streams in enumerate(plan.encoded):
            new = [b for b, is_new in enumerate(streams) if is_new]
            old = [b for b, is_new in enumerate(streams) if not is_new]
            picture = None
            if self.update is not None:
                picture = resize_maps(clip[:, t].to(source["picture"].dtype), _size(source["s0"]), average=True)
            known = {name: x[first : first + len(new)].to(source[name].dtype) for name, x in seen.items()}
            if picture is not None:
                known["picture"] = _some(picture, new)
            first += len(new)
            kept = {name: _some(x, old) for name, x in source.items()}
            moved = known
            if old:
                flow, trusted = _some(plan.flow_px[:, t], old), _some(plan.trusted[:, t], old)
                moved = self._move(kept, flow, trusted, None if picture is None else _some(picture, old))
            source = {name: _merged(known.get(name), x, new, old) for name, x in kept.items()}
            frames.append({name: _merged(known.get(name), moved[name], new, old) for name in kept if name != "picture"})
        features = {name: torch.stack([frame[name] for frame in frames], 1) for name in frames[0]}
        after = {"flow": plan.flow_px[:, -1], "trust": plan.trusted[:, -1], **source}
        return features, {_NAME + name: x for name, x in after.items()}

    def _move(self, source: Maps, flow_px: Tensor, trusted: Tensor, picture: Tensor | None) -> Maps:
        """Return the features of frames `[b, …]` out of those that were encoded last."""
        moved = {name: warp_map(x, resize_flow(flow_px, _size(x), average=True)) for name, x in source.items()}
        before = moved.pop("picture", None)
        if self.update is None or picture is None or before is None:
            return moved
        trust = resize_maps(trusted.to(picture.dtype), _size(picture), average=True)
        return self.update(moved, picture, before, trust)


class FeatureUpdate(nn.Module):
    """A correction of moved features from the picture: what is seen now, and how that differs from what was moved here.

    A pyramid of 3x3 convolutions over picture, difference and trust meets each scale's own features in units of their
    root mean square; the last layer starts at 0.
    """

    def __init__(self, channels: Sequence[int], hidden: int = HIDDEN) -> None:
        super().__init__()
        self.stem = nn.ModuleList(
            nn.Conv2d(hidden if i else 7, hidden, 3, stride=2 if i else 1, padding=1) for i in range(len(channels))
        )
        self.mix = nn.ModuleList(nn.Conv2d(c, hidden, 1) for c in channels)
        self.out = nn.ModuleList(nn.Conv2d(hidden, c, 1) for c in channels)
        for layer in self.out:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, moved: Maps, picture: Tensor, before: Tensor, trust: Tensor) -> Maps:
        """Return corrected features.

        Args:
            moved: by scale, fine to coarse, `[b, C_i, H_i, W_i]`.
            picture, before: `[b, 3, H_0, W_0]` in [0, 1], of the frame and moved from the one encoded last.
            trust: `[b, 1, H_0, W_0]` in [0, 1].
        """
        x = torch.cat([picture - 0.5, picture - before, trust], 1)
        corrected = {}
        for stem, mix, out, (name, features) in zip(self.stem, self.mix, self.out, moved.items(), strict=True):
            x = resize_maps(F.gelu(stem(x)), _size(features))  # [b, hidden, H_i, W_i]: mostly that size already
            unit = features.square().mean((1, 2, 3), keepdim=True).sqrt().detach() + 1e-6
            corrected[name] = features + unit * out(F.gelu(x + mix(features / unit)))
        return corrected


def turns(clock: int, frames: int, encode_every: int, batch: int) -> list[list[bool]]:
    """Return [N][B], whose turn it is in each of N frames from frame `clock` of a batch on."""
    phases = [stream * encode_every // batch for stream in range(batch)]
    return [[(clock + t + phase) % encode_every == 0 for phase in phases] for t in range(frames)]


def check_encode_every(encode_every: object, has_motion: bool) -> int:
    """Return how many frames lie between two encoded ones, checked.

    Raises:
        ValueError: no whole number from 1, or above 1 for a student that knows no motion.
    """
    if isinstance(encode_every, bool) or not isinstance(encode_every, int) or encode_every < 1:
        raise ValueError(f"encode_every must be a whole number from 1; got {describe(encode_every)}")
    if encode_every > 1 and not has_motion:
        raise ValueError(
            f"encode_every={encode_every} moves features along the flow between frames: a student without flow has none"
        )
    return encode_every


def _frame(motion: Motion, t: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    flow, trusted = motion.frame(t, size)
    return flow.float(), trusted


def _some(x: Tensor, streams: list[int]) -> Tensor:
    return x if len(streams) == len(x) else x[streams]


def _merged(new: Tensor | None, old: Tensor, new_streams: list[int], old_streams: list[int]) -> Tensor:
    """Return maps `[B, …]` of all streams out of those of some and those of the others."""
    if new is None or not new_streams:
        return old
    if not old_streams:
        return new
    order = sorted(range(len(new_streams) + len(old_streams)), key=[*new_streams, *old_streams].__getitem__)
    return torch.cat([new, old])[order]


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
