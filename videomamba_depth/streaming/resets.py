"""Automatic state reset at scene cuts and timestamp gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.models.depth_state import DepthState
from videomamba_depth.streaming.hooks import NextFrame, StreamHook
from videomamba_depth.utils.checkpoint import Layout, check_tensors
from videomamba_depth.utils.images import luma

_BINS = 64
_FEATURE_GRID, _PATTERN_GRID = 4, 8
KEPT_FOR_CUTS = ("histogram", "features", "pattern", "mean_change", "seen")
"""What `ResetPolicy` keeps of the frame before to find cuts by."""
_LUMA_SIDE = 64  # px; the histogram is taken over a frame averaged down to about this size


class ResetPolicy(StreamHook):
    """Find scene cuts and gaps, per stream of a batch.

    A cut is a frame whose luma histogram *and* whose frozen features *and* whose coarse luma pattern differ from those
    of the frame before. A flash changes the first and can upset the second, but keeps the third. The change of the
    features is measured against the recent changes of the same stream too. Slow fades are not found.

    Not `flow.clip_motion.detect_cuts`: a stream cannot look one frame ahead, as it does to tell a cut from flicker, and
    has features for it, which evaluation must not use, since its cuts may not depend on a model.

    On ten real clips with the first embedded teacher's features, frames of one shot differ by at most 0.14 (histogram),
    0.10 (features) and 0.03 (pattern); the 90 cuts between two of the clips by at least 0.15, 0.52 and 0.40; flashes of
    half to twice the brightness change the pattern by at most 0.21. That was on whole frames; on frames as the model
    sees them, twelve of each clip, it was 0.04, 0.10 and 0.01; 0.12, 0.56 and 0.43; 0.21 (whole: 0.05, 0.10 and 0.01;
    0.13, 0.56 and 0.43; 0.21). Features of the teacher that is shipped now, nine frames of each clip: 0.08 and 0.29.

    Args:
        cuts: reset at scene cuts.
        histogram_change: smallest change of the luma histogram, half its L1 distance in [0, 1].
        feature_change: smallest change of the features, 1 − cosine of mean-free 4x4 features, in [0, 2].
        feature_ratio: smallest change of the features over their recent mean change.
        pattern_change: smallest change of the pattern, 1 − cosine of mean-free 8x8 luma, in [0, 2].
        max_gap_s: a frame that comes later than this after the one before, or before it, is a gap (dropped frames,
            pauses, seeking); None: never.
    """

    name = "resets"

    def __init__(
        self,
        cuts: bool = True,
        histogram_change: float = 0.1,
        feature_change: float = 0.3,
        feature_ratio: float = 4.0,
        pattern_change: float = 0.25,
        max_gap_s: float | None = None,
    ) -> None:
        self.cuts, self.max_gap_s = cuts, max_gap_s
        self.histogram_change, self.feature_change = histogram_change, feature_change
        self.feature_ratio, self.pattern_change = feature_ratio, pattern_change
        self.kept: dict[str, Tensor] = {}

    def before_frame(self, frame: NextFrame, states: DepthState) -> DepthState:
        """Return the states, reset where a cut or a gap is."""
        gaps, frame.cuts = self._find(frame.rgb, frame.features, frame.timestamps_s)
        frame.reset_reasons = [known or gap for known, gap in zip(frame.reset_reasons, gaps, strict=True)]
        resets = frame.cuts
        if "gap" in frame.reset_reasons:  # known on the host, and rare
            is_gap = torch.tensor([reason == "gap" for reason in frame.reset_reasons], device=frame.rgb.device)
            resets = is_gap if resets is None else resets | is_gap
        if resets is None or (resets.device.type == "cpu" and not resets.any()):
            return states
        return states.reset(resets)

    def update(self, rgb: Tensor, features: Tensor, timestamps_s: Sequence[float] | None) -> list[str]:
        """Take in the next frames and return per stream why it should be reset: "cut", "gap" or "".

        Args:
            rgb: `[B, 3, H, W]` in [0, 1], as the model sees them.
            features: `[B, C, h, w]`, coarse features of the frozen encoder.
            timestamps_s: of each frame; None: gaps are not found.
        """
        gaps, cuts = self._find(rgb, features, timestamps_s)
        return gaps if cuts is None else with_cuts(gaps, cuts)

    def _find(
        self, rgb: Tensor, features: Tensor, timestamps_s: Sequence[float] | None
    ) -> tuple[list[str], Tensor | None]:
        """Take in the next frames: "gap" or "" per stream, and where a cut is, `[B]` bool, for which nobody waits."""
        kept = dict(self.kept)
        gaps = self.find_gaps(kept, timestamps_s, len(rgb))
        cuts = self.find_cuts(kept, rgb, features) if self.cuts else None
        self.kept = kept
        return gaps, cuts

    def may_reset(self, rgb: Tensor, timestamps_s: Sequence[float] | None) -> Tensor:
        """Return which streams `[B]` bool the next frames may reset, without features: all that will be reset, and few
        others. Nothing is taken in.

        Args:
            rgb, timestamps_s: as for `update`.
        """
        gaps = self.find_gaps(dict(self.kept), timestamps_s, len(rgb))
        found = torch.tensor([gap != "" for gap in gaps], device=rgb.device)
        if not self.cuts or "histogram" not in self.kept:
            return found
        histogram, pattern = _light(rgb)
        return found | self._light_changed(self.kept, histogram, pattern)

    def _light_changed(self, kept: dict[str, Tensor], histogram: Tensor, pattern: Tensor) -> Tensor:
        """Return where the picture alone tells of a cut, `[B]` bool."""
        moved = 0.5 * (histogram - kept["histogram"]).abs().sum(-1)
        rearranged = 1 - F.cosine_similarity(pattern, kept["pattern"], dim=-1)
        return (moved > self.histogram_change) & (rearranged > self.pattern_change) & (kept["seen"] > 0)

    def find_cuts(self, kept: dict[str, Tensor], rgb: Tensor, features: Tensor) -> Tensor:
        """Return where a cut is, `[B]` bool, and put what the next frames are compared with into `kept`.

        Operations on tensors alone; `kept` holds what it held after the frame before, or nothing.
        """
        histogram, pattern = _light(rgb)
        now = {"histogram": histogram, "features": layout(features, _FEATURE_GRID), "pattern": pattern}
        if "histogram" not in kept:
            zeros = now["histogram"].new_zeros(len(rgb))
            kept |= {**now, "mean_change": zeros, "seen": zeros}
        changed = 1 - F.cosine_similarity(now["features"], kept["features"], dim=-1)
        usual = self.feature_ratio * kept["mean_change"]
        is_cut = (changed > self.feature_change) & (changed > usual)
        is_cut &= self._light_changed(kept, histogram, pattern)
        # A plain mean over the first frames of a shot, then one with a memory of 16 frames.
        weight = torch.where((kept["seen"] > 0) & ~is_cut, 1 / kept["seen"].clamp(1, 16), 0.0)
        kept["mean_change"] = kept["mean_change"] + weight * (changed - kept["mean_change"])
        kept["seen"] = torch.where(is_cut, 1.0, kept["seen"] + 1)
        kept |= now
        return is_cut

    def reset(self, streams: Tensor) -> None:
        """Forget the past of the streams of `streams [B]` bool."""
        kept = {} if bool(streams.all()) else dict(self.kept)
        for name in {"mean_change", "seen", "timed"} & kept.keys():
            kept[name] = kept[name].masked_fill(streams.to(kept[name].device), 0)
        self.kept = kept

    def tensors(self) -> dict[str, Tensor]:
        """Return what is kept from frame to frame."""
        return dict(self.kept)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that this policy was made with."""
        names = ("histogram_change", "feature_change", "feature_ratio", "pattern_change", "max_gap_s")
        return {"cuts": self.cuts, **{name: getattr(self, name) for name in names}}

    def read(self, tensors: dict[str, Tensor], metadata: str, start: DepthState, channels: int) -> dict[str, Tensor]:
        """Return tensors of a file, on any device, as `kept` holds them.

        Args:
            start: the state that the streams start from.
            channels: of the features.

        Raises:
            ValueError: they are not of such a policy.
        """
        batch = start.batch_size
        sizes = {"histogram": _BINS, "features": channels * _FEATURE_GRID**2, "pattern": _PATTERN_GRID**2}
        cuts: dict[str, Layout] = dict.fromkeys(KEPT_FOR_CUTS, ((batch,), torch.float32))
        cuts |= {name: ((batch, length), torch.float32) for name, length in sizes.items()}
        times: dict[str, Layout] = {"timestamps_s": ((batch,), torch.float64), "timed": ((batch,), torch.bool)}
        expected: dict[str, Layout] = {}
        for part, is_watched in ((cuts, self.cuts), (times, self.max_gap_s is not None)):
            if is_watched and not tensors.keys().isdisjoint(part):  # none before the first frame or time
                expected |= part
        check_tensors("resets", tensors, expected)
        return {name: t.cpu() if name in times else t for name, t in tensors.items()}

    def find_gaps(self, kept: dict[str, Tensor], timestamps_s: Sequence[float] | None, batch: int) -> list[str]:
        """Return "gap" or "" per stream, and put the times that the next are compared with into `kept`; on the host."""
        if timestamps_s is None or self.max_gap_s is None:
            return [""] * batch
        if len(timestamps_s) != batch:
            raise ValueError(f"timestamps must be one per stream, {batch} here; got {len(timestamps_s)}")
        now = torch.tensor(timestamps_s, dtype=torch.float64)
        timed = torch.isfinite(now)
        now = now.nan_to_num(0.0, 0.0, 0.0)
        elapsed = now - kept.get("timestamps_s", now)
        gaps = ((elapsed > self.max_gap_s) | (elapsed < 0)) & timed & kept.get("timed", timed)
        kept |= {"timestamps_s": now, "timed": timed}
        return ["gap" if gap else "" for gap in gaps.tolist()]


def with_cuts(reasons: Sequence[str], cuts: Tensor) -> list[str]:
    """Return the reasons, "cut" where there is none and `cuts [B]` is True: reads what lies on the device."""
    return [reason or ("cut" if cut else "") for reason, cut in zip(reasons, cuts.tolist(), strict=True)]


def _light(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Return what finds cuts in the picture alone: histogram and pattern of its luma."""
    small_luma = _small_luma(rgb)
    return luma_histogram(small_luma), layout(small_luma, _PATTERN_GRID)


def _small_luma(rgb: Tensor) -> Tensor:
    """Return luma `[B, 1, h, w]` of frames `[B, 3, H, W]` averaged down to about `_LUMA_SIDE` px."""
    cell = min(rgb.shape[-2:]) // _LUMA_SIDE
    small = F.avg_pool2d(rgb, cell) if cell > 1 else rgb  # first: few numbers of a large frame are left to weigh
    return luma(small)


def luma_histogram(small_luma: Tensor) -> Tensor:
    """Return the normalized histogram `[B, 64]` of luma `[B, 1, h, w]` in [0, 1]."""
    pixels = small_luma.flatten(1)
    level = pixels.clamp(0, 1) * (_BINS - 1)
    # Each pixel is shared between its two nearest bins: a slight change of exposure moves the histogram slightly.
    low = level.floor()
    high_share = level - low
    histogram = pixels.new_zeros(len(pixels), _BINS)
    histogram.scatter_add_(1, low.long(), 1 - high_share)
    histogram.scatter_add_(1, (low.long() + 1).clamp(max=_BINS - 1), high_share)
    return histogram / pixels.shape[1]


def layout(maps: Tensor, grid: int) -> Tensor:
    """Return maps `[B, C, h, w]` averaged over a grid of cells, mean-free per channel, `[B, C·grid²]` float32.

    The mean of a feature over the picture is nearly the same for all pictures, and would hide what differs.
    """
    pooled = F.adaptive_avg_pool2d(maps.float(), grid).flatten(2)
    return (pooled - pooled.mean(-1, keepdim=True)).flatten(1)
