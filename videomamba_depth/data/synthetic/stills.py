"""Stills of many scenes in memory-mapped files: to train on single pictures, scenes count more than frames."""

import logging
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.config import WorldConfig
from videomamba_depth.data.synthetic.degradations import degrade
from videomamba_depth.data.synthetic.video import render_still
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

STILL_SIZE = (144, 192)  # height, width in px
FIRST_SEED = 10_000_000  # still i shows scene FIRST_SEED + i of the rooms; tests and experiments use seeds below


class Stills:
    """Stills in files that are mapped into memory: rgb uint8 [n,h,w,3], inverse depth float16 [n,h,w] in 1/m."""

    def __init__(self, folder: Path, count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.rgb = _memory_map(folder / "rgb.npy", (count, *STILL_SIZE, 3), np.uint8)
        self.inv_depth = _memory_map(folder / "inv_depth.npy", (count, *STILL_SIZE), np.float16)
        self.done = _memory_map(folder / "done.npy", (count,), np.uint8)


def _memory_map(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    if path.exists():
        array = np.lib.format.open_memmap(path, "r+")
        if array.shape != shape:
            raise UserError(f"{path} has shape {array.shape}, expected {shape}; delete the folder or choose another")
        return array
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def render_degraded_still(index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Render scene FIRST_SEED + index with random camera defects; return rgb and depth in metres."""
    seed = FIRST_SEED + index
    rng = np.random.default_rng([seed, 7])
    config = WorldConfig(
        height=STILL_SIZE[0],
        width=STILL_SIZE[1],
        noise=float(rng.uniform(0, 0.03)),
        exposure_flicker=0.15,
        jpeg_quality=None if rng.random() < 0.3 else int(rng.integers(50, 96)),
    )
    rgb, depth_m = render_still(seed, config)
    return degrade(rgb, np.zeros((*STILL_SIZE, 2), np.float32), seed, 0, config), depth_m


def _render_block(folder: Path, count: int, indices: list[int]) -> int:
    cv2.setNumThreads(1)
    stills = Stills(folder, count)
    for index in indices:
        rgb, depth_m = render_degraded_still(index)
        stills.rgb[index], stills.inv_depth[index] = rgb, 1 / depth_m
        stills.done[index] = 1
    return len(indices)


def render_stills(folder: Path, count: int, workers: int) -> Stills:
    """Render the stills that are missing, in several processes."""
    stills = Stills(folder, count)
    missing = np.flatnonzero(stills.done == 0).tolist()
    blocks = [missing[i : i + 128] for i in range(0, len(missing), 128)]
    started, rendered = time.monotonic(), 0
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for size in pool.map(_render_block, [folder] * len(blocks), [count] * len(blocks), blocks):
            rendered += size
            rate = rendered / (time.monotonic() - started)
            log.info(
                "stills %6d/%d  %5.1f/s  ETA %4.0f s", rendered, len(missing), rate, (len(missing) - rendered) / rate
            )
    return stills
