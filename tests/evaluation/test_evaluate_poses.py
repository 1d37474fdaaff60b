"""Errors of a camera's path, and a chain of two views that is right where flow and depth are."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from commands import load_script

from videomamba_depth.utils.cameras import rotation_matrix

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "evaluate_poses.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("evaluate_poses")


def turned(vectors: np.ndarray) -> np.ndarray:
    return rotation_matrix(torch.from_numpy(vectors)).numpy()


def test_scale_place_and_axes_of_a_path_do_not_count(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    truth = script.Path(turned(rng.normal(size=(9, 3)) * 0.2), rng.normal(size=(9, 3)).cumsum(0))
    axes = turned(np.array([[0.3, -0.8, 0.5]]))[0]
    found = script.Path(axes @ truth.rotations, 2.5 * truth.positions @ axes.T + 7)
    assert script.scores(found, truth) == pytest.approx({"position": 0, "turn": 0, "step": 0}, abs=1e-4)


def test_errors_are_of_the_path_and_in_degrees(script: ModuleType) -> None:
    truth = script.Path(np.tile(np.eye(3), (5, 1, 1)), np.arange(5)[:, None] * np.array([1.0, 0, 0]))
    off = truth.positions + 0.1 * np.array([0, 1, -2, 1, 0])[:, None] * np.array([0, 1, 0])  # no similarity undoes it
    turns = np.zeros((5, 3))
    turns[2:] = [0, np.radians(10), 0]
    scores = script.scores(script.Path(turned(turns), off), truth)
    assert scores["position"] == pytest.approx(100 * np.sqrt(0.06 / 5) / 4, rel=0.02)
    assert scores["turn"] == pytest.approx(7.5)
    assert scores["step"] == pytest.approx(2.5)


def test_a_pair_of_exact_points_gives_its_motion(script: ModuleType) -> None:
    rng = np.random.default_rng(1)
    intrinsics = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    points = np.column_stack([rng.uniform(0, 100, 200), rng.uniform(0, 80, 200)])
    inverse = rng.uniform(0.2, 1, 200)
    rotation, step = turned(np.array([[0.02, -0.05, 0.01]]))[0], np.array([0.3, -0.05, 0.2])
    points_before = (
        rotation @ (np.linalg.solve(intrinsics, np.column_stack([points, np.ones(200)]).T) / inverse) + step[:, None]
    )
    before = (intrinsics @ (points_before / points_before[2]))[:2].T
    found = script._from_pair(points, before, inverse, intrinsics)
    np.testing.assert_allclose(found[:3, :3], rotation, atol=1e-4)
    np.testing.assert_allclose(found[:3, 3], step, rtol=1e-2, atol=1e-3)
    still = script._from_pair(points, points + 0.1, inverse, intrinsics)
    np.testing.assert_array_equal(still, np.eye(4))
