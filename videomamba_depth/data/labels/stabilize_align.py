"""One scale and shift per frame, so that the frames of a clip fit one another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.labels.pixel_trajectories import ClipTracks
from videomamba_depth.data.labels.tensor_tracks import TensorTracks

Doubles = NDArray[np.float64]

SAMPLES = 500  # pixels per frame; plenty for two numbers
MIN_SAMPLES = 16  # per triple
NUM_UPDATES = 4  # of the robust weights
STRIDES = (1, 2, 4)  # frames between those of a triple
PRIOR = 100.0  # pull toward (1, 0): 1 / (independent samples per frame · variance of the jitter)
OUTLIER = 2.0  # residual, in robust standard deviations, at which a pixel's weight is a quarter
SLOW_FRAMES = 4.0  # std of the window over which change counts as slow
SECOND_DIFFERENCE = np.array([0.5, -1.0, 0.5])


class _Triple(NamedTuple):
    """Depth along the trajectories that three evenly spaced frames share."""

    frames: NDArray[np.int64]  # [3]
    depth: Doubles  # [3, P], centered and in units of the clip's spread


def fit_frame_affines(tracks: ClipTracks | TensorTracks, fit_scale: bool = True) -> tuple[Doubles, Doubles]:
    """Solve (s_t, b_t), so that s_t · d_t + b_t runs straight along trajectories: the flicker of whole frames goes.

    Minimizes Σ_k Σ_t mean_p ρ(½ A_{t−k} − A_t + ½ A_{t+k}) + `PRIOR` · σ² · Σ_t ((s_t − 1)² + b_t²), k of `STRIDES`, by
    reweighted least squares on the normal equations, with A_t = s_t · d_t + b_t on the trajectory through p, d in units
    of the clip's spread about its center, ρ Geman–McClure's and σ the robust residual. A first difference in place of
    the second would take the true change of depth before a moving camera for a change of scale, and flatten it. Curved
    true change still pulls (s_t, b_t) along, slowly: only the part of them that is fast in time is used. Slow changes
    of scale and shift cannot be distinguished from motion and stay as the teacher has them.

    Args:
        tracks: of the clip.
        fit_scale: False keeps every s_t = 1, for depth whose logarithm was taken.

    Returns:
        scale, shift: [N] float64, with mean(scale) = 1 and Σ_t of the shifts at the clip's center = 0: the clip as a
        whole keeps the teacher's scale and shift. (1, 0) where no trajectory can be trusted.
    """
    num_frames = tracks.shape[0]
    center, spread = _center_and_spread(tracks)
    triples = _collect(tracks, center, spread)
    scale, shift = np.ones(num_frames), np.zeros(num_frames)
    if not triples:
        return scale, shift
    # Hardly any pull at first: what is left then is what no affine explains, the noise that the prior goes by.
    for strength in (1e-3 * PRIOR, *[PRIOR] * (NUM_UPDATES - 1)):
        scale, shift = _solve(triples, scale, shift, strength, fit_scale)
    scale, shift = 1 + _fast_part(scale), _fast_part(shift)
    return scale, center * (1 - scale) + spread * shift


def _fast_part(series: Doubles) -> Doubles:
    """Return what is left of a series [N] after a local linear fit with a Gaussian window, with mean 0."""
    offset = np.subtract.outer(np.arange(len(series)), np.arange(len(series))).astype(np.float64)  # [N,N] frames
    weight = np.exp(-0.5 * (offset / SLOW_FRAMES) ** 2)
    # The line of a weighted least-squares fit, at its own frame: slow changes are motion, not flicker.
    w0, w1, w2 = weight.sum(1), (weight * offset).sum(1), (weight * offset**2).sum(1)
    y0, y1 = weight @ series, (weight * offset) @ series
    fast: Doubles = series - (w2 * y0 - w1 * y1) / (w0 * w2 - w1**2)
    return fast - fast.mean()


def sample_step(height: int, width: int) -> int:
    """Return n ≥ 1 such that every n-th row and column makes about `SAMPLES` pixels per frame."""
    return max(1, int((height * width / SAMPLES) ** 0.5))


def _center_and_spread(tracks: ClipTracks | TensorTracks) -> tuple[float, float]:
    step = sample_step(*tracks.shape[1:])
    values = tracks.every(step).astype(np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    center = float(np.median(values))
    spread = float(np.abs(values - center).mean())
    return center, spread if spread > 0 else 1.0


def _collect(tracks: ClipTracks | TensorTracks, center: float, spread: float) -> list[_Triple]:
    num_frames, height, width = tracks.shape
    radius, step = max(STRIDES), sample_step(height, width)
    triples = []
    for frame in range(1, num_frames - 1):
        depth, trust = tracks.follow(frame, radius, step)
        for stride in STRIDES:
            offsets = np.array([-stride, 0, stride])
            common = (trust[radius + offsets] > 0.5).all(0)
            if common.sum() >= MIN_SAMPLES:
                values = depth[radius + offsets][:, common].astype(np.float64)
                triples.append(_Triple(frame + offsets, (values - center) / spread))
    return triples


def _solve(
    triples: list[_Triple], scale: Doubles, shift: Doubles, prior: float, fit_scale: bool
) -> tuple[Doubles, Doubles]:
    """Take one step of reweighted least squares from (scale, shift)."""
    num_frames = len(scale)
    residuals = [SECOND_DIFFERENCE @ (scale[t.frames, None] * t.depth + shift[t.frames, None]) for t in triples]
    # A floor far below any flicker keeps a clip without residuals from dividing by 0.
    noise = 1.4826 * float(np.median(np.abs(np.concatenate(residuals)))) + 1e-6
    pull = prior * noise**2
    normal = pull * np.eye(2 * num_frames)  # over (s_0 … s_{N−1}, b_0 … b_{N−1})
    right = np.concatenate([np.full(num_frames, pull), np.zeros(num_frames)])
    if not fit_scale:
        normal[np.arange(num_frames), np.arange(num_frames)] += 1e9  # pins every scale to 1
        right[:num_frames] += 1e9
    num_pixels = max(t.depth.shape[1] for t in triples)
    for triple, residual in zip(triples, residuals, strict=True):
        weight = 1 / (1 + (residual / (OUTLIER * noise)) ** 2) ** 2  # [P], Geman and McClure's
        by_scale = SECOND_DIFFERENCE[:, None] * triple.depth
        by_shift = np.broadcast_to(SECOND_DIFFERENCE[:, None], by_scale.shape)
        jacobian = np.concatenate([by_scale, by_shift])  # [6, P]
        unknowns = np.concatenate([triple.frames, num_frames + triple.frames])
        normal[np.ix_(unknowns, unknowns)] += (jacobian * weight) @ jacobian.T / num_pixels
    solution = np.linalg.solve(normal, right)
    return solution[:num_frames], solution[num_frames:]
