"""Worlds without usable parallax, and the table that judges targets on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from videomamba_depth.evaluation.hard_worlds import HARD_CONDITIONS, render_hard_world
from videomamba_depth.evaluation.targets import compare_targets, score_targets, targets_markdown
from videomamba_depth.flow.clip_motion import detect_cuts, warp_frame
from videomamba_depth.flow.estimators import DISFlow
from videomamba_depth.models.encoder_da import DepthAnythingEncoder

FRAMES, SIZE = 9, (48, 64)


@pytest.mark.parametrize("condition", sorted(HARD_CONDITIONS))
def test_a_hard_world_is_whole_and_its_flow_true(condition: str) -> None:
    world = render_hard_world(condition, 8_000_000_000, "rooms", FRAMES, SIZE)
    assert world.rgb.shape == (FRAMES, *SIZE, 3)
    assert world.rgb.dtype == np.uint8
    assert world.depth_m.shape == world.visible_fwd.shape == world.speed_px.shape == (FRAMES, *SIZE)
    assert np.isfinite(world.depth_m).all()
    assert not world.visible_fwd[-1].any() or condition == "stops"
    if condition == "cuts":
        assert not world.visible_fwd[FRAMES // 2 - 1].any()
        assert detect_cuts(world.rgb) == (FRAMES // 2,)
        return
    errors = []
    for t in range(FRAMES - 1):
        there = warp_frame(world.depth_m[t + 1].astype(np.float32), world.flow_fwd[t])
        errors.append(np.abs(there / world.depth_m[t] - 1)[world.visible_fwd[t]])
    seen = np.concatenate(errors)
    assert len(seen) > 0.5 * FRAMES * SIZE[0] * SIZE[1]
    assert float(np.median(seen)) < 0.02  # 0.005


def test_a_zoom_or_a_stop_changes_no_depth() -> None:
    stops = render_hard_world("stops", 8_000_000_000, "rooms", FRAMES, SIZE)
    same = [t for t in range(FRAMES - 1) if np.array_equal(stops.depth_m[t], stops.depth_m[t + 1])]
    assert len(same) == 3
    assert not stops.flow_fwd[same].any()
    zoom = render_hard_world("zoom", 8_000_000_000, "rooms", FRAMES, SIZE)
    middle = (slice(None), SIZE[0] // 2, SIZE[1] // 2)
    assert np.ptp(zoom.depth_m[middle]) < 0.1
    assert float(zoom.speed_px[1:].mean()) > 0.2


def test_targets_are_scored_beside_the_teacher(tmp_path: Path, tiny_encoder: DepthAnythingEncoder) -> None:
    rows = score_targets(
        "rotation", 8_000_000_000, "rooms", tiny_encoder, DISFlow(), cache=tmp_path, frames=FRAMES, size=SIZE
    )
    assert set(rows) == {"teacher", "stabilised", "geometry"}
    same = ("abs_rel/video", "tge", "gradient_error", "boundary_f1", "delta1")
    assert [rows["geometry"][m] for m in same] == [rows["stabilised"][m] for m in same]  # it only turns
    text = targets_markdown({"rotation": [rows, rows]})
    assert text.count("| rotation (2) |") == 2


def test_changes_are_paired_and_the_worst_is_named() -> None:
    metrics = ("abs_rel/video", "abs_rel/first_frame", "abs_rel/per_frame", "abs_rel/fast_pixels", "tge",
               "gradient_error", "boundary_f1", "delta1", "seconds")  # fmt: skip
    videos = [
        {"teacher": dict.fromkeys(metrics, 2.0), "geometry": dict.fromkeys(metrics, value)} for value in (1.0, 2.2)
    ]
    found = compare_targets(videos, "geometry")
    assert found["tge"].value == pytest.approx(-20.0)
    videos[0]["geometry"]["tge"] = videos[1]["geometry"]["tge"] = float("nan")
    row = {**videos[0], "stabilised": videos[0]["geometry"]}
    assert "| – |" in targets_markdown({"moving": [row, row]})
    assert found["worst"].value == pytest.approx(10.0)
    assert found["delta1"].value == pytest.approx(-40.0)
    assert found["seconds"].value == pytest.approx(1.6)
