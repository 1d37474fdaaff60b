"""Judge depth over time: clips in, tables out. See docs/evaluation.md."""

from videomamba_depth.evaluation.baselines import default_baselines
from videomamba_depth.evaluation.clips import ClipSource, EvaluationClip, clip_from_synthetic, shrink_clip
from videomamba_depth.evaluation.datasets.rgbd import load_rgbd
from videomamba_depth.evaluation.memory import run_palindrome, settle_after_cut, settle_after_own_cut
from videomamba_depth.evaluation.protocol import evaluate_video, evaluate_videos
from videomamba_depth.evaluation.report import to_jsonable, to_markdown, write_json, write_markdown
from videomamba_depth.evaluation.summary import mean_rows, verdict

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
