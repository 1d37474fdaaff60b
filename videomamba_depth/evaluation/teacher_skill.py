"""How much a depth model knows about single pictures: beside a constant and a ramp, on held-out worlds and RGB-D sets.

Everything is aligned per picture (scale and shift in inverse depth), so that no knowledge of units is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videomamba_depth.data.synthetic import SceneFamily, WorldConfig, iter_video
from videomamba_depth.evaluation.clips import EvaluationClip
from videomamba_depth.evaluation.metrics.accuracy import accuracy, aligned_disparity, valid_ground_truth
from videomamba_depth.evaluation.metrics.sharpness_and_lag import boundary_f1
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.metrics import clip_scale_and_shift

HELD_OUT_SEEDS = 5_000_000
"""First seed of the worlds that models are scored on; training scenes begin far above."""

MAX_DEPTH_M = {"rooms": 20.0, "courtyard": 30.0}
"""Ground truth beyond does not count: nothing in a room, the sky in the courtyard; 80 m elsewhere."""

Array = NDArray[np.float32]
Predict = Callable[[Tensor], Tensor]


def baseline(kind: str, height: int, width: int) -> Array:
    """Return the inverse depth [h,w] of a constant, or of a ramp that grows toward the lower edge."""
    if kind == "constant":
        return np.ones((height, width), np.float32)
    return np.repeat(np.linspace(1, 2, height, dtype=np.float32)[:, None], width, axis=1)


def picture_skill(inv_depth: Array, depth_m: Array, valid: NDArray[np.bool_], max_depth_m: float) -> dict[str, float]:
    """Return AbsRel and δ1 of one picture [h,w] against the truth, after its own alignment."""
    arguments = {"depth_kind": DepthKind.RELATIVE, "max_depth_m": max_depth_m}
    scores = accuracy(inv_depth[None], depth_m[None], valid[None], **arguments)["per_frame"]  # type: ignore[arg-type]
    return {name: scores[name] for name in ("abs_rel", "delta1")} if valid.any() else {}


def mean_skill(
    pictures: Iterable[tuple[Array, Array, NDArray[np.bool_]]], max_depth_m: float, *, edges: bool
) -> dict[str, float]:
    """Average over pictures (inverse depth, depth in m, valid), each [h,w].

    Returns abs_rel, delta1, the AbsRel of both baselines (constant, ramp), and with `edges` boundary_f1: of the aligned
    inverse depth against the true one, which must then be complete.
    """
    found: list[dict[str, float]] = []
    for inv_depth, depth_m, valid in pictures:
        scores = picture_skill(inv_depth, depth_m, valid, max_depth_m)
        if not scores:
            continue
        for kind in ("constant", "ramp"):
            scores[kind] = picture_skill(baseline(kind, *depth_m.shape), depth_m, valid, max_depth_m)["abs_rel"]
        if edges:
            truth = 1 / depth_m
            pair = clip_scale_and_shift(np.maximum(inv_depth, 1e-3), truth, np.ones_like(valid))
            scores["boundary_f1"] = boundary_f1(aligned_disparity(inv_depth, *pair)[None], truth[None]).value
        found.append(scores)
    return {name: round(float(np.nanmean([scores[name] for scores in found])), 4) for name in found[0]} if found else {}


def skill_on_worlds(
    predict: Predict, count: int, families: Iterable[str] = get_args(SceneFamily)
) -> dict[str, dict[str, float]]:
    """Score predict(rgb [b,3,h,w] in [0,1]) → inverse depth [b,1,h,w] on the first frame, with the default camera
    defects, of `count` held-out scenes of each family. Returns family → what `mean_skill` returns."""
    report = {}
    for family in families:
        config = WorldConfig(num_frames=1, family=family)  # type: ignore[arg-type]
        frames = [next(iter_video(HELD_OUT_SEEDS + i, config)) for i in range(count)]
        rgb = torch.from_numpy(np.stack([f.rgb for f in frames])).permute(0, 3, 1, 2).float() / 255
        inv_depth = torch.cat([predict(part) for part in rgb.split(16)])[:, 0].float().numpy()
        depth_m = np.stack([f.depth_m for f in frames])
        limit = MAX_DEPTH_M.get(family, 80.0)
        valid = np.stack(list(valid_ground_truth(depth_m, None, limit)))
        report[family] = mean_skill(zip(inv_depth, depth_m, valid, strict=True), limit, edges=True)
    return report


def skill_on_clips(predict: Predict, clips: Iterable[EvaluationClip]) -> dict[str, float]:
    """Score predict on every frame of RGB-D clips of one data set, at the size of its depth maps; mean over frames."""
    clips = list(clips)

    def pictures() -> Iterable[tuple[Array, Array, NDArray[np.bool_]]]:
        for clip in clips:
            assert clip.gt_depth_m is not None
            valid = valid_ground_truth(clip.gt_depth_m, clip.valid, clip.max_depth_m)
            for rgb, depth_m, known in zip(clip.frames, clip.gt_depth_m, valid, strict=True):
                tensor = torch.from_numpy(np.asarray(rgb)).permute(2, 0, 1)[None].float() / 255
                yield predict(tensor)[0, 0].float().numpy(), np.asarray(depth_m), np.asarray(known)

    return mean_skill(pictures(), max(clip.max_depth_m for clip in clips), edges=False)
