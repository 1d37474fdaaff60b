"""Pinhole cameras: rays, rotations, and points that may lie at infinity.

A pose maps world to camera, x_cam = R x_world + t, and is stored as [...,3,4] = (R, t). x points right, y down, z
forward. A pixel with inverse depth w is the homogeneous point (ray, w), with ray = ((u − c) / f, 1): at w = 0 it is
infinitely far.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def cross_matrix(v: Tensor) -> Tensor:
    """Return [...,3,3] with cross_matrix(v) x = v × x, for v [...,3]."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))


def rotation_matrix(vector: Tensor) -> Tensor:
    """Return the rotations [...,3,3] of rotation vectors [...,3], rad, by the formula of Rodrigues."""
    angle, turn = torch.linalg.vector_norm(vector, dim=-1)[..., None, None], cross_matrix(vector)
    sine, cosine = torch.sinc(angle / math.pi), 0.5 * torch.sinc(angle / (2 * math.pi)).square()
    return torch.eye(3, dtype=vector.dtype, device=vector.device) + sine * turn + cosine * (turn @ turn)


def orthonormal(rotation: Tensor) -> Tensor:
    """Return the rotations next to [...,3,3] that are one but for rounding: errors of long products would grow."""
    x = F.normalize(rotation[..., 0, :], dim=-1)
    y = rotation[..., 1, :]
    y = F.normalize(y - (x * y).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -2)


def rays(points_px: Tensor, focal_px: Tensor, center_px: Tensor) -> Tensor:
    """Return X [3,...] of pixels [2,...] for a focal length, px, and a principal point [2], px."""
    centered = points_px - center_px.view(2, *[1] * (points_px.ndim - 1))
    return torch.cat([centered / focal_px, torch.ones_like(centered[:1])])


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Return the quaternion (x, y, z, w) of a rotation [3,3], w ≥ 0.

    Source: Bar-Itzhack, "New method for extracting the quaternion from a rotation matrix" (2000): an eigenvector,
    and so exact at half turns too.
    """
    r = rotation
    matrix = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], r[1, 0] + r[0, 1], r[2, 0] + r[0, 2], r[2, 1] - r[1, 2]],
            [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], r[2, 1] + r[1, 2], r[0, 2] - r[2, 0]],
            [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]],
        ]
    )
    vector: np.ndarray = np.linalg.eigh(matrix)[1][:, -1]
    return vector if vector[3] >= 0 else -vector
