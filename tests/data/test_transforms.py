"""One draw for all frames and maps; every map moves with its pixels; perturbations touch the student's input only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from videomamba_depth.data.perturbations import Perturbations
from videomamba_depth.data.transforms import ClipTransform, Geometry, draw_color_change, fit_size, resize_images

H, W, N = 40, 60, 3


def ramp_clip() -> dict[str, np.ndarray]:
    """A clip whose pixels name their own place: red = x, green = y; every map is a function of x and y too."""
    y, x = np.mgrid[:H, :W]
    rgb = np.stack([x * 4, y * 4, np.full_like(x, 30)], -1).astype(np.uint8)
    maps = np.broadcast_to(x.astype(np.float32), (N, H, W))
    return {
        "rgb": np.broadcast_to(rgb, (N, H, W, 3)).copy(),
        "teacher_depth": maps.copy(),
        "inv_depth": maps.copy(),
        "valid": np.broadcast_to(x < W // 2, (N, H, W)).copy(),
        "static": np.broadcast_to(x < W // 2, (N, H, W)).copy(),
        "flow_bwd": np.broadcast_to(np.stack([x * 0.1, y * 0.1], -1).astype(np.float32), (N, H, W, 2)).copy(),
    }


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_shapes_types_and_range() -> None:
    out = ClipTransform(crop=(28, 36), flip=True)(ramp_clip(), rng())
    channels = {"rgb": 3, "rgb_clean": 3, "flow_bwd": 2}
    for name, value in out.items():
        assert value.shape == (N, channels.get(name, 1), 28, 36), name
        assert value.dtype == (torch.bool if name in ("valid", "static") else torch.float32), name
        assert value.is_contiguous()
    assert 0 <= out["rgb"].min() <= out["rgb"].max() <= 1


@pytest.mark.parametrize("seed", range(6))
def test_maps_follow_the_image_through_resize_crop_and_flip(seed: int) -> None:
    out = ClipTransform(crop=(28, 36), flip=True)(ramp_clip(), rng(seed))
    x = out["rgb_clean"][:, 0] * 255 / 4  # the source column that each pixel shows
    inner = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(out["teacher_depth"][:, 0][inner], x[inner], atol=0.5, rtol=0)
    torch.testing.assert_close(out["inv_depth"][:, 0][inner], x[inner], atol=1.0, rtol=0)
    for name in ("valid", "static"):
        sure = (x - W / 2).abs() > 2
        assert torch.equal(out[name][:, 0][sure], (x < W / 2)[sure])
    flipped = bool(x[0, 0, 0] > x[0, 0, -1])
    scale = (x[0, 0, 5] - x[0, 0, 35]).abs() / 30  # source px per output px
    u = x * 0.1 / scale * (-1 if flipped else 1)
    torch.testing.assert_close(out["flow_bwd"][:, 0][inner], u[inner], atol=0.2, rtol=0)


def test_flip_happens_and_negates_u_only() -> None:
    transform = ClipTransform(crop=(H, W), flip=True)
    drawn = {transform.draw_geometry(H, W, rng(seed)) for seed in range(10)}
    assert drawn == {Geometry((H, W), 0, 0, (H, W), flip) for flip in (False, True)}
    straight, flipped = (transform(ramp_clip(), rng(), geometry) for geometry in sorted(drawn, key=lambda g: g.flip))
    torch.testing.assert_close(flipped["rgb"], straight["rgb"].flip(-1))
    torch.testing.assert_close(flipped["flow_bwd"][:, 0], -straight["flow_bwd"][:, 0].flip(-1))
    torch.testing.assert_close(flipped["flow_bwd"][:, 1], straight["flow_bwd"][:, 1].flip(-1))


def test_resize_scales_flow_from_its_own_grid() -> None:
    clip = {"rgb": np.zeros((1, 20, 30, 3), np.uint8), "flow_bwd": np.ones((1, 10, 10, 2), np.float32)}
    flow = ClipTransform(crop=(40, 60))(clip, rng())["flow_bwd"]
    assert flow[0, :, 0, 0].tolist() == [6.0, 4.0]  # x: 10 → 60, y: 10 → 40


@pytest.mark.parametrize("damage", [0.0, 1.0])
def test_all_frames_share_the_draw(damage: float) -> None:
    transform = ClipTransform(crop=(28, 28), color_jitter=0.2, perturb=Perturbations(damage))
    out = transform(ramp_clip(), rng(3))
    for t in range(1, N):
        torch.testing.assert_close(out["rgb_clean"][t], out["rgb_clean"][0], rtol=0, atol=0)
        assert torch.equal(out["rgb"][t], out["rgb"][0]) is (damage == 0)


def test_color_changes_both_inputs_alike_and_nothing_else() -> None:
    plain = ClipTransform(crop=(28, 42))(ramp_clip(), rng(1))
    colored = ClipTransform(crop=(28, 42), color_jitter=0.4)(ramp_clip(), rng(1))
    assert (colored["rgb"] - plain["rgb"]).abs().max() > 0.02
    torch.testing.assert_close(colored["rgb"], colored["rgb_clean"])
    torch.testing.assert_close(colored["teacher_depth"], plain["teacher_depth"])


def test_color_jitter_of_strength_zero_is_the_identity() -> None:
    change = draw_color_change(rng(), 0.3, brightness=0, contrast=0, saturation=0, hue=0)
    np.testing.assert_allclose(change, np.eye(3, 4), atol=1e-6)
    change = draw_color_change(rng(), 0.3, brightness=0, contrast=0, saturation=1, hue=0.5)
    gray = change @ np.array([0.4, 0.4, 0.4, 1])
    np.testing.assert_allclose(gray, 0.4, atol=1e-6)  # hue and saturation leave gray alone


DEFECTS: dict[str, Any] = {"exposure": 0.3, "noise": 0.1, "jpeg": 20, "blur": 2.0}
OFF: dict[str, Any] = dict.fromkeys(DEFECTS, 0)


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_changes_each_frame_by_itself(name: str) -> None:
    texture = rng(5).random((1, 32, 48, 3), dtype=np.float32).repeat(4, 0)
    before = texture.copy()
    out = Perturbations(1.0, **{**OFF, name: DEFECTS[name]})(texture, rng(2))
    np.testing.assert_array_equal(texture, before)
    assert out.dtype == np.float32
    assert 0 <= out.min() <= out.max() <= 1
    changed = [np.abs(out[t] - texture[t]).max() > 1e-3 for t in range(4)]
    assert sum(changed) >= 3  # a frame may draw next to nothing
    assert any(np.abs(out[t] - out[0]).max() > 1e-3 for t in range(1, 4))


def test_defects_switched_off_change_nothing() -> None:
    clip = rng(5).random((2, 16, 16, 3), dtype=np.float32)
    for off in (Perturbations(0.0), Perturbations(1.0, **OFF)):
        np.testing.assert_array_equal(off(clip, rng()), clip)


def test_same_generator_state_gives_the_same_clip() -> None:
    transform = ClipTransform(crop=(28, 28), color_jitter=0.2, perturb=Perturbations())
    one, same, other = (transform(ramp_clip(), rng(seed))["rgb"] for seed in (4, 4, 5))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_static_needs_everything_under_the_pixel_and_holes_do_not_leak() -> None:
    static = np.ones((1, 40, 40), bool)
    static[0, 20, 20] = False
    depth = np.full((1, 40, 40), 2.0, np.float32)
    depth[0, :, 20:] = 0.0
    clip = {"rgb": np.zeros((1, 40, 40, 3), np.uint8), "static": static, "inv_depth": depth, "valid": depth > 0}
    out = ClipTransform(crop=(20, 20))(clip, rng())
    assert (~out["static"]).sum() == 1
    assert not out["static"][0, 0, 10, 10]
    assert set(out["inv_depth"].unique().tolist()) == {0.0, 2.0}  # never the mean of both
    assert torch.equal(out["valid"], out["inv_depth"] > 0)


@pytest.mark.parametrize("size", [(8, 8), (36, 37)])
def test_shrinking_averages_instead_of_skipping(size: tuple[int, int]) -> None:
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    small = resize_images(stripes, size)
    assert np.abs(small[:, :, 1:-1].astype(int) - 128).max() <= 3


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((480, 640), 140, (140, 182)),
        ((640, 480), 140, (182, 140)),
        ((37, 53), None, (42, 56)),
        ((3, 9), None, (14, 14)),
    ],
)
def test_fit_size(size: tuple[int, int], short_side: int | None, expected: tuple[int, int]) -> None:
    assert fit_size(*size, short_side) == expected


def test_short_side_keeps_the_whole_frame() -> None:
    out = ClipTransform(28, random_crop=False)(ramp_clip(), rng())
    assert out["rgb"].shape[-2:] == (28, 42)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown map 'normals'"):
        ClipTransform(crop=(28, 28))({**ramp_clip(), "normals": np.zeros((N, H, W))}, rng())
    with pytest.raises(ValueError, match="noise must"):
        Perturbations(noise=-1)
    with pytest.raises(ValueError, match="jpeg must"):
        Perturbations(jpeg=96)
    with pytest.raises(ValueError, match="color_jitter must"):
        ClipTransform(color_jitter=1.7)
