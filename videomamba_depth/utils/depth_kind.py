"""What a depth value means."""

from __future__ import annotations

from enum import Enum


class DepthKind(str, Enum):
    """The unit of a depth map; travels with every checkpoint, cache and output, and is never guessed."""

    RELATIVE = "affine_invariant_inverse_depth"
    """Inverse depth up to an unknown scale and shift; larger is nearer; no unit."""

    METRIC = "metric_depth_m"
    """Depth along the optical axis in meters; larger is farther."""
