"""`check=true` names a wrong scale, pairing, unit or sign, and nothing where all is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_room import Room, render_room
from tiny_room import clip_of as clip_of_room

from videomamba_depth.commands.evaluate import main
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.evaluate_schema import EvaluateConfig
from videomamba_depth.evaluation import EvaluationClip
from videomamba_depth.evaluation.check import check_clip
from videomamba_depth.evaluation.predictions import Prediction
from videomamba_depth.evaluation.summary import versions
from videomamba_depth.utils.depth_kind import DepthKind

NUM_FRAMES = 14
ORDER = np.random.default_rng(2).permutation(NUM_FRAMES)


@pytest.fixture(scope="module")
def room() -> Room:
    return render_room(NUM_FRAMES, 72, 96, speed_m=0.04)


def clip_of(room: Room, **changes: Any) -> EvaluationClip:
    """Return a room as a recording has it: its true motion is not known."""
    return clip_of_room(room, **{"motion": None, **changes})


@pytest.mark.parametrize(
    ("change", "what", "seen"),
    [
        (lambda r: {}, None, ""),
        (
            lambda r: {"gt_depth_m": np.roll(r.depth_m, 1, 0)},
            "pictures and ground truth",
            "edges of an earlier picture",
        ),
        (
            lambda r: {"gt_depth_m": r.depth_m[ORDER], "camera_to_world": r.camera_to_world[ORDER]},
            "pictures and ground truth",
            "fit another frame better: another order?",
        ),
        (lambda r: {"max_depth_m": 4.5, "camera_to_world": None}, "range", "beyond max_depth_m=4.5"),
        (lambda r: {"gt_depth_m": r.depth_m / 1000}, "ground truth", "wrong by a power of ten"),
        (lambda r: {"gt_depth_m": r.depth_m / 5}, "poses", "depth times 5, their units differ"),
        (lambda r: {"camera_to_world": np.linalg.inv(r.camera_to_world)}, "poses", "lead from world to camera"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_named(
    room: Room, change: Callable[[Room], dict[str, Any]], what: str | None, seen: str
) -> None:
    wrong = {finding.what: finding.seen for finding in check_clip(clip_of(room, **change(room))) if finding.wrong}
    assert set(wrong) == ({what} if what else set())
    assert seen in wrong.get(what or "", "")


def write_data_set(folder: Path, room: Room) -> None:
    for name in ("rgb", "depth"):
        (folder / name).mkdir(parents=True)
    for t in range(NUM_FRAMES):
        cv2.imwrite(str(folder / "rgb" / f"{t:03d}.png"), room.rgb[t, ..., ::-1])
        cv2.imwrite(str(folder / "depth" / f"{t:03d}.png"), np.rint(5000 * room.depth_m[t]).astype(np.uint16))


def test_the_command_checks_a_data_set_and_predictions(
    tmp_path: Path, room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data_set(tmp_path / "room", room)
    late = np.concatenate([room.depth_m[:1], room.depth_m[:-1]])
    made = {
        "right": (1 / room.depth_m, "affine_invariant_inverse_depth"),
        "late": (late, "metric_depth_m"),
        "shuffled": (room.depth_m[ORDER], "metric_depth_m"),
        "millimeters": (1000 * room.depth_m, "metric_depth_m"),
        "upside_down": (room.depth_m, "affine_invariant_inverse_depth"),
    }
    for name, (depth, kind) in made.items():
        np.savez(tmp_path / f"{name}.npz", depth=depth.astype(np.float32), depth_kind=kind)
    overrides = ["check=true", f"input={tmp_path / 'room'}", "rgbd.depth_scale=5000"]
    main(load_config("evaluate", EvaluateConfig, [*overrides, f"prediction=right:{tmp_path / 'right.npz'}"]))
    assert "nothing looks wrong." in capsys.readouterr().out
    given = ",".join(f"{name}:{tmp_path / name}.npz" for name in made)
    with pytest.raises(SystemExit) as caught:
        main(load_config("evaluate", EvaluateConfig, [*overrides, f"prediction=[{given}]"]))
    assert caught.value.code == 1
    printed = capsys.readouterr().out
    wrong = [line for line in printed.splitlines() if "WRONG?" in line]
    assert len(wrong) == 4
    for what in (
        "late, pairing: it fits the truth of the frame 1 before",
        "shuffled, pairing: ",
        "millimeters, meters: 1e+03",
        "upside_down, sign",
    ):
        assert any(what in line for line in wrong), what
    for method in ("truth", "constant", "blur", "ema_0.5", "one_frame_late", "right"):
        assert f"| {method}" in printed
    assert "AbsRel of the truth 0.00 %" in printed
    assert "one frame late reads as" in printed


def test_recordings_below_the_floor_of_the_metrics_are_named(tmp_path: Path, room: Room) -> None:
    for name, shift in (("above", 0.0), ("below", -3.0)):
        np.save(tmp_path / f"{name}.npy", (5 / room.depth_m + shift).astype(np.float32))
        prediction = Prediction(name, tmp_path / f"{name}.npy", DepthKind.RELATIVE, alone=True)
        seen = {finding.what: finding.seen for finding in check_clip(clip_of(room), [prediction])}
        assert (f"{name}, range" in seen) == (shift < 0)
    share = 100 * (5 / room.depth_m - 3 < 1e-3).mean()
    assert seen["below, range"].startswith(f"{share:.0f} % of inverse depth below 0.001 in its own unit")


def test_what_cannot_be_told_of_a_still_camera_is_said() -> None:
    still = render_room(8, 36, 48, speed_m=0.0)
    seen = {finding.what: str(finding) for finding in check_clip(clip_of(still))}
    assert not any("WRONG?" in line for line in seen.values())
    assert "too little moves: whether each belongs to its frame cannot be told" in seen["pictures and ground truth"]
    assert "unit and order of poses cannot be told" in seen["poses"]


def test_depth_that_is_little_like_the_truth_is_questioned(tmp_path: Path, room: Room) -> None:
    for depth, questioned in ((1 / room.depth_m, False), (1 / room.depth_m[:, ::-1], True)):
        np.save(tmp_path / "a.npy", depth)
        prediction = Prediction("a", tmp_path / "a.npy", DepthKind.SCALED_INVERSE, alone=True)
        seen = {f.what: f.seen for f in check_clip(clip_of(room), [prediction])}
        assert ("little like it: mirrored" in seen["a, sign"]) == questioned, seen["a, sign"]


def test_depth_that_the_floor_takes_away_is_named(tmp_path: Path, room: Room) -> None:
    depth = 5 / room.depth_m - 3
    wrong = {}
    for rows in (0, 4):  # of 72, so that they are no mere outliers
        depth[:, :rows] = 1e5
        np.save(tmp_path / "a.npy", depth.astype(np.float32))
        prediction = Prediction("a", tmp_path / "a.npy", DepthKind.RELATIVE, alone=True)
        wrong[rows] = {f.what: f.seen for f in check_clip(clip_of(room), [prediction]) if f.wrong}
    assert wrong[0] == {}
    assert "% of inverse depth below 0.001 counts as equally far" in wrong[4]["a, floor"]


def test_results_name_versions_and_revision() -> None:
    assert {"python", "torch", "numpy", "videomamba-depth"} <= set(versions())
