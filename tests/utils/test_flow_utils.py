"""Flow: exact warps, the masks, and estimators on scenes whose flow is known."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from videomamba_depth.flow.clip_motion import static_mask
from videomamba_depth.flow.estimators import DISFlow, RAFTFlow, build_flow
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.flow_utils import backward_warp, consistency_mask, rgb_consistency_mask


def texture(height: int, width: int, dx: float = 0.0, dy: float = 0.0) -> Tensor:
    """Return a smooth textured frame [1,3,H,W] whose content has moved by (dx, dy) px."""
    y, x = torch.meshgrid(torch.arange(height) - float(dy), torch.arange(width) - float(dx), indexing="ij")
    waves = [torch.sin(0.31 * x + 0.2 * y), torch.sin(0.23 * y - 0.11 * x), torch.cos(0.17 * x + 0.29 * y)]
    return (0.5 + 0.15 * torch.stack([w + 0.5 * waves[0] for w in waves])).clamp(0, 1)[None]


def uniform_flow(height: int, width: int, dx: float, dy: float) -> Tensor:
    return torch.tensor([float(dx), float(dy)]).view(1, 2, 1, 1).expand(1, 2, height, width).clone()


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_warp_by_whole_pixels_is_exact(mode: str) -> None:
    x = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    warped, in_bounds = backward_warp(x, uniform_flow(9, 11, 2, -1).expand(2, -1, -1, -1), mode=mode)
    assert torch.allclose(warped[..., 1:, :-2], x[..., :-1, 2:], atol=2e-6)  # measured 6e-7
    assert in_bounds[0, 0].sum() == 8 * 9
    assert in_bounds.shape == (2, 1, 9, 11)


def test_warp_between_pixels_is_bilinear() -> None:
    x = torch.tensor([[0.0, 1.0, 3.0]]).view(1, 1, 1, 3)
    warped, in_bounds = backward_warp(x, uniform_flow(1, 3, 0.25, 0.0))
    assert warped.flatten().tolist() == pytest.approx([0.25, 1.5, 3.0])
    assert in_bounds.flatten().tolist() == [True, True, False]


def test_flow_that_is_not_finite_is_out_of_bounds_and_zero() -> None:
    flow = uniform_flow(4, 4, 0, 0)
    flow[0, 0, 1, 2] = float("nan")
    warped, in_bounds = backward_warp(torch.ones(1, 1, 4, 4), flow)
    assert not in_bounds[0, 0, 1, 2]
    assert warped[0, 0, 1, 2] == 0
    assert in_bounds.sum() == 15


def test_consistency_fails_exactly_where_a_layer_is_hidden() -> None:
    # A block (columns 4–7) moves 3 px right over a still background: background columns 8–10 are hidden in b.
    flow_ab, flow_ba = torch.zeros(1, 2, 8, 16), torch.zeros(1, 2, 8, 16)
    flow_ab[:, 0, :, 4:8] = 3.0
    flow_ba[:, 0, :, 7:11] = -3.0
    mask = consistency_mask(flow_ab, flow_ba)
    hidden = torch.zeros(8, 16, dtype=torch.bool)
    hidden[:, 8:11] = True
    assert torch.equal(mask[0, 0], ~hidden)


def test_consistency_threshold_is_as_published() -> None:
    # |F + B|² = 1 against 0.01 (|F|² + |B|²) + 0.5 = 0.01 · 41 + 0.5: refused; at 8 px (0.01 · 113 + .5):
    # accepted.
    for speed, accepted in ((5.0, False), (8.0, True)):
        back = uniform_flow(4, 64, -speed + 1, 0)
        mask = consistency_mask(uniform_flow(4, 64, speed, 0), back)
        assert bool(mask[0, 0, 2, 20]) is accepted


def test_color_difference() -> None:
    a, b = texture(20, 20), texture(20, 20, dx=1)
    assert rgb_consistency_mask(a, b, uniform_flow(20, 20, 1, 0))[..., :-2].all()
    darker = rgb_consistency_mask(a, b - 0.1, uniform_flow(20, 20, 1, 0))
    assert not darker.any()


@pytest.mark.parametrize("motion", [(1.0, 0.0), (-2.5, 1.5)])
def test_dis_finds_a_known_shift(motion: tuple[float, float]) -> None:
    a, b = texture(64, 80), texture(64, 80, *motion)
    flow = DISFlow()(a, b)
    error = (flow - torch.tensor(motion).view(1, 2, 1, 1)).norm(dim=1)[:, 8:-8, 8:-8]
    assert error.mean() < 0.15  # measured 0.03; x and y swapped or negated would give > 1.4
    assert flow.dtype == torch.float32


def test_static_mask_finds_the_moving_block_and_the_lamp() -> None:
    still = texture(64, 64)
    clip = still.repeat(3, 1, 1, 1)
    for t in range(3):
        clip[t, :, 20:44, 10 + 4 * t : 34 + 4 * t] = texture(24, 24)[0].flip(0)
    clip[2, :, 50:60, 48:60] += 0.2
    mask = static_mask(clip, DISFlow())
    assert mask.shape == (3, 1, 64, 64)
    assert not mask[0].any()
    assert mask[1, 0, :12].float().mean() > 0.95
    assert mask[1, 0, 24:40, 20:30].float().mean() < 0.2
    assert mask[1, 0, 50:60, 48:60].float().mean() > 0.9
    assert mask[2, 0, 51:59, 49:59].float().mean() < 0.1


def test_estimators_by_name() -> None:
    assert isinstance(build_flow("dis"), DISFlow)
    assert pickle.loads(pickle.dumps(build_flow("dis_fast"))).preset == "fast"
    with pytest.raises(UserError, match="unknown flow 'farneback'"):
        build_flow("farneback")
    with pytest.raises(UserError, match="needs a local weights file"):
        build_flow("raft")
    with pytest.raises(UserError, match=r"not found: /nowhere/raft\.pth"):
        build_flow("raft:/nowhere/raft.pth")


def test_raft_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match="cannot be read"):
        RAFTFlow(tmp_path / "text.pth")
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="is not a state dict of torchvision"):
        RAFTFlow(tmp_path / "other.pth")


def test_raft_equals_torchvision_and_scales_small_frames(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    model = raft_small(weights=None).eval()
    save_file(model.state_dict(), tmp_path / "raft.safetensors")
    estimator = RAFTFlow(tmp_path / "raft.safetensors", num_updates=2)
    a, b = texture(128, 136), texture(128, 136, dx=2)
    with torch.no_grad():
        expected = model(2 * a - 1, 2 * b - 1, num_flow_updates=2)[-1]
    torch.testing.assert_close(estimator(a, b), expected)
    assert estimator(a[..., :70, :90], b[..., :70, :90]).shape == (1, 2, 70, 90)


def test_wrong_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 px"):
        DISFlow()(torch.zeros(1, 3, 8, 64), torch.zeros(1, 3, 8, 64))
    with pytest.raises(ValueError, match="must both be"):
        DISFlow()(torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32))


def _read_flo(path: Path) -> np.ndarray:
    raw = path.read_bytes()
    width, height = np.frombuffer(raw, "<i4", 2, offset=4)
    return np.frombuffer(raw, "<f4", offset=12).reshape(height, width, 2)


@pytest.mark.skipif("VIDEOMAMBA_TEST_CLIPS" not in os.environ, reason="VIDEOMAMBA_TEST_CLIPS is not set")
def test_dis_on_flow_pairs_beside_the_test_clips() -> None:
    import cv2

    folders = sorted((Path(os.environ["VIDEOMAMBA_TEST_CLIPS"]).parent / "flow").glob("*/flow_0to1.flo"))
    if not folders:
        pytest.skip("no flow pairs beside VIDEOMAMBA_TEST_CLIPS")
    for path in folders:
        frames = [cv2.imread(str(path.parent / name))[..., ::-1] / 255.0 for name in ("img0.png", "img1.png")]
        a, b = (torch.from_numpy(f.copy()).permute(2, 0, 1)[None].float() for f in frames)
        exact = torch.from_numpy(_read_flo(path).copy()).permute(2, 0, 1)[None]
        forward, backward = DISFlow()(a, b), DISFlow()(b, a)
        error = (forward - exact).norm(dim=1, keepdim=True)
        trusted = consistency_mask(forward, backward)
        assert trusted.float().mean() > 0.1
        # The check must do its work: trusted pixels are far better than the rest.
        assert error[trusted].mean() < 0.5 * error[~trusted].mean()


@pytest.mark.parametrize("size", [(28, 42), (45, 45), (56, 70)])
def test_flow_depends_on_the_pair_alone(size: tuple[int, int]) -> None:
    """OpenCV's estimator remembers earlier pairs on some sizes; chunks of a clip would then differ from the whole."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.nn.functional.interpolate(torch.rand(3, 3, 7, 7, generator=generator), size, mode="bicubic")
    frames = frames.clamp(0, 1)
    flow = DISFlow("fast")
    new = DISFlow("fast")(frames[:1], frames[1:2])
    flow(frames[1:2], frames[2:])
    assert torch.equal(flow(frames[:1], frames[1:2]), new)
