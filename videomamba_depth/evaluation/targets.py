"""Judge training targets against exact ground truth: what smoothing and parallax make of a teacher's depth."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch

from videomamba_depth.data.labels.geometry import geometric_clip
from videomamba_depth.data.labels.stabilize import stabilize_clip
from videomamba_depth.evaluation.hard_worlds import HARD_CONDITIONS, render_hard_world
from videomamba_depth.evaluation.judge import Judge
from videomamba_depth.evaluation.metrics.accuracy import (
    MIN_DISPARITY,
    aligned_disparity,
    valid_ground_truth,
)
from videomamba_depth.evaluation.metrics.sharpness_and_lag import boundary_f1
from videomamba_depth.evaluation.paired import Estimate, estimate
from videomamba_depth.evaluation.worlds import KIND_SEEDS, World, WorldSpec, load_world
from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.utils.metrics import clip_scale_and_shift

KINDS = ("moving", "fast", "static")
RELATIVE = ("abs_rel/video", "abs_rel/first_frame", "abs_rel/per_frame", "abs_rel/fast_pixels", "tge", "gradient_error")
ABSOLUTE = {"boundary_f1": 1.0, "delta1": 100.0}
DIGITS = {"boundary_f1": 3}
EDGE_OF_RANGE = 0.03  # of the true inverse depth's range: step between neighbours that counts as an edge

Rows = dict[str, dict[str, float]]


def score_targets(
    kind: str,
    seed: int,
    family: str,
    encoder: DepthAnythingEncoder,
    flow: FlowEstimator,
    *,
    cache: Path,
    frames: int = 48,
    size: tuple[int, int] = (112, 140),
    radius: int = 8,
    sigma: float = 5.0,
    max_depth_m: float = 30.0,
) -> Rows:
    """Return {row: {metric: value}} of the teacher, stabilized and geometric targets on one world.

    Args:
        kind: of `KINDS` or `HARD_CONDITIONS`. cache: folder of the worlds of `KINDS`.
    """
    if kind in HARD_CONDITIONS:
        world = render_hard_world(kind, seed, family, frames, size)
    else:
        world = load_world(cache, WorldSpec(kind, seed + KIND_SEEDS[kind], frames, family, *size), flow)
    clip = torch.from_numpy(np.array(world.rgb)).permute(0, 3, 1, 2).float() / 255
    teacher = torch.cat([encoder.predict_depth(part) for part in clip.split(8)])
    judge = Judge(world, teacher[:, 0].numpy(), max_depth_m)
    rows: Rows = {"teacher": _scores(judge, world, teacher, max_depth_m)}
    for name, make in (("stabilised", stabilize_clip), ("geometry", geometric_clip)):
        started = time.process_time()
        made = make(teacher, clip, flow, radius=radius, sigma=sigma, depth_kind=encoder.depth_kind)
        seconds = time.process_time() - started
        rows[name] = {**_scores(judge, world, made, max_depth_m), "seconds": seconds}
    return rows


def _scores(judge: Judge, world: World, depth: torch.Tensor, max_depth_m: float) -> dict[str, float]:
    """Return the judge's scores, with the error of the spatial gradient, δ1 and edges against the truth."""
    row = depth[:, 0].numpy()
    valid = valid_ground_truth(world.depth_m, None, max_depth_m)[:]
    gt = np.where(valid, 1 / np.maximum(np.asarray(world.depth_m), 1e-3), 0.0).astype(np.float32)
    scale, shift = clip_scale_and_shift(np.maximum(row, MIN_DISPARITY), gt, valid)
    aligned = aligned_disparity(row, scale, shift).astype(np.float32)
    errors = []
    for axis in (1, 2):
        inside = np.take(valid, range(1, valid.shape[axis]), axis) & np.take(valid, range(valid.shape[axis] - 1), axis)
        errors.append(float(np.abs(np.diff(aligned, axis=axis) - np.diff(gt, axis=axis))[inside].mean()))
    low, high = np.percentile(gt[valid], [1, 99])
    edges = boundary_f1(np.where(valid, aligned, 0.0), gt, threshold=EDGE_OF_RANGE * float(high - low)).value
    ratio = np.maximum(aligned / np.maximum(gt, 1e-6), gt / np.maximum(aligned, 1e-6))
    return {
        **judge.scores(row),
        "gradient_error": sum(errors),
        "boundary_f1": edges,
        "delta1": float((ratio < 1.25)[valid].mean()),
    }


def compare_targets(videos: list[Rows], name: str) -> dict[str, Estimate]:
    """Return the paired change of a row against the teacher: per cent, or a difference (`ABSOLUTE`)."""
    found = {}
    for metric in RELATIVE:
        found[metric] = estimate([100 * (v[name][metric] / v["teacher"][metric] - 1) for v in videos])
    for metric, factor in ABSOLUTE.items():
        found[metric] = estimate([factor * (v[name][metric] - v["teacher"][metric]) for v in videos])
    worst = max(100 * (v[name]["abs_rel/video"] / v["teacher"]["abs_rel/video"] - 1) for v in videos)
    found["worst"] = Estimate(worst, float("nan"), len(videos))
    found["seconds"] = estimate([v[name]["seconds"] for v in videos])
    return found


def targets_markdown(results: dict[str, list[Rows]]) -> str:
    """Return a table, two lines per kind of world: changes against the teacher, mean ± standard error."""
    columns = (*RELATIVE, *ABSOLUTE, "worst", "seconds")
    lines = ["| worlds | target | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for kind, videos in results.items():
        for name in ("stabilised", "geometry"):
            found = compare_targets(videos, name)
            cells = " | ".join(_cell(found[column], DIGITS.get(column, 1)) for column in columns)
            lines.append(f"| {kind} ({len(videos)}) | {name} | {cells} |")
    return "\n".join(lines)


def _cell(found: Estimate, digits: int) -> str:
    if not math.isfinite(found.value):
        return "–"
    spread = f" ± {found.std_error:.{digits}f}" if math.isfinite(found.std_error) else ""
    return f"{found.value:+.{digits}f}{spread}"
