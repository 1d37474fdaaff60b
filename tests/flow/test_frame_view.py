"""Frames that are computed or read from disk when asked for, and percentiles of clips that are never held."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import numpy as np
import pytest

from videomamba_depth.evaluation.metrics.percentiles import median, percentiles
from videomamba_depth.flow import frame_view as frames_module
from videomamba_depth.flow.frame_view import first_frames, in_memory, mapped, on_disk
from videomamba_depth.utils.errors import UserError


def clip(num_frames: int = 5, dtype: type = np.float32) -> np.ndarray:
    return (100 * np.random.default_rng(0).normal(size=(num_frames, 6, 7))).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.bool_])
def test_what_is_kept_comes_back_as_it_was(dtype: type) -> None:
    depth, half = clip(dtype=dtype), clip()[:, ::2]
    for keep in (on_disk, in_memory):
        kept, other = keep(zip(depth, half, strict=True))
        assert (len(kept), kept.shape, kept.dtype) == (5, depth.shape, depth.dtype)
        np.testing.assert_array_equal(kept[:], depth)
        np.testing.assert_array_equal(kept[-1], depth[-1])
        np.testing.assert_array_equal(np.stack(list(other)), half)  # not contiguous where it came from
    assert on_disk([]) == []


def test_frames_from_disk_are_ones_own() -> None:
    (kept,) = on_disk([frame] for frame in clip())
    kept[2][:] = 0.0
    np.testing.assert_array_equal(kept[2], clip()[2])


def test_views_compute_when_read() -> None:
    calls: list[int] = []

    def double(frame: np.ndarray, t: int) -> np.ndarray:
        calls.append(t)
        return 2 * frame

    view = mapped(double, clip(), range(5))
    assert calls == []
    np.testing.assert_array_equal(view[1:3], 2 * clip()[1:3])
    assert calls == [1, 2]
    short = first_frames(view, 3)
    assert (len(short), len(first_frames(view, 9))) == (3, 5)
    with pytest.raises(IndexError, match="frame 3 of 3"):
        short[3]


def test_the_files_have_no_name_and_go_with_the_view() -> None:
    def files() -> set[str]:
        found = set()
        for number in os.listdir("/proc/self/fd"):
            path = Path("/proc/self/fd", number)
            found |= {os.readlink(path)} if path.is_symlink() and "(deleted)" in os.readlink(path) else set()
        return found

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    before = files()
    (kept,) = on_disk([frame] for frame in clip())
    assert len(files() - before) == 1
    del kept
    assert files() == before


def test_a_full_disk_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, frame: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(frames_module._FrameFile, "append", full)
    with pytest.raises(UserError, match=r"no space is left in .* let TMPDIR name a folder on a larger disk"):
        on_disk([frame] for frame in clip())


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be float32 \[6, 7\] like the first; frame 1 is float32 \[3, 7\]"):
        on_disk([[clip()[0]], [clip()[0, :3]]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_frames", [1, 2, 63])
def test_percentiles_are_those_of_the_whole_clip(dtype: type, num_frames: int) -> None:
    rng = np.random.default_rng(1)
    values = (rng.normal(size=(num_frames, 6, 7)) * 10.0 ** rng.integers(-30, 30, (num_frames, 1, 1))).astype(dtype)
    values[0, 0] = [0.0, -0.0, 0.0, 1.0, 1.0, -1.0, np.finfo(dtype).tiny / 2]
    shares = [0, 2, 33.3, 50, 95, 98, 100]
    assert percentiles(values, shares) == np.percentile(values.astype(np.float64), shares).tolist()
    assert median(values) == np.median(values.astype(np.float64))
    ragged = [values[0, 0, :3], values[0, 1:], *values[1:]]
    assert percentiles(ragged, [90.0])[0] == np.percentile(np.concatenate([np.ravel(f) for f in ragged]), 90.0) or (
        dtype == np.float32  # NumPy interpolates in float32
    )


@pytest.mark.parametrize("bad", [np.nan, -np.nan])
def test_percentiles_of_nothing_or_nan_are_nan(bad: float) -> None:
    values = clip()
    values[3, 2, 1] = bad
    assert all(math.isnan(value) for value in percentiles(values, [0, 50]))
    assert math.isnan(median(np.empty((0, 6, 7))))
    assert math.isnan(median([np.empty(0, np.float32)]))
    assert percentiles(np.array([[[-np.inf, 0.0, np.inf]]], np.float32), [0, 100]) == [-np.inf, np.inf]
