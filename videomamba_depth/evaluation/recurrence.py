"""What a stream remembers and for how long: a clip forward and back, and a stream across a cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.evaluation.metrics.score import Score, undefined
from videomamba_depth.evaluation.metrics.sharpness_and_lag import frames_to_settle
from videomamba_depth.evaluation.metrics.stability import palindrome_drift, palindrome_indices
from videomamba_depth.flow.frame_view import Frames, FrameView, on_disk

Stream = Callable[[Tensor], Tensor]
"""Maps the next frame, float32 [1,3,H,W] RGB in [0,1], to its depth [1,1,h,w]; may remember what came
before.
"""


def recurrence_scores(
    new_stream: Callable[[], Stream],
    stream: Stream,
    frames: Sequence[np.ndarray] | FrameView,
    depth: Frames,
    palindrome: bool,
    cut_frames: int,
    beginning: Sequence[np.ndarray] | None = None,
) -> dict[str, Score]:
    """Return what a stream remembers: back from the end of the clip, and across a cut of `cut_frames` frames.

    stream: stands at the end of the clip. frames: of the clip. depth: [F,H,W], what the stream gave for them.
    palindrome, cut_frames: see `Protocol`. beginning: the stream's own outputs [h,w] for the first `cut_frames` frames,
    before they were resized; None: a new stream is run over them.
    """
    scores: dict[str, Score] = {}
    if palindrome:
        scores["palindrome_drift"] = run_palindrome(stream, frames, (depth.shape[1], depth.shape[2]), depth)
    if cut_frames:
        scores["settle_after_cut"] = settle_after_own_cut(new_stream, frames, cut_frames, beginning)
    return scores


@torch.no_grad()
def run_palindrome(
    stream: Stream,
    frames: Sequence[np.ndarray] | FrameView,
    size: tuple[int, int],
    forward: Frames | None = None,
) -> Score:
    """Run a stream over the frames forward and back; return `palindrome_drift` at size (H, W) px.

    forward: what it gave for the frames in order, at that size, if it has just been run over them; else it is new.
    """
    num_frames = len(frames)
    order = palindrome_indices(num_frames)[0 if forward is None else num_frames :]
    (run,) = on_disk([resize_depth(stream(to_tensor(frames[i])), size)] for i in order)
    if forward is None:
        return palindrome_drift(run)
    whole = FrameView(lambda t: forward[t] if t < num_frames else run[t - num_frames], 2 * num_frames - 1)
    return palindrome_drift(whole)


@torch.no_grad()
def settle_after_cut(
    factory: Callable[[], Stream],
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    tolerance: float = 0.02,
    known: Sequence[np.ndarray] | None = None,
) -> Score:
    """Return for how many frames of `after` a stream that saw `before` differs from a new one
    (`frames_to_settle`).

    factory: returns a new stream. before, after: uint8 [H,W,3] frames of two shots, of one size. known: what a new
    stream gives for `after`, [h,w] each, if it has just been run over them.
    """
    carried = factory()
    for frame in before:
        carried(to_tensor(frame))
    outputs = np.stack([to_array(carried(to_tensor(frame))) for frame in after])
    if known is None:
        new = factory()
        known = [to_array(new(to_tensor(frame))) for frame in after]
    return frames_to_settle(outputs, np.stack(known), tolerance)


def settle_after_own_cut(
    factory: Callable[[], Stream],
    frames: Sequence[np.ndarray] | FrameView,
    num_frames: int,
    beginning: Sequence[np.ndarray] | None = None,
) -> Score:
    """Return `settle_after_cut` for a cut that every clip can be given: its end, upside down, then its beginning.

    Near and far change places over the cut, so the state is as wrong as it can be. num_frames: of each of both shots;
    half a clip at most. beginning: see `recurrence_scores`.
    """
    count = min(num_frames, len(frames) // 2)
    if count < 2:
        return undefined("fewer than four frames")
    end, first = ([frames[i] for i in range(start, start + count)] for start in (len(frames) - count, 0))
    known = None if beginning is None else beginning[:count]
    return settle_after_cut(factory, [frame[::-1, ::-1] for frame in end], first, known=known)


def keep_first(stream: Stream, num_frames: int, kept: list[np.ndarray]) -> Stream:
    """Return the stream, which puts its first outputs [h,w] into `kept` as it is run."""

    def step(frame: Tensor) -> Tensor:
        depth = stream(frame)
        if len(kept) < num_frames:
            kept.append(to_array(depth))
        return depth

    return step


def to_array(depth: Tensor) -> np.ndarray:
    """Return a stream's depth [1,1,h,w] as [h,w] float32."""
    return depth.float().cpu().numpy()[0, 0]


def to_tensor(frame: np.ndarray) -> Tensor:
    """Return a frame uint8 [H,W,3] as float32 [1,3,H,W] in [0,1]."""
    return torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 255.0


def resize_depth(depth: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Return a stream's depth [1,1,h,w] as [H,W] of `size`."""
    if depth.ndim != 4 or depth.shape[:2] != (1, 1):
        raise ValueError(f"a stream must return depth [1,1,H,W]; got {list(depth.shape)}")
    values = depth.detach().float().cpu()
    if tuple(values.shape[-2:]) != size:
        smaller = math.prod(size) < math.prod(values.shape[-2:])
        values = F.interpolate(values, size=size, mode="bilinear", align_corners=False, antialias=smaller)
    return values[0, 0].numpy()
