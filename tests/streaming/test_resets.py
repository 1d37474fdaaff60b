"""Cuts and gaps are found; flashes, noise and motion are not cuts; streams of a batch do not mix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.streaming.resets import ResetPolicy, luma_histogram


def scene(seed: int, brightness: float) -> Tensor:
    """A smooth random picture `[1, 3, 64, 96]` in [0, 1]."""
    coarse = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, (64, 96), mode="bicubic") * 0.4 + brightness).clamp(0, 1)


def encode(rgb: Tensor) -> Tensor:
    """Stand-in for frozen features `[B, 24, 4, 6]`: free of brightness, as those of a trained encoder nearly are."""
    small = F.adaptive_avg_pool2d(rgb, (4, 6))
    small = small - small.mean((1, 2, 3), keepdim=True)
    return torch.cat([small.roll(shift, -1) for shift in range(8)], 1)


def reasons(frames: list[Tensor], policy: ResetPolicy | None = None) -> list[str]:
    policy = policy or ResetPolicy()
    return [policy.update(rgb, encode(rgb), None)[0] for rgb in frames]


def shot(seed: int, brightness: float, num_frames: int) -> list[Tensor]:
    torch.manual_seed(seed)
    still = scene(seed, brightness)
    return [(still + 0.02 * torch.randn_like(still)).clamp(0, 1) for _ in range(num_frames)]


def test_hard_cuts_are_found() -> None:
    found = reasons(shot(1, 0.05, 10) + shot(2, 0.55, 10) + shot(1, 0.05, 3))
    assert [i for i, reason in enumerate(found) if reason == "cut"] == [10, 20]


def test_a_flash_is_not_a_cut() -> None:
    frames = shot(1, 0.1, 10)
    frames[5] = (frames[5] + 0.4).clamp(0, 1)
    assert set(reasons(frames)) == {""}


def test_a_flash_that_upsets_the_features_is_not_a_cut() -> None:
    frames = shot(1, 0.1, 10)
    frames[5] = (frames[5] * 2).clamp(0, 1)
    policy = ResetPolicy()
    features = [encode(rgb) for rgb in frames]
    features[5] = encode(scene(9, 0.5))
    found = [policy.update(rgb, x, None)[0] for rgb, x in zip(frames, features, strict=True)]
    assert set(found) == {""}


def test_steady_motion_is_not_a_cut() -> None:
    wide = F.interpolate(torch.rand(1, 3, 4, 12, generator=torch.Generator().manual_seed(0)), (64, 400))
    assert set(reasons([wide[..., 8 * i : 8 * i + 96] for i in range(30)])) == {""}


def test_streams_of_a_batch_are_apart() -> None:
    one, other = shot(1, 0.05, 6) + shot(2, 0.55, 6), shot(3, 0.3, 12)
    policy = ResetPolicy()
    found = [policy.update(pair, encode(pair), None) for pair in (torch.cat(p) for p in zip(one, other, strict=True))]
    assert [f[0] for f in found] == reasons(one)
    assert {f[1] for f in found} == {""}


def test_gaps() -> None:
    policy = ResetPolicy(cuts=False, max_gap_s=0.5)
    rgb = scene(0, 0.3)
    times = [0.0, 0.1, 0.7, 0.8, 0.2, 0.3]
    assert [policy.update(rgb, encode(rgb), [t])[0] for t in times] == ["", "", "gap", "", "gap", ""]


def test_forgotten_past_makes_no_cut() -> None:
    policy = ResetPolicy(max_gap_s=0.5)
    for rgb in shot(1, 0.05, 5):
        policy.update(rgb, encode(rgb), [0.0])
    policy.reset(torch.tensor([True]))
    rgb = scene(2, 0.55)
    assert policy.update(rgb, encode(rgb), [100.0]) == [""]


def test_histogram_sums_to_one_and_moves_little_with_exposure() -> None:
    luma = scene(0, 0.3)[:, :1]
    histogram = luma_histogram(luma)
    assert histogram.sum().item() == pytest.approx(1, abs=1e-5)
    moved = 0.5 * (luma_histogram(luma + 0.002) - histogram).abs().sum()
    assert 0 < moved < 0.15
