"""Geometry in the stream: known cameras are followed, depth is corrected, and without parallax nothing is changed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from videomamba_depth.models.camera import Camera, cameras_of
from videomamba_depth.models.camera_tracking import Adjusted, Tracks, View
from videomamba_depth.models.checkpoint import describe_encoder, load_student, save_student, student_weights
from videomamba_depth.models.decoder_fit import FITTED, DecoderFit
from videomamba_depth.models.depth_state import DepthState
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.geometry import CAMERAS, SCENE, Geometry, GeometrySpec, Scene
from videomamba_depth.models.motion import Motion, MotionEstimator, MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.photometric import FLOW_SHARE, Patches, compare_pictures
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.cameras import quaternion, rotation_matrix
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.flow_utils import in_bounds_mask

N, H, W = 24, 56, 70
BLACK = torch.zeros(1, N, 3, H, W)
SPEC = GeometrySpec(short_side=H, focal=1.0, refined=0, picture_steps=0)  # no pictures: the flow is exact
PLANES = torch.tensor([[0.0, 0.0, 1.0, 4.0], [0.0, 1.0, 0.25, 1.5], [0.9, 0.0, 0.4, 2.2]])  # n · X = d


class Walk(NamedTuple):
    """A camera before two walls and a floor: poses [N,3,4], world to camera, inverse depth [N,H,W], exact motion."""

    poses: Tensor
    inv_depth: Tensor
    motion: Motion


def walk(speed: float = 0.05, turn: float = 0.004, seed: int = 0) -> Walk:
    """Return a walk of `speed` per frame; `turn`: rad per frame."""
    direction = torch.nn.functional.normalize(torch.randn(3, generator=torch.Generator().manual_seed(seed)), dim=0)
    steps = torch.arange(N, dtype=torch.float64)
    rotation = rotation_matrix(steps[:, None] * turn * torch.tensor([0.3, 1.0, 0.2], dtype=torch.float64))
    translation = steps[:, None] * speed * direction.double()
    y, x = torch.meshgrid(torch.arange(H).double(), torch.arange(W).double(), indexing="ij")
    ray = torch.stack([(x - (W - 1) / 2) / W, (y - (H - 1) / 2) / W, torch.ones_like(x)])  # focal length W
    center = -(rotation.mT @ translation[..., None])[..., 0]
    per_plane = [
        torch.einsum("nk,khw->nhw", (rotation @ n.double()) / (d - center @ n.double())[:, None], ray)
        for *normal, d in PLANES.tolist()
        for n in [torch.tensor(normal)]
    ]
    inv_depth = torch.stack(per_plane).amax(0)
    flow = torch.zeros(N, 2, H, W, dtype=torch.float64)
    for t in range(1, N):
        change = rotation[t - 1] @ rotation[t].mT
        moved = translation[t - 1] - change @ translation[t]
        seen = torch.einsum("ij,jhw->ihw", change, ray) + inv_depth[t] * moved[:, None, None]
        flow[t] = seen[:2] / seen[2] * W + torch.tensor([(W - 1) / 2, (H - 1) / 2])[:, None, None] - torch.stack([x, y])
    trusted = in_bounds_mask(flow)
    trusted[0] = False
    motion = Motion(flow.float()[None], trusted[None])
    return Walk(torch.cat([rotation, translation[..., None]], -1).float(), inv_depth.float(), motion)


def teacher(inv_depth: Tensor) -> Tensor:
    """Return depth [1,N,1,H,W] that is wrong as a teacher is: slowly varying over the picture, alike in all frames."""
    x = torch.linspace(-1, 1, W)
    return (inv_depth * torch.exp(0.35 * x) * 3)[None, :, None]


def pictures(seen: Walk) -> Tensor:
    """Return what the camera sees, [1,N,3,H,W]: waves along random directions through space."""
    y, x = torch.meshgrid(torch.arange(H).float(), torch.arange(W).float(), indexing="ij")
    ray = torch.stack([(x - (W - 1) / 2) / W, (y - (H - 1) / 2) / W, torch.ones_like(x)])
    rotation, translation = seen.poses[:, :, :3], seen.poses[:, :, 3:]
    points = rotation.mT @ ((ray / seen.inv_depth[:, None]).flatten(2) - translation)  # [N,3,H·W]
    waves = 8 * torch.randn(12, 3, generator=torch.Generator().manual_seed(3))
    return (0.5 + (waves @ points).sin().mean(1)).view(1, N, 1, H, W).expand(1, N, 3, H, W)


def run(
    seen: Walk, depth: Tensor, spec: GeometrySpec = SPEC, kind: DepthKind = DepthKind.METRIC, clip: Tensor = BLACK
) -> tuple[Tensor, list[Camera], Tensor]:
    """Return corrected depth, the camera of every frame, and its poses [N,3,4]."""
    geometry = Geometry(spec, kind)
    maps, index = geometry.new_maps(1, (H, W), "cpu"), torch.zeros(1, dtype=torch.int64)
    frames, cameras, poses = [], list[Camera](), []
    for t in range(depth.shape[1]):
        frame, maps = geometry(depth[:, t : t + 1], clip[:, t : t + 1], maps, index + t, seen.motion.chunk(t, t + 1))
        frames.append(frame)
        poses.append(maps[CAMERAS][0, 0])
        cameras += cameras_of(DepthState({}, index, {}, "", (H, W), maps), kind)
    return torch.cat(frames, 1), cameras, torch.stack(poses)


def log_error(depth: Tensor, seen: Walk) -> float:
    """Return the spread of log depth about the truth, free of scale, over the last eight frames."""
    ratio = (1 / depth[0, -8:, 0]).log() - seen.inv_depth[-8:].log()
    return float(ratio.std())


def test_depth_and_camera_of_a_known_walk() -> None:
    seen = walk()
    wrong = 1 / teacher(seen.inv_depth)
    right, cameras, _ = run(seen, wrong)
    before, after = log_error(wrong, seen), log_error(right, seen)
    assert after < 0.45 * before, (before, after)
    rotation = seen.poses[:, :, :3].double().numpy()
    centers = -np.einsum("nji,nj->ni", rotation, seen.poses[:, :, 3].double().numpy())
    found = np.stack([camera.position for camera in cameras])
    found *= (found * centers).sum() / (found * found).sum()
    error = np.sqrt(np.square(found - centers).sum(1).mean())
    assert error < 0.1 * np.linalg.norm(centers[-1]), error
    turns = [np.trace(camera.rotation.T @ own.T) for camera, own in zip(cameras, rotation, strict=True)]
    assert np.degrees(np.arccos(np.clip((min(turns) - 1) / 2, -1, 1))) < 2.5
    assert cameras[-1].evidence > 0.8
    assert cameras[0].evidence == 0.0
    assert cameras[0].focal_px == pytest.approx(W)


@pytest.mark.parametrize("assumed", [0.75, 1.3])
def test_the_focal_length_follows_parallax_unless_it_is_known(assumed: float) -> None:
    seen = walk(turn=0.02)
    wrong = 1 / teacher(seen.inv_depth)
    spec = replace(SPEC, focal=assumed, level_spread=0.0)  # the teacher's level is right in all frames
    depth, cameras, _ = run(seen, wrong, spec)
    held, known, _ = run(seen, wrong, replace(spec, focal_spread=0.0))
    assert {camera.focal_px for camera in known} == {float(np.float32(assumed * W))}
    assert abs(math.log(cameras[-1].focal_px / W)) < 0.5 * abs(math.log(assumed)), cameras[-1].focal_px / W
    assert log_error(depth, seen) < log_error(held, seen)
    still = walk(speed=0.0, turn=0.0)
    _, cameras, _ = run(still, 1 / teacher(still.inv_depth), replace(SPEC, focal=assumed))
    assert cameras[-1].focal_px == pytest.approx(assumed * W, rel=1e-3)


@pytest.mark.parametrize("kind", list(DepthKind))
def test_the_level_of_a_frame_follows_the_frames_before_and_not_the_decoder(kind: DepthKind) -> None:
    seen = walk()
    level = torch.linspace(0, 0.7, N).view(1, N, 1, 1, 1)  # a teacher of single frames, which forgets its scale
    wrong = teacher(seen.inv_depth) * level.exp()
    off = []
    for spread in (0.0, 0.2):
        spec = replace(SPEC, level_spread=spread, shift_spread=0.0)
        depth, _, _ = run(seen, wrong if kind is DepthKind.RELATIVE else 1 / wrong, spec, kind)
        inverse = depth if kind is DepthKind.RELATIVE else 1 / depth
        off.append(float((inverse[0, -1] / seen.inv_depth[-1]).log().median()) - math.log(3))
    assert off[1] < min(0.6 * off[0], 0.4 * 0.7), off


@pytest.mark.parametrize("shift", [-0.1, 0.6])
def test_the_shift_of_a_relative_decoder_follows_parallax_unless_it_is_known(shift: float) -> None:
    seen = walk()
    depth = (seen.inv_depth / seen.inv_depth.mean() + shift)[None, :, None]
    found = []
    for spread in (0.0, 0.3):
        geometry, index = Geometry(replace(SPEC, shift_spread=spread), DepthKind.RELATIVE), torch.zeros(1).long()
        _, maps = geometry(depth, BLACK, geometry.new_maps(1, (H, W), "cpu"), index, seen.motion)
        scene = Scene(*maps[SCENE].flatten().tolist())
        found.append(scene.unit * (scene.shift + scene.shift_change))
    assert abs(found[1] + shift) < 0.75 * abs(found[0] + shift), found
    still = walk(speed=0.0, turn=0.0)
    right, _, _ = run(still, depth, kind=DepthKind.RELATIVE)
    assert torch.equal(right, depth)


@pytest.mark.parametrize(
    ("case", "turn", "assumed"),
    [("static", 0.0, 1.0), ("turning", 0.01, 1.0), ("another focal length", 0.02, 0.7), ("blank", 0.01, 1.0)],
)
def test_without_parallax_depth_is_the_decoders_to_the_bit(case: str, turn: float, assumed: float) -> None:
    seen = walk(speed=0.0, turn=turn)
    if case == "blank":
        nothing = torch.zeros_like(seen.motion.trusted)
        seen = seen._replace(motion=Motion(torch.randn_like(seen.motion.flow_px), nothing))
    depth = 1 / teacher(seen.inv_depth)
    noise = torch.randn(depth.shape, generator=torch.Generator().manual_seed(0))
    depth = depth * (1 + 0.02 * noise)
    right, cameras, _ = run(seen, depth, replace(SPEC, focal=assumed))
    assert torch.equal(right, depth)
    assert case == "another focal length" or all(np.abs(camera.position).max() < 0.1 for camera in cameras)


def test_every_split_gives_the_same_and_streams_of_a_batch_do_not_mix() -> None:
    first, second = walk(), walk(speed=0.03, turn=-0.01, seed=1)
    depth = torch.cat([1 / teacher(seen.inv_depth) for seen in (first, second)])
    motion = Motion(*(torch.cat(pair) for pair in zip(first.motion, second.motion, strict=True)))
    geometry, index = Geometry(SPEC, DepthKind.METRIC), torch.zeros(2, dtype=torch.int64)
    whole, end = geometry(depth, BLACK.expand(2, -1, -1, -1, -1), geometry.new_maps(2, (H, W), "cpu"), index, motion)
    maps, parts = geometry.new_maps(2, (H, W), "cpu"), []
    for start, stop in ((0, 1), (1, 6), (6, 7), (7, N)):
        part, maps = geometry(
            depth[:, start:stop],
            BLACK[:, start:stop].expand(2, -1, -1, -1, -1),
            maps,
            index + start,
            motion.chunk(start, stop),
        )
        parts.append(part)
    assert torch.equal(torch.cat(parts, 1), whole)
    assert all(torch.equal(end[name], maps[name]) for name in end)
    for i, seen in enumerate((first, second)):
        alone, _, _ = run(seen, depth[i : i + 1])
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-3, atol=1e-3)  # sums in another order: 2e-4


def test_a_lost_camera_is_held_and_found_again() -> None:
    seen = walk()
    flow = seen.motion.flow_px.clone()
    flow[:, 10] = 8 * torch.randn(flow[:, 10].shape, generator=torch.Generator().manual_seed(0))
    lost = seen._replace(motion=Motion(flow, seen.motion.trusted))
    right, cameras, poses = run(lost, 1 / teacher(seen.inv_depth))
    assert [t for t, camera in enumerate(cameras) if camera.lost] == [10]
    assert torch.equal(poses[10], poses[9])
    assert cameras[10].record()["lost"] is True
    assert "lost" not in cameras[9].record()
    assert bool(torch.isfinite(right).all())
    assert cameras[-1].evidence > 0.8
    wrong = 1 / teacher(seen.inv_depth)
    assert log_error(right, seen) < 0.7 * log_error(wrong, seen)


def test_half_a_frame_of_another_moving_scene_is_not_taken_for_the_scene() -> None:
    """The camera stands before the left 45 % of the frame; to their right another scene goes by."""
    passing, stays = walk(speed=0.08), walk(speed=0.0, turn=0.0)
    left = round(0.45 * W)
    flow, depth = passing.motion.flow_px.clone(), passing.inv_depth.clone()
    flow[..., :left], depth[..., :left] = 0, stays.inv_depth[..., :left]
    mixed = Walk(stays.poses, depth, Motion(flow, passing.motion.trusted))
    wrong = 1 / teacher(depth)
    right, cameras, _ = run(mixed, wrong)
    assert max(camera.evidence for camera in cameras) < 0.5
    assert cameras[-1].evidence == 0
    assert torch.equal(right[:, -8:], wrong[:, -8:])
    right, _, _ = run(passing, 1 / teacher(passing.inv_depth))  # the whole of it is a scene
    assert log_error(right, passing) < 0.45 * log_error(1 / teacher(passing.inv_depth), passing)


def test_what_was_known_stays_where_the_camera_stops() -> None:
    moving = walk()
    order = torch.cat([torch.arange(12), torch.full((12,), 11)])
    flow, trusted = moving.motion.flow_px[:, order], moving.motion.trusted[:, order]
    flow[:, 12:], trusted[:, 12:] = 0, True
    stops = Walk(moving.poses[order], moving.inv_depth[order], Motion(flow, trusted))
    right, cameras, _ = run(stops, 1 / teacher(stops.inv_depth))
    assert cameras[11].evidence == pytest.approx(1.0, abs=1e-3)
    assert cameras[-1].evidence >= cameras[11].evidence
    change = (right[0, 13:] / right[0, 12:-1]).log().abs()
    assert change.max() < 0.02, change.max()
    wrong = 1 / teacher(stops.inv_depth)
    assert log_error(right, stops) < 0.5 * log_error(wrong, stops)


@pytest.mark.parametrize("kind", [DepthKind.METRIC, DepthKind.RELATIVE])
def test_a_shot_that_fades_in_does_not_keep_what_its_dark_frames_looked_like(kind: DepthKind) -> None:
    """The decoder's depth of the first frames, on which nothing can be tracked, is of another scale and level."""
    seen = walk()
    trusted = seen.motion.trusted.clone()
    trusted[:, :6] = False
    faded = seen._replace(motion=Motion(seen.motion.flow_px, trusted))
    inverse = teacher(seen.inv_depth)
    dark = inverse.clone()
    dark[:, :6] = 0.02 * inverse[:, :6] + 0.7
    ends = []
    for shown in (dark, inverse):
        depth = 1 / shown if kind is DepthKind.METRIC else shown
        right, cameras, _ = run(faded, depth, kind=kind)
        assert cameras[-1].evidence > 0.8
        ends.append(right[:, -4:])
    torch.testing.assert_close(*ends, rtol=0.02, atol=0.0)


def test_nothing_is_believed_while_the_picture_brightens() -> None:
    seen = walk()
    light = (torch.arange(N) / 10).clamp(max=1).view(1, N, 1, 1, 1).expand_as(BLACK)
    _, cameras, _ = run(seen, 1 / teacher(seen.inv_depth), clip=light)
    assert max(camera.evidence for camera in cameras[:10]) == 0
    assert cameras[-1].evidence > 0.8


@pytest.mark.parametrize("exposure", [0.0, 0.3])
def test_patches_agree_at_the_right_depth(exposure: float) -> None:
    """Inverse depth that flow has wrong by up to a fifth; the pictures of before may be darker."""
    seen, now, before = walk(speed=0.1), 8, [6, 4, 0]
    light = pictures(seen)[0, :, :1]
    y, x = torch.meshgrid(torch.arange(8, H - 8, 4), torch.arange(8, W - 8, 4), indexing="ij")
    truth = seen.inv_depth[now, y, x].flatten()[None]
    points = torch.stack([x.flatten(), y.flatten()]).float()[None]
    wrong = truth * (1 + 0.2 * torch.cos(torch.arange(truth.shape[1])))
    slots, nothing = len(before), torch.zeros_like(truth)
    trust = torch.ones(1, slots, truth.shape[1])
    tracks = Tracks(points, points[:, None].expand(1, slots, 2, -1), truth[:, None].expand_as(trust), trust)
    view = View(torch.tensor([float(W)]), torch.tensor([(W - 1) / 2, (H - 1) / 2]))
    pose = seen.poses[now : now + 1]
    begin = Adjusted(pose, wrong, nothing + 1e-3, torch.zeros_like(trust))
    past, poses = light[before][None, :, 0] - exposure, seen.poses[before][None]
    patches = Patches(tracks, light[now : now + 1], past, poses, pose, view)
    found = compare_pictures(begin, trust, patches, (), steps=6)
    errors = [(d / truth).log().abs().median() for d in (wrong, found.inv_depth)]
    assert errors[1] < 0.1 * errors[0], errors
    blank = Patches(tracks, torch.full_like(light[:1], 0.5), past * 0, poses, pose, view)
    flat = compare_pictures(begin, trust, blank, (), steps=6)
    torch.testing.assert_close(flat.inv_depth, wrong)
    torch.testing.assert_close(flat.information, FLOW_SHARE * begin.information)


def test_white_noise_is_no_scene() -> None:
    noise = torch.rand(1, 12, 3, 112, 140, generator=torch.Generator().manual_seed(0))
    motion, _ = MotionEstimator(MotionSpec())(noise)
    geometry, index = Geometry(GeometrySpec(), DepthKind.RELATIVE), torch.zeros(1, dtype=torch.int64)
    depth = 1 + noise[:, :, :1]
    right, _ = geometry(depth, noise, geometry.new_maps(1, (112, 140), "cpu"), index, motion)
    assert (right - depth).abs().max() < 0.01


def moving_student(encoder: DepthAnythingEncoder, geometry: GeometrySpec | None) -> VideoMambaDepth:
    off = ScaleSpec(num_blocks=0)
    spec = TemporalSpec(off, off, off, ScaleSpec(backend="reference"))
    return VideoMambaDepth(
        encoder, encoder.head, spec, motion=MotionSpec(), output=OutputSpec(), geometry=geometry
    ).eval()


@torch.no_grad()
def test_a_stream_of_a_student_goes_on_to_the_bit(tiny_encoder: DepthAnythingEncoder, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    frames = [np.ascontiguousarray(picture[:48, 2 * t : 2 * t + 64]) for t in range(10)]
    student = moving_student(tiny_encoder, GeometrySpec(key_frames=2, every=2, refined=2))
    stream, other = DepthStream(student), DepthStream(student)
    for frame in frames[:5]:
        stream.step(frame)
    stream.save(tmp_path / "stream.safetensors")
    other.load(tmp_path / "stream.safetensors")
    for frame in frames[5:]:
        np.testing.assert_array_equal(stream.step(frame), other.step(frame))
        np.testing.assert_array_equal(stream.cameras[0].position, other.cameras[0].position)
    stream.reset()
    assert stream.cameras == []
    stream.step(frames[0])
    assert np.abs(stream.cameras[0].position).max() == 0
    with pytest.raises(UserError, match="leave one of the two out"):
        DepthStream(student, compile=True)
    plain = DepthStream(moving_student(tiny_encoder, None))
    plain.step(frames[0])
    assert plain.cameras == []


@torch.no_grad()
def test_a_students_depth_does_not_depend_on_the_chunks(tiny_encoder: DepthAnythingEncoder) -> None:
    student = moving_student(tiny_encoder, GeometrySpec())
    clip = torch.rand(2, 6, 3, 42, 56, generator=torch.Generator().manual_seed(0))
    whole, end, _ = student(clip)
    first, states, _ = student(clip[:, :2])
    second, states, _ = student(clip[:, 2:], states)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-4, atol=1e-4)
    for name, tensor in end.maps.items():
        assert tensor.shape == states.maps[name].shape
    reset = states.reset(torch.tensor([True, False]))
    assert all(not t[0].any() for t in reset.maps.values())
    with pytest.raises(ValueError, match="another model"):
        moving_student(tiny_encoder, None)(clip[:, :1], states)


def test_states_of_other_settings_do_not_fit() -> None:
    others = (
        {"short_side": 64},
        {"key_frames": 3},
        {"every": 2},
        {"refined": 0},
        {"estimator": "dis"},
        {"spread": 1.0},
        {"level_spread": 0.0},
        {"focal": 2.0},
        {"focal_spread": 0.0},
        {"shift_spread": 0.0},
    )
    specs = [GeometrySpec(**changed) for changed in ({}, *others, {"keep": 0.1})]  # type: ignore[arg-type]
    signatures = {Geometry(spec, DepthKind.RELATIVE).signature for spec in specs}
    assert len(signatures) == len(specs)


def test_a_checkpoint_says_whether_it_has_geometry(tiny_encoder: DepthAnythingEncoder, tmp_path: Path) -> None:
    tiny_encoder.save_pretrained(tmp_path / "encoder")
    about, spec = describe_encoder(tiny_encoder, "../encoder"), GeometrySpec(key_frames=3, spread=0.7)
    for name, geometry, motion in (
        ("with", spec, MotionSpec()),
        ("without", None, MotionSpec()),
        ("still", None, None),
    ):
        (tmp_path / name).mkdir()
        off = TemporalSpec(*[ScaleSpec(num_blocks=0)] * 4)
        student = VideoMambaDepth(tiny_encoder, tiny_encoder.head, off, motion=motion, geometry=geometry)
        weights = student_weights(student)
        save_student(tmp_path / name, weights, off, about, None, motion=motion, geometry=geometry)
    found = {
        (name, asked): (part.spec if (part := load_student(tmp_path / name, geometry=asked).geometry) else None)
        for name in ("with", "without")
        for asked in (None, True, False)
    }
    assert found == {
        ("with", None): spec, ("with", True): spec, ("with", False): None,
        ("without", None): None, ("without", True): GeometrySpec(), ("without", False): None,
    }  # fmt: skip
    with pytest.raises(UserError, match="geometry=true follows the optical flow"):
        load_student(tmp_path / "still", geometry=True)
    with pytest.raises(ValueError, match="follows the flow between frames"):
        VideoMambaDepth(tiny_encoder, tiny_encoder.head, off, geometry=GeometrySpec())


@pytest.mark.parametrize("vector", [[0.0, 0.0, 0.0], [0.3, -0.2, 0.1], [np.pi, 0.0, 0.0], [0.0, 2.2, -2.2]])
def test_quaternions_turn_as_their_matrix_does(vector: list[float]) -> None:
    rotation = rotation_matrix(torch.tensor(vector, dtype=torch.float64)).numpy()
    x, y, z, w = quaternion(rotation)
    assert w >= 0
    assert x * x + y * y + z * z + w * w == pytest.approx(1)
    about = np.array([x, y, z])
    point = np.array([0.2, -1.0, 0.5])
    again = point + 2 * np.cross(about, np.cross(about, point) + w * point)
    np.testing.assert_allclose(again, rotation @ point, atol=1e-9)


def test_what_is_shown_after_parallax_was_found_fits_what_was_shown_before() -> None:
    """The decoder's depth has another shift than was assumed: one scale and shift of the first frame fits all."""
    torch.manual_seed(0)
    decoder = 1 + torch.rand(2, 200)
    corrected = 2.5 * decoder - 1.5 + 0.01 * torch.randn(2, 200)
    fit, share = DecoderFit(*torch.zeros(6, 2)), torch.full((2, 200), 1 / 200)
    nothing = torch.zeros(2)
    assert not fit.added(corrected[:, None, None], nothing).any()
    evidence = torch.tensor([0.15, 0.0])
    for count in range(1, 21):
        fit = fit.with_frame(decoder, corrected, share, count * evidence)
    shown = corrected[:, None, None] + fit.added(corrected[:, None, None], torch.tensor([1.0, 1.0]))
    assert torch.allclose(shown[0, 0, 0], decoder[0], atol=0.03)
    assert torch.equal(shown[1, 0, 0], corrected[1])  # nothing was ever seen of its parallax
    kept = fit.with_frame(decoder, 5 * corrected, share, torch.ones(2))
    assert torch.equal(kept.corrected[0], fit.corrected[0])  # enough was seen: it stays
    assert float(fit.weight[0]) >= FITTED
    lost = fit.after_frame(torch.tensor([False] * 2), torch.tensor([True] * 2), torch.tensor([True, False]))
    assert not lost.added(corrected[:, None, None], torch.ones(2))[0].any()  # it begins again
    level = DecoderFit(*torch.zeros(6, 1)).with_frame(
        torch.full((1, 9), 2.0), torch.full((1, 9), 2.1), torch.full((1, 9), 1 / 9), torch.ones(1)
    )
    assert torch.allclose(level.added(torch.full((1, 1, 1, 9), 2.1), torch.ones(1)), torch.tensor(-0.1))


def test_points_that_are_still_seen_are_fitted_as_the_first_frame_shows_them() -> None:
    """From its second frame on the decoder has less contrast; what is shown keeps that of the first."""
    seen = walk(speed=0.08)
    inverse = seen.inv_depth / seen.inv_depth[0].mean()
    flatter = torch.full((N, 1, 1), 0.5)
    flatter[0] = 1
    decoder = (1 + flatter * (inverse - 1))[None, :, None]
    shown, cameras, _ = run(seen, decoder, replace(SPEC, shift_spread=0.0), DepthKind.RELATIVE)
    assert cameras[-1].evidence > 0.8
    off = [float((depth[0, -1, 0] - inverse[-1]).abs().mean()) for depth in (shown, decoder)]
    assert off[0] < 0.6 * off[1], off
