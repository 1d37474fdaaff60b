"""Whether labels belong to the pictures: their sign and their frames, held against another model's depth of these."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np

from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

_DETAIL_SIGMA = 0.07  # of the short side: what is coarser than this hardly moves between two frames
_MAX_SHIFT = 2  # frames
_COMPARED_SIDE = 320  # px, of frames of which each is held against each
WRONG_SIGN = -0.2  # correlation with a model's depth below which labels are upside down
_UNRELATED = 0.1  # of its size, below which labels may be of something else; exact ones of a world had 0.19 and more
_FOUND_GAIN, _FOUND_ERRORS = 0.02, 3.0  # of correlation, and in standard errors: a shift that is no accident


class Sample(NamedTuple):
    """Consecutive frames of a video: its labels and a model's depth of the same kind, each [N,h,w]; NaN: no depth."""

    labels: np.ndarray
    model: np.ndarray


def check_labels(samples: Mapping[str, Sample]) -> None:
    """Refuse labels that hold no depth or one value alone, are upside down, or belong to the frame before or after.

    A shift shows where something moves, in detail that moves with it; labels of still pictures pass.

    Args:
        samples: by video.

    Raises:
        UserError: naming the video and the remedy.
    """
    if empty := [name for name, sample in samples.items() if not np.isfinite(sample.labels).any()]:
        raise UserError(
            f"data.labels: those of the first frames of {', '.join(empty)} hold no depth at all; check how they were"
            " written and data.labels_kind, or set data.labels_check=false"
        )
    if flat := [name for name, sample in samples.items() if _is_flat(sample.labels)]:
        raise UserError(
            f"data.labels: those of the first frames of {', '.join(flat)} hold one value alone; check how they were"
            " written, or set data.labels_check=false"
        )
    signs = {name: sign_agreement(*sample) for name, sample in samples.items()}
    agreed = [value for value in signs.values() if np.isfinite(value)]
    if agreed and np.median(agreed) < WRONG_SIGN:
        worst = min((name for name in signs if np.isfinite(signs[name])), key=lambda name: signs[name])
        raise UserError(
            f"data.labels: they seem upside down: their correlation with the encoder's own depth is"
            f" {np.median(agreed):.2f}, in {worst} {signs[worst]:.2f}; check data.labels_kind, or set"
            " data.labels_check=false"
        )
    if upside_down := [name for name, value in signs.items() if value < WRONG_SIGN]:
        raise UserError(
            f"data.labels: those of {', '.join(upside_down)} seem upside down: their correlation with the encoder's own"
            f" depth is {signs[upside_down[0]]:.2f}; check how they were written, or set data.labels_check=false"
        )
    if unrelated := [name for name, value in signs.items() if abs(value) < _UNRELATED]:
        log.warning(
            "data.labels: those of %s have little to do with the encoder's own depth (correlation %.2f); check them",
            ", ".join(unrelated), signs[unrelated[0]],
        )  # fmt: skip
    gains = {name: _shift_gains(*sample) for name, sample in samples.items()}
    pooled = [np.concatenate(parts) for parts in zip(*gains.values(), strict=True)] if gains else []
    for name, found in [*gains.items(), ("all videos together", pooled)]:
        if shift := _found_shift(found):
            side = "after" if shift > 0 else "before"
            raise UserError(
                f"data.labels: those of {name} seem to belong to the frame {abs(shift)} {side} theirs, as the encoder's"
                " own depth has it; check how they were written, or set data.labels_check=false"
            )


def _is_flat(labels: np.ndarray) -> bool:
    """Tell whether every frame [N,h,w] that holds depth holds one value alone."""
    known = [frame[np.isfinite(frame)] for frame in labels]
    return all(values.max() == values.min() for values in known if values.size)


def sign_agreement(labels: np.ndarray, model: np.ndarray) -> float:
    """Return the median over frames [N,h,w] of the correlation of two depths; NaN where there is none."""
    values = [_correlation(mine, other) for mine, other in zip(labels, model, strict=True)]
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else np.nan


def found_shift(labels: np.ndarray, model: np.ndarray) -> int:
    """Return k where the labels [N,h,w] of frame t are those of frame t + k, 0 where they fit or cannot be told."""
    return _found_shift(_shift_gains(labels, model))


def best_partners(labels: np.ndarray, model: np.ndarray) -> np.ndarray | None:
    """Return for the labels [N,h,w] of every frame which frame of the model's they fit best, int [N].

    It is their own unless another fits clearly better. None where the model's frames are too alike to tell.
    """
    mine, others = (_unit_details(depth) for depth in (labels, model))
    own = np.arange(len(labels))
    apart = np.abs(np.subtract.outer(own, own)) > _MAX_SHIFT
    if not apart.any() or np.median((others @ others.T)[apart]) > 1 - 2 * _FOUND_GAIN:
        return None
    fits = mine @ others.T
    best = fits.argmax(axis=1)
    return np.where(fits[own, best] - fits[own, own] > _FOUND_GAIN, best, own)


def _unit_details(depth: np.ndarray) -> np.ndarray:
    """Return the detail of frames [N,h,w] as vectors [N,P] of mean 0 and length 1, 0 where there is no depth."""
    step = -(-max(depth.shape[1:]) // _COMPARED_SIDE)
    values = np.stack([_detail(frame[::step, ::step]).ravel() for frame in depth]).astype(np.float64)
    count = np.maximum(np.isfinite(values).sum(axis=1, keepdims=True), 1)
    values = np.nan_to_num(values - np.nansum(values, axis=1, keepdims=True) / count)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _shift_gains(labels: np.ndarray, model: np.ndarray) -> list[np.ndarray]:
    """Return for each shift but 0 how much better labels [N] fit the model's frame at that distance than their own."""
    details = [[_detail(frame) for frame in depth] for depth in (labels, model)]
    middle = range(_MAX_SHIFT, len(labels) - _MAX_SHIFT)
    fits = {
        shift: np.array([_correlation(details[0][t], details[1][t + shift]) for t in middle])
        for shift in range(-_MAX_SHIFT, _MAX_SHIFT + 1)
    }
    return [fits[shift] - fits[0] for shift in _shifts()]


def _found_shift(gains: list[np.ndarray]) -> int:
    best = 0, 0.0
    for shift, gain in zip(_shifts(), gains, strict=False):
        known = gain[np.isfinite(gain)]
        if len(known) < 2 * _MAX_SHIFT:
            continue
        mean, error = float(known.mean()), float(known.std(ddof=1)) / len(known) ** 0.5
        if mean > max(_FOUND_GAIN, _FOUND_ERRORS * error, best[1]):
            best = shift, mean
    return best[0]


def _shifts() -> list[int]:
    return [shift for shift in range(-_MAX_SHIFT, _MAX_SHIFT + 1) if shift != 0]


def _detail(depth: np.ndarray) -> np.ndarray:
    """Return a frame [h,w] without what is coarse; NaN where it was, counted as the frame's mean."""
    known = np.isfinite(depth)
    filled = np.where(known, depth, depth[known].mean() if known.any() else 0).astype(np.float32)
    detail = filled - cv2.GaussianBlur(filled, (0, 0), _DETAIL_SIGMA * min(depth.shape))
    return np.where(known, detail, np.nan)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 2:
        return np.nan
    x, y = (values[known].astype(np.float64) - values[known].mean(dtype=np.float64) for values in (a, b))
    spread = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / spread) if spread > 0 else np.nan
