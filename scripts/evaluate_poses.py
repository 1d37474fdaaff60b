#!/usr/bin/env python
"""Score the cameras that a stream with geometry finds, on rendered worlds, beside a plain chain of two views.

    python scripts/evaluate_poses.py --world courtyard --videos 8
    python scripts/evaluate_poses.py runs/NAME/last --kinds moving --seed 9700000000

position   root mean square error of the positions after one similarity transform (Umeyama, 1991), in % of the path
turn       of the rotation from the first frame to each other one, mean error in degrees; step: from frame to frame
focal      error of the focal length at the end, in %

`chain` is told the true focal length: the essential matrix of each pair of neighboring frames from optical flow
(Nistér, 2004; OpenCV's, with RANSAC), as far along its direction as the teacher's depth says, with the shift that
geometry assumes at first. Means and standard errors over videos; worlds are those of `scripts/evaluate.py`.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple, get_args

import cv2
import numpy as np
import torch
from torch import Tensor

from videomamba_depth.data.synthetic import SceneFamily
from videomamba_depth.evaluation.clips import EvaluationClip
from videomamba_depth.evaluation.datasets.worlds import WorldSet
from videomamba_depth.flow.estimators import build_flow
from videomamba_depth.models.checkpoint import load_student, load_teacher
from videomamba_depth.models.encoder_da import Teacher
from videomamba_depth.models.geometry import SHIFT_OF_LOW
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.arguments import path_argument, whole
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError, exit_on_user_error

GRID_PX = 4  # of the points that the chain sees
RANSAC_PX, CONFIDENCE = 1.0, 0.999
MIN_MOTION_PX = 0.5  # a pair whose median motion is less stands still
MIN_INLIERS = 8
FLOOR = 0.02  # inverse depth, in units of its mean, that is taken at least


class Path(NamedTuple):
    """Cameras of F frames: rotations [F,3,3], camera to world, and positions [F,3], of any scale."""

    rotations: np.ndarray
    positions: np.ndarray


def streamed(student: VideoMambaDepth, clip: EvaluationClip) -> tuple[Path, float]:
    """Return the path that a stream finds, and its focal length in px at the end."""
    stream = DepthStream(student, resets=ResetPolicy())
    cameras = []
    for frame in clip.frames:
        stream.step(frame)
        cameras.append(stream.cameras[0])
    found = Path(np.stack([c.rotation for c in cameras]), np.stack([c.position for c in cameras]))
    return found, cameras[-1].focal_px


def chained(inverse: Tensor, clip: EvaluationClip) -> Path:
    """Return the path of a chain of pairs.

    Args:
        inverse: [F,H,W] inverse depth.
    """
    assert clip.intrinsics is not None
    flow = build_flow("dis")
    frames = torch.from_numpy(np.stack(list(clip.frames))).permute(0, 3, 1, 2).float() / 255
    height, width = frames.shape[-2:]
    rows, columns = np.mgrid[GRID_PX // 2 : height : GRID_PX, GRID_PX // 2 : width : GRID_PX].reshape(2, -1)
    points = np.stack([columns, rows], -1).astype(np.float64)
    pose, rotations, positions = np.eye(4), [np.eye(3)], [np.zeros(3)]
    for t in range(1, len(frames)):
        motion = flow(frames[t : t + 1], frames[t - 1 : t])[0].numpy()[:, rows, columns].T
        pose = pose @ _from_pair(points, points + motion, inverse[t].numpy()[rows, columns], clip.intrinsics)
        rotations.append(pose[:3, :3])
        positions.append(pose[:3, 3])
    return Path(np.stack(rotations), np.stack(positions))


def _from_pair(now: np.ndarray, before: np.ndarray, inverse: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Return the camera of now as the one before sees it, [4,4], for points [P,2] px."""
    relative = np.eye(4)
    if np.median(np.linalg.norm(before - now, axis=1)) < MIN_MOTION_PX:
        return relative
    essential, inliers = cv2.findEssentialMat(now, before, intrinsics, cv2.RANSAC, CONFIDENCE, RANSAC_PX)
    if essential is None or essential.shape != (3, 3) or int(inliers.sum()) < MIN_INLIERS:
        return relative
    _, rotation, direction, inliers = cv2.recoverPose(essential, now, before, intrinsics, mask=inliers)
    kept = inliers[:, 0] > 0
    if kept.sum() < MIN_INLIERS:
        return relative
    # How far: s of each point with its place before = (turned + s moved), over its third component.
    rays = np.linalg.solve(intrinsics, np.column_stack([now, np.ones(len(now))])[kept].T)
    turned, moved = rotation @ rays, direction * inverse[kept]
    seen = np.linalg.solve(intrinsics, np.column_stack([before, np.ones(len(before))])[kept].T)[:2]
    slope, rest = moved[:2] - seen * moved[2], seen * turned[2] - turned[:2]
    far = (slope * rest).sum(0) / np.maximum((slope * slope).sum(0), 1e-12)
    relative[:3, :3], relative[:3, 3] = rotation, max(float(np.median(far)), 0.0) * direction[:, 0]
    return relative


def scores(found: Path, truth: Path) -> dict[str, float]:
    """Return the errors of a path."""
    error = _aligned(found.positions, truth.positions) - truth.positions
    length = np.linalg.norm(np.diff(truth.positions, axis=0), axis=1).sum()
    ours, own = (path.rotations[0].T @ path.rotations for path in (found, truth))
    steps = [rotations[:-1].transpose(0, 2, 1) @ rotations[1:] for rotations in (ours, own)]
    return {
        "position": 100 * float(np.sqrt(np.square(error).sum(1).mean())) / length,
        "turn": float(_angles(ours[1:], own[1:]).mean()),
        "step": float(_angles(*steps).mean()),
    }


def _angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the angles in degrees between rotations [F,3,3]."""
    cosine = (np.einsum("nij,nij->n", a, b) - 1) / 2
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _aligned(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return points [F,3] after the similarity transform that brings them nearest to others (Umeyama, 1991)."""
    x, y = found - found.mean(0), truth - truth.mean(0)
    u, values, vt = np.linalg.svd(y.T @ x)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    scale = (values * signs).sum() / max(np.square(x).sum(), 1e-12)
    return np.asarray(scale * x @ ((u * signs) @ vt).T + truth.mean(0))


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="embedded", help="a student with flow")
    parser.add_argument("--world", default="courtyard", choices=get_args(SceneFamily))
    parser.add_argument("--kinds", nargs="+", default=["moving", "fast"], choices=("moving", "fast"))
    parser.add_argument("--seed", type=whole(0, 2**40), default=9_700_000_000)
    parser.add_argument("--videos", type=whole(1, 10_000), default=8, help="of each kind")
    parser.add_argument("--frames", type=whole(2, 100_000), default=48)
    parser.add_argument("--cache", type=path_argument, help="folder that rendered worlds are kept in")
    parser.add_argument("--threads", type=whole(1), default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    student, teacher = load_student(args.checkpoint, geometry=True), load_teacher(args.checkpoint)
    if teacher.depth_kind is DepthKind.METRIC:
        raise UserError("the chain of two views reads relative depth: give a student of a relative teacher")
    print(f"{'worlds':<24}{'cameras':<10}{'position %':>16}{'turn deg':>16}{'step deg':>16}{'focal %':>16}")
    for kind in args.kinds:
        worlds = WorldSet(world=args.world, seed=args.seed, kinds=(kind,), videos=args.videos, frames=args.frames)
        rows: dict[str, list[dict[str, float]]] = {"stream": [], "chain": []}
        for source in worlds.sources(args.cache, build_flow("dis"), "dis"):
            clip = source.load()
            assert clip.camera_to_world is not None
            assert clip.intrinsics is not None
            truth = Path(clip.camera_to_world[:, :3, :3], clip.camera_to_world[:, :3, 3])
            found, focal_px = streamed(student, clip)
            focal = {"focal": 100 * abs(focal_px / float(clip.intrinsics[0, 0]) - 1)}
            rows["stream"].append(scores(found, truth) | focal)
            rows["chain"].append(scores(chained(_inverse_depth(teacher, clip), clip), truth) | {"focal": 0.0})
        for name, some in rows.items():
            cells = "".join(f"{_mean([row[key] for row in some]):>16}" for key in ("position", "turn", "step", "focal"))
            print(f"{f'{args.world} {kind} ({len(some)})':<24}{name:<10}{cells}", flush=True)


@torch.no_grad()
def _inverse_depth(teacher: Teacher, clip: EvaluationClip) -> Tensor:
    """Return the teacher's inverse depth [F,H,W] with the shift that geometry assumes, in units of its mean."""
    found = []
    for frame in clip.frames:
        depth = teacher.predict_depth(torch.from_numpy(frame).permute(2, 0, 1)[None] / 255)[0, 0]
        low = depth.flatten().kthvalue(max(1, depth.numel() // 100)).values
        found.append(((depth + SHIFT_OF_LOW * low) / depth.mean()).clamp(min=FLOOR))
    return torch.stack(found)


def _mean(values: list[float]) -> str:
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{np.mean(values):.2f} ± {error:.2f}"


if __name__ == "__main__":
    with exit_on_user_error():
        main()
