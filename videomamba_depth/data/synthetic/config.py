"""What a synthetic video looks like: size, length, motion, scene family and camera defects."""

from dataclasses import dataclass
from typing import Literal, get_args

CameraMotion = Literal["moving", "static", "fast"]
SceneFamily = Literal["rooms", "courtyard", "clutter", "corridor", "tabletop", "street", "terrain", "forest", "bodies"]

# "fast" runs the same trajectories, of camera and objects alike, at three times the speed.
FAST_TIME_SCALE = 3.0


@dataclass(frozen=True)
class WorldConfig:
    """Describe a synthetic video. Together with a seed it fixes every byte of the video.

    height, width: frame size in px, at least 16.
    num_frames: number of frames, at least 1; frame t does not depend on it.
    fps: frames per second of world time.
    camera_motion: "moving"; "static" (fixed camera, objects still move); "fast" (camera and objects 3× faster).
    family: "rooms" (indoors, depth 0.3 to about 20 m; the embedded teacher was trained on it), "courtyard" (outdoors
        with sun, facades and a sky at 40 to 70 m; no model of this project was trained on it), or one of the newer:
        indoors "clutter", "corridor", "tabletop" and outdoors "street", "terrain", "forest", "bodies" (people and
        animals), with a sky at 140 to 300 m, fields of view from 30° to 110°, colored light, haze, gloss and glass.
    exposure_flicker: std of the exposure's change over time, in stops (photographic powers of two); 0 for none.
    noise: std of sensor noise at mid-gray, in units of full scale; shot noise dominates; 0 for none.
    motion_blur: fraction of the frame interval for which the shutter is open, 0 to 1; 0 for none.
    jpeg_quality: 1 to 100, or None for no compression.
    antialias: resample pixels at geometric and shadow edges with four rays each (RGB only).
    """

    height: int = 112
    width: int = 140
    num_frames: int = 24
    fps: float = 24.0
    camera_motion: CameraMotion = "moving"
    family: SceneFamily = "rooms"
    exposure_flicker: float = 0.08
    noise: float = 0.012
    motion_blur: float = 0.4
    jpeg_quality: int | None = 85
    antialias: bool = True

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 16:
            raise ValueError(f"height and width must be at least 16 px; got {self.height}×{self.width}")
        if self.num_frames < 1 or self.fps <= 0:
            raise ValueError(f"need num_frames ≥ 1 and fps > 0; got {self.num_frames}, {self.fps}")
        if self.camera_motion not in get_args(CameraMotion):
            raise ValueError(f"camera_motion must be one of {get_args(CameraMotion)}; got {self.camera_motion!r}")
        if self.family not in get_args(SceneFamily):
            raise ValueError(f"family must be one of {get_args(SceneFamily)}; got {self.family!r}")
        if self.exposure_flicker < 0 or self.noise < 0 or not 0 <= self.motion_blur <= 1:
            raise ValueError("exposure_flicker and noise must be ≥ 0 and motion_blur in [0, 1]")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must be None or in 1..100; got {self.jpeg_quality}")

    @property
    def time_scale(self) -> float:
        """World seconds per video second."""
        return FAST_TIME_SCALE if self.camera_motion == "fast" else 1.0
