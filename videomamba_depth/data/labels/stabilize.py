"""Stabilized targets: non-causal temporal smoothing of the teacher's depth along optical flow.

A per-frame teacher flickers in two ways: whole frames change scale and shift, and every region wobbles on its own. Both
are noise about a trend: where the camera or an object moves, depth along a trajectory truly changes, and that must
stay. So nothing here pulls values toward equality; everything pulls them toward a straight line in time:

1. one (scale, shift) per frame, chosen so that depth along trajectories runs straight (`stabilize_align`);
2. a robust local linear fit, in place of each value, to the values that the same point of the scene has in the frames
   around it (a Savitzky–Golay filter along trajectories).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from videomamba_depth.data.labels.pixel_trajectories import ClipTracks, Floats
from videomamba_depth.data.labels.stabilize_align import fit_frame_affines, sample_step
from videomamba_depth.data.labels.tensor_tracks import TensorTracks, smooth_tracks
from videomamba_depth.flow.clip_motion import cuts_of_clip
from videomamba_depth.flow.estimators import FlowEstimator, both_ways
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.flow_utils import trust_mask

SLOPE_RIDGE = 0.5  # frames²; holds the slope back where a window is too short to tell a slope from noise
ENOUGH_WEIGHT = 1.0  # of trusted neighbors, each 0 to 1, from which on a fit stands alone
OUTLIER = 10.0  # noise standard deviations off the fit at which a value weighs a quarter
FILL_SIGMA_PX = 3.0  # reach of the corrections from trusted pixels into those without trusted neighbors
MIN_METRIC_DEPTH_M = 1e-3


def stabilize_depth(
    depth: Tensor,
    flow_fwd: Tensor,
    flow_bwd: Tensor,
    trusted_fwd: Tensor,
    trusted_bwd: Tensor,
    *,
    radius: int = 4,
    sigma: float = 2.5,
    depth_kind: DepthKind = DepthKind.RELATIVE,
) -> Tensor:
    """Return the clip's depth without its flicker, with the teacher's scale and shift.

    Args:
        depth: [N,1,H,W] floating point, a teacher's, any N ≥ 1; values that are not finite stay and are used nowhere.
        flow_fwd, flow_bwd: [N,2,H,W] px, t → t+1 and t → t−1; the last and the first frame's are not read.
        trusted_fwd, trusted_bwd: [N,1,H,W] bool: the pixel is seen there and its flow can be trusted; False across
            cuts.
        radius: frames to either side that a value is fitted to; 0 only aligns the frames.
        sigma: of the Gaussian weight over those frames, in frames.
        depth_kind: metric depth is treated as its logarithm, since its noise grows with depth, and gets a factor per
            frame in place of scale and shift.

    Returns:
        [N,1,H,W] float32 on depth's device. Pixels without trusted neighbors in time keep the aligned raw value, and
        take over the correction of trusted pixels within a few px only. N = 1, or nothing trusted: the input. Positive
        affine changes of relative depth, and positive factors of metric depth, pass through.

    Raises ValueError on shapes that disagree. On a CPU it runs frame by frame in OpenCV, elsewhere as tensor operations
    on all frames, of which the scales and shifts alone are solved on the host (`stabilize_tensors`).
    """
    _check(depth, flow_fwd, flow_bwd, trusted_fwd, trusted_bwd)
    if radius < 0 or sigma <= 0:
        raise ValueError(f"radius must be ≥ 0 and sigma > 0; got {radius} and {sigma}")
    if len(depth) == 1:
        return depth.detach().float().clone()
    metric = depth_kind is DepthKind.METRIC
    if depth.device.type != "cpu":
        return stabilize_tensors(depth, flow_fwd, flow_bwd, trusted_fwd, trusted_bwd, radius, sigma, metric)
    raw = depth.detach().float()[:, 0].numpy()  # [N,H,W]
    values = np.log(np.maximum(raw, MIN_METRIC_DEPTH_M)) if metric else raw  # noise of one size everywhere
    tracks = ClipTracks(
        values,
        *(flow.detach().float().cpu().numpy() for flow in (flow_fwd, flow_bwd)),
        *(mask.detach().cpu().numpy()[:, 0] for mask in (trusted_fwd, trusted_bwd)),
    )
    tracks.rescale(*fit_frame_affines(tracks, fit_scale=not metric))
    smooth = _smooth(tracks, radius, sigma) if radius > 0 else tracks.depth
    if metric:
        smooth = np.exp(smooth)
    return torch.from_numpy(np.where(np.isfinite(raw), smooth, raw))[:, None]


@torch.no_grad()
def stabilize_tensors(
    depth: Tensor,
    flow_fwd: Tensor,
    flow_bwd: Tensor,
    trusted_fwd: Tensor,
    trusted_bwd: Tensor,
    radius: int,
    sigma: float,
    metric: bool,
) -> Tensor:
    """Return `stabilize_depth` of N > 1 frames by tensor operations on depth's device; arguments as there.

    On a CPU it is the same to rounding, but beside undefined pixels (`tensor_tracks`), and 4 to 7 times slower.
    """
    raw = depth.float()[:, 0]
    values = raw.clamp(min=MIN_METRIC_DEPTH_M).log() if metric else raw
    flows, masks = (flow_fwd.float(), flow_bwd.float()), (trusted_fwd[:, 0], trusted_bwd[:, 0])
    tracks = TensorTracks(values, *flows, *masks)
    tracks.rescale(*fit_frame_affines(tracks, fit_scale=not metric))
    smooth = tracks.depth
    if radius > 0:
        about = {"slope_ridge": SLOPE_RIDGE, "enough": ENOUGH_WEIGHT, "fill_px": FILL_SIGMA_PX}
        smooth = smooth_tracks(tracks, radius, sigma, OUTLIER * _noise(tracks), **about)
    smooth = smooth.exp() if metric else smooth
    return torch.where(raw.isfinite(), smooth, raw)[:, None]


def stabilize_clip(
    depth: Tensor,
    clip: Tensor,
    flow: FlowEstimator,
    *,
    radius: int = 4,
    sigma: float = 2.5,
    depth_kind: DepthKind = DepthKind.RELATIVE,
) -> Tensor:
    """Return `stabilize_depth` of a clip whose motion is estimated here, both ways; nothing is carried over a cut.

    Args:
        depth: [N,1,H,W]. clip: [N,3,H,W] RGB in [0,1] of the same size: what the teacher saw.
        flow: the estimator. The others: see `stabilize_depth`.
    """
    if clip.ndim != 4 or clip.shape[1] != 3 or clip.shape[0] != depth.shape[0] or clip.shape[-2:] != depth.shape[-2:]:
        raise ValueError(f"clip must be [N,3,H,W] of depth's size {list(depth.shape)}; got {list(clip.shape)}")
    flows = [torch.zeros(len(clip), 2, *clip.shape[-2:], device=clip.device) for _ in range(2)]
    trusted = [torch.zeros_like(clip[:, :1], dtype=torch.bool) for _ in range(2)]
    if len(clip) > 1:
        now, following = clip[:-1], clip[1:]
        forth, back = both_ways(flow, now, following)
        flows[0][:-1], flows[1][1:] = forth, back
        trusted[0][:-1] = trust_mask(now, following, forth, back)
        trusted[1][1:] = trust_mask(following, now, back, forth)
        whole = ~cuts_of_clip(clip)[:, None, None, None]
        trusted[0][:-1] &= whole[1:]
        trusted[1] &= whole
    return stabilize_depth(depth, *flows, *trusted, radius=radius, sigma=sigma, depth_kind=depth_kind)


def _smooth(tracks: ClipTracks, radius: int, sigma: float) -> Floats:
    """Return [N,H,W], every value moved to the robust local linear fit along its trajectory."""
    noise = _noise(tracks)
    smooth = tracks.depth.copy()
    for frame in range(tracks.shape[0]):
        depth, trust = tracks.follow(frame, radius)
        correction, confidence = _local_linear_fit(depth, trust, sigma, OUTLIER * noise)
        smooth[frame] += _fill(correction, confidence)
    return smooth


def _noise(tracks: ClipTracks | TensorTracks) -> float:
    """Return the robust standard deviation of a value about the mean of its two neighbors in time, above 0.

    Differences of second order, so that a steady true change does not count as noise.
    """
    num_frames, height, width = tracks.shape
    step = sample_step(height, width)
    unexplained = []
    for frame in range(num_frames):
        depth, trust = tracks.follow(frame, 1, step)
        both, one = (trust[[0, 2]] > 0.5).all(0), trust[2] > 0.5
        if num_frames > 2:
            unexplained.append(np.abs(0.5 * (depth[0] + depth[2]) - depth[1])[both] / 1.5**0.5)
        else:
            unexplained.append(np.abs(depth[2] - depth[1])[one] / 2**0.5)
    seen = np.concatenate(unexplained)
    floor = 1e-6 * max(tracks.largest(), 1e-30)
    return max(1.4826 * float(np.median(seen)) if seen.size else 0.0, floor)


def _local_linear_fit(depth: Floats, trust: Floats, sigma: float, outlier: float) -> tuple[Floats, Floats]:
    """Fit a line to each pixel's values over time by weighted least squares with one robust reweighting.

    Args:
        depth, trust: [2r+1,H,W], see `ClipTracks.follow`. sigma: frames. outlier: unit of depth.

    Returns:
        The line's value at the middle minus depth's there, and the confidence in it, 0 to 1; each [H,W].
    """
    radius = len(depth) // 2
    time = np.arange(-radius, radius + 1, dtype=np.float32)
    prior_weight = np.exp(-0.5 * (time / sigma) ** 2)[:, None, None] * trust  # [2r+1,H,W]
    deviation = depth - depth[radius]  # of two noisy values: hence √2 times the outlier's size
    weight = prior_weight / (1 + (deviation / (2**0.5 * outlier)) ** 2) ** 2  # Geman and McClure's
    value, slope = _weighted_line(deviation, weight, time)
    weight = prior_weight / (1 + ((deviation - value - slope * time[:, None, None]) / outlier) ** 2) ** 2
    value, _ = _weighted_line(deviation, weight, time)
    # The pixel itself is no evidence about itself: only its neighbors in time count.
    confidence = np.clip((weight.sum(0) - weight[radius]) / ENOUGH_WEIGHT, 0, 1)
    return value, confidence


def _weighted_line(y: Floats, weight: Floats, time: Floats) -> tuple[Floats, Floats]:
    """Return value at time 0 and slope [H,W] of the line through y [K,H,W], the slope held back by a ridge."""
    flat = weight.reshape(len(time), -1)  # [K,HW]
    powers = np.stack([np.ones_like(time), time, time * time])  # [3,K]
    w0, w1, w2 = powers @ flat  # moments of the weight, each [HW]
    y0, y1 = powers[:2] @ (flat * y.reshape(flat.shape))
    w2 += SLOPE_RIDGE
    determinant = np.maximum(w0 * w2 - w1 * w1, 1e-9)
    value, slope = (w2 * y0 - w1 * y1) / determinant, (w0 * y1 - w1 * y0) / determinant
    return value.reshape(y.shape[1:]), slope.reshape(y.shape[1:])


def _fill(correction: Floats, confidence: Floats) -> Floats:
    """Let corrections fade out over a few px where there is no confidence, rather than end in an edge."""
    spread, share = (
        cv2.GaussianBlur(x, (0, 0), FILL_SIGMA_PX, borderType=cv2.BORDER_REPLICATE)
        for x in (correction * confidence, confidence)
    )
    filled: Floats = confidence * correction + (1 - confidence) * spread / (share + 0.05)
    return filled


def _check(depth: Tensor, flow_fwd: Tensor, flow_bwd: Tensor, trusted_fwd: Tensor, trusted_bwd: Tensor) -> None:
    if depth.ndim != 4 or depth.shape[1] != 1 or depth.shape[0] < 1:
        raise ValueError(f"depth must have shape [N,1,H,W] with N ≥ 1; got {list(depth.shape)}")
    num_frames, _, height, width = depth.shape
    for name, flow in (("flow_fwd", flow_fwd), ("flow_bwd", flow_bwd)):
        if flow.shape != (num_frames, 2, height, width):
            raise ValueError(
                f"{name} must have shape {[num_frames, 2, height, width]} like depth; got {list(flow.shape)}"
            )
    for name, mask in (("trusted_fwd", trusted_fwd), ("trusted_bwd", trusted_bwd)):
        if mask.shape != depth.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"{name} must be bool of shape {list(depth.shape)}; got {mask.dtype} of shape {list(mask.shape)}"
            )
