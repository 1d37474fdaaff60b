"""Whether a data set and recorded depth are read as they are meant, before a long evaluation: scale, pairing, units.

Ground truth is scored against itself, beside a constant, a blur, an average over time and the frame before, so that it
shows what each metric says on these clips; and whatever would be read wrongly is looked for in the numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from videomamba_depth.data.labels.label_checks import best_partners, found_shift, sign_agreement
from videomamba_depth.evaluation.clips import ClipSource, EvaluationClip, shrink_clip
from videomamba_depth.evaluation.context import frames_in_any_order
from videomamba_depth.evaluation.engine import Evaluator
from videomamba_depth.evaluation.methods import CONSTANT, Method, exponential_average
from videomamba_depth.evaluation.metrics.accuracy import MIN_DISPARITY, valid_ground_truth
from videomamba_depth.evaluation.metrics.geometry import tae_z
from videomamba_depth.evaluation.predictions import MAX_CLAMPED, Prediction, RecordedStream, percent
from videomamba_depth.evaluation.recurrence import resize_depth, to_tensor
from videomamba_depth.evaluation.report import metric_table, table_markdown
from videomamba_depth.evaluation.summary import mean_methods
from videomamba_depth.flow.frame_view import Frames
from videomamba_depth.utils.depth_kind import DepthKind, convert_depth
from videomamba_depth.utils.errors import UserError

TRUTH, BLUR, AVERAGE, LATE = "truth", "blur", "ema_0.5", "one_frame_late"
BLUR_SIGMA_PX = 3.0
NUM_CLIPS, NUM_FRAMES = 3, 24
"""How many clips, and frames of each, are looked at."""

_POSE_PAIRS = 8  # frames whose poses are held against the depth
_UNITS = (0.001, 0.01, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 1000.0)
_BETTER = 0.8  # a wrong reading is named where it leaves less than this share of the error
_PLAUSIBLE_M = (0.1, 100.0)  # of the median of a scene
_LIKE = 0.5  # least correlation of a prediction that is not questioned
_MOST_MISPLACED = 0.25  # of frames that fit another one better
_MOST_BEYOND = 0.2  # of the ground truth, beyond the range in which it counts
_MOST_CLAMPED = 0.03  # of inverse depth that the metrics' floor makes equally far
_LARGEST_RATIO = 2.0  # of a metric prediction to the truth, or its inverse


class Finding(NamedTuple):
    """What was looked at in a clip or a prediction, what was seen, and whether it looks wrong."""

    what: str
    seen: str
    wrong: bool = False

    def __str__(self) -> str:
        return f"{'WRONG?' if self.wrong else 'ok    '} {self.what}: {self.seen}"


def check_methods() -> list[Method]:
    """Return the ground truth as the reference, and what is made of it: each breaks what one kind of metric sees."""
    return [
        Method(TRUTH, on_clip=_TruthStream, kind=DepthKind.METRIC),
        _of_truth(CONSTANT, lambda depth: itertools.repeat(np.full_like(depth[0], np.median(depth[0])), len(depth))),
        _of_truth(BLUR, _blurred),
        _of_truth(AVERAGE, partial(exponential_average, alpha=0.5)),
        _of_truth(LATE, _late),
    ]


def check_clip(clip: EvaluationClip, predictions: Sequence[Prediction] = ()) -> list[Finding]:
    """Return what the first `NUM_FRAMES` frames of a clip, its ground truth and predictions of it look like.

    Raises:
        UserError: a frame or a prediction cannot be read, or they do not go together.
    """
    frames = frames_in_any_order(clip.frames, NUM_FRAMES)
    truth = None if clip.gt_depth_m is None else _known_depth(clip, len(frames))
    findings = []
    size = frames[0].shape[:2] if truth is None else truth.shape[1:]
    picture_edges = np.stack([_edges(cv2.resize(_gray(frames[t]), size[::-1])) for t in range(len(frames))])
    if truth is not None:
        findings += [_truth_finding(truth), *_beyond(clip, truth)]
        findings.append(_paired("pictures and ground truth", _edges_of(truth), picture_edges))
        findings += _pose_findings(clip, truth)
    for prediction in predictions:
        recorded = prediction.open(clip.name)
        stream = RecordedStream(prediction.name, recorded, replace(clip, frames=frames), len(frames))
        depth = np.stack([resize_depth(stream(to_tensor(frames[t])), size) for t in range(len(frames))])
        kind = stream.kind
        if stream.range.unit is not None:
            below = f"{percent(stream.range.below)} % of inverse depth below {MIN_DISPARITY:g}"
            seen = f"{below} in its own unit: the clip is brought into range as a whole"
            findings.append(Finding(f"{prediction.name}, range", seen))
        if kind is DepthKind.RELATIVE and (share := _clamped_share(depth)) > _MOST_CLAMPED:
            seen = f"{percent(share)} % of inverse depth below {MIN_DISPARITY:g} counts as equally far: broken pixels?"
            findings.append(Finding(f"{prediction.name}, floor", seen, wrong=True))
        if truth is None:
            edges = _edges_of(depth if not kind.is_inverse else 1.0 / np.maximum(depth, 1e-6))
            findings.append(_paired(f"{prediction.name}, pictures and depth", edges, picture_edges))
        else:
            findings += _prediction_findings(prediction.name, depth, kind, truth)
    return findings


def check_report(
    sources: Sequence[ClipSource], predictions: Sequence[Prediction], evaluator: Evaluator
) -> tuple[str, int]:
    """Return what is found on some clips, as text, and how many findings look wrong.

    evaluator: with the methods of `check_methods` and of the predictions.

    Raises:
        UserError: a clip or prediction cannot be read.
    """
    lines, wrong, results = [f"Check of {len(sources)} clips, at most {NUM_FRAMES} frames of each.", ""], 0, []
    for source in sources:
        clip = source.load()
        if evaluator.protocol.max_gt_side is not None:
            clip = shrink_clip(clip, evaluator.protocol.max_gt_side)
        findings = check_clip(clip, predictions)
        if clip.gt_depth_m is not None:
            results.append(evaluator.evaluate(source))
            findings += [] if source.stills else check_scores(results[-1])
        lines += [source.name, *(f"  {finding}" for finding in findings), ""]
        wrong += sum(finding.wrong for finding in findings)
    if results:
        flags = {name: sorted({f for r in results for f in r["flags"].get(name, [])}) for name in results[0]["methods"]}
        lines.append(
            table_markdown(metric_table("What the metrics say, means over these clips", mean_methods(results), flags))
        )
    verdict = f"{wrong} findings look wrong" if wrong else "nothing looks wrong"
    return "\n".join([*lines, f"{verdict}."]), wrong


def check_scores(clip: Mapping[str, Any]) -> list[Finding]:
    """Return whether the metrics of one clip see what they are meant to see.

    clip: a result of `Evaluator.evaluate` with the methods of `check_methods`.
    """

    def value(method: str, *metrics: str) -> float:
        scores = clip["methods"].get(method, {})
        return next((scores[metric].value for metric in metrics if metric in scores), math.nan)

    accuracy = ("abs_rel/metric", "abs_rel/per_frame")
    own, flat = value(TRUTH, *accuracy), value(CONSTANT, *accuracy)
    findings = [
        Finding(
            "accuracy",
            f"AbsRel of the truth {100 * own:.2f} %, of a constant {100 * flat:.1f} %",
            wrong=own >= 1e-3,
        )
    ]
    edges, late, smooth = value(BLUR, "edge_ratio"), value(LATE, "lag"), value(AVERAGE, "lag")
    few = "" if edges < 0.9 else ": edges say little here"
    findings.append(Finding("edges", f"a blur of {BLUR_SIGMA_PX:g} px keeps {edges:.2f} of them{few}"))
    if math.isfinite(late):
        blind = "" if 0.5 < late < 1.5 else ": too little moves, lag says little here"
        findings.append(
            Finding("lag", f"one frame late reads as {late:.2f} frames, an EMA of 0.5 as {smooth:.2f}{blind}")
        )
    return findings


def _of_truth(name: str, change: Callable[[Frames], Iterable[np.ndarray]]) -> Method:
    return Method(name, derive=lambda context: change(context.teacher))


def _blurred(depth: Frames) -> Iterator[np.ndarray]:
    return (cv2.GaussianBlur(np.asarray(frame), (0, 0), BLUR_SIGMA_PX) for frame in depth)


def _late(depth: Frames) -> Iterator[np.ndarray]:
    return itertools.chain([depth[0]], (depth[t - 1] for t in range(1, len(depth))))


class _TruthStream:
    """Gives the ground truth of a clip; what is not known is as far as the farthest of its frame."""

    def __init__(self, clip: EvaluationClip, max_frames: int | None) -> None:
        if clip.gt_depth_m is None:
            raise UserError(f"clip '{clip.name}' has no ground truth to be checked")
        self._clip, self._place = clip, 0

    def __call__(self, frame: Tensor) -> Tensor:
        depth = _known_depth(self._clip, 1, self._place)[0]
        self._place += 1
        known = np.isfinite(depth)
        depth[~known] = depth[known].max() if known.any() else self._clip.max_depth_m
        return torch.from_numpy(depth)[None, None]


def _known_depth(clip: EvaluationClip, num_frames: int, start: int = 0) -> np.ndarray:
    """Return ground truth float32 [N,h,w] m of frames from `start` on, NaN where it does not count."""
    assert clip.gt_depth_m is not None
    depth = np.stack([np.asarray(clip.gt_depth_m[t], np.float32) for t in range(start, start + num_frames)])
    valid = None if clip.valid is None else np.stack([clip.valid[t] for t in range(start, start + num_frames)])
    return np.where(valid_ground_truth(depth, valid, clip.max_depth_m)[:], depth, np.nan).astype(np.float32)


def _truth_finding(truth: np.ndarray) -> Finding:
    known = truth[np.isfinite(truth)]
    if not known.size:
        return Finding("ground truth", "nothing of it counts", wrong=True)
    low, middle, high = np.percentile(known, [5, 50, 95])
    seen = f"{100 * known.size / truth.size:.0f} % of pixels, {low:.3g} to {high:.3g} m, median {middle:.3g} m"
    if _PLAUSIBLE_M[0] <= middle <= _PLAUSIBLE_M[1]:
        return Finding("ground truth", seen)
    return Finding("ground truth", f"{seen}: a depth scale that is wrong by a power of ten?", wrong=True)


def _beyond(clip: EvaluationClip, truth: np.ndarray) -> list[Finding]:
    """Look for ground truth that does not count since it is too far, as where a depth scale is too small."""
    assert clip.gt_depth_m is not None
    depth = np.stack([np.asarray(clip.gt_depth_m[t], np.float32) for t in range(len(truth))])
    known = np.isfinite(depth) & (depth > 0)
    if clip.valid is not None:
        known &= np.stack([clip.valid[t] for t in range(len(truth))])
    share = float((depth[known] >= clip.max_depth_m).mean()) if known.any() else 0.0
    if share <= _MOST_BEYOND:
        return []
    seen = f"{percent(share)} % of the ground truth lies beyond max_depth_m={clip.max_depth_m:g}: another depth scale?"
    return [Finding("range", seen, wrong=True)]


def _paired(what: str, edges: np.ndarray, other: np.ndarray) -> Finding:
    """Look for another pairing of frames under which edges [N,h,w] coincide better."""
    shift = found_shift(edges, other)
    if not shift:
        return _misplaced(what, edges, other) or Finding(what, "their edges coincide best as they are paired")
    side = "a later" if shift > 0 else "an earlier"
    return Finding(what, f"depth has the edges of {side} picture, about {abs(shift)} away", wrong=True)


def _misplaced(what: str, mine: np.ndarray, other: np.ndarray) -> Finding | None:
    """Look for frames [N,h,w] that have their partner elsewhere, as in another order."""
    partners = best_partners(mine, other)
    if partners is None:
        return Finding(what, "too few frames, or too little moves: whether each belongs to its frame cannot be told")
    count = int((partners != np.arange(len(partners))).sum())
    if count <= _MOST_MISPLACED * len(partners):
        return None
    return Finding(what, f"{count} of {len(partners)} fit another frame better: another order?", wrong=True)


def _gray(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY).astype(np.float32)


def _edges_of(depth: np.ndarray) -> np.ndarray:
    """Return where log depth [N,h,w] jumps, NaN where it is not known."""
    return np.stack([_edges(np.log(np.maximum(frame, 1e-6))) for frame in depth])


def _edges(values: np.ndarray) -> np.ndarray:
    """Return the gradient's size [h,w], compressed, so that few strong edges do not decide alone."""
    size = np.hypot(cv2.Sobel(values, cv2.CV_32F, 1, 0), cv2.Sobel(values, cv2.CV_32F, 0, 1))
    middle = np.nanmedian(size) if np.isfinite(size).any() else 0.0
    return size / (size + 4 * middle + 1e-6)


def _pose_findings(clip: EvaluationClip, truth: np.ndarray) -> list[Finding]:
    """Look for another unit, order or direction of the poses under which the ground truth agrees with itself better."""
    intrinsics = clip.intrinsics
    if intrinsics is None or clip.camera_to_world is None:
        return []
    poses = np.asarray(clip.camera_to_world[: len(truth)], dtype=np.float64)
    count = min(len(truth), _POSE_PAIRS)
    depth, known = np.nan_to_num(truth), np.isfinite(truth)

    def error(poses: np.ndarray, scale: float = 1.0, start: int = 1) -> float:
        frames = slice(start, start + count)
        score = tae_z(scale * depth[1 : 1 + count], intrinsics, poses[frames], known[1 : 1 + count])
        return score.value if math.isfinite(score.value) else math.inf

    if len(truth) < count + 2:
        count = len(truth) - 2
    if count < 2 or not math.isfinite(own := error(poses)):
        return [Finding("poses", "too few finite ones, or no overlap")]
    inverse = poses.copy()
    finite = np.isfinite(poses).all(axis=(1, 2))
    inverse[finite] = np.linalg.inv(poses[finite])
    readings = {
        **{f"depth times {unit:g}, their units differ": error(poses, unit) for unit in _UNITS if unit != 1.0},
        "poses of the frame before": error(poses, start=0),
        "poses of the frame after": error(poses, start=2),
        "poses that lead from world to camera": error(inverse),
    }
    best = min(readings, key=lambda name: readings[name])
    if readings[best] < _BETTER * own:
        return [Finding("poses", f"error {own:.2f}, but {readings[best]:.2f} with {best}", wrong=True)]
    still = error(np.where(np.isfinite(poses), np.eye(4), poses))
    if own >= _BETTER * still:
        seen = f"error {own:.2f}, {still:.2f} with a camera that stands still: unit and order of poses cannot be told"
        return [Finding("poses", seen, wrong=own > still / _BETTER)]
    return [Finding("poses", f"error {own:.2f}; no other unit, order or direction fits better")]


def _clamped_share(depth: np.ndarray) -> float:
    """Return the share of inverse depth whose differences the metrics' floor takes away; the farthest has none."""
    low, high = np.percentile(depth, [25, 75])
    return float(np.mean((depth < MIN_DISPARITY - MAX_CLAMPED * (high - low)) & (depth > depth.min())))


def _prediction_findings(name: str, depth: np.ndarray, kind: DepthKind, truth: np.ndarray) -> list[Finding]:
    reference = convert_depth(truth, DepthKind.METRIC, kind)
    known = np.isfinite(reference)
    agreement = sign_agreement(np.where(known, depth, np.nan), reference)
    unlike = ", little like it: mirrored, or of other pictures?" if agreement < _LIKE else ""
    doubt = f": it is no {kind.value}" if agreement < 0 else unlike
    findings = [Finding(f"{name}, sign", f"correlation with the truth {agreement:.2f}{doubt}", wrong=agreement < 0)]
    if agreement < 0:
        return findings
    shift = found_shift(np.where(known, depth, np.nan), reference)
    side, pairing = "after" if shift > 0 else "before", f"{name}, pairing"
    if shift:
        findings.append(Finding(pairing, f"it fits the truth of the frame {abs(shift)} {side} better", wrong=True))
    else:
        misplaced = _misplaced(pairing, np.where(known, depth, np.nan), reference)
        findings.append(misplaced or Finding(pairing, "it fits no other frame better"))
    if kind is DepthKind.METRIC:
        ratio = float(np.median(depth[known] / truth[known]))
        off = not 1 / _LARGEST_RATIO < ratio < _LARGEST_RATIO
        unit = ": another unit?" if off else ""
        findings.append(Finding(f"{name}, meters", f"{ratio:.3g} times the truth, median{unit}", wrong=off))
    return findings
