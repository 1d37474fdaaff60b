"""Windows of a long video agree where they meet, shots are kept apart, and no more than a window is held."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from videomamba_depth.data.labels import windowed_target
from videomamba_depth.data.labels.geometry import GeometricShot, geometric_clip
from videomamba_depth.data.labels.geometry.scene import Poses, Scene
from videomamba_depth.data.labels.stabilize import stabilize_clip
from videomamba_depth.data.labels.windowed_target import TargetFrame, WindowedTarget
from videomamba_depth.data.synthetic import WorldConfig, render_video
from videomamba_depth.flow.estimators import DISFlow, FlowEstimator
from videomamba_depth.utils.cameras import rotation_matrix
from videomamba_depth.utils.depth_kind import DepthKind

KINDS = (DepthKind.RELATIVE, DepthKind.METRIC)
SMALL = {"window": 24, "overlap": 12}


def no_flow(source: Tensor, target: Tensor) -> Tensor:
    return torch.zeros_like(source[:, :2])


def pictures(count: int, height: int = 16, width: int = 20, seed: int = 0) -> Tensor:
    """Return a still scene [count,3,H,W]: flow of 0 is right."""
    picture = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    return picture.expand(count, 3, height, width).contiguous()


def run(target: WindowedTarget, clip: Tensor, depth: Tensor) -> list[TargetFrame]:
    found = [frame for rgb, values in zip(clip, depth, strict=True) for frame in target.add(rgb, values)]
    return found + target.finish()


def maps(found: list[TargetFrame]) -> Tensor:
    return torch.stack([frame.depth for frame in found])


@pytest.mark.parametrize("kind", KINDS)
def test_what_fits_a_window_is_the_clip_s_own_target(kind: DepthKind) -> None:
    world = render_video(3, WorldConfig(height=56, width=70, num_frames=12))
    clip = torch.from_numpy(world.rgb).permute(0, 3, 1, 2).float() / 255
    depth = torch.from_numpy(world.depth_m).float()
    depth = depth if kind is DepthKind.METRIC else 1 / depth
    options = {"radius": 8, "sigma": 5.0, "depth_kind": kind}
    for geometry, alone in ((True, geometric_clip), (False, stabilize_clip)):
        found = run(WindowedTarget(DISFlow(), kind, geometry=geometry, cuts=False), clip, depth)
        assert torch.equal(maps(found), alone(depth[:, None], clip, DISFlow(), **options)[:, 0])  # type: ignore[arg-type]
        assert [frame.camera is not None for frame in found] == [geometry] * 12
        assert [frame.begins_shot for frame in found] == [True] + [False] * 11


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [24, 25, 29, 60, 131])
def test_windows_of_other_scale_and_shift_are_one(kind: DepthKind, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every window comes in a unit of its own; what is left is the unit of the first."""
    rng = np.random.default_rng(0)

    def in_its_own_unit(depth: Tensor, clip: Tensor, flow: FlowEstimator, kind: DepthKind) -> GeometricShot:
        scale = 1.0 if not used else float(rng.uniform(0.6, 1.6))
        shift = float(rng.uniform(-0.3, 0.3)) if used and kind is DepthKind.RELATIVE else 0.0
        used.append(scale)
        return GeometricShot(depth * scale + shift, None, 0.0)

    used: list[float] = []
    monkeypatch.setattr(windowed_target, "correct_shot", in_its_own_unit)
    monkeypatch.setattr(windowed_target, "PULL_FRAMES", 1e9)
    clip = pictures(count)
    depth = 1 + clip[:, 0] + 0.01 * torch.arange(count)[:, None, None]  # it drifts, truly
    found = maps(run(WindowedTarget(no_flow, kind, **SMALL), clip, depth))
    assert len(found) == count
    assert len(used) == 1 + math.ceil(max(0, count - 24) / 12)
    torch.testing.assert_close(found, depth, atol=2e-3, rtol=0)


def test_a_seam_s_scale_is_taken_back_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the errors of many seams would add up."""
    calls: list[int] = []

    def doubled_after_the_first(depth: Tensor, *rest: object) -> GeometricShot:
        calls.append(len(depth))
        return GeometricShot(depth if len(calls) == 1 else 2 * depth, None, 0.0)

    monkeypatch.setattr(windowed_target, "correct_shot", doubled_after_the_first)
    monkeypatch.setattr(windowed_target, "PULL_FRAMES", 20.0)
    clip = pictures(200)
    level = maps(run(WindowedTarget(no_flow, DepthKind.METRIC, **SMALL), clip, 1 + clip[:, 0])).mean((1, 2))
    level = level / level[0]
    assert level[:20].sub(1).abs().max() < 1e-4
    assert (level[1:] / level[:-1]).sub(1).abs().max() < 0.05  # no jump of a factor of two, and no other
    assert 1.95 < level[-1] <= 2.0


def test_shots_are_kept_apart() -> None:
    """A cut anywhere, also within an overlap and next to a window's end, and one that the caller knows of."""
    options = {"radius": 2, "sigma": 1.5}
    for first in (5, 24, 30, 37):
        shots = [pictures(first, seed=1) * 0.5, pictures(31, seed=2) * 0.5 + 0.5]
        depths = [1 + shot[:, 0] * (1 + k) for k, shot in enumerate(shots)]
        both, depth = torch.cat(shots), torch.cat(depths)
        for cuts in (True, False):
            target = WindowedTarget(no_flow, DepthKind.RELATIVE, geometry=False, cuts=cuts, **options, **SMALL)
            found = []
            for t, (rgb, values) in enumerate(zip(both, depth, strict=True)):
                found += target.add(rgb, values, begins_shot=not cuts and t == first)
            found += target.finish()
            assert [t for t, frame in enumerate(found) if frame.begins_shot] == [0, first]
            alone = WindowedTarget(no_flow, DepthKind.RELATIVE, geometry=False, **options, **SMALL)
            assert torch.equal(maps(found)[first:], maps(run(alone, shots[1], depths[1])))


def test_no_more_than_a_window_is_held() -> None:
    target = WindowedTarget(no_flow, DepthKind.RELATIVE, geometry=False, radius=1, **SMALL)
    clip = pictures(1)[0]
    done = 0
    for count in range(1, 301):
        done += len(target.add(clip, 1 + clip[0]))
        assert count - done <= 24
    assert done + len(target.finish()) == 300
    assert target.finish() == []


def test_flat_depth_and_holes_pass() -> None:
    clip = pictures(60)
    for kind in KINDS:
        flat = run(WindowedTarget(no_flow, kind, geometry=False, **SMALL), clip, torch.full((60, 16, 20), 3.0))
        torch.testing.assert_close(maps(flat), torch.full((60, 16, 20), 3.0))
        depth = 1 + clip[:, 0]
        depth[:, :2] = torch.nan
        found = maps(run(WindowedTarget(no_flow, kind, geometry=False, **SMALL), clip, depth))
        assert torch.equal(found.isnan(), depth.isnan())


@pytest.mark.parametrize("kind", KINDS)
def test_cameras_of_windows_are_one_path(kind: DepthKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each window's world begins at its own first frame, in a unit of its own."""
    count, time = 70, torch.linspace(0, 1, 70, dtype=torch.float64)
    rotation = rotation_matrix(torch.stack([0.2 * time, 0.6 * time, 0.1 * time**2], -1))  # world to camera
    center = torch.stack([torch.sin(4 * time), 0.2 * time, 2 * time], -1)
    start = iter([0, 12, 24, 36, 48])
    units: list[float] = []

    def scene_of(depth: Tensor, *rest: object) -> GeometricShot:
        first = next(start)
        frames = slice(first, first + len(depth))
        unit = 1.0 if kind is DepthKind.RELATIVE and not units else float(np.random.default_rng(first).uniform(0.5, 2))
        unit = 1 / float((1 / depth).double().mean()) if kind is DepthKind.METRIC else unit  # as `correct_shot` has it
        units.append(unit)
        own = rotation[frames] @ rotation[first].T
        moved = (center[frames] - center[first]) @ rotation[first].T / unit
        poses = Poses(own, -(own @ moved[..., None])[..., 0])
        inverse = unit * (1 + torch.arange(count, dtype=torch.float64)[frames, None].expand(-1, 5) / 100)
        return GeometricShot(depth, Scene(poses, inverse, torch.tensor(3.0), torch.tensor(0.0)), 1.0)

    monkeypatch.setattr(windowed_target, "correct_shot", scene_of)
    clip = pictures(count)
    depth = (2 + clip[:, 0]) * torch.linspace(1, 2, count)[:, None, None]
    found = run(WindowedTarget(no_flow, kind, **SMALL), clip, depth)
    cameras = [frame.camera for frame in found]
    assert all(
        camera is not None and not camera.lost and camera.focal == pytest.approx(math.exp(3)) for camera in cameras
    )
    np.testing.assert_allclose([camera.position for camera in cameras if camera], center, atol=1e-9)
    np.testing.assert_allclose([camera.rotation for camera in cameras if camera], rotation.mT, atol=1e-9)


def test_a_camera_without_parallax_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(evidence: float) -> Callable[..., GeometricShot]:
        def shot(depth: Tensor, *rest: object) -> GeometricShot:
            steps = torch.arange(len(depth), dtype=torch.float64)
            poses = Poses(torch.eye(3).double().repeat(len(depth), 1, 1), torch.stack([steps, steps, steps], -1))
            scene = Scene(poses, torch.ones(len(depth), 5).double(), torch.tensor(3.0), torch.tensor(0.0))
            return GeometricShot(depth, scene, evidence)

        return shot

    target, clip = WindowedTarget(no_flow, DepthKind.RELATIVE, **SMALL), pictures(48)
    monkeypatch.setattr(windowed_target, "correct_shot", answers(1.0))
    found = [frame for rgb in clip[:30] for frame in target.add(rgb, 1 + rgb[0])]
    monkeypatch.setattr(windowed_target, "correct_shot", answers(0.0))
    found += [frame for rgb in clip[30:] for frame in target.add(rgb, 1 + rgb[0])] + target.finish()
    path = np.array([frame.camera.position for frame in found if frame.camera])
    np.testing.assert_allclose(path[:19, 0], -np.arange(19.0))
    np.testing.assert_allclose(path[19:, 0], -18.0)
    assert [frame.camera.evidence for frame in found if frame.camera] == [1.0] * 18 + [0.0] * 30


def test_an_overlap_that_leaves_nothing_is_refused() -> None:
    for overlap in (8, 13):
        with pytest.raises(ValueError, match="overlap must be above 8 and at most half of window=24"):
            WindowedTarget(no_flow, DepthKind.RELATIVE, window=24, overlap=overlap)
