"""RGB-D folders written by the test: scales, masks, poses, and every mistake named."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from videomamba_depth.evaluation import load_rgbd
from videomamba_depth.evaluation.datasets.recording import ALL_FRAMES, FramePick, pose_matrix
from videomamba_depth.evaluation.datasets.rgbd import RgbdFormat, find_sequences, folder_recording
from videomamba_depth.evaluation.datasets.timestamps import associate
from videomamba_depth.evaluation.metrics.geometry import tae_z, usable_poses
from videomamba_depth.utils.errors import UserError


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


def test_kept_results_belong_to_all_that_a_sequence_is_read_from(folder: Path) -> None:
    def content(root: Path = folder, pick: FramePick = ALL_FRAMES, **changed: object) -> str:
        given = {"depth_scale": 1000.0, "intrinsics": "intrinsics.txt", "poses": "pose", **changed}
        return RgbdFormat(**given).content(folder_recording(root), pick)  # type: ignore[arg-type]

    first = content()
    moved = folder.rename(folder.with_name("elsewhere"))
    os.utime(moved / "depth" / "2.png")
    assert content(moved) == first
    seen = {first}
    other_settings = [{"depth_scale": 999.0}, {"invalid": 3.0}, {"max_depth_m": 5.0}, {"crop_px": 2}, {"stride": 2}]
    for changed in (*other_settings, {"poses": "pose.txt"}, {"poses": None}, {"intrinsics": None}):
        seen.add(content(moved, **changed))
    seen.add(content(moved, FramePick(count=2)))
    assert len(seen) == 9, "poses in one file are the same poses"
    for name in ("rgb/10.png", "depth/1.png"):
        picture = cv2.imread(str(moved / name), cv2.IMREAD_UNCHANGED)
        picture[5, 5] += 1
        cv2.imwrite(str(moved / name), picture)
        seen.add(content(moved))
    np.savetxt(moved / "pose" / "2.txt", 2 * np.eye(4))
    seen.add(content(moved))
    assert len(seen) == 12
    (moved / "depth" / "1.png").chmod(0)
    if not os.access(moved / "depth" / "1.png", os.R_OK):  # not so for root
        with pytest.raises(UserError, match=r"cannot read .*1\.png"):
            content(moved)


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
    listed = load_rgbd(folder, depth_scale=1000.0, intrinsics=[50.0, 50.0, 15.0, 10.0])
    np.testing.assert_array_equal(listed.intrinsics, inside.intrinsics)
    with pytest.raises(UserError, match="cannot read the intrinsics file '50 50 fifteen 10'"):
        load_rgbd(folder, depth_scale=1000.0, intrinsics="50 50 fifteen 10")


def test_pose_matrix_turns_the_right_way() -> None:
    half = np.sqrt(0.5)
    pose = pose_matrix(np.array([1.0, 2.0, 3.0]), np.array([0, 0, half, half]) * 2)  # 90° about z, not normalized
    np.testing.assert_allclose(pose @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-12)


def test_every_mistake_is_one_clear_line(folder: Path) -> None:
    with pytest.raises(UserError, match="depth_scale must be positive"):
        load_rgbd(folder, depth_scale=0)
    with pytest.raises(UserError, match="color does not exist"):
        load_rgbd(folder, depth_scale=1, rgb_dir="color")
    with pytest.raises(UserError, match="must have rows 'tx ty tz qx qy qz qw'"):
        load_rgbd(folder, depth_scale=1, poses=folder / "intrinsics.txt")
    with pytest.raises(UserError, match="or a text file with them or a 3x3 matrix"):
        load_rgbd(folder, depth_scale=1, intrinsics=folder / "pose.txt")
    with pytest.raises(UserError, match="cannot read numbers"):
        load_rgbd(folder, depth_scale=1, poses=folder / "missing.txt")
    (folder / "depth" / "2.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"cannot read depth map .*2\.png"):
        load_rgbd(folder, depth_scale=1)
    (folder / "depth" / "2.png").unlink()
    with pytest.raises(UserError, match=r"no depth map for 1 images, first 2\.png"):
        load_rgbd(folder, depth_scale=1)


def tum_folder(root: Path, num_frames: int = 6, late_s: float = 0.012) -> Path:
    """Write a sequence as the TUM and Bonn benchmarks do: color at 10 Hz, depth a little later, poses at 100 Hz."""
    for name in ("rgb", "depth"):
        (root / name).mkdir(parents=True)
    rows = ["# ground truth trajectory", "# timestamp tx ty tz qx qy qz qw"]
    for i in range(num_frames):
        stamp = 1305031102.175304 + 0.1 * i
        image = np.full((20, 30, 3), 10 * i, np.uint8)
        cv2.imwrite(str(root / "rgb" / f"{stamp:.6f}.png"), image)
        cv2.imwrite(str(root / "depth" / f"{stamp + late_s:.6f}.png"), np.full((20, 30), 5000 + 500 * i, np.uint16))
    for k in range(-20, 10 * num_frames + 20):  # tx: seconds since the first image
        rows.append(f"{1305031102.177304 + 0.01 * k:.4f} {0.01 * k:.4f} 0 0 0 0 0 1")
    (root / "groundtruth.txt").write_text("\n".join(rows) + "\n")
    return root


def test_poses_and_depth_are_matched_by_time(tmp_path: Path) -> None:
    root = tum_folder(tmp_path / "desk")
    clip = load_rgbd(root, depth_scale=5000.0, poses="groundtruth.txt")
    np.testing.assert_allclose(clip.camera_to_world[:, 0, 3], 0.1 * np.arange(6), atol=1e-9)
    assert clip.gt_depth_m[:][:, 5, 5].tolist() == pytest.approx([1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
    lists = tum_folder(tmp_path / "renamed")
    for name in ("rgb", "depth"):  # the same with other names and the benchmark's lists
        paths = sorted((lists / name).iterdir())
        rows = [f"{path.stem} {name}/{i:04d}.png" for i, path in enumerate(paths)]
        (lists / f"{name}.txt").write_text("# timestamp filename\n" + "\n".join(rows))
        for i, path in enumerate(paths):
            path.rename(path.with_name(f"{i:04d}.png"))
    listed = load_rgbd(lists, depth_scale=5000.0, poses="groundtruth.txt")
    np.testing.assert_array_equal(listed.camera_to_world, clip.camera_to_world)
    np.testing.assert_array_equal(listed.gt_depth_m[:], clip.gt_depth_m[:])
    (lists / "rgb.txt").write_text("# timestamp filename\n1305031102.175304 rgb/0000.png\n")
    with pytest.raises(UserError, match=r"rgb\.txt has no stamp for 5 of 6 images, first 0001\.png"):
        load_rgbd(lists, depth_scale=5000.0)


def test_what_has_no_partner_in_time_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tum_folder(tmp_path / "desk")
    sorted((root / "depth").iterdir())[1].unlink()
    poses = (root / "groundtruth.txt").read_text().splitlines()
    (root / "groundtruth.txt").write_text("\n".join(poses[:2] + poses[40:]))  # the first two images have none
    clip = load_rgbd(root, depth_scale=5000.0, poses="groundtruth.txt", max_frames=4)
    assert len(clip.frames) == 4
    assert [int(frame[0, 0, 0]) for frame in clip.frames] == [0, 20, 30, 40]
    assert usable_poses(clip.camera_to_world).tolist() == [False, True, True, True]
    assert clip.camera_to_world[1:, 0, 3].tolist() == pytest.approx([0.2, 0.3, 0.4])
    assert "1 of 6 images have no depth map in time" in caplog.text
    assert "1 of 4 frames have no finite pose" in caplog.text
    (root / "rows.txt").write_text("\n".join(f"{i} 0 0 0 0 0 1" for i in range(6)))
    rows = load_rgbd(root, depth_scale=5000.0, poses="rows.txt")  # a row for each image, also for those left out
    assert rows.camera_to_world[:, 0, 3].tolist() == [0, 2, 3, 4, 5]


def test_stamps_that_fit_nothing_are_refused(tmp_path: Path, folder: Path) -> None:
    (folder / "groundtruth.txt").write_text("".join(f"{0.1 * i:.3f} 0 0 0 0 0 0 1\n" for i in range(30)))
    with pytest.raises(UserError, match="when the images were taken is not known"):
        load_rgbd(folder, depth_scale=1000.0, poses="groundtruth.txt")
    counted = "".join(f"{i} {i} 0 0 0 0 0 1\n" for i in range(1, 30))  # ICL-NUIM: rows that count frames
    (folder / "groundtruth.txt").write_text(counted)
    clip = load_rgbd(folder, depth_scale=1000.0, poses="groundtruth.txt")
    assert clip.camera_to_world[:, 0, 3].tolist() == [1, 2, 10]
    (folder / "pose.txt").write_text("0 0 0 0 0 0 1\n" * 5)
    with pytest.raises(UserError, match="has 5 rows for 3 images"):
        load_rgbd(folder, depth_scale=1000.0, poses="pose.txt")
    root = tum_folder(tmp_path / "desk")
    (root / "groundtruth.txt").write_text("5.5 0 0 0 0 0 0 1\n")
    with pytest.raises(UserError, match="no pose within 20 ms of any image"):
        load_rgbd(root, depth_scale=5000.0, poses="groundtruth.txt")
    apart = tum_folder(tmp_path / "apart", late_s=0.03)
    with pytest.raises(UserError, match="no image has a depth map within 20 ms"):
        load_rgbd(apart, depth_scale=5000.0)


def test_stamps_pair_one_to_one_closest_first() -> None:
    assert associate([0.0, 0.01, 1.0], [0.012, 0.99, 5.0]) == [-1, 0, 1]
    assert associate([0.0, 0.01, 0.018], [0.009, 0.001]) == [1, 0, -1]
    assert associate([0.0, float("nan")], [float("nan"), 0.02]) == [-1, -1]
    assert associate([], [1.0]) == []


@pytest.mark.parametrize("broken", ["nan", "-inf"])
def test_numbers_that_are_not_finite_never_score(folder: Path, broken: str) -> None:
    pose = (folder / "pose" / "2.txt").read_text()
    (folder / "pose" / "2.txt").write_text(f"{broken} {broken}\n" * 4)
    with pytest.raises(UserError, match="must all hold a 4×4 matrix"):
        load_rgbd(folder, depth_scale=1000.0, poses="pose")
    (folder / "pose" / "2.txt").write_text(f"{broken} {broken} {broken} {broken}\n" * 4)
    clip = load_rgbd(folder, depth_scale=1000.0, poses="pose")
    assert usable_poses(clip.camera_to_world).tolist() == [True, False, True]
    (folder / "pose" / "2.txt").write_text(pose)
    (folder / "pose.txt").write_text(f"{broken} 0 0 0 0 0 1\n0 0 0 0 0 0 0\n0 0 0 0 0 0 1\n")
    rows = load_rgbd(folder, depth_scale=1000.0, poses="pose.txt")
    assert usable_poses(rows.camera_to_world).tolist() == [False, False, True]
    (folder / "pose.txt").write_text(f"{broken} 0 0 0 0 0 1\n" * 3)
    with pytest.raises(UserError, match="none of 3 frames has one that is finite"):
        load_rgbd(folder, depth_scale=1000.0, poses="pose.txt")
    (folder / "intrinsics.txt").write_text(f"50 0 15\n0 {broken} 10\n0 0 1\n")
    for wrong in ("intrinsics.txt", f"50 {broken} 15 10", "50 0 15 10"):
        with pytest.raises(UserError, match="intrinsics must be finite"):
            load_rgbd(folder, depth_scale=1000.0, intrinsics=wrong)
    for name in ("depth_scale", "max_depth_m"):
        with pytest.raises(UserError, match=f"{name} must be positive and finite"):
            load_rgbd(folder, **{"depth_scale": 1000.0, name: float(broken)})


def test_ground_truth_beyond_the_range_is_counted_and_most_of_it_refused(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    load_rgbd(folder, depth_scale=1000.0, invalid_value=65535, max_depth_m=5.0)  # frames of 1, 2 and 10 m
    assert "33.3 % of the ground truth lies beyond max_depth_m=5" in caplog.text
    with pytest.raises(UserError, match=r"67 % of the ground truth lies beyond max_depth_m=10 .* rgbd\.max_depth_m=80"):
        load_rgbd(folder, depth_scale=150.0, invalid_value=65535)  # 7, 13 and 67 m
    with pytest.raises(UserError, match=r"crop=\[10, 10, 10, 10\] leaves nothing"):
        load_rgbd(folder, depth_scale=1000.0, crop_px=10)


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
    # Sensor noise and rounding: around half a percent; a swapped axis or an inverted pose is several times
    # that.
    assert score.value < 1.5


def test_an_array_of_poses_stays_with_its_pictures(tmp_path: Path) -> None:
    root = tum_folder(tmp_path / "desk")
    sorted((root / "depth").iterdir())[1].unlink()
    poses = np.tile(np.eye(4), (6, 1, 1))
    poses[:, 0, 3] = range(6)
    for given, wanted in ((poses, [0, 2, 3, 4, 5]), (poses[:5], [0, 1, 2, 3, 4])):
        assert load_rgbd(root, depth_scale=5000.0, poses=given).camera_to_world[:, 0, 3].tolist() == wanted
    assert load_rgbd(root, depth_scale=5000.0, poses=poses, max_frames=2).camera_to_world[:, 0, 3].tolist() == [0, 2]
    for wrong in (poses[:4], np.concatenate([poses, poses])):
        with pytest.raises(UserError, match=r"one matrix per image \(6\) or per frame that is taken \(5\)"):
            load_rgbd(root, depth_scale=5000.0, poses=wrong)
