"""Worlds in which parallax says nothing, or says something wrong; with exact ground truth like all others.

rotation   the camera turns and does not move             zoom      it stands, and its focal length grows by a third
objects    55 % of the frame is another moving world      exposure  jumps of two thirds of a stop up and down
cuts       two worlds, cut in the middle                  blank     blurred until almost no texture is left
stops      the camera moves, stands for a third, moves
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from videomamba_depth.data.synthetic import iter_video
from videomamba_depth.data.synthetic.families import build_scene
from videomamba_depth.evaluation.worlds import World, WorldSpec

Arrays = dict[str, np.ndarray]
"""rgb [F,H,W,3] uint8, depth_m [F,H,W], flow_fwd [F,2,H,W] px, visible_fwd [F,H,W], speed_px [F,H,W]."""

OTHER_WORLD = 500_000  # added to the seed of a second world
LAST_ZOOM = 1.35
MOVING_SHARE = 0.55  # of the columns
JUMPS = ((0.25, 1.6), (0.5, 0.65), (0.75, 1.3))  # (share of the frames from which on, gain)
BLUR_PX = 8.0
NOISE = 0.012  # of full scale, of pictures that are made anew


def render_hard_world(condition: str, seed: int, family: str, frames: int, size: tuple[int, int]) -> World:
    """Render a world of `HARD_CONDITIONS`; arrays that only causal filters need are zero."""
    spec = WorldSpec("moving", seed, frames, family, *size)
    arrays = HARD_CONDITIONS[condition](spec)
    shape = arrays["depth_m"].shape
    nothing, nowhere = np.zeros((shape[0], 2, *shape[1:]), np.float32), np.zeros(shape, bool)
    return World(spec, Path(), flow_bwd=nothing, trusted_bwd=nowhere, consistent_bwd=nowhere, **arrays)


def _render(spec: WorldSpec, turn_only: bool = False) -> Arrays:
    scene = build_scene(spec.seed, spec.config().family)
    if turn_only:
        camera = replace(scene.camera, travel=(0.0, 0.0, 0.0))
        scene = replace(scene, camera=camera)
    rendered = list(iter_video(spec.seed, spec.config(), scene))
    return {
        "rgb": np.stack([f.rgb for f in rendered]),
        "depth_m": np.stack([f.depth_m for f in rendered]),
        "flow_fwd": np.stack([np.moveaxis(f.flow_fwd, -1, 0) for f in rendered]),
        "visible_fwd": np.stack([f.visible_fwd for f in rendered]),
        "speed_px": np.stack([np.linalg.norm(f.flow_bwd, axis=-1) for f in rendered]).astype(np.float32),
    }


def _zoom(spec: WorldSpec) -> Arrays:
    still = _render(replace(spec, kind="static"))
    count, height, width = still["depth_m"].shape
    zoom = LAST_ZOOM ** (np.arange(count + 1) / max(count - 1, 1))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    from_centre = np.stack([x - (width - 1) / 2, y - (height - 1) / 2])
    out = {name: np.empty_like(values) for name, values in still.items()}
    for t in range(count):
        at = from_centre / zoom[t]
        u, v = (at[0] + (width - 1) / 2).astype(np.float32), (at[1] + (height - 1) / 2).astype(np.float32)
        sharp = {"interpolation": cv2.INTER_NEAREST}
        out["rgb"][t] = cv2.remap(still["rgb"][t], u, v, cv2.INTER_LINEAR)
        out["depth_m"][t] = cv2.remap(still["depth_m"][t], u, v, **sharp)
        moved = np.stack([cv2.remap(np.ascontiguousarray(f), u, v, **sharp) for f in still["flow_fwd"][t]])
        out["flow_fwd"][t] = (at + moved) * zoom[t + 1] - from_centre
        out["visible_fwd"][t] = cv2.remap(still["visible_fwd"][t].astype(np.uint8), u, v, **sharp) > 0
    out["speed_px"] = np.linalg.norm(out["flow_fwd"], axis=1).astype(np.float32)
    return out


def _objects(spec: WorldSpec) -> Arrays:
    behind = _render(replace(spec, kind="static"))
    before = _render(replace(spec, seed=spec.seed + OTHER_WORLD))
    columns = slice(round(spec.width * (1 - MOVING_SHARE) / 2), round(spec.width * (1 + MOVING_SHARE) / 2))
    for name, values in behind.items():
        where = (slice(None), slice(None), columns) if name == "rgb" else (..., columns)
        values[where] = before[name][where]
    return behind


def _exposure(spec: WorldSpec) -> Arrays:
    arrays = _render(spec)
    gain = np.ones(spec.frames)
    for start, value in JUMPS:
        gain[round(start * spec.frames) :] = value
    exposed = arrays["rgb"] * gain[:, None, None, None]
    return {**arrays, "rgb": np.clip(np.round(exposed), 0, 255).astype(np.uint8)}


def _cuts(spec: WorldSpec) -> Arrays:
    first, second = _render(spec), _render(replace(spec, seed=spec.seed + OTHER_WORLD))
    middle = spec.frames // 2
    first["visible_fwd"][middle - 1] = False
    return {name: np.concatenate([values[:middle], second[name][middle:]]) for name, values in first.items()}


def _blank(spec: WorldSpec) -> Arrays:
    arrays = _render(spec)
    smooth = np.stack([cv2.GaussianBlur(frame, (0, 0), BLUR_PX) for frame in arrays["rgb"]])
    return {**arrays, "rgb": _noisy(smooth, spec.seed)}


def _stops(spec: WorldSpec) -> Arrays:
    moving = _render(replace(spec, frames=max(2, round(spec.frames * 2 / 3))))
    stop = len(moving["rgb"]) // 2
    order = np.r_[0:stop, [stop] * (spec.frames - len(moving["rgb"])), stop : len(moving["rgb"])]
    arrays = {name: values[order] for name, values in moving.items()}
    stays = np.r_[order[1:] == order[:-1], False]
    arrays["flow_fwd"][stays] = 0
    arrays["visible_fwd"][stays] = True
    arrays["speed_px"][1:][stays[:-1]] = 0
    return {**arrays, "rgb": _noisy(arrays["rgb"], spec.seed)}


def _noisy(rgb: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 255 * NOISE, rgb.shape)
    return np.clip(np.round(rgb + noise), 0, 255).astype(np.uint8)


HARD_CONDITIONS: dict[str, Callable[[WorldSpec], Arrays]] = {
    "rotation": lambda spec: _render(spec, turn_only=True),
    "zoom": _zoom,
    "objects": _objects,
    "exposure": _exposure,
    "cuts": _cuts,
    "blank": _blank,
    "stops": _stops,
}
