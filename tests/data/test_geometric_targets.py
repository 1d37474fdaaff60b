"""Geometric targets: a room with known poses is found, and where parallax says nothing, nothing is said."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from videomamba_depth.data.labels.geometry import geometric_clip, geometric_shots, shot_cuts
from videomamba_depth.data.labels.geometry.adjust import _cost, linearize
from videomamba_depth.data.labels.geometry.fuse import fuse, spread_over_pixels
from videomamba_depth.data.labels.geometry.pairs import FlowPairs, Grid, chained_flow_pairs
from videomamba_depth.data.labels.geometry.scene import (
    Belief,
    Poses,
    Scene,
    View,
    adjoint,
    transform,
)
from videomamba_depth.data.labels.geometry.solve import Solution, solve
from videomamba_depth.data.labels.geometry.trust import Support
from videomamba_depth.data.labels.stabilize import stabilize_clip
from videomamba_depth.data.synthetic import WorldConfig, render_video
from videomamba_depth.flow.estimators import DISFlow
from videomamba_depth.utils.cameras import rays, rotation_matrix
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.flow_utils import trust_mask

N, H, W, STEP, FOCAL = 16, 56, 70, 4, 60.0
OFFSETS = (1, -1, 2, -2, 4, -4, 8, -8)
NOISE_PX = 0.1


class Room(NamedTuple):
    """N frames of two walls and a floor, without occlusion, and the flow of its points."""

    poses: Poses
    inv_depth: Tensor  # [N,H,W]
    pairs: FlowPairs
    grid: Grid


def inverse_depth(ray: Tensor, poses: Poses) -> Tensor:
    """Return 1/z [N,...] of the nearest of three planes n · X = d, seen along rays [3,...]."""
    planes = torch.tensor([[0.0, 0.0, 1.0, 4.0], [0.0, 1.0, 0.25, 1.5], [0.9, 0.0, 0.4, 2.2]], dtype=torch.float64)
    per_plane = []
    for a, b, c, d in planes.tolist():
        normal = poses.rotation @ torch.tensor([a, b, c], dtype=torch.float64)
        center = -(poses.rotation.mT @ poses.translation[..., None])[..., 0]
        distance = d - center @ torch.tensor([a, b, c], dtype=torch.float64)
        per_plane.append(torch.einsum("nk,k...->n...", normal / distance[:, None], ray))
    return torch.stack(per_plane).amax(0)


def room(travel: float = 0.5, turn: float = 0.1, zoom: float = 1.0, noise_px: float = NOISE_PX) -> Room:
    """Return the room seen by a camera that travels (m), turns (rad) and zooms (a factor) over the clip."""
    time = torch.linspace(0, 1, N, dtype=torch.float64)
    vector = torch.stack([0.3 * turn * time, turn * time, 0.0 * time], -1)
    rotation = rotation_matrix(vector)
    center = travel * torch.stack([time, 0.3 * torch.sin(3 * time), 0.4 * time], -1)
    poses = Poses(rotation, -(rotation @ center[..., None])[..., 0])
    grid = Grid.of(H, W, STEP, torch.device("cpu"))
    middle = torch.tensor([(W - 1) / 2, (H - 1) / 2], dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(H).double(), torch.arange(W).double(), indexing="ij")
    focal = FOCAL * zoom**time
    dense = torch.stack(
        [
            inverse_depth(rays(torch.stack([x, y]), f, middle), Poses(r[None], t[None]))[0]
            for f, r, t in zip(focal, *poses, strict=True)
        ]
    )
    source = torch.arange(N)[:, None].expand(N, len(OFFSETS))
    wanted = source + torch.tensor(OFFSETS)
    other = wanted.clamp(0, N - 1)
    change = poses.relative(source, other)
    ray = torch.stack([rays(grid.points(torch.float64), f, middle) for f in focal])  # [N,3,P]
    points = grid.sample(dense)[:, None].expand(-1, len(OFFSETS), -1)
    px, py, pz = transform(ray.movedim(1, 0)[:, :, None], points, change)
    other_focal = focal[other][..., None]
    target = torch.stack([other_focal * px / pz + middle[0], other_focal * py / pz + middle[1]], 2)
    target = target + noise_px * torch.randn(
        target.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    inside = (target[:, :, 0] >= 0) & (target[:, :, 0] < W) & (target[:, :, 1] >= 0) & (target[:, :, 1] < H)
    trust = (inside & (wanted == other)[..., None]).float()
    return Room(poses, dense.float(), FlowPairs(OFFSETS, target.float(), trust), grid)


def distorted(inv_depth: Tensor, scale: float = 0.6, shift: float = 0.15) -> Tensor:
    """Return a teacher of mean 1: another scale and shift, and a slow bend of up to 60 percent over the picture."""
    bend = (
        1
        + 0.6
        * torch.sin(torch.linspace(0, 5, inv_depth.shape[-1]))
        * torch.linspace(-1, 1, inv_depth.shape[-2])[:, None]
    )
    teacher = scale * inv_depth * bend + shift
    return teacher / teacher.mean()


def solved(view: Room, teacher: Tensor, focal_std: float = 0.25) -> Solution:
    low = float(teacher.flatten().kthvalue(teacher.numel() // 100).values)
    focal = 0.9 * W if focal_std else FOCAL
    return solve(teacher, view.grid, view.pairs, (math.log(focal), focal_std), (-0.45 * low, 0.3))


def relative_error(inv_depth: Tensor, truth: Tensor) -> float:
    ratio = truth / inv_depth
    return float((ratio / ratio.median() - 1).abs().mean())


@pytest.mark.parametrize("focal_std", [0.0, 0.25])
def test_depth_poses_and_focal_length_of_a_room_are_found(focal_std: float) -> None:
    seen = room()
    teacher = distorted(seen.inv_depth)
    found = solved(seen, teacher, focal_std)
    truth = seen.grid.sample(seen.inv_depth)
    before = relative_error(seen.grid.sample(teacher), truth)
    after = relative_error(found.scene.inv_depth, truth)
    assert found.support.evidence == 1
    assert before > 0.12
    assert after < 0.06  # 0.02 to 0.03
    turned = found.scene.poses.rotation.double() @ (seen.poses.rotation @ seen.poses.rotation[0].T).mT
    angle = torch.arccos(((turned.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)).rad2deg()
    assert float(angle.max()) < 1.0  # 0.2 and 0.5
    assert abs(float(found.scene.log_focal) - math.log(FOCAL)) < 0.15  # 0.00 and 0.10


@pytest.mark.parametrize(("travel", "turn", "zoom"), [(0.0, 0.3, 1.0), (0.0, 0.0, 1.3), (0.0, 0.0, 1.0)])
def test_a_camera_that_stays_in_its_place_gives_no_evidence(travel: float, turn: float, zoom: float) -> None:
    seen = room(travel, turn, zoom)
    assert solved(seen, distorted(seen.inv_depth)).support.evidence == 0


def test_evidence_grows_continuously_with_parallax() -> None:
    evidence = [Support(ratio, 0.9, 0.0, 0.0).evidence for ratio in np.linspace(1.0, 4.0, 301)]
    assert evidence[0] == 0
    assert evidence[-1] == 1
    assert 0 <= min(np.diff(evidence)) <= max(np.diff(evidence)) < 0.02
    assert Support(10.0, 0.5, 0.0, 0.0).evidence == 0  # most of the frame moves by itself
    assert Support(10.0, 0.9, 4.0, 0.0).evidence == 0  # a focal length that no camera has


def test_what_moves_by_itself_is_not_believed() -> None:
    seen = room()
    here = torch.zeros(seen.grid.shape, dtype=torch.bool)
    here[5:9, 6:11] = True
    time = torch.tensor(OFFSETS)[None, :, None].float()
    own_motion = torch.where(here.flatten(), 0.6 * time, 0.0)  # px, across the epipolar lines
    target = seen.pairs.target_px.clone()
    target[:, :, 1] += own_motion
    teacher = distorted(seen.inv_depth)
    found = solved(seen._replace(pairs=seen.pairs._replace(target_px=target)), teacher)
    inside, outside = found.confidence[:, here.flatten()].mean(), found.confidence[:, ~here.flatten()].mean()
    assert float(inside) < 0.3 * float(outside)
    truth = seen.grid.sample(seen.inv_depth)
    assert relative_error(found.scene.inv_depth[:, ~here.flatten()], truth[:, ~here.flatten()]) < 0.04  # 0.012


def test_flow_that_goes_along_with_the_camera_carries_nothing_away() -> None:
    """Caught in a repeating pattern it says at all distances: far away."""
    seen = room()
    here = torch.zeros(seen.grid.shape, dtype=torch.bool)
    here[5:9, 6:11] = True
    middle = torch.tensor([(W - 1) / 2, (H - 1) / 2], dtype=torch.float64)
    change = seen.poses.relative(torch.arange(N)[:, None].expand(-1, len(OFFSETS)), seen.pairs.other)
    ray = rays(seen.grid.points(torch.float64), FOCAL, middle)
    px, py, pz = transform(ray, 0 * ray[0], change)  # as if it were infinitely far
    endless = torch.stack([FOCAL * px / pz + middle[0], FOCAL * py / pz + middle[1]], 2).float()
    target = torch.where(here.flatten(), endless, seen.pairs.target_px)
    found = solved(seen._replace(pairs=seen.pairs._replace(target_px=target)), distorted(seen.inv_depth))
    moved = (found.confidence * found.correction)[:, here.flatten()]
    assert float(moved.mean()) > -0.1  # -0.9 where it is believed
    assert float(found.confidence[:, ~here.flatten()].mean()) > 0.5


def test_the_equations_are_the_derivatives_of_the_cost() -> None:
    """2 · gradient against central differences of the robust cost, for every kind of unknown."""
    seen = room(noise_px=0.3)
    double = FlowPairs(OFFSETS, seen.pairs.target_px.double(), seen.pairs.trust.double())
    generator = torch.Generator().manual_seed(1)
    inv_depth = seen.grid.sample(seen.inv_depth).double()
    wrong = inv_depth * (1 + 0.02 * torch.randn(inv_depth.shape, generator=generator, dtype=torch.float64))
    poses = Poses(seen.poses.rotation, seen.poses.translation)
    scene = Scene(poses, wrong, torch.tensor(math.log(FOCAL * 1.02)).double(), torch.tensor(0.0).double())
    view = View(seen.grid.points(torch.float64), torch.tensor([(W - 1) / 2, (H - 1) / 2]).double())
    belief = Belief(inv_depth, torch.tensor(1e6).double(), (0.0, 0.0), (0.0, 0.0))  # no prior to speak of
    noise = torch.full((len(OFFSETS),), 0.3).double()

    def cost(changed: Scene) -> float:
        return _cost(changed, linearize(changed, view, double, noise).residuals, double, belief, noise)

    def twisted(frame: int, component: int, by: float) -> Scene:
        twist = torch.zeros(N, 6, dtype=torch.float64)
        twist[frame, component] = by
        return scene._replace(poses=scene.poses.moved(twist))

    linear = linearize(scene, view, double, noise)
    by_target = linear.products[..., :6, 7]  # [N,S,6]
    by_source = -(linear.to_source.mT @ by_target[..., None])[..., 0]
    step = 1e-6
    for frame, component in ((5, 0), (5, 2), (7, 4), (9, 5)):
        other_focal = (double.other == frame) & (double.trust.sum(-1) > 0)
        wanted = 2 * float(by_target[other_focal][:, component].sum() + by_source[frame, :, component].sum())
        slope = (cost(twisted(frame, component, step)) - cost(twisted(frame, component, -step))) / (2 * step)
        assert slope == pytest.approx(wanted, rel=1e-4)
    changed = [scene._replace(log_focal=scene.log_focal + s) for s in (step, -step)]
    assert (cost(changed[0]) - cost(changed[1])) / (2 * step) == pytest.approx(
        2 * float(linear.products[..., 6, 7].sum()), rel=1e-4
    )
    nudge = torch.zeros_like(wrong)
    nudge[4, 60] = step
    changed = [scene._replace(inv_depth=wrong + s * nudge) for s in (1, -1)]
    assert (cost(changed[0]) - cost(changed[1])) / (2 * step) == pytest.approx(
        2 * float(linear.residuals.gradient[4, 60]), rel=1e-3
    )


def test_the_adjoint_carries_a_twist_from_one_camera_to_the_other() -> None:
    seen = room()
    change = seen.poses.relative(torch.tensor([2]), torch.tensor([9]))
    twist = 1e-4 * torch.randn(1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    source = Poses(seen.poses.rotation[2:3], seen.poses.translation[2:3]).moved(twist)
    target = Poses(seen.poses.rotation[9:10], seen.poses.translation[9:10]).moved(
        (adjoint(change) @ twist[..., None])[..., 0]
    )
    after = Poses(torch.cat([source.rotation, target.rotation]), torch.cat([source.translation, target.translation]))
    moved = after.relative(torch.tensor([0]), torch.tensor([1]))
    torch.testing.assert_close(moved.rotation, change.rotation, atol=1e-7, rtol=0)
    torch.testing.assert_close(moved.translation, change.translation, atol=1e-7, rtol=0)


def test_solving_twice_gives_the_same_bits() -> None:
    seen = room()
    once, twice = (solved(seen, distorted(seen.inv_depth)) for _ in range(2))
    assert torch.equal(once.scene.inv_depth, twice.scene.inv_depth)
    assert torch.equal(once.confidence, twice.confidence)


def test_float64_finds_what_float32_finds() -> None:
    seen = room()
    teacher = distorted(seen.inv_depth)
    double = seen._replace(pairs=FlowPairs(OFFSETS, seen.pairs.target_px.double(), seen.pairs.trust.double()))
    single = solved(seen, teacher).scene.inv_depth
    assert relative_error(solved(double, teacher.double()).scene.inv_depth, single.double()) < 0.01  # 0.0004


def test_flow_is_chained_over_growing_distances() -> None:
    texture = torch.rand(1, 2, 40, 60, generator=torch.Generator().manual_seed(0))
    clip = torch.stack(
        [torch.cat([texture[0, :, :, 12 - t : 52 - t], torch.full((1, 40, 40), t / 255)]) for t in range(6)]
    )
    grid = Grid.of(40, 40, 4, clip.device)
    pairs = chained_flow_pairs(clip, DISFlow(), grid, torch.float32)
    assert pairs.offsets == (1, -1, 2, -2, 4, -4)
    moved = pairs.target_px[:, :, 0] - grid.points(torch.float32)[0]
    for slot, offset in enumerate(pairs.offsets):
        exists = [t for t in range(6) if 0 <= t + offset < 6]
        assert float(pairs.trust[[t for t in range(6) if t not in exists], slot].sum()) == 0
        trusted = pairs.trust[exists, slot] > 0
        assert float(trusted.float().mean()) > 0.5
        assert float((moved[exists, slot][trusted] - offset).abs().median()) < 0.1  # 0.02


def test_trust_on_the_grid_is_trust_on_every_pixel() -> None:
    video = render_video(5, WorldConfig(56, 70, 4, family="rooms"))
    clip = torch.from_numpy(video.rgb).permute(0, 3, 1, 2).float() / 255
    grid = Grid.of(56, 70, 4, clip.device)
    pairs = chained_flow_pairs(clip, DISFlow(), grid, torch.float32, (1,))
    forth, back = DISFlow()(clip[:-1], clip[1:]), DISFlow()(clip[1:], clip[:-1])
    everywhere = trust_mask(clip[:-1], clip[1:], forth, back, 0.1)[:, 0]
    same = grid.sample(everywhere.float()) == pairs.trust[:-1, 0]
    assert float(same.float().mean()) > 0.98  # up to a factor of exposure


def test_a_correction_stays_within_the_edges_of_the_guide() -> None:
    grid = Grid.of(40, 40, 4, torch.device("cpu"))
    guide = torch.zeros(1, 40, 40)
    guide[..., 22:] = 1.0
    correction = grid.sample(0.5 * guide)
    spread, known = spread_over_pixels(correction, torch.ones_like(correction), guide, grid)
    assert float(spread[..., :22].abs().max()) < 0.01
    assert float((spread[..., 22:] - 0.5).abs().max()) < 0.1  # 0.5 - 0.5 / 1.2
    assert float(known.min()) > 0.99
    nothing, unknown = spread_over_pixels(correction, torch.zeros_like(correction), guide, grid)
    assert float(nothing.abs().max()) == float(unknown.abs().max()) == 0


def test_fusion_removes_noise_and_leaves_the_truth_alone() -> None:
    seen = room(noise_px=0.0)
    scene = Scene(
        Poses(*(x.float() for x in seen.poses)),
        seen.grid.sample(seen.inv_depth),
        torch.tensor(math.log(FOCAL)),
        torch.tensor(0.0),
    )
    center, sure = torch.tensor([(W - 1) / 2, (H - 1) / 2]), torch.ones_like(seen.inv_depth)
    assert float(fuse(seen.inv_depth, sure, scene, center).abs().mean()) < 2e-3  # 2e-4
    noisy = (
        seen.inv_depth * (0.05 * torch.randn(seen.inv_depth.shape, generator=torch.Generator().manual_seed(0))).exp()
    )
    fused = noisy * fuse(noisy, sure, scene, center).exp()
    assert relative_error(fused, seen.inv_depth) < 0.5 * relative_error(noisy, seen.inv_depth)  # 0.35
    assert float(fuse(noisy, 0 * sure, scene, center).abs().max()) == 0


def panorama(frames: int, turn: float) -> Tensor:
    """Return what a camera sees of a far texture while it turns by so many rad from frame to frame, and nothing
    else."""
    generator = torch.Generator().manual_seed(3)
    texture = torch.nn.functional.interpolate(torch.rand(1, 3, 24, 48, generator=generator), (96, 192), mode="bicubic")
    y, x = torch.meshgrid(torch.arange(56.0), torch.arange(70.0), indexing="ij")
    ray = rays(torch.stack([x, y]), torch.tensor(63.0), torch.tensor([34.5, 27.5]))
    views = []
    for t in range(frames):
        turned = torch.einsum("ij,jhw->ihw", rotation_matrix(torch.tensor([0.0, turn * (t - frames / 2), 0.0])), ray)
        angles = torch.stack(
            [torch.atan2(turned[0], turned[2]) / 1.4, turned[1] / turned.square().sum(0).sqrt() / 0.7], -1
        )
        views.append(
            torch.nn.functional.grid_sample(texture, angles[None], padding_mode="reflection", align_corners=True)
        )
    return torch.cat(views).clamp(0, 1)


@pytest.mark.parametrize("turn", [0.0, 0.02])
@pytest.mark.parametrize("kind", list(DepthKind))
def test_without_parallax_the_target_is_the_stabilized_one_to_the_bit(turn: float, kind: DepthKind) -> None:
    clip = panorama(10, turn)
    depth = 2 + torch.rand(10, 1, 56, 70, generator=torch.Generator().manual_seed(0))
    geometric = geometric_clip(depth, clip, DISFlow(), depth_kind=kind)
    assert torch.equal(geometric, stabilize_clip(depth, clip, DISFlow(), depth_kind=kind))


def test_short_flat_and_broken_depth_are_left_to_the_stabilized_target() -> None:
    clip = panorama(10, 0.02)
    depth = 2 + torch.rand(10, 1, 56, 70, generator=torch.Generator().manual_seed(0))
    for part in (1, 3):
        made = geometric_clip(depth[:part], clip[:part], DISFlow())
        assert torch.equal(made, stabilize_clip(depth[:part], clip[:part], DISFlow()))
    assert torch.equal(geometric_clip(0 * depth, clip, DISFlow()), 0 * depth)
    assert torch.equal(
        geometric_clip(torch.nan * depth, clip, DISFlow()).isnan(), torch.ones_like(depth, dtype=torch.bool)
    )
    with pytest.raises(ValueError, match="depth must be"):
        geometric_clip(depth[:, :, :-1], clip, DISFlow())


@pytest.fixture(scope="module")
def world() -> tuple[Tensor, Tensor, Tensor]:
    """A rendered clip [N,3,H,W], its inverse depth [N,1,H,W] in 1/m, and a teacher that bends it."""
    video = render_video(24, WorldConfig(84, 105, 16, family="rooms"))
    clip = torch.from_numpy(video.rgb).permute(0, 3, 1, 2).float() / 255
    truth = 1 / torch.from_numpy(video.depth_m)[:, None]
    return clip, truth, distorted(truth) * 3


def aligned_error(depth: Tensor, truth: Tensor) -> float:
    """Return the mean relative error of inverse depth after one affine per clip."""
    x, y = depth.flatten().double(), truth.flatten().double()
    scale, shift = np.polyfit(x.numpy(), y.numpy(), 1)
    return float(((scale * x + shift) / y - 1).abs().mean())


def test_a_rendered_world_comes_nearer_to_the_truth(world: tuple[Tensor, Tensor, Tensor]) -> None:
    clip, truth, teacher = world
    made = geometric_clip(teacher, clip, DISFlow())
    assert made.shape == teacher.shape
    assert aligned_error(made, truth) < 0.75 * aligned_error(teacher, truth)  # 0.60


def test_metric_depth_keeps_its_unit(world: tuple[Tensor, Tensor, Tensor]) -> None:
    clip, truth, teacher = world
    bent = (teacher / teacher.mean() * truth.mean()).reciprocal()
    made = geometric_clip(bent, clip, DISFlow(), depth_kind=DepthKind.METRIC)
    assert 0.8 < float(made.median() / bent.median()) < 1.25
    half = geometric_clip(0.5 * bent, clip, DISFlow(), depth_kind=DepthKind.METRIC)
    torch.testing.assert_close(half, 0.5 * made, rtol=1e-2, atol=0)


def test_what_is_not_finite_stays_and_harms_nothing(world: tuple[Tensor, Tensor, Tensor]) -> None:
    clip, truth, teacher = world
    hole = teacher.clone()
    hole[:, :, 30:40, 30:40] = torch.inf
    made = geometric_clip(hole, clip, DISFlow())
    seen = torch.isfinite(hole)
    assert torch.equal(torch.isfinite(made), seen)
    assert aligned_error(made[seen], truth[seen]) < 0.8 * aligned_error(teacher[seen], truth[seen])


def test_shots_are_corrected_each_on_its_own(world: tuple[Tensor, Tensor, Tensor]) -> None:
    clip, _, teacher = world
    other = torch.rand(1, 3, 84, 105, generator=torch.Generator().manual_seed(0)).expand(6, -1, -1, -1)
    joined = geometric_shots(torch.cat([teacher, 0 * teacher[:6] + 1]), torch.cat([clip, other]), DISFlow())
    alone = geometric_shots(teacher, clip, DISFlow())
    assert [len(shot.depth) for shot in joined] == [16, 6]
    assert torch.equal(joined[0].depth, alone[0].depth)
    assert joined[0].evidence == alone[0].evidence > 0


@pytest.mark.parametrize("level", [0.0, 0.75, 1.0])
def test_a_frame_without_texture_goes_on_nowhere(world: tuple[Tensor, Tensor, Tensor], level: float) -> None:
    clip = world[0][:3]
    flat = torch.full_like(clip, level)
    other = torch.rand(1, 3, 84, 105, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
    assert shot_cuts(torch.cat([clip, flat, other]), DISFlow()) == [3, 6]
    assert shot_cuts(torch.cat([flat, clip]), DISFlow()) == [3]
    assert shot_cuts(torch.cat([clip, clip * 0.3]), DISFlow()) == []


def test_a_jump_of_the_exposure_is_no_cut(world: tuple[Tensor, Tensor, Tensor]) -> None:
    clip, truth, teacher = world
    jumping = clip.clone()
    jumping[8:] = (jumping[8:] * 1.6).clamp(max=1)
    shots = geometric_shots(teacher, jumping, DISFlow())
    assert len(shots) == 1
    assert aligned_error(shots[0].depth[:, None], truth) < 0.85 * aligned_error(teacher, truth)
