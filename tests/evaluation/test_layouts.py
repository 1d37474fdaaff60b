"""Every layout as its data set is unpacked, written here with the official names and number formats."""

from __future__ import annotations

import gzip
import json
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_room import Room, render_room

from videomamba_depth.configuration.build_evaluate import build_sources
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.evaluate_schema import EvaluateConfig
from videomamba_depth.evaluation import Evaluator, Method
from videomamba_depth.evaluation.clips import EvaluationClip
from videomamba_depth.evaluation.datasets import layouts
from videomamba_depth.evaluation.datasets.layouts import LAYOUTS
from videomamba_depth.evaluation.datasets.recording import listed
from videomamba_depth.evaluation.datasets.timestamps import associate
from videomamba_depth.evaluation.metrics.accuracy import accuracy
from videomamba_depth.evaluation.metrics.geometry import tae_z, usable_poses
from videomamba_depth.flow.estimators import build_flow
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError

FRAMES, HEIGHT, WIDTH = 3, 48, 64
START_S = 1305031102.175304


@pytest.fixture(scope="module")
def room() -> Room:
    return render_room(FRAMES, HEIGHT, WIDTH, speed_m=0.05)


def clips(path: Path, *overrides: str) -> list[EvaluationClip]:
    """Return the clips that the command would evaluate."""
    config = load_config("evaluate", EvaluateConfig, ["checkpoint=[]", f"input={path}", *overrides])
    return [source.load() for source in build_sources(config, build_flow("dis"))]


def save(path: Path, image: np.ndarray) -> None:
    """Write an image, RGB in color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 and image.shape[-1] == 3 else image)


def units(depth_m: np.ndarray, scale: float) -> np.ndarray:
    return np.round(depth_m * scale).astype(np.uint16)


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Return x, y, z, w of a rotation whose w is not small."""
    w = np.sqrt(1 + np.trace(rotation)) / 2
    x, y, z = (rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1])
    return np.array([x / (4 * w), y / (4 * w), z / (4 * w), w])


def trajectory(path: Path, poses: np.ndarray, stamps: list[Any] | None = None) -> None:
    rows = []
    for i, pose in enumerate(poses):
        numbers = " ".join(f"{value:.9f}" for value in [*pose[:3, 3], *quaternion(pose[:3, :3])])
        rows.append(numbers if stamps is None else f"{stamps[i]} {numbers}")
    path.write_text("\n".join(rows) + "\n")


def write_tum(root: Path, room: Room, name: str = "rgbd_dataset_freiburg2_desk", late_s: float = 0.008) -> Path:
    lists: dict[str, list[str]] = {"rgb": [], "depth": []}
    for i in range(len(room.rgb)):
        for kind, stamp in (("rgb", START_S + i / 30), ("depth", START_S + i / 30 + late_s)):
            file = f"{kind}/{stamp:.6f}.png"
            save(root / name / file, room.rgb[i] if kind == "rgb" else units(room.depth_m[i], 5000))
            lists[kind].append(f"{stamp:.6f} {file}")
    for kind, rows in lists.items():
        (root / name / f"{kind}.txt").write_text(
            "# color images\n# file: 'x.bag'\n# timestamp filename\n" + "\n".join(rows)
        )
    stamps = [f"{START_S + i / 30 + 0.003:.4f}" for i in range(len(room.rgb))]
    trajectory(root / name / "groundtruth.txt", room.camera_to_world, stamps)
    return root / name


def write_bonn(root: Path, room: Room) -> None:
    write_tum(root, room, "rgbd_bonn_balloon")


def write_sintel(root: Path, room: Room) -> None:
    for i, pose in enumerate(room.camera_to_world):
        folders = {kind: root / "training" / kind / "alley_1" for kind in ("clean", "final", "depth", "camdata_left")}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        save(folders["clean"] / f"frame_{i + 1:04d}.png", room.rgb[i])
        save(folders["final"] / f"frame_{i + 1:04d}.png", room.rgb[i] // 2)
        tag, depth = np.float32(202021.25).tobytes(), room.depth_m[i].astype("<f4")
        depth = np.where(depth > np.quantile(depth, 0.8), np.float32(1e11), depth)
        size = np.array(depth.shape[::-1], "<i4").tobytes()
        (folders["depth"] / f"frame_{i + 1:04d}.dpt").write_bytes(tag + size + depth.tobytes())
        camera = tag + room.intrinsics.tobytes() + np.linalg.inv(pose)[:3].tobytes()
        (folders["camdata_left"] / f"frame_{i + 1:04d}.cam").write_bytes(camera)


def write_kitti(root: Path, room: Room) -> None:
    drive = "2011_09_26_drive_0002_sync"
    for i in range(len(room.rgb)):
        save(root / f"raw/2011_09_26/{drive}/image_02/data/{i + 5:010d}.png", room.rgb[i])
        depth = root / f"data_depth_annotated/val/{drive}/proj_depth/groundtruth/image_02/{i + 5:010d}.png"
        save(depth, units(room.depth_m[i], 256))
    for i in range(5):  # the first frames of a drive have no annotated depth
        save(root / f"raw/2011_09_26/{drive}/image_02/data/{i:010d}.png", room.rgb[0])
    projection = np.hstack([room.intrinsics, [[45.0], [0.2], [0.003]]])
    numbers = " ".join(f"{value:.6e}" for value in projection.ravel())
    (root / "raw/2011_09_26/calib_cam_to_cam.txt").write_text(
        f"calib_time: 09-Jan-2012 13:57:47\ncorner_dist: 9.950000e-02\nP_rect_02: {numbers}\n"
    )


def write_kitti_selection(root: Path, room: Room) -> None:
    folder, drive = root / "val_selection_cropped", "2011_09_26_drive_0002_sync"
    (folder / "intrinsics").mkdir(parents=True)
    for i in range(len(room.rgb)):
        save(folder / "image" / f"{drive}_image_{i:010d}_image_02.png", room.rgb[i])
        save(
            folder / "groundtruth_depth" / f"{drive}_groundtruth_depth_{i:010d}_image_02.png",
            units(room.depth_m[i], 256),
        )
        row = " ".join(map(str, room.intrinsics.ravel()))
        (folder / "intrinsics" / f"{drive}_image_{i:010d}_image_02.txt").write_text(row)


def write_scannet(root: Path, room: Room) -> Path:
    scene = root / "scene0707_00"
    for folder in ("pose", "intrinsic"):
        (scene / folder).mkdir(parents=True)
    for i, pose in enumerate(room.camera_to_world):
        save(scene / "color" / f"{i}.jpg", cv2.resize(room.rgb[i], (WIDTH * 2, HEIGHT * 2)))
        save(scene / "depth" / f"{i}.png", units(room.depth_m[i], 1000))
        np.savetxt(scene / "pose" / f"{i}.txt", pose, "%.6f")
    for name in ("color", "depth"):
        matrix = np.eye(4)
        matrix[:3, :3] = room.intrinsics
        np.savetxt(scene / "intrinsic" / f"intrinsic_{name}.txt", matrix, "%.6f")
    return scene


def write_7scenes(root: Path, room: Room) -> None:
    for i, pose in enumerate(room.camera_to_world):
        stem = root / "chess" / "seq-01" / f"frame-{i:06d}"
        save(Path(f"{stem}.color.png"), room.rgb[i])
        depth = units(room.depth_m[i], 1000)
        depth[0] = 65535
        save(Path(f"{stem}.depth.png"), depth)
        np.savetxt(f"{stem}.pose.txt", pose, "%.7e", "\t ")


def write_icl(root: Path, room: Room) -> None:
    folder = root / "living_room_traj2_frei_png"
    for i in range(len(room.rgb)):
        save(folder / "rgb" / f"{i}.png", room.rgb[i])
        save(folder / "depth" / f"{i}.png", units(room.depth_m[i], 5000))
    trajectory(folder / "livingRoom2.gt.freiburg", room.camera_to_world, list(range(len(room.rgb))))


def write_nyu(root: Path, room: Room) -> None:
    for i in range(len(room.rgb)):
        save(root / "bathroom" / f"rgb_{i:05d}.jpg", np.pad(room.rgb[i], ((40, 9), (40, 39), (0, 0))))
        save(root / "bathroom" / f"sync_depth_{i:05d}.png", units(np.pad(room.depth_m[i], ((40, 9), (40, 39))), 1000))


def write_nyu_labeled(root: Path, room: Room) -> None:
    pad = ((0, 0), (40, 9), (40, 39))
    arrays = {
        "images": np.pad(room.rgb, (*pad, (0, 0))).transpose(0, 3, 2, 1),
        "depths": np.pad(room.depth_m, pad).transpose(0, 2, 1),
    }
    with (root / "nyu_depth_v2_labeled.mat").open("wb") as file:
        np.savez(file, **arrays)


def write_tartanair(root: Path, room: Room, version: int = 1) -> None:
    camera = "left" if version == 1 else "lcam_front"
    folder = root / "office" / ("Easy" if version == 1 else "Data_easy") / "P000"
    (folder / f"depth_{camera}").mkdir(parents=True)
    from_body = np.array([[0.0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # x ahead, y right, z down
    for i, depth in enumerate(room.depth_m):
        save(folder / f"image_{camera}" / f"{i:06d}_{camera}.png", room.rgb[i])
        stem = folder / f"depth_{camera}" / f"{i:06d}_{camera}_depth"
        if version == 1:
            np.save(f"{stem}.npy", depth)
        else:  # bytes in OpenCV's order
            cv2.imwrite(f"{stem}.png", np.ascontiguousarray(depth[..., None]).view(np.uint8))
    trajectory(folder / f"pose_{camera}.txt", room.camera_to_world @ from_body)


def write_virtual_kitti(root: Path, room: Room) -> None:
    folder = root / "Scene01" / "clone"
    intrinsics, cameras = ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"], ["frame cameraID r1,1 r1,2 r1,3 t1 …"]
    fx, fy, cx, cy = room.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
    for i, pose in enumerate(room.camera_to_world):
        depth = units(room.depth_m[i], 100)
        depth[0] = 65535
        save(folder / f"frames/rgb/Camera_0/rgb_{i:05d}.jpg", room.rgb[i])
        save(folder / f"frames/depth/Camera_0/depth_{i:05d}.png", depth)
        for camera in (0, 1):
            intrinsics.append(f"{i} {camera} {fx} {fy} {cx} {cy}")
            shown = np.linalg.inv(pose) + camera
            cameras.append(f"{i} {camera} " + " ".join(map(str, shown.ravel())))
    (folder / "intrinsic.txt").write_text("\n".join(intrinsics))
    (folder / "extrinsic.txt").write_text("\n".join(cameras))


def write_point_odyssey(root: Path, room: Room) -> None:
    folder = root / "ani10_new_"
    for i in range(len(room.rgb)):
        save(folder / f"rgbs/rgb_{i:05d}.jpg", room.rgb[i])
        save(folder / f"depths/depth_{i:05d}.png", units(room.depth_m[i], 65535 / 1000))
    np.savez(
        folder / "anno.npz",
        intrinsics=np.tile(room.intrinsics, (len(room.rgb), 1, 1)),
        extrinsics=np.linalg.inv(room.camera_to_world),
    )


def write_dynamic_replica(root: Path, room: Room) -> None:
    name, flip, unit = "009850-3_obj_source_left", np.diag([-1.0, -1, 1]), HEIGHT / 2
    annotations = []
    for i, pose in enumerate(room.camera_to_world):
        image = f"{name}/images/{name}-{i:04d}.png"
        save(root / "valid" / image, room.rgb[i])
        half = room.depth_m[i].astype(np.float16)
        save(root / f"valid/{name}/depths/{name}_{i:04d}.geometric.png", half.view(np.uint16))
        turn = np.linalg.inv(pose)
        view = {
            "R": (flip @ turn[:3, :3]).T.tolist(),
            "T": (flip @ turn[:3, 3]).tolist(),
            "focal_length": [room.intrinsics[0, 0] / unit, room.intrinsics[1, 1] / unit],
            "principal_point": [0.0, 0.0],
            "intrinsics_format": "ndc_isotropic",
        }
        annotations.append({"image": {"path": image, "size": [HEIGHT, WIDTH]}, "viewpoint": view})
    with gzip.open(root / "valid" / "frame_annotations_valid.jgz", "wt") as file:
        json.dump(annotations, file)


def write_hypersim(root: Path, room: Room) -> None:
    scene = root / "ai_001_001"
    detail, geometry = scene / "_detail" / "cam_00", scene / "images" / "scene_cam_00_geometry_hdf5"
    for folder in (detail, geometry):
        folder.mkdir(parents=True)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    focal = 886.81 * WIDTH / 1024
    ray = np.sqrt(((x - (WIDTH - 1) / 2) / focal) ** 2 + ((y - (HEIGHT - 1) / 2) / focal) ** 2 + 1)

    def dataset(path: Path, values: np.ndarray) -> None:
        with path.open("wb") as file:
            np.savez(file, dataset=values)

    for i in range(len(room.rgb)):
        save(scene / f"images/scene_cam_00_final_preview/frame.{i:04d}.tonemap.jpg", room.rgb[i])
        dataset(geometry / f"frame.{i:04d}.depth_meters.hdf5", room.depth_m[i] * ray)
    dataset(detail / "camera_keyframe_positions.hdf5", room.camera_to_world[:, :3, 3] / 0.0254)
    dataset(detail / "camera_keyframe_orientations.hdf5", room.camera_to_world[:, :3, :3] @ np.diag([1.0, -1, -1]))
    dataset(detail / "camera_keyframe_frame_indices.hdf5", np.arange(len(room.rgb)))
    (scene / "_detail" / "metadata_scene.csv").write_text(
        "parameter_name,parameter_value\nmeters_per_asset_unit,0.0254\n"
    )


def write_eth3d(root: Path, room: Room) -> None:
    folder = root / "courtyard"
    (folder / "ground_truth_depth/dslr_images").mkdir(parents=True)
    for i, depth in enumerate(room.depth_m):
        path = folder / f"images/dslr_images/DSC_{i + 286:04d}.JPG"
        save(path, room.rgb[i])
        known = np.where(np.arange(WIDTH) % 2, np.float32(np.inf), depth).astype("<f4")
        (folder / "ground_truth_depth/dslr_images" / path.name).write_bytes(known.tobytes())


def write_vda(root: Path, room: Room) -> None:
    rows = []
    for i, pose in enumerate(room.camera_to_world):
        save(root / f"scene0707_00/color/{i}.jpg", room.rgb[i, 8:-8, 11:-11])
        save(root / f"scene0707_00/depth/{i}.png", units(room.depth_m[i], 1000))
        row = {"image": f"scene0707_00/color/{i}.jpg", "gt_depth": f"scene0707_00/depth/{i}.png", "factor": 1000.0}
        rows.append({**row, "K": room.intrinsics.tolist(), "pose": pose.tolist()})
    (root / "scannet_video.json").write_text(json.dumps({"scannet": [{"scene0707_00": rows}]}))


@pytest.fixture
def hdf5(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the arrays of HDF5 files from .npz files of the same names."""
    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=lambda path, mode: np.load(path)))
    splits: Any = SimpleNamespace(loadmat=lambda path: json.loads(path.read_text()))
    monkeypatch.setitem(sys.modules, "scipy", SimpleNamespace(io=splits))
    monkeypatch.setitem(sys.modules, "scipy.io", splits)


# Layout, what writes it, name of its sequence, stored units per meter, greatest depth; "k": intrinsics are stored too,
# "p": poses are.
CASES: list[tuple[str, Callable[..., Any], str, float, float, str]] = [
    ("tum", write_tum, "rgbd_dataset_freiburg2_desk", 5000, 10, "p"),
    ("bonn", write_bonn, "rgbd_bonn_balloon", 5000, 10, ""),
    ("sintel", write_sintel, "training/clean/alley_1", 1e9, 70, "kp"),
    ("kitti", write_kitti, "2011_09_26_drive_0002_sync/image_02", 256, 80, "k"),
    ("kitti_selection", write_kitti_selection, "2011_09_26_drive_0002_sync/image_02", 256, 80, "k"),
    ("scannet", write_scannet, "scene0707_00", 1000, 10, "kp"),
    ("7scenes", write_7scenes, "chess/seq-01", 1000, 10, "p"),
    ("icl", write_icl, "living_room_traj2_frei_png", 5000, 10, "p"),
    ("tartanair", write_tartanair, "office/Easy/P000", 1e9, 80, "p"),
    ("tartanair", lambda root, room: write_tartanair(root, room, 2), "office/Data_easy/P000", 1e9, 80, "p"),
    ("virtual_kitti", write_virtual_kitti, "Scene01/clone", 100, 80, "kp"),
    ("point_odyssey", write_point_odyssey, "ani10_new_", 65.535, 80, "kp"),
    ("dynamic_replica", write_dynamic_replica, "valid/009850-3_obj_source_left", 250, 80, "kp"),
    ("hypersim", write_hypersim, "ai_001_001/cam_00", 1e5, 20, "p"),
    ("eth3d", write_eth3d, "courtyard", 1e9, 80, ""),
    ("nyu", write_nyu, "bathroom", 1000, 10, ""),
    ("nyu", write_nyu_labeled, "nyu_depth_v2_labeled", 1e9, 10, ""),
    ("vda", write_vda, "scene0707_00", 1000, 10, "p"),
]


@pytest.mark.usefixtures("hdf5")
@pytest.mark.parametrize(("layout", "write", "name", "scale", "max_depth_m", "stored"), CASES)
def test_a_data_set_is_recognized_and_its_ground_truth_is_perfect(
    tmp_path: Path, room: Room, caplog: pytest.LogCaptureFixture,
    layout: str, write: Callable[..., Any], name: str, scale: float, max_depth_m: float, stored: str,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    write(tmp_path, room)
    (clip,) = clips(tmp_path)
    assert f"(rgbd.layout={layout}), sequences: 1" in caplog.text
    assert (clip.name, clip.max_depth_m, len(clip.frames)) == (name, max_depth_m, FRAMES)  # type: ignore[arg-type]
    depth, valid = clip.gt_depth_m[:], clip.valid[:]  # type: ignore[index]
    truth = room.depth_m
    if layout == "nyu":
        truth = np.pad(truth, ((0, 0), (40, 9), (40, 39)))
        assert valid[:, 45:-9, 41:-39].all()
        assert valid.sum() == valid[:, 45:-9, 41:-39].sum()
    if layout == "vda":
        truth = truth[:, 8:-8, 11:-11]
        np.testing.assert_allclose(clip.intrinsics[:2, 2], room.intrinsics[:2, 2] - [11, 8])  # type: ignore[index]
    assert valid.mean() > 0.04
    assert np.abs(depth - truth)[valid].max() <= 0.5 / scale + 1e-6
    perfect = accuracy(depth, depth, valid, depth_kind=DepthKind.METRIC, max_depth_m=max_depth_m)["metric"]
    assert (perfect["abs_rel"], perfect["delta1"]) == (0, 1)
    assert accuracy(truth, depth, valid, depth_kind=DepthKind.METRIC)["metric"]["abs_rel"] < 0.01
    if "k" in stored:
        np.testing.assert_allclose(clip.intrinsics, room.intrinsics, atol=1e-4)
    if "p" in stored:
        assert clip.camera_to_world is not None
        moves = np.linalg.inv(clip.camera_to_world[0]) @ clip.camera_to_world
        np.testing.assert_allclose(moves, np.linalg.inv(room.camera_to_world[0]) @ room.camera_to_world, atol=3e-6)
    inverse = np.where(valid, 1 / np.where(valid, depth, 1), 0.5)
    teacher = Evaluator([Method.recorded("teacher", inverse)], DepthKind.RELATIVE, build_flow("dis_fast"))
    scores = teacher.evaluate(clip)["methods"]["teacher"]
    assert scores["abs_rel/video"].value < 1e-6
    assert scores["delta1/video"].value == 1
    if stored == "kp":
        score = tae_z(depth, clip.intrinsics, clip.camera_to_world, valid, gt_depth_m=depth)  # type: ignore[arg-type]
        assert score.value < 1.0
    image = np.asarray(clip.frames[0])  # type: ignore[index]
    assert image.dtype == np.uint8
    if image.shape == room.rgb.shape[1:]:
        assert np.abs(image.astype(int) - room.rgb[0]).mean() < 6  # jpg


def test_every_layout_has_its_case() -> None:
    assert {case[0] for case in CASES} | {"sintel_final"} == set(LAYOUTS)


def test_stamps_associate_as_the_benchmark_does(tmp_path: Path) -> None:
    """Hundreds of stamps that never match: the closest pair first, one to one, at most 20 ms; no index slips."""
    rng = np.random.default_rng(0)
    rgb = START_S + np.sort(np.arange(400) / 30 + rng.normal(0, 0.004, 400))
    depth = START_S + np.sort(np.arange(400) / 30 + 0.011 + rng.normal(0, 0.006, 400))
    rgb, depth = np.delete(rgb, rng.choice(400, 25, False)), np.delete(depth, rng.choice(400, 40, False))
    possible = sorted((abs(a - b), a, b) for a in rgb for b in depth if abs(a - b) < 0.02)
    left, right, pairs = set(rgb), set(depth), {}
    for _, a, b in possible:
        if a in left and b in right:
            left.remove(a)
            right.remove(b)
            pairs[a] = b
    found = associate(rgb.tolist(), depth.tolist())
    assert {rgb[i]: depth[j] for i, j in enumerate(found) if j >= 0} == pairs
    assert 300 < len(pairs) < 375


def test_frames_without_a_partner_are_named_and_shuffled_stamps_are_seen(
    tmp_path: Path, room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_tum(tmp_path, render_room(5, HEIGHT, WIDTH, speed_m=0.05))
    rows = (root / "depth.txt").read_text().splitlines()
    (root / "depth.txt").write_text("\n".join([*rows[:3], rows[6], rows[3], rows[7], rows[5]]))  # of 4, no order
    (clip,) = clips(root)
    assert len(clip.frames) == 4  # type: ignore[arg-type]
    missing = f"{START_S + 1 / 30:.6f}"
    assert f"1 of 5 images have no depth map within 20 ms, left out: {missing}.png" in caplog.text
    assert missing not in clip.frame_ids  # type: ignore[operator]
    whole = render_room(5, HEIGHT, WIDTH, speed_m=0.05)
    np.testing.assert_allclose(clip.gt_depth_m[:], whole.depth_m[[0, 2, 3, 4]], atol=1e-4)  # type: ignore[index]
    np.testing.assert_allclose(clip.camera_to_world, whole.camera_to_world[[0, 2, 3, 4]], atol=1e-6)
    sorted((root / "rgb").iterdir())[0].unlink()
    (clip,) = clips(root)
    assert len(clip.frames) == 3  # type: ignore[arg-type]
    assert "1 of 5 images are listed in rgb.txt and missing" in caplog.text
    late = write_tum(tmp_path / "late", room, late_s=0.03)
    (late / "depth.txt").write_text(
        "\n".join(f"{9.0 + i} {p.relative_to(late)}" for i, p in enumerate((late / "depth").iterdir()))
    )
    with pytest.raises(UserError, match="no image has a depth map"):
        clips(late)


def test_gaps_and_frames_without_ground_truth(tmp_path: Path, room: Room, caplog: pytest.LogCaptureFixture) -> None:
    write_kitti(tmp_path, room)
    (clip,) = clips(tmp_path)
    assert "5 of 8 images have no depth map, left out: 0000000000.png, " in caplog.text
    assert clip.frame_ids == tuple(f"{i + 5:010d}" for i in range(FRAMES))
    (tmp_path / "data_depth_annotated").rename(tmp_path / "elsewhere")
    (both,) = clips(tmp_path / "raw", f"rgbd.depth_root={tmp_path / 'elsewhere'}")
    np.testing.assert_array_equal(both.gt_depth_m[:], clip.gt_depth_m[:])  # type: ignore[index]


def test_poses_that_were_lost(tmp_path: Path, room: Room, caplog: pytest.LogCaptureFixture) -> None:
    scene = write_scannet(tmp_path, room)
    (scene / "pose" / "1.txt").write_text("-inf -inf -inf -inf\n" * 4)
    (clip,) = clips(scene)
    assert usable_poses(clip.camera_to_world).tolist() == [True, False, True]  # type: ignore[arg-type]
    assert "1 of 3 frames have no finite pose" in caplog.text
    assert clip.name == "scene0707_00"


def test_a_wrong_scale_is_seen_and_everything_can_be_overridden(
    tmp_path: Path, room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    scene = write_scannet(tmp_path, room)
    with pytest.raises(UserError, match=r"beyond max_depth_m=10 .* another rgbd.depth_scale"):
        clips(scene, "rgbd.layout=scannet", "rgbd.depth_scale=100")
    clips(scene, "rgbd.layout=scannet", "rgbd.depth_scale=100000")
    assert "rgbd.depth_scale may be wrong" in caplog.text
    np.savetxt(tmp_path / "k.txt", room.intrinsics * 2)
    (clip,) = clips(
        scene, "rgbd.layout=scannet", "rgbd.max_depth_m=30", "rgbd.crop=[1,2,3,4]", "rgbd.invalid=1234", "max_frames=2",
        f"rgbd.intrinsics={tmp_path / 'k.txt'}", "rgbd.poses=pose",
    )  # fmt: skip
    assert (clip.max_depth_m, len(clip.frames)) == (30.0, 2)  # type: ignore[arg-type]
    assert not clip.valid[0][:1].any()  # type: ignore[index]
    assert clip.valid[0][1:-2, 3:-4].mean() > 0.9  # type: ignore[index]
    assert clip.valid[0].sum() == clip.valid[0][1:-2, 3:-4].sum()  # type: ignore[index]
    np.testing.assert_allclose(clip.intrinsics, room.intrinsics * 2)


def test_ground_truth_far_away_is_counted_and_no_reason_to_refuse_a_known_layout(
    tmp_path: Path, room: Room, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    write_sintel(tmp_path, room)
    for path in (tmp_path / "training/depth/alley_1").iterdir():
        far = np.frombuffer(path.read_bytes(), "<f4", offset=12) * np.float32(30)
        path.write_bytes(path.read_bytes()[:12] + far.astype("<f4").tobytes())
    clips(tmp_path)
    assert "of the ground truth lies beyond max_depth_m=70" in caplog.text
    (final,) = clips(tmp_path, "rgbd.layout=sintel_final")
    assert final.name == "training/final/alley_1"


def test_what_is_not_there_is_said(tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tum(tmp_path, room)
    with pytest.raises(UserError, match=r"no sequence of rgbd.layout=scannet; it must have: ScanNet .*color/0.jpg"):
        clips(tmp_path, "rgbd.layout=scannet")
    with pytest.raises(UserError, match="does not exist"):
        clips(tmp_path, f"rgbd.depth_root={tmp_path / 'nowhere'}")
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "nyu").mkdir()
    write_nyu_labeled(tmp_path / "nyu", room)
    with pytest.raises(UserError, match=r"needs h5py: pip install 'videomamba-depth\[datasets\]'"):
        clips(tmp_path / "nyu")


@pytest.mark.usefixtures("hdf5")
def test_the_test_split_of_nyu(tmp_path: Path, room: Room) -> None:
    write_nyu_labeled(tmp_path, room)
    (tmp_path / "splits.mat").write_text('{"testNdxs": [[1], [3]]}')
    (clip,) = clips(tmp_path)
    assert clip.frame_ids == ("0001", "0003")
    assert (clip.file_places, clip.num_files) == ((0, 2), 3)
    for content, message in (
        ("{", r"cannot read .*splits\.mat: .*; download splits\.mat again, or remove it"),
        ("{}", "splits.mat: it has no 'testNdxs'"),
        ('{"testNdxs": ["a"]}', "'testNdxs' of .*splits.mat must hold the numbers of pictures"),
        ('{"testNdxs": [1, 0]}', "names picture 0; beside it are those from 1 to 3"),
        ('{"testNdxs": [1, 4]}', "names picture 4"),
    ):
        (tmp_path / "splits.mat").write_text(content)
        with pytest.raises(UserError, match=message):
            clips(tmp_path)


@pytest.mark.usefixtures("hdf5")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must have the columns parameter_name and parameter_value"),
        ("parameter_name,value\nmeters_per_asset_unit,0.1\n", "must have the columns parameter_name and"),
        ("parameter_name,parameter_value\nsite,0.1\n", "has no row 'meters_per_asset_unit,METERS'"),
        ("parameter_name,parameter_value\nmeters_per_asset_unit\n", r"metadata_scene\.csv, line 2: meters_per"),
        ("parameter_name,parameter_value\na,b\nmeters_per_asset_unit,inch\n", "line 3: .* must be a length in m; got"),
        ("parameter_name,parameter_value\nmeters_per_asset_unit,0\n", "line 2: .* must be a length in m"),
        ("\xff\xfe", "metadata_scene.csv must have the columns"),
    ],
)
def test_damaged_scenes_of_hypersim_are_named(tmp_path: Path, room: Room, content: str, message: str) -> None:
    write_hypersim(tmp_path, room)
    scene = tmp_path / "ai_001_001" / "_detail" / "metadata_scene.csv"
    scene.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        clips(tmp_path)


@pytest.mark.usefixtures("hdf5")
def test_key_frames_of_hypersim_of_another_form_are_named(tmp_path: Path, room: Room) -> None:
    write_hypersim(tmp_path, room)
    file = tmp_path / "ai_001_001/_detail/cam_00/camera_keyframe_orientations.hdf5"
    for orientations, message in (
        (np.ones((3, 9)), r"must hold numbers \[n, 3, 3\]"),
        (np.ones((2, 3, 3)), "3, 2 and 3"),
    ):
        with file.open("wb") as stream:
            np.savez(stream, dataset=orientations)
        with pytest.raises(UserError, match=message):
            clips(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames: {"frames": frames}, "must hold a list of frames, as JSON; it holds a dict"),
        (lambda frames: [*frames[:2], {}], r"frame_annotations_valid\.jgz, entry 2, must have .*: it has no 'image'"),
        (lambda frames: [1, *frames], "entry 0, must have"),
        (lambda frames: [frames[0]["viewpoint"].pop("R"), *frames][1:], "entry 0, must have .* it has no 'R'"),
        (lambda frames: [frames[1]["viewpoint"].update(R=[[1, 2]]), *frames][1:], r"entry 1, .*expected \[3, 3\]"),
        (lambda frames: [frames[1]["viewpoint"].update(R=[[0] * 3] * 3), *frames][1:], "entry 1, .*[Ss]ingular"),
        (lambda frames: [frames[1]["image"].update(size=None), *frames][1:], "entry 1, must have"),
        (lambda frames: [frames[1]["viewpoint"].update(focal_length=[0, 1]), *frames][1:], "entry 1, .*is none"),
    ],
)
def test_damaged_annotations_of_dynamic_replica_are_named(
    tmp_path: Path, room: Room, change: Callable[[list[Any]], Any], message: str
) -> None:
    write_dynamic_replica(tmp_path, room)
    file = tmp_path / "valid" / "frame_annotations_valid.jgz"
    with gzip.open(file, "rt") as stream:
        frames = json.load(stream)
    with gzip.open(file, "wt") as stream:
        json.dump(change(frames), stream)
    with pytest.raises(UserError, match=message):
        clips(tmp_path)


def test_annotations_that_were_cut_short_are_named(tmp_path: Path, room: Room) -> None:
    write_dynamic_replica(tmp_path, room)
    file = tmp_path / "valid" / "frame_annotations_valid.jgz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cannot read .*jgz: .*; unpack or download it again"):
        clips(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "K",
            1.0,
            r"scannet_video\.json, 'scene0707_00', entry 1: K must be .*expected \[4, 4\] or \[3, 3\], got \[\]",
        ),
        ("K", [[1.0, 2.0], [3.0]], "entry 1: K must be a matrix of numbers"),
        ("pose", [[1.0] * 4] * 3, r"entry 1: pose must be .*got \[3, 4\]; correct it, or remove pose from all"),
        ("pose", "east", "entry 1: pose must be a matrix of numbers"),
        ("factor", "mm", "'scene0707_00', entry 1, must have image and gt_depth, paths, and factor, a positive number"),
        ("factor", -5000.0, "entry 1, must have"),
        ("factor", None, "entry 1, must have"),
        ("image", None, "entry 1, must have image"),
    ],
)
def test_damaged_entries_of_lists_are_named(tmp_path: Path, room: Room, key: str, value: Any, message: str) -> None:
    write_vda(tmp_path, room)
    file = tmp_path / "scannet_video.json"
    content = json.loads(file.read_text())
    rows = content["scannet"][0]["scene0707_00"]
    rows[1][key] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        clips(tmp_path)
    for row in rows:
        row[key] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message.replace("1", "0", 1)):
        clips(tmp_path)


def test_the_order_in_which_a_file_system_lists_files_changes_nothing(
    tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_icl(tmp_path / "icl", room)
    (folder,) = {path.parent for path in (tmp_path / "icl").rglob("*.gt.freiburg")}
    trajectory(folder / "other.gt.freiburg", room.camera_to_world[::-1], list(range(FRAMES)))
    write_dynamic_replica(tmp_path / "replica", room)
    annotations = tmp_path / "replica" / "valid" / "frame_annotations_valid.jgz"
    (annotations.parent / "frame_annotations_zero.jgz").write_bytes(
        gzip.compress(gzip.decompress(annotations.read_bytes()).replace(b"0.0, 0.0", b"0.5, 0.5"))
    )
    write_7scenes(tmp_path / "alike", room)
    for name in ("frame-2.color.png", "frame-02.color.png", "frame-²1.color.png"):
        (next(iter((tmp_path / "alike").rglob("*.color.png"))).parent / name).touch()

    def found() -> list[Any]:
        both = [clips(tmp_path / name)[0] for name in ("icl", "replica")]
        order = listed(next(iter((tmp_path / "alike").rglob("*.color.png"))).parent, (".png",))
        return [[(c.camera_to_world.tolist(), c.intrinsics.tolist()) for c in both], order]  # type: ignore[union-attr]

    first = found()
    iterdir, glob = Path.iterdir, Path.glob
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(iterdir(path), reverse=True)))
    monkeypatch.setattr(Path, "glob", lambda path, pattern: iter(sorted(glob(path, pattern), reverse=True)))
    last = found()
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(iterdir(path))))
    monkeypatch.setattr(Path, "glob", lambda path, pattern: iter(sorted(glob(path, pattern))))
    assert first == last == found()


@pytest.mark.parametrize("content", ["", "nan 0 1\n0 1 1\n0 0 1\n", "1", "1 2 3\n4 5 6\n", "1169.6 0 646.3\n0 1\n"])
def test_damaged_intrinsics_of_scannet_are_named(tmp_path: Path, room: Room, content: str) -> None:
    write_scannet(tmp_path, room)
    file = tmp_path / "scene0707_00" / "intrinsic" / "intrinsic_depth.txt"
    before = clips(tmp_path)[0].intrinsics
    file.write_text("\n".join(line.rsplit(maxsplit=1)[0] for line in file.read_text().splitlines()[:3]))  # 3×3
    np.testing.assert_array_equal(clips(tmp_path)[0].intrinsics, before)  # type: ignore[arg-type]
    file.write_text(content)
    with pytest.raises(UserError, match=r"intrinsic_depth\.txt"):
        clips(tmp_path)


def test_lists_and_calibrations_of_other_encodings(
    tmp_path: Path, room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    write_tum(tmp_path / "tum", room)
    (rgb,) = (tmp_path / "tum").rglob("rgb.txt")
    before = clips(tmp_path / "tum")[0].frame_ids
    for file in (rgb, rgb.with_name("groundtruth.txt")):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert clips(tmp_path / "tum")[0].frame_ids == before
    depth = rgb.with_name("depth.txt")
    depth.unlink()
    depth.mkdir()
    with pytest.raises(UserError, match=r"cannot read the list .*depth\.txt: Is a directory"):
        clips(tmp_path / "tum")
    write_kitti(tmp_path / "kitti", room)
    (calibration,) = (tmp_path / "kitti").rglob("calib_cam_to_cam.txt")
    calibration.write_bytes(b"calib_time: \xff\n" + calibration.read_bytes())
    assert clips(tmp_path / "kitti")[0].intrinsics is not None
    calibration.write_bytes(b"\xff")
    assert clips(tmp_path / "kitti")[0].intrinsics is None
    assert "has no row 'P_rect_02: NUMBERS'" in caplog.text


def test_headers_without_numbers_are_named(tmp_path: Path, room: Room) -> None:
    write_virtual_kitti(tmp_path, room)
    file = tmp_path / "Scene01" / "clone" / "intrinsic.txt"
    file.write_text(file.read_text().splitlines()[0])
    with pytest.raises(UserError, match=r"cannot read numbers from .*intrinsic\.txt: it holds none"):
        clips(tmp_path)


def test_a_missing_camera_of_sintel_costs_one_pose(tmp_path: Path, room: Room) -> None:
    write_sintel(tmp_path, room)
    before = clips(tmp_path)[0]
    next(iter(sorted(tmp_path.rglob("*.cam")))).unlink()
    (clip,) = clips(tmp_path)
    np.testing.assert_array_equal(usable_poses(clip.camera_to_world), [False, True, True])  # type: ignore[arg-type]
    np.testing.assert_array_equal(clip.intrinsics, before.intrinsics)  # type: ignore[arg-type]


def test_other_data_sets_in_a_folder_are_named(tmp_path: Path, room: Room, caplog: pytest.LogCaptureFixture) -> None:
    write_tum(tmp_path / "a", room)
    write_scannet(tmp_path / "b", room)
    assert len(clips(tmp_path)) == 1
    (warning,) = [record.getMessage() for record in caplog.records if "also holds" in record.getMessage()]
    assert "ScanNet export (rgbd.layout=scannet), left out, sequences: 1, first b/scene0707_00" in warning
    caplog.clear()
    write_sintel(tmp_path / "c", room)
    clips(tmp_path / "c")
    assert "also holds" not in caplog.text


def test_files_that_no_list_names_count_for_numbered_recordings(tmp_path: Path, room: Room) -> None:
    write_tum(tmp_path, room)
    (rgb,) = tmp_path.rglob("rgb.txt")
    save(rgb.parent / "rgb" / "1000.000000.png", room.rgb[0])
    save(rgb.parent / "rgb" / "1000.500000.tif", room.rgb[0])
    (rgb.parent / "rgb" / "._1000.000000.png").write_bytes(b"")  # of macOS: no stream counts it
    (clip,) = clips(tmp_path)
    assert (clip.frame_places, clip.source_frames) == ((0, 1, 2), 3)
    assert (clip.file_places, clip.num_files) == ((2, 3, 4), 5)


@pytest.mark.parametrize("write", [write_7scenes, write_nyu])
def test_depth_beside_the_pictures_is_counted(tmp_path: Path, room: Room, write: Any) -> None:
    write(tmp_path, room)
    (clip,) = clips(tmp_path)
    assert (clip.file_places, clip.source_frames, clip.num_files) == (None, 3, 6)


def test_hidden_files_are_no_pictures(tmp_path: Path, room: Room) -> None:
    scene = write_scannet(tmp_path, room)
    (scene / "color" / "._0.jpg").write_bytes(b"")
    (clip,) = clips(tmp_path)
    assert clip.source_frames == 3


def test_several_sequences_and_lists(tmp_path: Path, room: Room) -> None:
    write_vda(tmp_path, room)
    content = json.loads((tmp_path / "scannet_video.json").read_text())
    for row in content["scannet"][0]["scene0707_00"]:
        row["image"] = row["image"].replace("color", "color_origin")
        del row["K"]
    (tmp_path / "scannet_video_tae.json").write_text(json.dumps(content))
    names = [clip.name for clip in clips(tmp_path)]
    assert names == ["scannet_video/scene0707_00", "scannet_video_tae/scene0707_00"]
    (clip,) = clips(tmp_path / "scannet_video_tae.json")
    assert clip.gt_depth_m.shape == (FRAMES, HEIGHT, WIDTH)  # type: ignore[union-attr]
    assert layouts.find_layout(tmp_path / "scene0707_00") == []


def test_a_new_data_set_is_a_function_and_an_entry(
    tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The code that docs/evaluation.md prints."""
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (code,) = [
        block for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if "LAYOUTS" in block
    ]
    monkeypatch.setitem(LAYOUTS, "my_set", LAYOUTS["tum"])  # taken out again afterwards
    exec(code, {})
    for i in range(FRAMES):
        save(tmp_path / "walk" / "left" / f"{i:04d}.png", room.rgb[i])
        save(tmp_path / "walk" / "left_depth" / f"{i:04d}.png", units(room.depth_m[i], 1000))
    caplog.set_level(logging.INFO)
    (clip,) = clips(tmp_path, "rgbd.layout=my_set")
    assert (clip.name, clip.max_depth_m) == ("walk", 20.0)
    assert "is My set (rgbd.layout=my_set)" in caplog.text
    np.testing.assert_allclose(clip.gt_depth_m[:], room.depth_m, atol=5e-4)  # type: ignore[index]


def test_a_row_for_each_listed_picture_stays_with_its_picture(tmp_path: Path) -> None:
    root = write_tum(tmp_path, render_room(5, HEIGHT, WIDTH, speed_m=0.05))
    (root / "poses.txt").write_text("".join(f"{i} 0 0 0 0 0 1\n" for i in range(5)))
    sorted((root / "rgb").iterdir())[3].unlink()
    (clip,) = clips(root, "rgbd.poses=poses.txt")
    assert clip.camera_to_world[:, 0, 3].tolist() == [0, 1, 2, 4]  # type: ignore[index]
    assert (clip.frame_places, clip.source_frames) == ((0, 1, 2, 4), 5)


@pytest.mark.parametrize(
    ("write", "gone", "poses"),
    [
        (write_tartanair, "office/Easy/P000/image_left/000001_left.png", "pose_left.txt has 2 poses"),
        (write_point_odyssey, "ani10_new_/rgbs/rgb_00001.jpg", "anno.npz has 2 poses"),
    ],
)
def test_poses_go_by_the_number_of_the_picture(
    tmp_path: Path, room: Room, write: Callable[..., Any], gone: str, poses: str
) -> None:
    write(tmp_path, room)
    (tmp_path / gone).unlink()
    (clip,) = clips(tmp_path)
    moved = np.linalg.inv(clip.camera_to_world[0]) @ clip.camera_to_world[1]  # type: ignore[index]
    np.testing.assert_allclose(moved, np.linalg.inv(room.camera_to_world[0]) @ room.camera_to_world[2], atol=3e-6)
    if write is write_tartanair:
        trajectory(tmp_path / "office/Easy/P000/pose_left.txt", room.camera_to_world[:2])
    else:
        np.savez(tmp_path / "ani10_new_/anno.npz", intrinsics=np.eye(3)[None], extrinsics=room.camera_to_world[:2])
    with pytest.raises(UserError, match=f"{poses}; picture number 2"):
        clips(tmp_path)


def test_pictures_without_a_number_have_no_pose(tmp_path: Path, room: Room) -> None:
    write_icl(tmp_path, room)
    for path in tmp_path.glob("*/*/0.png"):
        path.rename(path.with_name("first.png"))
    with pytest.raises(UserError, match=r"first\.png must be called by its frame number"):
        clips(tmp_path)


def test_keys_of_rgbd_on_what_is_no_data_set_are_refused(
    tmp_path: Path, room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    write_kitti(tmp_path, room)
    raw = tmp_path / "raw"
    for override in (f"rgbd.depth_root={raw}", "rgbd.max_depth_m=5", f"rgbd.depth_root={raw} rgbd.depth_scale=256"):
        with pytest.raises(UserError, match=r"'.*raw' is recognized as no data set with depth, which rgbd\."):
            clips(raw, *override.split())
    save(tmp_path / "mine" / "rgb" / "0.png", room.rgb[0])
    save(tmp_path / "mine" / "depth" / "0.png", units(room.depth_m[0], 1000))
    (clip,) = clips(tmp_path / "mine")
    assert clip.gt_depth_m is None
    assert "1 image folders are read as plain videos, without the folder depth/" in caplog.text
    (clip,) = clips(tmp_path / "mine", "rgbd.depth_scale=1000")
    assert clip.gt_depth_m is not None


def test_the_folder_that_one_is_in_is_a_data_set(tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kitti(tmp_path / "kitti", room)
    monkeypatch.chdir(tmp_path / "kitti/raw/2011_09_26/2011_09_26_drive_0002_sync")
    (clip,) = clips(Path(), f"rgbd.depth_root={tmp_path / 'kitti/data_depth_annotated'}")
    assert clip.name == "2011_09_26_drive_0002_sync/image_02"
    write_7scenes(tmp_path, room)
    sequence = tmp_path / "chess" / "seq-01"
    for path in sequence.glob("frame-000000.*"):
        path.unlink()
    (clip,) = clips(sequence)
    assert clip.frame_ids == ("frame-000001", "frame-000002")


def test_a_single_key_keeps_what_else_the_layout_says(tmp_path: Path, room: Room) -> None:
    root = write_tum(tmp_path, room)
    (clip,), (scaled,) = clips(root), clips(root, "rgbd.depth_scale=10000")
    np.testing.assert_allclose(scaled.gt_depth_m[:], clip.gt_depth_m[:] / 2, rtol=1e-6)  # type: ignore[index]
    np.testing.assert_array_equal(scaled.camera_to_world, clip.camera_to_world)  # type: ignore[arg-type]


def test_inputs_that_are_called_alike_stay_apart(tmp_path: Path, room: Room) -> None:
    for name in ("a", "b"):
        write_tum(tmp_path / name / "test", room)
    (tmp_path / "a" / "test" / "link").symlink_to(tmp_path / "a")
    flow, inputs = build_flow("dis"), f"input=[{tmp_path / 'a/test'},{tmp_path / 'b/test'}]"
    config = load_config("evaluate", EvaluateConfig, ["checkpoint=[]", inputs])
    name = "rgbd_dataset_freiburg2_desk"
    assert [(one.group, one.name) for one in build_sources(config, flow)] == [
        ("a/test", f"a/test: {name}"), ("b/test", f"b/test: {name}"),
    ]  # fmt: skip
    config = load_config("evaluate", EvaluateConfig, ["checkpoint=[]", inputs, "protocol=streaming"])
    names = [source.name for source in build_sources(config, flow)]
    assert names == [f"a/test: {name}", f"b/test: {name}"]
    assert len({source.group for source in build_sources(config, flow)}) == 1
    twice = f"input=[{tmp_path / 'a'},{tmp_path / 'b' / '..' / 'a'}]"
    config = load_config("evaluate", EvaluateConfig, ["checkpoint=[]", twice])
    with pytest.raises(UserError, match="twice"):
        build_sources(config, flow)


def test_an_input_without_the_list_that_is_asked_for_is_left_out(
    tmp_path: Path, room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    write_tum(tmp_path / "bonn", room, "rgbd_bonn_balloon2")
    write_scannet(tmp_path / "scannet", room)
    given = ["checkpoint=[]", "protocol=vda", f"input=[{tmp_path / 'bonn'},{tmp_path / 'scannet'}]", "rgbd.lists=[tae]"]
    sources = build_sources(load_config("evaluate", EvaluateConfig, given), build_flow("dis"))
    assert [source.name for source in sources] == ["scene0707_00@tae"]
    assert re.search(r"bonn' is left out: rgbd\.lists=\['tae'\]: choose from 500, 110", caplog.text)
    given[-1] = "rgbd.lists=[none]"
    with pytest.raises(UserError, match="choose from 500, 110"):
        build_sources(load_config("evaluate", EvaluateConfig, given), build_flow("dis"))


@pytest.mark.parametrize("write", [write_tum, write_bonn, write_7scenes, write_icl, write_tartanair])
def test_published_intrinsics_are_those_of_the_pictures_size(
    tmp_path: Path, room: Room, caplog: pytest.LogCaptureFixture, write: Callable[..., Any]
) -> None:
    write(tmp_path / "small", room)  # a tenth of 640×480 px
    (clip,) = clips(tmp_path / "small")
    matrix = np.asarray(clip.intrinsics)
    assert (32 if write is write_tartanair else 48) <= matrix[0, 0] < 59
    assert abs(matrix[0, 2] - 31.5) < 1.5
    assert abs(matrix[1, 2] - 23.5) < 1.5
    cut = replace(room, depth_m=room.depth_m[:, :40], rgb=room.rgb[:, :40])
    (tmp_path / "cut").mkdir()
    write(tmp_path / "cut", cut)
    (clip,) = clips(tmp_path / "cut")
    assert clip.intrinsics is None
    assert "has 40×64 px, of another aspect ratio than the 480×640 px" in caplog.text


def test_a_folder_of_bonn_that_was_renamed(tmp_path: Path, room: Room) -> None:
    write_tum(tmp_path / "kept", room, "rgbd_bonn_balloon")
    write_tum(tmp_path / "renamed", room, "balloon")
    (kept,), (named,) = clips(tmp_path / "kept"), clips(tmp_path / "renamed", "rgbd.layout=bonn")
    np.testing.assert_array_equal(named.camera_to_world, kept.camera_to_world)  # type: ignore[arg-type]
    np.testing.assert_array_equal(named.intrinsics, kept.intrinsics)  # type: ignore[arg-type]


def test_wrong_keys_and_damage_name_key_and_sequence(tmp_path: Path, room: Room) -> None:
    with pytest.raises(UserError, match=r"rgbd\.layout=nonsense: choose from vda, sintel"):
        clips(tmp_path, "rgbd.layout=nonsense")
    with pytest.raises(UserError, match=r"rgbd\.crop and rgbd\.crop_px"):
        clips(tmp_path, "rgbd.crop=[1,1,1,1]", "rgbd.crop_px=1")
    write_scannet(tmp_path, room)
    with pytest.raises(UserError, match=r"^scene0707_00: it has 3 frames"):
        clips(tmp_path, "rgbd.start=9")
