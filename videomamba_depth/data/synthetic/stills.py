"""Stills of many scenes in memory-mapped files: to train on single pictures, scenes count more than frames."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.config import SceneFamily, WorldConfig
from videomamba_depth.data.synthetic.photograph import photograph
from videomamba_depth.data.synthetic.video import render_still
from videomamba_depth.utils.errors import UserError

STILL_SIZE = (168, 224)  # height, width in px
FIRST_SEED = 10_000_000  # still i shows scene FIRST_SEED + i; tests and experiments use seeds below
# Still i is of family FAMILIES[i % 16], so that every beginning of the collection has the same mixture. The courtyard
# is not among them: no model of this project is trained on it.
FAMILIES: tuple[SceneFamily, ...] = (
    "clutter", "street", "tabletop", "forest", "bodies", "corridor", "clutter", "terrain",
    "rooms", "street", "clutter", "bodies", "tabletop", "terrain", "corridor", "forest",
)  # fmt: skip
_POLL_S = 0.5


class Stills:
    """Stills in files that are mapped into memory: rgb uint8 [n,h,w,3], inverse depth float16 [n,h,w] in 1/m."""

    def __init__(self, folder: Path, count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.rgb = _memory_map(folder / "rgb.npy", (count, *STILL_SIZE, 3), np.uint8)
        self.inv_depth = _memory_map(folder / "inv_depth.npy", (count, *STILL_SIZE), np.float16)
        self.done = _memory_map(folder / "done.npy", (count,), np.uint8)

    def wait_for(self, count: int, renderers: list[BaseProcess]) -> None:
        """Wait until the first `count` stills are there; raises RuntimeError when a renderer has died before."""
        while not self.done[:count].all():
            if any(process.exitcode not in (None, 0) for process in renderers):
                raise RuntimeError("a process that renders stills has died; its traceback stands above")
            time.sleep(_POLL_S)


def _memory_map(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    if path.exists():
        array = np.lib.format.open_memmap(path, "r+")
        if array.shape != shape:
            raise UserError(f"{path} has shape {array.shape}, expected {shape}; delete the folder or choose another")
        return array
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def render_photograph(index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Render still `index` with random camera defects; return rgb [h,w,3] and depth [h,w] in meters."""
    seed = FIRST_SEED + index
    config = WorldConfig(height=STILL_SIZE[0], width=STILL_SIZE[1], family=FAMILIES[index % len(FAMILIES)])
    rgb, depth_m = render_still(seed, config)
    return photograph(rgb, depth_m, np.random.default_rng([seed, 7])), depth_m


def _render(folder: Path, count: int, first: int, step: int, parent: int) -> None:
    """Render every step-th still that is missing, in order, until the parent process is gone."""
    cv2.setNumThreads(1)
    stills = Stills(folder, count)
    for index in range(first, count, step):
        if stills.done[index]:
            continue
        if os.getppid() != parent:
            return
        rgb, depth_m = render_photograph(index)
        stills.rgb[index], stills.inv_depth[index] = rgb, 1 / depth_m
        stills.done[index] = 1


@contextmanager
def rendering(folder: Path, count: int, workers: int) -> Iterator[tuple[Stills, list[BaseProcess]]]:
    """Render the stills that are missing in processes of their own, while the body runs and uses the first ones."""
    stills = Stills(folder, count)
    context = multiprocessing.get_context("spawn")
    renderers: list[BaseProcess] = [
        context.Process(target=_render, args=(folder, count, w, workers, os.getpid()), daemon=True)
        for w in range(workers)
    ]
    for process in renderers:
        process.start()
    try:
        yield stills, renderers
    finally:
        for process in renderers:
            process.terminate()
            process.join()
