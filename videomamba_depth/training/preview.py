"""A picture of what the student does: input, teacher and student, side by side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from videomamba_depth.utils.color import INFERNO


def preview_picture(rgb: Tensor, teacher: Tensor, student: Tensor) -> np.ndarray:
    """Return uint8 `[H, 3W, 3]`: input, teacher's depth, student's depth in the teacher's color range.

    Args:
        rgb: `[3, H, W]` in [0, 1].
        teacher, student: `[1, H, W]`, in one unit.
    """
    low, high = (
        float(q) for q in torch.quantile(teacher.float().flatten(), torch.tensor([0.02, 0.98], device=teacher.device))
    )
    frame = (rgb.permute(1, 2, 0).clamp(0, 1) * 255).byte().cpu().numpy()
    return np.concatenate([frame, _colored(teacher, low, high), _colored(student, low, high)], axis=1)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write uint8 RGB `[H, W, 3]` to an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture[..., ::-1])


def _colored(depth: Tensor, low: float, high: float) -> np.ndarray:
    scaled = (depth[0].float() - low) / max(high - low, 1e-6)
    gray = (scaled.clamp(0, 1) * 255).byte().cpu().numpy()
    return INFERNO.paint(gray)
