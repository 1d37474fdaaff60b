"""Judge depth over time: clips in, tables out. See docs/evaluation.md."""

from .baselines import default_baselines
from .clips import ClipSource, EvaluationClip, clip_from_synthetic, shrink_clip
from .memory import run_palindrome, settle_after_cut, settle_after_own_cut
from .protocol import evaluate_video, evaluate_videos
from .report import to_jsonable, to_markdown, write_json, write_markdown
from .rgbd import load_rgbd
from .summary import mean_rows, verdict

__all__ = [
    "ClipSource",
    "EvaluationClip",
    "clip_from_synthetic",
    "default_baselines",
    "evaluate_video",
    "evaluate_videos",
    "load_rgbd",
    "mean_rows",
    "run_palindrome",
    "settle_after_cut",
    "settle_after_own_cut",
    "shrink_clip",
    "to_jsonable",
    "to_markdown",
    "verdict",
    "write_json",
    "write_markdown",
]
