"""Rotations about the axes of a camera or a solid: x right, y down, z forward."""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def rotation_x(angle: float) -> Matrix:
    """Pitch: positive looks up, since y points down."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def rotation_y(angle: float) -> Matrix:
    """Yaw: positive turns from z (forward) toward x (right)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def rotation_z(angle: float) -> Matrix:
    """Roll about the optical axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
