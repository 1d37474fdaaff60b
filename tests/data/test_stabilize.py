"""Flicker goes, true change stays, and what cannot be followed is left alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from devices import DEVICES
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.data.labels import stabilize
from videomamba_depth.data.labels.stabilize import stabilize_clip, stabilize_depth, stabilize_tensors
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.flow_utils import trust_mask

N, H, W = 12, 32, 40
Motion = tuple[Tensor, Tensor, Tensor, Tensor]


def still(num_frames: int = N) -> Motion:
    """Exact motion of a scene in which nothing moves."""
    flow = torch.zeros(num_frames, 2, H, W)
    trusted = torch.ones(num_frames, 1, H, W, dtype=torch.bool)
    forth, back = trusted.clone(), trusted.clone()
    forth[-1] = back[0] = False
    return flow, flow.clone(), forth, back


def scene(generator: torch.Generator, height: int = H, width: int = W) -> Tensor:
    """A smooth random inverse depth [1,1,H,W] with a mean near 3 and a range near 2."""
    return 3 + F.interpolate(torch.randn(1, 1, 4, 5, generator=generator), (height, width), mode="bicubic")


def wobble(generator: torch.Generator, std: float, num_frames: int = N) -> Tensor:
    """Noise [N,1,H,W] that is smooth in space and independent in time."""
    return std * F.interpolate(torch.randn(num_frames, 1, 8, 10, generator=generator), (H, W), mode="bicubic")


def jitter(generator: torch.Generator, std: float, num_frames: int = N) -> tuple[Tensor, Tensor]:
    """A scale and a shift per frame [N,1,1,1], of mean 1 and 0."""
    scale, shift = std * torch.randn(2, num_frames, 1, 1, 1, generator=generator)
    return 1 + scale - scale.mean(), shift - shift.mean()


def flicker(depth: Tensor) -> float:
    return float((depth[2:] - 2 * depth[1:-1] + depth[:-2]).abs().mean())


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_jitter_of_whole_frames_goes_and_scale_and_shift_stay(generator: torch.Generator) -> None:
    truth = scene(generator).expand(N, -1, -1, -1)
    scale, shift = jitter(generator, 0.05)
    raw = scale * truth + shift
    aligned = stabilize_depth(raw, *still(), radius=0)
    assert flicker(aligned) < 0.15 * flicker(raw)  # 0.06
    assert rms(aligned - truth) < 0.6 * rms(raw - truth)
    # One affine from truth to the result, over the whole clip: the jitter's own mean scale and shift, (1, 0).
    design = torch.stack([truth.flatten(), torch.ones(raw.numel())], 1)
    fit = torch.linalg.lstsq(design, aligned.flatten()[:, None]).solution.flatten()
    assert fit.tolist() == pytest.approx([1.0, 0.0], abs=0.005)
    smooth = stabilize_depth(raw, *still())
    assert float(smooth.mean()) == pytest.approx(float(raw.mean()), abs=0.01)


def test_wobble_is_averaged_out(generator: torch.Generator) -> None:
    truth = scene(generator).expand(N, -1, -1, -1)
    raw = truth + wobble(generator, 0.1)
    smooth = stabilize_depth(raw, *still())
    assert flicker(smooth) < 0.2 * flicker(raw)
    assert rms(smooth - truth) < 0.6 * rms(raw - truth)


def test_a_single_bad_frame_does_not_spread(generator: torch.Generator) -> None:
    truth = scene(generator).expand(N, -1, -1, -1)
    raw = truth + wobble(generator, 0.01)
    raw[6, :, 8:24, 10:30] += 2.0  # an object that is not there, in one frame
    smooth = stabilize_depth(raw, *still())
    others = torch.arange(N) != 6
    assert float((smooth - truth)[others].abs().max()) < 0.06


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_trend_is_kept(noise: float, generator: torch.Generator) -> None:
    """Before a camera that moves in, inverse depth 1 / (z0 − v·t) grows along every trajectory."""
    z0 = 1 / (0.2 + 0.1 * (scene(generator) - 1).clamp(0, 6))
    truth = 1 / (z0 - 0.04 * torch.arange(N).view(N, 1, 1, 1))
    scale, shift = jitter(generator, 0.3 * noise)
    raw = scale * (truth + truth.mean() * wobble(generator, noise)) + truth.mean() * shift
    smooth = stabilize_depth(raw, *still())
    if noise == 0:
        change = rms(truth[-1] - truth[0])
        assert rms(smooth - truth) < 0.01 * change
    else:
        assert rms(smooth - truth) < 0.7 * rms(raw - truth)
        rise = float((smooth[-2:].mean() - smooth[:2].mean()) / (truth[-2:].mean() - truth[:2].mean()))
        assert rise == pytest.approx(1.0, abs=0.1)


def test_long_clips_do_not_drift(generator: torch.Generator) -> None:
    """The errors of many small alignments must not add up."""
    num_frames = 80
    truth = scene(generator).expand(num_frames, -1, -1, -1)
    raw = truth + wobble(generator, 0.1, num_frames)
    aligned = stabilize_depth(raw, *still(num_frames), radius=0)
    assert float((aligned.mean((1, 2, 3)) - truth.mean((1, 2, 3))).abs().max()) < 0.05
    assert rms(aligned - truth) < 1.05 * rms(raw - truth)


def moving_square(generator: torch.Generator) -> tuple[Tensor, Tensor, Motion]:
    """A near square that moves 2 px per frame to the right before a far wall; returns truth, its mask and motion."""
    near = torch.zeros(N, 1, H, W, dtype=torch.bool)
    for t in range(N):
        near[t, :, 8:24, 4 + 2 * t : 14 + 2 * t] = True
    truth = torch.where(near, 5.0, 2.0) + 0.05 * scene(generator)
    step = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1)
    flow_fwd, flow_bwd = near * step, near * -step
    covered_next = near.roll(-1, 0) & ~near
    uncovered = near.roll(1, 0) & ~near
    trusted_fwd, trusted_bwd = ~covered_next, ~uncovered
    trusted_fwd[-1] = trusted_bwd[0] = False
    return truth, near, (flow_fwd, flow_bwd, trusted_fwd, trusted_bwd)


def test_what_is_hidden_is_not_smeared(generator: torch.Generator) -> None:
    truth, near, motion = moving_square(generator)
    raw = truth + wobble(generator, 0.05)
    smooth = stabilize_depth(raw, *motion)
    assert rms(smooth - truth) < 0.7 * rms(raw - truth)
    # A ghost of the square on the wall, or of the wall on the square, would be an error of up to 3.
    assert float((smooth - truth).abs().max()) < 1.2 * float((raw - truth).abs().max())
    assert torch.equal(smooth > 3.5, near)


def sliding_plane(generator: torch.Generator) -> tuple[Tensor, Motion]:
    """A textured plane that slides by 1.5 px per frame: its depth and motion."""
    wide = scene(generator, H, 2 * W) + 0.5 * torch.sin(torch.arange(2 * W) * 0.7)
    x = torch.arange(W) + 1.5 * torch.arange(N)[:, None]
    low = x.floor().long()
    columns = (1 - (x - low)).view(N, 1, 1, W) * wide[0, 0][:, low].permute(1, 0, 2)[:, None]
    truth = columns + (x - low).view(N, 1, 1, W) * wide[0, 0][:, low + 1].permute(1, 0, 2)[:, None]
    flow_bwd = torch.zeros(N, 2, H, W)
    flow_bwd[:, 0] = 1.5
    _, _, forth, back = still()
    forth[..., :2] = False
    back[..., -2:] = False
    return truth, (-flow_bwd, flow_bwd, forth, back)


def test_flow_is_followed_over_several_frames(generator: torch.Generator) -> None:
    """Without chaining, structure would be blurred."""
    truth, motion = sliding_plane(generator)
    raw = truth + wobble(generator, 0.1)
    smooth = stabilize_depth(raw, *motion)
    assert rms((smooth - truth)[..., 4:-4]) < 0.6 * rms((raw - truth)[..., 4:-4])


@pytest.mark.parametrize("case", ["square", "plane", "holes", "meters", "two frames", "long", "aligned only"])
def test_tensor_operations_do_what_opencv_does(case: str, generator: torch.Generator) -> None:
    """They differ by at most 1.2e-4 of what is removed; beside undefined pixels by 0.024, since OpenCV also reads those
    that have no weight. OpenCV 4 rounds positions to 1/32 px, which shows on the plane."""
    truth, motion = sliding_plane(generator) if case == "plane" else moving_square(generator)[::2]
    if case in ("two frames", "long"):
        num_frames = 2 if case == "two frames" else 40
        truth, motion = scene(generator).expand(num_frames, -1, -1, -1), still(num_frames)
    scale, shift = jitter(generator, 0.03, len(truth))
    raw = scale * (truth + wobble(generator, 0.1, len(truth))) + shift
    if case == "plane":
        for flow in motion[:2]:
            flow += 0.3 * F.interpolate(torch.randn(N, 2, 4, 5, generator=generator), (H, W), mode="bicubic")
    if case == "holes":
        raw[4, :, 10:14, 10:14] = torch.nan
        motion[0][2, :, 5:8, 5:8] = torch.nan
    kind = DepthKind.METRIC if case == "meters" else DepthKind.RELATIVE
    radius = 0 if case == "aligned only" else 8
    wanted = stabilize_depth(raw, *motion, radius=radius, sigma=5.0, depth_kind=kind)
    got = stabilize_tensors(raw, *motion, radius, 5.0, kind is DepthKind.METRIC)
    assert torch.equal(got.isnan(), wanted.isnan())
    removed, difference = (torch.nan_to_num(x - wanted) for x in (raw, got))
    assert rms(removed) > 0.02
    assert rms(difference) < (0.05 if case in ("plane", "holes") else 4e-4) * rms(removed)


@pytest.mark.parametrize("device", DEVICES)
def test_a_clip_on_another_device_has_the_targets_of_the_cpu(device: str, generator: torch.Generator) -> None:
    truth = scene(generator).expand(6, -1, -1, -1)
    depth, clip = truth + wobble(generator, 0.1, 6), torch.rand(1, 3, H, W, generator=generator).expand(6, -1, -1, -1)
    wanted = stabilize_clip(depth, clip, NoMotion())
    got = stabilize_clip(depth.to(device), clip.to(device), NoMotion())
    assert got.device.type == device
    torch.testing.assert_close(got.cpu(), wanted, rtol=0, atol=1e-3)


def test_nothing_trusted_returns_the_input(generator: torch.Generator) -> None:
    raw = scene(generator) + wobble(generator, 0.1)
    nothing = torch.zeros(N, 1, H, W, dtype=torch.bool)
    flow = torch.full((N, 2, H, W), float("nan"))
    assert torch.equal(stabilize_depth(raw, flow, flow, nothing, nothing), raw)


def test_far_from_trusted_pixels_the_aligned_value_stays(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stabilize, "fit_frame_affines", lambda *_, **__: (np.ones(N), np.zeros(N)))  # as it came
    monkeypatch.setattr(stabilize, "FILL_SIGMA_PX", 1.0)
    raw = scene(generator) + wobble(generator, 0.1)
    flow_fwd, flow_bwd, forth, back = still()
    forth[..., :20], back[..., :20] = False, False
    smooth = stabilize_depth(raw, flow_fwd, flow_bwd, forth, back)
    torch.testing.assert_close(smooth[..., :14], raw[..., :14])
    assert flicker(smooth[..., 24:]) < 0.3 * flicker(raw[..., 24:])


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_short_clips(num_frames: int, generator: torch.Generator) -> None:
    raw = scene(generator) + wobble(generator, 0.1, num_frames)
    before = raw.clone()
    smooth = stabilize_depth(raw, *still(num_frames))
    assert smooth.shape == raw.shape
    assert torch.equal(raw, before)
    if num_frames == 1:
        assert torch.equal(smooth, raw)
    else:
        assert rms(smooth - scene(torch.Generator().manual_seed(3))) < rms(
            raw - scene(torch.Generator().manual_seed(3))
        )


def test_units_do_not_matter(generator: torch.Generator) -> None:
    raw = scene(generator) + wobble(generator, 0.1)
    smooth = stabilize_depth(raw, *still())
    torch.testing.assert_close(stabilize_depth(1e4 * raw - 2e4, *still()), 1e4 * smooth - 2e4, rtol=1e-4, atol=3.0)
    tiny = stabilize_depth(1e-4 * raw, *still())
    torch.testing.assert_close(tiny, 1e-4 * smooth, rtol=1e-4, atol=1e-8)


def test_metric_depth_keeps_its_unit_and_loses_its_flicker(generator: torch.Generator) -> None:
    truth = 4 * scene(generator).clamp(min=0.5).expand(N, -1, -1, -1)
    scale, _ = jitter(generator, 0.05)
    raw = truth * scale * wobble(generator, 0.05).exp()
    smooth = stabilize_depth(raw, *still(), depth_kind=DepthKind.METRIC)
    assert flicker(smooth) < 0.25 * flicker(raw)
    assert float((smooth / truth).log().mean()) == pytest.approx(0.0, abs=0.01)
    assert rms((smooth / truth).log()) < 0.6 * rms((raw / truth).log())
    torch.testing.assert_close(
        stabilize_depth(10 * raw, *still(), depth_kind=DepthKind.METRIC), 10 * smooth, rtol=1e-4, atol=0
    )


def test_undefined_depth_stays_and_does_not_spread(generator: torch.Generator) -> None:
    truth = scene(generator).expand(N, -1, -1, -1)
    raw = truth + wobble(generator, 0.1)
    raw[4, :, 10:14, 10:14] = float("nan")
    smooth = stabilize_depth(raw, *still())
    assert torch.equal(smooth.isnan(), raw.isnan())
    assert float((smooth - truth)[~raw.isnan()].abs().max()) < 0.5


def test_a_flat_clip_stays_as_it_is() -> None:
    raw = torch.full((N, 1, H, W), 2.0)
    torch.testing.assert_close(stabilize_depth(raw, *still()), raw)


class NoMotion:
    """An estimator that sees nothing move."""

    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        return torch.zeros(len(source), 2, *source.shape[-2:], device=source.device)


def test_clip_motion_is_estimated_and_cuts_are_respected(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = torch.full((3, H, W), 0.2), torch.full((3, H, W), 0.9)
    clip = torch.stack([first] * 6 + [second] * 6)
    truth = torch.cat([scene(generator).expand(6, -1, -1, -1), scene(generator).expand(6, -1, -1, -1) + 2])
    raw = truth + wobble(generator, 0.05)
    # With the color test off, only the cut itself can keep the two shots apart.
    monkeypatch.setattr(stabilize, "trust_mask", partial(trust_mask, max_rgb_change=2.0))
    smooth = stabilize_clip(raw, clip, NoMotion())
    assert rms(smooth - truth) < 0.8 * rms(raw - truth)
    assert stabilize_clip(raw[:1], clip[:1], NoMotion()).equal(raw[:1])


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, torch.zeros(N, 2, H, W), "depth must have shape"),
        (1, torch.zeros(N - 1, 2, H, W), "flow_fwd must have shape"),
        (4, torch.zeros(N, 1, H, W), "trusted_bwd must be bool"),
    ],
)
def test_wrong_input_is_named(index: int, bad: Tensor, message: str) -> None:
    arguments = [torch.zeros(N, 1, H, W), *still()]
    arguments[index] = bad
    with pytest.raises(ValueError, match=message):
        stabilize_depth(*arguments)
    with pytest.raises(ValueError, match="radius must be"):
        stabilize_depth(torch.zeros(N, 1, H, W), *still(), radius=-1)


def test_results_are_finite_and_reproducible(generator: torch.Generator) -> None:
    raw = scene(generator) + wobble(generator, 0.1)
    once, twice = (stabilize_depth(raw, *still()) for _ in range(2))
    assert torch.equal(once, twice)
    assert np.isfinite(once.numpy()).all()
