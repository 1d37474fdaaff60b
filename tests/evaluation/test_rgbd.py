"""RGB-D folders written by the test: scales, masks, poses, and every mistake named."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from videomamba_depth.evaluation import load_rgbd
from videomamba_depth.evaluation.rgbd import find_sequences, pose_matrix
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.metrics import tae_z


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "kitchen"
    (root / "rgb").mkdir(parents=True)
    (root / "depth").mkdir()
    (root / "pose").mkdir()
    for i in (1, 2, 10):  # sorted as numbers, not as text
        image = np.zeros((20, 30, 3), np.uint8)
        image[..., 2] = 10 * i  # OpenCV writes BGR: this is red
        cv2.imwrite(str(root / "rgb" / f"{i}.png"), image)
        depth = np.full((20, 30), 1000 * i, np.uint16)
        depth[0] = 0
        depth[1] = 65535
        cv2.imwrite(str(root / "depth" / f"{i}.png"), depth)
        pose = np.eye(4)
        pose[0, 3] = i
        np.savetxt(root / "pose" / f"{i}.txt", pose)
    np.savetxt(root / "intrinsics.txt", np.array([[50.0, 0, 15], [0, 50, 10], [0, 0, 1]]))
    np.savetxt(root / "pose.txt", np.array([[i, 0, 0, 0, 0, 0, 1.0] for i in (1, 2, 10)]))
    return root


def test_loads_in_numeric_order_with_units(folder: Path) -> None:
    clip = load_rgbd(
        folder,
        depth_scale=1000.0,
        invalid_value=65535,
        intrinsics=folder / "intrinsics.txt",
        poses=folder / "pose",
        crop_px=3,
    )
    assert clip.name == "kitchen"
    assert clip.frame_ids == ("1", "2", "10")
    assert [int(frame[0, 0, 0]) for frame in clip.frames] == [10, 20, 100]
    assert clip.gt_depth_m[:][:, 10, 10].tolist() == [1.0, 2.0, 10.0]
    assert not clip.valid[:][:, :3].any()
    assert clip.valid[:][:, 3:-3, 3:-3].all()
    assert clip.intrinsics[0, 0] == 50.0
    assert clip.camera_to_world[:, 0, 3].tolist() == [1.0, 2.0, 10.0]
    rows = load_rgbd(folder, depth_scale=1000.0, poses=folder / "pose.txt", max_frames=2)
    assert rows.camera_to_world.shape == (2, 4, 4)
    assert not rows.valid[:][:, 0].any()
    assert rows.valid[:][:, 1].all()
    np.testing.assert_array_equal(rows.camera_to_world[1], clip.camera_to_world[1])


def test_a_folder_of_sequences_shares_one_set_of_arguments(folder: Path) -> None:
    assert find_sequences(folder) == [folder]
    assert find_sequences(folder.parent) == [folder]
    with pytest.raises(UserError, match="holds no RGB-D sequence"):
        find_sequences(folder / "rgb")
    inside = load_rgbd(folder, depth_scale=1000.0, intrinsics="intrinsics.txt", poses="pose")
    assert inside.intrinsics[0, 0] == 50.0
    assert inside.camera_to_world.shape == (3, 4, 4)
    typed = load_rgbd(folder, depth_scale=1000.0, intrinsics="50 50 15 10")
    np.testing.assert_array_equal(typed.intrinsics, inside.intrinsics)
    with pytest.raises(UserError, match="four numbers 'fx fy cx cy'"):
        load_rgbd(folder, depth_scale=1000.0, intrinsics="50 50 fifteen 10")


def test_pose_matrix_turns_the_right_way() -> None:
    half = np.sqrt(0.5)
    pose = pose_matrix(np.array([1.0, 2.0, 3.0]), np.array([0, 0, half, half]) * 2)  # 90° about z, not normalised
    np.testing.assert_allclose(pose @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-12)


def test_every_mistake_is_one_clear_line(folder: Path) -> None:
    with pytest.raises(UserError, match="depth_scale must be positive"):
        load_rgbd(folder, depth_scale=0)
    with pytest.raises(UserError, match="colour does not exist"):
        load_rgbd(folder, depth_scale=1, rgb_dir="colour")
    with pytest.raises(UserError, match="must have rows 'tx ty tz qx qy qz qw'"):
        load_rgbd(folder, depth_scale=1, poses=folder / "intrinsics.txt")
    with pytest.raises(UserError, match="must hold a 3×3 matrix"):
        load_rgbd(folder, depth_scale=1, intrinsics=folder / "pose.txt")
    with pytest.raises(UserError, match="cannot read numbers"):
        load_rgbd(folder, depth_scale=1, poses=folder / "missing.txt")
    (folder / "depth" / "2.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"cannot read depth map .*2\.png"):
        load_rgbd(folder, depth_scale=1)
    (folder / "depth" / "2.png").unlink()
    with pytest.raises(UserError, match=r"no depth map for 1 images, first 2\.png"):
        load_rgbd(folder, depth_scale=1)


@pytest.mark.skipif("VIDEOMAMBA_TEST_CLIPS" not in os.environ, reason="VIDEOMAMBA_TEST_CLIPS is not set")
def test_poses_and_depth_of_a_real_sequence_agree() -> None:
    root = Path(os.environ["VIDEOMAMBA_TEST_CLIPS"]).parent / "rgbd" / "sevenscenes_redkitchen"
    if not root.is_dir():
        pytest.skip("no RGB-D sequence beside VIDEOMAMBA_TEST_CLIPS")
    clip = load_rgbd(
        root,
        depth_scale=1000.0,
        intrinsics=root / "intrinsics_rgb.txt",
        poses=root / "pose",
        max_frames=4,
    )
    score = tae_z(clip.gt_depth_m, clip.intrinsics, clip.camera_to_world, clip.valid, gt_depth_m=clip.gt_depth_m)
    # Sensor noise and rounding: around half a per cent; a swapped axis or an inverted pose is several times
    # that.
    assert score.value < 1.5
