"""Depth from the parallax of a moving camera: offline targets that are more accurate than the teacher.

pairs     flow between frames 1 to 16 apart, on a grid      scene    what is solved for; poses, projection
adjust    dense bundle adjustment                           solve    its course, from a stationary camera on
trust     when to believe it, and how far                   fuse     from the grid to pixels; over frames
target    all of it: `geometric_clip`
"""

from videomamba_depth.data.labels.geometry.target import (
    GeometricShot,
    correct_shot,
    geometric_clip,
    geometric_shots,
    shot_cuts,
)

__all__ = ["GeometricShot", "correct_shot", "geometric_clip", "geometric_shots", "shot_cuts"]
