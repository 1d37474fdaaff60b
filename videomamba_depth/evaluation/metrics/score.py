"""A metric's value together with what it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from videomamba_depth.flow.frame_view import Frames, FrameView, mapped, remembered

MIN_RELATIVE_SPREAD = 1e-3


@dataclass(frozen=True)
class Score:
    """One number, and how far to believe it.

    value: the metric; NaN when it is not defined, never a number that looks perfect.
    coverage: share in [0,1] of the pixels (of the usable frames or pairs) that it was measured on.
    reason: why `value` is NaN; empty otherwise.
    """

    value: float
    coverage: float = 1.0
    reason: str = ""

    def __float__(self) -> float:
        return self.value


def undefined(reason: str, coverage: float = 0.0) -> Score:
    """Return a NaN score that says why."""
    return Score(math.nan, coverage, reason)


def mean_score(values: list[float], coverage: list[float], reason: str) -> Score:
    """Average per-frame or per-pair values; NaN with `reason` when there are none."""
    if not values:
        return undefined(reason)
    value = float(np.mean(values))
    if not math.isfinite(value):
        return Score(math.nan, float(np.mean(coverage)), "the prediction is not finite")
    return Score(value, float(np.mean(coverage)))


def as_frames(name: str, values: Any) -> Frames:
    """Return [F,H,W] as frames to be read one by one, from numpy or torch, [F,H,W] or [F,1,H,W], or from a
    `FrameView`; dtype is kept.
    """
    if isinstance(values, FrameView):
        if len(values.shape) != 3:
            raise ValueError(f"{name} must have shape [F,H,W]; got {list(values.shape)}")
        return values
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 3:
        raise ValueError(f"{name} must have shape [F,H,W] or [F,1,H,W]; got {list(array.shape)}")
    return array


def as_mask(name: str, values: Any, like: Frames) -> Frames:
    """Return a bool mask shaped like `like`; None stands for everywhere."""
    if values is None:
        return mapped(lambda frame: np.ones(frame.shape, dtype=bool), like)
    mask = as_frames(name, values)
    if mask.dtype != np.bool_:
        raise TypeError(f"{name} must be a bool mask; got {mask.dtype}")
    if mask.shape != like.shape:
        raise ValueError(f"{name} must have shape {list(like.shape)}; got {list(mask.shape)}")
    return mask


@remembered
def is_flat(frames: Iterable[np.ndarray], min_relative_spread: float = MIN_RELATIVE_SPREAD) -> bool:
    """Return whether the frames [F,H,W] carry no picture: spatial std below a share of their root mean
    square.

    A constant wins every stability metric, so those metrics refuse it. Not finite counts as not flat.
    """
    both = [(np.std(frame, dtype=np.float64), np.mean(np.square(frame, dtype=np.float64))) for frame in frames]
    spread, size = np.mean([std for std, _ in both]), math.sqrt(float(np.mean([square for _, square in both])))
    return bool(spread <= min_relative_spread * size)
