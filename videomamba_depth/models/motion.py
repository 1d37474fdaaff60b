"""Motion between the frames of a stream, and warping of recurrent state along it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.flow.estimators import DIS_MIN_SIZE_PX, WEIGHTLESS, FlowEstimator, both_ways, build_stream_flow
from videomamba_depth.utils.flow_utils import consistency_mask, resize_flow, resize_maps
from videomamba_depth.utils.settings import check_settings, choice, ranged

CUBIC = -0.75  # of Keys' kernel, as in PyTorch's bicubic sampling


class Motion(NamedTuple):
    """Where each pixel of a chunk was one frame before; at any resolution."""

    flow_px: Tensor  # [B, N, 2, h, w], frame t → t−1 on the pixels of t, in px of h×w
    trusted: Tensor  # [B, N, 1, h, w] bool: seen in t−1, and the flow there and back agrees; False where t−1 is missing

    def chunk(self, start: int, stop: int) -> Motion:
        """Return the motion of the frames [start, stop)."""
        return Motion(self.flow_px[:, start:stop], self.trusted[:, start:stop])

    def since(self, new: Tensor) -> Motion:
        """Return the motion with nothing trusted in the first frame of streams that start with it, `new [B]` bool."""
        trusted = self.trusted.clone()
        trusted[:, 0] &= ~new.view(-1, 1, 1, 1)
        return self._replace(trusted=trusted)

    def frame(self, t: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return flow `[B, 2, *size]` in px of that size and trust `[B, 1, *size]` bool of frame t of the chunk.

        A cell of a coarser grid moves as its pixels do on average, and is trusted when most of them are.
        """
        flow, trusted = self.flow_px[:, t], self.trusted[:, t]
        if (flow.shape[-2], flow.shape[-1]) == size:
            return flow, trusted
        return resize_flow(flow, size, average=True), resize_maps(trusted.float(), size, average=True) > 0.5


@dataclass(frozen=True)
class MotionSpec:
    """How motion is estimated.

    Attributes:
        estimator: "dis", "dis_fast" or "dis_ultrafast", OpenCV's dense inverse search, on a CPU (`inverse_search` on
            other devices); "inverse_search" or "inverse_search_fine", tensor operations. None needs weights.
        short_side: frames that are larger still when the model sees them are shrunk to this short side first, px.
    """

    estimator: str = choice(*WEIGHTLESS, default="dis")
    short_side: int = ranged(DIS_MIN_SIZE_PX, 8192, 224)

    def __post_init__(self) -> None:
        check_settings(self)


class MotionEstimator:
    """Backward motion of a stream's frames, cheap enough to run beside the model.

    It only ever sees a frame and the one before: motion does not depend on how a clip is cut into chunks.
    """

    def __init__(self, spec: MotionSpec) -> None:
        self.flow: FlowEstimator = build_stream_flow(spec.estimator)
        self.short_side = spec.short_side

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in px that frames of that size are compared at."""
        ratio = min(1.0, self.short_side / min(height, width))
        return max(DIS_MIN_SIZE_PX, round(height * ratio)), max(DIS_MIN_SIZE_PX, round(width * ratio))

    @torch.no_grad()
    def __call__(self, clip: Tensor, before: Tensor | None = None, new: Tensor | None = None) -> tuple[Motion, Tensor]:
        """Estimate the motion of a chunk since the frame before each of its frames.

        Args:
            clip: `[B, N, 3, H, W]` in [0, 1].
            before: `[B, 3, h, w]`, the last frame of the chunk before, as returned; None: the chunk starts its streams.
            new: `[B]` bool, streams that start with this chunk, whose `before` is not read; None: none of them.

        Returns:
            the motion, and the last frame at the size that frames are compared at, `[B, 3, h, w]` float32.
        """
        size = self.frame_size(clip.shape[-2], clip.shape[-1])
        now = clip.flatten(0, 1).float()
        if now.shape[-2:] != size:
            now = F.interpolate(now, size, mode="bilinear", antialias=True)  # [B·N, 3, h, w]
        frames = now.unflatten(0, clip.shape[:2])
        if new is None:
            new = torch.full(clip.shape[:1], before is None, device=clip.device)
        is_new = new.view(-1, 1, 1, 1)
        first = frames[:, 0] if before is None else torch.where(is_new, frames[:, 0], before)
        earlier = torch.cat([first.unsqueeze(1), frames[:, :-1]], 1).flatten(0, 1)  # [B·N, 3, h, w], one frame back
        back, forth = both_ways(self.flow, now, earlier)
        trusted = consistency_mask(back, forth).unflatten(0, clip.shape[:2])
        trusted[:, 0] &= ~is_new  # nothing was seen before the first frame
        return Motion(back.unflatten(0, clip.shape[:2]), trusted), frames[:, -1]


class TokenWarp:
    """Brings what tokens carry from where they were to where they are: state of p ← state of p + flow(p).

    Values beyond the border are those at the border. The sums of a few tokens that this is run as `embedding_bag`,
    which is several times faster on wide states than `grid_sample` on images.

    Args:
        flow_px: `[B, 2, h, w]`, px of the token grid.
        trusted: `[B, 1, h, w]` bool; where False, states are zeroed: these tokens start again.
    """

    def __init__(self, flow_px: Tensor, trusted: Tensor) -> None:
        height, width = flow_px.shape[-2:]
        device = flow_px.device
        flow = torch.nan_to_num(flow_px.double())
        # Where each token was, in cells, [B, h, w]; in float64: the fraction keeps float32's digits.
        x = (torch.arange(width, device=device) + flow[:, 0]).clamp(0, width - 1)
        y = (torch.arange(height, device=device)[:, None] + flow[:, 1]).clamp(0, height - 1)
        self._trusted = trusted.flatten().unsqueeze(-1)
        first = torch.arange(flow.shape[0], device=device).view(-1, 1, 1) * (height * width)  # token of each sample
        self._linear = _taps(x, y, first, width, height, cubic=False)
        self._cubic = _taps(x, y, first, width, height, cubic=True)

    def __call__(self, tokens: Tensor, cubic: bool = False) -> Tensor:
        """Return `tokens [B·h·w, ...]` moved, in their dtype; bicubic keeps sharp what is moved again and again."""
        index, weight = self._cubic if cubic else self._linear
        table = tokens.flatten(1)  # [B·h·w, channels · states]
        weight = torch.where(self._trusted, weight, 0.0).to(table.dtype)  # [B·h·w, K²]
        if torch.compiler.is_compiling():  # no operator of ONNX
            return (table[index] * weight.unsqueeze(-1)).sum(1).view_as(tokens)
        return F.embedding_bag(index, table, per_sample_weights=weight, mode="sum").view_as(tokens)


def _taps(x: Tensor, y: Tensor, first: Tensor, width: int, height: int, cubic: bool) -> tuple[Tensor, Tensor]:
    """Return which tokens to sum and their weights, each `[B·h·w, K²]`, for positions x, y `[B, h, w]`."""
    columns, column_weights = _taps_1d(x, width, cubic)
    rows, row_weights = _taps_1d(y, height, cubic)
    index = first.unsqueeze(-1).unsqueeze(-1) + rows.unsqueeze(-1) * width + columns.unsqueeze(-2)
    weight = row_weights.unsqueeze(-1) * column_weights.unsqueeze(-2)
    # [B, h, w, K, K] → [B·h·w, K²]
    return index.flatten(0, 2).flatten(1), weight.flatten(0, 2).flatten(1)


def _taps_1d(position: Tensor, length: int, cubic: bool) -> tuple[Tensor, Tensor]:
    start = position.floor()
    f = (position - start).unsqueeze(-1)
    if cubic:
        offsets = torch.arange(-1, 3, device=position.device)
        distance = (f - offsets).abs()
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance * distance + 1
        far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
        weight = torch.where(distance <= 1, near, far)
    else:
        offsets = torch.arange(2, device=position.device)
        weight = torch.cat([1 - f, f], dim=-1)
    return (start.long().unsqueeze(-1) + offsets).clamp(0, length - 1), weight
