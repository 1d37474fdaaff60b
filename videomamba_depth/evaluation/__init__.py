"""Score depth over time: clips and methods in, tables out. See docs/evaluation.md."""

from videomamba_depth.evaluation.clips import ClipSource, EvaluationClip, clip_from_synthetic, shrink_clip
from videomamba_depth.evaluation.datasets.rgbd import load_rgbd
from videomamba_depth.evaluation.engine import Evaluator, Protocol, evaluate_clips
from videomamba_depth.evaluation.methods import Method, filter_methods
from videomamba_depth.evaluation.report import to_markdown, write_csv, write_json, write_markdown

__all__ = [
    "ClipSource",
    "EvaluationClip",
    "Evaluator",
    "Method",
    "Protocol",
    "clip_from_synthetic",
    "evaluate_clips",
    "filter_methods",
    "load_rgbd",
    "shrink_clip",
    "to_markdown",
    "write_csv",
    "write_json",
    "write_markdown",
]
