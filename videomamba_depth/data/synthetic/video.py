"""Videos of a scene: RGB with camera defects, exact depth, exact flow both ways, visibility and poses."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.config import WorldConfig
from videomamba_depth.data.synthetic.degradations import degrade, to_display
from videomamba_depth.data.synthetic.families import build_scene
from videomamba_depth.data.synthetic.flow import exact_flow
from videomamba_depth.data.synthetic.geometry import Solids
from videomamba_depth.data.synthetic.renderer import Rendering, render
from videomamba_depth.data.synthetic.rotations import Matrix
from videomamba_depth.data.synthetic.scene import Scene
from videomamba_depth.data.synthetic.shading import View

_MEAN_DISPLAY_VALUE = 0.45  # the exposure is fixed so that the first frame has this mean before gamma


@dataclass(frozen=True)
class SyntheticFrame:
    """One frame. Shapes, units and conventions are those of SyntheticVideo without the leading N."""

    rgb: NDArray[np.uint8]
    clean_rgb: NDArray[np.uint8]
    depth_m: NDArray[np.float32]
    flow_fwd: NDArray[np.float32]
    flow_bwd: NDArray[np.float32]
    visible_fwd: NDArray[np.bool_]
    visible_bwd: NDArray[np.bool_]
    on_moving_object: NDArray[np.bool_]
    intrinsics: NDArray[np.float64]
    camera_to_world: NDArray[np.float64]
    timestamp_s: float


@dataclass(frozen=True)
class SyntheticVideo:
    """A rendered video with its exact ground truth.

    rgb: uint8 [N,H,W,3], as a camera records it; clean_rgb: the same without blur, flicker, noise and JPEG.
    depth_m: float32 [N,H,W], z along the optical axis in meters, everywhere finite.
    flow_fwd, flow_bwd: float32 [N,H,W,2] in px (x right, y down), to the next and the previous frame, on this frame's
        pixels; zeros at the last and at the first frame.
    visible_fwd, visible_bwd: bool [N,H,W], the surface point is in view and unoccluded in the next / previous frame;
        False at the last / first frame.
    on_moving_object: bool [N,H,W], the pixel shows a solid that moves by itself.
    intrinsics: float64 [3,3], OpenCV convention, in px, pixel centers at integers (the top left one is (0, 0)).
    camera_to_world: float64 [N,4,4]; camera x right, y down, z forward; world y down, floor at y = 0.
    timestamps_s: float64 [N], video time.
    """

    rgb: NDArray[np.uint8]
    clean_rgb: NDArray[np.uint8]
    depth_m: NDArray[np.float32]
    flow_fwd: NDArray[np.float32]
    flow_bwd: NDArray[np.float32]
    visible_fwd: NDArray[np.bool_]
    visible_bwd: NDArray[np.bool_]
    on_moving_object: NDArray[np.bool_]
    intrinsics: NDArray[np.float64]
    camera_to_world: NDArray[np.float64]
    timestamps_s: NDArray[np.float64]


@dataclass(frozen=True)
class _Instant:
    solids: Solids
    poses: Matrix
    view: View
    rendering: Rendering


def render_video(seed: int, config: WorldConfig) -> SyntheticVideo:
    """Render a whole video; the same seed and config give the same bytes."""
    frames = list(iter_video(seed, config))

    def stacked(name: str) -> NDArray:
        return np.stack([getattr(frame, name) for frame in frames])

    names = ("rgb", "clean_rgb", "depth_m", "flow_fwd", "flow_bwd", "visible_fwd", "visible_bwd", "on_moving_object")
    return SyntheticVideo(
        **{name: stacked(name) for name in names},
        intrinsics=frames[0].intrinsics,
        camera_to_world=stacked("camera_to_world"),
        timestamps_s=np.array([frame.timestamp_s for frame in frames]),
    )


def iter_video(seed: int, config: WorldConfig, scene: Scene | None = None) -> Iterator[SyntheticFrame]:
    """Yield the frames of render_video(seed, config) one by one, in constant memory, for streams of any length.

    scene: another one than that of the seed, say with another camera.
    """
    scene = scene or build_scene(seed, config.family)
    exposure = _exposure(scene, config)
    last = config.num_frames - 1
    previous, current = None, _instant(scene, config, 0)
    for index in range(config.num_frames):
        following = _instant(scene, config, index + 1)
        # The flow beyond the last frame is rendered too: it blurs that frame, so that a video's beginning does not
        # depend on its length.
        flow_fwd, visible_fwd = _flow(current, following)
        assert current.rendering.linear_rgb is not None
        clean = (to_display(current.rendering.linear_rgb, exposure) * 255 + np.float32(0.5)).astype(np.uint8)
        rgb = degrade(clean, flow_fwd, seed, index, config)
        flow_bwd, visible_bwd = _no_flow(config) if previous is None else _flow(current, previous)
        if index == last:
            flow_fwd, visible_fwd = _no_flow(config)
        yield SyntheticFrame(
            rgb=rgb,
            clean_rgb=clean,
            depth_m=current.rendering.depth_m,
            flow_fwd=flow_fwd,
            flow_bwd=flow_bwd,
            visible_fwd=visible_fwd,
            visible_bwd=visible_bwd,
            on_moving_object=scene.moves[current.rendering.solid],
            intrinsics=current.view.intrinsics,
            camera_to_world=current.view.camera_to_world,
            timestamp_s=index / config.fps,
        )
        previous, current = current, following


def render_still(seed: int, config: WorldConfig, time_s: float = 0.0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Render one clean picture of a scene at a world time, without flow: for training on many scenes.

    Returns RGB uint8 [H,W,3] and z-depth float32 [H,W] in meters.
    """
    scene = build_scene(seed, config.family)
    exposure = _exposure(scene, config)
    view = View(_intrinsics(scene, config), scene.camera.pose(time_s, config.camera_motion == "static"))
    solids = scene.solids_at(time_s)
    rendering = render(scene, solids, view, config.height, config.width, antialias=config.antialias)
    assert rendering.linear_rgb is not None
    clean = (to_display(rendering.linear_rgb, exposure) * 255 + np.float32(0.5)).astype(np.uint8)
    return clean, rendering.depth_m


def _intrinsics(scene: Scene, config: WorldConfig) -> Matrix:
    focal_px = scene.camera.focal * max(config.width, config.height)
    return np.array([[focal_px, 0, (config.width - 1) / 2], [0, focal_px, (config.height - 1) / 2], [0, 0, 1.0]])


def _instant(scene: Scene, config: WorldConfig, index: int) -> _Instant:
    time_s = index / config.fps * config.time_scale
    view = View(_intrinsics(scene, config), scene.camera.pose(time_s, config.camera_motion == "static"))
    solids = scene.solids_at(time_s)
    rendering = render(scene, solids, view, config.height, config.width, antialias=config.antialias)
    return _Instant(solids, scene.object_poses(time_s), view, rendering)


def _flow(source: _Instant, target: _Instant) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return exact_flow(source.rendering, source.view, source.poses, target.solids, target.view, target.poses)


def _no_flow(config: WorldConfig) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    shape = (config.height, config.width)
    return np.zeros((*shape, 2), np.float32), np.zeros(shape, bool)


def _exposure(scene: Scene, config: WorldConfig) -> float:
    """Meter a small picture of the first frame, as a camera does before it records."""
    scale = 32 / max(config.height, config.width)
    height, width = max(8, round(config.height * scale)), max(8, round(config.width * scale))
    focal = scene.camera.focal * max(height, width)
    small = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    view = View(small, scene.camera.pose(0.0))
    picture = render(scene, scene.solids_at(0.0), view, height, width, antialias=False).linear_rgb
    assert picture is not None
    return _MEAN_DISPLAY_VALUE**2.2 / max(float(np.mean(picture)), 1e-3) * 1.25
