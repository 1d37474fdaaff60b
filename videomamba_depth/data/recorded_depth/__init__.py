"""Depth that some program has recorded for a video, in whatever form it has written it."""

from videomamba_depth.data.recorded_depth.matching import match_frames
from videomamba_depth.data.recorded_depth.open import (
    RecordedDepth,
    find_mixed_up,
    find_recorded_depth,
    open_recorded_depth,
)

__all__ = ["RecordedDepth", "find_mixed_up", "find_recorded_depth", "match_frames", "open_recorded_depth"]
