"""Kinds of synthetic worlds, all with exact ground truth: what a camera usually does, and where parallax fails.

moving     the camera moves                               fast      the same at 3x speed
static     only objects move                              long      as moving, a stream of many frames
rotation   the camera turns and does not move             zoom      it stands, and its focal length grows by a third
objects    55 % of the frame is another moving world      exposure  jumps of two thirds of a stop up and down
cuts       two worlds, cut in the middle                  blank     blurred until almost no texture is left
stops      the camera moves, stands for a third, moves    fade       the first third fades in from black
noise      every frame is white noise: nothing to track

To add one, write its function and an entry of `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from videomamba_depth.data.synthetic import CameraMotion, WorldConfig, iter_video
from videomamba_depth.data.synthetic.families import build_scene
from videomamba_depth.evaluation.clips import world_arrays
from videomamba_depth.flow.clip_motion import estimate_motion
from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.flow.frame_view import in_memory

Arrays = dict[str, np.ndarray]
"""What `world_arrays` returns."""
BY_FRAME = ("rgb", "depth_m", "flow_bwd", "flow_fwd", "visible_bwd", "visible_fwd", "camera_to_world")

OTHER_WORLD = 500_000  # added to the seed of a second world
LAST_ZOOM = 1.35
MOVING_SHARE = 0.55  # of the columns
JUMPS = ((0.25, 1.6), (0.5, 0.65), (0.75, 1.3))  # (share of the frames from which on, gain)
BLUR_PX = 8.0
NOISE = 0.012  # of full scale, of pictures that are made anew


def render_world(kind: str, seed: int, config: WorldConfig, flow: FlowEstimator) -> Arrays:
    """Return the arrays of a world of a kind of `KINDS`, with the motion that `flow` estimates from its pictures."""
    arrays = KINDS[kind].render(seed, config)
    motion = estimate_motion(arrays["rgb"], flow)
    return {**arrays, "estimated_bwd": motion.flow_bwd[:], "estimated_trusted": motion.trusted_bwd[:]}


def _render(seed: int, config: WorldConfig, turn_only: bool = False) -> Arrays:
    scene = build_scene(seed, config.family)
    if turn_only:
        scene = replace(scene, camera=replace(scene.camera, travel=(0.0, 0.0, 0.0)))
    return {name: values[:] for name, values in world_arrays(iter_video(seed, config, scene), in_memory).items()}


def _rotation(seed: int, config: WorldConfig) -> Arrays:
    return _render(seed, config, turn_only=True)


def _zoom(seed: int, config: WorldConfig) -> Arrays:
    still = _render(seed, replace(config, camera_motion="static"))
    count, height, width = still["depth_m"].shape
    zoom = LAST_ZOOM ** (np.arange(-1, count + 1) / max(count - 1, 1))  # from the frame before the first to one more
    y, x = np.mgrid[:height, :width].astype(np.float32)
    from_center = np.stack([x - (width - 1) / 2, y - (height - 1) / 2])
    out = {name: np.array(values) for name, values in still.items()}
    for t in range(count):
        at = from_center / zoom[t + 1]
        u, v = (at[0] + (width - 1) / 2).astype(np.float32), (at[1] + (height - 1) / 2).astype(np.float32)

        def seen(values: np.ndarray, u: np.ndarray = u, v: np.ndarray = v) -> np.ndarray:
            return np.asarray(cv2.remap(np.ascontiguousarray(values), u, v, cv2.INTER_NEAREST))

        out["rgb"][t] = cv2.remap(still["rgb"][t], u, v, cv2.INTER_LINEAR)
        out["depth_m"][t] = seen(still["depth_m"][t])
        for name, other in (("flow_fwd", zoom[t + 2]), ("flow_bwd", zoom[t])):
            out[name][t] = (at + np.stack([seen(f) for f in still[name][t]])) * other - from_center
        for name in ("visible_fwd", "visible_bwd"):
            out[name][t] = seen(still[name][t].astype(np.uint8)) > 0
    return _without_cameras(out)


def _objects(seed: int, config: WorldConfig) -> Arrays:
    still = _render(seed, replace(config, camera_motion="static"))
    moving = _render(seed + OTHER_WORLD, config)
    columns = slice(round(config.width * (1 - MOVING_SHARE) / 2), round(config.width * (1 + MOVING_SHARE) / 2))
    for name in BY_FRAME[:-1]:
        where = (slice(None), slice(None), columns) if name == "rgb" else (..., columns)
        still[name][where] = moving[name][where]
    return _without_cameras(still)


def _exposure(seed: int, config: WorldConfig) -> Arrays:
    arrays = _render(seed, config)
    gain = np.ones(config.num_frames)
    for start, value in JUMPS:
        gain[round(start * config.num_frames) :] = value
    exposed = arrays["rgb"] * gain[:, None, None, None]
    return {**arrays, "rgb": np.clip(np.round(exposed), 0, 255).astype(np.uint8)}


def _cuts(seed: int, config: WorldConfig) -> Arrays:
    first, second = _render(seed, config), _render(seed + OTHER_WORLD, config)
    middle = config.num_frames // 2
    first["visible_fwd"][middle - 1] = second["visible_bwd"][middle] = False
    joined = {name: np.concatenate([first[name][:middle], second[name][middle:]]) for name in BY_FRAME}
    return _without_cameras({**first, **joined})


def _blank(seed: int, config: WorldConfig) -> Arrays:
    arrays = _render(seed, config)
    smooth = np.stack([cv2.GaussianBlur(frame, (0, 0), BLUR_PX) for frame in arrays["rgb"]])
    return {**arrays, "rgb": _noisy(smooth, seed)}


def _stops(seed: int, config: WorldConfig) -> Arrays:
    moving = _render(seed, replace(config, num_frames=max(2, round(config.num_frames * 2 / 3))))
    count = len(moving["rgb"])
    order = np.r_[0 : count // 2, [count // 2] * (config.num_frames - count), count // 2 : count]
    arrays = {**moving, **{name: moving[name][order] for name in BY_FRAME}}
    stays = np.r_[order[1:] == order[:-1], False]  # the next frame is the same
    arrays["flow_fwd"][stays], arrays["visible_fwd"][stays] = 0, True
    arrays["flow_bwd"][1:][stays[:-1]], arrays["visible_bwd"][1:][stays[:-1]] = 0, True
    times = np.arange(config.num_frames) / config.fps
    return {**arrays, "rgb": _noisy(arrays["rgb"], seed), "times_s": times}


def _fade(seed: int, config: WorldConfig) -> Arrays:
    arrays = _render(seed, config)
    gain = np.minimum(np.arange(config.num_frames) / (config.num_frames / 3), 1)
    exposed = arrays["rgb"] * gain[:, None, None, None]
    return {**arrays, "rgb": _noisy(exposed, seed)}


def _white_noise(seed: int, config: WorldConfig) -> Arrays:
    arrays = _render(seed, config)
    return {**arrays, "rgb": np.random.default_rng(seed).integers(0, 256, arrays["rgb"].shape, dtype=np.uint8)}


def _without_cameras(arrays: Arrays) -> Arrays:
    """Leave out intrinsics and poses, where one camera does not explain the whole clip."""
    return {name: values for name, values in arrays.items() if name not in ("intrinsics", "camera_to_world")}


def _noisy(rgb: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 255 * NOISE, rgb.shape)
    return np.clip(np.round(rgb + noise), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Kind:
    """A kind of worlds. seed: where its seeds begin after the first one of a set. title: in reports."""

    title: str
    render: Callable[[int, WorldConfig], Arrays] = _render
    seed: int = 0
    camera_motion: CameraMotion = "moving"


KINDS = {
    "moving": Kind("moving camera"),
    "fast": Kind("3× speed", seed=10_000, camera_motion="fast"),
    "static": Kind("static camera", seed=20_000, camera_motion="static"),
    "long": Kind("long streams", seed=30_000),
    "rotation": Kind("turning camera", _rotation),
    "zoom": Kind("zoom", _zoom),
    "objects": Kind("large moving objects", _objects),
    "exposure": Kind("exposure jumps", _exposure),
    "cuts": Kind("a cut", _cuts),
    "blank": Kind("almost no texture", _blank),
    "stops": Kind("a camera that stops", _stops),
    "fade": Kind("a fade-in from black", _fade),
    "noise": Kind("white noise", _white_noise),
}
