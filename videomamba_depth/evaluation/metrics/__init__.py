"""How depth over time is judged: accuracy, geometry, stability and the guards, in one place to import from.

docs/evaluation.md explains each metric, what it can see and what it is blind to.
"""

from videomamba_depth.evaluation.metrics.accuracy import (
    ACCURACY_METRICS,
    ALIGNMENTS,
    MIN_DISPARITY,
    accuracy,
    aligned_depth_m,
    aligned_disparity,
    alignment_per_frame,
    mean_accuracy,
    valid_ground_truth,
)
from videomamba_depth.evaluation.metrics.geometry import tae, tae_z, temporal_gradient_error, usable_poses
from videomamba_depth.evaluation.metrics.score import Score, is_flat
from videomamba_depth.evaluation.metrics.sharpness_and_lag import (
    boundary_f1,
    edge_ratio,
    edge_threshold,
    frames_to_settle,
    lag_frames,
)
from videomamba_depth.evaluation.metrics.stability import (
    flicker2,
    optical_flow_warping,
    palindrome_drift,
    palindrome_indices,
    positive_log,
    relative_temporal_consistency,
    scale_jitter_and_drift,
    scale_series,
    static_variation,
)
from videomamba_depth.flow.clip_motion import ClipMotion, detect_cuts, estimate_motion

__all__ = [
    "ACCURACY_METRICS",
    "ALIGNMENTS",
    "MIN_DISPARITY",
    "ClipMotion",
    "Score",
    "accuracy",
    "aligned_depth_m",
    "aligned_disparity",
    "alignment_per_frame",
    "boundary_f1",
    "detect_cuts",
    "edge_ratio",
    "edge_threshold",
    "estimate_motion",
    "flicker2",
    "frames_to_settle",
    "is_flat",
    "lag_frames",
    "mean_accuracy",
    "optical_flow_warping",
    "palindrome_drift",
    "palindrome_indices",
    "positive_log",
    "relative_temporal_consistency",
    "scale_jitter_and_drift",
    "scale_series",
    "static_variation",
    "tae",
    "tae_z",
    "temporal_gradient_error",
    "usable_poses",
    "valid_ground_truth",
]
