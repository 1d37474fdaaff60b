"""A camera's intrinsics as a person gives them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from videomamba_depth.utils.errors import UserError


def camera_matrix(given: np.ndarray | Sequence[float] | str | Path) -> np.ndarray:
    """Return the matrix `[3, 3]` in px, float64.

    Args:
        given: the matrix, or one per frame `[F, 3, 3]`; four numbers fx, fy, cx, cy; the same as text, separated by
            spaces or commas; or a text file with these four or the matrix, `#` before a comment.

    Raises:
        UserError: none of these, numbers that are not finite, or a focal length of 0.
    """
    if isinstance(given, np.ndarray):
        matrix = given
    else:
        numbers = _numbers(given) if isinstance(given, str | Path) else [float(number) for number in given]
        if len(numbers) not in (4, 9):
            raise UserError(
                "intrinsics must be [fx,fy,cx,cy] in px, or a text file with them or a 3x3 matrix; got"
                f" {given} ({len(numbers)} numbers)"
            )
        fx, fy, cx, cy = numbers[:4]
        matrix = np.reshape(numbers if len(numbers) == 9 else [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0], (3, 3))
    if not np.isfinite(matrix).all() or (matrix[..., [0, 1], [0, 1]] == 0).any():
        raise UserError(f"intrinsics must be finite, focal lengths not 0; got {np.asarray(matrix).tolist()}")
    return matrix


def _numbers(given: str | Path) -> list[float]:
    """Return four numbers that stand in the text, or those of the file that it names."""
    try:
        numbers = [float(text) for text in str(given).replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) == 4:
        return numbers
    path = Path(os.path.expanduser(given))
    try:
        text = re.sub(r"#.*", "", path.read_text(encoding="utf-8"))
        return [float(number) for number in text.replace(",", " ").split()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it holds something else than numbers"
        raise UserError(f"cannot read the intrinsics file '{path}': {reason}; give [fx,fy,cx,cy] or a file") from error
