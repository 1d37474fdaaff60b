"""What a depth value means, and what can be made of what."""

from __future__ import annotations

from enum import Enum

import numpy as np
import torch
from torch import Tensor

from videomamba_depth.utils.errors import UserError


class DepthKind(str, Enum):
    """The unit of a depth map; travels with every checkpoint, cache and output, and is never guessed.

    z is depth along the optical axis in meters; s > 0 and t are unknown and one pair for a whole video.
    """

    RELATIVE = "affine_invariant_inverse_depth"
    """s / z + t: inverse depth up to an unknown scale and shift; larger is nearer; no unit."""

    AFFINE_DEPTH = "affine_invariant_depth"
    """s · z + t: depth up to an unknown scale and shift; larger is farther; no unit."""

    SCALED_INVERSE = "scale_invariant_inverse_depth"
    """s / z: inverse depth up to an unknown scale; larger is nearer, 0 is infinitely far; no unit."""

    SCALED_DEPTH = "scale_invariant_depth"
    """s · z: depth up to an unknown scale; larger is farther; no unit."""

    METRIC = "metric_depth_m"
    """z: depth along the optical axis in meters; larger is farther."""

    @property
    def is_inverse(self) -> bool:
        """Whether larger is nearer."""
        return self in (DepthKind.RELATIVE, DepthKind.SCALED_INVERSE)

    @property
    def has_shift(self) -> bool:
        """Whether the value of a point that is infinitely far, or at the camera, is unknown."""
        return self in (DepthKind.RELATIVE, DepthKind.AFFINE_DEPTH)


_NEAR_PERCENT, _NEAREST = 5, 0.1
NEAREST_M = 1e-4
"""Least depth in meters that is turned into inverse depth: no camera sees so near."""

MODEL_KINDS = (DepthKind.RELATIVE, DepthKind.METRIC)
"""What students, their teachers and label caches can hold."""


def parse_kind(value: str, where: str) -> DepthKind:
    """Return the kind that a file or a key names.

    Raises:
        UserError: there is no such kind; the message begins with `where` and lists all.
    """
    try:
        return DepthKind(value)
    except ValueError:
        raise UserError(f"{where}: '{value}' is no kind of depth; choose from {all_kinds()}") from None


def require_model_kind(kind: DepthKind, what: str) -> DepthKind:
    """Return a kind that models can hold.

    Raises:
        UserError: it is one of the others; the message begins with `what`.
    """
    if kind not in MODEL_KINDS:
        raise UserError(
            f"{what} has depth of kind {kind.value}; models take {' or '.join(k.value for k in MODEL_KINDS)}"
        )
    return kind


def valid_depth(depth: np.ndarray, kind: DepthKind) -> np.ndarray:
    """Return depth as float32 in which whatever cannot be a value of its kind is NaN; the input is left alone.

    Not finite values never are one. Without an unknown shift, negative values are none either; nor is a depth of 0,
    while an inverse depth of 0 is infinitely far.
    """
    values = depth.astype(np.float32)
    wrong = ~np.isfinite(values)
    if not kind.has_shift:
        wrong |= values < 0 if kind.is_inverse else values <= 0
    if wrong.any():
        values[wrong] = np.nan
    return values


def can_convert(kind: DepthKind, to: DepthKind) -> bool:
    """Tell whether depth of one kind is, or can be turned into, depth of another without anything to align it to.

    An unknown shift is never lost, an unknown scale never found. With a shift there is no way between depth and
    inverse depth: 1 / (s·z + t) is no affine map of 1/z. That takes a reference: fit depth to it as depth (s, t), then
    invert.
    """
    return kind is to or not (kind.has_shift or to is DepthKind.METRIC)


def convert_depth(depth: np.ndarray, kind: DepthKind, to: DepthKind) -> np.ndarray:
    """Return depth [...] of one kind as another, float32, NaN where there is no valid value.

    Depth and inverse depth turn into each other as 1/x, nothing is added or scaled: 2 m becomes 0.5, which is the
    inverse depth in 1/m, thus also inverse depth up to a scale, and up to a scale and shift. Infinitely far points of
    an inverse depth have no depth: NaN.

    Raises:
        UserError: it cannot be done without a reference, see `can_convert`.
    """
    if not can_convert(kind, to):
        unknown = "shift" if kind.has_shift else "scale"
        raise UserError(f"{kind.value} cannot be turned into {to.value}: its {unknown} is unknown without a reference")
    values = valid_depth(depth, kind)
    if kind.is_inverse == to.is_inverse:
        return values
    with np.errstate(divide="ignore"):
        inverted = np.reciprocal(values)
    return valid_depth(inverted, to)


def least_inverted(depth: Tensor, kind: DepthKind, max_samples: int = 2**14) -> Tensor:
    """Return the least depth of each frame [B,...] that is turned into inverse depth, [B,1,...].

    It is a tenth of the 5th percentile of what is above 0, and in meters `NEAREST_M` at least: holes are often written
    as a depth near 0, whose inverse would outweigh all others. The least value itself does not count in the percentile:
    such holes share one, and may be more than a twentieth of the frame.

    Args:
        max_samples: pixels of a frame, about, that the percentile is taken of.
    """
    least = NEAREST_M if kind is DepthKind.METRIC else 0.0
    some = depth.flatten(1)[:, :: max(1, depth[0].numel() // max_samples)]
    some = torch.where(some > least, some, torch.nan)
    above = torch.where(some > some.nan_to_num(torch.inf).amin(1, keepdim=True), some, torch.nan)
    near = above.nanquantile(_NEAR_PERCENT / 100, 1)
    near = torch.where(near.isnan(), some.nanquantile(_NEAR_PERCENT / 100, 1), near)  # one value alone
    floor = (_NEAREST * near).nan_to_num(1.0).clamp_min(max(least, 1e-20))
    return floor.reshape(-1, *(1 for _ in depth.shape[1:]))


def all_kinds() -> str:
    """Return the values of all kinds, for messages."""
    return ", ".join(kind.value for kind in DepthKind)
