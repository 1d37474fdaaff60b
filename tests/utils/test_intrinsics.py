"""One reading of intrinsics for point clouds and evaluation, in either way of writing them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.intrinsics import camera_matrix

MATRIX = np.array([[50.0, 0.0, 31.5], [0.0, -40.0, 23.5], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("given", [[50, -40, 31.5, 23.5], "50 -40 31.5 23.5", "50,-40, 31.5,23.5", MATRIX])
def test_numbers_and_texts(given: object) -> None:
    assert np.array_equal(camera_matrix(given), MATRIX)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["50 -40 31.5 23.5", "# px\n50, -40,\n31.5, 23.5", "50 0 31.5\n0 -40 23.5 # y\n0 0 1"])
@pytest.mark.parametrize("name", ["camera.txt", "a b c d"])
def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    assert np.array_equal(camera_matrix(name), MATRIX)
    assert np.array_equal(camera_matrix(tmp_path / name), MATRIX)


def test_skew_and_frames_are_kept(tmp_path: Path) -> None:
    skewed = MATRIX.copy()
    skewed[0, 1] = 0.5
    np.savetxt(tmp_path / "k.txt", skewed)
    assert np.array_equal(camera_matrix(tmp_path / "k.txt"), skewed)
    assert camera_matrix(np.stack([skewed, MATRIX])).shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0, 2.0], "must be .fx,fy,cx,cy. in px"),
        ("1 2 3", "cannot read the intrinsics file '1 2 3'"),
        ("0 2 3 4", "focal lengths not 0"),
        (np.full((3, 3), np.nan), "must be finite"),
    ],
)
def test_refusals(given: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        camera_matrix(given)  # type: ignore[arg-type]
